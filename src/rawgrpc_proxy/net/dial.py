"""Connecting to an upstream: TCP, TLS over TCP, or a Unix socket."""

import errno
import os
import socket
import ssl

import trio

from rawgrpc_proxy.errors import UpstreamUnavailable
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.transport import SocketTransport, StreamTransport, Transport


async def dial(address: Address, *, ssl_context: ssl.SSLContext | None, timeout_s: float) -> Transport:
    """Connect within `timeout_s` seconds, TLS included.

    Raises `UpstreamUnavailable` with the cause in its message. Cancellation leaves nothing open.
    """
    try:
        with trio.fail_after(timeout_s):
            return await _connect(address, ssl_context)
    except trio.TooSlowError as error:
        raise UpstreamUnavailable(f"{address} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise UpstreamUnavailable(f"cannot connect to {address}: {_cause(error)}") from error
    except (trio.BrokenResourceError, ssl.SSLError, ssl.CertificateError) as error:
        raise UpstreamUnavailable(f"no TLS with {address}: {error.__cause__ or error}") from error


async def _connect(address: Address, ssl_context: ssl.SSLContext | None) -> Transport:
    if address.path is not None:
        stream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(address.host, address.port)
    if ssl_context is None:
        return SocketTransport(_detached(stream.socket), str(address))
    tls = trio.SSLStream(stream, ssl_context, server_hostname=address.host or None, https_compatible=True)
    try:
        await tls.do_handshake()
        if tls.selected_alpn_protocol() not in {"h2", None}:
            raise OSError(errno.EPROTO, f"the peer chose ALPN {tls.selected_alpn_protocol()!r}, not h2")
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return StreamTransport(tls, str(address))


def _detached(sock: trio.socket.SocketType) -> socket.socket:
    """The plain socket of a trio one: what `SocketTransport` writes to without a task switch."""
    family, kind, proto = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, proto, fileno=sock.detach())


def _cause(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    attempts = error.__cause__
    if isinstance(attempts, BaseExceptionGroup) and attempts.exceptions:
        first = attempts.exceptions[0]
        if isinstance(first, OSError):
            error = first
    elif isinstance(attempts, OSError):
        error = attempts
    return os.strerror(error.errno) if error.errno else str(error)
