"""Connecting to an upstream: TCP, TLS over TCP, or a Unix socket."""

import contextlib
import errno
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from rawgrpc_proxy.errors import RpcError, Side, UpstreamUnavailable
from rawgrpc_proxy.net.address import Address, in_words
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.poller import current_poller
from rawgrpc_proxy.net.tls import TlsContext, TlsTransport, UpstreamContext, context_of, tls_problem
from rawgrpc_proxy.net.transport import SocketTransport, StreamTransport, Transport

T = TypeVar("T")
OnHandshake = Callable[[float, Exception | None], None]
"""Hears how long a handshake took, in seconds, and why it failed, if it did. Must neither wait nor raise."""
Connect = Callable[[Address], Awaitable[trio.abc.Stream]]
"""Connects in a way of its own: in memory, through a tunnel. Raises `OSError` if it cannot."""


async def dial(
    address: Address,
    *,
    ssl_context: TlsContext | None,
    timeout_s: float,
    greet: Callable[[Transport], Awaitable[T]],
    server_name: str | None = None,
    loop_guard: LoopGuard | None = None,
    on_handshake: OnHandshake | None = None,
    connect: Connect | None = None,
) -> T:
    """Connect within `timeout_s` seconds, TLS and `greet` included, and answer what `greet` answers.

    `greet` gets the link, which is its own from then on, and waits until the peer has shown that it is of use. Where a
    name has several addresses, the first that takes a connection is tried; if it then fails, or is not done after a
    third of the time, the others have a try as well, and the first of all that is done wins. `greet` may be cancelled
    then, or its answer be dropped. With TLS the peer's certificate has to be for the context's own `server_name`, else
    for that given here, else for the address's host, which is asked for by SNI. `on_handshake` hears of each handshake
    of TLS that is over. `connect` connects instead of the system, without TLS.

    Raises `UpstreamUnavailable` with the cause in its message, that of the first address if all fail; its side is
    `LOCAL` if the cause is a lack of something here. What else `greet` raises is raised. Cancellation leaves nothing
    open.
    """
    tried: set[str] = set()
    linked = False
    done: list[T] = []
    errors: list[Exception] = []

    async def attempt(host: str, failed: trio.Event) -> None:
        nonlocal linked
        try:
            if connect is None:
                transport = await _connect(
                    address, ssl_context, server_name, host, tried, loop_guard, on_handshake
                )
            else:
                transport = await _connect_by(connect, address, ssl_context)
            linked = True
            answer = await greet(transport)
        except Exception as error:  # noqa: BLE001  # raised below, if no address is better
            errors.append(error)
            failed.set()
        else:
            done.append(answer)
            nursery.cancel_scope.cancel()

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            failed = trio.Event()
            nursery.start_soon(attempt, address.host, failed)
            with trio.move_on_after(timeout_s / 3):
                await failed.wait()
            for host in await _others(address, tried):
                failed = trio.Event()
                nursery.start_soon(attempt, host, failed)
                with trio.move_on_after(timeout_s / 3):
                    await failed.wait()
    if done:
        return done[0]
    if errors:
        raise _explained(errors[0], address) from errors[0]
    if linked:
        raise UpstreamUnavailable(
            f"{address} accepts connections but says nothing (no HTTP/2 SETTINGS within {timeout_s:g} s)",
            cause="dial_timeout",
        )
    raise UpstreamUnavailable(f"{address} did not answer within {timeout_s:g} s", cause="dial_timeout")


async def _others(address: Address, tried: set[str]) -> list[str]:
    """The other addresses of a name of which one has taken a connection."""
    if not tried:
        return []
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [host for host in dict.fromkeys(str(entry[4][0]) for entry in found) if host not in tried]


async def _connect(
    address: Address,
    ssl_context: TlsContext | None,
    server_name: str | None,
    host: str,
    tried: set[str],
    loop_guard: LoopGuard | None,
    on_handshake: OnHandshake | None,
) -> Transport:
    """A link to `host`, which is the address's, or one of the addresses of that; where it leads is added to `tried`."""
    context = None if ssl_context is None else context_of(ssl_context)
    expected = None if context is None else _server_name(context, server_name, address)
    current_poller()  # its first use in a run opens a file: if there is no more, that is no upstream's doing
    if address.path is not None:
        if context is not None and context.check_hostname and expected is None:
            # ssl itself would then check none (an SSLObject, unlike an SSLSocket, goes without).
            raise ValueError(
                "a Unix socket has no name to check; set check_hostname = False on its TLS context, or say whom it "
                "leads to (server_name)"
            )
        stream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(host, address.port)
        with contextlib.suppress(OSError):  # gone already, as will be seen
            tried.add(stream.socket.getpeername()[0])
    if loop_guard is not None:
        try:
            loop_guard.check(address, stream.socket.getpeername)
        except UpstreamUnavailable:
            await trio.aclose_forcefully(stream)
            raise
    if context is None:
        return SocketTransport(_detached(stream.socket), str(address))
    sock = _detached(stream.socket)
    try:
        tls = TlsTransport(sock, str(address), context, server_hostname=expected)
    except BaseException:
        sock.close()
        raise
    began = trio.current_time()
    try:
        await _shake_hands(tls)
        chosen = tls.alpn_protocol
        if chosen != "h2":
            what = "did not choose 'h2' by ALPN" if chosen is None else f"chose {chosen!r} by ALPN, not 'h2'"
            raise ValueError(
                f"the peer {what}: it must offer HTTP/2, and the ssl_context too (set_alpn_protocols(['h2']))"
            )
    except BaseException as error:
        if on_handshake is not None and isinstance(error, Exception):
            on_handshake(trio.current_time() - began, error)
        await tls.aclose()
        raise
    if on_handshake is not None:
        on_handshake(trio.current_time() - began, None)
    return tls


async def _connect_by(connect: Connect, address: Address, ssl_context: TlsContext | None) -> Transport:
    if ssl_context is not None:
        raise ValueError(
            "connect= answers a stream as it is: TLS is for connections that the pool makes itself"
        )
    return StreamTransport(await connect(address), str(address))


async def _shake_hands(tls: TlsTransport) -> None:
    try:
        await tls.handshake()
    except ssl.SSLError:
        raise
    except OSError as error:
        # The link was there, and broke on this.
        raise ssl.SSLError(in_words(error)) from error


def _server_name(context: ssl.SSLContext, of_address: str | None, address: Address) -> str | None:
    """Whom the peer's certificate has to be for: what settings say counts before what is known of the address."""
    of_context = context.server_name if isinstance(context, UpstreamContext) else None
    return of_context or of_address or address.host or None


def _detached(sock: trio.socket.SocketType) -> socket.socket:
    """The plain socket of a trio one: what `SocketTransport` writes to without a task switch."""
    family, kind, proto = sock.family, sock.type, sock.proto
    plain = socket.socket(family, kind, proto, fileno=sock.detach())
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and family in {socket.AF_INET, socket.AF_INET6}:
        # trio has set 16 KiB, which cuts bulk into pieces and costs a fifth more CPU; 0 is what the system has chosen.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    return plain


def _explained(error: Exception, address: Address) -> Exception:
    """The error of a dial, in words that say what to do; what is no dial's error stays as it is."""
    if isinstance(error, RpcError):
        return error
    if isinstance(error, ssl.SSLError):  # before OSError, of which it is one
        return UpstreamUnavailable(f"no TLS with {address}: {tls_problem(error)}", cause="TLS")
    if isinstance(
        error, OSError | ValueError
    ):  # ValueError: a name or a TLS configuration that makes no sense
        cause = _cause(error)
        lack = _lack(cause)
        return UpstreamUnavailable(
            f"cannot connect to {address}: {lack or in_words(cause)}",
            side=Side.LOCAL if lack else Side.UPSTREAM,
            cause="system_limit" if lack else "connect",
        )
    return error


def _cause(error: OSError | ValueError) -> BaseException:
    """The first thing that went wrong: trio tries every address of a name, and keeps all the errors.

    A machine without IPv6 has no address to go to some of them from; what another one has answered tells more.
    """
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        answers = [each for each in cause.exceptions if getattr(each, "errno", None) != errno.EADDRNOTAVAIL]
        cause = (answers or cause.exceptions)[0]
    if isinstance(cause, socket.gaierror):
        # A resolver that gets no descriptor says only that the name is not known, or that it cannot tell now.
        try:
            socket.socket().close()
        except OSError as own:
            return own
    return cause


def _lack(cause: BaseException) -> str | None:
    """What this process, or its machine, has not got for a connection, if that is the cause."""
    match getattr(cause, "errno", None):
        case errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return (
                f"the proxy is out of file descriptors, its limit is {limit}; raise RLIMIT_NOFILE (ulimit -n, or "
                "LimitNOFILE= of a systemd unit), or allow fewer connections"
            )
        case errno.ENFILE:
            return "the machine is out of file descriptors; raise its limit (on Linux the sysctl fs.file-max)"
        case errno.EADDRNOTAVAIL:
            return (
                "the proxy's machine has no free port to connect from (on Linux see the sysctl "
                f"net.ipv4.ip_local_port_range), or no address of that family ({in_words(cause)})"
            )
        case errno.ENOBUFS | errno.ENOMEM:
            return f"the proxy's machine has no memory for a connection ({in_words(cause)})"
        case _:
            return None
