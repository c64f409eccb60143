"""What a failure on the wire means for a call: the error that a reset, or the loss of a connection, becomes.

What it does not do: end the call, or decide whether it may be sent once more; the error says whether that is safe.
"""

import ssl

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import (
    ConnectionFailed,
    LinkLost,
    ProxyFault,
    ProxyStopping,
    RpcError,
    Side,
    StreamRefused,
    StreamReset,
)
from rawgrpc_proxy.grpc.status import status_from_reset
from rawgrpc_proxy.net.tls import tls_problem


def reset_error(error_code: int, side: Side, reason: str, cause: str = "") -> StreamReset:
    """The error of a call whose stream was reset by `side` (table in `grpc/status.py`)."""
    error = StreamReset(status_from_reset(error_code), error_code, side=side, cause=cause)
    if reason:
        error.message = f"{error.message}: {reason}"
    return error


def lost_error(error: ConnectionFailed, peer: str, side: Side) -> RpcError:
    """The error of a call whose connection to `peer`, on this side, is lost."""
    if isinstance(error, ProxyFault | ProxyStopping):
        status = Status.INTERNAL if isinstance(error, ProxyFault) else Status.UNAVAILABLE
        return RpcError(status, error.message, origin="proxy", cause=error.cause)
    return LinkLost(f"the connection to {peer} is lost: {error}", side=side, cause=error.cause)


def never_sent_error(error: ConnectionFailed, peer: str, side: Side) -> StreamRefused:
    """The same for a call of which nothing has left: it is safe to retry."""
    text = f"{lost_error(error, peer, side).message}, before the call was sent"
    return StreamRefused(text, cause=error.cause)


def headers_too_long(size: int, limit: int) -> RpcError:
    """The error of a call whose response headers are longer than its caller takes: of these nothing can be left out."""
    text = f"the response headers have {size} bytes; the caller takes {limit}"
    return RpcError(Status.RESOURCE_EXHAUSTED, text, origin="proxy", cause="SETTINGS_MAX_HEADER_LIST_SIZE")


def reason_of(error: OSError) -> str:
    """What the system says of it, or TLS."""
    if isinstance(error, ssl.SSLError):
        return tls_problem(error)
    return error.strerror or str(error) or type(error).__name__
