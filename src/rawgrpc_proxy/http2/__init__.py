"""HTTP/2 (RFC 9113) without I/O and without trio: bytes in, events out; commands in, bytes out; time is an argument."""
