"""When a caller's connection is old, or unused, and is told to go: in pseudo-time, to the moment."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, trio_test

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.lifetime import Lifetime
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.timers import Timers
from rawgrpc_proxy.net.transport import StreamTransport
from tests.proxy.raw_peers import TRAILERS_ONLY, RawPeer, request_fields


class Watched:
    """A caller's connection under watch: what it has asked, and when it was told to go, and why."""

    def __init__(self, caller: RawPeer) -> None:
        self.caller = caller
        self.requests: list[Stream] = []
        self.retired: list[tuple[float, str]] = []

    async def call(self, duration_s: float) -> None:
        """One call, which is answered after this time."""
        stream = await self.caller.open(request_fields(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(duration_s)
        self.requests.pop().send_headers(TRAILERS_ONLY, end_stream=True)
        await stream.answer()


@asynccontextmanager
async def a_watched_connection(chance: float = 0.5, **http2: float) -> AsyncIterator[Watched]:
    near, far = memory_stream_pair()
    settings = Http2Settings(**http2)  # type: ignore[arg-type]  # mypy thinks of every setting
    watched = Watched(RawPeer(far, client_side=True))
    lifetimes: list[Lifetime] = []

    def changed() -> None:
        for lifetime in lifetimes:
            lifetime.changed()

    connection = Connection(
        StreamTransport(near, "in memory"),
        settings,
        client_side=False,
        on_request=watched.requests.append,
        on_change=changed,
    )
    async with trio.open_nursery() as nursery:
        timers = Timers(nursery)
        lifetimes.append(
            Lifetime(
                connection,
                timers.add,
                lambda error: watched.retired.append((trio.current_time(), error.why)),
                settings=settings,
                chance=lambda: chance,
            )
        )
        nursery.start_soon(connection.run)
        await nursery.start(watched.caller.run)
        await connection.ready.wait()
        yield watched
        nursery.cancel_scope.cancel()


@pytest.fixture
def autojump_clock() -> MockClock:
    """Time that jumps ahead whenever everybody waits."""
    return MockClock(autojump_threshold=0)


@pytest.mark.parametrize(("chance", "age_s"), [(0.0, 90.0), (0.5, 100.0), (1.0, 110.0)])
@trio_test
async def test_a_connection_goes_at_its_age_give_or_take_a_tenth(
    chance: float, age_s: float, autojump_clock: MockClock
) -> None:
    begin = trio.current_time()
    async with a_watched_connection(chance, max_connection_age_s=100) as watched:
        await watched.call(age_s - 0.1)
        assert watched.retired == []
        await trio.sleep(0.2)
        [(when, why)] = watched.retired
        assert when - begin == pytest.approx(age_s)
        assert why == "max_connection_age"
        await trio.sleep(1000)
        assert len(watched.retired) == 1


@trio_test
async def test_a_connection_that_nobody_uses_goes_after_the_end_of_its_last_call(
    autojump_clock: MockClock,
) -> None:
    begin = trio.current_time()
    async with a_watched_connection(max_connection_idle_s=10) as watched:
        await trio.sleep(9)
        await watched.call(25)
        await trio.sleep(9)
        await watched.call(0)  # ends 43 s after the beginning
        for _ in range(9):
            await trio.sleep(1)
            await watched.caller.ping()
            await watched.caller.change_settings({})
        assert watched.retired == []
        await trio.sleep(10)
        [(when, why)] = watched.retired
        assert when - begin == pytest.approx(53)
        assert why == "max_connection_idle"


@trio_test
async def test_a_connection_that_was_never_used_goes_as_well(autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    async with a_watched_connection(max_connection_idle_s=10, max_connection_age_s=1000) as watched:
        await trio.sleep(11)
        [(when, why)] = watched.retired
        assert when - begin == pytest.approx(10)
        assert why == "max_connection_idle"


@trio_test
async def test_calls_one_upon_the_other_leave_no_time_without_use(autojump_clock: MockClock) -> None:
    async with a_watched_connection(max_connection_idle_s=10) as watched:
        first = await watched.caller.open(request_fields(), end=True)
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(8)
            second = await watched.caller.open(request_fields(), end=True)
            await trio.testing.wait_all_tasks_blocked()
            watched.requests.pop(0).send_headers(TRAILERS_ONLY, end_stream=True)
            await first.answer()
            first = second
        assert watched.retired == []


@trio_test
async def test_without_a_limit_nothing_watches(autojump_clock: MockClock) -> None:
    near, _ = memory_stream_pair()
    settings = Http2Settings(max_connection_age_grace_s=1)
    connection = Connection(StreamTransport(near, "in memory"), settings, client_side=False)
    async with trio.open_nursery() as nursery:
        timers = Timers(nursery)
        assert Lifetime.of(connection, timers.add, lambda _: None, settings) is None
        assert settings.max_connection_age_s == settings.max_connection_idle_s == math.inf
