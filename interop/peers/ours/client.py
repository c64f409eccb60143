"""Test client in rawgrpc_proxy's own `Client`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import trio
from google.protobuf.message import Message

from interop.peers.python.messages import MESSAGE_LIMIT, METADATA_LIMIT, Metadata, Method
from interop.peers.python.player import End, run_trio
from interop.peers.python.tls import Tls
from rawgrpc_proxy import Client as OurClient
from rawgrpc_proxy import Http2Settings, RpcError, StreamStreamCall, UnaryStreamCall, codec
from rawgrpc_proxy import Metadata as OurMetadata

NO_COMPRESSION = "what rawgrpc_proxy's client sends is not compressed"
CANNOT = {"client_compressed_unary": NO_COMPRESSION, "client_compressed_streaming": NO_COMPRESSION}
#: What other libraries do not show as metadata either.
NOT_SHOWN = (":", "content-type", "grpc-status", "grpc-message", "grpc-encoding", "grpc-accept-encoding")


class Call:
    """A `Call` of ours: its block, entered and left by hand, and the error that came out of it."""

    def __init__(self, call: StreamStreamCall[Any] | UnaryStreamCall[Any]) -> None:
        self._call = call
        self._error: Exception | None = None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Take a step; the first failure is the call's."""
        try:
            yield
        except (RpcError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._error = self._error or error

    async def begin(self) -> None:
        with self.attempt():
            await self._call.__aenter__()

    async def send(self, message: Message) -> None:
        assert isinstance(self._call, StreamStreamCall)
        with self.attempt():
            await self._call.send(message)

    async def half_close(self) -> None:
        assert isinstance(self._call, StreamStreamCall)
        with self.attempt():
            await self._call.done_sending()

    async def headers(self) -> Metadata:
        with self.attempt():
            await self._call.receive_headers()
        return shown(self._call.headers)

    async def recv(self) -> Message | None:
        received: list[Message | None] = []
        with self.attempt():
            received.append(await self._call.receive())
        return received[0] if received else None

    async def cancel(self) -> None:
        self._call.cancel()

    async def end(self) -> End:
        with self.attempt():
            while await self._call.receive() is not None:
                pass
        await self._call.__aexit__(None, None, None)
        assert self._call.status is not None
        return End(self._call.status.name, self._call.status_message, shown(self._call.trailers))


class Client:
    """A `Client` of ours."""

    def __init__(self, client: OurClient) -> None:
        self._client = client

    async def start(
        self, method: Method, request: Message | None, metadata: Metadata, timeout: float | None, gzip: bool
    ) -> Call:
        options: dict[str, Any] = {"timeout": timeout, "metadata": metadata}
        call = Call(
            self._client.stream_stream(method.path, None, method.response_type, **options)
            if request is None
            else self._client.unary_stream(method.path, request, method.response_type, **options)
        )
        await call.begin()
        return call

    async def gather(self, coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        results: dict[int, Any] = {}

        async def run(number: int, coroutine: Coroutine[Any, Any, Any]) -> None:
            results[number] = await coroutine

        async with trio.open_nursery() as nursery:
            for number, coroutine in enumerate(coroutines):
                nursery.start_soon(run, number, coroutine)
        return [results[number] for number in range(len(coroutines))]

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


def shown(metadata: OurMetadata | None) -> Metadata:
    """The metadata, as other libraries show them."""
    return [(key, value) for key, value in metadata or () if not key.startswith(NOT_SHOWN)]


@contextlib.asynccontextmanager
async def open_client(host: str, port: int, tls: Tls | None) -> AsyncIterator[Client]:
    """A client with a connection of its own."""
    async with OurClient(
        f"{host}:{port}",
        codec=codec(),
        ssl_context=None if tls is None else tls.context(server=False),
        settings=Http2Settings(max_header_list_bytes=METADATA_LIMIT),
        max_message_bytes=MESSAGE_LIMIT,
    ) as client:
        yield Client(client)


if __name__ == "__main__":
    run_trio(open_client, CANNOT)
