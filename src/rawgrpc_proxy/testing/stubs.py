"""Answers for tests that need no upstream: what callers of a method get, until it is removed or used up.

The invariant: it is used in the proxy's own thread only.
"""

from collections.abc import AsyncIterator, Iterable, Mapping

import attrs
import trio

from rawgrpc_proxy.call import Call, Handler
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.custom_metadata import Value
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.codec import Codec
from rawgrpc_proxy.services.methods import ServedCall, stream_stream

CustomMetadata = Mapping[str, Value] | Iterable[tuple[str, Value]]


@attrs.define(kw_only=True, eq=False)
class Stub:
    """What callers get; made by `answer`."""

    method: str
    messages: list[bytes]
    status: Status
    message: str
    metadata: list[tuple[str, Value]]
    trailers: list[tuple[str, Value]]
    delay_s: float
    left: int | None
    """How many more calls get it; None: all."""


class Stubs:
    """The answers there are. The handler `handle` gives them; calls without one go to `otherwise`."""

    def __init__(self, codec: Codec, otherwise: Handler | None) -> None:
        self._codec = codec
        self._otherwise = otherwise
        self._stubs: dict[str, list[Stub]] = {}

    def add(self, stub: Stub) -> None:
        """It is used before those that are there."""
        self._stubs.setdefault(stub.method, []).append(stub)

    def remove(self, stub: Stub) -> None:
        """It is used no more; nothing happens if it was removed before."""
        self._stubs[stub.method] = [each for each in self._stubs.get(stub.method, ()) if each is not stub]

    async def handle(self, call: Call) -> None:
        """A handler."""
        method = call.context.method
        stub = self._take(method)
        if stub is not None:
            await stream_stream(_Answer(stub).give, bytes)(self._codec)(call)
        elif self._otherwise is not None:
            await self._otherwise(call)
        else:
            known = ", ".join(name for name, stubs in self._stubs.items() if stubs) or "none"
            raise RpcError(
                Status.UNIMPLEMENTED,
                f"the test's proxy has no upstream, and no answer for {method}; there are: {known}",
                origin="handler",
            )

    def _take(self, method: str) -> Stub | None:
        for stub in reversed(self._stubs.get(method, ())):
            if stub.left is None:
                return stub
            if stub.left > 0:
                stub.left -= 1
                return stub
        return None


@attrs.frozen
class _Answer:
    stub: Stub

    async def give(self, requests: AsyncIterator[bytes], call: ServedCall) -> AsyncIterator[bytes]:
        """The whole request, then all of the answer."""
        async for _ in requests:
            pass
        stub = self.stub
        if stub.delay_s:
            await trio.sleep(stub.delay_s)
        if stub.metadata:
            call.send_initial_metadata(stub.metadata)
        for message in stub.messages:
            yield message
        call.trailing_metadata.extend(stub.trailers)
        if stub.status is not Status.OK or stub.message:
            raise RpcError(stub.status, stub.message)
