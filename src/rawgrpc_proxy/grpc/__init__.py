"""gRPC over HTTP/2 without HTTP/2: statuses, timeouts, metadata, messages, codecs.

Everything here is pure: no I/O, no clock, no event loop, no HTTP/2 state. The modules know the errors of the
floor below and nothing above.
"""
