"""The listening sockets of `serve`, by the address in the settings: opened once, kept through reloads and upgrades.

For the supervisor, which owns them; its children inherit them, and close those that are not theirs.
"""

import contextlib
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import address_of, bound_address, open_listeners

INHERITED = "fd:"
"""In front of the number of a file descriptor, or of a name that systemd gave it."""
_FIRST_OF_SYSTEMD = 3
_NAMES = "LISTEN_FDNAMES"


class Listening:
    """Sockets that listen, several where a name has several addresses."""

    def __init__(self, handed_over: Mapping[str, Sequence[int]] | None = None) -> None:
        """`handed_over` are open file descriptors by key (see `keys_of`)."""
        self._open = {
            key: [_own(socket.socket(fileno=descriptor)) for descriptor in descriptors]
            for key, descriptors in (handed_over or {}).items()
        }

    def open(self, keys: Iterable[str]) -> list[str]:
        """Open those that are not open yet, and answer their keys. Raises `ConfigError`, with none of them open."""
        opened: list[str] = []
        try:
            for key in keys:
                if key not in self._open:
                    self._open[key] = _open(_address(key))
                    opened.append(key)
        except BaseException:
            self.close(opened)
            raise
        return opened

    def sockets(self, key: str) -> list[socket.socket]:
        """Of one that is open."""
        return self._open[key]

    def where(self, key: str) -> Address:
        """What clients connect to."""
        sockets, address = self._open[key], _address(key)
        if address.startswith(INHERITED):
            return bound_address(sockets[0])
        return address_of(sockets, Address.parse(address, to_listen=True))

    def descriptors(self) -> dict[str, list[int]]:
        """Of all that are open, by key."""
        return {key: [sock.fileno() for sock in sockets] for key, sockets in self._open.items()}

    def close(self, keys: Iterable[str]) -> None:
        """Stop listening there. The file of a Unix socket goes with it, first: from then on it may be another's."""
        for key in keys:
            for sock in self._open.pop(key, ()):
                _remove_file(sock, _address(key))
                sock.close()

    def close_all_but(self, keys: Collection[str]) -> None:
        """For a child: the others are not its own, and go on listening elsewhere."""
        for key in [key for key in self._open if key not in keys]:
            for sock in self._open.pop(key):
                sock.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)


def keys_of(addresses: Iterable[str]) -> list[str]:
    """A key for each; port 0 twice is two sockets."""
    keys: list[str] = []
    for address in addresses:
        keys.append(f"{address} {sum(_address(key) == address for key in keys)}")
    return keys


def _address(key: str) -> str:
    return key.rpartition(" ")[0]


def check_inherited(address: str) -> None:
    """Raises `ConfigError` if this is no `fd:NUMBER` or `fd:NAME`."""
    if not address.removeprefix(INHERITED):
        raise ConfigError(f"{address!r} names no file descriptor; write fd:3, or fd:NAME as systemd names it")


def _open(address: str) -> list[socket.socket]:
    if not address.startswith(INHERITED):
        return open_listeners(Address.parse(address, to_listen=True))
    descriptor = _descriptor(address.removeprefix(INHERITED))
    try:
        # A copy: whoever gave it to us may give it to the program after us, too.
        sock = _own(socket.socket(fileno=os.dup(descriptor)))
    except OSError as error:
        raise ConfigError(
            f"{address}: file descriptor {descriptor} is no open socket ({error.strerror}); "
            "it has to come from whoever starts this program (systemd: a .socket unit)"
        ) from None
    listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens:
        sock.close()
        raise ConfigError(
            f"{address}: the socket does not listen; it has to be a stream socket that does (Accept=no)"
        )
    return [sock]


def _descriptor(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    names = os.environ.get(_NAMES, "").split(":")
    if text not in names:
        known = ", ".join(filter(None, names)) or f"none: {_NAMES} is not set"
        raise ConfigError(f"fd:{text}: no file descriptor has this name; systemd has given {known}")
    return _FIRST_OF_SYSTEMD + names.index(text)


def _own(sock: socket.socket) -> socket.socket:
    """One that came from another program: programs that we start shall not get it."""
    sock.set_inheritable(False)
    sock.settimeout(0)
    return sock


def _remove_file(sock: socket.socket, address: str) -> None:
    if sock.family != socket.AF_UNIX or address.startswith(INHERITED):
        return
    bound = bound_address(sock)
    if bound.path is not None and not bound.is_abstract:
        with contextlib.suppress(OSError):
            Path(bound.path).unlink()
