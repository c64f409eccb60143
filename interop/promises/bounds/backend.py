"""What the bounds are measured against: an endless stream, a plain answer, and calls held until all are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import trio

from rawgrpc_proxy import (
    Call,
    ServedCall,
    Server,
    Status,
    codec_with_parent,
    identity_codec,
    unary_stream,
    unary_unary,
)

SERVICE = "/bounds.Bounds/"
#: With its prefix, 64 KiB.
MESSAGE = bytes(65_536 - 5)
MESSAGE_BYTES = 5 + len(MESSAGE)


class Backend(Server):
    """Holds calls to `Hold` until there are `calls` of them, and counts on which connections they came."""

    def __init__(self, calls: int) -> None:
        super().__init__(codec=codec_with_parent(identity_codec()))
        self._held_until = calls
        self._all_there = trio.Event()
        self.held: Counter[str] = Counter()
        """Calls that are held, by the connection's other end."""
        self.most_on_one = 0
        self.add_method(SERVICE + "Stream", unary_stream(self._stream, bytes))
        self.add_method(SERVICE + "Hello", unary_unary(self._hello, bytes))
        self.add_handler(SERVICE + "Hold", self._hold)

    async def _stream(self, request: bytes, _call: ServedCall) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield MESSAGE

    async def _hello(self, request: bytes, _call: ServedCall) -> bytes:
        return request

    async def _hold(self, call: Call) -> None:
        connection = call.context.peer
        self.held[connection] += 1
        self.most_on_one = max(self.most_on_one, self.held[connection])
        if self.held.total() == self._held_until:
            self._all_there.set()
        await self._all_there.wait()
        call.end(Status.OK)
