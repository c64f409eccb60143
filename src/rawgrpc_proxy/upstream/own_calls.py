"""What the calls that the proxy makes itself have in common: how they begin, and what their end says.

What it does not do: send, wait, or read messages; each caller has a way of its own. Nothing here is for calls that are
passed on: their headers are those of their callers.
"""

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.status import decode_grpc_message, parse_status
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.stream import Stream


def own_request(address: str, path: str, *, user_agent: bytes, scheme: bytes = b"http") -> Headers:
    """The headers of a call to this address."""
    # A Unix socket has no name that would be an authority: gRPC's clients say localhost.
    authority = "localhost" if address.startswith("unix:") else address
    return [
        (b":method", b"POST"),
        (b":scheme", scheme),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", user_agent),
    ]


def check_end(stream: Stream) -> None:
    """Raise `RpcError` if the response, which has been read to its end, says anything but OK."""
    trailers = dict(stream.inbox.trailers_received or ())
    status = parse_status(trailers.get(b"grpc-status"))
    if status is not Status.OK:
        message = decode_grpc_message(trailers.get(b"grpc-message", b""))
        raise RpcError(
            status or Status.UNKNOWN, message or "the response has no grpc-status", origin="upstream"
        )
