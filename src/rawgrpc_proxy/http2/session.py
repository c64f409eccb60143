"""One HTTP/2 connection without I/O: bytes in, events out; commands in, bytes out. Time is an argument.

`Session` is the contract that the engines share, and all that does not depend on how an engine keeps windows and
states. What it does not do: I/O, tasks, gRPC. It is one state machine in five layers, each with its own part of the
state; a layer calls those below it, and none above:

    session.py         what comes in: each frame of the peer, and what it does
    header_blocks.py   of these HEADERS and CONTINUATION: requests, responses, trailers; and errors of streams
    sending.py         what goes out: commands, the DATA that waits, credit, the order of the output
    streams.py         which streams there are, and how each of them ends
    engine.py          what an engine does; h2_session.py and relay_session.py, on top of all, do it

Invariants: `receive` raises nothing for whatever bytes come in; once the connection has ended nothing is received or
sent on it.

Owns RFC 9113 §3.4, §5.4.1, §5.5, and of §6 what the frames of a peer do that begin no stream.
"""

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConnectionFailed, NotHttp2, ProtocolViolation
from rawgrpc_proxy.http2 import frames, guard
from rawgrpc_proxy.http2.buffered import Buffered
from rawgrpc_proxy.http2.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    GoAwayReceived,
    PingAcknowledged,
    SettingsReceived,
    StreamReset,
)
from rawgrpc_proxy.http2.frames import UNLIMITED, Data, FrameSplitter, Setting
from rawgrpc_proxy.http2.guard import MAX_SETTINGS_ENTRIES
from rawgrpc_proxy.http2.header_blocks import HeaderBlocks, Shorten
from rawgrpc_proxy.http2.ping_policy import PingPolicy
from rawgrpc_proxy.http2.position import Position, StreamPosition
from rawgrpc_proxy.http2.stream_state import LONG_AGO, Receiving, Sending, StreamState

# Looked up once: an enum's member costs as much as a call, each time, and these are asked for with every frame.
_PEER_SILENT, _BODY, _HEARD_ALL = Receiving
_SAID_ALL = Sending.ENDED
# RFC 9113 §6.5.2's initial value, and the most we let a peer ask our encoder to search.
_HEADER_TABLE_BYTES = 4096
_YOUNG_S = 0.01
"""A call that lives for so long and is given up then has a deadline behind it, and no malice. A peer can open no more
of them in that time than it may have open at once."""


class Session(HeaderBlocks):
    """The HTTP/2 state of one connection. `client_side` says whether we opened it (upstream) or were called.

    `shorten` answers what to keep of a list that ends a response and is too long: see `grpc.status.status_fields`.
    `buffered` counts the DATA that waits in this process, on whichever connection.
    """

    __slots__ = ("_new_settings", "_peer_table_bytes", "_ping_policy", "_splitter")

    def __init__(
        self,
        settings: Http2Settings,
        *,
        client_side: bool,
        shorten: Shorten,
        buffered: Buffered | None = None,
    ) -> None:
        super().__init__(settings, client_side=client_side, shorten=shorten, buffered=buffered)
        self._splitter = FrameSplitter(settings.max_frame_bytes, expect_preface=not client_side)
        self._ping_policy = PingPolicy.of(settings) if not client_side else None
        self._new_settings: dict[Setting, int] = {}
        """What the peer's SETTINGS say that is not in force yet: it is put in force at the end of each read."""
        self._peer_table_bytes = _HEADER_TABLE_BYTES
        self._set_up()

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

    @property
    def settings_acknowledged(self) -> bool:
        """Whether the peer has acknowledged our SETTINGS (RFC 9113 §6.5.3)."""
        return self._guard.settings_acknowledged

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

    # ----------------------------------------------------- the whole connection

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
            we_began=self.client_side or state.opened_at == LONG_AGO,
            we_ended=state.sending is _SAID_ALL,
            waiting_bytes=sum(piece.left for piece in state.pending or ()),
        )
