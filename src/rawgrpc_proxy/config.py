"""Settings: frozen, keyword-only, checked once when they are made, then passed whole.

Each default says why it is what it is. Nothing here reads files or argv (`command/settings/file.py` does); how much
memory there is, `memory_limit.py` asks the system once.
"""

import math
from typing import Literal

import attrs

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.memory_limit import default_max_buffered_bytes
from rawgrpc_proxy.validators import between

Engine = Literal["relay", "h2"]
ENGINES: tuple[Engine, ...] = ("relay", "h2")

MAX_WINDOW = 2**31 - 1  # RFC 9113 §6.9.1
DEFAULT_WINDOW = 65_535  # RFC 9113 §6.9.2
MIN_FRAME_SIZE = 2**14  # RFC 9113 §4.2
MIN_KEEPALIVE_S = 10.0  # what gRPC's own libraries hold their users to
MAX_FRAME_SIZE = 2**24 - 1


@attrs.frozen(kw_only=True)
class Http2Settings:
    """How every HTTP/2 connection of the proxy behaves, downstream and upstream alike.

    Raises `ConfigError` for a value out of range, naming the range.
    """

    engine: Engine = attrs.field(default="relay")
    """Which implementation of HTTP/2 runs the connection: "relay", made for this proxy, or "h2", the library, several
    times slower, with which relay is compared in the tests."""

    stream_window_bytes: int = attrs.field(default=1024 * 1024, validator=between(DEFAULT_WINDOW, MAX_WINDOW))
    """Our receive window per stream, and so what one stalled call can hold in memory in each direction.
    1 MiB carries 80 Gbit/s at a round trip of 0.1 ms and 800 Mbit/s at 10 ms; a hundred stalled calls hold 100 MiB.
    With 256 KiB a bulk stream costs half as much CPU again: it stops and starts for credit four times as often.
    Not below RFC 9113's initial 65,535: a peer may send that much before it has seen our SETTINGS."""

    connection_window_bytes: int = attrs.field(
        default=16 * 1024 * 1024, validator=between(DEFAULT_WINDOW, MAX_WINDOW)
    )
    """Our receive window per connection. It is credited on arrival, so it only has to cover one round trip."""

    max_frame_bytes: int = attrs.field(
        default=MIN_FRAME_SIZE, validator=between(MIN_FRAME_SIZE, MAX_FRAME_SIZE)
    )
    """The largest frame we accept. RFC 9113's initial value: small frames keep the streams of a connection fair."""

    max_concurrent_streams: int = attrs.field(default=1024, validator=between(1, MAX_WINDOW))
    """Calls a downstream peer may have open on one connection; the next one is refused, retry-safe.
    grpc-go and grpcio set no limit and nginx 128; 1024 lets a busy client live on one connection and bounds memory."""

    max_header_list_bytes: int = attrs.field(default=64 * 1024, validator=between(1024, 2**20))
    """Names and values of one header list together. gRPC peers default to 8 or 16 KiB; nginx to 64 KiB."""

    max_open_header_bytes: int = attrs.field(default=6 * 1024 * 1024, validator=between(2**20, MAX_WINDOW))
    """What the request headers of all calls that a peer has open on a connection may take in memory; the next call is
    refused, retry-safe. Calls of some hundred bytes of metadata come to 3 MiB for 1024 of them; without this bound as
    many of 64 KiB each came to 73 MB. With 6 MiB one connection has the process grow by 7."""

    max_header_fields: int = attrs.field(default=1000, validator=between(8, 10_000))
    """Fields in one header list: bounds what an HPACK bomb of one-byte references can expand to. People do send some
    hundreds of small ones."""

    @property
    def advertised_header_list_bytes(self) -> int:
        """What our SETTINGS_MAX_HEADER_LIST_SIZE says: both limits together, in RFC 9113 §6.5.2's measure."""
        return self.max_header_list_bytes + 32 * self.max_header_fields

    max_continuation_frames: int = attrs.field(default=8, validator=between(0, 64))
    """CONTINUATION frames behind one HEADERS: 64 KiB need four of 16 KiB."""

    abuse_budget: float = attrs.field(default=10_000.0, validator=between(100, 10**9))
    """Points for work that serves no call, on one connection: see `PRICES` in `http2/guard.py`. A stream that is reset
    at once costs ten, so a thousand of those may come together, as with nghttp2. It is some 50 ms of our time."""

    abuse_budget_per_s: float = attrs.field(default=330.0, validator=between(0, 10**9))
    """How many of those points come back each second: 33 resets (nghttp2's rate), and two thousandths of our time."""

    max_output_bytes: int = attrs.field(default=256 * 1024, validator=between(MIN_FRAME_SIZE, 2**30))
    """DATA waits here for the socket; beyond this it stays with its stream, where the streams take turns, for the
    price of a copy. What is read in one turn (256 KiB at most) fits."""

    max_owed_bytes: int = attrs.field(default=64 * 1024, validator=between(1024, 2**30))
    """Answers, acknowledgements and resets that wait for a socket which takes nothing: beyond this nothing more is read
    from that peer. No window limits these, so a peer that asks and never reads could have us hold any number."""

    max_buffered_bytes: int = attrs.field(factory=default_max_buffered_bytes, validator=between(2**20, 2**33))
    """DATA that waits in this process for peers that do not take it, on all connections together. From three quarters
    of it on, connections get no credit for what waits, and those that hold more than their share open no more streams
    (refused, which is safe to retry); calls that have stalled for five seconds end, and beyond the limit the longest
    stalled ones at once, with RESOURCE_EXHAUSTED. A quarter of the memory that the process may use (its control groups
    count), between 32 and 512 MiB. Of settings that differ the smallest holds."""

    send_timeout_s: float = attrs.field(default=30.0, validator=between(0.001, 3600))
    """A peer whose socket has taken nothing for so long, while something waits for it, loses its connection (nginx's
    word; it has 60 s). A stream may stall for as long as it likes: that is what windows are for."""

    upstream_keepalive_s: float = attrs.field(default=20.0, validator=between(MIN_KEEPALIVE_S, math.inf))
    """An upstream that has calls and has sent nothing for so long gets a PING. `inf` turns it off."""

    downstream_keepalive_s: float = attrs.field(default=60.0, validator=between(MIN_KEEPALIVE_S, math.inf))
    """The same for a caller, with a call open: one that has vanished without a word would hold it for ever."""

    keepalive_timeout_s: float = attrs.field(default=20.0, validator=between(0.001, 3600))
    """How long the peer has to send anything after that PING, until the connection counts as lost. gRPC's own value."""

    min_ping_interval_s: float = attrs.field(default=0.0, validator=between(0, 86_400))
    """Callers' PINGs that come sooner than this after the one before, with no DATA or HEADERS sent to the caller in
    between, are strikes, as in gRPC (gRFC A8), where it is five minutes. 0: any number, within `abuse_budget`; a PING
    costs little, and clients were set up for the servers behind the proxy, which may allow more than gRPC's default."""

    permit_without_stream: bool = attrs.field(default=False)
    """Whether callers without calls may send PING as often as `min_ping_interval` says. If not, two hours have to lie
    between two of them, once there is an interval. gRPC's word and default."""

    max_ping_strikes: int = attrs.field(default=2, validator=between(1, 1000))
    """Strikes that a caller may have: the next one ends its connection with GOAWAY(ENHANCE_YOUR_CALM),
    "too_many_pings", at which gRPC's clients double their interval."""

    max_connection_age_s: float = attrs.field(default=math.inf, validator=between(0.1, math.inf))
    """A caller's connection that is so old, give or take a tenth by chance, takes no more calls (GOAWAY), lets those it
    has finish, and is closed; its caller connects again. So that callers come to proxies that were added behind a load
    balancer. gRPC's word and default: no limit."""

    max_connection_age_grace_s: float = attrs.field(default=math.inf, validator=between(0, math.inf))
    """How long calls may go on after that; those that are left are UNAVAILABLE."""

    max_connection_idle_s: float = attrs.field(default=math.inf, validator=between(0.1, math.inf))
    """A caller's connection that has had no call for so long is closed in the same way. Its PINGs do not count."""

    handshake_timeout_s: float = attrs.field(default=10.0, validator=between(0.001, 3600))
    """From the accepted connection to the peer's preface and SETTINGS, from connect to TLS done, and from the first
    frame of a header block to its last, between which nothing else may come."""

    @engine.validator
    def _known_engine(self, _attribute: object, value: str) -> None:
        if value not in ENGINES:
            raise ConfigError(f"engine is {value!r}; it must be one of {', '.join(ENGINES)}")


UPSTREAM_ONLY = frozenset({"upstream_keepalive_s"})
"""Settings that mean nothing to connections of callers."""
DOWNSTREAM_ONLY = frozenset(
    {
        "downstream_keepalive_s",
        "max_concurrent_streams",
        "max_connection_age_grace_s",
        "max_connection_age_s",
        "max_connection_idle_s",
        "max_open_header_bytes",
        "max_ping_strikes",
        "min_ping_interval_s",
        "permit_without_stream",
    }
)
"""Settings that mean nothing to connections to upstreams."""
