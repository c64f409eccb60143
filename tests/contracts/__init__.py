"""What h2, hpack and trio do today.

The proxy leans on these behaviours or works around them. The tests here exercise the libraries alone, so that
an upgrade which changes one of them fails in this folder, under a name that says what changed, before it can
fail in production. A failure is no bug of the proxy: read the docstring, revisit the code it speaks of, then
change both.
"""
