"""The circuit breaker of a cluster: how many calls it has, and how many wait for a connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, Cluster, ConcurrencyLimit, ConfigError, Pool, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import Backend, PeerStream

pytestmark = on_every_engine


class Mute:
    """Takes connections and says nothing."""

    def __init__(self, backend: Backend) -> None:
        self.dialled = trio.Event()
        backend.raw_script = self._run

    async def _run(self, _stream: trio.SocketStream) -> None:
        self.dialled.set()
        await trio.sleep_forever()


@asynccontextmanager
async def a_cluster(
    engine: Engine, *, backends: int = 1, **settings: Any
) -> AsyncIterator[tuple[House, Cluster, list[Backend]]]:
    clusters: list[Cluster] = []

    def director(context: CallContext, _method: str) -> Direction:
        return context, clusters[0]

    async with a_proxy(engine, director=director) as house:
        others = [Backend() for _ in range(backends - 1)]
        for backend in others:
            await house.nursery.start(backend.run)
        every = [house.backend, *others]
        addresses = [backend.address for backend in every]
        async with Cluster(addresses, pool=house.pool, name="orders", **settings) as cluster:
            clusters.append(cluster)
            await house.client()
            yield house, cluster, every
            for client in house.clients:
                await client.aclose()
            await until(lambda: house.server.open_calls == 0)
        assert cluster.pending == 0


@trio_test
async def test_a_cluster_has_no_more_calls_than_it_may_whatever_route_they_come_by(engine: Engine) -> None:
    async with a_cluster(engine, max_requests=1) as (house, cluster, [backend]):
        [limit] = cluster.limits
        assert isinstance(limit, ConcurrencyLimit)
        call = await house.clients[0].request()
        served = await backend.request()
        answer = await (await house.clients[0].request()).answer()
        assert answer.status == Status.RESOURCE_EXHAUSTED
        assert answer.message == b"1 calls are under way, as many as may be now (max_requests)"
        record = await house.record()
        assert (record.origin, record.cause) == ("proxy", "max_requests")
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert (limit.open_calls, limit.refused) == (0, 1)


@trio_test
async def test_no_more_calls_wait_for_a_connection_than_may_and_others_fail_at_once(engine: Engine) -> None:
    async with a_cluster(engine, max_pending=1) as (house, cluster, [backend]):
        mute = Mute(backend)
        call = await house.clients[0].request()
        await mute.dialled.wait()
        answer = await (await house.clients[0].request()).answer()
        assert answer.status == Status.RESOURCE_EXHAUSTED
        assert answer.message == (
            b"1 calls wait for connections to <Cluster orders>, as many as may (max_pending)"
        )
        assert (cluster.pending, cluster.overflows) == (1, 1)
        assert (await house.record()).cause == "max_pending"
        await call.reset()
        await until(lambda: cluster.pending == 0)


@trio_test
async def test_an_endpoint_that_has_room_gets_the_call_before_it_is_refused(engine: Engine) -> None:
    async with a_cluster(engine, backends=2, max_pending=1) as (house, cluster, [one, two]):
        house.nursery.start_soon(two.answer_all, PeerStream.respond)
        mute = Mute(one)
        cluster.found([EndpointAddress(two.address)])
        client = house.clients[0]
        assert (await (await client.request()).answer()).status == Status.OK
        cluster.found([EndpointAddress(one.address), EndpointAddress(two.address)])
        calls = [await client.request() for _ in range(2)]  # one for each
        await mute.dialled.wait()
        for _ in range(4):
            assert (await (await client.request()).answer()).status == Status.OK
        assert (cluster.pending, cluster.overflows) == (1, 0)
        for call in calls:
            await call.reset()


@trio_test
async def test_a_limit_below_nothing_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="max_pending is -1"):
        Cluster([], pool=Pool(), max_pending=-1)
