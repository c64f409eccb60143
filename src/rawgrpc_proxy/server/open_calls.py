"""Which calls are open on a server, and what each of them waits for, in words: for those who ask, and only then.

A call keeps nothing for this. What is known of it is with its two streams, their windows and their splice; how long it
has been quiet is told by its connections, which know when they have last heard anything, and by what was seen when
somebody asked before. So `quiet_s` is the least that it can be: whoever asks each second knows it to a second.

What it does not do: change anything. The invariant: it holds no stream, and no more than a line for each call that was
open when somebody last asked.
"""

import heapq
import time
from collections.abc import Generator, Iterable

import attrs
import trio

from rawgrpc_proxy.call import Call, Handler
from rawgrpc_proxy.grpc.messages import count_of
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.http2.stream_state import Receiving, Sending
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.observe.report import OpenCall, OpenCallsReport
from rawgrpc_proxy.observe.words import beginning
from rawgrpc_proxy.proxy.forwarding import Forwarding
from rawgrpc_proxy.proxy.splice import Splice, splice_of
from rawgrpc_proxy.proxy.transparent import TransparentHandler
from rawgrpc_proxy.server.dispatch import Answering, Calls
from rawgrpc_proxy.server.request import Asked

_Key = tuple[int, float, int]
"""A connection, when it was opened (its number may be another's later), and a stream's id."""
_NO_STEP = None, None
_Moved = tuple[object, ...]
"""What changes whenever something moves on a call."""
_LONGEST_METHOD = 300
_STEP = 200
"""Calls that are looked at in one step: two milliseconds, or so."""


@attrs.frozen
class _Open:
    """A call that is open, as far as all of them are looked at."""

    stream: Stream
    connection: Connection
    splice: Splice | None
    call: Call | None
    """None while it waits for its turn to begin."""
    handler: Handler | None
    """Whose task it is in, if it is in one."""
    method: str
    quiet_s: float

    @property
    def upstream(self) -> str | None:
        return None if self.call is None else self.call.record.upstream


class OpenCallsWatch:
    """Answers `Server.open_call_facts`, and remembers what it saw the last time."""

    def __init__(self) -> None:
        self._seen: dict[_Key, tuple[_Moved, float]] = {}
        """Each call that was open when somebody last asked: how far it was, and since when."""

    def facts(
        self, connections: Iterable[Connection], every_calls: Iterable[Calls], limit: int
    ) -> Generator[None, None, OpenCallsReport]:
        """As `Server.open_call_steps`. `every_calls` are those of each listener."""
        in_steps = {
            stream: (call, _handler_of(call, calls.answering))
            for calls in every_calls
            for stream, call in calls.in_steps.items()
        }
        now = trio.current_time()
        seen: dict[_Key, tuple[_Moved, float]] = {}
        every: list[_Open] = []
        methods: dict[str, int] = {}
        upstream_methods: dict[str, int] = {}
        looked_at = 0
        for connection in list(connections):
            for stream in list(connection.streams.values()):
                looked_at += 1
                if looked_at % _STEP == 0:
                    yield
                if connection.streams.get(stream.id) is not stream:
                    continue  # it has ended meanwhile
                opened = self._open(stream, connection, in_steps.get(stream, _NO_STEP), seen, now)
                if opened is not None:
                    every.append(opened)
                    methods[opened.method] = methods.get(opened.method, 0) + 1
                    if opened.upstream is not None:
                        upstream_methods[opened.method] = upstream_methods.get(opened.method, 0) + 1
        self._seen = seen
        yield
        calls: list[OpenCall] = []
        for each in heapq.nlargest(max(limit, 0), every, key=lambda each: each.quiet_s):
            if len(calls) % _STEP == _STEP - 1:
                yield
            calls.append(self._fact(each, now))
        return {
            "open": len(every),
            "methods": methods,
            "upstream_methods": upstream_methods,
            "calls": calls,
        }

    def _open(
        self,
        stream: Stream,
        connection: Connection,
        step: tuple[Call | None, Handler | None],
        seen: dict[_Key, tuple[_Moved, float]],
        now: float,
    ) -> _Open | None:
        """What there is to know of a stream; None if its call is over, and only its last frames are left.

        How far it is is noted in `seen`.
        """
        call, handler = step
        splice = splice_of(stream)
        state = connection.session.streams.get(stream.id)
        if splice is not None:
            owner = getattr(splice.on_change, "__self__", None)
            if isinstance(owner, Forwarding):
                call = owner.call
            elif call is None:
                return None
        elif call is None and (state is None or state.sending is not Sending.OPEN):
            return None
        key = (id(connection), connection.opened_at, stream.id)
        moved = _moved(stream, splice)
        before = self._seen.get(key)
        since = now if before is None or before[0] != moved else before[1]
        seen[key] = moved, since
        heard_at = connection.heard_at
        if splice is not None and splice.upstream is not None:
            heard_at = max(heard_at, splice.upstream.connection.heard_at)
        quiet_s = now - min(since, heard_at)
        if call is not None:
            quiet_s = min(quiet_s, time.perf_counter() - call.started)
        headers = stream.headers
        asked = headers.once(Asked) if isinstance(headers, HeaderList) else Asked(headers)
        return _Open(stream, connection, splice, call, handler, asked.method, max(quiet_s, 0.0))

    def _fact(self, opened: _Open, now: float) -> OpenCall:
        splice, call, stream = opened.splice, opened.call, opened.stream
        requests = None if splice is None else splice.request_messages
        responses = None if splice is None else splice.response_messages
        if call is not None:
            age_s = time.perf_counter() - call.started
        else:
            state = opened.connection.session.streams.get(stream.id)
            age_s = 0.0 if state is None else max(0.0, now - state.opened_at)
        return {
            "method": beginning(opened.method, _LONGEST_METHOD),
            "peer": opened.connection.peer,
            "upstream": opened.upstream,
            "age_s": round(age_s, 3),
            "quiet_s": round(min(opened.quiet_s, age_s), 3),
            "request_messages": 0 if requests is None else count_of(requests),
            "request_bytes": 0 if splice is None else splice.request_bytes,
            "response_messages": 0 if responses is None else count_of(responses),
            "response_bytes": 0 if splice is None else splice.response_bytes,
            "waits_for": self._waits_for(opened),
        }

    def _waits_for(self, opened: _Open) -> str:
        """Who has to do something for the call to go on, in words."""
        stream, splice, call = opened.stream, opened.splice, opened.call
        stalled = _stalled(stream, "the caller")
        if stalled:
            return stalled
        if splice is not None and splice.upstream is not None:
            return _stalled(splice.upstream, "the upstream") or _waits_on_the_wire(splice)
        if call is None:
            return "its turn: more calls came at once than are begun at once"
        if call.record.repeats is not None and call.record.repeats.is_pausing:
            return "its next attempt, which comes after a pause: the last one has failed"
        if call.record.upstream is not None:
            return f"a connection to {call.record.upstream}: in line for one, or for a dial"
        handler = opened.handler
        if isinstance(handler, TransparentHandler) and call in handler.asking:
            return "the director, which has not answered where it goes"
        if type(handler) is TransparentHandler:  # one of another kind may answer some calls itself
            return "an endpoint of its cluster: none is known yet, or none has a connection with room"
        state = opened.connection.session.streams.get(stream.id)
        if state is not None and state.receiving is not Receiving.ENDED:
            return "the handler that serves it, or the caller, which has not ended its request"
        return "the handler that serves it"


def _handler_of(call: Call, answering: Answering) -> Handler | None:
    return answering.handlers.get(call.record.method, answering.unknown_service_handler)


def _moved(stream: Stream, splice: Splice | None) -> _Moved:
    if splice is not None:
        return splice.passed()
    return (
        stream.connection.session.held_data(stream.id)[0],
        stream.inbox.waiting_bytes,
        stream.inbox.ended,
    )


def _stalled(stream: Stream, peer: str) -> str:
    """What keeps bytes from going to a peer; nothing if none wait for it."""
    connection = stream.connection
    size, what = connection.session.held_data(stream.id)
    if what == "stream":
        return f"{peer}, which does not read: its window for the call is empty, and {size} bytes wait for it"
    if what == "connection":
        return f"{peer}, which does not read: the window of its connection is empty, and {size} bytes wait for it"
    return f"{peer}: its socket takes nothing, and {size} bytes of the call wait for it" if size else ""


def _waits_on_the_wire(splice: Splice) -> str:
    upstream = splice.upstream
    if splice.response_ended:
        return "the caller: its socket has not taken the end of the response"
    if splice.upstream_error is not None:
        return "another connection to the upstream, which had not processed it"
    if upstream is not None and upstream.connection.socket_is_full and not splice.response_bytes:
        return "the upstream: its socket takes nothing"
    if splice.request_ended:
        if splice.http_status is None:
            return "the upstream, which is silent: it has the whole request, and has not begun to answer"
        return "the upstream, which has begun its response and does not go on"
    if splice.http_status is None:
        return "the caller to go on with its request, or the upstream to answer"
    return "the caller or the upstream to send something: both streams are open"
