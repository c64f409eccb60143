"""A proxy that would be its own upstream is found out before the first call goes round.

Each round of such a call opens another stream, until connections or memory run out. Where the addresses do not show it
(a name that leads here only later, a link in the file system), the dial does: no connection is used whose other end is
one of our own listeners. Workers share the listeners, so a connection to another worker is one to ourselves as well.

What it does not do: find a way back through another process (`hops.py` does), or through something that rewrites
addresses.
"""

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rawgrpc_proxy.errors import UpstreamUnavailable
from rawgrpc_proxy.net.address import Address

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOOPBACK = {4: ipaddress.ip_address("127.0.0.1"), 6: ipaddress.ip_address("::1")}


class LoopGuard:
    """Knows where this proxy listens; `on_loop` hears of the first connection that would have led there."""

    def __init__(self, on_loop: Callable[[str], None] | None = None) -> None:
        self._listening: list[Address] = []
        self._on_loop = on_loop

    def listens_on(self, address: Address) -> None:
        """The proxy listens there: an address as it is bound, with a numeric host and the real port."""
        self._listening.append(address)

    def objection(self, address: Address) -> str | None:
        """Why no upstream can be at `address`; None if it is not ours. Looks up its name if its port is one of ours."""
        for own in self._listening:
            if _is_same_file(own, address) if address.path is not None else _leads_to(address, own):
                return (
                    f"{address} is this proxy itself, which listens on {own}: calls would go round in a loop"
                )
        return None

    def check(self, address: Address, peer_name: Callable[[], Any]) -> None:
        """Raise `UpstreamUnavailable` if a connection to `address` leads to ourselves.

        `peer_name` is the socket's `getpeername`.
        """
        if address.path is None:
            with contextlib.suppress(OSError):  # lost already: whoever uses it will see
                host, port = peer_name()[:2]
                address = Address(host=host, port=port)
        problem = self.objection(address)
        if problem is not None:
            if self._on_loop is not None:
                tell, self._on_loop = self._on_loop, None
                tell(problem)
            raise UpstreamUnavailable(problem, cause="loop")


def _is_same_file(own: Address, other: Address) -> bool:
    if own.path is None or other.path is None:
        return False
    if own.is_abstract or other.is_abstract:
        return own.path == other.path
    with contextlib.suppress(OSError):
        return Path(own.path).samefile(other.path)
    return False


def _leads_to(address: Address, own: Address) -> bool:
    if own.path is not None or own.port != address.port:
        return False
    listening = _ip(own.host)
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False  # it leads nowhere, yet
    for info in infos:
        ip = _ip(str(info[4][0]))
        if ip.is_unspecified:
            ip = _LOOPBACK[ip.version]  # where a connection to no host in particular goes
        if ip == listening or (
            listening.is_unspecified and listening.version in {ip.version, 6} and _is_of_this_machine(ip)
        ):
            return True
    return False


def _ip(host: str) -> _Ip:
    ip = ipaddress.ip_address(host)
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _is_of_this_machine(ip: _Ip) -> bool:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6  # noqa: PLR2004  # IPv4
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True
