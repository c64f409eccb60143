"""When too much waits in the process, the calls that have stalled for longest end, and no others."""

import threading

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, trio_test

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.errors import PeerAbuse
from rawgrpc_proxy.http2 import frames
from rawgrpc_proxy.http2.buffered import MUCH_BYTES
from rawgrpc_proxy.net import memory_guard
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.memory_guard import STALLED_S, current_memory_guard
from rawgrpc_proxy.net.transport import StreamTransport
from tests.net.test_connection import Link, a_link
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import PREFACE, RESPONSE, request_fields

pytestmark = on_every_engine

LIMIT = 2**20


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def stalled(link: Link, size: int) -> int:
    """A call whose answer has this size and is not taken."""
    link.peer.credits = False
    await link.peer.open(request_fields(), end=True)
    await trio.testing.wait_all_tasks_blocked()
    stream = link.requests[-1]
    stream.send_headers(RESPONSE)
    stream.send_data(bytes(size))
    return stream.id


@trio_test
async def test_beyond_the_limit_the_longest_stalled_call_ends_at_once(engine: Engine) -> None:
    async with a_link(engine, max_buffered_bytes=LIMIT) as link:
        first = await stalled(link, 500_000)
        second = await stalled(link, 700_000)
        await trio.testing.wait_all_tasks_blocked()
        assert first not in link.connection.session.streams
        assert second in link.connection.session.streams
        assert current_memory_guard().buffered.bytes < LIMIT
        error = link.requests[0].inbox.error
        assert error is not None
        assert "max_buffered_bytes" in error.message
        await link.peer.ping()
        assert any(line.startswith("RST_STREAM 1") for line in link.peer.log)


@trio_test
async def test_the_connection_that_holds_most_pays(engine: Engine) -> None:
    async with a_link(engine, max_buffered_bytes=LIMIT) as modest, a_link(engine) as greedy:
        await stalled(modest, 300_000)
        await stalled(greedy, 400_000)
        await stalled(greedy, 400_000)
        await trio.testing.wait_all_tasks_blocked()
        assert list(modest.connection.session.streams) == [1]
        assert list(greedy.connection.session.streams) == [3]


@trio_test
async def test_answers_that_are_on_their_way_and_are_not_taken_end_their_connection(
    engine: Engine, clock: MockClock
) -> None:
    """Headers have no window: nothing else bounds them."""
    async with a_link(engine) as other, a_link(engine, max_buffered_bytes=LIMIT) as link:
        for _ in range(30):
            await link.peer.open(request_fields(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        link.ours.send_all_hook = trio.sleep_forever
        for stream in link.requests:
            stream.send_headers([*RESPONSE, (b"x-text", b"x" * 50_000)])
        await link.ended.wait()
        assert isinstance(link.connection.error, PeerAbuse)
        assert "max_buffered_bytes" in str(link.connection.error)
        assert current_memory_guard().buffered.bytes == 0
        await other.peer.ping()


@trio_test
async def test_near_the_limit_a_call_may_stall_for_five_seconds(engine: Engine, clock: MockClock) -> None:
    async with a_link(engine, max_buffered_bytes=LIMIT) as link:
        stream_id = await stalled(link, 900_000)
        await trio.sleep(STALLED_S - 0.1)
        assert stream_id in link.connection.session.streams
        await trio.sleep(1)
        assert stream_id not in link.connection.session.streams
        assert current_memory_guard().buffered.bytes == 0


@trio_test
async def test_where_memory_is_enough_a_call_may_stall_for_ever(engine: Engine, clock: MockClock) -> None:
    async with a_link(engine, max_buffered_bytes=LIMIT) as link:
        stream_id = await stalled(link, 700_000)
        await trio.sleep(20)
        assert stream_id in link.connection.session.streams


@trio_test
async def test_what_nobody_has_taken_of_a_request_counts_until_its_connection_ends(engine: Engine) -> None:
    buffered = current_memory_guard().buffered
    async with a_link(engine) as link:
        call = await link.peer.open(request_fields())
        for _ in range(3):
            await call.data(bytes(10_000))
        await link.peer.ping()
        assert buffered.bytes > 30_000
        await link.requests[0].inbox.receive()
        assert 20_000 < buffered.bytes < 30_000
        link.connection.close()
        await link.ended.wait()
    assert buffered.bytes == 0


@trio_test
async def test_whoever_does_not_acknowledge_settings_loses_the_connection(
    engine: Engine, clock: MockClock
) -> None:
    near, far = memory_stream_pair()
    connection = Connection(StreamTransport(near, "peer"), Http2Settings(engine=engine), client_side=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await far.send_all(PREFACE + frames.settings({}))
        await trio.sleep(9.9)
        assert not connection.session.ended
        await trio.sleep(5)
    assert connection.error is not None
    assert connection.error.error_code == ErrorCode.SETTINGS_TIMEOUT


@trio_test
async def test_behind_much_that_has_waited_memory_goes_back_to_the_system_once(
    engine: Engine, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk, times = threading.Event(), list[int]()

    def shrink_heap() -> None:
        times.append(1)
        shrunk.set()

    monkeypatch.setattr(memory_guard, "shrink_heap", shrink_heap)
    for size in (0, MUCH_BYTES, 0):
        async with a_link(engine, stream_window_bytes=2 * MUCH_BYTES) as link:
            await stalled(link, size)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2)
        if size:
            # It comes from a thread, which does not know of the clock.
            assert await trio.to_thread.run_sync(shrunk.wait, 10)
    assert len(times) == 1


@trio_test
async def test_where_no_thread_is_to_be_had_memory_is_not_given_back_and_all_goes_on(
    engine: Engine, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def run_sync(_function: object) -> None:
        asked.append(1)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with a_link(engine, stream_window_bytes=2 * MUCH_BYTES) as link:
        await stalled(link, MUCH_BYTES)
    await trio.sleep(5)
    assert asked == [1]


@trio_test
async def test_memory_goes_back_when_what_waits_ends_after_the_connection_that_has_brought_it(
    engine: Engine, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk = threading.Event()
    monkeypatch.setattr(memory_guard, "shrink_heap", shrunk.set)
    async with a_link(engine, stream_window_bytes=2 * MUCH_BYTES) as link:
        await stalled(link, MUCH_BYTES)
        async with a_link(engine):
            pass
        await trio.sleep(5)
        assert current_memory_guard().buffered.has_been_much
        link.requests[0].reset(ErrorCode.CANCEL)
        await trio.sleep(2)
        assert not current_memory_guard().buffered.has_been_much
    assert await trio.to_thread.run_sync(shrunk.wait, 10)
