"""A collector of spans, made with the proxy's own server; it reads them with protobuf."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from rawgrpc_proxy import Server, identity_codec, unary_unary
from rawgrpc_proxy.observe.otlp import METHOD
from rawgrpc_proxy.services.methods import ServedCall
from tests.observe.otlp_messages import otlp, spans_in

PATIENCE_S = 30.0


class Collector:
    """What it has taken so far. `before` is awaited for each batch: it may wait, or raise."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.requests: list[Any] = []
        self.before: Callable[[int], Awaitable[None]] | None = None
        self.answer = b""
        self.asked = 0
        self.address = ""
        self._changed = trio.Event()

    async def export(self, body: bytes, _call: ServedCall) -> bytes:
        self.asked += 1
        self._tell()
        if self.before is not None:
            await self.before(self.asked)
        request = otlp().ExportTraceServiceRequest.FromString(body)
        self.requests.append(request)
        self.spans += spans_in(request)
        self._tell()
        return self.answer

    def server(self) -> Server:
        server = Server(codec=identity_codec())
        server.add_method(METHOD, unary_unary(self.export, bytes))
        return server

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until this holds, which may have to do with what has been asked or taken."""
        with trio.fail_after(PATIENCE_S):
            while not holds():
                changed = self._changed
                await changed.wait()

    async def spans_of(self, number: int) -> list[Any]:
        """Wait for so many spans, and answer them."""
        await self.until(lambda: len(self.spans) >= number)
        assert len(self.spans) == number
        return self.spans

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def a_collector(address: str = "127.0.0.1:0") -> AsyncIterator[Collector]:
    """Run one on this address."""
    otlp()  # skips the test without protobuf
    collector = Collector()
    async with trio.open_nursery() as nursery:
        collector.address = await nursery.start(collector.server().serve, address)
        yield collector
        nursery.cancel_scope.cancel()
