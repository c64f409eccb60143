"""Test server in grpcio's synchronous API."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message

from interop.peers.python.messages import (
    MESSAGE_LIMIT,
    METADATA_LIMIT,
    PACKAGE,
    Metadata,
    Method,
    run_blocking,
)
from interop.peers.python.service import SERVED, Refused, Service, announce

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
    ("grpc.so_reuseport", 0),
]
STATUS = {code.value[0]: code for code in grpc.StatusCode}


def method_handler(method: Method, behaviour: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a behaviour of either API for the kind of the method."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return make(behaviour, method.request_type.FromString, method.response_type.SerializeToString)


def has_deadline(remaining: float | None) -> bool:
    """Whether a call with so much time has a deadline; one without has decades, or None."""
    return remaining is not None and remaining < 1e6


def generic_handlers(
    handler: Callable[[Method], grpc.RpcMethodHandler[Any, Any]],
) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of all services, as a server of either API takes them."""
    return tuple(
        grpc.method_handlers_generic_handler(
            f"{PACKAGE}.{service}",
            {
                method.name: handler(method)
                for method in SERVED.values()
                if method.path.startswith(f"/{PACKAGE}.{service}/")
            },
        )
        for service in ("TestService", "RecordService")
    )


class Call:
    """A `ServerCall` whose awaits block."""

    authority = ""  # not shown by the API

    def __init__(self, requests: Iterable[Message], context: grpc.ServicerContext) -> None:
        self._requests = requests
        self._context = context
        self._over = threading.Event()
        self._gzip = False
        self.metadata: Metadata = [(key, value) for key, value in context.invocation_metadata()]
        self.has_deadline = has_deadline(context.time_remaining())
        self.on_end(self._over.set)

    async def requests(self) -> AsyncIterator[Message]:
        for request in self._requests:
            yield request

    async def send_headers(self, metadata: Metadata, *, gzip: bool) -> None:
        self._gzip = gzip
        if gzip:
            self._context.set_compression(grpc.Compression.Gzip)
        self._context.send_initial_metadata(tuple(metadata))

    def set_trailers(self, metadata: Metadata) -> None:
        self._context.set_trailing_metadata(tuple(metadata))

    def compress_next(self, on: bool) -> None:
        if self._gzip and not on:
            self._context.disable_next_message_compression()

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
    server = grpc.server(ThreadPoolExecutor(max_workers=32), options=OPTIONS)
    server.add_generic_rpc_handlers(generic_handlers(lambda method: handler(service, method)))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    announce(port, {})
    stop.wait()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
