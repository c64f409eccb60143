"""The calls that callers have made, for tests to look at: `SeenCall`, and `SeenCalls`, which collects them.

What is kept is what callers could see: the bytes on their links, as a tap has them. So a call that a fault has ended
has the status that its caller got, whatever the proxy has meant. Who was the upstream, and why connections failed, an
observer hears.

The invariant: memory is bounded (`Keeps`), and all of it may be read in any thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, ConnectionFailed, ProxyError, RpcError, Side
from rawgrpc_proxy.grpc.compression import inflated
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.status import decode_grpc_message
from rawgrpc_proxy.http2.frames import RST_STREAM
from rawgrpc_proxy.lab.call_status import status_seen
from rawgrpc_proxy.lab.events import (
    Event,
    FrameSeen,
    HalfClosed,
    HeadersKind,
    HeadersSeen,
    MessageBegun,
    MessageSeen,
    Sender,
    Stream,
    StreamBegun,
    StreamEnded,
    Unreadable,
)
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.observe.describe import describe
from rawgrpc_proxy.observe.observer import PoolObserver, ServerObserver
from rawgrpc_proxy.observe.record import CallRecord

_MAX_TROUBLES = 20

StatusLike = Status | str | int | object
"""A status: `Status.UNAVAILABLE`, "UNAVAILABLE", 14, or what another library has for it, like `grpc.StatusCode`."""


def status_of(given: StatusLike) -> Status:
    """The status that is meant. Raises `ConfigError`."""
    name = given if isinstance(given, str) else getattr(given, "name", None)
    try:
        if isinstance(name, str):
            return Status[name.upper()]
        if isinstance(given, int) and not isinstance(given, bool):
            return Status(given)
    except (KeyError, ValueError):
        pass
    raise ConfigError(f"{given!r} is no status; write one of {', '.join(Status.__members__)}, or its number")


@attrs.frozen(kw_only=True)
class Keeps:
    """How much is kept of what passes; the oldest calls go first."""

    calls: int = 1000
    messages: int = 1000
    """Of each call, in each direction: the first ones."""
    message_bytes: int = 4 << 20
    """Longer messages are not kept."""
    total_bytes: int = 64 << 20
    """Of all messages of all calls."""


@attrs.frozen(kw_only=True)
class SeenCall:
    """A call, as its caller could see it, at the moment in which it was asked for."""

    method: str
    """`/package.Service/Method`."""
    peer: str
    """The caller's address."""
    metadata: Metadata
    """Of the request, pseudo-headers included: `call.metadata["x-user"]`, `call.metadata.get("x-user")`."""
    began_at: float
    """When, by `time.monotonic`, or in memory by trio's clock: for pauses between calls."""
    request_messages: list[bytes]
    """Those that have passed whole, without their prefixes; gzip and deflate are undone."""
    response_metadata: Metadata | None = None
    """The response's headers; None if there were none before the end."""
    response_messages: list[bytes] = attrs.field(factory=list)
    status: Status | None = None
    """What a gRPC client makes of it; None while the call is open."""
    message: str = ""
    """The text of the status."""
    trailers: Metadata | None = None
    http_status: int | None = None
    reset_code: int | None = None
    """If RST_STREAM has ended it, by either end."""
    duration_s: float | None = None
    """From its first frame to its last; None while it is open."""
    upstream: str | None = None
    """Where it went, `HOST:PORT`; None if it was answered here."""
    left_out: int = 0
    """Messages that have passed and were not kept, see `Keeps`."""

    def __str__(self) -> str:
        """One line, without metadata and messages: those may be secret."""
        outcome = "open" if self.status is None else self.status.name
        if self.message:
            outcome += f" {self.message!r}"
        took = "" if self.duration_s is None else f", {1000 * self.duration_s:.1f} ms"
        there = "" if self.upstream is None else f" → {self.upstream}"
        return (
            f"{self.method}: {outcome}, messages: {len(self.request_messages)} out, "
            f"{len(self.response_messages)} back{took}, {self.peer}{there}"
        )


@attrs.define(eq=False)
class _Open:
    """A call as it comes to be known."""

    link: Link
    stream: Stream
    began_at: float
    metadata: Metadata = attrs.field(factory=Metadata)
    requests: list[bytes] = attrs.field(factory=list)
    responses: list[bytes] = attrs.field(factory=list)
    response_metadata: Metadata | None = None
    trailers: Metadata | None = None
    status: Status | None = None
    ended_at: float = 0.0
    reset_code: int | None = None
    record: CallRecord | None = None
    left_out: int = 0
    kept_bytes: int = 0

    def seen(self) -> SeenCall:
        return SeenCall(
            method=self.stream.method,
            peer=self.link.peer,
            metadata=self.metadata,
            began_at=self.began_at,
            request_messages=list(self.requests),
            response_metadata=self.response_metadata,
            response_messages=list(self.responses),
            status=self.status,
            message=decode_grpc_message(self.stream.grpc_message.encode()),
            trailers=self.trailers,
            http_status=self.stream.http_status,
            reset_code=self.reset_code,
            duration_s=None if self.status is None else self.ended_at - self.began_at,
            upstream=None if self.record is None else self.record.upstream,
            left_out=self.left_out,
        )


class SeenCalls:
    """Collects calls: `tap` and `observer` are for the server, `pool_observer` for its pool."""

    def __init__(self, keeps: Keeps | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keeps = keeps or Keeps()
        self._clock = clock
        self._views = Views(
            self._tell, sides=[Side.DOWNSTREAM], clock=clock, payload_bytes=self._keeps.message_bytes
        )
        self.changed = threading.Condition()
        """Notified whenever there may be something new; hold it to look at several things at a time."""
        self._calls: deque[_Open] = deque()
        self._open: dict[tuple[int, int], _Open] = {}
        """Those that have not ended, by their link and stream."""
        self._by_peer: dict[tuple[str, int], _Open] = {}
        """The same as the server knows them."""
        self._kept_bytes = 0
        self.forgotten = 0
        """Calls that are not kept any more."""
        self._troubles: deque[tuple[float, str]] = deque(maxlen=_MAX_TROUBLES)
        self.observer = _Server(self)
        self.pool_observer = _Pool(self)

    def link(self, link: Link) -> LinkTap | None:
        """A tap."""
        return self._views.link(link)

    # ------------------------------------------------------------------ for tests

    def all(self, *, since: float = 0.0) -> tuple[SeenCall, ...]:
        """What there is, in the order in which the calls began; `since` is a time of the clock."""
        with self.changed:
            return tuple(call.seen() for call in self._calls if call.began_at >= since)

    def find(self, matches: Callable[[str, Status | None], bool]) -> tuple[SeenCall, ...]:
        """Those whose method and status (None: open) match. The condition may be held."""
        with self.changed:
            return tuple(call.seen() for call in self._calls if matches(call.stream.method, call.status))

    def count(self, matches: Callable[[str, Status | None], bool]) -> int:
        """How many that would be."""
        with self.changed:
            return sum(matches(call.stream.method, call.status) for call in self._calls)

    def troubles(self, *, since: float = 0.0) -> tuple[str, ...]:
        """What went wrong beside calls: connections that failed, handlers that raised. The last twenty."""
        with self.changed:
            return tuple(text for at, text in self._troubles if at >= since)

    def clear(self) -> None:
        """Forget what has been seen. Calls that are open are forgotten, too."""
        with self.changed:
            self._calls.clear()
            self._open.clear()
            self._by_peer.clear()
            self._troubles.clear()
            self._kept_bytes = self.forgotten = 0

    def in_words(self, *, since: float = 0.0) -> str:
        """A line for each call and each trouble."""
        with self.changed:
            lines = [str(call) for call in self.all(since=since)]
            if self.forgotten:
                lines.insert(0, f"({self.forgotten} calls before these are not kept)")
            lines += [f"({text})" for text in self.troubles(since=since)]
        return "\n".join(lines)

    # ----------------------------------------------------------------- what comes

    def note(self, text: str) -> None:
        """Something went wrong."""
        with self.changed:
            self._troubles.append((self._clock(), text))
            self.changed.notify_all()

    def begun(self, record: CallRecord) -> None:
        """The server has begun to answer a call."""
        if record.extras is not None:
            with self.changed:
                call = self._by_peer.get((record.peer, record.extras.stream_id))
                if call is not None:
                    call.record = record

    def _tell(self, event: Event) -> None:
        if isinstance(event, FrameSeen | MessageBegun):
            return  # most events are, and say nothing of interest here
        with self.changed:
            self._take(event)
            self.changed.notify_all()

    def _take(self, event: Event) -> None:
        match event:
            case StreamBegun():
                self._begin(event)
            case HeadersSeen(stream=stream) if stream is not None:
                self._headers(event)
            case MessageSeen():
                self._message(event)
            case HalfClosed(sender=Sender.SERVER):
                call = self._open.get((event.link.number, event.stream.id))
                self._end(call, event.at, status_seen(event.stream, Sender.SERVER, event.frame_type, None))
            case StreamEnded():
                call = self._open.pop((event.link.number, event.stream.id), None)
                self._by_peer.pop((event.link.peer, event.stream.id), None)
                if call is not None and event.frame_type == RST_STREAM:
                    call.reset_code = event.error_code
                status = status_seen(event.stream, event.sender, event.frame_type, event.error_code)
                self._end(call, event.at, status)
            case Unreadable():
                self._troubles.append(
                    (
                        event.at,
                        f"{event.link.peer}: the {event.sender.value} is not understood: {event.reason}",
                    )
                )
            case _:
                pass

    def _begin(self, event: StreamBegun) -> None:
        call = _Open(event.link, event.stream, event.at)
        self._open[event.link.number, event.stream.id] = call
        self._by_peer[event.link.peer, event.stream.id] = call
        self._calls.append(call)
        if len(self._calls) > self._keeps.calls:
            self._forget_oldest()

    def _headers(self, event: HeadersSeen) -> None:
        call = self._open.get((event.link.number, event.stream_id))
        if call is None:
            return
        metadata = Metadata(event.headers)
        if event.kind is HeadersKind.REQUEST:
            call.metadata = metadata
        elif event.sender is Sender.SERVER and event.end_stream:
            call.trailers = metadata
        elif event.kind is HeadersKind.RESPONSE:
            call.response_metadata = metadata

    def _message(self, event: MessageSeen) -> None:
        call = self._open.get((event.link.number, event.stream.id))
        if call is None:
            return
        kept = call.requests if event.sender is Sender.CLIENT else call.responses
        if not event.is_whole or event.payload is None or len(kept) >= self._keeps.messages:
            call.left_out += 1
            return
        payload = event.payload
        if event.flag:
            payload = _plain(payload, event.stream.half(event.sender).encoding, self._keeps.message_bytes)
        # Its own call is the last that goes for it.
        while self._kept_bytes + len(payload) > self._keeps.total_bytes and self._calls[0] is not call:
            self._forget_oldest()
        if self._kept_bytes + len(payload) > self._keeps.total_bytes:
            call.left_out += 1
            return
        self._kept_bytes += len(payload)
        call.kept_bytes += len(payload)
        kept.append(payload)

    def _end(self, call: _Open | None, at: float, status: Status) -> None:
        if call is not None and call.status is None:
            call.status, call.ended_at = status, at

    def _forget_oldest(self) -> None:
        call = self._calls.popleft()
        self._kept_bytes -= call.kept_bytes
        self.forgotten += 1
        self._open.pop((call.link.number, call.stream.id), None)
        self._by_peer.pop((call.link.peer, call.stream.id), None)


def _plain(payload: bytes, encoding: str, max_bytes: int) -> bytes:
    """As it was before it was compressed; as it came, if that is not understood."""
    try:
        return inflated(payload, encoding.encode(), max_bytes, origin="proxy")
    except RpcError:
        return payload


class _Server(ServerObserver):
    """Hears what no bytes tell: whose call it is, and what failed."""

    wants = frozenset({"extras"})

    def __init__(self, seen: SeenCalls) -> None:
        self._seen = seen

    def call_begun(self, record: CallRecord) -> None:
        self._seen.begun(record)

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        self._seen.note(f"{record.method}: its handler or director has raised {describe(error)}")

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        self._seen.note(f"the connection of {peer} failed: {error}")


class _Pool(PoolObserver):
    def __init__(self, seen: SeenCalls) -> None:
        self._seen = seen

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        self._seen.note(f"the connection to {address} failed: {error}")
