"""grpclib's client and server."""
