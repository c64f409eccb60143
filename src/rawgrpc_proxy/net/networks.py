"""`Networks`: the peers that are believed, by where they come from, as people write it in settings.

What it does not do: say in what they are believed; that is for whoever asks (`server/server.py`, `proxy/forwarded.py`).
The invariant: an address is the same however it is written. IPv4 within IPv6 is IPv4, and a zone is no part of it.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final, Self

import attrs

from rawgrpc_proxy.errors import ConfigError

UNIX: Final = "unix"
"""Among the networks: whoever connects to a Unix socket."""
_UNIX_PEER = "unix:"
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen(kw_only=True)
class Networks:
    """Networks, and whether the peers of Unix sockets belong to them: `peer in networks` for a peer as text."""

    ip: tuple[_Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, names: Iterable[str]) -> Self:
        """Networks as people write them, `10.0.0.0/8`, `2001:db8::/32`, a single address, or `unix`.

        Raises `ConfigError`.
        """
        if isinstance(names, str):
            raise ConfigError(f"{names!r} is text; write a list: [{names!r}]")
        every = tuple(names)
        return cls(ip=tuple(_network(name) for name in every if name != UNIX), unix=UNIX in every)

    def __bool__(self) -> bool:
        return self.unix or bool(self.ip)

    def __contains__(self, peer: str) -> bool:
        if peer.startswith(_UNIX_PEER):
            return self.unix
        ip = ip_of(peer)
        return ip is not None and any(ip in network for network in self.ip)


def ip_of(peer: str) -> Ip | None:
    """The address in `HOST:PORT` or `[V6]:PORT`; None if there is none, as of the peers of Unix sockets."""
    host = peer.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _network(name: str) -> _Network:
    try:
        interface = ipaddress.ip_interface(str(name))  # one that is a network already does no harm
        if "%" in str(name):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f'{name!r} is no network; write 10.0.0.0/8, 2001:db8::/32, a single address, or "{UNIX}"'
        ) from None
    network, host = interface.network, interface.ip
    if host != network.network_address:
        raise ConfigError(
            f"{name!r} is an address in a network; write {network} for that, or {host} for it alone"
        )
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        shown = f"{network.network_address.ipv4_mapped}/{network.prefixlen - _MAPPED.prefixlen}"
        raise ConfigError(f"{name!r} is IPv4 written as IPv6, and matches nobody here; write {shown}")
    return network
