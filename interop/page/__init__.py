"""The page of the admin listener in a real browser: whole, true, small, and back after a loss."""
