"""A proxy before a cluster of several raw backends: `async with a_town(engine) as town:`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from rawgrpc_proxy import CallContext, Cluster, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.house import House, a_proxy
from tests.proxy.raw_peers import Backend, PeerStream


@dataclass
class Town:
    """A proxy before a cluster of several backends."""

    house: House
    cluster: Cluster
    backends: list[Backend]

    async def request(self) -> tuple[PeerStream, PeerStream]:
        """A call, as its caller and as one of the backends sees it."""
        call = await self.house.clients[0].request(body=b"hello")
        served: list[PeerStream] = []
        async with trio.open_nursery() as nursery:

            async def wait(backend: Backend) -> None:
                served.append(await backend.request())
                nursery.cancel_scope.cancel()

            for backend in self.backends:
                nursery.start_soon(wait, backend)
        [stream] = served
        return call, stream

    async def served_by(self) -> str:
        """Where one call went, which has ended well."""
        call, served = await self.request()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        return (await self.house.record()).upstream or ""


@asynccontextmanager
async def a_town(
    engine: Engine,
    *others: str,
    count: int = 3,
    leases: bool = False,
    pool: dict[str, Any] | None = None,
    prepare: Callable[[list[Backend]], None] = lambda _backends: None,
    **settings: Any,
) -> AsyncIterator[Town]:
    """`count` backends, and whatever else is to be in the cluster, behind a proxy with a client.

    `settings` are the cluster's.
    """
    cluster: Cluster | None = None

    def director(context: CallContext, method: str) -> Direction:
        assert cluster is not None
        return context, cluster

    async def leasing(context: CallContext, method: str) -> Direction:
        assert cluster is not None
        return context, await cluster.get_conn(context)

    async with (
        a_proxy(engine, director=leasing if leases else director, pool=pool) as house,
        trio.open_nursery() as nursery,
    ):
        backends = [Backend() for _ in range(count)]
        for backend in backends:
            await nursery.start(backend.run)
        await house.client()
        prepare(backends)
        addresses = [backend.address for backend in backends]
        async with Cluster([*others, *addresses], pool=house.pool, name="orders", **settings) as cluster:
            yield Town(house, cluster, backends)
        nursery.cancel_scope.cancel()
