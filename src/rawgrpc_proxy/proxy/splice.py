"""A splice joins the two streams of a call: what comes from one goes out on the other, straight from the reader.

    downstream ──(request)──► _RequestPipe ──► upstream
    downstream ◄──────────── ResponsePipe ◄───(response)── upstream

DATA is handed from the reader of one connection to the output of the other, and credited back to its sender when it
has gone out there. Headers and trailers pass through as they are, less what belongs to one connection only, and but for
what a director has changed. Whoever made the splice hears of each change and settles the end; a splice never makes up a
status itself, and needs no task.

Invariants: END_STREAM is passed on, never invented; a response that is complete reaches the peer whole, whatever
happens upstream after it; each call ends exactly once.
"""

from collections.abc import Callable

from rawgrpc_proxy.call_policy import Tee
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.messages import PREFIX_BYTES, Messages, counted, length_of
from rawgrpc_proxy.grpc.response_changes import Changes
from rawgrpc_proxy.http2.frames import UNLIMITED, Data
from rawgrpc_proxy.http2.headers import FixedHeaders, HeaderList, Headers, for_next_hop, size_of
from rawgrpc_proxy.net.failures import headers_too_long
from rawgrpc_proxy.net.stream import Stream

_NO_ERROR, _CANCEL = ErrorCode.NO_ERROR, ErrorCode.CANCEL  # looked up once, not for every call
REPLAY_BYTES = 64 * 1024
"""How much of a request is kept until the upstream has begun to answer, so that it can be sent a second time."""
_NOTHING: frozenset[bytes] = frozenset()
_UNCOUNTED_BYTES = 4096
"""So much of each may be kept however much waits in the process: most requests are no longer."""


class Splice:
    """The two streams of one call, and how far the call is.

    `on_change` is called whenever one of the streams has closed or failed, from the middle of a reader's work: it may
    give commands to both streams, and must neither wait nor raise. So it is with `on_response`, when the response's
    headers have come and been passed on.
    """

    __slots__ = (
        "abandoned",
        "decided",
        "on_change",
        "on_response",
        "request_ended",
        "downstream",
        "downstream_closed",
        "downstream_error",
        "http_status",
        "kept_bytes",
        "replay",
        "replay_limit",
        "request_bytes",
        "request_messages",
        "request_trailers",
        "response_bytes",
        "response_changes",
        "response_ended",
        "response_messages",
        "response_trailers",
        "tee",
        "upstream",
        "upstream_closed",
        "upstream_error",
    )

    def __init__(
        self,
        downstream: Stream,
        on_change: Callable[[], None],
        *,
        counts_messages: bool,
        on_response: Callable[[], None] | None = None,
    ) -> None:
        self.downstream = downstream
        self.on_change: Callable[[], None] | None = on_change
        self.on_response = on_response
        self.upstream: Stream | None = None
        self.request_bytes = 0
        self.response_bytes = 0
        self.request_messages: Messages | None = 0 if counts_messages else None
        self.response_messages: Messages | None = 0 if counts_messages else None
        self.request_trailers: Headers | None = None
        self.decided: frozenset[bytes] = _NOTHING
        """Fields that the request's trailers must not have: the director has decided on them."""
        self.response_changes: Changes | None = None
        self.http_status: bytes | None = None
        """The response's, once its headers are here. The list is not kept: it may be long, and the call, too."""
        self.response_trailers: HeaderList | None = None
        """What has ended the response, be it trailers or, alone, headers."""
        self.response_ended = False
        self.tee: Tee | None = None
        """Gets the request, too. Set before the first `join`."""
        self.downstream_error: RpcError | None = None
        """Why the downstream peer is gone, if it is."""
        self.upstream_error: RpcError | None = None
        """Why the upstream stream ended without a complete response, if it did."""
        self.replay: bytes | bytearray | None = b""
        """The request so far, until the call is committed to its upstream; None from then on."""
        self.replay_limit = REPLAY_BYTES
        self.kept_bytes = 0
        """What is counted of `replay`."""
        self.downstream_closed = False
        """All of the response is out, or the peer has given up."""
        self.upstream_closed = False
        self.request_ended = False
        self.abandoned = False

    def join(self, upstream: Stream) -> None:
        """Connect the call to `upstream`, whose request headers are out. What has come from downstream goes first.

        The headers said END_STREAM exactly if the caller's did (`Stream.ended_by_headers`): there are servers that take
        an empty request well only if its end comes in a DATA frame, as their clients send it. May be called a second
        time, with another stream, when the first has failed with an error that is safe to retry and while `replay` is
        not None.
        """
        inbox = self.downstream.inbox
        self.upstream = upstream
        self.upstream_error = None
        self.upstream_closed = False
        # As `response_pipe`, without a call of it for every call.
        upstream.sink = (ResponsePipe if self.response_changes is None else _ChangedResponsePipe)(
            self, upstream
        )
        self.downstream.sink = pipe = (_RequestPipe if self.tee is None else _TeedRequestPipe)(self)
        if inbox.error is not None:
            pipe.failed(inbox.error)
            return
        if inbox.trailers_received is not None:
            self.request_trailers = self.trailers_upstream(inbox.trailers_received)
        self.request_ended = self.request_ended or inbox.ended
        ends_with_data = self.request_ended and self.request_trailers is None
        held = inbox.take_all()
        left = len(held)
        if self.replay:
            upstream.send_data(bytes(self.replay), end_stream=ends_with_data and not left)
        for data, credit, _ in held:
            left -= 1
            pipe.data(data if type(data) is bytes else bytes(data), credit, ends_with_data and not left)
        if self.request_trailers is not None:
            upstream.send_headers(self.request_trailers, end_stream=True)
        elif ends_with_data and not self.request_bytes and not self.downstream.ended_by_headers:
            upstream.send_data(b"", end_stream=True)
        if self.tee is not None and self.request_ended:
            self.tee.request_ended(self.request_trailers)

    def response_pipe(self, upstream: Stream) -> "ResponsePipe":
        """What passes the response on that comes on this stream."""
        return (ResponsePipe if self.response_changes is None else _ChangedResponsePipe)(self, upstream)

    def resend(self, upstream: Stream) -> None:
        """Send all that there is of the request on one stream more, while `replay` is not None."""
        ends_with_data = self.request_ended and self.request_trailers is None
        if self.replay:
            upstream.send_data(bytes(self.replay), end_stream=ends_with_data)
        if self.request_trailers is not None:
            upstream.send_headers(self.request_trailers, end_stream=True)
        elif ends_with_data and not self.request_bytes and not self.downstream.ended_by_headers:
            upstream.send_data(b"", end_stream=True)

    def trailers_upstream(self, headers: Headers) -> Headers:
        """The request's trailers as they go on."""
        trailers, decided = for_next_hop(headers), self.decided
        return [field for field in trailers if field[0] not in decided] if decided else trailers

    def end(self) -> None:
        """Tell of no more changes. The upstream stream, if it is still open, is reset."""
        self.on_change = None
        self.abandoned = True
        if self.upstream is not None and not self.upstream_closed:
            self.upstream.reset(_CANCEL)
        if self.replay is not None:
            self.let_go()

    def passed(self) -> tuple[object, ...]:
        """What is another value whenever something of the call has passed, be it to where it waits for its peer."""
        upstream = self.upstream
        return (
            held_by(self.downstream),
            0 if upstream is None else held_by(upstream),
            self.request_bytes,
            self.request_ended,
            self.response_bytes,
            self.http_status,
            self.response_ended,
        )

    def keep(self, size: int) -> bool:
        """Whether a request of more than `_UNCOUNTED_BYTES`, of which `size` bytes come now, may be kept; counts it."""
        account = self.downstream.account
        buffered = account.buffered
        if self.request_bytes > self.replay_limit or buffered.bytes >= buffered.keep_below:
            return False
        account.add_arrived(size)
        self.kept_bytes += size
        return True

    def let_go(self) -> None:
        """The request is not needed a second time."""
        self.replay = None
        if self.kept_bytes:
            self.downstream.account.take_arrived(self.kept_bytes)
            self.kept_bytes = 0

    def abandon(self, error_code: int) -> None:
        """Reset the upstream stream, if it is still open, and hear nothing more from it."""
        self.abandoned = True
        if self.upstream is not None and not self.upstream_closed:
            self.upstream.reset(error_code)

    def changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def response_complete(self) -> None:
        """The upstream has ended its half: the call is decided, and what is left of the request is not wanted."""
        assert self.upstream is not None
        self.response_ended = True
        if not self.request_ended:
            # RFC 9113 §8.1: a complete response may come before the request has ended. NO_ERROR tells the sender to
            # stop without taking the response back.
            self.downstream.reset_after_end(_NO_ERROR)
        # Nothing happens if the request is out. If its end still waits for the upstream's window, which the upstream
        # has no reason to open any more, this gives the stream back.
        self.upstream.reset(_NO_ERROR)


class _RequestPipe:
    """Sink of the downstream stream."""

    __slots__ = ("_splice",)

    def __init__(self, splice: Splice) -> None:
        self._splice = splice

    @property
    def splice(self) -> Splice:
        return self._splice

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        raise AssertionError("a downstream peer sends no response")

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        splice, size = self._splice, len(data)
        splice.request_bytes += size
        if (messages := splice.request_messages) is not None:
            # Most frames are one message: as `is_one_message`, without a call of it.
            if type(messages) is int and size >= PREFIX_BYTES and length_of(data)[0] == size - PREFIX_BYTES:
                splice.request_messages = messages + 1
            else:
                splice.request_messages = counted(messages, data)
        if end_stream:
            splice.request_ended = True
        upstream = splice.upstream
        assert upstream is not None
        replay = splice.replay
        if replay is not None:
            # Most are so short that what is kept of them is not counted.
            if splice.request_bytes <= _UNCOUNTED_BYTES or splice.keep(size):
                # Kept here, and so delivered as far as the sender is concerned.
                if replay:
                    replay += data
                else:
                    splice.replay = bytes(data) if end_stream else bytearray(data)
                if not end_stream:
                    splice.downstream.credit(credit)
                upstream.send_data(data, end_stream)
                return
            splice.let_go()
        upstream.send_data(data, end_stream, splice.downstream, credit)

    def trailers(self, headers: HeaderList) -> None:
        splice = self._splice
        splice.request_ended = True
        splice.request_trailers = splice.trailers_upstream(headers)
        assert splice.upstream is not None
        splice.upstream.send_headers(splice.request_trailers, end_stream=True)

    def failed(self, error: RpcError) -> None:
        splice = self._splice
        splice.downstream_error = error
        inbox = splice.downstream.inbox
        inbox.error = error
        if splice.on_change is None:
            # The call goes on without us, in a handler that may have something to say yet.
            inbox.failed(error)
        splice.abandon(_CANCEL)
        splice.changed()

    def closed(self) -> None:
        splice = self._splice
        splice.downstream_closed = True
        splice.downstream.sink = splice.downstream.inbox  # opens the circle that the two streams are in
        if splice.on_change is not None:
            splice.on_change()


class _TeedRequestPipe(_RequestPipe):
    """For a call whose request goes somewhere else as well. Its upstream comes first."""

    __slots__ = ()

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        super().data(data, credit, end_stream)
        assert self._splice.tee is not None
        self._splice.tee.request_data(data, end_stream)

    def trailers(self, headers: HeaderList) -> None:
        super().trailers(headers)
        assert self._splice.tee is not None
        self._splice.tee.request_ended(self._splice.request_trailers)


class ResponsePipe:
    """Sink of the upstream stream. A stream that the call has left behind is heard no more."""

    __slots__ = ("_splice", "_upstream")

    def __init__(self, splice: Splice, upstream: Stream) -> None:
        self._splice = splice
        self._upstream = upstream

    @property
    def splice(self) -> Splice:
        return self._splice

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        splice = self._splice
        splice.let_go()
        downstream = splice.downstream
        limit = downstream.connection.session.peer_max_header_list_bytes
        if limit < UNLIMITED and headers.once(size_of) > limit and not end_stream:
            self._too_long(headers.once(size_of), limit)
            return
        splice.http_status = headers[0][1]
        if end_stream:
            splice.response_trailers = headers
            downstream.send_end(headers.once(_passed_on), headers)
            splice.response_complete()
        else:
            downstream.send_headers(headers.once(_passed_on))
            if splice.on_response is not None:
                splice.on_response()

    def _too_long(self, size: int, limit: int) -> None:
        self._splice.upstream_error = headers_too_long(size, limit)
        self._splice.abandon(_CANCEL)
        self._splice.changed()

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        splice, size = self._splice, len(data)
        splice.response_bytes += size
        if (messages := splice.response_messages) is not None:
            if type(messages) is int and size >= PREFIX_BYTES and length_of(data)[0] == size - PREFIX_BYTES:
                splice.response_messages = messages + 1
            else:
                splice.response_messages = counted(messages, data)
        splice.downstream.send_data(data, end_stream, self._upstream, credit)
        if end_stream:
            splice.response_complete()

    def trailers(self, headers: HeaderList) -> None:
        splice = self._splice
        splice.response_trailers = headers
        splice.downstream.send_end(headers.once(_passed_on), headers)
        splice.response_complete()

    def failed(self, error: RpcError) -> None:
        splice = self._splice
        if splice.upstream is self._upstream and not splice.response_ended and not splice.abandoned:
            splice.upstream_error = error
            if error.retry_safe and splice.replay is not None:
                # Until there is another upstream, the request waits where it waited for this one. If the caller gives
                # up meanwhile, the inbox cancels whatever the call is doing.
                splice.downstream.sink = splice.downstream.inbox
            splice.changed()

    def closed(self) -> None:
        splice, upstream = self._splice, self._upstream
        upstream.sink = upstream.inbox
        if splice.upstream is upstream:
            splice.upstream_closed = True
            if splice.on_change is not None:
                splice.on_change()


class _ChangedResponsePipe(ResponsePipe):
    """For a call whose response is changed on the way. What is noted of it is what the upstream has said."""

    __slots__ = ()

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        splice = self._splice
        changes, downstream = splice.response_changes, splice.downstream
        assert changes is not None
        splice.let_go()
        change = changes.only if end_stream else changes.first
        changed = change(headers.once(_passed_on))
        limit = downstream.connection.session.peer_max_header_list_bytes
        if limit < UNLIMITED and not end_stream and size_of(changed) > limit:
            self._too_long(size_of(changed), limit)
            return
        splice.http_status = headers[0][1]
        if end_stream:
            splice.response_trailers = headers
            downstream.send_end(changed)
            splice.response_complete()
        else:
            downstream.send_headers(changed)
            if splice.on_response is not None:
                splice.on_response()

    def trailers(self, headers: HeaderList) -> None:
        splice = self._splice
        assert splice.response_changes is not None
        splice.response_trailers = headers
        splice.downstream.send_end(splice.response_changes.last(headers.once(_passed_on)))
        splice.response_complete()


def held_by(stream: Stream) -> int:
    """Bytes that wait for the peer of this stream."""
    return stream.connection.session.held_data(stream.id)[0]


def splice_of(downstream: Stream) -> Splice | None:
    """The splice that the stream of a caller is joined by, if it is."""
    sink = downstream.sink
    return sink.splice if isinstance(sink, _RequestPipe) else None


def _passed_on(headers: HeaderList) -> Headers:
    """The list as it goes on to the other side."""
    return FixedHeaders(for_next_hop(headers))
