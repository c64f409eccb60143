"""Methods served here: a function of the user's, its messages decoded and encoded by a codec.

The four shapes have grpcio's names: `unary_unary(fn, Request)`, `unary_stream`, `stream_unary`, `stream_stream`. The
request messages come one by one or as an async iterator; a streaming response is an async generator. gzip and deflate
request messages are understood; answers are not compressed. An `RpcError` from the function is the call's status.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import trio

from rawgrpc_proxy.call import Call, Handler
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.custom_metadata import Value, response_headers_of
from rawgrpc_proxy.errors import RpcError, Side
from rawgrpc_proxy.grpc.codec import Codec
from rawgrpc_proxy.grpc.compression import ACCEPT_ENCODING, inflated
from rawgrpc_proxy.grpc.messages import DEFAULT_MAX_MESSAGE_BYTES, MessageReader, encode_message
from rawgrpc_proxy.net.local_sender import LocalSender
from rawgrpc_proxy.observe.describe import shown

Request = TypeVar("Request")

_STALLED_S = 30.0
"""How long a message of the request may make no progress, once it has begun or is the only one that is waited for."""
_MESSAGES_A_TURN = 256
_BYTES_A_TURN = 256 * 1024
"""Of messages that are here already: then everything else gets its turn, for a window can hold 200,000 empty ones."""


class ServedCall:
    """What a served method is given beside its request: the call's context, and its metadata to answer with."""

    def __init__(self, call: Call) -> None:
        self.context = call.context
        self.stopping = call.stopping
        """Whether the server stops. A method that would go on as long as its caller likes ends then."""
        self._call = call
        self.trailing_metadata: list[tuple[str, Value]] = []
        """Goes out with the status; append to it at any time before the function ends."""

    def send_initial_metadata(self, pairs: list[tuple[str, Value]]) -> None:
        """Send the response headers now, with this metadata. Without it they go out with the first message."""
        self._call.send_headers([ACCEPT_ENCODING, *response_headers_of(pairs)])


class _Messages(AsyncIterator[Request]):
    """The request messages, decoded as they are asked for."""

    def __init__(self, call: Call, codec: Codec, request_type: type[Request], max_message_bytes: int) -> None:
        self._call = call
        self._codec = codec
        self._type = request_type
        self._max_message_bytes = max_message_bytes
        self._reader = MessageReader(max_message_bytes=max_message_bytes)
        self._taken = self._taken_bytes = 0
        self._is_only = False
        self._kept_bytes = 0
        """What the reader holds, as the stream's inbox counts it."""
        self._encoding = dict(call.stream.headers).get(b"grpc-encoding", b"identity")

    async def __anext__(self) -> Request:
        if self._taken >= _MESSAGES_A_TURN or self._taken_bytes >= _BYTES_A_TURN:
            self._taken = self._taken_bytes = 0
            await trio.lowlevel.checkpoint()
        inbox = self._call.stream.inbox
        while (message := self._reader.take()) is None:
            data = await self._received()
            if data is None:
                if not self._reader.at_boundary:
                    raise RpcError(
                        Status.INTERNAL, "the request ends in the middle of a message", origin="served"
                    )
                raise StopAsyncIteration
            self._call.record.request_bytes += len(data)
            self._reader.add(data)
            inbox.keep(len(data))
            self._kept_bytes += len(data)
        compressed, payload = message
        gone = self._kept_bytes if self._reader.at_boundary else len(payload)
        inbox.let_go(gone)
        self._kept_bytes -= gone
        if compressed:
            payload = inflated(payload, self._encoding, self._max_message_bytes, origin="served")
        self._taken += 1
        self._taken_bytes += len(payload)
        self._call.record.request_messages += 1
        return self._codec.unmarshal(payload, self._type)

    async def _received(self) -> bytes | None:
        """More of the request. A message that has begun may stall for `_STALLED_S`, and so may the only one."""
        inbox = self._call.stream.inbox
        if not self._is_only and self._reader.at_boundary:
            return await inbox.receive()
        with trio.move_on_after(_STALLED_S):
            return await inbox.receive()
        raise RpcError(
            Status.DEADLINE_EXCEEDED,
            f"nothing more has come of the request for {_STALLED_S:g} s, and it is not complete",
            origin="served",
        )

    async def only(self) -> Request:
        """The one message of a unary request. Raises INTERNAL if there is none, or more than one."""
        self._is_only = True
        try:
            message = await self.__anext__()
        except StopAsyncIteration:
            raise RpcError(Status.INTERNAL, "a unary request without a message", origin="served") from None
        try:
            await self.__anext__()
        except StopAsyncIteration:
            return message
        raise RpcError(Status.INTERNAL, "a unary request with more than one message", origin="served")


class _Answers:
    """Sends the response messages of one call."""

    def __init__(self, call: Call, codec: Codec) -> None:
        self._call = call
        self._codec = codec
        self._sender = LocalSender(call.stream)

    async def send(self, message: object) -> None:
        payload = self._codec.marshal(message)
        if not isinstance(payload, bytes):
            raise TypeError(f"the codec {shown(self._codec.name)} has marshalled bytes, not {shown(payload)}")
        data = encode_message(payload)
        self._call.send_headers([ACCEPT_ENCODING])
        self._call.record.response_bytes += len(data)
        self._call.record.response_messages += 1
        await self._sender.send(data)

    async def send_all(self, messages: object) -> None:
        """Send what an async generator yields, and close it here if the call ends first.

        Left to the garbage collector, its `finally` blocks would run much later, outside of the call.
        """
        if not isinstance(messages, AsyncIterator):
            if inspect.iscoroutine(messages):
                messages.close()
            raise TypeError(
                f"a method with a streaming response is an async generator, `async def` with `yield`; this one "
                f"answered {shown(messages)}"
            )
        try:
            async for message in messages:
                await self.send(message)
        finally:
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()


MethodKind = Callable[[Codec], Handler]
"""A method that still needs its server's codec; `Server.add_method` takes it."""


def unary_unary(
    function: Callable[[Request, ServedCall], Awaitable[object]],
    request_type: type[Request],
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> MethodKind:
    """One message in, one out: `async def fn(request, call): return reply`."""

    async def answer(messages: _Messages[Request], answers: _Answers, served: ServedCall) -> None:
        await answers.send(await _awaited(function(await messages.only(), served)))

    return _method(answer, request_type, max_message_bytes)


def unary_stream(
    function: Callable[[Request, ServedCall], AsyncIterator[object]],
    request_type: type[Request],
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> MethodKind:
    """One message in, many out: `async def fn(request, call): yield reply`."""

    async def answer(messages: _Messages[Request], answers: _Answers, served: ServedCall) -> None:
        await answers.send_all(function(await messages.only(), served))

    return _method(answer, request_type, max_message_bytes)


def stream_unary(
    function: Callable[[AsyncIterator[Request], ServedCall], Awaitable[object]],
    request_type: type[Request],
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> MethodKind:
    """Many messages in, one out: `async def fn(requests, call): return reply`."""

    async def answer(messages: _Messages[Request], answers: _Answers, served: ServedCall) -> None:
        await answers.send(await _awaited(function(messages, served)))

    return _method(answer, request_type, max_message_bytes)


def stream_stream(
    function: Callable[[AsyncIterator[Request], ServedCall], AsyncIterator[object]],
    request_type: type[Request],
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> MethodKind:
    """Many messages in, many out, as they come: `async def fn(requests, call): yield reply`."""

    async def answer(messages: _Messages[Request], answers: _Answers, served: ServedCall) -> None:
        await answers.send_all(function(messages, served))

    return _method(answer, request_type, max_message_bytes)


def _awaited(answer: Awaitable[object]) -> Awaitable[object]:
    """What a function has answered, if it can be awaited."""
    if not inspect.isawaitable(answer):
        raise TypeError(
            f"a method with one response is an async function, `async def` with `return`; this one answered "
            f"{shown(answer)}"
        )
    return answer


_ORIGINS = frozenset({"director", "upstream", "http", "reset", "lost"})
"""Of the errors of a method: its own, and those of calls that it has made itself and lets through."""


def _of_this_method(error: RpcError, served: ServedCall) -> RpcError:
    """The error that ends the call: the function's, with the trailing metadata it has set."""
    is_ours = error.origin in _ORIGINS and error.side is not Side.DOWNSTREAM
    if not is_ours and not served.trailing_metadata:
        return error
    return RpcError(
        error.status,
        error.message,
        trailing_metadata=[*error.trailing_metadata, *served.trailing_metadata],
        side=error.side,
        origin="served" if is_ours else error.origin,
        cause=error.cause,
    )


def _method(
    answer: Callable[[_Messages[Any], _Answers, ServedCall], Awaitable[None]],
    request_type: type[Any],
    max_message_bytes: int,
) -> MethodKind:
    def with_codec(codec: Codec) -> Handler:
        async def handle(call: Call) -> None:
            served = ServedCall(call)
            call.record.origin = "served"
            try:
                await answer(
                    _Messages(call, codec, request_type, max_message_bytes), _Answers(call, codec), served
                )
            except RpcError as error:
                raise _of_this_method(error, served) from error
            call.send_headers([ACCEPT_ENCODING])
            call.end(Status.OK, metadata=response_headers_of(served.trailing_metadata))

        return handle

    return with_codec
