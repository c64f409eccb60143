"""A client of ours before a backend of raw frames, or before a server of ours; leaving checks that nothing is left."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from rawgrpc_proxy import Client, Http2Settings, Pool, Server, codec_with_parent, identity_codec
from rawgrpc_proxy.command.demo import ECHO_SERVICE, backend
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.observe.call_log import CallLog
from tests.proxy.house import Baseline, streams_of, until
from tests.proxy.raw_peers import Backend, Lost, PeerStream, Reset

BOUND_S = 60.0
UNARY, SERVER_STREAM, CLIENT_STREAM, BIDI = (
    f"/{ECHO_SERVICE}/{name}" for name in ("Unary", "ServerStream", "ClientStream", "Bidi")
)


@dataclass
class World:
    """Who plays."""

    client: Client
    pool: Pool
    backend: Backend
    nursery: trio.Nursery

    async def unary(self, method: str, request: bytes, **options: Any) -> bytes:
        """A unary call, for a nursery."""
        return await self.client.unary_unary(method, request, **options)

    async def nothing_is_left(self) -> None:
        """Every place has been given back, once, and the client knows of no call."""
        assert not self.client._calls
        assert self.client._timers is not None
        assert not [timer for _, _, timer in self.client._timers._heap if timer.waits]
        await until(lambda: streams_of(self.pool) == 0, f"places are held: {self.pool.stats()}")


@asynccontextmanager
async def a_client(
    engine: Engine,
    *,
    settings: dict[int, int] | None = None,
    pool: dict[str, Any] | None = None,
    bound_s: float = BOUND_S,
    http2: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """A client of a backend with these SETTINGS. `options` are the client's."""
    baseline = Baseline()
    with trio.fail_after(bound_s):
        async with trio.open_nursery() as nursery:
            peer = Backend(settings)
            await nursery.start(peer.run)
            made = Http2Settings(engine=engine, **(http2 or {}))
            async with (
                Pool(settings=made, **(pool or {})) as connections,
                Client(connections.target(peer.address), **options) as client,
            ):
                world = World(client, connections, peer, nursery)
                yield world
                await world.nothing_is_left()
            nursery.cancel_scope.cancel()
    baseline.assert_restored()


@asynccontextmanager
async def a_client_of_ours(
    engine: Engine, server: Server | None = None, **options: Any
) -> AsyncIterator[Client]:
    """A client with a pool of its own, of a server of ours: the demo's, unless another is given."""
    baseline = Baseline()
    settings = Http2Settings(engine=engine)
    with trio.fail_after(BOUND_S):
        async with trio.open_nursery() as nursery:
            served = server or backend(settings, _Quiet())
            address = await nursery.start(served.serve, "127.0.0.1:0")
            async with Client(address, settings=settings, **options) as client:
                yield client
                assert not client._calls
                assert client._pool is not None
                made = client._pool
                await until(lambda: streams_of(made) == 0, f"places are held: {made.stats()}")
            nursery.cancel_scope.cancel()
    baseline.assert_restored()


def raw_server() -> Server:
    """A server whose methods take bytes."""
    return Server(codec=codec_with_parent(identity_codec()))


async def reset_code(served: PeerStream) -> int:
    """The code of the RST_STREAM with which a call was given up, whatever of its request came before."""
    while not isinstance(event := await served.next(), Reset):
        assert not isinstance(event, Lost)
    return event.code


class _Quiet(CallLog):
    def call_ended(self, record: object) -> None:
        pass
