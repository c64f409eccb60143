"""Rules of RFC 9113, RFC 7541 and gRPC over HTTP/2, one test each, in raw frames against the running server.

A rule is a row: the section, what a peer says in its breach or in its favour, and what has to come of it
(`rules.py`); or, where it takes more than one exchange, the transcript of it (`exchanges.py`). `-k 6_5` runs the
rules of a section, `--collect-only -q` lists them all. To add one, add a row; a rule that is neither is a test of its
own, with the section in its name.
"""
