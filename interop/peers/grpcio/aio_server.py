"""Test server in grpcio's asyncio API."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from interop.peers.grpcio.server import OPTIONS, STATUS, generic_handlers, has_deadline, method_handler
from interop.peers.python.messages import Metadata, Method
from interop.peers.python.service import Refused, Service, announce


class Call:
    """A `ServerCall` of the asyncio API."""

    authority = ""  # not shown by the API

    def __init__(self, requests: AsyncIterator[Message], context: Any) -> None:
        self.requests = lambda: requests
        self._context = context
        self._gzip = False
        self.metadata: Metadata = [(key, value) for key, value in context.invocation_metadata() or ()]
        self.has_deadline = has_deadline(context.time_remaining())

    async def send_headers(self, metadata: Metadata, *, gzip: bool) -> None:
        self._gzip = gzip
        if gzip:
            self._context.set_compression(grpc.Compression.Gzip)
        await self._context.send_initial_metadata(tuple(metadata))

    def set_trailers(self, metadata: Metadata) -> None:
        self._context.set_trailing_metadata(tuple(metadata))

    def compress_next(self, on: bool) -> None:
        if self._gzip and not on:
            self._context.disable_next_message_compression()

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
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(generic_handlers(lambda method: handler(service, method)))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    announce(port, {})
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
