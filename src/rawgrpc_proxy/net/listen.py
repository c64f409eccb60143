"""Listening: sockets that accept connections, and the loop that hands them on."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.accept_share import AcceptShare
from rawgrpc_proxy.net.address import Address

_BACKLOG = 1024
_ACCEPTS_A_TURN = 64
_COURTESY_S = 0.001
"""How long a process that has more connections than another leaves it the next one. Idle, it takes less to come."""
_RESOURCE_PAUSE_S = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def open_listener(address: Address) -> socket.socket:
    """Bind and listen. Port 0 picks a free one. Raises `ConfigError` with the reason if that cannot be.

    Of the addresses that a name has, the first that this machine knows as its own is taken.
    """
    try:
        if address.path is not None:
            _remove_left_over(address.path)
            return _listening(socket.AF_UNIX, address.path)
        infos = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, target in infos[:-1]:
            try:
                return _listening(family, target)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
        return _listening(infos[-1][0], infos[-1][4])
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA does not know
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"cannot listen on {address}: {reason or error}") from error


def _listening(family: int, target: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # So that a restart need not wait until the kernel has forgotten the connections of the last run.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
    return str(Address(host=name[0], port=name[1]))
