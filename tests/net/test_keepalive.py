"""Silent peers are asked for a sign of life, and no more often than gRPC's servers tolerate."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConnectionGone
from rawgrpc_proxy.http2 import frames
from rawgrpc_proxy.http2.hpack import HeaderEncoder
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.keepalive import Keepalive, pinged_too_often
from rawgrpc_proxy.net.timers import Timers
from rawgrpc_proxy.net.transport import StreamTransport
from tests.proxy.raw_peers import request_fields


class Peer:
    """A peer of which the test decides whether it answers PINGs. Notes when they came."""

    def __init__(self, stream: trio.abc.Stream, *, calls: bool) -> None:
        self._stream = stream
        self._calls = calls
        self.answers = True
        self.pinged_at: list[float] = []

    async def run(self) -> None:
        await self.say((frames.PREFACE if self._calls else b"") + frames.settings({}) + frames.SETTINGS_ACK)
        splitter = frames.FrameSplitter(2**14, expect_preface=not self._calls)
        async for chunk in self._stream:
            for frame_type, flags, _, payload in splitter.split(bytes(chunk)):
                if frame_type == frames.PING and not flags & frames.ACK:
                    self.pinged_at.append(trio.current_time())
                    if self.answers:
                        await self.say(frames.ping(payload, ack=True))

    async def say(self, frame: bytes) -> None:
        await self._stream.send_all(frame)


@asynccontextmanager
async def a_watched_link(
    interval_s: float = 20, *, to_a_caller: bool = False, takes_16_kib_in_s: float = 0
) -> AsyncIterator[tuple[Connection, Peer, trio.Event]]:
    near, far = trio.testing.memory_stream_pair()
    settings = Http2Settings(max_owed_bytes=1024)
    pump = near.send_stream.send_all_hook

    async def slowly() -> None:
        assert pump is not None
        await trio.sleep(takes_16_kib_in_s)
        await pump()

    near.send_stream.send_all_hook = slowly
    connection = Connection(StreamTransport(near, "peer"), settings, client_side=not to_a_caller)
    peer, ended = Peer(far, calls=to_a_caller), trio.Event()
    async with trio.open_nursery() as nursery:
        timers = Timers(nursery)

        async def run() -> None:
            keepalive = Keepalive(connection, timers.add, interval_s=interval_s, timeout_s=20)
            try:
                await connection.run()
            finally:
                keepalive.stop()
                ended.set()

        nursery.start_soon(run)
        nursery.start_soon(peer.run)
        await connection.ready.wait()
        yield connection, peer, ended
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@trio_test
async def test_an_upstream_that_is_gone_without_a_word_is_noticed_within_forty_seconds(
    clock: MockClock,
) -> None:
    async with a_watched_link() as (connection, upstream, ended):
        connection.open_stream(request_fields())
        upstream.answers = False
        silent_since = trio.current_time()
        await ended.wait()
        assert trio.current_time() - silent_since <= 40
        assert isinstance(connection.error, ConnectionGone)
        assert "no sign of life for 40 s" in str(connection.error)


@trio_test
async def test_a_call_on_a_link_that_died_while_it_was_idle_is_over_within_forty_seconds(
    clock: MockClock,
) -> None:
    async with a_watched_link() as (connection, upstream, ended):
        upstream.answers = False
        await trio.sleep(1000)
        assert upstream.pinged_at == []
        connection.open_stream(request_fields())
        begun = trio.current_time()
        await ended.wait()
        assert trio.current_time() - begun <= 40


@trio_test
async def test_a_long_call_that_says_nothing_is_pinged_seldom_enough_for_grpcs_servers(
    clock: MockClock,
) -> None:
    """They end the connection at the third PING that comes within five minutes of another one."""
    async with a_watched_link() as (connection, upstream, ended):
        connection.open_stream(request_fields())
        await trio.sleep(3600)
        assert not ended.is_set()
        first, second, *others = upstream.pinged_at
        assert second - first >= 20
        assert len(others) > 5
        assert all(later - earlier >= 300 for earlier, later in zip([second, *others], others, strict=False))


@trio_test
async def test_a_call_that_is_begun_on_a_quiet_connection_may_be_asked_about_at_once_more(
    clock: MockClock,
) -> None:
    async with a_watched_link() as (connection, upstream, ended):
        connection.open_stream(request_fields())
        await trio.sleep(200)
        assert len(upstream.pinged_at) == 2
        upstream.answers = False
        connection.open_stream(request_fields())
        begun = trio.current_time()
        await ended.wait()
        assert trio.current_time() - begun <= 40


@trio_test
async def test_a_caller_that_vanishes_in_a_long_quiet_call_is_noticed_as_soon_as_any_other(
    clock: MockClock,
) -> None:
    """gRPC's clients do not count PINGs, as its servers do."""
    async with a_watched_link(60, to_a_caller=True) as (connection, caller, ended):
        block = HeaderEncoder().encode(request_fields())
        await caller.say(frames.frame_header(frames.HEADERS, frames.END_HEADERS, 1, len(block)) + block)
        await trio.sleep(3600)
        assert len(connection.streams) == 1
        caller.answers = False
        silent_since = trio.current_time()
        await ended.wait()
        assert trio.current_time() - silent_since <= 80


@trio_test
async def test_whoever_says_something_is_not_asked(clock: MockClock) -> None:
    async with a_watched_link() as (connection, upstream, _):
        connection.open_stream(request_fields())
        for _ in range(100):
            await trio.sleep(19)
            await upstream.say(frames.ping(b"whatever", ack=True))
        assert upstream.pinged_at == []


@trio_test
async def test_whoever_is_asked_is_in_doubt_until_it_answers_or_has_said_something_in_time(
    clock: MockClock,
) -> None:
    async with a_watched_link() as (connection, upstream, ended):
        connection.open_stream(request_fields())
        await trio.sleep(20.1)
        assert (len(upstream.pinged_at), connection.in_doubt) == (1, False)
        upstream.answers = False
        await trio.sleep(30)
        assert (len(upstream.pinged_at), connection.in_doubt) == (2, True)
        await upstream.say(frames.ping(b"whatever"))
        await trio.sleep(19)
        assert not connection.in_doubt
        assert not ended.is_set()


@trio_test
async def test_whoever_is_not_read_at_present_is_not_given_up_for_its_silence(clock: MockClock) -> None:
    """It takes what it is owed, if slowly, and its answer to the PING waits where we do not look."""
    async with a_watched_link(takes_16_kib_in_s=15) as (connection, upstream, ended):
        await trio.sleep(20)
        stream = connection.open_stream(request_fields())
        stream.send_data(bytes(60_000))
        await trio.sleep(1)
        await upstream.say(frames.settings({}) * 500)  # whose acknowledgements have 4500 bytes
        await trio.sleep(45)
        paused = connection.reading_pauses
        assert paused
        await trio.sleep(300)
        assert not connection.reading_pauses
        assert not ended.is_set()


@trio_test
async def test_a_connection_without_calls_is_not_asked(clock: MockClock) -> None:
    async with a_watched_link() as (_, upstream, ended):
        upstream.answers = False
        await trio.sleep(10_000)
        assert upstream.pinged_at == []
        assert not ended.is_set()


@trio_test
async def test_an_interval_without_end_turns_it_off(clock: MockClock) -> None:
    async with a_watched_link(math.inf) as (connection, upstream, ended):
        connection.open_stream(request_fields())
        await trio.sleep(10_000)
        assert upstream.pinged_at == []
        assert not ended.is_set()


def test_too_many_pings_are_told_by_grpcs_own_words() -> None:
    calm = ErrorCode.ENHANCE_YOUR_CALM
    assert pinged_too_often(ConnectionGone("the peer sent GOAWAY 'too_many_pings'", error_code=calm))
    assert not pinged_too_often(ConnectionGone("the peer sent GOAWAY 'busy'", error_code=calm))
    assert not pinged_too_often(ConnectionGone("the peer sent GOAWAY 'too_many_pings'"))
