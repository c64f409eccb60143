"""A call as its handler sees it: what was asked (`CallContext`), how to answer, and what is told of it afterwards.

What it does not do: reach an upstream, decode messages, or decide anything.
The invariant: whatever happens, the peer gets one end: trailers, or a reset where trailers cannot be sent any more.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import RpcError, Side
from rawgrpc_proxy.grpc.metadata import Headers, Metadata
from rawgrpc_proxy.grpc.status import encode_grpc_message
from rawgrpc_proxy.net.stream import Stream

CONTENT_TYPE = (b"content-type", b"application/grpc")


@attrs.frozen(kw_only=True)
class CallContext:
    """What a director knows of a call.

    `metadata` is all request headers, pseudo-headers included; a director that answers a context with other metadata
    changes what the upstream gets. `peer` is `HOST:PORT` or `unix:`. `deadline` is absolute, on trio's clock, None
    without grpc-timeout. `tls_peer` is the peer's certificate as `ssl.SSLSocket.getpeercert` gives it.
    """

    method: str
    metadata: Metadata
    peer: str
    deadline: float | None = None
    tls_peer: Mapping[str, Any] | None = None

    def with_metadata(self, metadata: Metadata) -> "CallContext":
        """The same call with other metadata."""
        return attrs.evolve(self, metadata=metadata)


@attrs.define(kw_only=True)
class CallRecord:
    """What happened to a call, for logs and metrics. Bytes are of DATA, gRPC's five-byte prefixes included."""

    method: str
    peer: str
    upstream: str | None = None
    status: Status = Status.UNKNOWN
    origin: str = "proxy"
    """Who made the status: upstream, director, proxy, served, downstream, "RST_STREAM", "HTTP 502"."""
    detail: str = ""
    """The status's message, or the cause that the caller was not told."""
    request_bytes: int = 0
    response_bytes: int = 0
    request_messages: int = 0
    response_messages: int = 0
    duration_s: float = 0.0


class Call:
    """One call: its context, its downstream stream, its record."""

    __slots__ = ("_ended", "_headers_sent", "context", "record", "started", "stream")

    def __init__(self, stream: Stream, context: CallContext) -> None:
        self.stream = stream
        self.context = context
        self.started = time.perf_counter()
        self.record = CallRecord(method=context.method, peer=context.peer)
        self._headers_sent = False
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the response's end has been sent, or queued."""
        return self._ended

    def response_passed_on(self, *, headers: bool, ended: bool) -> None:
        """A splice has sent this much of a response past us."""
        self._headers_sent = self._headers_sent or headers
        self._ended = self._ended or ended

    def send_headers(self, metadata: Headers | None = None) -> None:
        """Send the response headers, once; later calls do nothing."""
        if not self._headers_sent:
            self._headers_sent = True
            self.stream.send_headers([(b":status", b"200"), CONTENT_TYPE, *(metadata or ())])

    def end(self, status: Status, message: str = "", metadata: Headers | None = None) -> None:
        """End the response with this status: trailers, or a Trailers-Only response if no headers are out yet.

        What is left of the request is stopped with RST_STREAM(NO_ERROR) (RFC 9113 §8.1).
        """
        if self._ended:
            return
        self._ended = True
        trailers: Headers = [(b"grpc-status", str(int(status)).encode())]
        if message:
            trailers.append((b"grpc-message", encode_grpc_message(message)))
        trailers.extend(metadata or ())
        if not self._headers_sent:
            trailers[:0] = [(b":status", b"200"), CONTENT_TYPE]
        self.stream.send_headers(trailers, end_stream=True)
        self.stream.reset_after_end(ErrorCode.NO_ERROR)

    def fail(self, error: RpcError) -> None:
        """End the response with the error's status.

        A response that has ended already, and now will not get through, is reset.
        """
        if self._ended:
            self.stream.reset(ErrorCode.CANCEL)
        else:
            self.end(error.status, error.message, Metadata.from_pairs(error.trailing_metadata).raw)
        self.record.status, self.record.detail = error.status, error.message
        self.record.origin = "downstream" if error.side is Side.DOWNSTREAM else error.origin

    def refuse(self, http_status: int, status: Status, message: str) -> None:
        """Answer a request that is no gRPC call with an HTTP status, and the reason where a gRPC peer finds it."""
        self._ended = self._headers_sent = True
        self.stream.send_headers(
            [
                (b":status", str(http_status).encode()),
                CONTENT_TYPE,
                (b"grpc-status", str(int(status)).encode()),
                (b"grpc-message", encode_grpc_message(message)),
            ],
            end_stream=True,
        )
        self.stream.reset_after_end(ErrorCode.NO_ERROR)
        self.record.status, self.record.detail, self.record.origin = (
            status,
            f"HTTP {http_status}: {message}",
            "proxy",
        )


Handler = Callable[[Call], Awaitable[None]]
"""Answers one call. An `RpcError` it raises becomes the call's status; any other exception becomes INTERNAL."""
