"""Test server in grpclib."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from interop.peers.grpclib.cannot import CANNOT
from interop.peers.python.messages import Metadata, Method
from interop.peers.python.service import SERVED, Refused, Service, announce
from interop.peers.python.tls import server_tls

CARDINALITY = {
    (False, False): Cardinality.UNARY_UNARY,
    (False, True): Cardinality.UNARY_STREAM,
    (True, False): Cardinality.STREAM_UNARY,
    (True, True): Cardinality.STREAM_STREAM,
}


class Call:
    """A `ServerCall` of grpclib."""

    authority = ""  # not shown by the API

    def __init__(self, stream: Stream[Any, Any]) -> None:
        self._stream = stream
        self._on_end: Callable[[], None] = lambda: None
        self.trailers: Metadata = []
        self.metadata: Metadata = [(key, value) for key, value in (stream.metadata or {}).items()]
        if stream.user_agent is not None:
            self.metadata.append(("user-agent", stream.user_agent))
        self.has_deadline = stream.deadline is not None

    async def requests(self) -> AsyncIterator[Message]:
        async for request in self._stream:
            yield request

    async def send_headers(self, metadata: Metadata, *, gzip: bool) -> None:
        await self._stream.send_initial_metadata(metadata=metadata)

    def set_trailers(self, metadata: Metadata) -> None:
        self.trailers = metadata

    def compress_next(self, on: bool) -> None:
        pass

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def on_end(self, callback: Callable[[], None]) -> None:
        self._on_end = callback

    def over(self) -> None:
        """The handler has returned or was cancelled."""
        self._on_end()


class Services:
    """All methods, as grpclib's server takes them."""

    def __init__(self) -> None:
        self._service = Service()

    def __mapping__(self) -> dict[str, Handler]:
        return {
            method.path: Handler(
                self._handler(method),
                CARDINALITY[method.client_streaming, method.server_streaming],
                method.request_type,
                method.response_type,
            )
            for method in SERVED.values()
        }

    def _handler(self, method: Method) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        async def handle(stream: Stream[Any, Any]) -> None:
            call = Call(stream)
            try:
                async for response in self._service.handle(method, call):
                    await stream.send_message(response)
                await stream.send_trailing_metadata(metadata=call.trailers)
            except Refused as refused:
                raise GRPCError(Status(refused.code), refused.message) from None
            finally:
                call.over()

        return handle


async def main() -> None:
    """Serve until SIGTERM."""
    tls = server_tls()
    server = Server([Services()])
    await server.start("127.0.0.1", 0, ssl=None if tls is None else tls.context(server=True))
    port = next(iter(server._server.sockets)).getsockname()[1]  # type: ignore[union-attr]  # noqa: SLF001
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    announce(port, CANNOT)
    await stop.wait()
    server.close()
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
