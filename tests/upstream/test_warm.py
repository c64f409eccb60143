"""Connections that are kept ready: there before a call needs one, whatever happens, within the limits of the pool."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.errors import ConfigError, ProxyError
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target
from tests.upstream.backend import Clock, Upstream, run, run_with_clock


class Dials(PoolObserver):
    """Counts dials that were begun, and those that failed."""

    def __init__(self) -> None:
        self.begun = 0
        self.failed = 0

    def dial_started(self, address: str) -> None:
        self.begun += 1

    def dial_failed(self, address: str, duration_s: float, error: ProxyError) -> None:
        self.failed += 1


@asynccontextmanager
async def a_target(**settings: Any) -> AsyncIterator[tuple[Pool, Target, Upstream]]:
    """A pool with a target, and an upstream that runs as long."""
    async with trio.open_nursery() as nursery:
        upstream = Upstream()
        await nursery.start(upstream.serve)
        async with Pool(**settings) as pool:
            yield pool, pool.target(upstream.address), upstream
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def ready(target: Target, count: int) -> None:
    """Wait until so many connections are there, and nothing is being dialled."""
    await until(lambda: target.established == count and not target.dialling)


def call(target: Target) -> bool:
    """Whether a call that comes and goes now has to wait for nothing."""
    conn = target.take_now()
    if conn is not None:
        conn.give_back()
    return conn is not None


def test_connections_are_there_before_the_first_call() -> None:
    async def test() -> None:
        async with a_target() as (_, target, upstream):
            target.keep_ready(3)
            await ready(target, 3)
            assert call(target)
            assert len(await upstream.connected(3)) == 3

    run(test)


def test_calls_share_a_connection_that_is_still_being_made_ready() -> None:
    async def test() -> None:
        dials = Dials()
        async with a_target(observer=dials) as (_, target, upstream):
            upstream.silent = True
            target.keep_ready(1)
            await until(lambda: target.dialling == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(target.take)
                nursery.start_soon(target.take)
                await upstream.until(lambda: len(upstream.connections) == 1)
                await upstream.connections[0].greet()
            assert dials.begun == 1

    run(test)


def test_a_successor_is_there_before_a_connection_comes_to_its_ttl() -> None:
    async def test(clock: Clock) -> None:
        async with a_target(ttl=60, dial_timeout_s=3) as (_, target, upstream):
            target.keep_ready(1)
            await ready(target, 1)
            clock.jump(56.5)
            await trio.testing.wait_all_tasks_blocked()
            assert target.established + target.dialling == 1, "no sooner than it has to"
            clock.jump(1)
            await ready(target, 2)
            assert not upstream.connections[0].ended
            clock.jump(3)
            await upstream.connections[0].gone()
            assert call(target)
            for _ in range(3):
                clock.jump(55)
                await until(lambda: target.established == 2)
                clock.jump(3)
                await ready(target, 1)
            assert call(target)

    run_with_clock(test)


def test_the_successor_stays_where_no_more_idle_ones_are_kept_than_are_to_be_ready() -> None:
    async def test(clock: Clock) -> None:
        dials = Dials()
        async with a_target(ttl=60, idle=1, observer=dials) as (_, target, upstream):
            target.keep_ready(1)
            await ready(target, 1)
            clock.jump(58)
            await upstream.until(lambda: len(upstream.connections) == 2)
            await upstream.connections[0].gone()
            await ready(target, 1)
            clock.jump(10)
            await trio.testing.wait_all_tasks_blocked()
            assert dials.begun == 2
            assert call(target)

    run_with_clock(test)


def test_what_is_lost_is_replaced_and_never_faster_than_once_a_second() -> None:
    async def test(clock: Clock) -> None:
        dials = Dials()
        async with a_target(observer=dials) as (_, target, upstream):
            target.keep_ready(1)
            for number in range(1, 5):
                await ready(target, 1)
                assert dials.begun == number
                await upstream.connections[-1].close()
                await ready(target, 0)
                await trio.testing.wait_all_tasks_blocked()
                assert dials.begun == number, "at once would be without end"
                clock.jump(1)

    run_with_clock(test)


def test_an_upstream_that_drains_is_dialled_at_once() -> None:
    async def test(clock: Clock) -> None:
        async with a_target() as (_, target, upstream):
            target.keep_ready(1)
            await ready(target, 1)
            [first] = await upstream.connected(1)
            clock.jump(5)
            await first.go_away()
            await upstream.until(lambda: len(upstream.connections) == 2)
            await first.gone()
            await ready(target, 1)
            assert call(target)

    run_with_clock(test)


def test_an_endpoint_that_comes_back_is_found_without_a_call_however_long_it_was_away() -> None:
    async def test(clock: Clock) -> None:
        dials = Dials()
        async with a_target(observer=dials) as (_, target, upstream):
            upstream.refuse = True
            troubles: list[bool] = []
            target.on_trouble.append(lambda: troubles.append(target.trouble is not None))
            target.keep_ready(2)
            await until(lambda: dials.failed >= 2 and not target.dialling)
            for _ in range(30):
                before = dials.failed
                clock.jump(4)
                await until(lambda before=before: dials.failed > before and not target.dialling)  # type: ignore[misc]
            assert troubles == [True]
            assert dials.begun < 40, "one at a time, with pauses"
            upstream.refuse = False
            clock.jump(4)
            await ready(target, 2)
            assert troubles == [True, False]

    run_with_clock(test)


def test_nobody_dials_an_endpoint_that_nobody_wants_ready() -> None:
    async def test(clock: Clock) -> None:
        dials = Dials()
        async with a_target(observer=dials) as (pool, target, upstream):
            upstream.refuse = True
            target.keep_ready(1)
            await until(lambda: dials.failed >= 2)
            target.keep_ready(0)
            while target.trouble is not None:
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(4)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.stats() == {}

    run_with_clock(test)


def test_connections_that_are_to_be_ready_no_more_end_with_their_ttl() -> None:
    async def test(clock: Clock) -> None:
        async with a_target(ttl=60) as (pool, target, _):
            target.keep_ready(2)
            await ready(target, 2)
            target.keep_ready(0)
            clock.jump(61)
            await until(lambda: pool.stats() == {})

    run_with_clock(test)


def test_more_or_fewer_may_be_asked_for_at_any_time() -> None:
    async def test(clock: Clock) -> None:
        async with a_target(ttl=60) as (_, target, _):
            target.keep_ready(1)
            await ready(target, 1)
            target.keep_ready(3)
            clock.jump(1)
            await ready(target, 3)
            target.keep_ready(1)
            clock.jump(61)
            await ready(target, 1)

    run_with_clock(test)


def test_there_are_never_more_than_size() -> None:
    async def test(clock: Clock) -> None:
        async with a_target(ttl=60, size=2, max_waiting=10) as (_, target, upstream):
            target.keep_ready(2)
            await ready(target, 2)
            clock.jump(58)
            await trio.testing.wait_all_tasks_blocked()
            assert target.established + target.dialling == 2
            clock.jump(3)
            await upstream.until(lambda: len(upstream.connections) == 4)
            await ready(target, 2)

    run_with_clock(test)


def test_a_call_elsewhere_gets_the_place_of_one_that_is_only_kept_ready() -> None:
    async def test(clock: Clock) -> None:
        dials = Dials()
        async with a_target(max_connections=1, observer=dials) as (pool, target, _), trio.open_nursery() as n:
            other = Upstream()
            await n.start(other.serve)
            target.keep_ready(1)
            await ready(target, 1)
            conn = await pool.get_conn(other.address)
            clock.jump(5)
            await trio.testing.wait_all_tasks_blocked()
            assert dials.begun == 2
            conn.err = ProxyError("broken")
            conn.close()
            await ready(target, 1)
            n.cancel_scope.cancel()

    run_with_clock(test)


def test_a_pool_that_is_opened_again_keeps_nothing_ready_until_it_is_asked() -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            await nursery.start(upstream.serve)
            pool = Pool()
            target = pool.target(upstream.address)
            with pytest.raises(ConfigError, match="the pool is not open"):
                target.keep_ready(1)
            for _ in range(2):
                async with pool:
                    assert pool.stats() == {}
                    target.keep_ready(1)
                    await ready(target, 1)
            target.keep_ready(0)
            nursery.cancel_scope.cancel()

    run(test)


@pytest.mark.parametrize(
    ("settings", "count"), [({"idle": 1}, 2), ({"size": 1}, 2), ({"idle": 0}, 1), ({}, -1)]
)
def test_no_more_are_to_be_ready_than_are_kept(settings: dict[str, int], count: int) -> None:
    async def test() -> None:
        async with a_target(**settings) as (_, target, _):
            with pytest.raises(ConfigError, match="connections cannot be kept ready where idle is"):
                target.keep_ready(count)

    run(test)
