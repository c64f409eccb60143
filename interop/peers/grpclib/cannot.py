"""The cases that grpclib cannot do, on either side."""

NO_COMPRESSION = "grpclib has no message compression"
CANNOT = {
    "client_compressed_unary": NO_COMPRESSION,
    "client_compressed_streaming": NO_COMPRESSION,
    "server_compressed_unary": NO_COMPRESSION,
    "server_compressed_streaming": NO_COMPRESSION,
}
