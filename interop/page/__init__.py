"""The page of the admin listener in a real browser: is it whole, is it true, does it come back, does it stay small?"""
