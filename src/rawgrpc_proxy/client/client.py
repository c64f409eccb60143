"""`Client`: makes gRPC calls of one's own, over the connections of a pool.

What it does not do: retry by policy, or choose between servers; whoever has the places may (`places.py`). The
invariant: leaving the client's block leaves none of its calls.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import trio

from rawgrpc_proxy.client.calls import (
    Requests,
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
    marshalled,
)
from rawgrpc_proxy.client.exchange import Exchange
from rawgrpc_proxy.client.places import TakesCalls
from rawgrpc_proxy.client.request import Ends
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.custom_metadata import Value, checked_text, headers_of
from rawgrpc_proxy.errors import ConfigError, RpcError
from rawgrpc_proxy.grpc.codec import Codec, identity_codec
from rawgrpc_proxy.grpc.messages import DEFAULT_MAX_MESSAGE_BYTES
from rawgrpc_proxy.grpc.path import path_problem
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.timers import Timer, Timers
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.observe.describe import shown
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.version import version

Reply = TypeVar("Reply")
CustomMetadata = Mapping[str, Value] | Iterable[tuple[str, Value]]

_OWN_WORDS = {
    b"content-type": "messages are application/grpc",
    b"grpc-timeout": "use timeout=",
    b"grpc-encoding": "messages are not compressed",
    b"grpc-accept-encoding": "gzip and deflate are understood",
    b"user-agent": "use the client's user_agent=",
}
"""What a request says once, and by other means than metadata."""


class Client:
    """Makes calls: `async with Client("127.0.0.1:50051") as client: reply = await client.unary_unary(method, b"…")`.

    `where` is an address, `HOST:PORT` or `unix:PATH`, to which the client then has a pool of its own, with
    `ssl_context` (which should offer `h2` by ALPN) and `settings`; or whoever has places for calls: a pool's `target`.

    Messages are bytes, or what `codec` takes: with `codec()` protobuf messages, and the type of the reply is given
    with each call. `timeout` in seconds and `metadata` are what each call has that says nothing else; a call's own
    metadata are sent behind them. `authority` is the address, unless it is given. A received message may have
    `max_message_bytes`, decompressed too (gzip and deflate; sent messages are not compressed): a longer one ends the
    call with RESOURCE_EXHAUSTED. What is sent has no bound but the server's.

    A call fails with an `RpcError`, whoever has the fault: it has status, message and trailing metadata. The timeout
    counts from when the call is awaited or its block entered, the wait for a connection included; it is told to the
    server, and kept here. Cancelling a call resets its stream. A call that the server provably has not processed
    (REFUSED_STREAM, GOAWAY) is made once more, on another connection, as long as nothing but a unary request was sent.

    Leaving the client's block ends its calls with CANCELLED.
    """

    def __init__(  # all that one may want of a client, each with a default
        self,
        where: str | TakesCalls,
        *,
        ssl_context: TlsContext | None = None,
        settings: Http2Settings | None = None,
        codec: Codec | None = None,
        authority: str | None = None,
        metadata: CustomMetadata = (),
        timeout: float | None = None,
        user_agent: str | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """Raise `ConfigError` for what cannot work; `TypeError` and `ValueError` for metadata, as `Metadata` does."""
        self._pool: Pool | None = None
        if isinstance(where, str):
            self._pool = Pool(settings=settings)
            self.where: TakesCalls = self._pool.target(where, ssl_context=ssl_context)
        elif ssl_context is not None or settings is not None:
            raise ConfigError(
                "ssl_context and settings are for a client with an address; a target has its own: "
                "pool.target(address, ssl_context=...)"
            )
        elif not hasattr(where, "take_place"):
            raise ConfigError(
                f"a client needs an address, or who has places for calls, like pool.target(address), not {shown(where)}"
            )
        else:
            self.where = where
        if max_message_bytes < 0:
            raise ConfigError("max_message_bytes is 0 or more")
        self.authority = None if authority is None else checked_text(":authority", authority).encode()
        agent = user_agent or f"rawgrpc-proxy-client/{version()}"
        self.user_agent = (b"user-agent", checked_text("user-agent", agent).encode())
        self.max_message_bytes = max_message_bytes
        self._codec = codec or identity_codec()
        self._fields = _fields_of(metadata)
        self._timeout = _checked_timeout(timeout)
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._timers: Timers | None = None
        self._calls: set[Ends] = set()

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            raise ConfigError("the client is open already; whoever has it may use it")
        if self._pool is not None:
            await self._pool.__aenter__()
        self._nursery_manager = trio.open_nursery()
        self._timers = Timers(await self._nursery_manager.__aenter__())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timers, self._timers = self._timers, None
        manager, self._nursery_manager = self._nursery_manager, None
        assert timers is not None
        assert manager is not None
        for call in list(self._calls):
            call.abort(RpcError(Status.CANCELLED, "the client is closed", origin="proxy"))
        timers.close()
        try:
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our task.
            await manager.__aexit__(None, None, None)
        finally:
            if self._pool is not None:
                await self._pool.__aexit__(None, None, None)

    # ------------------------------------------------------------------- for its calls

    def enter(self, call: Ends) -> None:
        """A call begins."""
        if self._timers is None:
            raise ConfigError("the client is not open: use it inside `async with Client(...) as client:`")
        self._calls.add(call)

    def leave(self, call: Ends) -> None:
        """It is over."""
        self._calls.discard(call)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at this time of trio's clock."""
        assert self._timers is not None
        return self._timers.add(when, callback)

    # ------------------------------------------------------------------------- calls

    @overload
    def unary_unary(
        self,
        method: str,
        request: object,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> UnaryUnaryCall[bytes]: ...
    @overload
    def unary_unary(
        self,
        method: str,
        request: object,
        reply_type: type[Reply],
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> UnaryUnaryCall[Reply]: ...
    def unary_unary(
        self,
        method: str,
        request: object,
        reply_type: type[Any] = bytes,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> UnaryUnaryCall[Any]:
        """One message out, one back: `reply = await client.unary_unary("/package.Service/Method", request, Reply)`.

        Raises `ValueError` for what is no method, and for metadata that gRPC forbids.
        """
        payload = marshalled(self._codec, request)
        return UnaryUnaryCall(self._exchange(method, timeout, metadata), self._codec, reply_type, payload)

    @overload
    def unary_stream(
        self,
        method: str,
        request: object,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> UnaryStreamCall[bytes]: ...
    @overload
    def unary_stream(
        self,
        method: str,
        request: object,
        reply_type: type[Reply],
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> UnaryStreamCall[Reply]: ...
    def unary_stream(
        self,
        method: str,
        request: object,
        reply_type: type[Any] = bytes,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> UnaryStreamCall[Any]:
        """One message out, many back: `async with client.unary_stream(...) as call: async for reply in call: ...`.

        Leaving the block before the end cancels the call. Errors as in `unary_unary`.
        """
        payload = marshalled(self._codec, request)
        return UnaryStreamCall(self._exchange(method, timeout, metadata), self._codec, reply_type, payload)

    @overload
    def stream_unary(
        self,
        method: str,
        requests: Requests | None = None,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> StreamUnaryCall[bytes]: ...
    @overload
    def stream_unary(
        self,
        method: str,
        requests: Requests | None = None,
        reply_type: type[Reply] = ...,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> StreamUnaryCall[Reply]: ...
    def stream_unary(
        self,
        method: str,
        requests: Requests | None = None,
        reply_type: type[Any] = bytes,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> StreamUnaryCall[Any]:
        """Many messages out, one back: `reply = await client.stream_unary(method, requests)`.

        `requests` may be iterable or async iterable. Without them the call is a block, in which `call.send` sends and
        `await call.reply()` is the end. Errors as in `unary_unary`.
        """
        return StreamUnaryCall(self._exchange(method, timeout, metadata), self._codec, reply_type, requests)

    @overload
    def stream_stream(
        self,
        method: str,
        requests: Requests | None = None,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> StreamStreamCall[bytes]: ...
    @overload
    def stream_stream(
        self,
        method: str,
        requests: Requests | None = None,
        reply_type: type[Reply] = ...,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> StreamStreamCall[Reply]: ...
    def stream_stream(
        self,
        method: str,
        requests: Requests | None = None,
        reply_type: type[Any] = bytes,
        *,
        timeout: float | None = None,
        metadata: CustomMetadata = (),
    ) -> StreamStreamCall[Any]:
        """Many messages both ways: `async with client.stream_stream(method) as call: ...`.

        In the block: `call.send`, `call.done_sending`, `call.receive` or `async for`. With `requests`, iterable or
        async iterable, they are sent by a task of the block. Errors as in `unary_unary`.
        """
        return StreamStreamCall(self._exchange(method, timeout, metadata), self._codec, reply_type, requests)

    def _exchange(self, method: str, timeout: float | None, metadata: CustomMetadata) -> Exchange:
        problem = path_problem(method.encode())
        if problem is not None:
            raise ValueError(f"{problem}; a method is called by its path, '/package.Service/Method'")
        fields = [*self._fields, *_fields_of(metadata)] if metadata else self._fields
        timeout = self._timeout if timeout is None else _checked_timeout(timeout)
        return Exchange(self, method, fields, timeout)


def _fields_of(metadata: CustomMetadata) -> Headers:
    fields = headers_of(metadata)
    for name, _ in fields:
        if name in _OWN_WORDS:
            raise ValueError(f"{name.decode()!r} cannot be metadata of a call: {_OWN_WORDS[name]}")
    return fields


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None or timeout == math.inf:
        return None
    if not isinstance(timeout, int | float):
        raise TypeError(f"a timeout is a number of seconds, not {type(timeout).__name__}")
    if math.isnan(timeout):
        raise ValueError("a timeout is a number of seconds, not NaN")
    return timeout
