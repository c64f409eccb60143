"""Compressed messages of calls that are served or made here: gzip and deflate are read, nothing is written compressed.

What it does not do: touch calls that are passed on. The invariant: what a message inflates to is bounded while it is
inflated.

Owns: "Compression" of the gRPC over HTTP/2 specification, for those who receive.
"""

import zlib

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
ACCEPT_ENCODING = (b"grpc-accept-encoding", b"identity,deflate,gzip")
"""The header that says so."""


def inflated(payload: bytes, encoding: bytes, max_message_bytes: int, *, origin: str) -> bytes:
    """A compressed message as it was before.

    `origin` goes into the `RpcError` that is raised for what is not understood, broken, or too long.
    """
    if encoding == b"identity":
        raise RpcError(Status.INTERNAL, "a message is compressed, and nothing says how", origin=origin)
    if encoding not in {b"gzip", b"deflate"}:
        raise RpcError(
            Status.UNIMPLEMENTED,
            f"messages compressed with {encoding.decode('latin-1')!r} are not understood here",
            origin=origin,
        )
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        # One byte more than allowed tells a message that is too long from one that just fits.
        message = inflater.decompress(payload, max_message_bytes + 1)
    except zlib.error as error:
        raise RpcError(Status.INTERNAL, f"a compressed message is broken: {error}", origin=origin) from error
    if len(message) > max_message_bytes:
        raise RpcError(
            Status.RESOURCE_EXHAUSTED,
            f"a message is longer than {max_message_bytes} bytes when decompressed",
            origin=origin,
        )
    if not inflater.eof:
        raise RpcError(Status.INTERNAL, "a compressed message is cut short", origin=origin)
    return message
