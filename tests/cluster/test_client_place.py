"""A client over a cluster: its calls are spread, go elsewhere when they are refused, and count for ejection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Client, Cluster, ConcurrencyLimit, Http2Settings, Pool, RpcError
from rawgrpc_proxy.cluster.outlier_settings import OutlierDetection
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import TooManyCalls
from tests.proxy.house import Baseline, on_every_engine, streams_of, until
from tests.proxy.raw_peers import Backend, PeerStream

pytestmark = on_every_engine


@asynccontextmanager
async def a_client_of_three(
    engine: Engine, **settings: Any
) -> AsyncIterator[tuple[Client, list[Backend], Cluster]]:
    """A client of a cluster with three backends. `settings` are the cluster's."""
    baseline = Baseline()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, Pool(settings=Http2Settings(engine=engine)) as pool:
            backends = [Backend() for _ in range(3)]
            for backend in backends:
                await nursery.start(backend.run)
            addresses = [backend.address for backend in backends]
            async with Cluster(addresses, pool=pool, **settings) as cluster, Client(cluster) as client:
                yield client, backends, cluster
                await until(lambda: streams_of(pool) == 0, f"places are held: {pool.stats()}")
            nursery.cancel_scope.cancel()
    baseline.assert_restored()


async def answer(served: PeerStream) -> None:
    await served.respond(b"y")


async def fail(served: PeerStream) -> None:
    await served.respond(trailers=[(b"grpc-status", b"14")])


@trio_test
async def test_calls_are_spread(engine: Engine) -> None:
    async with a_client_of_three(engine) as (client, backends, _), trio.open_nursery() as nursery:
        for backend in backends:
            nursery.start_soon(backend.answer_all, answer)
        asked = set()
        for _ in range(6):
            call = client.unary_unary("/a.B/C", b"")
            assert await call == b"y"
            asked.add(call.address)
        assert asked == {backend.address for backend in backends}
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_call_that_is_refused_goes_to_another_endpoint(engine: Engine) -> None:
    async with a_client_of_three(engine) as (client, backends, _), trio.open_nursery() as nursery:
        refused: list[PeerStream] = []

        async def refuse_the_first(served: PeerStream) -> None:
            if not refused:
                refused.append(served)
                await served.reset(7)
            else:
                await answer(served)

        for backend in backends:
            nursery.start_soon(backend.answer_all, refuse_the_first)
        call = client.unary_unary("/a.B/C", b"")
        assert await call == b"y"
        [first] = refused
        [by] = [backend.address for backend in backends if first.peer in backend.peers]
        assert call.address != by
        nursery.cancel_scope.cancel()


@trio_test
async def test_an_endpoint_that_cannot_be_reached_costs_no_call(engine: Engine) -> None:
    async with a_client_of_three(engine) as (client, backends, _), trio.open_nursery() as nursery:
        await backends[0].stop_listening()
        for backend in backends:
            nursery.start_soon(backend.answer_all, answer)
        for _ in range(6):
            assert await client.unary_unary("/a.B/C", b"") == b"y"
        nursery.cancel_scope.cancel()


@trio_test
async def test_calls_of_a_client_count_for_ejection(engine: Engine) -> None:
    outlier = OutlierDetection(consecutive_failures=3)
    async with (
        a_client_of_three(engine, outlier=outlier) as (client, backends, cluster),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(backends[0].answer_all, fail)
        for backend in backends[1:]:
            nursery.start_soon(backend.answer_all, answer)
        failed = 0
        for _ in range(9):
            try:
                await client.unary_unary("/a.B/C", b"")
            except RpcError:
                failed += 1
        assert failed == 3
        [ejected] = [endpoint for endpoint in cluster.endpoints if endpoint.ejected]
        assert ejected.address == backends[0].address
        for _ in range(6):
            assert await client.unary_unary("/a.B/C", b"") == b"y"
        nursery.cancel_scope.cancel()


@trio_test
async def test_calls_of_a_client_count_towards_the_limits_of_the_cluster(engine: Engine) -> None:
    """As those that are passed on: until they are over, however they end, and once, be they made twice."""
    limit = ConcurrencyLimit(1, name="max_requests")
    async with (
        a_client_of_three(engine, limits=[limit]) as (client, backends, cluster),
        trio.open_nursery() as nursery,
    ):
        served: list[PeerStream] = []
        came = trio.Event()

        async def refuse_the_first(stream: PeerStream) -> None:
            served.append(stream)
            if len(served) == 1:
                await stream.reset(7)
            else:
                came.set()

        for backend in backends:
            nursery.start_soon(backend.answer_all, refuse_the_first)
        async with client.unary_stream("/a.B/C", b"") as call:
            nursery.start_soon(call.receive_headers)
            await came.wait()
            assert limit.open_calls == 1
            with pytest.raises(TooManyCalls, match=r"1 calls are under way, as many as may be now"):
                await client.unary_unary("/a.B/C", b"")
            await answer(served[-1])
            assert [message async for message in call] == [b"y"]
        await until(lambda: limit.open_calls == 0)

        with trio.move_on_after(0):
            await client.unary_unary("/a.B/C", b"")
        cluster.found([])
        with pytest.raises(RpcError, match="has no endpoint"):
            await client.unary_unary("/a.B/C", b"")
        await until(lambda: limit.open_calls == 0)
        assert limit.refused == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_without_endpoints_a_call_is_unavailable(engine: Engine) -> None:
    async with a_client_of_three(engine) as (client, _, cluster):
        cluster.found([])
        with pytest.raises(RpcError, match=r"UNAVAILABLE: .* has no endpoint"):
            await client.unary_unary("/a.B/C", b"")
