"""The pool over real sockets: dials, places, the line, and upstreams that misbehave."""

import contextlib
import gc
import random
import resource
import socket
import ssl
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hyperframe.frame import SettingsFrame

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.config import ENGINES, Engine, Http2Settings
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionGone,
    PoolExhausted,
    ProxyError,
    ProxyFault,
    RpcError,
    Side,
    UpstreamUnavailable,
)
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.net.inbox import Inbox
from rawgrpc_proxy.net.tls_files import upstream_context
from rawgrpc_proxy.upstream.call_total import CallTotal
from rawgrpc_proxy.upstream.lease import PoolConn
from rawgrpc_proxy.upstream.pool import Pool, PoolStats
from rawgrpc_proxy.upstream.pooled import PooledConnection
from tests.upstream.backend import REQUEST, Clock, Upstream, deaf_port, run, run_with_clock

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


HELD: list[PoolConn] = []
"""Leases of the test that runs: one that is dropped is given back."""


@pytest.fixture(autouse=True)
def _hold() -> Iterator[None]:
    yield
    HELD.clear()


async def lease(pool: Pool, address: str, **tls: Any) -> PoolConn:
    """A lease that is not dropped, whatever the test does with it."""
    return held(await pool.get_conn(address, **tls))


def held(conn: PoolConn | None) -> PoolConn:
    """This lease, which is not dropped either."""
    assert conn is not None
    HELD.append(conn)
    return conn


async def leases(pool: Pool, address: str, count: int) -> list[PoolConn]:
    """So many leases, asked for at the same time."""
    taken: list[PoolConn] = []

    async def take() -> None:
        taken.append(await lease(pool, address))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(take)
    return taken


async def becomes_idle(pool: Pool, address: str) -> None:
    """Wait until there is one connection to `address`, which nobody uses."""
    while pool.stats()[address] != IDLE:
        await trio.lowlevel.checkpoint()


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
                self.conn = await lease(self._pool, self._address)
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
            assert sorted(conn.streams for conn in {conn.shared for conn in taken}) == [20] * 5

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
                (await lease(pool, upstream.address)).open_stream(REQUEST)
            await upstream.until(lambda: sum(len(conn.open) for conn in upstream.connections) == 1000)
            assert [conn.peak for conn in upstream.connections] == [20] * 50

    run(test)


def test_a_place_on_an_established_connection_is_had_without_waiting() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await lease(pool, upstream.address)
            with pytest.raises(StopIteration) as answer:
                pool.get_conn(upstream.address).send(None)
            assert held(answer.value.value).shared is conn.shared

    run(test)


def test_nowait_answers_the_newest_connection_if_it_has_room_and_never_dials() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=2, max_waiting=2) as (pool, upstream):
            assert pool.get_conn_nowait(upstream.address) is None
            assert not pool.stats()
            conn = await lease(pool, upstream.address)
            second = held(pool.get_conn_nowait(upstream.address))
            assert second.shared is conn.shared
            assert conn.streams == 2
            assert pool.get_conn_nowait(upstream.address) is None
            conn.close()
            second.close()
            assert held(pool.get_conn_nowait(upstream.address)).shared is conn.shared
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
            assert (await lease(pool, upstream.address)).shared is kept.shared

    run(test)


def test_a_connection_beyond_the_size_is_kept_if_there_is_room_when_it_is_released() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=1) as (pool, upstream):
            kept, extra = sorted(await leases(pool, upstream.address, 2), key=lambda conn: not conn.pooled)
            kept.err = ConnectionGone("enough of it")
            kept.close()
            extra.close()
            await upstream.until(lambda: len(upstream.live) == 1)
            assert (await lease(pool, upstream.address)).shared is extra.shared

    run(test)


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy has no reference counts")
def test_connections_that_have_ended_are_freed_without_the_garbage_collector() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=0, ms=1) as (pool, upstream):
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    conn = await pool.get_conn(upstream.address)
                    conn.close()
                    await upstream.until(lambda: not upstream.live)
                del conn
                await trio.testing.wait_all_tasks_blocked()
                left = [thing for thing in gc.get_objects() if type(thing) is PooledConnection]
            finally:
                gc.enable()
            assert not left

    run(test)


def test_a_pool_of_no_size_keeps_nothing() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=0) as (pool, upstream):
            first, second = await leases(pool, upstream.address, 2)
            assert first.shared is not second.shared
            first.close()
            second.close()
            await upstream.until(lambda: len(upstream.connections) == 2 and not upstream.live)

    run(test)


def test_ms_below_one_counts_as_one_and_idle_below_zero_as_zero() -> None:
    async def test() -> None:
        async with pool_and_upstream(ms=-3, idle=-1) as (pool, upstream):
            first, second = await leases(pool, upstream.address, 2)
            assert first.shared is not second.shared
            first.close()
            second.close()
            await upstream.until(lambda: len(upstream.connections) == 2 and not upstream.live)

    run(test)


def test_with_a_ttl_of_zero_a_connection_serves_those_who_shared_its_dial_and_nobody_else() -> None:
    async def test() -> None:
        async with pool_and_upstream(ttl=0) as (pool, upstream):
            first, second = await leases(pool, upstream.address, 2)
            assert first.shared is second.shared
            third = await lease(pool, upstream.address)
            assert third.shared is not first.shared
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
            await lease(pool, "127.0.0.1:1")
        async with pool:
            with pytest.raises(ConfigError, match="open already"):
                await pool.__aenter__()
        with pytest.raises(ConfigError, match="async with Pool"):
            await lease(pool, "127.0.0.1:1")
        async with pool:  # one after the other is fine
            pass

    run(test)


def test_a_bad_address_is_refused_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with Pool() as pool:
            with pytest.raises(ConfigError, match="HOST:PORT"):
                await lease(pool, "no-port")
            assert pool.stats() == {}

    run(test)


def test_only_what_was_taken_can_be_released_and_only_where_it_was_taken() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream), Pool() as other:
            conn = await lease(pool, upstream.address)
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
            conn = await lease(pool, upstream.address)
            line = await waiters(nursery, pool, upstream.address, 3)
            for waiter in line:
                conn.close()
                assert (await waiter.result()).shared is conn.shared
                conn = await waiter.result()
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
            await lease(pool, upstream.address)
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
            conn = await lease(pool, upstream.address)
            (first,) = await waiters(nursery, pool, upstream.address, 1)
            conn.close()
            newcomer = pool.get_conn(upstream.address)
            # In the same moment, before the first one has run.
            with trio.move_on_after(0):
                await newcomer
            assert (await first.result()).shared is conn.shared

    run(test)


def test_nobody_gets_ahead_when_the_connection_has_gone() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            await lease(pool, upstream.address)
            line = await waiters(nursery, pool, upstream.address, 2)
            await (await upstream.connected(1))[0].close()
            fresh = await line[0].result()
            assert fresh.has_room
            assert not line[1].done.is_set()
            fresh.close()
            assert (await line[1].result()).shared is fresh.shared

    run(test)


def test_a_full_line_turns_calls_away_at_once() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await lease(pool, upstream.address)
            (first,) = await waiters(nursery, pool, upstream.address, 1)
            with pytest.raises(PoolExhausted, match=r"none of the 1 connections .* 1 calls wait"):
                await lease(pool, upstream.address)
            conn.close()
            await first.result()

    run(test)


def test_a_line_for_nobody_still_lets_calls_wait_for_a_dial() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=2, max_waiting=0) as (pool, upstream):
            await leases(pool, upstream.address, 2)
            with pytest.raises(PoolExhausted):
                await lease(pool, upstream.address)

    run(test)


def test_whoever_gives_up_leaves_the_line() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await lease(pool, upstream.address)
            first, second = await waiters(nursery, pool, upstream.address, 2)
            first.scope.cancel()
            await first.done.wait()
            assert pool.stats()[upstream.address].waiting == 1
            conn.close()
            assert (await second.result()).shared is conn.shared

    run(test)


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_a_place_given_to_one_who_gives_up_in_that_moment_is_not_lost(cancelled_first: bool) -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await lease(pool, upstream.address)
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
            assert (await second.result()).shared is conn.shared
            (await second.result()).close()
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
                    assert held(await waits.again()).shared is runs.shared
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
            conn = await lease(pool, upstream.address)
            with pytest.raises(PoolExhausted):
                await lease(pool, upstream.address)
            assert held(await conn.again()).shared is conn.shared
            conn.close()
            assert conn.streams == 1

    run(test)


def test_a_call_that_trades_its_place_does_not_get_ahead_either() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=1, ms=1, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await lease(pool, upstream.address)
            (first,) = await waiters(nursery, pool, upstream.address, 1)
            order: list[str] = []

            async def trade() -> None:
                held(await conn.again())
                conn.close()
                order.append("trader")

            nursery.start_soon(trade)
            served = await first.result()
            order.append("first")
            served.close()
            while len(order) < 2:
                await trio.lowlevel.checkpoint()
            assert order == ["first", "trader"]

    run(test)


def test_a_call_that_cannot_trade_its_place_still_holds_the_old_one() -> None:
    async def test() -> None:
        async with pool_and_upstream(1, size=1, max_waiting=0) as (pool, upstream):
            conn = await lease(pool, upstream.address)
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
            assert held(await leaves.again()).shared is not leaves.shared
            leaves.close()
            await upstream.connections[0].gone()
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
                    conn = await lease(pool, upstream.address)
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
            taken = await leases(pool, upstream.address, count)
            assert len({conn.shared for conn in taken}) == len(upstream.live)

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
            assert conns[0].shared is not conns[1].shared
            assert len(upstream.connections) == 2

    run(test)


def test_a_dial_to_a_peer_that_allowed_nothing_last_time_still_has_a_place_for_one() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(0, size=1, max_waiting=0, connect_wait_s=0) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            hopeless = Waiter(pool, upstream.address)
            nursery.start_soon(hopeless.run)
            (peer,) = await upstream.connected(1)
            await peer.close()
            assert "next try in" in await hopeless.problem()
            clock.jump(31)  # nobody asks any more, and the pool forgets its trouble
            await nothing_left(pool)
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
            await becomes_idle(pool, upstream.address)
            await upstream.connected(1)
            conn = await lease(pool, upstream.address)
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


def test_a_dial_that_is_given_up_after_another_has_failed_leaves_no_trouble_behind() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(silent=True, size=0, ms=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):

            def pauses() -> bool:
                return any(line.startswith("dialling pauses") for line in pool.explain(upstream.address))

            upstream.refuse_next = 1
            callers = await waiters_at_once(nursery, pool, upstream, 2)
            while not pauses():
                await trio.lowlevel.checkpoint()
            while pauses():
                await trio.lowlevel.checkpoint()
            await upstream.until(lambda: len(upstream.connections) == 1)
            await trio.testing.wait_all_tasks_blocked()
            upstream.silent = False
            for caller in callers:
                caller.scope.cancel()
            await upstream.until(lambda: len(upstream.connections) == 2)
            await nothing_left(pool)

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
            shared = [conn.shared for conn in conns]
            assert [shared.index(conn) for conn in shared] == [0, 0, 0, 3, 3, 3, 6, 6]
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
                        conn = await lease(pool, upstream.address)
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
            leased = {conn.shared for conn in taken if conn.streams}
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
            conn = await lease(pool, upstream.address)
            conn.open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            await peer.allow(0)
            line = await waiters(nursery, pool, upstream.address, 2)
            await peer.allow(1)  # the running stream is the one
            await trio.testing.wait_all_tasks_blocked()
            assert not line[0].done.is_set()
            await peer.allow(3)
            for waiter in line:
                assert (await waiter.result()).shared is conn.shared
            assert len(peer.open) == 1  # it ran all the time

    run(test)


def test_where_there_is_no_line_a_lowered_limit_means_another_connection() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await lease(pool, upstream.address)
            await (await upstream.connected(1))[0].allow(1)
            assert (await lease(pool, upstream.address)).shared is not conn.shared

    run(test)


def test_a_connection_of_its_own_on_which_no_stream_is_allowed_is_closed() -> None:
    async def test() -> None:
        async with pool_and_upstream(0, size=0) as (pool, upstream):
            with pytest.raises(UpstreamUnavailable, match="allows no streams at present"):
                await lease(pool, upstream.address)
            await upstream.connections[0].gone()

    run(test)


def test_a_lease_tells_how_long_a_header_list_the_peer_takes() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await lease(pool, upstream.address)
            (peer,) = await upstream.connected(1)
            await peer.announce({SettingsFrame.MAX_HEADER_LIST_SIZE: 4096})
            assert conn.peer_max_header_list_bytes == 4096

    run(test)


def test_an_upstream_that_allows_no_streams_is_not_dialled_again_and_again() -> None:
    async def test() -> None:
        async with pool_and_upstream(0, connect_wait_s=0.2) as (pool, upstream):
            with pytest.raises(UpstreamUnavailable, match="allows no streams at present"):
                await lease(pool, upstream.address)
            # One was dialled at once, in vain, and closed again; the next comes 0.25 s after that.
            assert len(upstream.connections) == 2
            await upstream.connections[1].gone()
            await upstream.connections[0].allow(1)
            upstream.max_concurrent_streams = 1
            await leases(pool, upstream.address, 2)  # dialling works again, too
            assert len(upstream.live) == 2

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
            assert good.shared is bad.shared
            stream = good.open_stream(REQUEST)
            pool.release(upstream.address, bad, ConnectionGone("it looked ill"))
            fresh = await lease(pool, upstream.address)
            assert fresh.shared is not good.shared
            await upstream.until(lambda: len(upstream.connections[0].open) == 1)
            await upstream.connections[0].answer(stream.id)
            assert await stream.inbox.receive() is None
            assert (b"grpc-status", b"0") in (stream.inbox.trailers_received or ())
            good.close()
            await upstream.connections[0].gone()
            assert not upstream.connections[1].ended

    run(test)


def test_goaway_lets_streams_finish_while_new_calls_go_elsewhere() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            old = await lease(pool, upstream.address)
            stream = old.open_stream(REQUEST, end_stream=True)
            (peer,) = await upstream.connected(1)
            await peer.go_away()
            assert "restart" in str(old.err)
            with pytest.raises(UpstreamUnavailable, match="restart"):
                old.open_stream(REQUEST)
            assert (await lease(pool, upstream.address)).shared is not old.shared
            await peer.answer(stream.id)
            assert await stream.inbox.receive() is None
            assert (b"grpc-status", b"0") in (stream.inbox.trailers_received or ())
            await peer.gone()
            old.close()
            assert pool.stats()[upstream.address] == PoolStats(with_room=1, busy=0, idle=0, waiting=0)

    run(test)


def test_goaway_on_an_idle_connection_closes_it_at_once() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            (await lease(pool, upstream.address)).close()
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
            old = await lease(pool, upstream.address)
            (waiter,) = await waiters(nursery, pool, upstream.address, 1)
            assert pool.stats()[upstream.address].busy == 1
            await (await upstream.connected(1))[0].go_away()  # no stream is open on it: it closes
            assert (await waiter.result()).shared is not old.shared
            old.close()
            assert pool.stats()[upstream.address] == PoolStats(with_room=1, busy=0, idle=0, waiting=0)

    run(test)


def test_the_death_of_a_connection_is_noticed_when_it_happens() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await lease(pool, upstream.address)
            stream = conn.open_stream(REQUEST)
            await upstream.until(lambda: bool(upstream.connections[0].open))
            await upstream.connections[0].close()
            with pytest.raises(UpstreamUnavailable, match="is lost"):
                await stream.inbox.receive()
            assert pool.explain(upstream.address) == [f"there is no connection to {upstream.address}"]
            assert repr(conn) == f"<PoolConn {upstream.address} shut down, 1 streams>"
            conn.close()

    run(test)


def test_connections_that_end_together_for_too_many_pings_double_the_keepalive_once() -> None:
    async def test() -> None:
        async with pool_and_upstream(ms=1) as (pool, upstream):
            target = pool.target(upstream.address)
            for _ in range(2):
                for conn in await leases(pool, upstream.address, 3):
                    conn.open_stream(REQUEST)
                for peer in await upstream.connected(3):
                    await peer.go_away(error_code=ErrorCode.ENHANCE_YOUR_CALM, debug=b"too_many_pings")
                    await peer.close()
                while target._connections:
                    await trio.lowlevel.checkpoint()
            assert target.keepalive_s == 4 * Http2Settings().upstream_keepalive_s

    run(test)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_connection_that_owes_the_answer_to_a_ping_gets_new_calls_only_when_it_has_come(
    engine: Engine,
) -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(settings=Http2Settings(engine=engine)) as (pool, upstream):
            old = await lease(pool, upstream.address)
            old.open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            clock.jump(20)
            await upstream.until(lambda: peer.pinged is not None)
            assert pool.explain(upstream.address) == ["owes the answer to a PING: 1 of 0 streams"]
            new = await lease(pool, upstream.address)
            assert new.shared is not old.shared
            await peer.pong()
            while pool.stats()[upstream.address].busy:
                await trio.lowlevel.checkpoint()
            assert (await lease(pool, upstream.address)).shared is old.shared

    run_with_clock(test)


def test_in_line_a_connection_that_owes_the_answer_to_a_ping_is_waited_for() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(size=1, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            old = await lease(pool, upstream.address)
            old.open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            clock.jump(20)
            await upstream.until(lambda: peer.pinged is not None)
            (caller,) = await waiters(nursery, pool, upstream.address, 1)
            assert pool.stats()[upstream.address].waiting == 1
            await peer.pong()
            assert (await caller.result()).shared is old.shared

    run_with_clock(test)


@pytest.mark.parametrize("limits", [{"size": 1, "max_waiting": 0}, {"max_connections": 1}])
def test_where_a_call_would_be_refused_a_connection_that_owes_the_answer_to_a_ping_is_good_enough(
    limits: dict[str, Any],
) -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(ms=2, **limits) as (pool, upstream):
            old = await lease(pool, upstream.address)
            old.open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            clock.jump(20)
            await upstream.until(lambda: peer.pinged is not None)
            assert (await lease(pool, upstream.address)).shared is old.shared
            with pytest.raises(PoolExhausted):
                await lease(pool, upstream.address)

    run_with_clock(test)


def test_an_idle_connection_is_closed_as_its_ttl_passes() -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(ttl=60) as (pool, upstream):
            (await lease(pool, upstream.address)).close()
            clock.jump(59)
            (await lease(pool, upstream.address)).close()
            assert len(upstream.connections) == 1
            clock.jump(1.1)
            await upstream.connections[0].gone()
            await nothing_left(pool)

    run_with_clock(test)


def test_a_connection_past_its_ttl_lets_its_calls_finish_and_takes_no_more() -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(ttl=60) as (pool, upstream):
            old = await lease(pool, upstream.address)
            clock.jump(60.1)
            assert (await lease(pool, upstream.address)).shared is not old.shared
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
            assert (await lease(pool, upstream.address)).shared is conn.shared

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
                conn = await lease(pool, upstream.address)
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
                conn = await lease(pool, upstream.address)
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
                    await lease(pool, address, ssl_context=context) for context in (*contexts, contexts[0])
                ]
                assert one.shared is same.shared
                assert one.shared is not other.shared
                again = held(await other.again())
                assert pool.stats()[address] == PoolStats(with_room=3, busy=0, idle=0, waiting=0)
                assert pool.explain(address, ssl_context=contexts[0]) == ["has room: 2 of 20 streams"]
                assert len(pool.explain(address, ssl_context=contexts[1])) == 2
                assert again.shared is not other.shared
                assert pool.explain(address) == [f"there is no connection to {address}"]
                with pytest.raises(UpstreamUnavailable):
                    await lease(pool, address)  # it speaks TLS only
            nursery.cancel_scope.cancel()

    run(test)


def test_connections_are_told_apart_by_the_name_that_was_checked_where_there_is_tls() -> None:
    async def test() -> None:
        context = ssl.create_default_context()
        pool = Pool()
        orders, again, bills = (
            pool.target("127.0.0.1:1", ssl_context=context, server_name=name)
            for name in ("orders.internal", "orders.internal", "bills.internal")
        )
        assert orders is again
        assert orders is not bills
        assert pool.target("127.0.0.1:1", server_name="orders.internal") is pool.target("127.0.0.1:1")

    run(test)


def test_the_name_of_a_target_is_that_which_its_upstream_has_to_have() -> None:
    trustme = pytest.importorskip("trustme")

    async def test() -> None:
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.set_alpn_protocols(["h2"])
        authority.issue_cert("orders.internal").configure_cert(server)
        context = upstream_context()
        authority.configure_trust(context)
        async with trio.open_nursery() as nursery:
            upstream = Upstream(tls=server)
            await nursery.start(upstream.serve)
            async with Pool(connect_wait_s=0) as pool:
                address = upstream.address
                conn = await lease(pool, address, ssl_context=context, server_name="orders.internal")
                conn.close()
                with pytest.raises(UpstreamUnavailable, match="for another name"):
                    await lease(pool, address, ssl_context=context, server_name="bills.internal")
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
        async with listener(answer) as (address, accepted), Pool(connect_wait_s=0) as pool:
            with pytest.raises(UpstreamUnavailable, match=message):
                await lease(pool, address)
            assert accepted

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


async def pause_of(pool: Pool, address: str) -> float:
    """The pause after the dial that fails next, or has just failed."""
    while True:
        for line in pool.explain(address):
            if line.startswith("dialling pauses for "):
                return float(line.split()[3])
        await trio.lowlevel.checkpoint()


def test_one_dial_that_is_reset_fails_no_call() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            upstream.refuse_next = 1
            started = trio.current_time()
            conns = await leases(pool, upstream.address, 50)
            assert len({conn.shared for conn in conns}) == 3
            assert trio.current_time() - started < 0.5

    run(test)


@pytest.mark.parametrize("away_s", [5, 30, 90])
def test_the_first_call_succeeds_within_five_seconds_of_the_backends_return(away_s: int) -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(connect_wait_s=0) as pool, trio.open_nursery() as nursery:

                async def ask() -> bool:
                    """A call, two of them a second."""
                    try:
                        await lease(pool, address)
                    except UpstreamUnavailable:
                        clock.jump(0.5)
                        await trio.testing.wait_all_tasks_blocked()
                        return False
                    return True

                while trio.current_time() < away_s:
                    assert not await ask()
                upstream = Upstream()
                await nursery.start(upstream.serve, None, int(address.rpartition(":")[2]))
                back = trio.current_time()
                while not await ask():
                    pass
                assert trio.current_time() - back <= 5
                nursery.cancel_scope.cancel()

    run_with_clock(test)


def test_the_next_dial_comes_at_once_and_the_later_ones_after_pauses_that_grow() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(connect_wait_s=0, rng=NoJitter()) as pool:
                clock.trio_clock.rate = 0  # a busy machine would make what is left of a pause shorter
                pauses = []
                for _ in range(8):
                    with pytest.raises(
                        UpstreamUnavailable, match=r"Connection refused \(next try in [0-9.]+ s\)"
                    ):
                        await lease(pool, address)
                    pauses.append(await pause_of(pool, address))
                    clock.jump(pauses[-1] + 0.01)
                    await trio.testing.wait_all_tasks_blocked()
                assert pauses == pytest.approx([0.04, 0.25, 0.5, 1, 2, 3.3, 3.3, 3.3], abs=0.03)

    run_with_clock(test)


def test_a_pause_is_never_longer_than_four_seconds_and_never_twice_the_same() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(connect_wait_s=0) as pool:
                pauses = []
                for _ in range(14):
                    with pytest.raises(UpstreamUnavailable):
                        await lease(pool, address)
                    pauses.append(await pause_of(pool, address))
                    clock.jump(pauses[-1] + 0.01)
                    await trio.testing.wait_all_tasks_blocked()
                assert pauses[0] <= 0.05
                assert all(2.5 < pause <= 4 for pause in pauses[-5:])
                assert len(set(pauses[-5:])) > 1

    run_with_clock(test)


def test_a_dial_that_waited_for_an_answer_has_been_a_pause_itself() -> None:
    async def test(clock: Clock) -> None:
        async with (
            listener(say_nothing) as (address, accepted),
            Pool(rng=NoJitter()) as pool,
            trio.open_nursery() as nursery,
        ):
            await waiters(nursery, pool, address, 1)
            clock.trio_clock.rate = 0  # a busy machine would make what is left of a pause shorter
            pauses = []
            for dials in range(1, 7):
                while len(accepted) < dials:
                    await trio.lowlevel.checkpoint()
                clock.jump(3.01)
                pauses.append(await pause_of(pool, address))
                clock.jump(pauses[-1] + 0.01)
            assert pauses == pytest.approx([0.04, 0.04, 0.04, 0.04, 0.04, 0.3], abs=0.05)

    run_with_clock(test)


def test_a_call_waits_for_the_next_dials_as_long_as_it_may_and_then_fails_with_the_cause() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(connect_wait_s=1.5) as pool, trio.open_nursery() as nursery:
                (caller,) = await waiters(nursery, pool, address, 1)
                clock.jump(1.3)
                await trio.testing.wait_all_tasks_blocked()
                assert not caller.done.is_set()
                clock.jump(0.3)
                assert "Connection refused" in await caller.problem()

    run_with_clock(test)


def test_under_a_hard_cap_as_many_calls_wait_for_the_next_dials_as_these_would_serve() -> None:
    async def test() -> None:
        with deaf_port() as address:
            async with (
                Pool(size=1, ms=2, max_waiting=1, connect_wait_s=60) as pool,
                trio.open_nursery() as nursery,
            ):
                await waiters(nursery, pool, address, 1)
                await pause_of(pool, address)
                await waiters(nursery, pool, address, 2)
                with pytest.raises(PoolExhausted, match="3 calls wait already"):
                    await lease(pool, address)
                nursery.cancel_scope.cancel()

    run(test)


def test_an_error_that_cannot_be_described_is_taken_all_the_same() -> None:
    class Odd(Exception):
        def __repr__(self) -> str:
            raise ZeroDivisionError

        __str__ = __repr__

    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await lease(pool, upstream.address)
            pool.release(upstream.address, conn, Odd())
            await upstream.connections[0].gone()

    run(test)


def test_dials_that_fail_together_count_once() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(ms=1, connect_wait_s=0) as pool, trio.open_nursery() as nursery:
                callers = [Waiter(pool, address) for _ in range(20)]
                for caller in callers:
                    nursery.start_soon(caller.run)
                for caller in callers:
                    await caller.problem()
                # Counted one by one: above two seconds. On a busy machine the next dial may have failed as well.
                assert await pause_of(pool, address) <= 1.0

    run_with_clock(test)


def test_while_dialling_fails_there_is_one_dial_at_a_time_however_many_calls_wait() -> None:
    async def test(clock: Clock) -> None:
        answers = [close_at_once, say_nothing]

        async def answer(stream: trio.SocketStream) -> None:
            await (answers.pop(0) if answers else say_nothing)(stream)

        async with (
            listener(answer) as (address, accepted),
            Pool(ms=1, connect_wait_s=0) as pool,
            trio.open_nursery() as nursery,
        ):
            with pytest.raises(UpstreamUnavailable):
                await lease(pool, address)
            clock.jump(0.06)
            while len(accepted) < 2:
                await trio.lowlevel.checkpoint()
            callers = [Waiter(pool, address) for _ in range(50)]
            for caller in callers:
                nursery.start_soon(caller.run)
            for caller in callers:
                assert "closed the connection" in await caller.problem()
            clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
            assert len(accepted) == 2

    run_with_clock(test)


def test_when_a_dial_succeeds_all_who_waited_for_it_are_served_and_the_trouble_is_forgotten() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with Pool(ms=2, connect_wait_s=5) as pool, trio.open_nursery() as nursery:
                callers = await waiters(nursery, pool, address, 6)
                upstream = Upstream()
                await nursery.start(upstream.serve, None, int(address.rpartition(":")[2]))
                clock.jump(1)
                for caller in callers:
                    await caller.result()
                assert len(upstream.connections) == 3
                assert [line.split()[0] for line in pool.explain(address)] == ["full:"] * 3
                upstream.refuse = True
                (_,) = await waiters(nursery, pool, address, 1)
                assert await pause_of(pool, address) <= 0.05  # the first pause again
                nursery.cancel_scope.cancel()

    run_with_clock(test)


def test_what_was_dialled_for_nobody_is_kept_if_an_idle_connection_is_wanted() -> None:
    async def test(clock: Clock, idle: int) -> None:
        with deaf_port() as address:
            async with Pool(idle=idle, connect_wait_s=0) as pool, trio.open_nursery() as nursery:
                with pytest.raises(UpstreamUnavailable):
                    await lease(pool, address)
                upstream = Upstream()
                await nursery.start(upstream.serve, None, int(address.rpartition(":")[2]))
                clock.jump(1)
                if idle:
                    await becomes_idle(pool, address)
                else:
                    await upstream.until(lambda: bool(upstream.connections))
                    await upstream.connections[0].gone()
                    await lease(pool, address)
                nursery.cancel_scope.cancel()

    for idle in (1, 0):
        run_with_clock(partial(test, idle=idle))


def test_who_stands_in_line_waits_out_the_pauses_as_long_as_there_are_connections() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(1, size=2, max_waiting=3, connect_wait_s=0) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            first = await lease(pool, upstream.address)
            upstream.refuse = True
            line = await waiters_at_once(nursery, pool, upstream, 2)
            await pause_of(pool, upstream.address)
            clock.jump(30)
            await trio.testing.wait_all_tasks_blocked()
            assert not line[0].done.is_set()
            upstream.refuse = False
            clock.jump(5)
            second = await line[0].result()
            assert second.shared is not first.shared
            first.close()
            assert (await line[1].result()).shared is first.shared

    run_with_clock(test)


def test_who_stands_in_line_fails_when_the_last_connection_goes_and_dialling_pauses() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(1, size=2, max_waiting=3, connect_wait_s=0) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            await lease(pool, upstream.address)
            upstream.refuse = True
            line = await waiters_at_once(nursery, pool, upstream, 2)
            await pause_of(pool, upstream.address)
            await upstream.connections[0].close()
            for waiter in line:
                assert "closed the connection" in await waiter.problem()

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


def test_the_end_of_the_last_connection_does_not_make_the_trouble_forgotten() -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(1, idle=0, connect_wait_s=0) as (pool, upstream):
            conn = await lease(pool, upstream.address)
            upstream.refuse = True
            with pytest.raises(UpstreamUnavailable):
                await lease(pool, upstream.address)
            conn.close()
            await upstream.connections[0].gone()
            await trio.testing.wait_all_tasks_blocked()
            assert await pause_of(pool, upstream.address) > 0

    run_with_clock(test)


def test_an_upstream_that_nobody_uses_any_more_is_dialled_for_half_a_minute_and_forgotten() -> None:
    async def test(clock: Clock) -> None:
        with deaf_port() as address:
            async with pool_and_upstream(idle=0, connect_wait_s=0) as (pool, upstream):
                (await lease(pool, upstream.address)).close()
                await upstream.connections[0].gone()
                with pytest.raises(UpstreamUnavailable):
                    await lease(pool, address)
                while len(pool.stats()) > 1:
                    await trio.lowlevel.checkpoint()
                for _ in range(5):
                    clock.jump(5)
                    await trio.testing.wait_all_tasks_blocked()
                    assert list(pool.stats()) == [address]
                    await pause_of(pool, address)
                clock.jump(6)
                await nothing_left(pool)

    run_with_clock(test)


# ------------------------------------------------------------------------------------------------------- explain


def test_the_pool_explains_why_each_connection_would_be_passed_over() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(ttl=60, ms=2, size=2, max_waiting=1) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            address = upstream.address
            assert pool.explain(address) == [f"there is no connection to {address}"]
            await leases(pool, address, 2)
            clock.jump(61)
            (await lease(pool, address)).open_stream(REQUEST)
            await upstream.connected(2)
            await upstream.connections[1].go_away()
            await leases(pool, address, 2)
            upstream.silent = True
            await waiters(nursery, pool, address, 3)
            assert pool.explain(address) == [
                "connecting: 2 of 2 streams",
                "full: 2 of 2 streams",
                "draining: 1 of 2 streams",
                "past its ttl: 2 of 2 streams",
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


# -------------------------------------------------------------------------------------------------- faults, told of


class Heard:
    """A `PoolObserver` that keeps what it hears."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, ProxyError]] = []

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        self.failures.append((address, error))


class BrokenInbox(Inbox):
    """A sink with a fault in it."""

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        raise ZeroDivisionError("a fault of ours")


def test_a_fault_in_the_reader_of_an_upstream_ends_its_calls_with_internal_and_nothing_else() -> None:
    async def test() -> None:
        heard = Heard()
        async with pool_and_upstream(observer=heard) as (pool, upstream):
            ill, neighbour = await leases(pool, upstream.address, 2)
            broken = ill.open_stream(REQUEST)
            broken.sink = BrokenInbox(broken.connection, broken.id)
            other = neighbour.open_stream(REQUEST)
            await upstream.until(lambda: bool(upstream.live) and len(upstream.live[0].open) == 2)
            await upstream.live[0].answer(broken.id)
            with pytest.raises(RpcError, match="internal error in the proxy") as error:
                await other.inbox.receive()
            assert error.value.status is Status.INTERNAL
            neighbour.close()
            ill.close()
            fresh = await lease(pool, upstream.address)
            assert fresh.shared is not ill.shared
            ((address, failure),) = heard.failures
            assert address == upstream.address
            assert isinstance(failure, ProxyFault)
            assert isinstance(failure.__cause__, ZeroDivisionError)
            assert failure.__cause__.__traceback__ is not None

    run(test)


class BrokenNames(trio.abc.HostnameResolver):
    """A resolver of a user's, with a fault in it."""

    async def getaddrinfo(self, *_args: Any, **_more: Any) -> Any:
        raise KeyError("a fault of theirs")

    async def getnameinfo(self, *_args: Any) -> Any:
        raise NotImplementedError


def test_a_fault_in_a_dial_fails_its_calls_with_internal_and_the_pool_goes_on() -> None:
    async def test() -> None:
        heard = Heard()
        trio.socket.set_custom_hostname_resolver(BrokenNames())
        async with pool_and_upstream(observer=heard, connect_wait_s=0) as (pool, upstream):
            with pytest.raises(RpcError, match="internal error in the proxy") as error:
                await lease(pool, "backend:80")
            assert error.value.status is Status.INTERNAL
            assert isinstance(heard.failures[0][1].__cause__, KeyError)
            await lease(pool, upstream.address)

    run(test)


def test_the_observer_hears_of_failed_dials_and_of_calls_cut_off_and_of_no_orderly_end() -> None:
    async def test() -> None:
        heard = Heard()
        async with pool_and_upstream(observer=heard, connect_wait_s=0, idle=1) as (pool, upstream):
            conn = await lease(pool, upstream.address)
            stream = conn.open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            await upstream.until(lambda: bool(peer.open))
            await peer.go_away()
            await peer.answer(stream.id)
            conn.close()
            await peer.gone()
            (await lease(pool, upstream.address)).close()
            await (await upstream.connected(1))[0].close()
            await nothing_left(pool)
            assert not heard.failures

            (await lease(pool, upstream.address)).open_stream(REQUEST)
            (peer,) = await upstream.connected(1)
            await upstream.until(lambda: bool(peer.open))
            await peer.close()
            while not heard.failures:
                await trio.lowlevel.checkpoint()
            with deaf_port() as address:
                with pytest.raises(UpstreamUnavailable):
                    await lease(pool, address)
                assert heard.failures[1][0] == address
                assert "Connection refused" in heard.failures[1][1].message

    run(test)


# ------------------------------------------------------------------------- elsewhere, and places that count no more


def test_a_call_that_was_refused_gets_another_connection_which_is_dialled_if_need_be() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            refused = await lease(pool, upstream.address)
            elsewhere = held(await refused.again())
            assert elsewhere.shared is not refused.shared
            # Now that there is another one it is taken.
            third = held(await refused.again())
            assert third.shared is elsewhere.shared
            assert (refused.streams, elsewhere.streams) == (1, 2)

    run(test)


def test_a_refused_call_shares_the_dial_of_others_that_were_refused() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            refused = await leases(pool, upstream.address, 10)
            elsewhere: list[PoolConn] = []

            async def again(conn: PoolConn) -> None:
                elsewhere.append(held(await conn.again()))

            async with trio.open_nursery() as nursery:
                for conn in refused:
                    nursery.start_soon(again, conn)
            assert len({conn.shared for conn in elsewhere}) == 1
            assert len(upstream.connections) == 2

    run(test)


def test_a_refused_call_goes_back_where_it_came_from_if_nothing_else_can_be_had() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            refused = await lease(pool, upstream.address)
            upstream.refuse = True
            assert held(await refused.again()).shared is refused.shared

    run(test)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_connection_whose_stream_ids_are_used_up_is_replaced(engine: Engine) -> None:
    async def test() -> None:
        settings = Http2Settings(engine=engine)
        async with pool_and_upstream(size=1, max_waiting=1, settings=settings) as (pool, upstream):
            last = await lease(pool, upstream.address)
            connection = last.shared.connection
            assert connection is not None
            connection.session._next_id = 2**31 - 1
            stream = last.open_stream(REQUEST)
            assert stream.id == 2**31 - 1
            assert str(last.err) == "its stream ids are used up"
            fresh = await lease(pool, upstream.address)
            assert fresh.shared is not last.shared
            (old, _) = upstream.connections
            await upstream.until(lambda: bool(old.open))
            await old.answer(stream.id)
            assert await stream.inbox.receive() is None
            assert (b"grpc-status", b"0") in (stream.inbox.trailers_received or ())
            last.close()

    run(test)


@pytest.mark.parametrize("max_waiting", [None, 5])
def test_long_calls_on_connections_past_their_ttl_do_not_fill_the_pool(max_waiting: int | None) -> None:
    async def test(clock: Clock) -> None:
        async with pool_and_upstream(size=2, ttl=60, max_waiting=max_waiting) as (pool, upstream):
            watches = []
            for _ in range(4):
                watches.append(await lease(pool, upstream.address))
                watches[-1].open_stream(REQUEST)
                clock.jump(61)
            for _ in range(5):
                (await lease(pool, upstream.address)).close()
            assert len(upstream.connections) == 5
            for watch in watches:
                watch.close()
            await upstream.until(lambda: len(upstream.live) == 1)
            assert pool.stats()[upstream.address] == IDLE

    run_with_clock(test)


def test_who_stands_in_line_is_served_as_a_full_connection_passes_its_ttl_or_drains() -> None:
    async def test(clock: Clock) -> None:
        async with (
            pool_and_upstream(size=1, ms=1, ttl=60, max_waiting=2) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            (await lease(pool, upstream.address)).open_stream(REQUEST)
            first, second = await waiters(nursery, pool, upstream.address, 2)
            clock.jump(61)
            (await first.result()).open_stream(REQUEST)
            assert not second.done.is_set()
            peer = (await upstream.connected(2))[1]
            await upstream.until(lambda: bool(peer.open))
            await peer.go_away()
            await second.result()

    run_with_clock(test)


# ------------------------------------------------------------------------------------------------- file descriptors


@contextmanager
def no_descriptors_left(but: int = 0) -> Iterator[int]:
    """Nothing more can be opened `but` so many; answers the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/dev/fd").iterdir()) + 1
    spare = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                spare.append(socket.socket())
        for _ in range(but):
            spare.pop().close()
        yield highest
    finally:
        for sock in spare:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("but", [0, 1])
def test_out_of_descriptors_is_the_proxys_own_trouble_and_the_upstream_is_dialled_as_soon_as_there_are_some(
    but: int,
) -> None:
    async def test() -> None:
        heard = Heard()
        async with pool_and_upstream(connect_wait_s=0, observer=heard) as (pool, upstream):
            with (
                no_descriptors_left(but) as limit,
                pytest.raises(
                    UpstreamUnavailable, match=f"out of file descriptors, its limit is {limit};"
                ) as error,
            ):
                await lease(pool, upstream.address)
            assert error.value.side is Side.LOCAL
            assert heard.failures[0][1].side is Side.LOCAL
            for _ in range(30):
                # Only the dial that is due may be waited for, a tenth of a second: there is no backoff.
                with contextlib.suppress(UpstreamUnavailable):
                    await lease(pool, upstream.address)
                    break
                await trio.sleep(0.01)
            else:
                raise AssertionError

    run(test)


def test_calls_wait_for_descriptors_as_for_an_upstream() -> None:
    async def test() -> None:
        async with pool_and_upstream(connect_wait_s=5) as (pool, upstream), trio.open_nursery() as nursery:
            with no_descriptors_left():
                callers = await waiters(nursery, pool, upstream.address, 3)
                await pause_of(pool, upstream.address)
            for caller in callers:
                await caller.result()

    run(test)


def test_however_long_descriptors_are_missing_the_pauses_do_not_grow() -> None:
    async def test() -> None:
        heard = Heard()
        async with (
            pool_and_upstream(connect_wait_s=60, observer=heard) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            with no_descriptors_left():
                (caller,) = await waiters(nursery, pool, upstream.address, 1)
                while len(heard.failures) < 5:
                    await trio.testing.wait_all_tasks_blocked()
                assert await pause_of(pool, upstream.address) <= 0.1
            await caller.result()

    run(test)


def test_a_connection_of_its_own_goes_to_the_next_in_line_while_no_other_can_be_dialled() -> None:
    async def test() -> None:
        async with (
            pool_and_upstream(size=0, connect_wait_s=5) as (pool, upstream),
            trio.open_nursery() as nursery,
        ):
            conn = await lease(pool, upstream.address)
            with no_descriptors_left():
                (caller,) = await waiters(nursery, pool, upstream.address, 1)
                await pause_of(pool, upstream.address)
                conn.close()
                assert (await caller.result()).shared is conn.shared

    run(test)


# ---------------------------------------------------------------------------------------------- leases and targets


def drop(leases: list[PoolConn]) -> None:
    leases.clear()
    gc.collect()


def test_a_lease_that_is_dropped_is_given_back_with_a_warning() -> None:
    async def test() -> None:
        async with pool_and_upstream(size=1, ms=1, max_waiting=1) as (pool, upstream):
            leased = [await pool.get_conn(upstream.address)]
            with pytest.warns(ResourceWarning, match="was dropped: close what get_conn answers"):
                drop(leased)
            conn = await lease(pool, upstream.address)
            assert conn.streams == 1
            conn.close()

    run(test)


def test_a_lease_that_outlives_its_pool_is_dropped_without_a_word() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            conn = await pool.get_conn(upstream.address)
        del conn
        gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(test)


def test_there_is_one_target_for_an_address_and_it_holds_nothing() -> None:
    async def test() -> None:
        async with pool_and_upstream() as (pool, upstream):
            target = pool.target(upstream.address)
            assert pool.target(upstream.address) is target
            assert pool.target(upstream.address, ssl_context=ssl.create_default_context()) is not target
            assert (target.address, target.ssl_context, repr(target)) == (
                upstream.address,
                None,
                f"<Target {upstream.address}>",
            )
            assert pool.stats() == {}
            assert target.take_now() is None
            place = await target.take()
            assert target.take_now() is place
            place.give_back()
            place.give_back()
            await (await upstream.connected(1))[0].close()
            await nothing_left(pool)
            # It is forgotten, and the same all the same for who holds it.
            assert pool.target(upstream.address) is target
            (await target.take()).give_back()

    run(test)


def test_a_target_has_to_be_an_address_and_its_pool_open() -> None:
    async def test() -> None:
        pool = Pool()
        with pytest.raises(ConfigError, match="HOST:PORT"):
            pool.target("no-port")
        with pytest.raises(ConfigError, match="async with Pool"):
            await pool.target("127.0.0.1:1").take()

    run(test)


def test_a_total_has_the_calls_of_its_targets_however_they_come_and_go() -> None:
    async def main() -> None:
        async with pool_and_upstream(size=1, ms=1, max_waiting=1) as (pool, upstream):
            target, total = pool.target(upstream.address), CallTotal()
            first = await target.take()
            target.count_in(total)
            assert total.calls == 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(target.take)
                await trio.testing.wait_all_tasks_blocked()
                assert total.calls == 2
                with pytest.raises(PoolExhausted):
                    await target.take()
                assert total.calls == 2
                nursery.cancel_scope.cancel()
            assert total.calls == 1
            first.give_back()
            assert total.calls == 0
            second = await target.take()

            async def take_and_leave() -> None:
                (await target.take()).give_back()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_and_leave)
                await trio.testing.wait_all_tasks_blocked()
                assert total.calls == 2
                second.give_back()
            assert total.calls == target.calls == 0
            third = target.take_now()
            assert third is not None
            beyond = target.take_beyond_ms()
            assert total.calls == target.calls
            target.count_out(total)
            assert total.calls == 0
            third.give_back()
            if beyond is not None:
                beyond.give_back()
            assert total.calls == 0, "it counts there no more"

    run(main)
