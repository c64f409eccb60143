"""A client, the proxy, and an upstream, in one trio run and without a socket: for tests in virtual time.

    async with in_memory({"/shop.Orders/Get": unary_unary(get, bytes)}) as house:
        reply = await house.client.unary_unary("/shop.Orders/Get", b"7", timeout=60)

Everything waits by trio's clock alone, so under `trio.testing.MockClock(autojump_threshold=0)` an hour takes no time,
and takes it in the same way each time.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

import trio
from trio.testing import memory_stream_pair

from rawgrpc_proxy.call import CallContext, Handler
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.lab.faults import Faults, with_faults
from rawgrpc_proxy.lab.taps import several_taps
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.tapped import Tap
from rawgrpc_proxy.proxy.director import StreamDirector
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.methods import MethodKind
from rawgrpc_proxy.testing.seen_calls import SeenCall, SeenCalls
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

PROXY = "proxy:1"
UPSTREAM = "upstream:1"
"""Addresses: there are no other ones in memory, beside those of more upstreams."""

Upstream = Server | Handler | Mapping[str, MethodKind]


class InMemory:
    """What `in_memory` gives; see there."""

    def __init__(
        self,
        upstreams: Mapping[str, Server],
        director: Callable[[Pool], StreamDirector],
        taps: Iterable[Tap],
        faults: Faults | None,
        settings: Http2Settings | None,
        client_settings: Http2Settings | None,
        seed: int,
    ) -> None:
        self.upstreams = upstreams
        """By their addresses."""
        self._seen = SeenCalls(clock=trio.current_time)
        tap = several_taps(self._seen, *taps)
        wrap = None if faults is None else with_faults(faults)
        self._pool = Pool(
            connect=self._connect_upstream,
            settings=settings,
            observer=self._seen.pool_observer,
            tap=tap,
            wrap=wrap,
            rng=random.Random(seed),  # noqa: S311  # the same jitter each time
        )
        self._client_pool = Pool(
            connect=self._connect_proxy,
            settings=client_settings,
            rng=random.Random(seed),  # noqa: S311
        )
        self.proxy = Server(
            unknown_service_handler=transparent_handler(director(self._pool)),
            settings=settings,
            observer=self._seen.observer,
            tap=tap,
            wrap=wrap,
        )
        """Between the two."""
        self.client = Client(self._client_pool.target(PROXY))
        """Makes calls to the proxy."""
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        for thing in (self._pool, self._client_pool, self.client):
            await self._stack.enter_async_context(thing)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        assert self._nursery_manager is not None
        try:
            await self._stack.__aexit__(kind, error, trace)
        finally:
            self._nursery.cancel_scope.cancel()
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our tasks.
            await self._nursery_manager.__aexit__(None, None, None)

    @property
    def calls(self) -> tuple[SeenCall, ...]:
        """What the callers have seen; times are of trio's clock."""
        return self._seen.all()

    def connect(self) -> trio.abc.HalfCloseableStream:
        """A connection to the proxy, for a client of one's own: raw frames, or a recording."""
        return self._served(self.proxy, "caller")

    async def _connect_proxy(self, _address: Address) -> trio.abc.Stream:
        return self.connect()

    async def _connect_upstream(self, address: Address) -> trio.abc.Stream:
        server = self.upstreams.get(str(address))
        if server is None:
            raise OSError(f"there is no upstream {address} in memory; there are {', '.join(self.upstreams)}")
        return self._served(server, "proxy")

    def _served(self, server: Server, peer: str) -> trio.abc.HalfCloseableStream:
        ours, theirs = memory_stream_pair()
        assert self._nursery is not None
        self._nursery.start_soon(partial(server.serve_stream, theirs, peer=f"{peer}:{next(self._numbers)}"))
        return ours


def in_memory(
    upstream: Upstream | Mapping[str, Server],
    *,
    director: Callable[[Pool], StreamDirector] | None = None,
    taps: Iterable[Tap] = (),
    faults: Faults | None = None,
    settings: Http2Settings | None = None,
    client_settings: Http2Settings | None = None,
    seed: int = 0,
) -> InMemory:
    """A client, a proxy and an upstream, connected in memory; the result is for `async with`.

    `upstream` is a `Server`, a handler of all calls, or methods by their paths; calls go there, to an address that is
    "upstream:1". Or it is several servers by addresses that you make up ("east:1"), for a `director`: a function that
    gets the proxy's `Pool`, and answers the director. `taps` see all connections of the proxy, and
    `faults` strike them. `seed` is for what is left to chance, like pauses between dials.

    The block has `house.client`, `house.calls`, `house.proxy`, `house.upstreams`, and `house.connect()`, which answers
    a trio stream to the proxy. Leaving ends all of it.
    """
    return InMemory(
        _servers(upstream), director or _to_upstream, taps, faults, settings, client_settings, seed
    )


def _servers(upstream: Upstream | Mapping[str, Server]) -> Mapping[str, Server]:
    if isinstance(upstream, Server):
        return {UPSTREAM: upstream}
    if not isinstance(upstream, Mapping):
        return {UPSTREAM: Server(unknown_service_handler=upstream)}
    servers: dict[str, Server] = {}
    of_methods = Server()
    for name, each in upstream.items():
        if isinstance(each, Server):
            servers[str(Address.parse(name))] = each
        else:
            of_methods.add_method(name, each)
    return servers or {UPSTREAM: of_methods}


def _to_upstream(pool: Pool) -> StreamDirector:
    target = pool.target(UPSTREAM)

    def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
        return context, target

    return director
