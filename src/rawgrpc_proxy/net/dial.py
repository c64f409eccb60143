"""Connecting to an upstream: TCP, TLS over TCP, or a Unix socket."""

import os
import socket
import ssl

import trio

from rawgrpc_proxy.errors import UpstreamUnavailable
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.transport import SocketTransport, StreamTransport, Transport


async def dial(
    address: Address,
    *,
    ssl_context: ssl.SSLContext | None,
    timeout_s: float,
    loop_guard: LoopGuard | None = None,
) -> Transport:
    """Connect within `timeout_s` seconds, TLS included.

    Raises `UpstreamUnavailable` with the cause in its message. Cancellation leaves nothing open.
    """
    try:
        with trio.fail_after(timeout_s):
            return await _connect(address, ssl_context, loop_guard)
    except trio.TooSlowError as error:
        raise UpstreamUnavailable(f"{address} did not answer within {timeout_s:g} s") from error
    except (trio.BrokenResourceError, ssl.SSLError) as error:  # before OSError, of which SSLError is one
        raise UpstreamUnavailable(f"no TLS with {address}: {error.__cause__ or error}") from error
    except (OSError, ValueError) as error:  # ValueError: a name or a TLS configuration that makes no sense
        raise UpstreamUnavailable(f"cannot connect to {address}: {_cause(error)}") from error


async def _connect(
    address: Address, ssl_context: ssl.SSLContext | None, loop_guard: LoopGuard | None
) -> Transport:
    if address.path is not None:
        if ssl_context is not None and ssl_context.check_hostname:
            # ssl itself would then check none (an SSLObject, unlike an SSLSocket, goes without).
            raise ValueError(
                "a Unix socket has no name to check; set check_hostname = False on its TLS context"
            )
        stream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(address.host, address.port)
    if loop_guard is not None:
        try:
            loop_guard.check(address, stream.socket.getpeername)
        except UpstreamUnavailable:
            await trio.aclose_forcefully(stream)
            raise
    if ssl_context is None:
        return SocketTransport(_detached(stream.socket), str(address))
    try:
        tls = trio.SSLStream(stream, ssl_context, server_hostname=address.host or None, https_compatible=True)
        await tls.do_handshake()
        if tls.selected_alpn_protocol() not in {"h2", None}:
            raise ValueError(f"the peer chose ALPN {tls.selected_alpn_protocol()!r}, not 'h2'")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return StreamTransport(tls, str(address))


def _detached(sock: trio.socket.SocketType) -> socket.socket:
    """The plain socket of a trio one: what `SocketTransport` writes to without a task switch."""
    family, kind, proto = sock.family, sock.type, sock.proto
    plain = socket.socket(family, kind, proto, fileno=sock.detach())
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and family in {socket.AF_INET, socket.AF_INET6}:
        # trio has set 16 KiB, which cuts bulk into pieces and costs a fifth more CPU; 0 is what the system has chosen.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    return plain


def _cause(error: OSError | ValueError) -> str:
    """The first thing that went wrong, in few words: trio tries every address of a name, and keeps all the errors."""
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    if isinstance(error, UnicodeError):
        return f"no host can have this name ({error})"
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause)
