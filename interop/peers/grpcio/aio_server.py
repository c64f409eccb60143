"""Test server in grpcio's asyncio API."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from interop.peers.grpcio.common import (
    SERVER_OPTIONS,
    STATUS,
    ServerCallBase,
    add_port,
    generic_handlers,
    method_handler,
)
from interop.peers.python.messages import Metadata, Method
from interop.peers.python.service import Refused, Service, announce


class Call(ServerCallBase):
    """A `ServerCall` of the asyncio API."""

    def __init__(self, requests: AsyncIterator[Message], context: Any) -> None:
        super().__init__(context)
        self.requests = lambda: requests

    async def send_headers(self, metadata: Metadata, *, gzip: bool) -> None:
        self._allow_gzip(gzip)
        await self._context.send_initial_metadata(tuple(metadata))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def on_end(self, callback: Callable[[], None]) -> None:
        self._context.add_done_callback(lambda _: callback())


async def one(message: Message) -> AsyncIterator[Message]:
    """A stream of one message."""
    yield message


def handler(service: Service, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    """The library's handler for one method."""

    async def stream(request: Any, context: Any) -> AsyncIterator[Message]:
        call = Call(request if method.client_streaming else one(request), context)
        try:
            async for response in service.handle(method, call):
                yield response
        except Refused as refused:
            await context.abort(STATUS[refused.code], refused.message)

    async def single(request: Any, context: Any) -> Message:
        (response,) = [response async for response in stream(request, context)]
        return response

    return method_handler(method, stream if method.server_streaming else single)


async def main() -> None:
    """Serve until SIGTERM."""
    service = Service()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(generic_handlers(lambda method: handler(service, method)))
    port = add_port(server)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    announce(port, {})
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
