"""What `rawgrpc-proxy serve` runs: one model for the settings file, the environment and the command line.

Clusters are in `clusters.py`, routes in `routes.py`.

Frozen, checked field by field when it is made; what fields must be to each other is in `problems`. Where it comes from
is `file.py`'s matter, what is made of it `assembly.py`'s. Names ending in `_s` and `_bytes` are in seconds and
bytes here; in the file they have no such ending, for there the value may have a unit.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from rawgrpc_proxy.command.listening import INHERITED, check_inherited
from rawgrpc_proxy.command.settings.clusters import ClusterSettings, ClusterTls, PoolSettings, plain_address
from rawgrpc_proxy.command.settings.problems import Problems
from rawgrpc_proxy.command.settings.routes import RouteSettings
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.status_origin import StatusOrigin
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.networks import UNIX, Networks
from rawgrpc_proxy.net.tls_files import ClientCertificate
from rawgrpc_proxy.observe.fields import check_fields
from rawgrpc_proxy.proxy.identity import check_identity_header
from rawgrpc_proxy.validators import at_least, between, held_to

LogFormat = Literal["text", "json", "none"]
Forwarded = Literal["x-forwarded-for", "forwarded", "none"]
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")


def check_listener(address: str) -> None:
    """Raises `ConfigError` if nobody can listen there."""
    if address.startswith(INHERITED):
        check_inherited(address)
    else:
        Address.parse(address, to_listen=True)


def _check_trailer(name: str | None) -> None:
    if name is not None:
        StatusOrigin(name)


def _check_hosts(hosts: tuple[str, ...]) -> None:
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"has {host!r}, which is no name of a host; write it without scheme and port")


def _check_identity_header(header: str | None) -> None:
    if header is not None:
        check_identity_header(header)


@attrs.frozen(kw_only=True)
class ListenerTls:
    """TLS 1.2 or later for callers, with HTTP/2 agreed on by ALPN.

    Files that change are read again within a second, for new connections; what cannot be used changes nothing, and the
    log says so.
    """

    certificate: str = attrs.field()
    """A PEM file with the certificate, and behind it those that lead to its root."""

    key: str = attrs.field()
    """A PEM file with the private key, not encrypted."""

    client_ca: str | None = attrs.field(default=None)
    """A PEM file with the authorities whose certificates callers may have."""

    client_certificate: ClientCertificate = attrs.field(default="require")
    """With `client_ca`: whether a caller must have a certificate ("require"), or may ("request")."""


@attrs.frozen(kw_only=True)
class ListenerSettings:
    """Where calls are accepted."""

    address: str = attrs.field(validator=held_to(check_listener))
    """`HOST:PORT` (port 0: a free one), `:PORT` for every address of this machine, `unix:PATH` or `unix:@NAME`; or
    `fd:3`, a socket that listens already and comes from whoever starts the proxy (`fd:NAME`: as systemd names it)."""

    tls: ListenerTls | None = attrs.field(default=None)
    """Without it callers speak plaintext (h2c with prior knowledge)."""

    proxy_protocol: tuple[str, ...] = attrs.field(factory=tuple, validator=held_to(Networks.parse))
    """Load balancers in front: networks (`10.0.0.0/8`, `2001:db8::/32`, a single address), or `unix` for all who
    connect to a Unix socket. Each connection of theirs must begin with a PROXY header (HAProxy's protocol, version 1 or
    2, before TLS), and whom it names is the caller, in the log and for the director. Nobody else is believed: others
    are served as they come, and one that sends such a header is hung up on."""

    identity_header: str | None = attrs.field(default=None, validator=held_to(_check_identity_header))
    """A key, like "x-client-identity", under which clusters are told whose certificate the caller has shown:
    `URI=spiffe://…` (a SPIFFE ID, or else the first other URI), or `DNS=…`, or `Subject=…` (RFC 4514), what there is
    first, percent-encoded. What a caller sends under this key is removed, whether it has a certificate or not."""

    forwarded: Forwarded = attrs.field(default="none")
    """The metadata in which clusters are told the caller's address; "none" leaves both alone. It is appended to what
    `trusted_proxies` have sent; what others have sent in either is removed."""

    trusted_proxies: tuple[str, ...] = attrs.field(factory=tuple, validator=held_to(Networks.parse))
    """With `forwarded`: networks (`10.0.0.0/8`, `2001:db8::/32`, or one address) whose word is kept; "unix" is whoever
    connects to a Unix socket."""

    http2: Http2Settings = attrs.field(factory=Http2Settings)
    """How connections that come here behave. What is not set here is as in the table `http2` of the file's top
    level."""

    def problems(self) -> Problems:
        """What does not fit together."""
        peers = Networks.parse(self.proxy_protocol)
        if peers and not self.address.startswith(INHERITED):  # such a socket may be of either kind
            is_unix = Address.parse(self.address, to_listen=True).path is not None
            if not (peers.unix if is_unix else peers.ip):
                who = (
                    f'all who come to a Unix socket are "{UNIX}"'
                    if is_unix
                    else f'"{UNIX}" is for Unix sockets'
                )
                yield "proxy_protocol", f"names nobody who can come to {self.address}: {who}"
        if self.trusted_proxies and self.forwarded == "none":
            yield "trusted_proxies", 'go with forwarded = "x-forwarded-for" or "forwarded"'


@attrs.frozen(kw_only=True)
class LogSettings:
    """The log on standard error: a line for each call that has ended, and for whatever else is worth telling.

    `call-log.md` says what a line has. The level (all, only errors, none) can be changed while the proxy runs.
    """

    format: LogFormat = attrs.field(default="text")
    """Text for people, JSON for machines, or "none": no calls, only what the operator has to know. `log_format` at the
    top level is the same."""

    fields: tuple[str, ...] = attrs.field(factory=tuple, validator=held_to(check_fields))
    """What a call's line has, in this order; see `call-log.md` for all there are. By default what most want to know."""

    only_errors: bool = attrs.field(default=False)
    """Leave out calls that end with OK, unless they are slow."""

    sample: float = attrs.field(default=1.0, validator=between(0, 1))
    """Of the calls that end with OK the share that is written, chosen by chance: 0.01 is every hundredth. All others,
    and slow ones, are written."""

    slow_s: float | None = attrs.field(default=None, validator=at_least(0))
    """A call that took so long is written in any case."""

    start_after_s: float | None = attrs.field(default=None, validator=at_least(0))
    """A call that is still open after this time gets a line then, within a second, and another one at its end: so that
    a stream that hangs is seen before."""


@attrs.frozen(kw_only=True)
class AdminSettings:
    """HTTP for operators: metrics, probes, a page, reload and drain. It has no password: keep it to this machine."""

    address: str = attrs.field(validator=held_to(check_listener))
    """As of a listener; not one that calls come to."""

    hosts: tuple[str, ...] = attrs.field(factory=tuple, validator=held_to(_check_hosts))
    """Names under which it may be asked for beside the one in `address`, addresses, localhost and the machine's own:
    those of a Kubernetes service, or what a reverse proxy in front sends as Host. Not one that a stranger can have lead
    here."""

    faults: bool = attrs.field(default=False)
    """Whether faults may be set and taken away over HTTP (`POST` and `DELETE /faults`, see `faults.md`): whoever may
    ask can then end calls and connections as they like."""

    tap: bool = attrs.field(default=False)
    """Whether those who may ask here may see what passes (`GET /tap`, `rawgrpc-proxy tap --attach`, `lint --attach`):
    all metadata but secrets, and all messages."""

    def names(self) -> list[str]:
        """Under which it may be asked for; addresses need not be named."""
        inherited = self.address.startswith(INHERITED)
        host = "" if inherited else Address.parse(self.address, to_listen=True).host
        return [name.lower() for name in (host, *self.hosts) if name]


@attrs.frozen(kw_only=True)
class TracingSettings:
    """Spans of calls, for a collector of OpenTelemetry; see `tracing.md`. Calls never wait for it."""

    otlp: str = attrs.field(validator=held_to(lambda text: Address.parse(plain_address(text)[0])))
    """The collector, which takes OTLP over gRPC: `HOST:PORT` or `unix:PATH`; with http:// or https:// in front, if you
    like, as OpenTelemetry writes it. The port is mostly 4317."""

    tls: ClusterTls | None = attrs.field(default=None)
    """Without it, and without https:// in front of the address, the proxy speaks plaintext."""

    sample: float | Literal["parent"] = attrs.field(default="parent")
    """Which calls: those that their callers have sampled ("parent"), as `traceparent` says; with a number, also this
    share of the calls that have none, 0.01 is every hundredth."""

    service_name: str = attrs.field(default="rawgrpc-proxy")
    """`service.name`: who this is, to those who look at traces."""

    resource: Mapping[str, str] = attrs.field(factory=dict)
    """More attributes of this kind, like "deployment.environment.name"."""

    max_queued_spans: int = attrs.field(default=2048, validator=at_least(2))
    """How many spans of a worker may wait for the collector; a call has two. What comes then is dropped, and
    counted."""

    @property
    def address(self) -> str:
        """The collector without its scheme."""
        return plain_address(self.otlp)[0]

    @property
    def speaks_tls(self) -> bool:
        """Whether the connection to it is TLS."""
        return self.tls is not None or plain_address(self.otlp)[1]

    @sample.validator
    def _a_share(self, attribute: "attrs.Attribute[Any]", value: float | str) -> None:
        if value != "parent" and (isinstance(value, str) or not 0 <= value <= 1):
            raise ConfigError(
                f'{attribute.name} is {value!r}; it must be "parent", or a number between 0 and 1'
            )


@attrs.frozen(kw_only=True)
class ServeSettings:
    """All that `serve` is told."""

    listeners: tuple[ListenerSettings, ...] = attrs.field()
    """Where calls are accepted; at least one."""

    clusters: Mapping[str, ClusterSettings] = attrs.field()
    """Where calls go, by name."""

    routes: tuple[RouteSettings, ...] = attrs.field()
    """Which call goes where; at least one."""

    pool: PoolSettings = attrs.field(factory=PoolSettings)
    """What clusters have that do not say otherwise."""

    http2: Http2Settings = attrs.field(factory=Http2Settings)
    """How connections behave, downstream and upstream, where listeners and clusters do not say otherwise."""

    admin: AdminSettings | None = attrs.field(default=None)
    """Without it nothing is counted, and there is nobody to ask."""

    workers: int | Literal["auto"] = attrs.field(default=1)
    """Processes that share the listening sockets; "auto" is one for each core. Each has connections of its own."""

    grace_s: float = attrs.field(default=30.0, validator=at_least(0))
    """How long running calls may go on after SIGINT or SIGTERM."""

    log: LogSettings = attrs.field(factory=LogSettings)
    """Which calls are logged on standard error, and how."""

    max_connections: int | None = attrs.field(default=None, validator=at_least(1))
    """Connections of callers that a process has open. When there are so many, the youngest that has no call makes room
    for the next one (GOAWAY; up to 20 go in a second); if all have calls, the next one is closed at once. By default
    two thirds of the files that the process may have open."""

    hop_limit: int | None = attrs.field(default=None, validator=at_least(1))
    """Refuse calls that have passed so many proxies like this one, counted in the metadata `via`. By default they are
    not counted, and `via` is left alone."""

    status_origin_trailer: str | None = attrs.field(default=None, validator=held_to(_check_trailer))
    """The name of a trailer, `x-status-origin` for example, that tells callers who has made the status that they get,
    and what it comes of, in the words of the log: `upstream`, `reset: RST_STREAM CANCEL`, `proxy: max_waiting`. What
    upstreams send under this name goes no further. A response that ends with DATA has no trailers, and gets none."""

    health: tuple[str, ...] = attrs.field(default=("rawgrpc_proxy",))
    """Services whose health (`grpc.health.v1.Health`, Check and Watch) is the proxy's own: SERVING, and NOT_SERVING
    while it drains. Calls about any other go by the routes, so backends can be asked through the proxy. Add "", the
    empty name, for probes that name no service; `[]`: all go by the routes."""

    reflection: str | None = attrs.field(default=None)
    """The name of a cluster that gets all calls of server reflection (`grpc.reflection.v1` and `v1alpha`), before the
    routes: tools like grpcurl then list what that cluster has. By default they go by the routes."""

    tracing: TracingSettings | None = attrs.field(default=None)
    """Without it no spans are made; what callers say of traces goes on as it came in any case."""

    faults: str | None = attrs.field(default=None)
    """A file with faults on purpose (`faults.md`), for tests of what callers do then; never where calls matter. Each
    worker counts calls for itself."""

    @property
    def log_format(self) -> LogFormat:
        """That of `log`."""
        return self.log.format

    @workers.validator
    def _one_or_more(self, attribute: "attrs.Attribute[Any]", value: int | str) -> None:
        if value != "auto" and (isinstance(value, str) or value < 1):
            raise ConfigError(f'{attribute.name} is {value!r}; it must be 1 or more, or "auto"')

    def problems(self) -> Problems:
        """What does not fit together."""
        if not self.listeners:
            yield (
                "listeners",
                "is empty: there is nowhere to accept calls; give --listen ADDRESS, or write [[listeners]]",
            )
        if not self.routes:
            yield (
                "routes",
                "is empty: calls would go nowhere; give --upstream HOST:PORT or --route, or write [[routes]]",
            )
