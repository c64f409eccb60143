"""The whole proxy between raw peers, who do what peers do in any order: hypothesis looks for one that it minds.

The proxy runs in a trio of its own, in a thread, to which each rule is brought. The model keeps what each side of a
call has said; what the other side hears is held against it. At the end all that is open is brought to its end, and
counted: each call has ended once for its caller and has one record, no place is taken, and no connection has lost
credit.
"""

import itertools
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rawgrpc_proxy.config import ENGINES, Engine
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.upstream.choice import Phase
from rawgrpc_proxy.upstream.pooled import PooledConnection
from tests.proxy.house import House, a_proxy, streams_of, until
from tests.proxy.raw_peers import (
    OK,
    RESPONSE,
    Data,
    Headers,
    Lost,
    PeerStream,
    RawPeer,
    Reset,
    request_fields,
)

T = TypeVar("T")
PATTERN = bytes(number * 7 % 251 for number in range(70_000))
CONNECTION_WINDOW = 100_000
"""Small, so that the credit of it comes back now and then."""
SIZES = st.sampled_from([1, 5, 1000, 16_384])
MOST_BYTES = 60_000
"""What a direction of a call says at the most: the first window of a raw peer takes it, so that nobody has to wait."""
NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class Inside:
    """A house in a trio of its own, in a thread; `do` has something done there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:  # noqa: BLE001  # for `end`
            self._error = error
        self._ready.set()

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        async with a_proxy(
            self._engine, pool={"ms": 100}, connection_window_bytes=CONNECTION_WINDOW
        ) as self.house:
            self._ready.set()
            await self._over.wait()

    def do(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run it there."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def end(self) -> None:
        """Leave the house, which looks whether anything is left."""
        self._token.run_sync_soon(self._over.set)
        self._thread.join()
        if self._error is not None:
            raise self._error


class Half:
    """One direction of a call: what was said, and what was heard of it."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.said_end = False
        self.heard = bytearray()
        self.heard_end = False

    @property
    def room(self) -> bool:
        return not self.said_end and len(self.said) < MOST_BYTES


class Call:
    """A call: the caller's stream, and the backend's."""

    def __init__(self, stream: PeerStream, served: PeerStream) -> None:
        self.stream, self.served = stream, served
        self.request, self.response = Half(), Half()
        self.answered = False
        self.cut = False
        """Somebody has cut it short: bytes may be missing. Follows from what was done, whatever has been heard."""
        self.may_be_cut = False
        """The connection went behind its last frame, which may have arrived, or not."""
        self.given_up = False
        """It was the caller, who need not be told."""
        self.ends = 0
        """How often its end was told to the caller."""

    def lost(self) -> None:
        """A connection that it was on has gone."""
        self.cut = self.cut or not self.response.said_end
        self.may_be_cut = self.may_be_cut or not self.ends

    @property
    def caller_speaks(self) -> bool:
        return not self.cut and not self.response.said_end and self.request.room

    @property
    def backend_speaks(self) -> bool:
        return not self.cut and not self.response.said_end


class Proxied(RuleBasedStateMachine):
    """Two callers, one backend, and the proxy between them."""

    engine: Engine

    @initialize()
    def open_the_house(self) -> None:
        self.inside = Inside(self.engine)
        self.house: House = self.inside.house
        self.callers: list[RawPeer] = [self.inside.do(self.house.client) for _ in range(2)]
        self.calls: list[Call] = []
        self.numbers = itertools.count()

    def _some(self, data: st.DataObject, fit: Callable[[Call], bool]) -> Call | None:
        calls = [call for call in self.calls if fit(call)]
        return data.draw(st.sampled_from(calls)) if calls else None

    # --- what peers do

    @rule(caller=st.integers(0, 1), end=st.booleans(), refused=st.booleans())
    def begin(self, caller: int, end: bool, refused: bool) -> None:
        async def begin() -> Call:
            fields = request_fields(f"/a.B/C{next(self.numbers)}")
            stream = await self.callers[caller].open(fields, end=end)
            served = await self.house.backend.request()
            if refused:
                await served.reset(REFUSED_STREAM)
                served = await self.house.backend.request()
            return Call(stream, served)

        call = self.inside.do(begin)
        call.request.said_end = call.request.heard_end = end
        assert call.served.request.end_stream == end
        self.calls.append(call)

    @precondition(lambda self: any(call.caller_speaks for call in self.calls))
    @rule(data=st.data(), size=SIZES, end=st.booleans())
    def say_request(self, data: st.DataObject, size: int, end: bool) -> None:
        call = self._some(data, lambda call: call.caller_speaks)
        assert call is not None
        piece = _next(call.request, size, end=end)
        self.inside.do(_data, call.stream, piece, end)

    @precondition(lambda self: any(call.backend_speaks for call in self.calls))
    @rule(data=st.data(), size=SIZES)
    def say_response(self, data: st.DataObject, size: int) -> None:
        call = self._some(data, lambda call: call.backend_speaks)
        assert call is not None
        if not call.answered:
            call.answered = True
            self.inside.do(call.served.headers, RESPONSE)
        if call.response.room:
            self.inside.do(_data, call.served, _next(call.response, size, end=False), False)

    @precondition(lambda self: any(call.backend_speaks for call in self.calls))
    @rule(data=st.data())
    def end_response(self, data: st.DataObject) -> None:
        call = self._some(data, lambda call: call.backend_speaks)
        assert call is not None
        self._end_response(call)

    def _end_response(self, call: Call) -> None:
        call.response.said_end = True

        async def end() -> None:
            await call.served.headers(OK if call.answered else [*RESPONSE, *OK], end=True)

        self.inside.do(end)
        call.answered = True

    @precondition(lambda self: any(not call.response.said_end and not call.cut for call in self.calls))
    @rule(data=st.data(), by_caller=st.booleans())
    def cut_short(self, data: st.DataObject, by_caller: bool) -> None:
        call = self._some(data, lambda call: not call.response.said_end and not call.cut)
        assert call is not None
        call.cut, call.given_up = True, by_caller
        stream = call.stream if by_caller else call.served
        self.inside.do(stream.reset, CANCEL)

    @precondition(lambda self: any(call.cut for call in self.calls))
    @rule(data=st.data(), size=SIZES, by_caller=st.booleans())
    def say_too_late(self, data: st.DataObject, size: int, by_caller: bool) -> None:
        """Somebody goes on for a moment on a stream that the other side has cut short: nobody hears of it."""
        call = self._some(data, lambda call: call.cut)
        assert call is not None
        stream, half = (call.stream, call.request) if by_caller else (call.served, call.response)
        if call.given_up != by_caller and not half.said_end and not stream.peer.ended.is_set():
            if not by_caller and not call.answered:
                call.answered = True
                self.inside.do(stream.headers, RESPONSE)
            self.inside.do(_data, stream, PATTERN[:size], False)

    @rule(caller=st.integers(0, 1))
    def hang_up(self, caller: int) -> None:
        peer = self.callers[caller]
        for call in self.calls:
            if call.stream.peer is peer:
                call.given_up = call.given_up or not call.ends
                call.lost()

        async def anew() -> RawPeer:
            await peer.aclose()
            return await self.house.client()

        self.callers[caller] = self.inside.do(anew)

    @rule(in_good_order=st.booleans())
    def backend_goes(self, in_good_order: bool) -> None:
        peers = [peer for peer in self.house.backend.peers if not peer.ended.is_set()]

        async def go() -> None:
            for peer in peers:
                with suppress(*BROKEN):
                    if in_good_order:
                        await peer.goaway(max(peer.streams, default=0))
                    else:
                        await peer.aclose()
            # What is begun from now on goes elsewhere.
            await until(
                lambda: not any(conn.phase is Phase.READY for conn in self._conns()), "it takes calls yet"
            )

        self.inside.do(go)
        if not in_good_order:
            for call in self.calls:
                call.lost()

    def _conns(self) -> list[PooledConnection]:
        return [
            conn
            for target in self.house.pool._targets.values()
            for conn in (*target.record.with_room, *target.record.busy, *target.record.leaving)
        ]

    # --- what always holds

    @invariant()
    def nothing_is_heard_that_was_not_said(self) -> None:
        for call in getattr(self, "calls", ()):
            self._hear(call)

    def _hear(self, call: Call) -> None:
        for stream, half in ((call.served, call.request), (call.stream, call.response)):
            while not stream.nothing_came():
                self._take(call, half, stream._events.receive_nowait())
            assert half.said.startswith(half.heard)
            assert half.said_end or not half.heard_end, "an end was invented"
            assert not half.heard_end or half.heard == half.said, "cut short, and called whole"
        assert call.ends <= 1, "a call has ended twice"

    def _take(self, call: Call, half: Half, event: object) -> None:
        from_backend = half is call.response
        match event:
            case Data(data, end):
                assert not half.heard_end
                half.heard += data
                half.heard_end = end
                call.ends += end and from_backend
            case Headers(fields, end):
                status = dict(fields).get(b"grpc-status")
                if end and status != b"0":
                    assert call.cut or call.may_be_cut, fields  # the proxy says why
                elif end:
                    half.heard_end = True
                call.ends += end and from_backend
            case Reset(code):
                assert call.cut or call.may_be_cut or half is call.request or code == NO_ERROR, code
                call.ends += from_backend and code != NO_ERROR
            case Lost():
                pass
            case _:
                raise AssertionError(event)

    def teardown(self) -> None:
        if not hasattr(self, "inside"):
            return
        try:
            for call in self.calls:
                if call.backend_speaks:
                    self._end_response(call)
            self.inside.do(self._settle)
            for call in self.calls:
                self._hear(call)
                assert call.cut or call.may_be_cut or call.response.heard_end
                assert call.given_up or call.ends == 1
            assert self.house.observer.unread == len(self.calls)
            self.inside.do(self._count_credit)
        finally:
            self.inside.end()

    async def _settle(self) -> None:
        await until(lambda: self.house.server.open_calls == 0, "calls are open")
        await until(lambda: streams_of(self.house.pool) == 0, "places are taken")
        for peer in (*self.callers, *self.house.backend.peers):
            await _caught_up(peer)

    async def _count_credit(self) -> None:
        """What a peer may send on its connection, and what the proxy has kept of it, are the window together."""
        upstream = [conn.connection.session for conn in self._conns() if conn.connection is not None]
        downstream = [connection.session for connection in self.house.server._connections]
        backends = [peer for peer in self.house.backend.peers if not peer.ended.is_set()]
        for sessions, peers in ((upstream, backends), (downstream, self.callers)):
            assert len(sessions) == len(peers)
            credit = sum(peer.window for peer in peers) + sum(map(_kept, sessions))
            assert credit == CONNECTION_WINDOW * len(peers)


def _kept(session: Session) -> int:
    return session._uncredited + session._dropped


def _next(half: Half, size: int, *, end: bool) -> bytes:
    start = len(half.said)
    piece = PATTERN[start : start + min(size, MOST_BYTES - start)]
    half.said += piece
    half.said_end = end
    return piece


async def _data(stream: PeerStream, piece: bytes, end: bool) -> None:
    with suppress(*BROKEN):
        await stream.data(piece, end=end)
    # So that a step is done before the next: chance is in the order of steps, not in that of the machine.
    await _caught_up(stream.peer)


async def _caught_up(peer: RawPeer) -> None:
    """Wait until the proxy has dealt with all that this peer has sent, or the connection is over."""
    async with trio.open_nursery() as nursery:

        async def ping() -> None:
            with suppress(*BROKEN):
                await peer.ping()
            nursery.cancel_scope.cancel()

        nursery.start_soon(ping)
        await peer.ended.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_peers_do_in_any_order_calls_end_once_and_nothing_is_lost(engine: Engine) -> None:
    machine: Any = type("Machine", (Proxied,), {"engine": engine})
    test = machine.TestCase
    test.settings = settings(
        max_examples=200, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    test("runTest").runTest()
