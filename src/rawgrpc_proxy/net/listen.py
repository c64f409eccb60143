"""Listening: sockets that accept connections, and the loop that hands them on."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable

import trio

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address

_BACKLOG = 1024
_ACCEPTS_A_TURN = 64
_RESOURCE_PAUSE_S = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def open_listener(address: Address) -> socket.socket:
    """Bind and listen. Port 0 picks a free one. Raises `ConfigError` with the reason if that cannot be."""
    try:
        if address.path is not None:
            return _listen_unix(address.path)
        infos = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, proto, _, target = infos[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def _listen_unix(path: str) -> socket.socket:
    # A socket file that nobody listens on is left over from a crash. Anything else is not ours to remove.
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _someone_listens(path):
            os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _someone_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def bound_address(sock: socket.socket) -> Address:
    """Where a listener really listens."""
    name = sock.getsockname()
    return Address(path=name) if sock.family == socket.AF_UNIX else Address(host=name[0], port=name[1])


async def accept_forever(
    listener: socket.socket,
    on_accept: Callable[[socket.socket, str], None],
    on_trouble: Callable[[OSError], None],
) -> None:
    """Accept until cancelled; `on_accept` gets each connected socket with its peer's address, and must not wait.

    When the process is out of file descriptors, `on_trouble` hears of it and accepting pauses for a moment.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, name = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    on_trouble(error)
                    await trio.sleep(_RESOURCE_PAUSE_S)
                    break
                continue  # the peer was gone before we came to it (ECONNABORTED and its like)
            on_accept(sock, _peer_name(sock, name))


def _peer_name(sock: socket.socket, name: object) -> str:
    if sock.family == socket.AF_UNIX or not isinstance(name, tuple):
        return "unix:"
    return str(Address(host=name[0], port=name[1]))
