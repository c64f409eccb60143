"""One direction of a call that a fault concerns, from the frames of its sender to those its receiver gets.

    inbox (as it came, each with its time) ──step──► ready (frames, and strikes between them) ──emit──► the way

A strike stands in `ready` between what has to have gone before it and what has not, so it is done when the former is
out, however long windows, delays and bandwidth kept that waiting. A step is taken only when nothing is ready that could
go out. `outflow.py` is the second half.

The invariants: bytes keep their order; no more is out than the stream's and the connection's windows allow; what is
dropped, added or held back is in the accounts of both.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from rawgrpc_proxy.http2.frames import Data, window_update
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.lab.faults.fault import Blow
from rawgrpc_proxy.lab.faults.flow_control import Account
from rawgrpc_proxy.lab.faults.message_faults import MessageFaults
from rawgrpc_proxy.lab.faults.outflow import DATA, FIELDS, RST, STRIKE, TRAILERS, Outflow
from rawgrpc_proxy.lab.faults.places import (
    AfterBytes,
    AfterMessage,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
    Place,
)
from rawgrpc_proxy.lab.faults.way import Way

MAX_WAITING = 10_000
"""Frames; whoever sends more while they are held back has his call reset."""
MAX_WAITING_FIELDS = 1 << 20
"""Bytes of header lists. DATA has its windows."""


class _Came:
    """Something the sender has sent."""

    __slots__ = ("begun", "content", "end", "kind", "not_before")

    def __init__(self, kind: int, content: Any, *, end: bool, not_before: float) -> None:
        self.kind, self.content, self.end, self.not_before = kind, content, end, not_before
        self.begun = False


class Owner(Protocol):
    """The call, as its lanes see it."""

    stream_id: int

    @property
    def over(self) -> bool:
        """Whether nothing of it passes any more."""

    def do(self, blow: Blow, lane: "Lane") -> None:
        """Do what is to be done at a place of the lane."""

    def wake(self, at: float, lane: "Lane") -> None:
        """Have the lane go on then."""

    def ended(self) -> None:
        """A direction is complete, for its receiver."""

    def end(self) -> None:
        """Nothing of it passes any more."""

    def flooded(self) -> None:
        """Too much of it waits."""


class Lane:
    """See above. `out` is how it goes out. `shut`: nothing of what comes gets out any more."""

    def __init__(self, call: Owner, way: Way) -> None:
        self._call = call
        self.way = way
        self.account = Account(way.initial, way.initial if way.cap is None else way.cap, way.cap)
        self.inbox: deque[_Came] = deque()
        self.out = Outflow(call.stream_id, way, self.account)
        self.places: list[Blow] = []
        """What strikes at a place in this direction, and has not."""
        self.messages = MessageFaults()
        self.latency: Callable[[], float] | None = None
        """How long what comes now takes."""
        self.shut = self.ended_in = False
        self._headers_came = self._runs = False
        self._lists = self._frames = self._passed = 0
        """Header lists, DATA frames and bytes of the body that have come to a step."""
        self._not_before = -math.inf
        self._extra = 0
        self._waiting_fields = 0

    @property
    def is_done(self) -> bool:
        """Whether all of it is out, END_STREAM included."""
        return self.out.ended and not self.out.ready and not self.inbox

    # ------------------------------------------------------------------- in

    def headers(self, fields: Headers, end_stream: bool) -> None:
        """A header list has come."""
        self._take(FIELDS, [field for field in fields if field[0] != b"content-length"], end_stream)

    def data(self, content: Data, flow: int, end_stream: bool) -> None:
        """DATA has come, which has taken `flow` bytes of the windows."""
        self.account.received += flow
        if self.shut or self.ended_in:
            self.ended_in = self.ended_in or end_stream
            self.way.drop(flow)
            return
        if flow > len(content):
            self._removed(flow - len(content))
        self._take(DATA, content, end_stream)
        self.settle()

    def reset(self, code: int) -> None:
        """RST_STREAM has come, to be passed on behind what came before it."""
        if not self.shut and not (self.inbox and self.inbox[-1].kind == RST):
            self.inbox.append(_Came(RST, code, end=True, not_before=self._due()))
            self.run()

    def allow(self, increment: int) -> None:
        """The receiver allows more."""
        self.account.allowed += increment
        self.settle()
        self.run()

    def _take(self, kind: int, content: Any, end_stream: bool) -> None:
        if self.shut or self.ended_in:
            self.ended_in = self.ended_in or end_stream
            return
        self.ended_in = end_stream
        self.inbox.append(_Came(kind, content, end=end_stream, not_before=self._due()))
        if kind == FIELDS:
            self._waiting_fields += _size(content)
        if len(self.inbox) > MAX_WAITING or self._waiting_fields > MAX_WAITING_FIELDS:
            self._call.flooded()
        else:
            self.run()

    def _due(self) -> float:
        now = self.way.now
        if self.latency is not None:
            now += self.latency()
        self._not_before = max(self._not_before, now)
        return self._not_before

    # ------------------------------------------------------------ step and emit

    def run(self) -> None:
        """Pass on what may be passed on now."""
        if self._runs:
            return  # further up: it goes on there
        self._runs = True
        try:
            while not self._call.over and self._run_once():
                pass
        finally:
            self._runs = False
        self.settle()
        if self.is_done:
            self._call.ended()

    def _run_once(self) -> bool:
        out, now = self.out, self.way.now
        if (out.ready or self.inbox) and out.free_at > now:
            self._call.wake(out.free_at, self)
            return False
        if out.ready and out.ready[0][0] == STRIKE:
            _, blow, _ = out.ready.popleft()
            self._call.do(blow, self)
            return True
        if out.ready and out.emit():
            if out.was_reset:
                self._call.end()
            return True
        if not self.inbox or (out.ready and not out.kept_back_bytes):
            return False
        if self.inbox[0].not_before > now:
            self._call.wake(self.inbox[0].not_before, self)
            return False
        self._step(self.inbox.popleft())
        return True

    def _step(self, came: _Came) -> None:
        if came.kind == DATA:
            self._step_data(came)
        elif came.kind == RST:
            self.out.append(RST, came.content)
        else:
            self._step_headers(came)

    def _step_headers(self, came: _Came) -> None:
        fields, end, out = came.content, came.end, self.out
        self._waiting_fields -= _size(fields)
        of_response = self.way.part is Part.RESPONSE
        if of_response and not end and _is_informational(fields):
            out.append(FIELDS, fields)
            return
        first, self._headers_came = not self._headers_came, True
        self._lists += 1
        are_trailers = of_response and (end or not first)
        if not first:
            self._forward_rest()
        opens = first and not of_response
        behind: list[Blow] = []
        if first:
            behind += self._strike(lambda place: isinstance(place, BeforeHeaders), opens=opens)
        behind += self._strike(
            lambda place: _is_frame(place, "HEADERS", self._lists, before=True), opens=opens
        )
        if are_trailers:
            self._strike(lambda place: isinstance(place, AtTrailers))
        if behind:
            # Streams are opened in order: if these headers waited, others would have to wait, too.
            out.append(FIELDS, fields)
            for blow in behind:
                out.append(STRIKE, blow)
            if end:
                out.append_end()
        else:
            out.append(TRAILERS if are_trailers else FIELDS, fields, end=end)
        self._strike(lambda place: _is_frame(place, "HEADERS", self._lists, before=False))

    def _step_data(self, came: _Came) -> None:
        if not came.begun:
            came.begun = True
            self._frames += 1
            self._strike(lambda place: _is_frame(place, "DATA", self._frames, before=True))
        self._strike(lambda place: isinstance(place, AfterBytes) and place.count <= self._passed)
        if self.out.ready and self.out.ready[-1][0] == STRIKE:
            self.inbox.appendleft(came)  # when that is done
            return
        content, messages = came.content, self.messages
        if content:
            if messages.messages.between:
                messages.begin()
            limit = self._bytes_to_place()
            size = messages.messages.advance(
                content if limit is None else content[:limit], self._stops_behind
            )
            self._passed += size
            self._pass_on(content[:size])
            self._strike(lambda place: isinstance(place, AfterBytes) and place.count <= self._passed)
            if messages.messages.between:
                ended = messages.messages.ended
                self._strike(lambda place: isinstance(place, AfterMessage) and place.number == ended)
            if size < len(content):
                came.content = content[size:]
                self.inbox.appendleft(came)
                return
        if came.end:
            self._forward_rest()
            self.out.append_end()
        elif not content:
            self.out.append(DATA, b"")
        self._strike(lambda place: _is_frame(place, "DATA", self._frames, before=False))

    def _bytes_to_place(self) -> int | None:
        places = [blow.strike.fault.where for blow in self.places]
        return min(
            [place.count - self._passed for place in places if isinstance(place, AfterBytes)], default=None
        )

    def _stops_behind(self, number: int) -> bool:
        return self.messages.stops_behind(number) or any(
            isinstance(place := blow.strike.fault.where, AfterMessage) and place.number == number
            for blow in self.places
        )

    def _strike(self, fits: Callable[[Place], bool], *, opens: bool = False) -> list[Blow]:
        """Let those strike next that are at this place.

        If it is before the headers that open the stream, some are done behind these: they are answered instead.
        """
        behind: list[Blow] = []
        for blow in [blow for blow in self.places if fits(blow.strike.fault.where)]:
            self.places.remove(blow)
            if opens and blow.behind_request_headers:
                behind.append(blow)
            else:
                self.out.append(STRIKE, blow)
        return behind

    # -------------------------------------------------------------- messages

    def _pass_on(self, data: Data) -> None:
        for out in self.messages.pass_on(data):
            self.out.append(DATA, out)
        self._account_for_messages()

    def _forward_rest(self) -> None:
        for out in self.messages.end():
            self.out.append(DATA, out)
        self._account_for_messages()

    def _account_for_messages(self) -> None:
        messages = self.messages
        if messages.removed_bytes:
            self._removed(messages.removed_bytes)
            messages.removed_bytes = 0
        more = messages.held_bytes - self._extra
        self._extra += more
        self.account.extra += more
        self.way.account.extra += more

    # ---------------------------------------------------------------- credit

    def _removed(self, size: int) -> None:
        self.account.removed += size
        self.way.account.removed += size

    def settle(self) -> None:
        """Grant the sender what it is due."""
        due = self.account.due()
        if due and not (self.ended_in or self.shut):
            self.way.back.emit(window_update(self._call.stream_id, due))
        self.way.settle()

    def close(self) -> None:
        """Nothing of what has come, or comes, gets out. The connection's window gets it back."""
        self.shut = True
        held = sum(len(came.content) for came in self.inbox if came.kind == DATA)
        held += self.out.close() + self._extra
        self.inbox.clear()
        self.way.account.extra -= self._extra
        self._extra = 0
        self.way.drop(held)


def _size(fields: Headers) -> int:
    return sum(len(name) + len(value) for name, value in fields)


def _is_informational(fields: Headers) -> bool:
    return any(name == b":status" and value[:1] == b"1" for name, value in fields)


def _is_frame(place: Place, frame: str, nth: int, *, before: bool) -> bool:
    return isinstance(place, OnFrame) and place.frame == frame and place.nth == nth and place.before is before
