"""A proxy whose director answers a policy: for the tests of retries and of hedging."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from rawgrpc_proxy import CallContext, CallPolicy, Cluster, RetryThrottling
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.house import House, a_proxy
from tests.proxy.raw_peers import OK, RESPONSE, Backend, Field, PeerStream

UNAVAILABLE: list[Field] = [(b"grpc-status", b"14"), (b"grpc-message", b"not now")]


@asynccontextmanager
async def with_policy(engine: Engine, policy: CallPolicy, **more: Any) -> AsyncIterator[House]:
    """One backend; all calls have this policy."""

    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policy), house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director, **more) as house:
        yield house


@dataclass
class Several:
    """A proxy before a cluster, all of whose calls have one policy."""

    house: House
    cluster: Cluster
    backends: list[Backend]
    _waiting: list[tuple[Backend, PeerStream]] = field(default_factory=list)
    """Requests that came together with one that was asked for."""

    async def request(self) -> tuple[Backend, PeerStream]:
        """The next request, at whichever backend."""
        if not self._waiting:
            async with trio.open_nursery() as nursery:

                async def wait(backend: Backend) -> None:
                    self._waiting.append((backend, await backend.request()))
                    nursery.cancel_scope.cancel()

                for backend in self.backends:
                    nursery.start_soon(wait, backend)
        return self._waiting.pop(0)

    @property
    def came(self) -> bool:
        """Whether there is a request that nobody has asked for yet."""
        return bool(self._waiting) or not all(backend.no_request_came() for backend in self.backends)

    @property
    def no_request_came(self) -> bool:
        return not self.came


@asynccontextmanager
async def several(
    engine: Engine,
    policy: CallPolicy,
    *,
    count: int = 2,
    throttle: RetryThrottling | None = None,
    leases: bool = False,
    **more: Any,
) -> AsyncIterator[Several]:
    """`count` backends in a cluster."""

    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policy), cluster

    async def leasing(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policy), await cluster.get_conn(context)

    async with (
        a_proxy(engine, director=leasing if leases else director, **more) as house,
        trio.open_nursery() as nursery,
    ):
        backends = [Backend() for _ in range(count)]
        for backend in backends:
            await nursery.start(backend.run)
        addresses = [backend.address for backend in backends]
        async with Cluster(addresses, pool=house.pool, retry_throttling=throttle) as cluster:
            yield Several(house, cluster, backends)
        nursery.cancel_scope.cancel()


async def fail_late(served: PeerStream, *extra: Field) -> None:
    """Answer as servers do that have sent their headers before they failed."""
    await served.headers(RESPONSE)
    await served.headers([*UNAVAILABLE, *extra], end=True)


async def fail_at_once(served: PeerStream, *extra: Field) -> None:
    """Answer with Trailers-Only."""
    await served.headers([*RESPONSE, *UNAVAILABLE, *extra], end=True)


__all__ = ["OK", "RESPONSE", "UNAVAILABLE", "Several", "fail_at_once", "fail_late", "several", "with_policy"]
