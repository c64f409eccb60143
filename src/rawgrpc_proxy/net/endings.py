"""Why a connection ends, as the error that its owner and the log are told of.

What it does not do: end it, or say what that means for its calls (`failures.py`).
"""

import ssl

import trio

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ConnectionFailed, ConnectionGone, PeerAbuse, ProxyFault, ProxyStopping, alone
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.net.failures import reason_of
from rawgrpc_proxy.net.tls import left_early

_CLOSED_BY_THE_PEER = (ConnectionResetError, BrokenPipeError, ssl.SSLZeroReturnError, ssl.SSLEOFError)


def gone(session: Session, tls_version: str | None, error: OSError | None = None) -> ConnectionGone:
    """The link's end by `error`, or by the peer's will. `tls_version` is None in plaintext."""
    if (error is None or isinstance(error, _CLOSED_BY_THE_PEER)) and not session.peer_settings_seen:
        tls, client_side = tls_version is not None, session.client_side
        if tls or client_side:
            # A caller in plaintext that says nothing is a health check.
            return ConnectionGone(
                left_early(tls=tls, client_side=client_side),
                error_code=ErrorCode.NO_ERROR if client_side else ErrorCode.INADEQUATE_SECURITY,
            )
    if error is not None:
        was_reset = isinstance(error, ConnectionResetError | BrokenPipeError)
        return ConnectionGone(reason_of(error), cause="RST" if was_reset else "")
    return ConnectionGone("the peer closed the connection", why="closed_by_peer")


def too_slow(session: Session, timeout_s: float) -> ConnectionFailed:
    """What the peer has not done in time."""
    limit = f"within {timeout_s:g} s"
    if session.block_since is not None:
        return PeerAbuse(
            f"a header block did not end {limit} (handshake_timeout_s)", limit="handshake_timeout_s"
        )
    if session.peer_settings_seen:
        # RFC 9113 §6.5.3
        return ConnectionGone(
            f"our SETTINGS were not acknowledged {limit} (handshake_timeout_s)",
            error_code=ErrorCode.SETTINGS_TIMEOUT,
            why="handshake_timeout",
        )
    return ConnectionGone(f"no HTTP/2 SETTINGS {limit}", why="handshake_timeout")


def goaway(text: str, code: int) -> ConnectionGone:
    """The peer has said so, with this text and code."""
    return ConnectionGone(f"the peer sent GOAWAY {text!r}", error_code=code, why="goaway")


def closed_by_us() -> ConnectionGone:
    """Nobody needs it any more."""
    return ConnectionGone("closed by the proxy", why="closed_by_proxy")


def failure_of(fault: BaseException, *, client_side: bool) -> ConnectionFailed:
    """What is raised through a connection ends it: cancellation, or a fault of ours."""
    others = fault.split(trio.Cancelled)[1] if isinstance(fault, BaseExceptionGroup) else fault
    if others is not None and not isinstance(others := alone(others), trio.Cancelled):
        return ProxyFault(others)
    return closed_by_us() if client_side else ProxyStopping()
