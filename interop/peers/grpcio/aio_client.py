"""Test client in grpcio's asyncio API."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from interop.peers.grpcio.common import channel_to, multicallable
from interop.peers.python.messages import Metadata, Method
from interop.peers.python.player import AsyncioClient, End, run_async
from interop.peers.python.tls import Tls

#: What writing raises then; the status tells why.
CALL_IS_OVER = (grpc.RpcError, asyncio.InvalidStateError)


class Call:
    """A `Call` of the asyncio API."""

    def __init__(
        self, channel: grpc.aio.Channel, method: Method, request: Message | None, **options: Any
    ) -> None:
        self._single = not method.server_streaming
        start = multicallable(channel, method)
        self._call: Any = start(**options) if request is None else start(request, **options)
        self._done = False
        self._answered = False

    async def send(self, message: Message) -> None:
        with suppress(*CALL_IS_OVER):
            await self._call.write(message)

    async def half_close(self) -> None:
        with suppress(*CALL_IS_OVER):
            await self._call.done_writing()

    async def headers(self) -> Metadata | None:
        # The library loses, at random, initial metadata that is followed at once by the status.
        if self._call.done() and not self._answered:
            return None
        return list(await self._call.initial_metadata())

    async def recv(self) -> Message | None:
        if self._done:
            return None
        self._done = self._single
        try:
            message = await self._call if self._single else await self._call.read()
        except grpc.RpcError:
            return None
        if message is grpc.aio.EOF:
            return None
        self._answered = True
        return message  # type: ignore[no-any-return]

    async def cancel(self) -> None:
        self._call.cancel()

    async def end(self) -> End:
        code = await self._call.code()
        return End(code.name, await self._call.details(), list(await self._call.trailing_metadata() or ()))


class Client(AsyncioClient):
    """A `Client` of the asyncio API."""

    def __init__(self, host: str, port: int, tls: Tls | None) -> None:
        self._channel = channel_to(host, port, tls, grpc.aio)

    async def start(
        self, method: Method, request: Message | None, metadata: Metadata, timeout: float | None, gzip: bool
    ) -> Call:
        compression = grpc.Compression.Gzip if gzip else None
        options = {"metadata": tuple(metadata), "timeout": timeout, "compression": compression}
        return Call(self._channel, method, request, **options)


if __name__ == "__main__":
    run_async(Client, {})
