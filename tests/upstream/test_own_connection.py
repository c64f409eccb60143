"""A connection for one call of the proxy's own: whatever becomes of it, nothing is left, and nobody is blamed."""

import pytest
import trio

from rawgrpc_proxy import Pool
from rawgrpc_proxy.errors import ProxyError, UpstreamUnavailable
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.upstream.own_connection import OwnConnection
from tests.upstream.backend import Upstream, run


class Failures(PoolObserver):
    def __init__(self) -> None:
        self.told: list[str] = []

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        self.told.append(str(error))


def test_an_upstream_that_allows_no_streams_is_told_as_that_and_not_as_a_lost_connection() -> None:
    async def test() -> None:
        upstream, failures = Upstream(max_concurrent_streams=0), Failures()
        async with trio.open_nursery() as nursery, Pool(observer=failures) as pool:
            await nursery.start(upstream.serve)
            with pytest.raises(UpstreamUnavailable, match="allows no streams"):
                await OwnConnection(pool.target(upstream.address)).take()
            await upstream.until(lambda: [each.ended for each in upstream.connections] == [True])
            assert failures.told == []
            nursery.cancel_scope.cancel()

    run(test)


def test_who_is_cancelled_while_it_is_dialled_leaves_no_connection_and_no_word() -> None:
    async def test() -> None:
        upstream, failures = Upstream(), Failures()
        upstream.silent = True
        async with trio.open_nursery() as nursery, Pool(observer=failures) as pool:
            await nursery.start(upstream.serve)
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_once_connected, upstream, scope)
                await OwnConnection(pool.target(upstream.address)).take()
            assert scope.cancelled_caught
            await upstream.until(lambda: [each.ended for each in upstream.connections] == [True])
            assert failures.told == []
            nursery.cancel_scope.cancel()

    run(test)


async def _cancel_once_connected(upstream: Upstream, scope: trio.CancelScope) -> None:
    await upstream.until(lambda: len(upstream.connections) == 1)
    scope.cancel()
