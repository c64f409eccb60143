"""A pool whose connections are bounded in all, whatever the addresses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.errors import ConfigError, PoolExhausted
from rawgrpc_proxy.upstream.lease import PoolConn
from rawgrpc_proxy.upstream.pool import Pool
from tests.upstream.backend import Upstream, deaf_port, run


@asynccontextmanager
async def pool_and_upstreams(**settings: Any) -> AsyncIterator[tuple[Pool, str, str]]:
    """A pool of one call a connection, and two upstreams."""
    one, two = Upstream(), Upstream()
    async with trio.open_nursery() as nursery:
        await nursery.start(one.serve)
        await nursery.start(two.serve)
        async with Pool(ms=1, idle=0, **settings) as pool:
            yield pool, one.address, two.address
        nursery.cancel_scope.cancel()


def test_without_a_line_a_call_beyond_the_bound_is_refused_with_its_number_and_its_name() -> None:
    async def test() -> None:
        async with pool_and_upstreams(max_connections=2) as (pool, one, two):
            conns = [await pool.get_conn(one), await pool.get_conn(two)]
            for address in (one, two):
                with pytest.raises(PoolExhausted, match=r"all 2 connections .* \(max_connections;"):
                    await pool.get_conn(address)
            conns.pop().close()
            while two in pool.stats():
                await trio.lowlevel.checkpoint()
            conns.append(await pool.get_conn(two))
            for conn in conns:
                conn.close()

    run(test)


def test_with_a_line_a_call_waits_for_a_connection_to_any_address_to_end() -> None:
    async def test() -> None:
        async with (
            pool_and_upstreams(max_connections=1, max_waiting=1) as (pool, one, two),
            trio.open_nursery() as nursery,
        ):
            first = await pool.get_conn(one)
            got: list[PoolConn] = []

            async def wait() -> None:
                got.append(await pool.get_conn(two))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.stats()[two].waiting == 1
            with pytest.raises(PoolExhausted, match="max_connections"):
                await pool.get_conn(two)
            first.close()
            while not got:
                await trio.testing.wait_all_tasks_blocked(0.001)
            got[0].close()

    run(test)


def test_a_bound_of_none_at_all_is_no_bound() -> None:
    with pytest.raises(ConfigError, match="max_connections >= 1"):
        Pool(max_connections=0)


@pytest.mark.parametrize("max_waiting", [None, 10])
def test_connections_that_nobody_uses_make_room_for_other_addresses(max_waiting: int | None) -> None:
    async def test() -> None:
        one, two = Upstream(), Upstream()
        async with trio.open_nursery() as nursery:
            await nursery.start(one.serve)
            await nursery.start(two.serve)
            async with Pool(ms=1, max_connections=3, max_waiting=max_waiting) as pool:
                conns = [await pool.get_conn(one.address) for _ in range(3)]
                while len(conns) > 1:
                    conns.pop().close()
                got: list[PoolConn] = []

                async def call() -> None:
                    got.append(await pool.get_conn(two.address))

                with trio.fail_after(5):
                    async with trio.open_nursery() as calls:
                        calls.start_soon(call)
                        calls.start_soon(call)
                assert [connection.ended for connection in one.connections].count(False) == 1
                assert len(two.live) == 2
                for conn in [*conns, *got]:
                    conn.close()
            nursery.cancel_scope.cancel()

    run(test)


def test_a_call_whose_dial_has_failed_does_not_wait_for_a_connection_of_others() -> None:
    async def test() -> None:
        one = Upstream()
        async with trio.open_nursery() as nursery:
            await nursery.start(one.serve)
            with deaf_port() as deaf:
                async with Pool(ms=1, max_connections=1) as pool:

                    async def call() -> None:
                        with pytest.raises(PoolExhausted, match="max_connections"):
                            await pool.get_conn(deaf)

                    async with trio.open_nursery() as calls:
                        calls.start_soon(call)
                        while not pool.explain(deaf)[0].startswith("dialling pauses"):
                            await trio.lowlevel.checkpoint()
                        conn = await pool.get_conn(one.address)
                    conn.close()
            nursery.cancel_scope.cancel()

    run(test)
