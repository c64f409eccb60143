"""Test server in grpcio's synchronous API."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message

from interop.peers.grpcio.common import (
    SERVER_OPTIONS,
    STATUS,
    ServerCallBase,
    add_port,
    generic_handlers,
    method_handler,
)
from interop.peers.python.messages import Metadata, Method, run_blocking
from interop.peers.python.service import Refused, Service, announce


class Call(ServerCallBase):
    """A `ServerCall` whose awaits block."""

    def __init__(self, requests: Iterable[Message], context: grpc.ServicerContext) -> None:
        super().__init__(context)
        self._requests = requests
        self._over = threading.Event()
        self.on_end(self._over.set)

    async def requests(self) -> AsyncIterator[Message]:
        for request in self._requests:
            yield request

    async def send_headers(self, metadata: Metadata, *, gzip: bool) -> None:
        self._allow_gzip(gzip)
        self._context.send_initial_metadata(tuple(metadata))

    async def sleep(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise ConnectionAbortedError("the call is over")

    def on_end(self, callback: Callable[[], None]) -> None:
        if not self._context.add_callback(callback):
            callback()


def handler(service: Service, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    """The library's handler for one method."""

    def responses(requests: Iterable[Message], context: grpc.ServicerContext) -> Iterator[Message]:
        generator = service.handle(method, Call(requests, context))
        try:
            while True:
                yield run_blocking(generator.__anext__())
        except StopAsyncIteration:
            return
        except Refused as refused:
            context.abort(STATUS[refused.code], refused.message)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Message]:
        return responses(request if method.client_streaming else [request], context)

    def single(request: Any, context: grpc.ServicerContext) -> Message:
        (response,) = stream(request, context)
        return response

    return method_handler(method, stream if method.server_streaming else single)


def main() -> None:
    """Serve until SIGTERM."""
    service = Service()
    server = grpc.server(ThreadPoolExecutor(max_workers=32), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(generic_handlers(lambda method: handler(service, method)))
    port = add_port(server)
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    announce(port, {})
    stop.wait()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
