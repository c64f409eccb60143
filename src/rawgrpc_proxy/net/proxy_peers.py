"""Peers that are believed when they say whom they connect for: load balancers which put a PROXY header in front.

`ProxyPeers` is who they are, `read_source` reads what one of them says. The header comes before all else, TLS included.

What it does not do: say how long that may take (`server/server.py`), or know what a header looks like
(`proxy_protocol.py`). The invariant: no byte behind the header is read, so whatever goes on with the socket, TLS or
HTTP/2, finds its own first byte.
"""

import contextlib
import ipaddress
import socket
from collections.abc import Collection
from typing import Self

import attrs
import trio

from rawgrpc_proxy.errors import ConfigError, NotHttp2
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.proxy_protocol import MAX_HEADER_BYTES, read_header

UNIX = "unix"
"""Whoever connects to a Unix socket."""
_UNIX_PEER = "unix:"
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2


@attrs.frozen(kw_only=True)
class ProxyPeers:
    """Networks, and whether the peers of Unix sockets belong to them: `peer in peers` for a peer's address as text."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, names: Collection[str]) -> Self:
        """Networks as people write them, `10.0.0.0/8`, `2001:db8::/32`, a single address, or `unix`.

        Raises `ConfigError`.
        """
        if isinstance(names, str):
            raise ConfigError(f"{names!r} is text; write a list: [{names!r}]")
        return cls(
            networks=tuple(_network(name) for name in names if name != UNIX),
            unix=UNIX in names,
        )

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    def __contains__(self, peer: str) -> bool:
        if peer.startswith(_UNIX_PEER):
            return self.unix
        host = ipaddress.ip_address(Address.parse(peer, to_listen=True).host)  # with any port, 0 included
        return any(host in network for network in self.networks)


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
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


async def read_source(sock: socket.socket, peer: str) -> str | None:
    """Read the PROXY header with which a peer begins, and answer whom it connects for: itself, if it says no other.

    None if it has left without a word, as those do who only try whether somebody listens. Raises `NotHttp2` with what
    is wrong. Cancellation leaves the socket open, and useless.
    """
    sock.settimeout(0)
    came = b""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            seen = sock.recv(MAX_HEADER_BYTES - len(came), socket.MSG_PEEK)
        except BlockingIOError:
            continue
        except OSError:
            seen = b""
        if not seen:
            if came:
                raise NotHttp2(
                    "a PROXY header that breaks off: the load balancer has left in the middle of it"
                )
            return None
        header = read_header(came + seen)
        _drop(sock, len(seen) if header is None else header.size - len(came))
        if header is not None:
            return header.source or peer
        came += seen


def _drop(sock: socket.socket, size: int) -> None:
    """Take so many bytes off the socket, which have been seen there."""
    with contextlib.suppress(OSError):  # it is gone all the same: the next read says so
        while size and (data := sock.recv(size)):
            size -= len(data)
