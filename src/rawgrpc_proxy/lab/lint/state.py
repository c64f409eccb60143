"""What the linter knows of a link: what each end has said of itself, its open streams, and a few of those that ended.

What is not known of a link that was open before is NaN, which is neither more nor less than any limit. The invariant:
memory is bounded. Of a stream little is held, until it ends; of those that have ended, the last `remembers` of each
link.
"""

import math
from collections import deque
from collections.abc import Container, Mapping

import attrs

from rawgrpc_proxy.config import DEFAULT_WINDOW
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.events import Sender, Stream
from rawgrpc_proxy.lab.lint.findings import Finding, Findings, side_of
from rawgrpc_proxy.lab.lint.rules import RULES
from rawgrpc_proxy.net.tapped import Link

MAX_CLOSED = 256
_MAX_METHOD = 256
"""Characters of that of a stream that has ended: more than a finding shows."""
_MAX_PENDING = 32
_MAX_PINGS = 32
_DEFAULTS: dict[int, float] = {
    Setting.MAX_CONCURRENT_STREAMS: math.inf,
    Setting.INITIAL_WINDOW_SIZE: DEFAULT_WINDOW,
    Setting.MAX_FRAME_SIZE: 2**14,
    Setting.MAX_HEADER_LIST_SIZE: math.inf,
    Setting.ENABLE_PUSH: 1,
}


@attrs.define(eq=False)
class Pending:
    """What the other end has not acknowledged yet."""

    at: float
    values: dict[int, int]
    was_told: bool = False


@attrs.define(eq=False)
class SentPing:
    """The same of a PING."""

    at: float
    opaque: bytes
    was_told: bool = False


@attrs.define(eq=False)
class End:
    """One end of a link: what it has announced, and what it has used of what the other one allows."""

    sender: Sender
    in_force: dict[int, float] = attrs.field(factory=lambda: dict(_DEFAULTS))
    """Its settings, as far as the other end has acknowledged them."""
    pending: deque[Pending] = attrs.field(factory=lambda: deque(maxlen=_MAX_PENDING))
    pings: deque[SentPing] = attrs.field(factory=lambda: deque(maxlen=_MAX_PINGS))
    forgotten: int = 0
    """SETTINGS that are pending, and too many to be known."""
    used: float = 0
    """DATA that it has sent, less what the other end has allowed by WINDOW_UPDATE on stream 0."""
    shut_at: float | None = None
    """When that came to all it had."""
    block_stream: int | None = None
    """Of a header block that is not complete."""
    may_be_in_block: bool = False
    """It was not seen from its beginning, and nothing of it since: its next frame tells."""
    headers_lost: bool = False
    """Its header lists cannot be read any more."""
    goaway_last: float = math.inf
    goaway_at: float | None = None
    promised: int = 0
    ping_at: float | None = None
    """Of its last PING, unless the other end has sent HEADERS or DATA since."""
    strikes: int = 0

    def join(self) -> None:
        """It has said something before."""
        self.in_force = dict.fromkeys(self.in_force, math.nan)
        self.used = math.nan
        self.may_be_in_block = True

    def most(self, setting: int) -> float:
        """The largest value that may be in force at the other end."""
        return max(
            [self.in_force[setting], *(p.values[setting] for p in self.pending if setting in p.values)]
        )

    def least(self, setting: int) -> float:
        """The smallest one."""
        return min(
            [self.in_force[setting], *(p.values[setting] for p in self.pending if setting in p.values)]
        )


@attrs.define(eq=False)
class Flow:
    """One direction of a stream."""

    shut_at: float | None
    """When its window came to nothing. At first: when the stream began, for the window may be 0 from the start."""
    used: int = 0
    joined: bool = False
    """It had begun before: what it says now is the rest of something."""
    declared: int | None = None
    """content-length."""
    has_status: bool = False
    has_headers: bool = False
    """They could be read."""
    judged_as_grpc: bool = False
    """It is a response that has to end with grpc-status."""
    mid_stream: bool = False
    """HEADERS have come where none may: what follows is not judged."""


@attrs.define(eq=False)
class StreamState:
    """An open stream."""

    stream: Stream
    client: Flow
    server: Flow
    accepts: frozenset[bytes] | None = None
    """Compressions that the client takes; None if its headers could not be read."""

    def flow(self, sender: Sender) -> Flow:
        """Of what this end sends."""
        return self.client if sender is Sender.CLIENT else self.server


@attrs.define(eq=False)
class LinkState:
    """Of one link. `say` is how rules tell what they find; of either end those of `unsaid` are not told."""

    link: Link
    findings: Findings
    unsaid: Mapping[Sender, Container[str]]
    client: End = attrs.field(factory=lambda: End(Sender.CLIENT))
    server: End = attrs.field(factory=lambda: End(Sender.SERVER))
    streams: dict[int, StreamState] = attrs.field(factory=dict)
    closed: dict[int, tuple[str, frozenset[Sender], bool]] = attrs.field(factory=dict)
    """The last ones: the method, who has ended its half of it, and whether the response was complete."""
    last_stream: int = 0
    """That the client has opened."""
    joined: bool = False
    """It was open before."""
    remembers: int = MAX_CLOSED
    frame_found: bool = False
    """A rule is broken by the frame itself: what comes of it is no finding of its own."""

    def join(self, last_stream: int) -> None:
        """It was open before: what its ends have agreed on is not known."""
        self.joined, self.last_stream = True, last_stream
        self.client.join()
        self.server.join()

    def end(self, sender: Sender) -> End:
        """Whatever is known of it."""
        return self.client if sender is Sender.CLIENT else self.server

    def other(self, sender: Sender) -> End:
        """The end that listens."""
        return self.server if sender is Sender.CLIENT else self.client

    def method(self, stream_id: int) -> str:
        """Of a stream, if it is still known."""
        state = self.streams.get(stream_id)
        if state is not None:
            return state.stream.method
        return self.closed[stream_id][0] if stream_id in self.closed else ""

    def say(self, rule: str, sender: Sender, at: float, stream_id: int, seen: str) -> None:
        """An end has broken a rule."""
        if rule in self.unsaid[sender]:
            return
        method = self.method(stream_id)
        if self.findings.again(rule, method, side_of(self.link.side, sender)):
            return
        self.findings.add(
            Finding(
                rule=RULES[rule],
                link=self.link,
                sender=sender,
                at=at,
                stream_id=stream_id,
                method=method,
                seen=seen,
            )
        )

    def close_stream(self, stream_id: int, ended_by: frozenset[Sender], *, complete: bool) -> None:
        """It has ended: little of it is kept, for what comes behind."""
        self.closed[stream_id] = (self.method(stream_id)[:_MAX_METHOD], ended_by, complete)
        self.streams.pop(stream_id, None)
        if len(self.closed) > self.remembers:
            del self.closed[next(iter(self.closed))]
