"""Test client in grpclib."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpclib.client import (
    Channel,
    ServiceMethod,
    Stream,
    StreamStreamMethod,
    StreamUnaryMethod,
    UnaryStreamMethod,
    UnaryUnaryMethod,
)
from grpclib.exceptions import GRPCError

from interop.peers.grpclib.cannot import CANNOT
from interop.peers.python.messages import Metadata, Method
from interop.peers.python.player import AsyncioClient, End, run_async
from interop.peers.python.tls import Tls

T = TypeVar("T")

KINDS: dict[tuple[bool, bool], type[ServiceMethod[Any, Any]]] = {
    (False, False): UnaryUnaryMethod,
    (False, True): UnaryStreamMethod,
    (True, False): StreamUnaryMethod,
    (True, True): StreamStreamMethod,
}


class Call:
    """A `Call` of grpclib: its stream, and the first exception that came out of it."""

    def __init__(self, stream: Stream[Any, Any]) -> None:
        self._stream = stream
        self._error: Exception | None = None
        self._cancelled = False

    async def attempt(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Take a step; the first failure ends the call, as leaving its `async with` block would."""
        if self._error is not None:
            return None
        try:
            return await step()
        except Exception as error:
            self._error = error
            try:
                await self._stream.__aexit__(type(error), error, error.__traceback__)
            except Exception as cause:
                self._error = cause
            return None

    async def send(self, message: Message) -> None:
        await self.attempt(lambda: self._stream.send_message(message))

    async def half_close(self) -> None:
        await self.attempt(self._stream.end)

    async def headers(self) -> Metadata:
        if self._stream.initial_metadata is None:
            await self.attempt(self._stream.recv_initial_metadata)
        return list((self._stream.initial_metadata or {}).items())

    async def recv(self) -> Message | None:
        return await self.attempt(self._stream.recv_message)

    async def cancel(self) -> None:
        self._cancelled = True
        await self.attempt(self._stream.cancel)

    async def end(self) -> End:
        if not self._cancelled:
            await self.attempt(self._stream.recv_trailing_metadata)
        await self.attempt(lambda: self._stream.__aexit__(None, None, None))
        trailing = list((self._stream.trailing_metadata or {}).items())
        if isinstance(self._error, GRPCError):
            return End(self._error.status.name, self._error.message, trailing)
        if isinstance(self._error, TimeoutError):
            return End("DEADLINE_EXCEEDED", "TimeoutError", trailing)
        if self._error is not None:
            return End(type(self._error).__name__, str(self._error), trailing)
        return End("CANCELLED" if self._cancelled else "OK", None, trailing)


class Client(AsyncioClient):
    """A `Client` of grpclib."""

    def __init__(self, host: str, port: int, tls: Tls | None) -> None:
        self._channel = Channel(host, port, ssl=None if tls is None else tls.context(server=False))

    async def start(
        self, method: Method, request: Message | None, metadata: Metadata, timeout: float | None, gzip: bool
    ) -> Call:
        kind = KINDS[method.client_streaming, method.server_streaming]
        callable_ = kind(self._channel, method.path, method.request_type, method.response_type)
        stream = callable_.open(timeout=timeout, metadata=metadata)
        await stream.__aenter__()
        call = Call(stream)
        if request is None:
            await call.attempt(stream.send_request)
        else:
            await call.attempt(lambda: stream.send_message(request, end=True))
        return call


if __name__ == "__main__":
    run_async(Client, CANNOT)
