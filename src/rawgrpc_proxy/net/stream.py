"""One side of a call: a stream of one connection, as the call sees it.

Commands go straight into the connection's session and never wait. What comes from the peer goes to the stream's
`sink`: an `Inbox` at first, which holds it for somebody who waits, and a pipe of a `Splice` once the call is joined
to its other side. What it does not do: know about the stream's other side, or of gRPC more than how a call ends.
"""

from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import (
    ConnectionFailed,
    ProxyFault,
    ProxyStopping,
    RpcError,
    Side,
    StreamReset,
    UpstreamUnavailable,
)
from rawgrpc_proxy.grpc.status import status_fields, status_from_reset
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers, size_of
from rawgrpc_proxy.http2.session import UNLIMITED
from rawgrpc_proxy.http2.stream_state import CreditSource

if TYPE_CHECKING:
    from rawgrpc_proxy.net.connection import Connection

_LOCAL_SEND_AHEAD_BYTES = 64 * 1024
_SMALL_BYTES = 1024


_Chunk = tuple[bytes | bytearray, int]
"""DATA, and the credit that is owed for it."""


class Sink(Protocol):
    """Takes what a stream's peer sends. Called from the connection's reader: must not wait, must not raise."""

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        """Response headers (upstream streams only)."""

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        """DATA; `credit` is owed to the stream once the bytes are delivered. `data` may be a view: copy to keep."""

    def trailers(self, headers: HeaderList) -> None:
        """Trailers, the end of the peer's half."""

    def failed(self, error: RpcError) -> None:
        """The stream was reset or its connection is lost; nothing else comes, except `closed`."""

    def closed(self) -> None:
        """Both halves are over. Comes exactly once, last."""


class Stream:
    """A stream of `connection`. It is its own credit source: DATA that came from it is credited back to it."""

    __slots__ = ("connection", "ended_by_headers", "headers", "id", "inbox", "oversized", "sink")

    def __init__(self, connection: "Connection", stream_id: int, headers: Headers) -> None:
        self.connection = connection
        self.id = stream_id
        self.headers = headers
        """The request headers."""
        self.ended_by_headers = False
        """The request headers that came said END_STREAM."""
        self.oversized = ""
        """Which limit they have passed, if they have: only the pseudo-fields are here."""
        self.inbox = Inbox(connection, stream_id)
        self.sink: Sink = self.inbox

    def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        """Send response headers or trailers, behind the DATA that waits."""
        connection = self.connection
        connection.session.send_headers(self.id, headers, end_stream)
        connection.touch()

    def send_end(self, headers: Headers, size: int | None = None) -> None:
        """Send what ends a response, behind the DATA that waits; only how the call went, if the peer takes no more.

        `size` is what the list counted as when it came, if it came from a peer.
        """
        connection = self.connection
        limit = connection.session.peer_max_header_list_bytes
        if limit < UNLIMITED:
            size = size or size_of(headers)
            if size > limit:
                connection.tell_limit(
                    "SETTINGS_MAX_HEADER_LIST_SIZE",
                    f"the trailers of a response have {size} bytes; this caller takes {limit}: of them only "
                    "grpc-status and grpc-message are passed on",
                )
                headers = status_fields(headers, limit)
        connection.session.send_headers(self.id, headers, end_stream=True)
        connection.touch()

    def send_data(
        self, data: Data, end_stream: bool = False, source: CreditSource | None = None, credit: int = 0
    ) -> None:
        """Send DATA; when it is with the socket, `source` gets `credit`."""
        connection = self.connection
        connection.session.send_data(self.id, data, end_stream, source, credit)
        connection.touch()

    def reset(self, error_code: int) -> None:
        """End the stream with RST_STREAM, now. Nothing happens if it has ended."""
        if self.connection.session.reset(self.id, error_code):
            self.connection.touch()

    def reset_after_end(self, error_code: int) -> None:
        """End the stream with RST_STREAM as soon as our END_STREAM is out, if the peer has not ended by then."""
        self.connection.session.reset_after_end(self.id, error_code)
        self.connection.touch()

    def credit(self, size: int) -> None:
        """Let the peer send `size` bytes more."""
        if self.connection.session.credit(self.id, size):
            self.connection.touch()


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
        "on_failed",
        "response_headers",
        "sender",
        "trailers_received",
    )

    def __init__(self, connection: "Connection", stream_id: int) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._chunks: deque[_Chunk] | None = None
        self._event: trio.Event | None = None
        self.response_headers: Headers | None = None
        self.trailers_received: Headers | None = None
        self.ended = False
        self.error: RpcError | None = None
        self.on_failed: trio.CancelScope | None = None
        """Cancelled when the stream fails, so that whatever the call is doing stops."""
        self.sender: LocalSender | None = None
        """Waits for room on this stream, and has to hear when there will be none."""

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        self.response_headers = headers
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
            before, owed = chunks[-1]
            if not isinstance(before, bytearray):
                before = bytearray(before)
            before += data
            chunks[-1] = before, owed + credit
        elif data or credit:
            chunks.append((bytes(data), credit))
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
        self._wake()

    @property
    def held(self) -> bool:
        """Whether DATA waits here."""
        return bool(self._chunks)

    def take_all(self) -> list[tuple[bytes, int]]:
        """What is held now, with the credit owed for each piece."""
        chunks, self._chunks = self._chunks, None
        return [(bytes(data), owed) for data, owed in chunks or ()]

    async def receive(self) -> bytes | None:
        """Wait for DATA; None when the peer has ended its half. The bytes count as delivered once they are returned.

        Raises the `RpcError` that ended the stream, if it was reset or its connection lost. Cancellation loses nothing.
        """
        while True:
            if self._chunks:
                await trio.lowlevel.checkpoint()
                data, owed = self._chunks.popleft()
                self._connection.credit(self._stream_id, owed)
                return bytes(data)
            if self.ended:
                return None
            if self.error is not None:
                raise self.error
            await self._wait()

    async def wait_response(self) -> Headers:
        """Wait for the response headers. Raises as `receive` does."""
        while self.response_headers is None:
            if self.error is not None:
                raise self.error
            await self._wait()
        return self.response_headers

    async def _wait(self) -> None:
        self._event = trio.Event()
        await self._event.wait()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None


class LocalSender:
    """Sends DATA that is made here, and waits while the peer does not take it."""

    __slots__ = ("_event", "_stream", "_waiting_bytes")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting_bytes = 0
        self._event: trio.Event | None = None
        stream.inbox.sender = self

    def credit(self, size: int) -> None:
        """So many bytes are with the socket (called by the connection)."""
        self._waiting_bytes -= size
        if self._waiting_bytes <= _LOCAL_SEND_AHEAD_BYTES:
            self.wake()

    def wake(self) -> None:
        """Let `send` look again."""
        if self._event is not None:
            self._event.set()

    async def send(self, data: bytes, *, end_stream: bool = False) -> None:
        """Queue `data` at once, then wait until no more than 64 KiB of this stream are waiting.

        Cancellation does not take the bytes back. Raises the `RpcError` that ended the stream.
        """
        self._waiting_bytes += len(data)
        self._stream.send_data(data, end_stream=end_stream, source=self, credit=len(data))
        await trio.lowlevel.checkpoint()
        while self._waiting_bytes > _LOCAL_SEND_AHEAD_BYTES:
            inbox = self._stream.inbox
            if inbox.error is not None:
                raise inbox.error
            self._event = trio.Event()
            await self._event.wait()
            self._event = None


def headers_too_long(size: int, limit: int) -> RpcError:
    """The error of a call whose response headers are longer than its caller takes: of these nothing can be left out."""
    text = f"the response headers have {size} bytes; the caller takes {limit}"
    return RpcError(Status.RESOURCE_EXHAUSTED, text, origin="proxy")


def reset_error(error_code: int, side: Side, reason: str) -> StreamReset:
    """The error of a call whose stream was reset by `side` (table in `grpc/status.py`)."""
    error = StreamReset(status_from_reset(error_code), error_code, side=side)
    if reason:
        error.message = f"{error.message}: {reason}"
    return error


def lost_error(error: ConnectionFailed, connection: "Connection") -> RpcError:
    """The error of a call whose connection is lost."""
    if isinstance(error, ProxyFault):
        return RpcError(Status.INTERNAL, error.message, origin="proxy")
    if isinstance(error, ProxyStopping):
        return RpcError(Status.UNAVAILABLE, error.message, origin="proxy")
    return UpstreamUnavailable(f"the connection to {connection.peer} is lost: {error}", side=connection.side)
