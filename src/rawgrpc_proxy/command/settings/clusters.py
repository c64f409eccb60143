"""What can be set of a cluster: its endpoints, the TLS towards them, and the connections to each."""

from collections.abc import Mapping
from typing import Any

import attrs

from rawgrpc_proxy.cluster.balance_settings import Balance
from rawgrpc_proxy.cluster.health_settings import HealthCheck
from rawgrpc_proxy.cluster.outlier_settings import OutlierDetection
from rawgrpc_proxy.cluster.slow_start import SlowStart
from rawgrpc_proxy.command.settings.problems import Problems
from rawgrpc_proxy.command.settings.retries import RetryThrottlingSettings
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.discovery.dns_source import DEFAULT_MAX_ADDRESSES, DnsSource, SrvSource, default_resolver
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.resolver import Family
from rawgrpc_proxy.discovery.schedule import DEFAULT_MAX_TTL_S, DEFAULT_MIN_TTL_S
from rawgrpc_proxy.discovery.source import Source
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.validators import at_least, between, held_to

DNS_SCHEME = "dns:///"
"""As with gRPC's clients: all addresses of a name."""
_MOST_WEIGHT = 1_000_000
_PLAIN_SCHEMES = ("http://", "grpc://", "h2c://", DNS_SCHEME)
_TLS_SCHEMES = ("https://", "grpcs://")


def _check_endpoints(endpoints: tuple[str, ...]) -> None:
    for text in endpoints:
        if text.startswith(DNS_SCHEME):
            address = text.removeprefix(DNS_SCHEME)
            raise ConfigError(
                f'{text} means all addresses of a name: write dns = "{address}" instead of endpoints'
            )
        Address.parse(plain_address(text)[0])


def _check_dns(text: str) -> None:
    DnsSource(plain_address(text)[0])


def _check_servers(servers: tuple[str, ...]) -> None:
    if servers:  # otherwise it need not even be known whether dnspython is there
        default_resolver(servers)


def plain_address(text: str) -> tuple[str, bool]:
    """An address as people write it, without its scheme, and whether the scheme means TLS."""
    for schemes, tls in ((_PLAIN_SCHEMES, False), (_TLS_SCHEMES, True)):
        for scheme in schemes:
            if text.startswith(scheme):
                return text.removeprefix(scheme).removesuffix("/"), tls
    return text, False


@attrs.frozen(kw_only=True)
class ClusterTls:
    """TLS towards a cluster: `tls = {}` checks its certificates against the system's authorities."""

    ca: str | None = attrs.field(default=None)
    """A PEM file with the authorities to trust, instead of the system's."""

    server_name: str | None = attrs.field(default=None)
    """What the certificate must be for, and what is asked for by SNI; by default the endpoint's host."""

    certificate: str | None = attrs.field(default=None)
    """A PEM file with the proxy's own certificate, for a cluster that asks for one."""

    key: str | None = attrs.field(default=None)
    """Its private key."""

    def problems(self) -> Problems:
        """What does not fit together."""
        if (self.certificate is None) != (self.key is None):
            lacking = "certificate" if self.certificate is None else "key"
            yield lacking, "is missing; certificate and key belong together"


@attrs.frozen(kw_only=True)
class PoolSettings:
    """Connections to each endpoint: those of the library's `Pool`, with defaults for a proxy on its own."""

    size: int = attrs.field(default=100, validator=at_least(0))
    """Connections kept."""

    ttl_s: float = attrs.field(default=60.0, validator=at_least(0))
    """How long a connection takes new calls."""

    idle: int = attrs.field(default=50, validator=at_least(0))
    """Connections without calls kept."""

    min_idle: int = attrs.field(default=0, validator=at_least(0))
    """Connections that each worker keeps ready to each endpoint: dialled before calls need them, and again before their
    ttl is over. An endpoint that was away is then found when it comes back, without a call that has to wait for it."""

    ms: int = attrs.field(default=100, validator=at_least(1))
    """Calls at a time on one connection: what RFC 9113 §6.5.2 says a peer should allow at least. The library's pool has
    the original's 20, with which a burst of 3,000 calls needs 150 connections."""

    max_waiting: int | None = attrs.field(default=1000, validator=at_least(0))
    """Calls that wait in line beyond `size` times `ms`; the next one is refused. A burst fits, and costs a few MiB.
    "none": no limit, each call beyond gets a connection of its own, as in the original; a backend that hangs then
    takes a connection for each call, until no file is left."""

    dial_timeout_s: float = attrs.field(default=3.0, validator=at_least(0.001))
    """From the look-up of the name to the endpoint's first SETTINGS."""

    connect_wait_s: float = attrs.field(default=1.0, validator=at_least(0))
    """How long a call waits for an endpoint that cannot be reached, until it is UNAVAILABLE."""

    def problems(self) -> Problems:
        """What does not fit together."""
        if self.size == 0 and self.max_waiting is not None:
            yield "size", 'of 0 would never let a call through: give max_waiting "none", too'
        for name, kept in (("idle", self.idle), ("size", self.size)):
            if self.min_idle > kept:
                yield (
                    "min_idle",
                    f"of {self.min_idle} is more than are kept: {name} is {kept}; raise that, too",
                )


@attrs.frozen(kw_only=True)
class ClusterSettings:
    """Backends that are as good as each other: each call goes to one of its endpoints.

    It has one of `endpoints`, `dns` and `srv`.
    """

    endpoints: tuple[str, ...] = attrs.field(default=(), validator=held_to(_check_endpoints))
    """`HOST:PORT` or `unix:PATH` each. http:// and grpc:// in front mean plaintext, https:// and grpcs:// TLS."""

    dns: str | None = attrs.field(default=None, validator=attrs.validators.optional(held_to(_check_dns)))
    """`NAME:PORT`: all addresses of a name are its endpoints. They are looked up again when their ttl is over, after a
    failure, and when one cannot be reached; those that are gone finish their calls. What cannot be looked up stays as
    it was. The extra `dns` (dnspython) is what knows the ttl; without it names are looked up every 30 s. With TLS the
    certificates have to be for the name. Schemes as for `endpoints`."""

    srv: str | None = attrs.field(default=None, validator=attrs.validators.optional(held_to(SrvSource)))
    """The same by SRV records, with their ports, weights and priorities: `_grpc._tcp.orders.internal`. With TLS the
    certificates have to be for the domain ("orders.internal"), unless `tls.server_name` says otherwise. Needs the extra
    `dns`."""

    dns_family: Family = attrs.field(default="all")
    """Which addresses of a name are used. A host with both counts as two endpoints."""

    dns_min_ttl_s: float = attrs.field(default=DEFAULT_MIN_TTL_S, validator=at_least(0.001))
    """How long what was looked up holds at least. Each worker looks up for itself."""

    dns_max_ttl_s: float = attrs.field(default=DEFAULT_MAX_TTL_S, validator=at_least(0.001))
    """How long it holds at the most."""

    dns_max_addresses: int = attrs.field(default=DEFAULT_MAX_ADDRESSES, validator=at_least(1))
    """What a name has beyond these is left out, and the log says so."""

    dns_servers: tuple[str, ...] = attrs.field(default=(), validator=held_to(_check_servers))
    """DNS servers to ask instead of those of /etc/resolv.conf: `ADDRESS` or `ADDRESS:PORT` each. Needs the extra
    `dns`."""

    weights: Mapping[str, int] = attrs.field(factory=dict)
    """By endpoint, as it is written in `endpoints`: how many calls it gets for each call of one that has no weight, for
    policies that go by weights. `weights = { "10.0.0.7:50051" = 3 }`."""

    tls: ClusterTls | None = attrs.field(default=None)
    """Without it, and without https:// in front of the endpoints, the proxy speaks plaintext."""

    health: HealthCheck | None = attrs.field(default=None)
    """Health checks: endpoints are asked how they are, and those that are not well get no calls. `{}` turns it on."""

    outlier: OutlierDetection | None = attrs.field(default=None)
    """Outlier detection: endpoints whose calls go badly get none for a while. `{}` turns it on."""

    balance: Balance = attrs.field(factory=Balance)
    """Which endpoint a call gets; by default each in turn. A policy alone may be text, like "least_request"."""

    slow_start: SlowStart | None = attrs.field(default=None)
    """How an endpoint that joins, or comes back, gets its share little by little. A window alone may be text, like
    "30s". By default it gets all of its share at once."""

    panic_threshold: float = attrs.field(default=0.5, validator=between(0, 1))
    """If a smaller part of the endpoints than this is fit for calls, all get some: it is more likely then that the
    checks are wrong, and a few would not bear the load of all. 0: only those that are fit, whatever happens."""

    pool: PoolSettings = attrs.field(factory=PoolSettings)
    """What is not set here is as in the table `pool` of the file's top level."""

    max_requests: int | None = attrs.field(default=None, validator=at_least(1))
    """Circuit breaker: calls under way, those that wait for a connection included. The next one is RESOURCE_EXHAUSTED
    at once. This and the next two are for all workers together, and each has its share, rounded up."""

    max_pending: int | None = attrs.field(default=None, validator=at_least(0))
    """Circuit breaker: calls that wait for a connection. The next one that finds none with room is RESOURCE_EXHAUSTED
    at once. Of each endpoint's own line, `pool.max_waiting` is the bound."""

    max_connections: int | None = attrs.field(default=None, validator=at_least(1))
    """Circuit breaker: connections to all endpoints. Calls wait in line for one of them, within the other bounds. There
    should be one for each endpoint at least, or they take turns."""

    retry_throttling: RetryThrottlingSettings | None = attrs.field(default=None)
    """What stops retries and hedging where too much fails; by default nothing does but the number of attempts."""

    http2: Http2Settings = attrs.field(factory=Http2Settings)
    """How connections to the endpoints behave. What is not set here is as in the table `http2` of the file's top
    level."""

    @property
    def found(self) -> list[EndpointAddress]:
        """The endpoints with their weights."""
        return [EndpointAddress(plain_address(text)[0], self.weights.get(text, 1)) for text in self.endpoints]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints without their schemes."""
        return tuple(plain_address(text)[0] for text in self.endpoints)

    @property
    def speaks_tls(self) -> bool:
        """Whether its connections are TLS."""
        return self.tls is not None or any(
            plain_address(text)[1] for text in (*self.endpoints, self.dns or "")
        )

    def source(self, observer: PoolObserver) -> Source | list[EndpointAddress]:
        """Where its endpoints come from, or what they are. `observer` hears of look-ups. Raises `ConfigError`."""
        if self.dns is None and self.srv is None:
            return self.found
        options: dict[str, Any] = {
            "family": self.dns_family,
            "min_ttl_s": self.dns_min_ttl_s,
            "max_ttl_s": self.dns_max_ttl_s,
            "max_addresses": self.dns_max_addresses,
            "resolver": default_resolver(self.dns_servers),
            "observer": observer,
        }
        if self.srv is not None:
            return SrvSource(self.srv, **options)
        assert self.dns is not None
        return DnsSource(plain_address(self.dns)[0], **options)

    def problems(self) -> Problems:
        """What does not fit together."""
        given = [name for name in ("endpoints", "dns", "srv") if getattr(self, name)]
        if not given:
            yield (
                "endpoints",
                "is empty; write at least one HOST:PORT or unix:PATH, or have dns or srv find them",
            )
        if len(given) > 1:
            yield given[1], f"and {given[0]} are two ways to say the same; a cluster has one of them"
        for address in sorted({each for each in self.addresses if self.addresses.count(each) > 1}):
            yield (
                "endpoints",
                f'have {address} twice; for more calls there write weights = {{ "{address}" = 2 }}',
            )
        if len({plain_address(text)[1] for text in self.endpoints}) > 1:
            yield "endpoints", "mix TLS and plaintext; a cluster has one of them: make two"
        if self.dns_min_ttl_s > self.dns_max_ttl_s:
            yield "dns_min_ttl", f"is more than dns_max_ttl ({self.dns_max_ttl_s:g} s)"
        if given == ["endpoints"]:
            for field in attrs.fields(ClusterSettings):
                if field.name.startswith("dns_") and getattr(self, field.name) != field.default:
                    yield field.name.removesuffix("_s"), "goes with dns or srv; endpoints are not looked up"
        yield from self._problems_of_weights(given)

    def _problems_of_weights(self, given: list[str]) -> Problems:
        if self.balance.policy == "pick_first":
            for name in ("weights", "slow_start"):
                if getattr(self, name):
                    yield name, 'is for policies that go by weights; "pick_first" knows none'
        if self.weights and "endpoints" not in given:
            yield "weights", "go with endpoints; those of srv have their records', and those of dns none"
            return
        for endpoint, weight in self.weights.items():
            if endpoint not in self.endpoints:
                yield "weights", f"are by endpoint, as it is written there, and {endpoint!r} is none of these"
            if not 1 <= weight <= _MOST_WEIGHT:
                yield "weights", f"are between 1 and {_MOST_WEIGHT}, and {endpoint!r} has {weight}"
