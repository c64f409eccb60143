"""The streams of one connection: which there are, how each of them ends, and what the peer has earned with them.

A stream is open from the HEADERS that begin it until both halves have ended, or either side has reset it; then its
state is gone, with the DATA that waited on it, and `ClosedStreams` remembers it for a while.

What it does not do: let one begin (`sending.py` ours, `header_blocks.py` the peer's), or say what is wrong with one.

The invariant: what a stream held (its DATA in the account, its headers in the sum of them) is given back in `_close`,
the one way out, or with the connection in `abandon`.

Owns RFC 9113 §5.1 and §5.1.1.
"""

from collections import deque

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.http2 import guard
from rawgrpc_proxy.http2.buffered import Account, Buffered
from rawgrpc_proxy.http2.closed_streams import ClosedStreams
from rawgrpc_proxy.http2.engine import Engine
from rawgrpc_proxy.http2.frames import UNLIMITED
from rawgrpc_proxy.http2.guard import Guard
from rawgrpc_proxy.http2.stream_state import PendingData, Receiving, Sending, StreamState

_HEARD_ALL, _SAID_ALL = Receiving.ENDED, Sending.ENDED  # looked up once, not with every frame


class Streams(Engine):
    """The streams of a session, its budget, and its account of what waits."""

    __slots__ = (
        "_closed",
        "_data_frames_sent",
        "_guard",
        "_held_header_bytes",
        "_highest_peer_id",
        "_next_id",
        "_ready",
        "_stream_window_bytes",
        "account",
        "ended",
        "now",
        "streams_opened",
    )

    def __init__(self, settings: Http2Settings, *, client_side: bool, buffered: Buffered | None) -> None:
        super().__init__(settings, client_side=client_side)
        self.account = Account(buffered or Buffered())
        self.ended = False
        self.now = 0.0
        """When the peer was heard last: the session looks at no clock."""
        self._guard = Guard(settings.abuse_budget, settings.abuse_budget_per_s)
        self._stream_window_bytes = settings.stream_window_bytes
        self._highest_peer_id = 0
        self._next_id = 1 if client_side else 2
        self.streams_opened = 0
        self._data_frames_sent = 0
        self._closed = ClosedStreams()
        self._held_header_bytes = 0
        """What the headers of the streams take that the peer has open."""
        self._ready: deque[StreamState] = deque()
        """Those that take turns to send the DATA that waits on them."""

    @property
    def room(self) -> bool:
        """May we open one more stream? False once the ids are used up (RFC 9113 §5.1.1) or the session has ended."""
        return (
            len(self.streams) < self.peer_max_concurrent_streams
            and self._next_id <= UNLIMITED
            and not self.ended
        )

    @property
    def last_opened_id(self) -> int:
        """The last stream that we have opened; not positive if we have opened none."""
        return self._next_id - 2

    def _is_idle(self, stream_id: int) -> bool:
        """Has nobody opened this stream yet (RFC 9113 §5.1)? True for stream 0 as well."""
        if stream_id == 0:
            return True
        if stream_id % 2 == self.client_side:
            return stream_id >= self._next_id
        return stream_id > self._highest_peer_id

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

    # ------------------------------------------------------------- how they end

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

    def _drop_waiting(self, state: StreamState) -> None:
        assert state.pending
        for piece in state.pending:
            self._no_longer_waits(state, piece)
        state.pending = None

    def _no_longer_waits(self, state: StreamState, piece: PendingData) -> None:
        state.waiting_bytes -= piece.cost
        state.moved_at = self.account.buffered.passed
        self.account.take(piece.cost, None if piece.source is None else piece.source.account)
