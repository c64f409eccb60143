"""Budgets for what is cheap to send and costly to receive.

Every frame counted here is legal by itself; a peer that sends too many of them gets GOAWAY(ENHANCE_YOUR_CALM)
(RFC 9113 §10.5). The budgets are wide enough that grpcio, grpc-go, etcd and h2load never come near them. What it does
not do: look into frames, or know about single calls.
"""

from rawgrpc_proxy.errors import PeerAbuse

MAX_SETTINGS_ENTRIES = 32
"""A peer that knows all registered settings sends about ten."""

_RESET_BURST = 1000
_RESETS_PER_S = 33.0
_PENDING_ACKS = 1000
_EMPTY_DATA = 100


class Guard:
    """Counts, for one connection. Each method raises `PeerAbuse` at one more than its limit."""

    __slots__ = (
        "_pending_acks",
        "_priorities",
        "_reset_tokens",
        "_resets_at",
        "_window_updates",
        "empty_data",
    )

    def __init__(self) -> None:
        self._reset_tokens = float(_RESET_BURST)
        self._resets_at = 0.0
        self._pending_acks = 0
        self.empty_data = 0
        """DATA frames without payload, in a row. One with payload sets it back (here a call for each would cost)."""
        self._priorities = 0
        self._window_updates = 0

    def stream_reset(self, now: float) -> None:
        """A stream was reset, by the peer or through its fault: rapid reset and MadeYouReset share one bucket."""
        self._reset_tokens = min(_RESET_BURST, self._reset_tokens + (now - self._resets_at) * _RESETS_PER_S)
        self._resets_at = now
        if self._reset_tokens < 1:
            raise PeerAbuse(
                f"more than {_RESET_BURST} streams were reset, and {_RESETS_PER_S:g} a second since"
            )
        self._reset_tokens -= 1

    def stream_opened_by_us(self) -> None:
        """The peer may reset each stream of ours once, at whatever rate: servers that answer early do."""
        self._reset_tokens += 1

    def answer_owed(self) -> None:
        """A PING or SETTINGS asks for an acknowledgement that waits to be written."""
        self._pending_acks += 1
        if self._pending_acks > _PENDING_ACKS:
            raise PeerAbuse(
                f"more than {_PENDING_ACKS} PING and SETTINGS wait for an answer that is not being read"
            )

    def answers_written(self) -> None:
        """The output was taken: nothing is owed any more."""
        self._pending_acks = 0

    def one_more_empty_data(self) -> None:
        """DATA without payload and without END_STREAM."""
        self.empty_data += 1
        if self.empty_data > _EMPTY_DATA:
            raise PeerAbuse(f"more than {_EMPTY_DATA} DATA frames in a row are empty")

    def priority(self, streams_opened: int) -> None:
        """PRIORITY, which RFC 9113 has us ignore."""
        self._priorities += 1
        limit = 100 * (1 + streams_opened)
        if self._priorities > limit:
            raise PeerAbuse(f"more than {limit} PRIORITY frames for {streams_opened} streams")

    def window_update(self, streams_opened: int, data_frames_sent: int) -> None:
        """WINDOW_UPDATE, of which there are two per DATA frame at the most where they serve a purpose."""
        self._window_updates += 1
        limit = 5 + 2 * (streams_opened + 10 * data_frames_sent)
        if self._window_updates > limit:
            raise PeerAbuse(f"more than {limit} WINDOW_UPDATE frames for {data_frames_sent} DATA frames")
