"""What a stream receives until somebody takes it: a `Sink` for streams that are not spliced.

What it does not do: bound itself; the stream's receive window does. The invariant: bytes are credited when they are
taken, so a peer whose bytes nobody takes stops.
"""

from collections import deque
from collections.abc import Collection
from typing import Protocol

import trio

from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.http2.buffered import PIECE_BYTES, Account
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers

_SMALL_BYTES = 1024

Chunk = tuple[bytes | bytearray, int, int]
"""DATA, the credit that is owed for it, and what of it is counted (`Inbox.keep`)."""


class Creditor(Protocol):
    """The stream's connection, as far as an inbox knows it."""

    account: Account

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send `size` bytes more on this stream."""


class Sender(Protocol):
    """Somebody who waits for room on the stream."""

    def wake(self) -> None:
        """Look again: there may be none any more."""


class Inbox:
    """Holds what a stream receives until somebody takes it. Bounded by the stream's receive window.

    One task at a time may wait. `trailers_received` is None until the peer has ended its half with trailers.
    It does not hold its stream: the two would keep each other alive until the garbage collector looks.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_event",
        "_stream_id",
        "ended",
        "error",
        "moved_at",
        "on_failed",
        "sender",
        "trailers_received",
        "waiting_bytes",
    )

    def __init__(self, connection: "Creditor", stream_id: int) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._chunks: deque[Chunk] | None = None
        self._event: trio.Event | None = None
        self.waiting_bytes = 0
        """What is counted of what waits here, or is held by whoever has taken it (`keep`)."""
        self.moved_at = 0
        """What `Buffered.passed` was when the first of it came."""
        self.trailers_received: Headers | None = None
        self.ended = False
        self.error: RpcError | None = None
        self.on_failed: trio.CancelScope | None = None
        """Cancelled when the stream fails, so that whatever the call is doing stops."""
        self.sender: Sender | None = None
        """Waits for room on this stream, and has to hear when there will be none."""

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        if end_stream:
            # Trailers-Only: the one list is both.
            self.trailers_received = headers
            self.ended = True
        self._wake()

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = deque()
        if chunks and len(data) < _SMALL_BYTES:
            # Joined, so that single bytes do not cost a hundred each while they wait.
            before, owed, counted = chunks[-1]
            if not isinstance(before, bytearray):
                before = bytearray(before)
            before += data
            chunks[-1] = before, owed + credit, counted + len(data)
            self.keep(len(data))
        elif data or credit:
            # The first of a small call is not worth the time.
            counted = len(data) + PIECE_BYTES if len(data) >= _SMALL_BYTES else 0
            chunks.append((bytes(data), credit, counted))
            if counted:
                self.keep(counted)
        self.ended = self.ended or end_stream
        self._wake()

    def trailers(self, headers: HeaderList) -> None:
        self.trailers_received = headers
        self.ended = True
        self._wake()

    def failed(self, error: RpcError) -> None:
        self.error = error
        if self.on_failed is not None:
            self.on_failed.cancel()
        if self.sender is not None:
            self.sender.wake()
        self._wake()

    def closed(self) -> None:
        self.sender = None
        self.let_go(self.waiting_bytes)
        self._wake()

    def keep(self, size: int) -> None:
        """Count `size` bytes that have come on the stream and stay in memory."""
        account = self._connection.account
        if not self.waiting_bytes:
            self.moved_at = account.buffered.passed
        self.waiting_bytes += size
        account.add_arrived(size)

    def let_go(self, size: int) -> None:
        """They are not there any more. What was counted before the stream was over is not counted by now."""
        size = min(size, self.waiting_bytes)
        if size:
            self.waiting_bytes -= size
            self._connection.account.take_arrived(size)

    @property
    def held(self) -> bool:
        """Whether DATA waits here."""
        return bool(self._chunks)

    def peek(self, size: int) -> bytes | None:
        """The first `size` bytes of the DATA that waits, or all of it if no more will come; else None.

        Nothing is taken, nor credited, so `size` must fit into the stream's window.
        """
        first = b""
        for data, _, _ in self._chunks or ():
            first += data[: size - len(first)]
            if len(first) == size:
                return first
        return first if self.ended or self.error is not None else None

    async def await_first(self, size: int) -> bytes:
        """Wait until `peek` answers something. Cancellation loses nothing."""
        while (first := self.peek(size)) is None:
            await self._wait()
        return first

    def take_all(self) -> Collection[Chunk]:
        """What is held now, with the credit owed for each piece. It is nobody else's any more."""
        if self.waiting_bytes:
            self.let_go(self.waiting_bytes)
        chunks, self._chunks = self._chunks, None
        return chunks or ()

    async def receive(self) -> bytes | None:
        """Wait for DATA; None when the peer has ended its half. The bytes count as delivered once they are returned.

        Raises the `RpcError` that ended the stream, if it was reset or its connection lost. Cancellation loses nothing.
        """
        while True:
            if self._chunks:
                await trio.lowlevel.checkpoint()
                data, owed, counted = self._chunks.popleft()
                self.let_go(counted)
                self._connection.credit(self._stream_id, owed)
                return bytes(data)
            if self.ended:
                return None
            if self.error is not None:
                raise self.error
            await self._wait()

    async def _wait(self) -> None:
        self._event = trio.Event()
        await self._event.wait()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None
