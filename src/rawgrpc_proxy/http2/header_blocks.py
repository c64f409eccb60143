"""Header blocks: put together, decoded and checked, they are requests, responses and trailers, or a stream's error.

    HEADERS, CONTINUATION ──► a block ──HPACK──► a list ──field rules──► RequestReceived, ResponseReceived, …
                                                   │                        └──► StreamReset: malformed, or refused
                                                   └──► nothing: the stream is gone already

Errors of streams (`_stream_error`, `_refuse`) are here: most are found in lists, and what the list has cost is a part
of their price. What it does not do: read HPACK (`hpack.py`), or say what makes a list malformed (`field_rules.py`).

Invariants: a block is decoded whatever becomes of its stream, since it is a part of the connection's HPACK state; an
error of a stream never ends the connection, and costs the peer what it has cost us.

Owns RFC 9113 §4.3, §5.1.2, §5.4.2, §6.2, §6.10 and §8.1.
"""

from collections.abc import Callable

import hpack

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import PeerAbuse, ProtocolViolation
from rawgrpc_proxy.http2 import field_rules, frames, guard
from rawgrpc_proxy.http2.buffered import Buffered
from rawgrpc_proxy.http2.events import (
    Event,
    LimitReached,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers
from rawgrpc_proxy.http2.hpack import HeaderDecoder
from rawgrpc_proxy.http2.sending import SendingHalf
from rawgrpc_proxy.http2.stream_state import Receiving, StreamState

_BODY, _HEARD_ALL = Receiving.BODY, Receiving.ENDED  # looked up once, not with every frame
_HARD_LIMIT_FACTOR, _RESPONSE_BLOCK_FACTOR = 2, 4

Shorten = Callable[[Headers, int], Headers]
"""A list, and how many bytes are allowed."""


class HeaderBlocks(SendingHalf):
    """The header blocks that a session receives, and the streams that begin with them or are turned down."""

    __slots__ = (
        "_block",
        "_block_ends_stream",
        "_block_stream_id",
        "_checks",
        "_continuations",
        "_decoder",
        "_events",
        "_max_block_bytes",
        "_max_continuations",
        "_max_streams",
        "_shorten",
        "block_since",
    )

    def __init__(
        self, settings: Http2Settings, *, client_side: bool, shorten: Shorten, buffered: Buffered | None
    ) -> None:
        super().__init__(settings, client_side=client_side, buffered=buffered)
        self._shorten = shorten
        self._events: list[Event] = []
        """What the present call of `receive` will answer."""
        self._max_streams = settings.max_concurrent_streams
        self._checks = field_rules.checks_for((settings.max_header_fields, settings.max_header_list_bytes))
        # Beyond the limits of `_checks`, which end the stream alone.
        self._decoder = HeaderDecoder(
            _HARD_LIMIT_FACTOR * settings.advertised_header_list_bytes,
            _HARD_LIMIT_FACTOR * settings.max_header_fields,
            of_requests=not client_side,
        )
        self._block: bytearray | None = None
        self.block_since: float | None = None
        """When the header block began that has not ended: until it does, nothing else may come (RFC 9113 §4.3)."""
        # No block is longer than its list is by RFC 9113 §6.5.2's measure. A backend's may be (a stack trace in its
        # trailers), which costs that call and not all those that share the connection.
        factor = _RESPONSE_BLOCK_FACTOR if client_side else 1
        self._max_block_bytes = factor * settings.advertised_header_list_bytes
        self._max_continuations = factor * settings.max_continuation_frames
        self._block_stream_id = 0
        self._block_ends_stream = False
        self._continuations = 0

    def _receive_headers(self, flags: int, stream_id: int, payload: Data) -> None:
        fragment = frames.without_padding(flags, payload) if flags & frames.PADDED else payload
        if flags & frames.PRIORITY_FLAG:
            if len(fragment) < 5:
                raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "HEADERS has no room for its priority")
            fragment = fragment[5:]
        end_stream = flags & frames.END_STREAM != 0
        if len(fragment) > self._max_block_bytes:
            raise self._block_too_long()
        if flags & frames.END_HEADERS:
            block = fragment if type(fragment) is bytes else bytes(fragment)
            self._receive_header_block(stream_id, block, end_stream)
        else:
            self._block = bytearray(fragment)
            self.block_since = self.now
            self._block_stream_id = stream_id
            self._block_ends_stream = end_stream
            self._continuations = 0

    def _receive_continuation(self, frame_type: int, flags: int, stream_id: int, payload: Data) -> None:
        if frame_type != frames.CONTINUATION or stream_id != self._block_stream_id or self._block is None:
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame"
            )
        self._continuations += 1
        if self._continuations > self._max_continuations:
            raise PeerAbuse(
                f"a header block has more than {self._max_continuations} CONTINUATION frames "
                f"(max_continuation_frames is {self._settings.max_continuation_frames})",
                limit="max_continuation_frames",
            )
        self._block += payload
        if len(self._block) > self._max_block_bytes:
            raise self._block_too_long()
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self.block_since = None
            self._receive_header_block(stream_id, block, self._block_ends_stream)

    def _block_too_long(self) -> PeerAbuse:
        return PeerAbuse(
            f"a header block is longer than {self._max_block_bytes} bytes "
            f"(max_header_list_bytes is {self._settings.max_header_list_bytes})",
            limit="max_header_list_bytes",
        )

    def _receive_header_block(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        # Decode first, whatever becomes of the stream: the block is part of the connection's HPACK state.
        try:
            headers = self._decoder.decode(block)
        except hpack.OversizedHeaderListError as error:
            raise PeerAbuse(
                f"a header list has {error}; max_header_fields is {self._settings.max_header_fields}",
                limit="max_header_fields",
            ) from error
        except hpack.HPACKError as error:
            raise ProtocolViolation(
                ErrorCode.COMPRESSION_ERROR, f"a header block cannot be decoded: {error}"
            ) from error
        if self._decoder.work >= guard.HEADER_WORK_UNIT:
            work, self._decoder.work = self._decoder.work, 0
            self._guard.charge(guard.HEADER_WORK, self, work / guard.HEADER_WORK_UNIT)
        state = self.streams.get(stream_id)
        if state is None:
            self._receive_headers_of_unknown(stream_id, headers, end_stream)
        elif state.receiving is _BODY:
            self._receive_trailers(state, headers, end_stream)
        elif state.receiving is _HEARD_ALL:
            self._stream_error(state, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        else:
            self._receive_response(state, headers, end_stream)
        self._decoder.free_work = 0

    # ----------------------------------------------------------------- requests

    def _receive_headers_of_unknown(self, stream_id: int, headers: HeaderList, end_stream: bool) -> None:
        if self.client_side or stream_id % 2 == 0:
            if self._is_idle(stream_id):
                raise ProtocolViolation(
                    ErrorCode.PROTOCOL_ERROR,
                    f"HEADERS on stream {stream_id}, which is not the peer's to open",
                )
            self._charge_for_nothing(guard.HEADERS_ON_RESET)
            return  # a response to a call that we have given up
        if stream_id <= self._highest_peer_id:
            by_our_reset = self._closed.by_our_reset(stream_id)
            if by_our_reset:
                self._charge_for_nothing(guard.HEADERS_ON_RESET)
                return  # trailers that crossed our RST_STREAM
            code = ErrorCode.PROTOCOL_ERROR if by_our_reset is None else ErrorCode.STREAM_CLOSED
            raise ProtocolViolation(code, f"HEADERS on stream {stream_id}, which is closed (RFC 9113 §5.1.1)")
        budget = self._guard
        # This stream has earned nothing yet. (What is asked of each stream is asked without a call where it can be.)
        is_low = budget.points < budget.low_points and budget.is_low(self)
        self._highest_peer_id = stream_id
        self.streams_opened += 1
        if self.goaway_sent_id is not None and stream_id > self.goaway_sent_id:
            self._guard.streams_for_nothing += 1
            self._charge_for_nothing(guard.HEADERS_ON_RESET)
            self._closed.remember(stream_id, by_our_reset=True)
            return  # RFC 9113 §6.8: it will be retried elsewhere, and what follows on it is ignored too
        # What the peer has not taken counts: else one that does not read could have us hold any number of answers.
        room = self._max_streams - len(self.streams) - self.output.leaving
        buffered = self.account.buffered
        if (room <= 1 or is_low or buffered.bytes >= buffered.near) and self._has_no_place(
            stream_id, room, is_low=is_low
        ):
            return
        checked = headers.once(self._checks.request)
        if checked.problem is not None:
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, checked.problem)
            return
        held_bytes = checked.held_bytes
        if self._held_header_bytes + held_bytes > self._settings.max_open_header_bytes:
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM, self._held_too_much())
            return
        oversized = ""
        if checked.excess is not None:
            self._guard.streams_for_nothing += 1  # the answer is the proxy's own
            headers = HeaderList(field for field in headers if field[0][:1] == b":")
            oversized = checked.excess.text
        state = StreamState(stream_id, self._peer_stream_window, self._stream_window_bytes, self.now)
        if checked.content_length is not None and not self._expect_body(
            state, checked.content_length, end_stream
        ):
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, "content-length makes no sense")
            return
        self._accept_headers(state, headers, end_stream)
        self.streams[stream_id] = state
        self._held_header_bytes += held_bytes
        state.held_bytes = held_bytes
        state.receiving = _BODY
        self._events.append(RequestReceived(stream_id, headers, end_stream, oversized))
        if end_stream:
            self._peer_ended(state)

    def _has_no_place(self, stream_id: int, room: int, *, is_low: bool) -> bool:
        """Turn down a stream that the peer opens, whatever its headers are, if it may open none now: True.

        `room` is how many more the limit allows.
        """
        if room <= 1 and not self._guard.told_of_the_limit:
            self._tell_of_the_limit()
        if room <= 0:
            self._refuse(
                stream_id,
                ErrorCode.REFUSED_STREAM,
                f"too many streams are open; max_concurrent_streams is {self._max_streams}",
                price=None if self._guard.may_not_know_the_limit() else guard.REFUSED,
            )
            return True
        if is_low:
            self._tell_of_the_budget()
            reason = "the budget for work that serves no call is low"
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM, reason, price=guard.REFUSED_LOW)
            return True
        if self.account.buffered.is_short and self.account.is_beyond_its_share:
            self._refuse(
                stream_id,
                ErrorCode.REFUSED_STREAM,
                f"{self.account.buffered.bytes} bytes wait in this process, many of them for this connection "
                "(max_buffered_bytes)",
                price=guard.REFUSED_LOW,
            )
            return True
        return False

    def _held_too_much(self) -> str:
        return (
            f"the headers of the open calls take {self._held_header_bytes} bytes; max_open_header_bytes is "
            f"{self._settings.max_open_header_bytes}"
        )

    def _tell_of_the_limit(self) -> None:
        self._guard.told_of_the_limit = True
        self._events.append(
            LimitReached(
                "max_concurrent_streams",
                f"{self._max_streams} calls are open on this connection: further ones wait at the caller, or are "
                "refused, until one of them has ended",
            )
        )

    def _tell_of_the_budget(self) -> None:
        if not self._guard.told_of_the_budget:
            self._guard.told_of_the_budget = True
            self._events.append(
                LimitReached("abuse_budget", f"new calls are refused for now: {self._guard.bill()}")
            )

    # ------------------------------------------ responses, and trailers of both

    def _receive_response(self, state: StreamState, headers: HeaderList, end_stream: bool) -> None:
        checked = headers.once(self._checks.response)
        if checked.problem is not None:
            self._stream_error(state, ErrorCode.PROTOCOL_ERROR, checked.problem)
        elif headers[0][1][:1] == b"1":
            self._charge_for_nothing(guard.INTERIM)
            if end_stream:
                self._stream_error(state, ErrorCode.PROTOCOL_ERROR, "a 1xx response ends the stream")
        elif checked.content_length is not None and not self._expect_body(
            state, checked.content_length, end_stream
        ):
            self._stream_error(state, ErrorCode.PROTOCOL_ERROR, "content-length makes no sense")
        else:
            if checked.excess is not None:
                if not end_stream:
                    text = f"the response headers have {checked.excess.text}"
                    self._stream_error(state, ErrorCode.ENHANCE_YOUR_CALM, text)
                    return
                headers = self._only_the_status(state, headers, checked.excess)
            self._accept_headers(state, headers, end_stream)
            state.receiving = _BODY
            self._events.append(ResponseReceived(state.id, headers, end_stream))
            if end_stream:
                self._peer_ended(state)

    def _receive_trailers(self, state: StreamState, headers: HeaderList, end_stream: bool) -> None:
        checks = self._checks
        checked = headers.once(checks.response_trailers if self.client_side else checks.request_trailers)
        problem = checked.problem
        if not end_stream:
            problem = "HEADERS in mid-stream without END_STREAM"
        elif state.body_left:
            problem = "the body is shorter than its content-length"
        if problem is not None:
            self._stream_error(state, ErrorCode.PROTOCOL_ERROR, problem)
        elif checked.excess is not None and not self.client_side:
            text = f"the request's trailers have {checked.excess.text}"
            self._stream_error(state, ErrorCode.ENHANCE_YOUR_CALM, text)
        elif (
            not self.client_side
            and self._held_header_bytes + checked.held_bytes > self._settings.max_open_header_bytes
        ):
            self._stream_error(state, ErrorCode.ENHANCE_YOUR_CALM, self._held_too_much())
        else:
            if not self.client_side:
                self._held_header_bytes += checked.held_bytes
                state.held_bytes += checked.held_bytes
            if checked.excess is not None:
                headers = self._only_the_status(state, headers, checked.excess)
            self._accept_headers(state, headers, end_stream=True)
            self._events.append(TrailersReceived(state.id, headers))
            self._peer_ended(state)

    def _only_the_status(
        self, state: StreamState, headers: HeaderList, excess: field_rules.Excess
    ) -> HeaderList:
        """What is passed on of the end of a response that is too long: how the call went is never lost."""
        limit, text = excess
        self._events.append(
            LimitReached(
                limit,
                f"the trailers of stream {state.id} have {text}: of them only grpc-status and grpc-message "
                "are passed on",
            )
        )
        return HeaderList(self._shorten(headers, self._settings.max_header_list_bytes))

    def _expect_body(self, state: StreamState, length: int, end_stream: bool) -> bool:
        state.body_left = length
        # A trailers-only response may repeat the length that a body would have had (HEAD, 304); gRPC has neither.
        return length >= 0 and not (end_stream and length)

    # -------------------------------------------------------- errors of streams

    def _refuse(
        self, stream_id: int, error_code: ErrorCode, reason: str, *, price: int | None = guard.REFUSED
    ) -> None:
        """Turn down a stream that the peer tries to open, before it has any state."""
        self._guard.streams_for_nothing += 1
        if price is not None:
            self._charge_for_nothing(price)
        self.output.write(frames.rst_stream(stream_id, error_code))
        self._closed.remember(stream_id, by_our_reset=True)
        self._events.append(StreamReset(stream_id, error_code, by_peer=False, reason=reason))

    def _stream_error(self, state: StreamState, error_code: ErrorCode, reason: str) -> None:
        """RFC 9113 §5.4.2: this stream ends, the connection goes on."""
        self._guard.streams_for_nothing += 1
        self._charge_for_nothing(guard.STREAM_ERROR)
        self._write_reset(state, error_code)
        state.end_batch = self.output.batch
        self._close(state, by_our_reset=True)
        self._events.append(StreamReset(state.id, error_code, by_peer=False, reason=reason))

    def _charge_for_nothing(self, price: int) -> None:
        """Take a price; and if that is for a header block, which serves no call then, none of the block is free."""
        self._guard.charge(price, self)
        work = self._decoder.free_work
        if work >= guard.HEADER_WORK_UNIT:
            self._decoder.free_work = 0
            self._guard.charge(guard.HEADER_WORK, self, work / guard.HEADER_WORK_UNIT)
