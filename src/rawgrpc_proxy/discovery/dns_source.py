"""`DnsSource` and `SrvSource`: the addresses of a cluster, by DNS.

Both keep, for each host, the addresses it had last: where a resolver cannot say whether they still hold, they do.
"""

import math
import random
from collections.abc import Iterable
from typing import get_args

import trio

from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.ip_routes import has_route
from rawgrpc_proxy.discovery.looking_up import LookingUp, LookUp
from rawgrpc_proxy.discovery.names import check_name, is_number, is_of_use
from rawgrpc_proxy.discovery.resolver import Addresses, Family, LookUpFailed, Resolver, Services
from rawgrpc_proxy.discovery.schedule import DEFAULT_MAX_TTL_S, DEFAULT_MIN_TTL_S
from rawgrpc_proxy.discovery.system_resolver import SystemResolver
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.observe.observer import PoolObserver

DEFAULT_MAX_ADDRESSES = 256
_LOOK_UP_S = 5.0
"""For one question: resolvers ask for about as long."""
_LOOKED_AT = 4
"""Times `max_addresses`: so many of a service are looked at, for those that there is a way to."""
_AT_ONCE = 16
"""Hosts of a service that are asked for at the same time."""


def default_resolver(servers: Iterable[str] = ()) -> Resolver:
    """What asks DNS itself, if dnspython is installed (the extra `dns`); else the system's resolver.

    `servers` are asked instead of those of resolv.conf. Raises `ConfigError`.
    """
    servers = list(servers)
    try:
        from rawgrpc_proxy.discovery.dns_resolver import DnsResolver  # noqa: PLC0415  # takes long, and may not be there
    except ImportError as error:
        if servers:
            raise ConfigError(f"to ask certain DNS servers takes {_HOW_TO_GET_DNSPYTHON} ({error})") from None
        return SystemResolver()
    return DnsResolver(servers)


_HOW_TO_GET_DNSPYTHON = "dnspython: install rawgrpc-proxy[dns]"


class DnsSource(LookingUp):
    """All addresses of a name, IPv4 and IPv6: `DnsSource("orders.internal:50051")`.

    They are looked up again when their ttl is over, within `min_ttl_s` and `max_ttl_s` (every 30 s, within these, where
    the resolver does not know it), in pauses of up to 5 s after a failure, and on `look_up_soon`. Addresses that this
    machine knows no way to are left out, unless there are no others. With TLS certificates are checked against the
    name. A number instead of a name is just that.
    """

    def __init__(
        self,
        name: str,
        *,
        family: Family = "all",
        min_ttl_s: float = DEFAULT_MIN_TTL_S,
        max_ttl_s: float = DEFAULT_MAX_TTL_S,
        max_addresses: int = DEFAULT_MAX_ADDRESSES,
        resolver: Resolver | None = None,
        observer: PoolObserver | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for what is no name with a port, and for bounds that cannot be kept."""
        super().__init__(
            name,
            min_ttl_s=min_ttl_s,
            max_ttl_s=max_ttl_s,
            max_addresses=max_addresses,
            observer=observer,
            rng=rng,
        )
        address = Address.parse(name)
        if address.path is not None:
            raise ConfigError(f"{name!r} has no name to look up; write NAME:PORT, or give it as an endpoint")
        self._port = address.port
        if is_number(address.host):
            self._host: _Host | None = None
            self._number = [EndpointAddress(str(address))]
            return
        check_name(address.host)
        self._host = _Host(address.host, _checked(family), resolver or default_resolver(), max_addresses)
        self._server_name = address.host.removesuffix(".")

    async def look_up(self) -> LookUp:
        """Look the name up once."""
        if self._host is None:
            return LookUp(found=self._number, ttl_s=math.inf)
        await self._host.look_up()
        host = self._host
        return LookUp(
            found=[
                EndpointAddress(str(Address(host=each, port=self._port)), server_name=self._server_name)
                for each in _within_reach(host.addresses)
            ],
            ttl_s=host.ttl_s,
            notes=host.notes,
        )


class SrvSource(LookingUp):
    """The hosts and ports of a service, by its SRV records: `SrvSource("_grpc._tcp.orders.internal")`.

    As `DnsSource`, with priorities and weights (RFC 2782). It needs dnspython. With TLS certificates are checked
    against the domain that was asked for ("orders.internal"), and not against the hosts that DNS has named: whoever can
    forge an answer could name his own.
    """

    def __init__(
        self,
        name: str,
        *,
        family: Family = "all",
        min_ttl_s: float = DEFAULT_MIN_TTL_S,
        max_ttl_s: float = DEFAULT_MAX_TTL_S,
        max_addresses: int = DEFAULT_MAX_ADDRESSES,
        resolver: Resolver | None = None,
        observer: PoolObserver | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for what is no name of a service, and where dnspython is not installed."""
        super().__init__(
            name,
            min_ttl_s=min_ttl_s,
            max_ttl_s=max_ttl_s,
            max_addresses=max_addresses,
            observer=observer,
            rng=rng,
        )
        if ":" in name:
            raise ConfigError(f"{name!r}: SRV records say the port themselves; write _SERVICE._tcp.DOMAIN")
        check_name(name)
        labels = name.removesuffix(".").split(".")
        self._server_name = ".".join(label for label in labels if not label.startswith("_"))
        if not self._server_name:
            raise ConfigError(f"{name!r} names no domain; write _SERVICE._tcp.DOMAIN")
        self._resolver = resolver or default_resolver()
        if not self._resolver.finds_services:
            raise ConfigError(f"to look up SRV records ({name}) takes {_HOW_TO_GET_DNSPYTHON}")
        self._family = _checked(family)
        self._hosts: dict[str, _Host] = {}

    async def look_up(self) -> LookUp:
        """Look up the service, then all its hosts."""
        services = await self._services()
        notes = []
        offers = [each for each in services.found if each.host not in {".", ""} and each.port > 0]
        names = sorted({each.host for each in offers})
        if not offers:
            raise LookUpFailed("the service is not offered there (its SRV records name no host)")
        if len(names) > self._max_addresses:
            notes.append(
                f"it has {len(names)} hosts, of which the first {self._max_addresses} are used (max_addresses)"
            )
            names = names[: self._max_addresses]
        self._hosts = {
            name: self._hosts.get(name) or _Host(name, self._family, self._resolver, self._max_addresses)
            for name in names
        }
        for host in self._hosts.values():
            host.notes = ["not looked up in time"]  # until it is
        limiter = trio.CapacityLimiter(_AT_ONCE)

        async def look_up(host: _Host) -> None:
            async with limiter:
                try:
                    await host.look_up()
                except Exception as error:  # noqa: BLE001  # of this host; what the others have is of use
                    host.notes = [str(error) or type(error).__name__]

        with trio.move_on_after(2 * _LOOK_UP_S):
            async with trio.open_nursery() as nursery:
                for host in self._hosts.values():
                    nursery.start_soon(look_up, host)
        notes += [f"{host.name}: {note}" for host in self._hosts.values() for note in host.notes]
        has_zero = any(each.weight == 0 for each in offers) and any(each.weight for each in offers)
        found: dict[str, tuple[str, EndpointAddress]] = {}
        # Two hosts that are the same: it counts as the better of them, which comes first.
        for each in sorted(offers, key=lambda each: (each.priority, each.host, each.port)):
            if each.host not in self._hosts:
                continue
            # All hosts on all ports could be a million.
            if len(found) > _LOOKED_AT * self._max_addresses:
                notes.append(f"it has more than {len(found)} addresses, of which no others are looked at")
                break
            # "A very small chance" for a weight of 0, where others have one (RFC 2782).
            weight = (each.weight * 100 if has_zero else each.weight) or 1
            for number in self._hosts[each.host].addresses:
                address = str(Address(host=number, port=each.port))
                if address not in found:
                    found[address] = (
                        number,
                        EndpointAddress(address, weight, each.priority, self._server_name),
                    )
        reachable = set(_within_reach(list({number for number, _ in found.values()})))
        ttls = [host.ttl_s for host in self._hosts.values() if host.ttl_s is not None]
        if services.ttl_s is not None:
            ttls.append(services.ttl_s)
        return LookUp(
            found=[one for number, one in found.values() if number in reachable],
            ttl_s=min(ttls, default=None),
            notes=notes,
        )

    async def _services(self) -> Services:
        with trio.move_on_after(_LOOK_UP_S):
            return await self._resolver.services(self.name)
        raise LookUpFailed(f"no answer within {_LOOK_UP_S:g} s")


class _Host:
    """One name, and the addresses it had when that was last known."""

    def __init__(self, name: str, family: Family, resolver: Resolver, max_addresses: int) -> None:
        self.name = name
        self.addresses: list[str] = []
        self.ttl_s: float | None = None
        self.notes: list[str] = []
        """What is in doubt of them."""
        self._family = family
        self._resolver = resolver
        self._max_addresses = max_addresses

    async def look_up(self) -> None:
        """Raise `LookUpFailed`, and what the resolver raises; then all is as it was."""
        answer = await self._ask()
        notes = [] if answer.problem is None else [answer.problem]
        of_family: dict[str, set[str]] = {"ipv4": set(), "ipv6": set()}
        for each in answer.found:
            if is_of_use(each):
                of_family[_family_of(each)].add(each)
        if answer.unanswered is not None:
            of_family[answer.unanswered].update(
                each for each in self.addresses if _family_of(each) == answer.unanswered
            )
        for family, addresses in of_family.items():
            if len(addresses) > self._max_addresses:
                most = self._max_addresses
                notes.append(
                    f"it has {len(addresses)} {family} addresses, of which {most} are used (max_addresses)"
                )
                of_family[family] = set(sorted(addresses)[:most])
        self.addresses = [*of_family["ipv4"], *of_family["ipv6"]]
        self.ttl_s = answer.ttl_s
        self.notes = notes

    async def _ask(self) -> Addresses:
        with trio.move_on_after(_LOOK_UP_S):
            return await self._resolver.addresses(self.name, self._family)
        raise LookUpFailed(f"no answer within {_LOOK_UP_S:g} s")


def _family_of(address: str) -> str:
    return "ipv6" if ":" in address else "ipv4"


def _within_reach(addresses: list[str]) -> list[str]:
    """Those that this machine knows a way to; all, if there is none for any."""
    return [each for each in addresses if has_route(each)] or addresses


def _checked(family: Family) -> Family:
    if family not in get_args(Family):
        raise ConfigError(f"family is {family!r}; it must be one of {', '.join(get_args(Family))}")
    return family
