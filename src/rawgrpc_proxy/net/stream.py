"""One side of a call: a stream of one connection, as the call sees it.

Commands go straight into the connection's session and never wait. What comes from the peer goes to the stream's
`sink`: an `Inbox` at first, which holds it for somebody who waits, and a pipe of a `Splice` once the call is joined
to its other side. What it does not do: know about the stream's other side, or of gRPC more than how a call ends.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from rawgrpc_proxy.errors import ConnectionFailed, RpcError
from rawgrpc_proxy.grpc.status import status_fields
from rawgrpc_proxy.http2.buffered import Account
from rawgrpc_proxy.http2.frames import UNLIMITED, Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers, size_of
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.http2.stream_state import CreditSource
from rawgrpc_proxy.net.inbox import Inbox
from rawgrpc_proxy.net.turn import Turn


class Carrier(Protocol):
    """The connection that carries a stream, as its streams know it: `net/connection.py` is above them."""

    account: Account
    peer: str
    tls_peer: Mapping[str, Any] | None
    session: Session
    turn: Turn
    heard_at: float
    context: Any
    """For whoever answers the streams: what the last one was asked in, if the next may be asked in the same."""
    error: ConnectionFailed | None
    """Why it has ended, once it has."""

    @property
    def socket_is_full(self) -> bool:
        """Whether a write waits for the socket, which takes nothing at present."""

    def touch(self) -> None:
        """There is output: see that it is written."""

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send `size` bytes more on this stream."""

    def tell_limit(self, limit: str, detail: str) -> None:
        """The peer has run into `limit`."""


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

    def __init__(self, connection: Carrier, stream_id: int, headers: Headers) -> None:
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

    @property
    def account(self) -> Account:
        """Of the connection."""
        return self.connection.account

    def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        """Send response headers or trailers, behind the DATA that waits."""
        connection = self.connection
        connection.session.send_headers(self.id, headers, end_stream)
        connection.touch()

    def send_end(self, headers: Headers, came_as: HeaderList | None = None) -> None:
        """Send what ends a response, behind the DATA that waits; only how the call went, if the peer takes no more.

        `came_as` is the list as it came, if it came from a peer: that is the one which is counted.
        """
        connection = self.connection
        limit = connection.session.peer_max_header_list_bytes
        if limit < UNLIMITED:
            size = size_of(headers) if came_as is None else came_as.once(size_of)
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
