"""Listening: sockets that accept connections, and the loop that hands them on."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.accept_share import AcceptShare
from rawgrpc_proxy.net.address import Address, in_words

_BACKLOG = 1024
_ACCEPTS_A_TURN = 64
_COURTESY_S = 0.001
"""How long a process that has more connections than another leaves it the next one. Idle, it takes less to come."""
_RESOURCE_PAUSE_S = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_FREE_PORT_TRIES = 16
"""A port that is free on one address of a name may be taken on another."""
_EVERY_V6 = "::"
_MAPPED_V4 = "::ffff:"
"""In front of an IPv4 client's address, as a socket for both families sees it (RFC 4291 §2.5.5.2)."""


def open_listeners(address: Address) -> list[socket.socket]:
    """Bind and listen: one socket, or one for each address that a name has on this machine, all on one port.

    Port 0 picks a free one. `localhost` is 127.0.0.1 and ::1, whatever the resolver says (RFC 6761 §6.3), `[::]` both
    families, and no host at all every address of the machine, as in Go. A family that the machine does not have is
    passed over where there is another. Raises `ConfigError` with the reason if nothing can be bound.
    """
    try:
        if address.path is not None:
            if not address.is_abstract:
                _remove_left_over(address.path)
            return [_listening(socket.AF_UNIX, address.path)]
        for _ in range(_FREE_PORT_TRIES):
            with contextlib.suppress(_PortTaken):
                return _listening_on_each(_targets(address))
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {address}: {in_words(error)}") from error


class _PortTaken(Exception):
    """The free port of one address is taken on another."""


def _targets(address: Address) -> list[tuple[socket.AddressFamily, Any]]:
    """Where to bind, in this order."""
    host, port = address.host, address.port
    if host.lower() == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    if not host:
        return [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104  # as asked for
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, target) for family, _, _, _, target in infos))


def _listening_on_each(targets: list[tuple[socket.AddressFamily, Any]]) -> list[socket.socket]:
    """Sockets on those of the targets that this machine has, at least one."""
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, asked, *rest) in targets:
            port = asked or (listeners[0].getsockname()[1] if listeners else 0)
            try:
                listeners.append(_listening(family, (host, port, *rest)))
            except OSError as error:
                if error.errno in _NOT_HERE:
                    missing = error
                elif error.errno == errno.EADDRINUSE and port != asked:
                    raise _PortTaken from error
                else:
                    raise
            else:
                if host == _EVERY_V6 and not _v6_only(listeners[-1]):
                    break  # it has the other family, too
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return listeners


def _v6_only(listener: socket.socket) -> bool:
    return bool(listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _listening(family: int, target: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # So that a restart need not wait until the kernel has forgotten the connections of the last run.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and target[0] == _EVERY_V6:
            # Both families, whatever the system's default is; one that cannot do both keeps to its own.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(target)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(0)
    return sock


def _remove_left_over(path: str) -> None:
    """Remove a socket file that nobody listens on: it is left over from a crash. Anything else is not ours."""
    file = Path(path)
    if file.is_socket() and not _someone_listens(path):
        file.unlink(missing_ok=True)


def _someone_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full
    return True


def bound_address(sock: socket.socket) -> Address:
    """Where a listener really listens."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=os.fsdecode(name))
    return Address(host=name[0], port=name[1])


def address_of(listeners: Sequence[socket.socket], asked: Address) -> Address:
    """What clients connect to: where the one listener listens, or the name for several, with the port they have."""
    first = bound_address(listeners[0])
    return first if len(listeners) == 1 else Address(host=asked.host, port=first.port)


async def accept_on_each(
    listeners: Sequence[socket.socket],
    on_accept: Callable[[socket.socket, str], None],
    on_trouble: Callable[[OSError], None],
    share: AcceptShare | None = None,
) -> None:
    """`accept_forever` on all of them."""
    if len(listeners) == 1:
        await accept_forever(listeners[0], on_accept, on_trouble, share)
        return
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(accept_forever, listener, on_accept, on_trouble, share)


async def accept_forever(
    listener: socket.socket,
    on_accept: Callable[[socket.socket, str], None],
    on_trouble: Callable[[OSError], None],
    share: AcceptShare | None = None,
) -> None:
    """Accept until cancelled; `on_accept` gets each connected socket with its peer's address, and must not wait.

    With a `share`, which `on_accept` has to keep, connections are taken one by one, and after those who have fewer.
    When the process is out of file descriptors, `on_trouble` hears of it and accepting pauses for a moment. Raises
    `OSError` only if `listener` does not listen, or not any more.
    """
    listener.settimeout(0)
    accepts_a_turn = _ACCEPTS_A_TURN if share is None else 1
    while True:
        await trio.lowlevel.wait_readable(listener)
        if share is not None and share.is_ahead:
            await trio.sleep(_COURTESY_S)
        for _ in range(accepts_a_turn):
            try:
                sock, name = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    on_trouble(error)
                    await trio.sleep(_RESOURCE_PAUSE_S)
                    break
                if error.errno in _NO_LISTENER:
                    raise
                continue  # the peer was gone before we came to it (ECONNABORTED and its like)
            on_accept(sock, _peer_name(sock, name))


def _peer_name(sock: socket.socket, name: object) -> str:
    if sock.family == socket.AF_UNIX or not isinstance(name, tuple):
        return "unix:"
    host = name[0]
    if "." in host:
        host = host.removeprefix(_MAPPED_V4)
    return str(Address(host=host, port=name[1]))
