"""`ShadowCall`: the copy of one call, between the call's request and the shadow's response.

    waits for a connection ──► sent ──► over, when both have a status, or it is dropped, or the call was given up

What it does not do: find a connection (`mirror.py`), or send anything again. The invariants: it is counted once, as
what became of it; its place on a connection is given back once; it ends with the call's deadline, or soon after the
call.
"""

from collections.abc import Callable
from typing import Protocol

import trio

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.status import parse_status, status_from_http
from rawgrpc_proxy.grpc.timeout import format_timeout
from rawgrpc_proxy.http2.frames import UNLIMITED, Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers, size_of
from rawgrpc_proxy.limits.concurrency import Places
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.timers import Timer
from rawgrpc_proxy.upstream.pooled import PooledConnection

_LINGER_S = 10.0
"""So long after the call its copy may still go on."""


class Home(Protocol):
    """The mirror of a copy, which bounds it, and counts what becomes of it."""

    sent: int
    same: int
    different: int
    given_up: int
    dropped: dict[str, int]
    waiting_bytes: int

    def may_wait(self, size: int, of_copy: int) -> bool:
        """Whether `size` bytes more may wait, of a copy that would then have `of_copy`."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer | None:
        """Call back then, unless the mirror is closed."""

    def forget(self, copy: "ShadowCall") -> None:
        """It is over."""


class ShadowCall:
    """A copy of a call: `Tee` of its request, and `Sink` of the shadow's response."""

    __slots__ = (
        "_conn",
        "_deadline",
        "_ended_by_headers",
        "_headers",
        "_held",
        "_http_status",
        "_mirror",
        "_original",
        "_request_ended",
        "_status",
        "_stream",
        "_timer",
        "_trailers",
        "_waiting",
        "is_over",
        "places",
        "waits_in",
    )

    def __init__(self, mirror: Home, headers: Headers, end_stream: bool, deadline: float | None) -> None:
        self.is_over = False
        self.places: Places | None = None
        self.waits_in: trio.CancelScope | None = None
        """Until it has a connection."""
        self._mirror = mirror
        self._headers = headers
        self._ended_by_headers = self._request_ended = end_stream
        self._trailers: Headers | None = None
        self._held = bytearray()
        """The request, until there is a stream."""
        self._waiting = 0
        """Bytes that the shadow's socket has not taken yet."""
        self._conn: PooledConnection | None = None
        self._stream: Stream | None = None
        self._http_status = b""
        self._status: Status | None = None
        self._original: Status | None = None
        self._deadline = deadline
        self._timer = None if deadline is None else mirror.call_at(deadline, self._expire)

    # ------------------------------------------------------------- the original

    def request_data(self, data: Data, end_stream: bool) -> None:
        if self._takes_no_more:
            return
        size = len(data)
        if self._is_short_of_memory or not self._mirror.may_wait(size, self._waiting + size):
            self.drop("bytes")
            return
        self._waiting += size
        self._mirror.waiting_bytes += size
        self._request_ended = end_stream
        if self._stream is None:
            self._held += data
        else:
            self._stream.send_data(data, end_stream, self, size)

    def request_ended(self, trailers: Headers | None) -> None:
        if self._takes_no_more:
            return
        self._request_ended = True
        self._trailers = trailers
        if self._stream is not None:
            self._send_end(self._stream)

    def original_over(self, status: Status | None) -> None:
        if self.is_over:
            return
        if status is None:
            self.give_up()
            return
        self._original = status
        self._settle()
        if not self.is_over:
            until = trio.current_time() + _LINGER_S
            if self._deadline is None or until < self._deadline:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._mirror.call_at(until, self._expire)

    @property
    def _is_short_of_memory(self) -> bool:
        """Whether so much waits in the process that requests are not kept for a retry: no copy may come before that."""
        if self._stream is None or not self._waiting:
            return False
        buffered = self._stream.account.buffered
        return buffered.bytes >= buffered.keep_below

    @property
    def _takes_no_more(self) -> bool:
        return self.is_over or self._request_ended or self._status is not None

    # --------------------------------------------------------------- the shadow

    def open(self, conn: PooledConnection) -> None:
        """Send what there is by now. The place on the connection is ours from here on."""
        headers = self._headers_now()
        limit = conn.peer_max_header_list_bytes
        if headers is None or (limit < UNLIMITED and size_of(headers) > limit):
            conn.give_back()
            self.drop("late" if headers is None else "headers")
            return
        self._conn = conn
        self._stream = stream = conn.open_stream(headers, self._ended_by_headers)
        stream.sink = self
        self._mirror.sent += 1
        if self._held:
            data, self._held = bytes(self._held), bytearray()
            stream.send_data(data, self._request_ended and self._trailers is None, self, len(data))
            if self._trailers is not None:
                self._send_end(stream)
        elif self._request_ended and not self._ended_by_headers:
            self._send_end(stream)

    def _headers_now(self) -> Headers | None:
        """With the time that is left; None if there is none."""
        if self._deadline is None:
            return self._headers
        left_s = self._deadline - trio.current_time()
        if left_s <= 0:
            return None
        timeout = (b"grpc-timeout", format_timeout(left_s))
        return [timeout if field[0] == b"grpc-timeout" else field for field in self._headers]

    def _send_end(self, stream: Stream) -> None:
        if self._trailers is not None:
            stream.send_headers(self._trailers, end_stream=True)
        else:
            stream.send_data(b"", end_stream=True)

    @property
    def account(self) -> None:
        """What waits here has come from no peer, as far as anybody's share is concerned."""
        return None

    def credit(self, size: int) -> None:
        """The shadow's socket has taken this much of the request."""
        if self._waiting:
            self._release(size)

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        self._http_status = headers[0][1]
        if end_stream:
            self._answered_by(headers)

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        if self._stream is not None:
            self._stream.credit(credit)
        if end_stream:
            self._answered_by([])

    def trailers(self, headers: HeaderList) -> None:
        self._answered_by(headers)

    def failed(self, error: RpcError) -> None:
        if error.retry_safe and not self.is_over and self._status is None:
            self.drop("unreachable")
        else:
            self._answered(error.status)

    def closed(self) -> None:
        stream, self._stream = self._stream, None
        conn, self._conn = self._conn, None
        if stream is not None:
            stream.sink = stream.inbox  # opens the circle that the two are in
        if conn is not None:
            conn.give_back()

    def _answered_by(self, last: Headers) -> None:
        status = parse_status(dict(last).get(b"grpc-status"))
        self._answered(status_from_http(int(self._http_status)) if status is None else status)
        if self._stream is not None:
            # RFC 9113 §8.1: what is left of the request is not wanted. Nothing happens if it is out.
            self._stream.reset(ErrorCode.NO_ERROR)

    def _answered(self, status: Status) -> None:
        if self.is_over or self._status is not None:
            return
        self._status = status
        self._release(self._waiting)
        self._leave_limits()
        self._settle()

    # --------------------------------------------------------------------- ends

    def drop(self, why: str) -> None:
        """Give it up, and count that. Nothing happens if it is over."""
        if not self.is_over:
            self._mirror.dropped[why] += 1
            self._end()

    def give_up(self) -> None:
        """The call is none any more that its copy could be compared with."""
        if not self.is_over:
            self._mirror.given_up += 1
            self._end()

    def _expire(self) -> None:
        self.drop("late")

    def _settle(self) -> None:
        if self._status is not None and self._original is not None and not self.is_over:
            if self._status is self._original:
                self._mirror.same += 1
            else:
                self._mirror.different += 1
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self._mirror.forget(self)
        self._release(self._waiting)
        self._held = bytearray()
        self._leave_limits()
        if self._timer is not None:
            self._timer.cancel()
        if self.waits_in is not None:
            self.waits_in.cancel()
        if self._stream is not None and self._status is None:
            self._stream.reset(ErrorCode.CANCEL)

    def _release(self, size: int) -> None:
        size = min(size, self._waiting)
        self._waiting -= size
        self._mirror.waiting_bytes -= size

    def _leave_limits(self) -> None:
        places, self.places = self.places, None
        if places is not None:
            places.leave(None)
