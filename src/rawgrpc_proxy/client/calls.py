"""A call as whoever makes it sees it: what is sent and received, encoded by a codec; how it went.

The four shapes: `UnaryUnaryCall` is awaited, `UnaryStreamCall` and `StreamStreamCall` are blocks, `StreamUnaryCall` is
either. The invariant: leaving a block leaves the call, over or not; nothing of it goes on in the background.
"""

import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import trio

from rawgrpc_proxy.client.exchange import Exchange
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.codec import Codec
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.observe.describe import shown

Reply = TypeVar("Reply")
Requests = Iterable[object] | AsyncIterable[object]


def marshalled(codec: Codec, message: object) -> bytes:
    """The payload for this message. Raises `TypeError` for one that the codec does not take."""
    payload = codec.marshal(message)
    if not isinstance(payload, bytes):
        raise TypeError(f"the codec {shown(codec.name)} has marshalled bytes, not {shown(payload)}")
    return payload


class ClientCall(Generic[Reply]):
    """What all calls that a client makes have in common. `client.unary_unary` and its like make them."""

    def __init__(self, exchange: Exchange, codec: Codec, reply_type: type[Reply]) -> None:
        self._exchange = exchange
        self._codec = codec
        self._type = reply_type
        self._begun = False

    def __del__(self) -> None:
        if not self._begun:
            warnings.warn(
                f"{self!r} was never made: await it, or enter its block",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    @property
    def headers(self) -> Metadata | None:
        """The response headers as they came; None until then. Empty in a response that is but trailers."""
        return self._exchange.headers

    @property
    def trailers(self) -> Metadata | None:
        """The trailers as they came, grpc-status and all; None until then, and if none came."""
        return self._exchange.trailers

    @property
    def status(self) -> Status | None:
        """How the call went; None until that is known. One that was left before is CANCELLED."""
        return self._exchange.status

    @property
    def status_message(self) -> str:
        """The text beside the status."""
        return self._exchange.status_message

    @property
    def address(self) -> str | None:
        """Where the call went; None until there was a connection."""
        return self._exchange.address

    def cancel(self) -> None:
        """End the call with CANCELLED, from any task: the server is told, and whoever waits for it gets the error."""
        self._exchange.abort(RpcError(Status.CANCELLED, "the call was cancelled", origin="proxy"))

    def _begin(self) -> None:
        if self._begun:
            raise RuntimeError("a call is made once; ask the client for another one")
        self._begun = True

    async def _only(self) -> Reply:
        return self._codec.unmarshal(await self._exchange.only(), self._type)

    def __repr__(self) -> str:
        status = self.status
        how = "" if status is None else f" {status.name}"
        return f"<{type(self).__name__} {self._exchange.method}{how}>"


class UnaryUnaryCall(ClientCall[Reply]):
    """One message out, one back: `reply = await client.unary_unary(...)`.

    Kept in a variable, it tells of headers and trailers afterwards: `call = client.unary_unary(...)`,
    `reply = await call`, `call.trailers`. Nothing is sent before it is awaited.
    """

    def __init__(self, exchange: Exchange, codec: Codec, reply_type: type[Reply], request: bytes) -> None:
        super().__init__(exchange, codec, reply_type)
        self._request = request

    def __await__(self) -> Generator[Any, Any, Reply]:
        return self._make().__await__()

    async def _make(self) -> Reply:
        self._begin()
        exchange = self._exchange
        try:
            await exchange.open(self._request)
            return await self._only()
        finally:
            exchange.close()


class _Block(ClientCall[Reply]):
    """A call that is open while its block runs."""

    def __init__(
        self, exchange: Exchange, codec: Codec, reply_type: type[Reply], requests: Requests | None
    ) -> None:
        super().__init__(exchange, codec, reply_type)
        self._requests = requests
        self._request: bytes | None = None
        """The only one, of a unary request."""
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._fault: Exception | None = None
        """What whoever makes the requests has raised."""
        self._sending = self._receiving = False

    async def __aenter__(self) -> Self:
        """Send the request headers, and the request if it is one. Waits for a connection; raises `RpcError`."""
        self._begin()
        await self._exchange.open(self._request)
        if self._requests is not None:
            self._nursery_manager = trio.open_nursery()
            self._nursery = await self._nursery_manager.__aenter__()
            self._nursery.start_soon(self._send_requests, self._requests)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange.close()
        if self._nursery_manager is not None and self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our task.
            await self._nursery_manager.__aexit__(None, None, None)
        if error is None and self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    async def receive_headers(self) -> Metadata:
        """Wait for the response headers. Raises `RpcError` if the call fails before."""
        try:
            await self._exchange.receive_headers()
        except RpcError:
            self._raise_fault()
            raise
        headers = self._exchange.headers
        assert headers is not None
        return headers

    async def _receive(self) -> Reply | None:
        if self._receiving:
            raise trio.BusyResourceError("another task waits for a message of this call")
        self._receiving = True
        try:
            payload = await self._exchange.receive()
        except RpcError:
            self._raise_fault()
            raise
        finally:
            self._receiving = False
        return None if payload is None else self._codec.unmarshal(payload, self._type)

    async def _send(self, message: object) -> None:
        payload = marshalled(self._codec, message)
        if self._sending:
            raise trio.BusyResourceError("another task is sending a message of this call")
        self._sending = True
        try:
            await self._exchange.send(payload)
        finally:
            self._sending = False

    async def _send_all(self, messages: Requests) -> None:
        try:
            if isinstance(messages, AsyncIterable):
                async for message in messages:
                    await self._send(message)
            else:
                for message in messages:
                    await self._send(message)
        except trio.BrokenResourceError:
            if not self._exchange.has_ended_well:
                raise  # not ours, but of whoever makes the messages
            return
        finally:
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()
        await self._exchange.end_request()

    async def _send_requests(self, requests: Requests) -> None:
        """The task that sends what was given with the call. Whoever reads the response hears how the call went."""
        try:
            await self._send_all(requests)
        except (RpcError, trio.ClosedResourceError) as error:
            if not self._exchange.over and self._exchange.failure is None:
                self._fault = error
        except Exception as fault:  # noqa: BLE001  # raised where the response is read, or the block left
            self._fault = fault
        if self._fault is not None:
            self._exchange.abort(
                RpcError(Status.CANCELLED, "the requests ended with an error", origin="proxy")
            )

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault


class _Receives(_Block[Reply], AsyncIterator[Reply]):
    """A call whose response is a stream."""

    async def receive(self) -> Reply | None:
        """The next message; None when there are no more and the status is OK, else its `RpcError`.

        Cancellation loses nothing. What is not received yet the server may send only as far as its window goes.
        """
        return await self._receive()

    async def __anext__(self) -> Reply:
        message = await self._receive()
        if message is None:
            raise StopAsyncIteration
        return message


class _Sends(_Block[Reply]):
    """A call whose request is a stream."""

    async def send(self, message: object) -> None:
        """Send a message; waits while more than 64 KiB are on their way, for the server takes no more.

        Cancellation does not take the message back. Raises `RpcError` if the call has failed,
        `trio.BrokenResourceError` if it has ended with OK, so that the server reads no more,
        `trio.ClosedResourceError` after `done_sending`, `trio.BusyResourceError` while another task sends.
        """
        await self._send(message)

    async def send_all(self, messages: Requests) -> None:
        """Send what this yields, and then `done_sending`. A server that has enough and answers OK is no error."""
        await self._send_all(messages)

    async def done_sending(self) -> None:
        """Tell the server that no more messages come. A second time nothing happens."""
        await self._exchange.end_request()


class UnaryStreamCall(_Receives[Reply]):
    """One message out, many back: `async with client.unary_stream(...) as call: async for message in call: ...`."""

    def __init__(self, exchange: Exchange, codec: Codec, reply_type: type[Reply], request: bytes) -> None:
        super().__init__(exchange, codec, reply_type, None)
        self._request = request


class StreamStreamCall(_Sends[Reply], _Receives[Reply]):
    """Many messages both ways, as they come: `async with client.stream_stream(...) as call: ...`.

    One task may send while another one receives.
    """


class StreamUnaryCall(_Sends[Reply]):
    """Many messages out, one back: `await client.stream_unary(method, requests)`, or a block that sends them.

    async with client.stream_unary(method) as call:
        await call.send(message)
        reply = await call.reply()
    """

    async def reply(self) -> Reply:
        """The reply, after `done_sending` if that was not called. Raises the `RpcError` of a call that has failed."""
        if self._requests is None:
            await self._exchange.end_request()
        try:
            return await self._only()
        except RpcError:
            self._raise_fault()
            raise

    def __await__(self) -> Generator[Any, Any, Reply]:
        return self._make().__await__()

    async def _make(self) -> Reply:
        if self._requests is None:
            self._begun = True  # this is told now
            raise TypeError(
                "only a call that was given its requests can be awaited: client.stream_unary(method, requests)"
            )
        async with self as call:
            return await call.reply()
