"""Test client in grpcio's synchronous API."""

from __future__ import annotations

import queue
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message

from interop.peers.grpcio.common import channel_to, multicallable
from interop.peers.python.messages import Metadata, Method, run_blocking
from interop.peers.python.player import End, run_sync
from interop.peers.python.tls import Tls


class Call:
    """A `Call` whose awaits block."""

    def __init__(
        self, channel: grpc.Channel, method: Method, request: Message | None, **options: Any
    ) -> None:
        self._single = not method.server_streaming
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        callable_ = multicallable(channel, method)
        start = callable_.future if self._single else callable_
        self._call = start(iter(self._requests.get, None) if request is None else request, **options)
        self._done = False

    async def send(self, message: Message) -> None:
        self._requests.put(message)

    async def half_close(self) -> None:
        self._requests.put(None)

    async def headers(self) -> Metadata:
        return list(self._call.initial_metadata())

    async def recv(self) -> Message | None:
        if self._done:
            return None
        self._done = self._single
        try:
            message: Message = self._call.result() if self._single else next(self._call)
            return message
        except (grpc.RpcError, grpc.FutureCancelledError, StopIteration):
            return None

    async def cancel(self) -> None:
        self._call.cancel()
        self._requests.put(None)

    async def end(self) -> End:
        code = self._call.code()
        return End(code.name, self._call.details(), list(self._call.trailing_metadata() or ()))


class Client:
    """A `Client` whose awaits block."""

    def __init__(self, host: str, port: int, tls: Tls | None) -> None:
        self._channel = channel_to(host, port, tls)

    async def start(
        self, method: Method, request: Message | None, metadata: Metadata, timeout: float | None, gzip: bool
    ) -> Call:
        compression = grpc.Compression.Gzip if gzip else None
        options = {"metadata": metadata, "timeout": timeout, "compression": compression}
        return Call(self._channel, method, request, **options)

    async def gather(self, coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        with ThreadPoolExecutor(len(coroutines)) as pool:
            return list(pool.map(run_blocking, coroutines))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # blocking is what this adapter does


if __name__ == "__main__":
    run_sync(Client, {})
