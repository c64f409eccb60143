"""What goes out: the commands of whoever uses a session, the DATA that waits, credit, and the order of the output.

    send_headers, send_data ──the windows are open──► Output ──take_output──► the socket
              └─────────────► waits with its stream ──in turns, a frame each──┘

Invariants: output is in order (a header block is encoded at the moment it enters the output, as HPACK demands); DATA
leaves the output only together with the receipts that credit its source.

What it does not do: make frames of lists and bytes (the engine does), or write to a socket.

Owns RFC 9113 §5.2 but for the arithmetic of windows, and what we send by §3.4 and §6.8.
"""

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import DEFAULT_WINDOW, Http2Settings
from rawgrpc_proxy.http2 import frames, guard
from rawgrpc_proxy.http2.buffered import Buffered
from rawgrpc_proxy.http2.frames import UNLIMITED, Data, Setting
from rawgrpc_proxy.http2.headers import Headers, check_fields
from rawgrpc_proxy.http2.output import Receipt
from rawgrpc_proxy.http2.stream_state import LONG_AGO, CreditSource, Receiving, Sending, StreamState
from rawgrpc_proxy.http2.streams import Streams

_HEARD_ALL = Receiving.ENDED  # these are looked up once, not with every frame
_OPEN, _CLOSING = Sending.OPEN, Sending.CLOSING


class SendingHalf(Streams):
    """The commands of a session, and its output."""

    __slots__ = (
        "_connection_credit_step",
        "_dropped",
        "_header_lists_sent",
        "_max_output_bytes",
        "_started",
        "_stream_credit_step",
        "_uncredited",
        "goaway_sent_id",
    )

    def __init__(self, settings: Http2Settings, *, client_side: bool, buffered: Buffered | None) -> None:
        super().__init__(settings, client_side=client_side, buffered=buffered)
        self._started = False
        self._max_output_bytes = settings.max_output_bytes
        self._header_lists_sent = 0
        self.goaway_sent_id: int | None = None
        self._uncredited = 0
        """DATA that has come, and is not given back to the connection's window yet."""
        self._dropped = 0
        """The same of DATA that goes nowhere."""
        self._stream_credit_step = max(1, settings.stream_window_bytes // 2)
        self._connection_credit_step = max(1, settings.connection_window_bytes // 4)

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
        state.opened_at = LONG_AGO
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

    def ping(self, opaque: bytes) -> None:
        """Send PING with these eight bytes. Nothing happens once the session has ended."""
        if self.ended:
            return
        if not self._started:
            self.start()
        self.output.write(frames.ping(opaque))

    def go_away(self, *, final: bool) -> None:
        """Tell the peer to open no more streams, with GOAWAY(NO_ERROR).

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
        self.output.write(frames.goaway(last_id, ErrorCode.NO_ERROR, b""))

    def _last_taken_id(self) -> int:
        """The highest id that a GOAWAY may name: it never grows (RFC 9113 §6.8)."""
        return self._highest_peer_id if self.goaway_sent_id is None else self.goaway_sent_id

    # ------------------------------------------------------------------- credit

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

    def _drop_data(self, size: int) -> None:
        """Return the connection credit of DATA that goes nowhere: in steps, as for the rest.

        A frame for each would let a peer that does not read fill our output, one byte of DATA at a time.
        """
        self._dropped += size
        if self._dropped >= self._connection_credit_step:
            # Straight into the output: no engine has counted this DATA, so none may count its credit.
            self.output.write(frames.window_update(0, self._dropped))
            self._dropped = 0

    # ------------------------------------------------------------------- output

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
