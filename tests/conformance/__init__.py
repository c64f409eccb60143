"""Rules of RFC 9113, RFC 7541 and gRPC over HTTP/2, one test each, in raw frames against the running server.

A rule is a row: the section, what a peer says in its breach or in its favour, and what has to come of it. `-k 6_5` runs
the rules of a section, `--collect-only -q` lists them all. To add one, add a row; a rule that takes more than one
exchange is a test of its own, with the section in its name.
"""
