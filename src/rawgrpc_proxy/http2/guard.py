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
_FIRST_FLIGHT = 10_000
"""Streams beyond our limit that a peer may open before it has seen that limit."""
_PENDING_ACKS = 1000
_EMPTY_DATA = 100


class Guard:
    """Counts, for one connection. Each method raises `PeerAbuse` at one more than its limit."""

    __slots__ = (
        "_good_streams",
        "_pending_acks",
        "_priorities",
        "_refused_early",
        "_resets_received",
        "_reset_tokens",
        "_resets_at",
        "_window_updates",
        "empty_data",
        "settings_acknowledged",
        "streams_for_nothing",
        "told_of_the_limit",
    )

    def __init__(self) -> None:
        self._reset_tokens = float(_RESET_BURST)
        self._resets_at = 0.0
        self._good_streams = 0
        self._refused_early = 0
        self._resets_received = 0
        self.streams_for_nothing = 0
        """Streams of the peer that were refused, reset by it unanswered, or reset for what it sent on them."""
        self.settings_acknowledged = False
        """The peer knows our limits."""
        self.told_of_the_limit = False
        """It has been told to the log that the peer has as many streams open as it may."""
        self._pending_acks = 0
        self.empty_data = 0
        """DATA frames without payload, in a row. One with payload sets it back (here a call for each would cost)."""
        self._priorities = 0
        self._window_updates = 0

    def work_for_nothing(self, now: float, good_streams: int) -> None:
        """The peer has had us work for nothing: it took back a call at once, or provoked a reset.

        Rapid reset (CVE-2023-44487) and MadeYouReset (CVE-2025-8671) share one bucket. Time fills it again, and so does
        each stream that goes well: `good_streams` is how many have, so far.
        """
        earned = (now - self._resets_at) * _RESETS_PER_S + good_streams - self._good_streams
        self._reset_tokens = min(_RESET_BURST, self._reset_tokens + earned)
        self._resets_at, self._good_streams = now, good_streams
        if self._reset_tokens < 1:
            raise PeerAbuse(
                f"more than {_RESET_BURST} streams were reset unanswered, {_RESETS_PER_S:g} a second since, and one "
                "for each that went well"
            )
        self._reset_tokens -= 1

    def reset_received(self) -> int:
        """Count a RST_STREAM of the peer, and answer how many there were."""
        self._resets_received += 1
        return self._resets_received

    def may_not_know_the_limit(self) -> bool:
        """Whether a stream beyond our limit is forgiven: the peer has not acknowledged the limit yet."""
        self._refused_early += 1
        return not self.settings_acknowledged and self._refused_early <= _FIRST_FLIGHT

    def answer_owed(self) -> None:
        """A PING or SETTINGS asks for an acknowledgement that waits to be written."""
        self._pending_acks += 1
        if self._pending_acks > _PENDING_ACKS:
            raise PeerAbuse(
                f"more than {_PENDING_ACKS} PING and SETTINGS wait for an answer that is not being read"
            )

    def answers_written(self) -> None:
        """The output is with the socket: nothing is owed any more."""
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
