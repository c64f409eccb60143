"""One HTTP/2 connection without I/O: bytes in, events out; commands in, bytes out. Time is an argument.

`Session` is the contract that the engines share, and all that does not depend on how an engine keeps windows and
states: splitting frames, collecting and decoding header blocks, the rules for fields, who may open which stream, the
budgets, GOAWAY, and the order in which waiting DATA goes out. An engine fills in the methods under "what an engine
does". What it does not do: I/O, tasks, gRPC.

Invariants: `receive` raises nothing for whatever bytes come in; an error of a stream never ends the connection;
output is in order (a header block is encoded at the moment it enters the output, as HPACK demands); DATA leaves the
output only together with the receipts that credit its source.

One file of this length, since it is one state machine: what a frame may do depends on what the others have done.

Owns RFC 9113 §3.4, §4.3, §5.1.1, §5.1.2, §5.4, §6.8 and §8.1.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import hpack

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import DEFAULT_WINDOW, MIN_FRAME_SIZE, Http2Settings
from rawgrpc_proxy.errors import ConnectionFailed, NotHttp2, PeerAbuse, ProtocolViolation
from rawgrpc_proxy.http2 import field_rules, frames, guard
from rawgrpc_proxy.http2.buffered import Account, Buffered
from rawgrpc_proxy.http2.closed_streams import ClosedStreams
from rawgrpc_proxy.http2.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    GoAwayReceived,
    LimitReached,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamReset,
    TrailersReceived,
)
from rawgrpc_proxy.http2.frames import UNLIMITED, Data, FrameSplitter, Setting
from rawgrpc_proxy.http2.guard import MAX_SETTINGS_ENTRIES, Guard
from rawgrpc_proxy.http2.headers import HeaderList, Headers, check_fields
from rawgrpc_proxy.http2.hpack import HeaderDecoder
from rawgrpc_proxy.http2.output import Output, Receipt
from rawgrpc_proxy.http2.ping_policy import PingPolicy
from rawgrpc_proxy.http2.position import Position, StreamPosition, Table
from rawgrpc_proxy.http2.stream_state import CreditSource, PendingData, Receiving, Sending, StreamState

# Looked up once: an enum's member costs as much as a call, each time, and these are asked for with every frame.
_PEER_SILENT, _BODY, _HEARD_ALL = Receiving
_OPEN, _CLOSING, _SAID_ALL = Sending.OPEN, Sending.CLOSING, Sending.ENDED
# RFC 9113 §6.5.2's initial value, and the most we let a peer ask our encoder to search.
_HEADER_TABLE_BYTES = 4096
_HARD_LIMIT_FACTOR, _RESPONSE_BLOCK_FACTOR = 2, 4
_YOUNG_S = 0.01
"""A call that lives for so long and is given up then has a deadline behind it, and no malice. A peer can open no more
of them in that time than it may have open at once."""
_LONG_AGO = -math.inf

Shorten = Callable[[Headers, int], Headers]
"""A list, and how many bytes are allowed."""


class Session(ABC):
    """The HTTP/2 state of one connection. `client_side` says whether we opened it (upstream) or were called.

    `shorten` answers what to keep of a list that ends a response and is too long: see `grpc.status.status_fields`.
    `buffered` counts the DATA that waits in this process, on whichever connection.
    """

    __slots__ = (
        "_block",
        "_block_ends_stream",
        "_block_stream_id",
        "_checks",
        "_closed",
        "_connection_credit_step",
        "_continuations",
        "_data_frames_sent",
        "_decoder",
        "_dropped",
        "_events",
        "_guard",
        "_header_lists_sent",
        "_held_header_bytes",
        "_highest_peer_id",
        "_max_block_bytes",
        "_max_continuations",
        "_max_output_bytes",
        "_max_streams",
        "_new_settings",
        "_next_id",
        "_peer_stream_window",
        "_peer_table_bytes",
        "_ping_policy",
        "_ready",
        "_settings",
        "_shorten",
        "_splitter",
        "_started",
        "_stream_credit_step",
        "_stream_window_bytes",
        "_uncredited",
        "account",
        "block_since",
        "client_side",
        "ended",
        "goaway_sent_id",
        "now",
        "output",
        "peer_max_concurrent_streams",
        "peer_max_frame_bytes",
        "peer_max_header_list_bytes",
        "peer_settings_seen",
        "streams",
        "streams_opened",
    )

    def __init__(
        self,
        settings: Http2Settings,
        *,
        client_side: bool,
        shorten: Shorten,
        buffered: Buffered | None = None,
    ) -> None:
        self.client_side = client_side
        self.account = Account(buffered or Buffered())
        self._shorten = shorten
        self.streams: dict[int, StreamState] = {}
        self.peer_max_concurrent_streams = UNLIMITED
        self.peer_max_header_list_bytes = UNLIMITED
        self.peer_max_frame_bytes = MIN_FRAME_SIZE
        self.peer_settings_seen = False
        self._peer_stream_window = DEFAULT_WINDOW
        self._new_settings: dict[Setting, int] = {}
        """What the peer's SETTINGS say that is not in force yet: it is put in force at the end of each read."""
        self._peer_table_bytes = _HEADER_TABLE_BYTES
        self.ended = False
        self._started = False
        self.goaway_sent_id: int | None = None
        self.output = Output()
        self._settings = settings
        self._max_output_bytes = settings.max_output_bytes
        self._stream_window_bytes = settings.stream_window_bytes
        self._checks = field_rules.checks_for((settings.max_header_fields, settings.max_header_list_bytes))
        self._max_streams = settings.max_concurrent_streams
        self._splitter = FrameSplitter(settings.max_frame_bytes, expect_preface=not client_side)
        self._guard = Guard(settings.abuse_budget, settings.abuse_budget_per_s)
        self._ping_policy = PingPolicy.of(settings) if not client_side else None
        self.now = 0.0
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
        self._events: list[Event] = []
        self._highest_peer_id = 0
        self._next_id = 1 if client_side else 2
        self.streams_opened = 0
        self._data_frames_sent = self._header_lists_sent = 0
        self._closed = ClosedStreams()
        self._held_header_bytes = 0
        """What the headers of the streams take that the peer has open."""
        self._uncredited = 0
        self._dropped = 0
        self._stream_credit_step = max(1, settings.stream_window_bytes // 2)
        self._connection_credit_step = max(1, settings.connection_window_bytes // 4)
        self._ready: deque[StreamState] = deque()
        self._set_up()

    # ------------------------------------------------------------------ input

    def start(self) -> None:
        """Queue what each side sends first: (preface,) SETTINGS and the connection's window.

        A client's session is started by its owner. A server's starts itself with the peer's first SETTINGS (or with
        a GOAWAY or PING of ours before them), so that a peer which speaks HTTP/1.1 can still be answered in its own
        language.
        """
        self._started = True
        settings = self._settings
        values = {
            Setting.INITIAL_WINDOW_SIZE: settings.stream_window_bytes,
            Setting.MAX_FRAME_SIZE: settings.max_frame_bytes,
            Setting.MAX_HEADER_LIST_SIZE: settings.advertised_header_list_bytes,
        }
        if self.client_side:
            self.output.write(frames.PREFACE)
            values[Setting.ENABLE_PUSH] = 0
        else:
            values[Setting.MAX_CONCURRENT_STREAMS] = settings.max_concurrent_streams
        self.output.write(frames.settings(values))
        self._start()
        # SETTINGS never change the connection's window (RFC 9113 §6.9.2): raise it at once and for good.
        growth = settings.connection_window_bytes - DEFAULT_WINDOW
        if growth:
            self._write_window_update(None, growth)

    @property
    def holds_back(self) -> bool:
        """Whether `receive` has left something for its next call, which needs to bring nothing new then."""
        return not self.ended and self._splitter.holds_back

    def receive(self, data: Data, now: float, steps: int = frames.ALL) -> list[Event]:
        """Take bytes from the peer at time `now` (seconds, any monotonic clock) and tell what they mean.

        It acts on about so many frames (`FrameSplitter.split` says what a step is), and holds the rest back.

        Raises nothing: when the peer breaks the connection's rules the events before that stand, `ConnectionEnded`
        is the last one, and a GOAWAY is in the output.
        """
        if self.ended:
            return []
        self.now = now
        events: list[Event] = []
        self._events = events
        try:
            for frame_type, flags, stream_id, payload in self._splitter.split(data, steps):
                if self._block is not None:
                    self._receive_continuation(frame_type, flags, stream_id, payload)
                elif not self.peer_settings_seen:
                    self._receive_other(frame_type, flags, stream_id, payload)
                elif frame_type == frames.DATA:
                    self._receive_data(flags, stream_id, payload)
                elif frame_type == frames.HEADERS:
                    self._receive_headers(flags, stream_id, payload)
                elif frame_type == frames.WINDOW_UPDATE:
                    self._receive_window_update(stream_id, payload)
                else:
                    self._receive_other(frame_type, flags, stream_id, payload)
            if self._new_settings:
                self._put_settings_in_force()
        except ConnectionFailed as error:
            self.fail(error)
            events.append(ConnectionEnded(error))
        return events

    def _receive_other(self, frame_type: int, flags: int, stream_id: int, payload: Data) -> None:
        if frame_type == frames.SETTINGS:
            self._receive_settings(flags, stream_id, payload)
            return
        if not self.peer_settings_seen:
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, "the first frame is no SETTINGS (RFC 9113 §3.4)"
            )
        match frame_type:
            case frames.RST_STREAM:
                self._receive_rst_stream(stream_id, payload)
            case frames.PING:
                self._receive_ping(flags, stream_id, payload)
            case frames.GOAWAY:
                self._receive_goaway(stream_id, payload)
            case frames.PRIORITY:
                self._receive_priority(stream_id, payload)
            case frames.PUSH_PROMISE:
                raise ProtocolViolation(
                    ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, though push is off (RFC 9113 §8.4)"
                )
            case frames.CONTINUATION:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS before it")
            case _:
                self._guard.charge(guard.UNKNOWN, self)  # RFC 9113 §5.5: and ignored

    def _receive_data(self, flags: int, stream_id: int, payload: Data) -> None:
        size = len(payload)
        end_stream = flags & frames.END_STREAM != 0
        if flags & frames.PADDED:
            payload = frames.without_padding(flags, payload)
        if payload:
            self._guard.empty_data = 0
        elif not end_stream:
            self._guard.one_more_empty_data(self)
        state = self.streams.get(stream_id)
        if state is None:
            self._receive_data_on_closed(stream_id, size)
            return
        if state.receiving is not _BODY:
            self._drop_data(size)
            if state.receiving is _HEARD_ALL:
                self._stream_error(state, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
            else:
                self._stream_error(state, ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")
            return
        if state.body_left is not None:
            state.body_left -= len(payload)
            if state.body_left < 0 or (end_stream and state.body_left):
                self._drop_data(size)
                self._stream_error(
                    state, ErrorCode.PROTOCOL_ERROR, "the body's length is not its content-length"
                )
                return
        if len(payload) < guard.TINY_BYTES and payload and not end_stream:
            self._guard.charge(guard.TINY_DATA, self)
        self._accept_data(state, payload, size, end_stream)
        self._uncredited += size
        if self._uncredited >= self._connection_credit_step:
            self.credit_connection()
        if not payload and not end_stream:
            # Nothing to deliver, so credited at once. Passed on, it would count against us as a flood of empty DATA.
            self.credit(stream_id, size)
            return
        self._events.append(DataReceived(stream_id, payload, size, end_stream))
        if end_stream:
            self._peer_ended(state)

    def _receive_data_on_closed(self, stream_id: int, size: int) -> None:
        if self._is_idle(stream_id):
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which nobody opened"
            )
        self._drop_data(size)
        if self._closed.by_our_reset(stream_id):
            self._guard.charge(guard.DATA_ON_RESET, self)
        else:
            self._guard.charge(guard.DATA_ON_CLOSED, self)
            self.output.write(frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))

    def _drop_data(self, size: int) -> None:
        """Return the connection credit of DATA that goes nowhere: in steps, as for the rest.

        A frame for each would let a peer that does not read fill our output, one byte of DATA at a time.
        """
        self._dropped += size
        if self._dropped >= self._connection_credit_step:
            # Straight into the output: no engine has counted this DATA, so none may count its credit.
            self.output.write(frames.window_update(0, self._dropped))
            self._dropped = 0

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

    def _charge_for_nothing(self, price: int) -> None:
        """Take a price; and if that is for a header block, which serves no call then, none of the block is free."""
        self._guard.charge(price, self)
        work = self._decoder.free_work
        if work >= guard.HEADER_WORK_UNIT:
            self._decoder.free_work = 0
            self._guard.charge(guard.HEADER_WORK, self, work / guard.HEADER_WORK_UNIT)

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

    def _receive_rst_stream(self, stream_id: int, payload: Data) -> None:
        if len(payload) != 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"RST_STREAM has {len(payload)} bytes, not 4")
        if self._is_idle(stream_id):
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which nobody opened"
            )
        if self._guard.reset_received() > self.streams_opened:
            self._guard.charge(guard.RESET_CLOSED, self)
        state = self.streams.get(stream_id)
        if state is None:
            return
        if not self.client_side and self.now - state.opened_at < _YOUNG_S:
            self._guard.streams_for_nothing += 1
            self._guard.charge(guard.RESET_AT_ONCE, self)
        code = frames.read_u32(payload)
        self._accept_reset(state, code)
        self._close(state, by_our_reset=False)
        self._events.append(StreamReset(stream_id, code, by_peer=True, reason=""))

    def _receive_settings(self, flags: int, stream_id: int, payload: Data) -> None:
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if flags & frames.ACK:
            if payload:
                raise ProtocolViolation(
                    ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has a payload"
                )
            if not self.peer_settings_seen:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "the first frame acknowledges SETTINGS")
            if self._guard.settings_acknowledged:
                self._guard.charge(guard.ACKNOWLEDGEMENT, self)
            self._guard.settings_acknowledged = True
            return
        if self.peer_settings_seen:
            self._guard.charge(guard.SETTINGS, self)
        else:
            self._guard.begin(self.now)
        self._guard.answer_owed()
        values = frames.parse_settings(payload, MAX_SETTINGS_ENTRIES)
        if not self._started:
            self.start()
        if self.client_side and values.get(Setting.ENABLE_PUSH):
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "a server enables push (RFC 9113 §6.5.2)")
        table_bytes = min(values.pop(Setting.HEADER_TABLE_SIZE, self._peer_table_bytes), _HEADER_TABLE_BYTES)
        if table_bytes != self._peer_table_bytes:
            # Only a change, and each: RFC 7541 §4.2 wants the smallest size announced, and the last.
            self._peer_table_bytes = table_bytes
            self._accept_table_size(table_bytes)
        first, self.peer_settings_seen = not self.peer_settings_seen, True
        self.peer_max_concurrent_streams = values.get(
            Setting.MAX_CONCURRENT_STREAMS, self.peer_max_concurrent_streams
        )
        self.peer_max_header_list_bytes = values.get(
            Setting.MAX_HEADER_LIST_SIZE, self.peer_max_header_list_bytes
        )
        self.peer_max_frame_bytes = values.get(Setting.MAX_FRAME_SIZE, self.peer_max_frame_bytes)
        self._new_settings.update(values)
        self.output.write(frames.SETTINGS_ACK)
        self._events.append(SettingsReceived())
        if first:
            self._put_settings_in_force()

    def _put_settings_in_force(self) -> None:
        """All that came in one read at once, before anything goes out: a new window moves every open stream."""
        values, self._new_settings = self._new_settings, {}
        window = values.get(Setting.INITIAL_WINDOW_SIZE, self._peer_stream_window)
        growth = window - self._peer_stream_window
        if growth:
            self._guard.charge(guard.MOVED_STREAMS, self, len(self.streams))
        self._accept_settings(values)
        self._peer_stream_window = window
        if growth > 0:
            waiting = [state for state in self.streams.values() if state.pending]
            # To each of them it is what a WINDOW_UPDATE is.
            self._guard.charge(guard.WINDOW_UPDATE, self, len(waiting))
            for state in waiting:
                self._queue(state)

    def _receive_window_update(self, stream_id: int, payload: Data) -> None:
        if len(payload) != 4:
            raise ProtocolViolation(
                ErrorCode.FRAME_SIZE_ERROR, f"WINDOW_UPDATE has {len(payload)} bytes, not 4"
            )
        increment = frames.read_u32(payload) & UNLIMITED
        if stream_id == 0:
            if increment == 0:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
            self._guard.charge(guard.WINDOW_UPDATE, self)
            self._accept_window_update(None, increment)
            return
        if self._new_settings and Setting.INITIAL_WINDOW_SIZE in self._new_settings:
            # Whether a window is full depends on the SETTINGS that came before (RFC 9113 §6.9.2).
            self._put_settings_in_force()
        state = self.streams.get(stream_id)
        if state is None:
            if self._is_idle(stream_id):
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")
            self._guard.charge(guard.WINDOW_UPDATE, self)
        elif increment == 0:
            self._stream_error(state, ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
        elif not self._accept_window_update(state, increment):
            self._stream_error(state, ErrorCode.FLOW_CONTROL_ERROR, "a stream's window passes 2^31-1")
        else:
            self._guard.charge(guard.WINDOW_UPDATE, self)
            if state.pending:
                self._queue(state)

    def _receive_ping(self, flags: int, stream_id: int, payload: Data) -> None:
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if len(payload) != 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"PING has {len(payload)} bytes, not 8")
        if flags & frames.ACK:
            self._guard.charge(guard.ACKNOWLEDGEMENT, self)
            self._events.append(PingAcknowledged(bytes(payload)))
        else:
            self._guard.charge(guard.PING, self)
            self._guard.answer_owed()
            if self._ping_policy is not None:
                sent = self._data_frames_sent + self._header_lists_sent
                self._ping_policy.received(self.now, answered=sent, has_streams=bool(self.streams))
            self.output.write(frames.ping(payload, ack=True))

    def _receive_goaway(self, stream_id: int, payload: Data) -> None:
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if len(payload) < 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY has {len(payload)} bytes")
        self._guard.charge(guard.GOAWAY, self)
        last_stream_id = frames.read_u32(payload) & UNLIMITED
        code = frames.read_u32(payload, 4)
        self._events.append(GoAwayReceived(last_stream_id, code, bytes(payload[8:1024])))
        if not self.client_side:
            return
        for state in [state for state in self.streams.values() if state.id > last_stream_id]:
            # RFC 9113 §6.8: these were not processed. To the call it is as if the stream had been refused.
            self._accept_reset(state, ErrorCode.REFUSED_STREAM)
            self._close(state, by_our_reset=True)
            reason = f"GOAWAY with last stream {last_stream_id}"
            reset = StreamReset(state.id, ErrorCode.REFUSED_STREAM, by_peer=True, reason=reason, goaway=code)
            self._events.append(reset)

    def _receive_priority(self, stream_id: int, payload: Data) -> None:
        if not stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        state = self.streams.get(stream_id)
        if len(payload) != 5 and state is not None:
            text = f"PRIORITY has {len(payload)} bytes, not 5"
            self._stream_error(state, ErrorCode.FRAME_SIZE_ERROR, text)
        else:
            self._guard.charge(guard.PRIORITY, self)

    def _expect_body(self, state: StreamState, length: int, end_stream: bool) -> bool:
        state.body_left = length
        # A trailers-only response may repeat the length that a body would have had (HEAD, 304); gRPC has neither.
        return length >= 0 and not (end_stream and length)

    def _is_idle(self, stream_id: int) -> bool:
        """Has nobody opened this stream yet (RFC 9113 §5.1)? True for stream 0 as well."""
        if stream_id == 0:
            return True
        if stream_id % 2 == self.client_side:
            return stream_id >= self._next_id
        return stream_id > self._highest_peer_id

    # ----------------------------------------------------------------- output

    def open_stream(self, headers: Headers, end_stream: bool = False) -> int:
        """Open a stream with these request headers and answer its id. The caller has looked at `room`.

        Raises `TypeError` for fields that are no pairs of bytes; there is no stream then, and its id is the next one's.
        """
        state = StreamState(self._next_id, self._peer_stream_window, self._stream_window_bytes)
        output = self.output
        owed_before = output.owed_bytes
        self._write_headers(state, headers, end_stream)
        output.opening_bytes += output.owed_bytes - owed_before
        output.owed_bytes = owed_before
        self._next_id += 2
        self.streams_opened += 1
        self.streams[state.id] = state
        if end_stream:
            self._we_ended(state)
        return state.id

    @property
    def last_opened_id(self) -> int:
        """The last stream that we have opened; not positive if we have opened none."""
        return self._next_id - 2

    @property
    def room(self) -> bool:
        """May we open one more stream? False once the ids are used up (RFC 9113 §5.1.1) or the session has ended."""
        return (
            len(self.streams) < self.peer_max_concurrent_streams
            and self._next_id <= UNLIMITED
            and not self.ended
        )

    def send_headers(self, stream_id: int, headers: Headers, end_stream: bool = False) -> None:
        """Send response headers, or trailers (`end_stream`), behind the DATA that waits on the stream.

        A stream that is closed, or closing already, takes nothing: its end has been told by an event. Raises
        `TypeError` for fields that are no pairs of bytes, and `ValueError` for headers behind DATA that are no end,
        which would be malformed (RFC 9113 §8.1); the stream is as it was then.
        """
        state = self.streams.get(stream_id)
        if state is None or state.sending is not _OPEN:
            return
        if state.pending:
            if not end_stream:
                raise ValueError(f"headers behind the DATA of stream {stream_id} have to end it")
            check_fields(headers)  # now, since later there is nobody to tell
            state.trailers = headers
            state.sending = _CLOSING
            return
        self._write_headers_or_end(state, headers, end_stream)
        state.opened_at = _LONG_AGO
        if self.output.taken:
            self._count_output()

    def send_data(
        self,
        stream_id: int,
        data: Data,
        end_stream: bool = False,
        source: CreditSource | None = None,
        credit: int = 0,
    ) -> None:
        """Send DATA of any length, as the windows allow.

        When its last byte has been taken out with `take_output`, `(source, credit)` is among the receipts. A stream
        that is closed or closing takes nothing.
        """
        state = self.streams.get(stream_id)
        if state is None or state.sending is not _OPEN:
            return
        if not state.pending and (
            not data  # needs no window: END_STREAM never waits by itself
            or (
                self.output.data_bytes < self._max_output_bytes
                and len(data) <= self.peer_max_frame_bytes
                and len(data) <= self._window(state)
            )
        ):
            self._write_data(state, data, end_stream)
            self._data_frames_sent += 1
            if source is not None:
                self.output.owe(source, credit)
            if self.output.taken:
                self._count_output()
            if end_stream:
                self._we_ended(state)
            return
        if not state.waiting_bytes:
            state.moved_at = self.account.buffered.passed
        cost = state.hold(data, source, credit)
        self.account.add(cost, None if source is None else source.account)
        if end_stream:
            state.sending = _CLOSING
        self._queue(state)

    def reset(self, stream_id: int, error_code: int) -> bool:
        """Send RST_STREAM at once; what waits on the stream is dropped. On a closed stream nothing happens: False."""
        state = self.streams.get(stream_id)
        if state is None:
            return False
        self._write_reset(state, error_code)
        state.end_batch = self.output.batch
        self._close(state, by_our_reset=True)
        return True

    def reset_stalled(self, stream_id: int, error_code: int) -> bool:
        """As `reset`, of a stream that has stalled while memory is short. Raises `PeerAbuse` if it was one too many.

        A caller pays for it; an upstream does not, for its connection carries the calls of others, too.
        """
        if not self.reset(stream_id, error_code):
            return False
        if not self.client_side:
            self._guard.streams_for_nothing += 1
            self._guard.charge(guard.STREAM_ERROR, self)
        return True

    def reset_after_end(self, stream_id: int, error_code: int) -> None:
        """Send RST_STREAM as soon as our END_STREAM is out, unless the peer has ended its half by then.

        For a response that is complete before its request: RFC 9113 §8.1 asks for NO_ERROR then.
        """
        state = self.streams.get(stream_id)
        if state is None or state.receiving is _HEARD_ALL:
            return
        if state.sending is _SAID_ALL:
            self.reset(stream_id, error_code)
        else:
            state.reset_after_end = error_code

    def credit(self, stream_id: int, size: int) -> bool:
        """Give `size` bytes of a stream's window back to the peer: they have gone where they belong.

        The peer is told when half a window has come together: True. (So it is if the connection's window opens.)
        """
        told = self._uncredited >= self._connection_credit_step and self.credit_connection()
        state = self.streams.get(stream_id)
        if state is None or state.receiving is _HEARD_ALL:
            return told
        state.uncredited += size
        if state.uncredited < self._stream_credit_step:
            return told
        self._write_window_update(state, state.uncredited)
        state.uncredited = 0
        return True

    def credit_connection(self) -> bool:
        """Give back what the connection's window has taken in, if it is enough to tell the peer: True.

        On arrival, wherever it goes, so that one stalled stream does not stop the others. Only while the process is
        short of memory, what the peer has sent and still waits here is not given back.
        """
        size = self._uncredited
        if self.account.buffered.is_short:
            size -= self.account.from_peer
        if size < self._connection_credit_step or self.ended:
            return False
        self._uncredited -= size
        self._write_window_update(None, size)
        return True

    def ping(self, opaque: bytes) -> None:
        """Send PING with these eight bytes. Nothing happens once the session has ended."""
        if self.ended:
            return
        if not self._started:
            self.start()
        self.output.write(frames.ping(opaque))

    def go_away(self, *, final: bool, error_code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        """Tell the peer to open no more streams.

        Not `final`: with the id 2^31-1, which refuses nothing yet. `final`: with the highest id seen so far; streams
        above it are ignored from now on, streams up to it run on to their end (RFC 9113 §6.8). Nothing happens once
        the session has ended.
        """
        if self.ended:
            return
        if not self._started:
            self.start()  # RFC 9113 §3.4: SETTINGS come first, even when a server drains before its peer has spoken
        last_id = self._last_taken_id() if final or self.goaway_sent_id is not None else UNLIMITED
        if final:
            self.goaway_sent_id = last_id
        self.output.write(frames.goaway(last_id, error_code, debug))

    def _last_taken_id(self) -> int:
        """The highest id that a GOAWAY may name: it never grows (RFC 9113 §6.8)."""
        return self._highest_peer_id if self.goaway_sent_id is None else self.goaway_sent_id

    def fail(self, error: ConnectionFailed) -> None:
        """End the connection with a GOAWAY that names `error`. Nothing is received or sent after it."""
        if self.ended:
            return
        self.abandon()
        if not self._started:
            if isinstance(error, NotHttp2):
                if error.answer:
                    self.output.write(error.answer)
                return
            if self._splitter.begins_otherwise:
                return
            self.output.write(
                frames.settings({})
            )  # RFC 9113 §3.4: a server's first frame is SETTINGS, even before a GOAWAY
        debug = (error.told or error.message).encode()[:256]
        self.output.write(frames.goaway(self._last_taken_id(), error.error_code, debug))

    def abandon(self) -> None:
        """Let everything go that waits, and end without a word."""
        self.ended = True
        output = self.output
        self.account.take(output.counted_bytes + output.counted_taken_bytes, None)
        output.counted_bytes = output.counted_taken_bytes = 0
        for state in self.streams.values():
            if state.pending:
                self._drop_waiting(state)
        self.streams.clear()  # from here on every command finds its stream closed
        self._ready.clear()

    def position(self) -> Position:
        """Where it stands now: it looks at every open stream."""
        block = None
        if self._block is not None:
            block = self._block_stream_id, self._block_ends_stream, bytes(self._block)
        return Position(
            peer_began=self._splitter.has_begun,
            we_began=self._started,
            unread=self._splitter.unsplit,
            block=block,
            peer_table=self._decoder.table,
            own_table=self._own_table(),
            untaken_chunks=len(self.output.chunks),
            last_stream_id=self.last_opened_id if self.client_side else self._highest_peer_id,
            streams=tuple(map(self._stream_position, self.streams.values())),
        )

    def _stream_position(self, state: StreamState) -> StreamPosition:
        return StreamPosition(
            id=state.id,
            peer_began=not self.client_side or state.receiving is not _PEER_SILENT,
            peer_ended=state.receiving is _HEARD_ALL,
            we_began=self.client_side or state.opened_at == _LONG_AGO,
            we_ended=state.sending is _SAID_ALL,
            waiting_bytes=sum(piece.left for piece in state.pending or ()),
        )

    @property
    def settings_acknowledged(self) -> bool:
        """Whether the peer has acknowledged our SETTINGS (RFC 9113 §6.5.3)."""
        return self._guard.settings_acknowledged

    @property
    def wants_output(self) -> bool:
        """True if there is output that may be written now."""
        return bool(self.output.chunks) or bool(self._ready and self._connection_window() > 0)

    def take_output(self) -> tuple[list[Data], list[Receipt]]:
        """The bytes to write next, and the receipts to honour once they are written: then call `output_written`.

        Whoever takes more says that what was taken before is with the socket.
        """
        if self.output.taken:
            self.output_written()
        if self._ready:
            self._fill_output()
        if self.output.counted_bytes:
            self.account.take(self.output.counted_bytes, None)
            self.output.counted_bytes = 0
        return self.output.take()

    def output_waits(self, size: int) -> None:
        """The socket has not taken `size` bytes of what was taken: they count, and what is written behind them.

        That may be any number of answers with their headers, which no window limits.
        """
        self.output.waits_since = self.account.buffered.passed
        self.output.counted_taken_bytes = size
        self.account.add(size, None)

    def _count_output(self) -> None:
        grown = self.output.bytes - self.output.counted_bytes
        self.output.counted_bytes += grown
        self.account.add(grown, None)

    def output_written(self) -> None:
        """All that was taken is with the socket: the streams that ended with it count no more."""
        self._guard.answers_written()
        self.output.written()
        if self.output.counted_taken_bytes:
            self.account.take(self.output.counted_taken_bytes, None)
            self.output.counted_taken_bytes = 0

    def held_data(self, stream_id: int) -> tuple[int, str]:
        """How many bytes of DATA wait on a stream, and what for: "stream" or "connection" (windows), or "socket".

        For people who ask: it looks at each piece.
        """
        state = self.streams.get(stream_id)
        if state is None or not state.pending:
            return 0, ""
        size = sum(piece.left for piece in state.pending)
        if self._connection_window() <= 0:
            return size, "connection"
        return size, "stream" if self._window(state) <= 0 else "socket"

    def take_closed(self) -> list[int]:
        """Ids of the streams that have closed since the last call, their last frame with the socket."""
        return self.output.take_closed()

    def _fill_output(self) -> None:
        """Let the streams with waiting DATA take turns, one frame each, until the output is full."""
        ready, limit = self._ready, self._max_output_bytes
        while ready and self.output.data_bytes < limit:
            state = ready[0]
            assert state.pending  # it would not be ready otherwise
            piece = state.pending[0]
            left = piece.left
            size = min(left, self.peer_max_frame_bytes, max(0, self._window(state)))
            if size == 0 and left and self._connection_window() <= 0:
                return  # nobody can send; they keep their turns
            ready.popleft()
            state.queued = False
            if size or not left:
                self._send_piece(state, size, left)
                if state.pending:
                    self._queue(state)
            # else: the stream waits until the peer opens its window

    def _send_piece(self, state: StreamState, size: int, left: int) -> None:
        assert state.pending
        piece = state.pending[0]
        begin = piece.sent
        data: Data = piece.data  # type: ignore[assignment]  # if it is a bytearray, one that nobody changes any more
        if size < len(data):
            data = data[begin : begin + size]
        if size == left:
            state.pending.popleft()
            self._no_longer_waits(state, piece)
            if piece.source is not None:
                self.output.owe(piece.source, piece.credit)
            self._data_frames_sent += 1
        else:
            piece.sent += size
            if size >= guard.CUT_SHORT_BYTES:
                self._data_frames_sent += 1
        last = not state.pending and state.sending is _CLOSING
        end_stream = last and state.trailers is None
        self._write_data(state, data, end_stream)
        if end_stream:
            self._we_ended(state)
        elif last and state.trailers is not None:
            self._write_headers_or_end(state, state.trailers, end_stream=True)

    def _no_longer_waits(self, state: StreamState, piece: PendingData) -> None:
        state.waiting_bytes -= piece.cost
        state.moved_at = self.account.buffered.passed
        self.account.take(piece.cost, None if piece.source is None else piece.source.account)

    def _drop_waiting(self, state: StreamState) -> None:
        assert state.pending
        for piece in state.pending:
            self._no_longer_waits(state, piece)
        state.pending = None

    def _write_headers_or_end(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        self._header_lists_sent += 1
        if headers:
            self._write_headers(state, headers, end_stream)
        elif end_stream:
            # Empty trailers are legal to receive; h2 cannot write them, and an empty DATA frame says the same.
            self._write_data(state, b"", end_stream=True)
        if end_stream:
            self._we_ended(state)

    def _queue(self, state: StreamState) -> None:
        if not state.queued:
            state.queued = True
            self._ready.append(state)

    # ------------------------------------------------------- streams that end

    def _peer_ended(self, state: StreamState) -> None:
        state.receiving = _HEARD_ALL
        if state.sending is _SAID_ALL:
            self._close(state, by_our_reset=False)

    def _we_ended(self, state: StreamState) -> None:
        state.sending = _SAID_ALL
        state.end_batch = self.output.batch
        if state.receiving is _HEARD_ALL:
            self._close(state, by_our_reset=False)
        elif state.reset_after_end is not None:
            self.reset(state.id, state.reset_after_end)

    def _close(self, state: StreamState, *, by_our_reset: bool) -> None:
        del self.streams[state.id]
        self._held_header_bytes -= state.held_bytes
        if state.queued:
            self._ready.remove(state)
        if state.pending:
            self._drop_waiting(state)
        self._closed.remember(state.id, by_our_reset=by_our_reset)
        self.output.close(state.id, state.end_batch)

    @property
    def points_earned(self) -> float:
        """What the peer has to set against work for nothing: the streams that went well, and the DATA it was sent.

        Of the streams that we open all count, since a server may reset each of them once, at whatever rate: servers
        that answer early do.
        """
        good = self.streams_opened
        if not self.client_side:
            good -= self._guard.streams_for_nothing + len(self.streams)
        return guard.GOOD_STREAM_POINTS * good + guard.DATA_SENT_POINTS * self._data_frames_sent

    def _tell_of_the_budget(self) -> None:
        if not self._guard.told_of_the_budget:
            self._guard.told_of_the_budget = True
            self._events.append(
                LimitReached("abuse_budget", f"new calls are refused for now: {self._guard.bill()}")
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

    # --------------------------------------------------- what an engine does

    @abstractmethod
    def _own_table(self) -> Table:
        """A copy of the encoder's dynamic table."""

    @abstractmethod
    def _set_up(self) -> None:
        """Make what the engine keeps; all that `Session` keeps is there."""

    def _start(self) -> None:  # noqa: B027  # an engine may have nothing to do
        """Called once the first SETTINGS are queued."""

    @abstractmethod
    def _accept_headers(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        """A header list has passed every check and takes effect."""

    @abstractmethod
    def _accept_data(self, state: StreamState, data: Data, size: int, end_stream: bool) -> None:
        """Count `size` bytes against the receive windows; raise `ProtocolViolation` where they do not fit."""

    @abstractmethod
    def _accept_reset(self, state: StreamState, error_code: int) -> None:
        """The peer has reset the stream."""

    @abstractmethod
    def _accept_settings(self, values: dict[Setting, int]) -> None:
        """Put the peer's settings in force, but for the table's size. Their acknowledgement is written elsewhere."""

    @abstractmethod
    def _accept_table_size(self, size: int) -> None:
        """The peer allows our encoder a dynamic table of so many bytes from now on."""

    @abstractmethod
    def _accept_window_update(self, state: StreamState | None, increment: int) -> bool:
        """Open a send window (None: the connection's). False if a stream's would pass 2^31-1."""

    @abstractmethod
    def _window(self, state: StreamState) -> int:
        """How many bytes of DATA may go out on the stream now: may be negative (RFC 9113 §6.9.2)."""

    @abstractmethod
    def _connection_window(self) -> int:
        """The connection's send window."""

    @abstractmethod
    def _write_headers(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        """Encode the list and put HEADERS (and CONTINUATION) into the output.

        `TypeError` for fields that are no pairs of bytes; nothing has changed then.
        """

    @abstractmethod
    def _write_data(self, state: StreamState, data: Data, end_stream: bool) -> None:
        """Put one DATA frame into the output. It fits into the windows and the peer's frame size."""

    @abstractmethod
    def _write_reset(self, state: StreamState, error_code: int) -> None:
        """Put RST_STREAM into the output."""

    @abstractmethod
    def _write_window_update(self, state: StreamState | None, increment: int) -> None:
        """Open a receive window (None: the connection's) and tell the peer."""
