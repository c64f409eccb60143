"""Two sessions joined back to back, under random commands: what one side says is what the other side hears.

The rules do what calls do, in any order. The model keeps, for each direction of each stream, the bytes that were
accepted and how the direction ended; teardown lets everything arrive and counts.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rawgrpc_proxy.config import ENGINES, Engine
from rawgrpc_proxy.http2.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from rawgrpc_proxy.http2.session import Session
from tests.http2.peer import REQUEST, RESPONSE, TRAILERS, TRAILERS_ONLY, new_session

PATTERN = bytes(number * 7 % 251 for number in range(120_000))
SIZES = st.sampled_from([0, 1, 5, 100, 3000, 16_384, 16_385, 70_000])


class Half:
    """One direction of a stream: what was said, and what was heard of it."""

    account = None

    def __init__(self) -> None:
        self.said = bytearray()
        self.heard = bytearray()
        self.said_end = False
        self.heard_end = False
        self.trailers_said: list[tuple[bytes, bytes]] | None = None
        self.trailers_heard: list[tuple[bytes, bytes]] | None = None
        self.owed = 0
        """Credit that whoever hears has not given back yet."""
        self.issued = 0
        self.receipted = 0

    def credit(self, size: int) -> None:
        """As a source of DATA: these bytes have gone out."""
        self.receipted += size


class Call:
    """A stream as the model sees it. `reset`: somebody has cut it short, so that bytes may be missing."""

    def __init__(self) -> None:
        self.request, self.response = Half(), Half()
        self.reset = False
        self.answered = False
        self.ends_told = {True: 0, False: 0}


class Pair(RuleBasedStateMachine):
    """A client's and a server's session, and the wires between them."""

    engines: tuple[Engine, Engine]

    def __init__(self) -> None:
        super().__init__()
        self.sides: dict[bool, Session] = {}
        self.wires: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        """What each side has written and the other has not read."""
        self.calls: dict[int, Call] = {}
        self.connection_window = 0

    @initialize(
        stream_window=st.sampled_from([65_535, 100_000, 2**31 - 1]),
        connection_window=st.sampled_from([65_535, 100_000, 2**24]),
        max_output=st.sampled_from([16_384, 131_072]),
        limit=st.sampled_from([2, 1024]),
        early=st.booleans(),
    )
    def connect(
        self, stream_window: int, connection_window: int, max_output: int, limit: int, early: bool
    ) -> None:
        self.connection_window = connection_window
        for client_side, engine in zip((True, False), self.engines, strict=True):
            self.sides[client_side] = new_session(
                engine,
                client_side=client_side,
                stream_window_bytes=stream_window,
                connection_window_bytes=connection_window,
                max_output_bytes=max_output,
                max_concurrent_streams=limit,
            )
        self.sides[True].start()
        if not early:
            self._exchange()

    # --- commands ---

    def _half(self, stream_id: int, client_side: bool) -> Half:
        call = self.calls[stream_id]
        return call.request if client_side else call.response

    def _streams(self, client_side: bool) -> list[int]:
        """The streams on which this side may still say something."""
        return [
            stream_id
            for stream_id, call in self.calls.items()
            if stream_id in self.sides[client_side].streams
            and not self._half(stream_id, client_side).said_end
            and (client_side or call.answered)
        ]

    @precondition(lambda self: self.sides[True].room)
    @rule(end_stream=st.booleans())
    def open(self, end_stream: bool) -> None:
        stream_id = self.sides[True].open_stream(REQUEST, end_stream=end_stream)
        self.calls[stream_id] = Call()
        self.calls[stream_id].request.said_end = end_stream

    @rule(trailers_only=st.booleans())
    def answer(self, trailers_only: bool) -> None:
        server = self.sides[False]
        for stream_id in server.streams:
            call = self.calls[stream_id]
            if not call.answered:
                call.answered = True
                headers = TRAILERS_ONLY if trailers_only else RESPONSE
                server.send_headers(stream_id, headers, end_stream=trailers_only)
                call.response.said_end = trailers_only
                return

    @precondition(lambda self: self._streams(True) or self._streams(False))
    @rule(
        data=st.data(),
        client_side=st.booleans(),
        size=SIZES,
        end_stream=st.booleans(),
        padding=st.integers(0, 3),
    )
    def say(self, data: st.DataObject, client_side: bool, size: int, end_stream: bool, padding: int) -> None:
        streams = self._streams(client_side)
        if not streams:
            return
        stream_id = data.draw(st.sampled_from(streams))
        half = self._half(stream_id, client_side)
        start = len(half.said) % 251
        piece = PATTERN[start : start + size]
        half.said += piece
        half.said_end = end_stream
        half.issued += size + padding
        session = self.sides[client_side]
        session.send_data(stream_id, piece, end_stream=end_stream, source=half, credit=size + padding)

    @precondition(lambda self: self._streams(True) or self._streams(False))
    @rule(data=st.data(), client_side=st.booleans(), empty=st.booleans())
    def say_trailers(self, data: st.DataObject, client_side: bool, empty: bool) -> None:
        streams = self._streams(client_side)
        if not streams:
            return
        stream_id = data.draw(st.sampled_from(streams))
        half = self._half(stream_id, client_side)
        half.said_end = True
        half.trailers_said = [] if empty else TRAILERS
        self.sides[client_side].send_headers(stream_id, half.trailers_said, end_stream=True)

    @precondition(lambda self: any(session.streams for session in self.sides.values()))
    @rule(data=st.data(), client_side=st.booleans(), after_end=st.booleans())
    def cut_short(self, data: st.DataObject, client_side: bool, after_end: bool) -> None:
        session = self.sides[client_side]
        streams = sorted(session.streams)
        if not streams:
            return
        stream_id = data.draw(st.sampled_from(streams))
        self.calls[stream_id].reset = True
        if after_end:
            session.reset_after_end(stream_id, 0)
        else:
            session.reset(stream_id, 8)

    @rule(client_side=st.booleans())
    def small_talk(self, client_side: bool) -> None:
        self.sides[client_side].ping(b"12345678")

    @rule()
    def drain_begins(self) -> None:
        self.sides[False].go_away(final=False)

    # --- the wires ---

    @rule(client_side=st.booleans())
    def write(self, client_side: bool) -> None:
        """What the side wants to say goes onto the wire."""
        session = self.sides[client_side]
        chunks, receipts = session.take_output()
        for chunk in chunks:
            self.wires[client_side] += chunk
        session.output_written()
        for source, size in receipts:
            source.credit(size)
        self._note_closed(client_side)

    @rule(client_side=st.booleans(), size=st.sampled_from([1, 10, 1000, 10**6]))
    def read(self, client_side: bool, size: int) -> None:
        """The side reads so much of what the other has written."""
        wire = self.wires[not client_side]
        chunk = bytes(wire[:size])
        del wire[:size]
        for event in self.sides[client_side].receive(chunk, 0.0):
            self._note(client_side, event)
        self._note_closed(client_side)

    @rule(client_side=st.booleans(), share=st.sampled_from([1, 2]))
    def give_credit(self, client_side: bool, share: int) -> None:
        """Whoever has heard something is done with it, or with half of it."""
        for stream_id in self.calls:
            half = self._half(stream_id, not client_side)
            size = half.owed // share
            half.owed -= size
            self.sides[client_side].credit(stream_id, size)

    def _note(self, client_side: bool, event: Event) -> None:
        match event:
            case ConnectionEnded(error):
                raise AssertionError(f"one of our own sessions has broken a rule: {error}")
            case RequestReceived(stream_id, headers, end_stream):
                assert headers == REQUEST
                self.calls[stream_id].request.heard_end = end_stream
            case ResponseReceived(stream_id, headers, end_stream):
                assert headers == (TRAILERS_ONLY if end_stream else RESPONSE)
                self.calls[stream_id].response.heard_end = end_stream
            case DataReceived(stream_id, piece, credit, end_stream):
                half = self._half(stream_id, not client_side)
                assert not half.heard_end
                half.heard += piece
                half.owed += credit
                half.heard_end = end_stream
                assert half.said.startswith(half.heard)
                assert half.said_end or not end_stream
            case TrailersReceived(stream_id, headers):
                half = self._half(stream_id, not client_side)
                assert not half.heard_end
                half.heard_end = True
                half.trailers_heard = headers
            case StreamReset(stream_id):
                self.calls[stream_id].reset = True
            case _:
                pass

    def _note_closed(self, client_side: bool) -> None:
        for stream_id in self.sides[client_side].take_closed():
            self.calls[stream_id].ends_told[client_side] += 1

    # --- what always holds ---

    @invariant()
    def no_end_is_told_twice(self) -> None:
        for call in self.calls.values():
            assert max(call.ends_told.values()) <= 1

    @invariant()
    def nothing_is_heard_that_was_not_said(self) -> None:
        for call in self.calls.values():
            for half in (call.request, call.response):
                assert len(half.heard) <= len(half.said)
                assert half.said_end or not half.heard_end
                assert half.receipted <= half.issued

    def _exchange(self) -> None:
        """Let everything arrive, and be done with it."""
        while any(session.wants_output for session in self.sides.values()) or any(self.wires.values()):
            for client_side in (True, False):
                self.write(client_side)
                self.read(client_side, 10**7)
                self.give_credit(client_side, 1)

    def teardown(self) -> None:
        if not self.sides:
            return
        self._exchange()
        for _ in range(len(self.calls)):
            self.answer(trailers_only=False)
        for client_side in (True, False):
            for stream_id in self._streams(client_side):
                self._half(stream_id, client_side).said_end = True
                self.sides[client_side].send_data(stream_id, b"", end_stream=True)
        self._exchange()

        for stream_id, call in self.calls.items():
            for half in (call.request, call.response):
                assert half.said.startswith(half.heard)
                if not call.reset:
                    assert half.heard == half.said, stream_id
                    assert half.heard_end
                    assert half.trailers_heard == (half.trailers_said or None)
                    assert half.receipted == half.issued
            assert call.ends_told[True] == 1
            # A stream that was turned down has never been the server's.
            assert call.ends_told[False] == 1 or (call.reset and not call.answered)
        for client_side, session in self.sides.items():
            other = self.sides[not client_side]
            assert not session.streams
            assert not session._ready
            assert not session.ended
            # Credit is conserved: what has not come back yet is below its step at the other side.
            kept = other._uncredited + other._dropped
            assert session._connection_window() + kept == self.connection_window


PAIRS = [(first, second) for first in ENGINES for second in ENGINES]


@pytest.mark.parametrize("engines", PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_what_one_side_says_the_other_side_hears(engines: tuple[Engine, Engine]) -> None:
    machine: Any = type("Machine", (Pair,), {"engines": engines})
    test = machine.TestCase
    test.settings = settings(
        max_examples=40,
        stateful_step_count=40,
        suppress_health_check=list(HealthCheck),
    )
    test("runTest").runTest()
