"""The pool over real sockets: dials, places, the line, and upstreams that misbehave."""

import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hyperframe.frame import SettingsFrame

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ConfigError, ConnectionGone, PoolExhausted, UpstreamUnavailable
from rawgrpc_proxy.pool import Pool, PoolConn, PoolStats
from tests.pool_backend import REQUEST, Clock, Upstream, deaf_port, run, run_with_clock

IDLE = PoolStats(with_room=1, busy=0, idle=1, waiting=0)


@asynccontextmanager
async def pool_and_upstream(
    max_concurrent_streams: int | None = None, *, silent: bool = False, **settings: Any
) -> AsyncIterator[tuple[Pool, Upstream]]:
    """A pool, and an upstream that runs as long."""
    async with trio.open_nursery() as nursery:
        upstream = Upstream(max_concurrent_streams)
        upstream.silent = silent
        await nursery.start(upstream.serve)
        async with Pool(**settings) as pool:
            yield pool, upstream
        nursery.cancel_scope.cancel()


async def leases(pool: Pool, address: str, count: int) -> list[PoolConn]:
    """So many leases, asked for at the same time."""
    taken: list[PoolConn] = []

    async def take() -> None:
        taken.append(await pool.get_conn(address))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(take)
    return taken


async def nothing_left(pool: Pool) -> None:
    """Wait until the pool has forgotten whatever it was connected to."""
    while pool.stats():
        await trio.lowlevel.checkpoint()


class NoJitter(random.Random):
    """Pauses are what they are."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Waiter:
    """A call that asks for a connection in a task of its own."""

    def __init__(self, pool: Pool, address: str) -> None:
        self.scope = trio.CancelScope()
        self.conn: PoolConn | None = None
        self.error: Exception | None = None
        self.done = trio.Event()
        self._pool, self._address = pool, address

    async def run(self) -> None:
        try:
            with self.scope:
                self.conn = await self._pool.get_conn(self._address)
        except (UpstreamUnavailable, PoolExhausted) as error:
            self.error = error
        finally:
            self.done.set()

    async def result(self) -> PoolConn:
        await self.done.wait()
        assert self.conn is not None, self.error
        return self.conn

    async def problem(self) -> str:
        await self.done.wait()
        assert isinstance(self.error, UpstreamUnavailable)
        return self.error.message


async def waiters(nursery: trio.Nursery, pool: Pool, address: str, count: int) -> list[Waiter]:
    """So many calls that wait, in this order."""
    made = []
    for _ in range(count):
        waiter = Waiter(pool, address)
        nursery.start_soon(waiter.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not waiter.done.is_set()
        made.append(waiter)
    return made


# ------------------------------------------------------------------------------------------------- dials, places


def test_a_cold_burst_of_a_hundred_calls_dials_five_times() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            taken = await leases(pool, upstream.address, 100)
            assert len(upstream.connections) == 5
            assert sorted(conn.streams for conn in set(taken)) == [20] * 5

    run(test)


def test_a_thousand_calls_at_once_are_fifty_connections_of_twenty_streams() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            calls = [(conn, conn.open_stream(REQUEST)) for conn in await leases(pool, upstream.address, 1000)]
            await upstream.until(lambda: sum(len(conn.open) for conn in upstream.connections) == 1000)
            assert [conn.peak for conn in upstream.connections] == [20] * 50
            # Each ends, and another one takes its place.
            for conn, stream in calls:
                stream.reset(ErrorCode.CANCEL)
                conn.close()
                (await pool.get_conn(upstream.address)).open_stream(REQUEST)
            await upstream.until(lambda: sum(len(conn.open) for conn in upstream.connections) == 1000)
            assert [conn.peak for conn in upstream.connections] == [20] * 50

    run(test)


def test_a_place_on_an_established_connection_is_had_without_waiting() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            with pytest.raises(StopIteration) as answer:
                pool.get_conn(upstream.address).send(None)
            assert answer.value.value is conn

    run(test)


def test_nowait_answers_the_newest_connection_if_it_has_room_and_never_dials() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=2, max_waiting=2) as (pool, upstream):
            assert pool.get_conn_nowait(upstream.address) is None
            assert not pool.stats()
            conn = await pool.get_conn(upstream.address)
            assert pool.get_conn_nowait(upstream.address) is conn
            assert conn.streams == 2
            assert pool.get_conn_nowait(upstream.address) is None
            conn.close()
            conn.close()
            assert pool.get_conn_nowait(upstream.address) is conn
            await (await upstream.connected(1))[0].close()
            assert pool.get_conn_nowait(upstream.address) is None
        assert pool.get_conn_nowait(upstream.address) is None

    run(test)


def test_a_call_beyond_the_size_gets_a_connection_of_its_own_which_goes_with_it() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=1) as (pool, upstream):
            kept, extra = sorted(await leases(pool, upstream.address, 2), key=lambda conn: not conn.pooled)
            await upstream.connected(2)
            assert pool.stats()[upstream.address] == PoolStats(with_room=1, busy=0, idle=0, waiting=0)
            extra.close()
            await upstream.until(lambda: len(upstream.live) == 1)
            kept.close()
            assert pool.stats()[upstream.address] == IDLE
            assert await pool.get_conn(upstream.address) is kept

    run(test)


def test_a_connection_beyond_the_size_is_kept_if_there_is_room_when_it_is_released() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=1) as (pool, upstream):
            kept, extra = sorted(await leases(pool, upstream.address, 2), key=lambda conn: not conn.pooled)
            kept.err = ConnectionGone("enough of it")
            kept.close()
            extra.close()
            await upstream.until(lambda: len(upstream.live) == 1)
            assert await pool.get_conn(upstream.address) is extra

    run(test)


def test_a_pool_of_no_size_keeps_nothing() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=0) as (pool, upstream):
            first, second = await leases(pool, upstream.address, 2)
            assert first is not second
            first.close()
            second.close()
            await upstream.until(lambda: len(upstream.connections) == 2 and not upstream.live)

    run(test)


def test_ms_below_one_counts_as_one_and_idle_below_zero_as_zero() -> None:
    async def test() -> None:
        async with pool_and_upstream(ms=-3, idle=-1) as (pool, upstream):
            first, second = await leases(pool, upstream.address, 2)
            assert first is not second
            first.close()
            second.close()
            await upstream.until(lambda: len(upstream.connections) == 2 and not upstream.live)

    run(test)


def test_with_a_ttl_of_zero_a_connection_serves_those_who_shared_its_dial_and_nobody_else() -> None:
    async def test() -> None:
        async with pool_and_upstream(ttl=0) as (pool, upstream):
            first, second = await leases(pool, upstream.address, 2)
            assert first is second
            third = await pool.get_conn(upstream.address)
            assert third is not first
            for conn in (first, second, third):
                conn.close()
            await upstream.until(lambda: len(upstream.connections) == 2 and not upstream.live)

    run(test)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": -1},
        {"ttl": -0.1},
        {"ttl": float("nan")},
        {"dial_timeout_s": 0},
        {"dial_timeout_s": float("nan")},
        {"max_waiting": -1},
        {"size": 0, "max_waiting": 5},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a pool"):
        Pool(**settings)


def test_a_pool_has_to_be_open_and_is_opened_once() -> None:
    async def test() -> None:
        pool = Pool()
        with pytest.raises(ConfigError, match="async with Pool"):
            await pool.get_conn("127.0.0.1:1")
        async with pool:
            with pytest.raises(ConfigError, match="open already"):
                await pool.__aenter__()
        with pytest.raises(ConfigError, match="async with Pool"):
            await pool.get_conn("127.0.0.1:1")
        async with pool:  # one after the other is fine
            pass

    run(test)


def test_a_bad_address_is_refused_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with Pool() as pool:
            with pytest.raises(ConfigError, match="HOST:PORT"):
                await pool.get_conn("no-port")
            assert pool.stats() == {}

    run(test)


def test_only_what_was_taken_can_be_released_and_only_where_it_was_taken() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream), Pool() as other:
            conn = await pool.get_conn(upstream.address)
            with pytest.raises(ValueError, match="no connection of this pool"):
                other.release(upstream.address, conn, None)
            with pytest.raises(ValueError, match="no connection of this pool"):
                pool.release("127.0.0.1:1", conn, None)
            assert conn.streams == 1
            conn.close()
            with pytest.raises(ValueError, match="more often than it was taken"):
                conn.close()
            assert pool.stats()[upstream.address] == IDLE

    run(test)


# ------------------------------------------------------------------------------------------------------- the line


def test_those_in_line_are_served_first_come_first_served() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=3) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            line = await waiters(nursery, pool, upstream.address, 3)
            for waiter in line:
                conn.close()
                assert await waiter.result() is conn
            conn.close()
            assert pool.stats()[upstream.address] == IDLE
            assert len(upstream.connections) == 1

    run(test)


def test_several_places_go_to_as_many_in_line() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(1, size=1, max_waiting=5) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            await pool.get_conn(upstream.address)
            line = await waiters(nursery, pool, upstream.address, 5)
            await (await upstream.connected(1))[0].allow(4)
            for waiter in line[:3]:
                await waiter.result()
            await trio.testing.wait_all_tasks_blocked()
            assert not line[3].done.is_set()
            nursery.cancel_scope.cancel()

    run(test)


def test_nobody_gets_ahead_of_those_in_line() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            (first,) = await waiters(nursery, pool, upstream.address, 1)
            conn.close()
            newcomer = pool.get_conn(upstream.address)
            newcomer.send(None)  # in the same moment, before the first one has run
            assert await first.result() is conn
            newcomer.close()

    run(test)


def test_nobody_gets_ahead_when_the_connection_has_gone() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            await pool.get_conn(upstream.address)
            line = await waiters(nursery, pool, upstream.address, 2)
            await (await upstream.connected(1))[0].close()
            fresh = await line[0].result()
            assert fresh.has_room
            assert not line[1].done.is_set()
            fresh.close()
            assert await line[1].result() is fresh

    run(test)


def test_a_full_line_turns_calls_away_at_once() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            (first,) = await waiters(nursery, pool, upstream.address, 1)
            with pytest.raises(PoolExhausted, match=r"none of the 1 connections .* 1 calls wait"):
                await pool.get_conn(upstream.address)
            conn.close()
            await first.result()

    run(test)


def test_a_line_for_nobody_still_lets_calls_wait_for_a_dial() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=2, max_waiting=0) as (pool, upstream):
            await leases(pool, upstream.address, 2)
            with pytest.raises(PoolExhausted):
                await pool.get_conn(upstream.address)

    run(test)


def test_whoever_gives_up_leaves_the_line() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            first, second = await waiters(nursery, pool, upstream.address, 2)
            first.scope.cancel()
            await first.done.wait()
            assert pool.stats()[upstream.address].waiting == 1
            conn.close()
            assert await second.result() is conn

    run(test)


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_a_place_given_to_one_who_gives_up_in_that_moment_is_not_lost(cancelled_first: bool) -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            first, second = await waiters(nursery, pool, upstream.address, 2)
            if cancelled_first:
                first.scope.cancel()
                conn.close()
            else:
                conn.close()
                first.scope.cancel()
            await first.done.wait()
            if first.conn is not None:
                first.conn.close()
            assert await second.result() is conn
            conn.close()
            assert pool.stats()[upstream.address] == IDLE

    run(test)


def test_a_call_that_trades_its_place_does_not_block_the_place_it_holds() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, max_waiting=5) as (pool, upstream):
            runs, waits = await leases(pool, upstream.address, 2)
            stream = runs.open_stream(REQUEST)
            await (await upstream.connected(1))[0].allow(1)
            assert not waits.has_room
            async with trio.open_nursery() as nursery:

                async def trade() -> None:
                    assert await waits.again() is runs
                    waits.close()

                nursery.start_soon(trade)
                await trio.testing.wait_all_tasks_blocked()
                assert pool.stats()[upstream.address].waiting == 1
                stream.reset(ErrorCode.CANCEL)
                runs.close()
            assert runs.streams == 1
            assert runs.has_room

    run(test)


def test_a_call_that_trades_its_place_may_get_the_same_one_again() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=1, max_waiting=0) as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            with pytest.raises(PoolExhausted):
                await pool.get_conn(upstream.address)
            assert await conn.again() is conn
            conn.close()
            assert conn.streams == 1

    run(test)


def test_a_call_that_trades_its_place_does_not_get_ahead_either() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            (first,) = await waiters(nursery, pool, upstream.address, 1)
            order: list[str] = []

            async def trade() -> None:
                await conn.again()
                conn.close()
                order.append("trader")

            nursery.start_soon(trade)
            await first.result()
            order.append("first")
            conn.close()
            while len(order) < 2:
                await trio.lowlevel.checkpoint()
            assert order == ["first", "trader"]

    run(test)


def test_a_call_that_cannot_trade_its_place_still_holds_the_old_one() -> None:
    async def test() -> None:
        async with pool_and_upstream(1, size=1, max_waiting=0) as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            await (await upstream.connected(1))[0].allow(0)
            with pytest.raises(PoolExhausted):
                await conn.again()
            assert conn.streams == 1
            conn.close()

    run(test)


def test_the_last_call_that_leaves_a_draining_connection_for_another_one_closes_it() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            leaves, ill = await leases(pool, upstream.address, 2)
            pool.release(upstream.address, ill, ConnectionGone("it looked ill"))
            assert await leaves.again() is not leaves
            await upstream.connections[0].gone()
            leaves.close()
            assert pool.stats()[upstream.address] == PoolStats(with_room=1, busy=0, idle=0, waiting=0)

    run(test)


def test_a_crowd_of_calls_that_come_and_give_up_loses_no_place() -> None:
    async def test() -> None:
        rng = random.Random(7)
        served = 0
        async with pool_and_upstream(3, size=2, ms=5, max_waiting=1000) as (pool, upstream):

            async def call() -> None:
                nonlocal served
                patience, work = rng.randrange(1, 40), rng.randrange(10)
                with trio.CancelScope() as scope:
                    nursery.start_soon(give_up, scope, patience)
                    conn = await pool.get_conn(upstream.address)
                    try:
                        stream = conn.open_stream(REQUEST)
                        for _ in range(work):
                            await trio.lowlevel.checkpoint()
                        served += 1
                    finally:
                        stream.reset(ErrorCode.CANCEL)
                        conn.close()

            async def give_up(scope: trio.CancelScope, patience: int) -> None:
                for _ in range(patience):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            for _ in range(20):
                async with trio.open_nursery() as nursery:
                    for _ in range(50):
                        nursery.start_soon(call)
                stats = pool.stats()[upstream.address]
                assert (stats.with_room + stats.busy, stats.waiting) == (stats.idle, 0)
            assert served > 100
            assert max(conn.peak for conn in upstream.connections) <= 3
            assert len(upstream.live) <= 2
            # Every place is there.
            count = 3 * len(upstream.live)
            assert len(set(await leases(pool, upstream.address, count))) == len(upstream.live)

    run(test)


# -------------------------------------------------------------------------------------------------- shared dials


def test_all_who_share_a_dial_hear_that_it_failed() -> None:
    async def test() -> None:
        with deaf_port() as address:
            async with Pool() as pool, trio.open_nursery() as nursery:
                callers = [Waiter(pool, address) for _ in range(30)]
                for caller in callers:
                    nursery.start_soon(caller.run)
                for caller in callers:
                    assert "Connection refused" in await caller.problem()

    run(test)


def test_one_who_gives_up_does_not_take_the_dial_from_the_others() -> None:
    async def test() -> None:
        async with pool_and_upstream(silent=True) as (pool, upstream), trio.open_nursery() as nursery:
            first, second = await waiters(nursery, pool, upstream.address, 2)
            await upstream.until(lambda: len(upstream.connections) == 1)
            first.scope.cancel()
            await first.done.wait()
            await upstream.connections[0].greet()
            conn = await second.result()
            assert conn.streams == 1

    run(test)


def test_one_who_has_left_a_dial_takes_and_gives_back_no_place_on_the_connection() -> None:
    async def test() -> None:
        async with pool_and_upstream(1, silent=True) as (pool, upstream), trio.open_nursery() as nursery:
            first, second, leaves = await waiters(nursery, pool, upstream.address, 3)
            await upstream.until(lambda: len(upstream.connections) == 1)
            leaves.scope.cancel()
            await leaves.done.wait()
            upstream.silent = False
            await upstream.connections[0].greet()
            conns = [await first.result(), await second.result()]
            assert [conn.streams for conn in conns] == [1, 1]
            assert conns[0] is not conns[1]
            assert len(upstream.connections) == 2

    run(test)


def test_a_dial_to_a_peer_that_allowed_nothing_last_time_still_has_a_place_for_one() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(0, size=1, max_waiting=0) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            hopeless = Waiter(pool, upstream.address)
            nursery.start_soon(hopeless.run)
            (peer,) = await upstream.connected(1)
            await peer.close()
            assert "next try in" in await hopeless.problem()
            clock.jump(1.3)
            upstream.silent, upstream.max_concurrent_streams = True, 1
            (leaves,) = await waiters(nursery, pool, upstream.address, 1)
            leaves.scope.cancel()
            await leaves.done.wait()
            (stays,) = await waiters(nursery, pool, upstream.address, 1)
            await upstream.until(lambda: len(upstream.connections) == 2)
            await upstream.connections[1].greet()
            await stays.result()

    run_with_clock(test)


def test_a_dial_that_nobody_waits_for_any_more_is_given_up_if_no_idle_connection_is_wanted() -> None:
    async def test() -> None:
        async with pool_and_upstream(silent=True, idle=0) as (pool, upstream), trio.open_nursery() as nursery:
            callers = await waiters(nursery, pool, upstream.address, 2)
            await upstream.until(lambda: len(upstream.connections) == 1)
            for caller in callers:
                caller.scope.cancel()
            await upstream.connections[0].gone()
            await nothing_left(pool)

    run(test)


def test_a_dial_that_nobody_waits_for_any_more_becomes_an_idle_connection_if_one_is_wanted() -> None:
    async def test() -> None:
        async with pool_and_upstream(silent=True) as (pool, upstream), trio.open_nursery() as nursery:
            (caller,) = await waiters(nursery, pool, upstream.address, 1)
            await upstream.until(lambda: len(upstream.connections) == 1)
            caller.scope.cancel()
            await caller.done.wait()
            await upstream.connections[0].greet()
            await upstream.connected(1)
            assert pool.stats()[upstream.address] == IDLE
            conn = await pool.get_conn(upstream.address)
            assert (conn.streams, len(upstream.connections)) == (1, 1)

    run(test)


def test_a_dial_of_its_own_that_its_call_does_not_wait_for_is_given_up() -> None:
    async def test() -> None:
        async with pool_and_upstream(silent=True, size=0) as (pool, upstream), trio.open_nursery() as nursery:
            (caller,) = await waiters(nursery, pool, upstream.address, 1)
            await upstream.until(lambda: len(upstream.connections) == 1)
            caller.scope.cancel()
            await upstream.connections[0].gone()

    run(test)


def test_a_place_left_on_a_dial_goes_to_the_first_in_line() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(silent=True, size=1, ms=1, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            shares, stands = await waiters(nursery, pool, upstream.address, 2)
            await upstream.until(lambda: len(upstream.connections) == 1)
            shares.scope.cancel()
            await shares.done.wait()
            await upstream.connections[0].greet()
            await stands.result()
            assert len(upstream.connections) == 1

    run(test)


def test_where_the_peer_allows_fewer_than_share_the_dial_the_first_get_it_and_the_others_come_next() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(3, silent=True) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            callers = await waiters(nursery, pool, upstream.address, 8)
            await upstream.until(lambda: len(upstream.connections) == 1)
            upstream.silent = False
            await upstream.connections[0].greet()
            conns = [await caller.result() for caller in callers]
            # Once it is known what the peer allows, no more share a dial.
            assert [conn.streams for conn in conns] == [3, 3, 3, 3, 3, 3, 2, 2]
            assert [conns.index(conn) for conn in conns] == [0, 0, 0, 3, 3, 3, 6, 6]
            assert len(upstream.connections) == 3

    run(test)


class Steps(trio.abc.Instrument):
    """Cancels a scope before its task's nth step."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()

    def after_io_wait(self, timeout: float) -> None:
        # The task may never step again by itself: cancel while it waits as well.
        if self.task is not None and self.left == 1:
            self.scope.cancel()


@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("settings", [{}, {"size": 0}, {"size": 1, "ms": 1, "max_waiting": 9}, {"idle": 0}])
def test_a_call_cancelled_at_any_moment_leaves_no_lease_behind(step: int, settings: dict[str, Any]) -> None:
    async def test() -> None:
        async with pool_and_upstream(1, **settings) as (pool, upstream):
            instrument = Steps(step)
            trio.lowlevel.add_instrument(instrument)
            taken: list[PoolConn] = []

            async def call() -> None:
                instrument.task = trio.lowlevel.current_task()
                with instrument.scope:
                    for _ in range(2):
                        conn = await pool.get_conn(upstream.address)
                        taken.append(conn)
                        try:
                            await trio.lowlevel.checkpoint()
                        finally:
                            conn.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                nursery.start_soon(leases, pool, upstream.address, 1)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            trio.lowlevel.remove_instrument(instrument)
            await trio.testing.wait_all_tasks_blocked()
            leased = {conn for conn in taken if conn.streams}
            assert sum(conn.streams for conn in leased) <= 1  # the other call's
            for stats in pool.stats().values():
                assert stats.with_room + stats.busy - stats.idle <= 1
                assert stats.waiting == 0

    run(test)


# ------------------------------------------------------------------------------------------- the peer's SETTINGS


def test_a_limit_lowered_to_nothing_stops_new_calls_and_one_raised_lets_those_in_line_through() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await pool.get_conn(upstream.address)
            conn.open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            await peer.allow(0)
            line = await waiters(nursery, pool, upstream.address, 2)
            await peer.allow(1)  # the running stream is the one
            await trio.testing.wait_all_tasks_blocked()
            assert not line[0].done.is_set()
            await peer.allow(3)
            for waiter in line:
                assert await waiter.result() is conn
            assert len(peer.open) == 1  # it ran all the time

    run(test)


def test_where_there_is_no_line_a_lowered_limit_means_another_connection() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            await (await upstream.connected(1))[0].allow(1)
            assert await pool.get_conn(upstream.address) is not conn

    run(test)


def test_a_connection_of_its_own_on_which_no_stream_is_allowed_is_closed() -> None:
    async def test() -> None:
        async with pool_and_upstream(0, size=0) as (pool, upstream):
            with pytest.raises(UpstreamUnavailable, match="allows no streams at present"):
                await pool.get_conn(upstream.address)
            await upstream.connections[0].gone()

    run(test)


def test_a_lease_tells_how_long_a_header_list_the_peer_takes() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            (peer,) = await upstream.connected(1)
            await peer.announce({SettingsFrame.MAX_HEADER_LIST_SIZE: 4096})
            assert conn.peer_max_header_list_bytes == 4096

    run(test)


def test_an_upstream_that_allows_no_streams_is_not_dialled_again_and_again() -> None:
    async def test() -> None:
        async with pool_and_upstream(0) as (pool, upstream):
            for _ in range(5):
                with pytest.raises(UpstreamUnavailable, match="allows no streams at present"):
                    await pool.get_conn(upstream.address)
            assert len(upstream.connections) == 1
            await upstream.connections[0].allow(1)
            upstream.max_concurrent_streams = 1
            await leases(pool, upstream.address, 2)  # dialling works again, too
            assert len(upstream.connections) == 2

    run(test)


def test_in_line_an_upstream_that_allows_no_streams_is_waited_for() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(0, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            caller = Waiter(pool, upstream.address)
            nursery.start_soon(caller.run)
            (peer,) = await upstream.connected(1)
            assert not caller.done.is_set()
            await peer.allow(1)
            await caller.result()

    run(test)


# ------------------------------------------------------------------------------------------ the end of connections


def test_an_error_lets_the_other_streams_finish_and_the_connection_takes_no_more() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            good, bad = await leases(pool, upstream.address, 2)
            assert good is bad
            stream = good.open_stream(REQUEST)
            pool.release(upstream.address, bad, ConnectionGone("it looked ill"))
            fresh = await pool.get_conn(upstream.address)
            assert fresh is not good
            await upstream.until(lambda: len(upstream.connections[0].open) == 1)
            await upstream.connections[0].answer(stream.id)
            assert dict(await stream.inbox.wait_response())[b"grpc-status"] == b"0"
            good.close()
            await upstream.connections[0].gone()
            assert not upstream.connections[1].ended

    run(test)


def test_goaway_lets_streams_finish_while_new_calls_go_elsewhere() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            old = await pool.get_conn(upstream.address)
            stream = old.open_stream(REQUEST, end_stream=True)
            (peer,) = await upstream.connected(1)
            await peer.go_away()
            assert "restart" in str(old.err)
            with pytest.raises(UpstreamUnavailable, match="restart"):
                old.open_stream(REQUEST)
            assert await pool.get_conn(upstream.address) is not old
            await peer.answer(stream.id)
            assert dict(await stream.inbox.wait_response())[b"grpc-status"] == b"0"
            await peer.gone()
            old.close()
            assert pool.stats()[upstream.address] == PoolStats(with_room=1, busy=0, idle=0, waiting=0)

    run(test)


def test_goaway_on_an_idle_connection_closes_it_at_once() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            (await pool.get_conn(upstream.address)).close()
            await (await upstream.connected(1))[0].go_away()
            await upstream.connections[0].gone()
            await nothing_left(pool)

    run(test)


def test_a_busy_connection_that_goes_away_frees_its_place_for_the_line() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            old = await pool.get_conn(upstream.address)
            (waiter,) = await waiters(nursery, pool, upstream.address, 1)
            assert pool.stats()[upstream.address].busy == 1
            await (await upstream.connected(1))[0].go_away()  # no stream is open on it: it closes
            assert await waiter.result() is not old
            old.close()
            assert pool.stats()[upstream.address] == PoolStats(with_room=1, busy=0, idle=0, waiting=0)

    run(test)


def test_the_death_of_a_connection_is_noticed_when_it_happens() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            stream = conn.open_stream(REQUEST)
            await upstream.until(lambda: bool(upstream.connections[0].open))
            await upstream.connections[0].close()
            with pytest.raises(UpstreamUnavailable, match="is lost"):
                await stream.inbox.wait_response()
            assert pool.explain(upstream.address) == [f"there is no connection to {upstream.address}"]
            assert repr(conn) == f"<PoolConn {upstream.address} shut down, 1 streams>"
            conn.close()

    run(test)


def test_an_idle_connection_is_closed_as_its_ttl_passes() -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(ttl=60) as (pool, upstream):
            (await pool.get_conn(upstream.address)).close()
            clock.jump(59)
            (await pool.get_conn(upstream.address)).close()
            assert len(upstream.connections) == 1
            clock.jump(1.1)
            await upstream.connections[0].gone()
            await nothing_left(pool)

    run_with_clock(test)


def test_a_connection_past_its_ttl_lets_its_calls_finish_and_takes_no_more() -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(ttl=60) as (pool, upstream):
            old = await pool.get_conn(upstream.address)
            clock.jump(60.1)
            assert await pool.get_conn(upstream.address) is not old
            assert not upstream.connections[0].ended
            assert old.has_room
            old.close()
            await upstream.connections[0].gone()

    run_with_clock(test)


def test_the_ttl_counts_from_when_the_connection_is_established() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(silent=True, ttl=60, dial_timeout_s=30) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            (caller,) = await waiters(nursery, pool, upstream.address, 1)
            await upstream.until(lambda: len(upstream.connections) == 1)
            clock.jump(9)  # within the time for the handshake
            await upstream.connections[0].greet()
            conn = await caller.result()
            clock.jump(55)
            assert await pool.get_conn(upstream.address) is conn

    run_with_clock(test)


def test_no_more_idle_connections_are_kept_than_wanted() -> None:
    async def test() -> None:
        async with pool_and_upstream(ms=1, idle=2) as (pool, upstream):
            for conn in await leases(pool, upstream.address, 5):
                conn.close()
            await upstream.until(lambda: len(upstream.live) == 2)
            assert pool.stats()[upstream.address].idle == 2

    run(test)


def test_closing_the_pool_ends_its_connections_and_leases_can_still_be_given_back() -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            await nursery.start(upstream.serve)
            async with Pool() as pool:
                conn = await pool.get_conn(upstream.address)
            await upstream.connections[0].gone()
            conn.close()
            assert pool.stats() == {}
            nursery.cancel_scope.cancel()

    run(test)


def test_closing_the_pool_fails_those_who_wait_wherever_they_wait() -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            upstream.silent = True
            await nursery.start(upstream.serve)
            async with Pool(size=1, ms=1, max_waiting=1) as pool:
                shares, stands = await waiters(nursery, pool, upstream.address, 2)
            assert await shares.problem() == "the pool is closed"
            assert await stands.problem() == "the pool is closed"
            nursery.cancel_scope.cancel()

    run(test)


# ------------------------------------------------------------------------------------------------ Unix, TLS


def test_a_unix_socket_is_an_address_like_any_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            await nursery.start(upstream.serve, str(tmp_path / "upstream"))
            async with Pool() as pool:
                conn = await pool.get_conn(upstream.address)
                assert conn.address == f"unix:{tmp_path}/upstream"
                conn.open_stream(REQUEST)
                await upstream.until(lambda: bool(upstream.connections[0].open))
            nursery.cancel_scope.cancel()

    run(test)


def test_connections_are_told_apart_by_their_tls_configuration() -> None:
    trustme = pytest.importorskip("trustme")

    async def test() -> None:
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.set_alpn_protocols(["h2"])
        authority.issue_cert("127.0.0.1").configure_cert(server)
        contexts = [ssl.create_default_context() for _ in range(2)]
        for context in contexts:
            context.set_alpn_protocols(["h2"])
            authority.configure_trust(context)
        async with trio.open_nursery() as nursery:
            upstream = Upstream(tls=server)
            await nursery.start(upstream.serve)
            async with Pool() as pool:
                address = upstream.address
                one, other, same = [
                    await pool.get_conn(address, ssl_context=context) for context in (*contexts, contexts[0])
                ]
                assert one is same
                assert one is not other
                assert await other.again() is other
                assert pool.stats()[address] == PoolStats(with_room=2, busy=0, idle=0, waiting=0)
                assert pool.explain(address, ssl_context=contexts[0]) == ["has room: 2 of 20 streams"]
                assert pool.explain(address) == [f"there is no connection to {address}"]
                with pytest.raises(UpstreamUnavailable):
                    await pool.get_conn(address)  # it speaks TLS only
            nursery.cancel_scope.cancel()

    run(test)


# --------------------------------------------------------------------------- upstreams that misbehave, and backoff


@asynccontextmanager
async def listener(
    answer: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[tuple[str, list[int]]]:
    """Something that listens and is no gRPC server; the list grows by one for each connection it gets."""
    accepted: list[int] = []

    async def serve(stream: trio.SocketStream) -> None:
        accepted.append(1)
        async with stream:
            await answer(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        )
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", accepted
        nursery.cancel_scope.cancel()


async def speak_http1(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    await trio.sleep_forever()


async def speak_mysql(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\x4a\0\0\0\x0a8.0.36\0" + bytes(60))
    await trio.sleep_forever()


async def refuse_plaintext(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"\x15\x03\x03\0\x02\x02\x2f")


async def close_at_once(stream: trio.SocketStream) -> None:
    pass


async def say_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def go_away_at_once(stream: trio.SocketStream) -> None:
    settings = bytes.fromhex("000000 04 00 00000000")
    goaway = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")
    await stream.send_all(settings + goaway)
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (speak_http1, r"^UNAVAILABLE: 127\.0\.0\.1:[0-9]+: answered with HTTP/1.1, not HTTP/2"),
        (
            speak_mysql,
            r"^UNAVAILABLE: 127\.0\.0\.1:[0-9]+: does not speak HTTP/2: it begins with 4a 00 00 00 0a",
        ),
        (refuse_plaintext, r"^UNAVAILABLE: 127\.0\.0\.1:[0-9]+: speaks TLS, and is dialled in plaintext"),
        (close_at_once, "closed the connection|reset"),
        (go_away_at_once, "GOAWAY"),
    ],
)
def test_an_upstream_that_is_no_use_is_a_failed_dial_and_says_why(
    answer: Callable[[trio.SocketStream], Awaitable[None]], message: str
) -> None:
    async def test() -> None:
        async with listener(answer) as (address, accepted), Pool() as pool:
            for _ in range(3):
                with pytest.raises(UpstreamUnavailable, match=message):
                    await pool.get_conn(address)
            assert len(accepted) == 1

    run(test)


def test_an_upstream_that_says_nothing_is_given_up_after_the_dial_timeout() -> None:
    async def test(clock: Clock) -> None:
        async with (
            listener(say_nothing) as (address, accepted),
            Pool(dial_timeout_s=3) as pool,
            trio.open_nursery() as nursery,
        ):
            callers = await waiters(nursery, pool, address, 2)
            while not accepted:
                await trio.lowlevel.checkpoint()
            clock.jump(2.5)
            await trio.testing.wait_all_tasks_blocked()
            assert not callers[0].done.is_set()
            clock.jump(0.6)
            for caller in callers:
                assert (
                    "accepts connections but says nothing (no HTTP/2 SETTINGS within 3 s)"
                    in await caller.problem()
                )
            assert pool.explain(address)[0].startswith("dialling pauses")

    run_with_clock(test)


def test_calls_fail_fast_until_the_backoff_is_over_and_the_pauses_grow() -> None:
    async def test(clock: Clock) -> None:
        async with listener(close_at_once) as (address, accepted), Pool() as pool:

            async def fails() -> None:
                with pytest.raises(UpstreamUnavailable):
                    await pool.get_conn(address)

            await fails()
            for dials, shortest in enumerate((0.8, 0.8 * 1.6, 0.8 * 1.6**2), start=1):
                clock.jump(shortest - 0.3)
                with pytest.raises(UpstreamUnavailable, match=r"\(next try in [0-9.]+ s\)"):
                    await pool.get_conn(address)
                assert len(accepted) == dials
                clock.jump(shortest * 0.5 + 0.3)
                await fails()
                assert len(accepted) == dials + 1

    run_with_clock(test)


def test_a_pause_is_never_longer_than_two_minutes_and_a_fifth() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool() as pool:
                pauses = []
                for _ in range(14):
                    with pytest.raises(UpstreamUnavailable):
                        await pool.get_conn(address)
                    (line,) = pool.explain(address)
                    pauses.append(float(line.split()[3]))
                    clock.jump(pauses[-1] + 0.1)
                assert 0.7 < pauses[0] < 1.3
                assert all(95 < pause <= 144 for pause in pauses[-3:])
                assert len(set(pauses[-3:])) > 1  # jitter

    run_with_clock(test)


def test_dials_that_fail_together_count_once() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(ms=1) as pool, trio.open_nursery() as nursery:
                callers = [Waiter(pool, address) for _ in range(20)]
                for caller in callers:
                    nursery.start_soon(caller.run)
                for caller in callers:
                    await caller.problem()
                (line,) = pool.explain(address)
                assert float(line.split()[3]) <= 1.2

    run_with_clock(test)


def test_after_the_backoff_one_dial_tries_for_all() -> None:
    async def test(clock: Clock) -> None:
        async with listener(close_at_once) as (address, accepted), Pool(ms=1) as pool:
            with pytest.raises(UpstreamUnavailable):
                await pool.get_conn(address)
            clock.jump(1.3)
            async with trio.open_nursery() as nursery:
                callers = [Waiter(pool, address) for _ in range(50)]
                for caller in callers:
                    nursery.start_soon(caller.run)
            assert all(caller.error for caller in callers)
            assert len(accepted) == 2

    run_with_clock(test)


def test_when_the_one_dial_succeeds_all_who_waited_for_it_are_served_and_the_backoff_is_forgotten() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(ms=2) as pool, trio.open_nursery() as nursery:
                with pytest.raises(UpstreamUnavailable):
                    await pool.get_conn(address)
                upstream = Upstream()
                port = int(address.rpartition(":")[2])
                await nursery.start(upstream.serve, None, port)
                clock.jump(1.3)
                taken = await leases(pool, address, 6)
                assert len(upstream.connections) == 3
                assert len(taken) == 6
                assert [line.split()[0] for line in pool.explain(address)] == ["full:"] * 3
                upstream.refuse = True
                with pytest.raises(UpstreamUnavailable):
                    await pool.get_conn(address)
                assert float(pool.explain(address)[-1].split()[3]) <= 1.2  # the first pause again
                nursery.cancel_scope.cancel()

    run_with_clock(test)


def test_who_stands_in_line_waits_out_the_backoff_as_long_as_there_are_connections() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(1, size=2, max_waiting=3) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            first = await pool.get_conn(upstream.address)
            upstream.refuse = True
            line = await waiters_at_once(nursery, pool, upstream, 2)
            # The dial for the first of them has failed. It heard so; the second stands in line.
            await line[0].problem()
            upstream.refuse = False
            await trio.testing.wait_all_tasks_blocked()
            assert not line[1].done.is_set()
            clock.jump(1.3)
            second = await line[1].result()
            assert second is not first

    run_with_clock(test)


def test_who_stands_in_line_fails_when_the_last_connection_goes_and_dialling_pauses() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(1, size=2, max_waiting=3) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            await pool.get_conn(upstream.address)
            upstream.refuse = True
            line = await waiters_at_once(nursery, pool, upstream, 2)
            await line[0].problem()
            await upstream.connections[0].close()
            assert "next try in" in await line[1].problem()

    run(test)


async def waiters_at_once(nursery: trio.Nursery, pool: Pool, upstream: Upstream, count: int) -> list[Waiter]:
    """So many calls that ask in this order, before anything has come over the network."""
    made = []
    for _ in range(count):
        waiter = Waiter(pool, upstream.address)
        nursery.start_soon(waiter.run)
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        made.append(waiter)
    return made


def test_the_end_of_the_last_connection_does_not_make_the_backoff_forgotten() -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(1, idle=0, rng=NoJitter()) as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
            upstream.refuse = True
            with pytest.raises(UpstreamUnavailable):
                await pool.get_conn(upstream.address)
            clock.jump(1.3)
            conn.close()
            await upstream.connections[0].gone()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(UpstreamUnavailable):
                await pool.get_conn(upstream.address)
            (line,) = pool.explain(upstream.address)
            assert float(line.split()[3]) > 1.2  # the second pause is 1.6 s

    run_with_clock(test)


def test_an_upstream_that_nobody_uses_any_more_is_forgotten() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with pool_and_upstream(idle=0) as (pool, upstream):
                (await pool.get_conn(upstream.address)).close()
                await upstream.connections[0].gone()
                with pytest.raises(UpstreamUnavailable):
                    await pool.get_conn(address)
                while len(pool.stats()) > 1:
                    await trio.lowlevel.checkpoint()
                assert list(pool.stats()) == [address]  # its backoff has to be remembered
                clock.jump(1.3)
                await trio.testing.wait_all_tasks_blocked()
                assert list(pool.stats()) == [address]
                clock.jump(121)
                await nothing_left(pool)

    run_with_clock(test)


# ------------------------------------------------------------------------------------------------------- explain


def test_the_pool_explains_why_each_connection_would_be_passed_over() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(ttl=60, ms=2, size=4, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            address = upstream.address
            assert pool.explain(address) == [f"there is no connection to {address}"]
            await leases(pool, address, 2)
            clock.jump(61)
            (await pool.get_conn(address)).open_stream(REQUEST)
            await upstream.connected(2)
            await upstream.connections[1].go_away()
            await leases(pool, address, 2)
            upstream.silent = True
            await waiters(nursery, pool, address, 3)
            assert pool.explain(address) == [
                "connecting: 2 of 2 streams",
                "draining: 1 of 2 streams",
                "past its ttl: 2 of 2 streams",
                "full: 2 of 2 streams",
                "calls that stand in line: 1",
            ]
            nursery.cancel_scope.cancel()

    run_with_clock(test)


def test_an_error_in_the_block_of_a_pool_leaves_it_as_it_is() -> None:
    async def main() -> None:
        with pytest.raises(LookupError, match="mine"):
            async with Pool():
                raise LookupError("mine")
        with trio.move_on_after(0) as scope:
            async with Pool():
                await trio.sleep_forever()
        assert scope.cancelled_caught

    trio.run(main)
