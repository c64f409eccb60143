"""Only the calls of a rule: a callable between the view of one link and whoever is told.

What it does not do: choose by status, which is known when a call has ended (`rows.py` does, and holds what it has to).
The invariant: nothing is held but the frames of the one request that is not decided about yet, copied.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

import attrs

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.frames import CONTINUATION, HEADERS
from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.lab.events import (
    Event,
    FrameCut,
    FrameSeen,
    HalfClosed,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    MessageBegun,
    MessageSeen,
    Sender,
    Stream,
    StreamBegun,
    StreamEnded,
    Unreadable,
)
from rawgrpc_proxy.lab.filters import Facts, Filter

Which = Filter | Callable[[Facts], bool]
_MOST_FRAMES = 1000
"""Of one header block. Beyond it frames are left out."""


def rule_of(which: Which) -> Callable[[Facts], bool]:
    """What says whether a call is told. Raises `ConfigError` for a filter by status."""
    if not isinstance(which, Filter):
        return which
    if which.needs_status:
        raise ConfigError(
            "a view cannot choose calls by their status, which is known when they have ended; Rows can"
        )
    return which.may_match


class Chosen:
    """Tells of a link that it opens and closes, and of the calls that `rule` wants all there is."""

    def __init__(self, tell: Callable[[Event], None], rule: Callable[[Facts], bool]) -> None:
        self._tell = tell
        self._rule = rule
        self._wanted: set[int] = set()
        self._last = 0
        """The last stream that a client has begun."""
        self._held: list[Event] = []
        self._undecided: Stream | None = None

    def __call__(self, event: Event) -> None:
        """Tell it, or not."""
        match event:
            case LinkOpened() | LinkClosed():
                self._tell(event)
            case FrameSeen():
                self._frame(event)
            case FrameCut():
                self._tell_of(event.stream_id, event)
            case StreamBegun():
                self._last = max(self._last, event.stream.id)
                self._undecided = event.stream
                self._held.append(event)
            case HeadersSeen():
                if self._undecided is not None:
                    self._decide(event, event.headers)
                self._tell_of(event.stream_id, event)
            case Unreadable():
                if event.stream_id:
                    self._tell_of(event.stream_id, event)
                else:
                    self._tell(event)
                if event.what == "stream":
                    self._wanted.discard(event.stream_id)
            case MessageBegun() | MessageSeen() | HalfClosed() | StreamEnded():
                if self._undecided is not None:
                    self._decide(event, ())  # its headers could not be read
                self._tell_of(event.stream.id, event)
                if isinstance(event, StreamEnded):
                    self._wanted.discard(event.stream.id)
            case _:
                assert_never(event)

    def _frame(self, event: FrameSeen) -> None:
        if self._undecided is not None:
            self._decide(event, ())
        if event.stream_id in self._wanted:
            self._tell(event)
        elif event.sender is Sender.CLIENT and event.stream_id > self._last:
            # A request, mostly: whose, is known when its headers are whole.
            if event.type == HEADERS:
                self._held = []
            if event.type in (HEADERS, CONTINUATION) and len(self._held) < _MOST_FRAMES:
                self._held.append(attrs.evolve(event, payload=bytes(event.payload)))

    def _decide(self, event: Event, headers: Sequence[RawHeader]) -> None:
        stream, self._undecided = self._undecided, None
        held, self._held = self._held, []
        assert stream is not None
        if self._rule(Facts(method=stream.method, peer=event.link.peer, headers=headers)):
            self._wanted.add(stream.id)
            for each in held:
                self._tell(each)

    def _tell_of(self, stream_id: int, event: Event) -> None:
        if stream_id in self._wanted:
            self._tell(event)
