"""The price list: what a peer has us do for nothing costs it points, of which each connection has a budget.

Each frame counted here is legal by itself, and cheap to send; together they can keep us busy (RFC 9113 §10.5). What
serves a call costs nothing. What serves none has a price (`PRICES`), roughly the time that it takes us: a point is
worth some five microseconds. Calls that go well, DATA that we send, and time fill the budget again. A peer that has
used up three quarters of it opens no more streams: they are refused, which is safe to retry. One that has used up all
of it gets GOAWAY(ENHANCE_YOUR_CALM).

Honest peers never come near it, whatever they cancel, at whatever rate: a call that was answered, or lived for longer
than a moment, is not for nothing. Precedents: nghttp2 (1000 resets, 33 a second since), hyper's h2 (only resets of
streams that nobody has seen count), HAProxy's glitches and Go (one bucket for whatever is odd).

What it does not do: look into frames, or know about single calls. The invariant: a connection's work for nothing is
bounded by its budget, however it is mixed.
"""

from typing import Protocol

import attrs

from rawgrpc_proxy.errors import PeerAbuse

MAX_SETTINGS_ENTRIES = 32
"""A peer that knows all registered settings sends about ten."""

_FIRST_FLIGHT = 10_000
"""Streams beyond our limit that a peer may open before it has seen that limit."""
_PENDING_ACKS = 1000
_EMPTY_DATA = 100


@attrs.frozen
class Price:
    """What one of these costs, in points, and why it costs so much."""

    name: str
    points: float
    why: str


PRICES = (
    Price(
        "streams reset at once", 10, "HEADERS and RST_STREAM: decoded, checked, maybe begun (CVE-2023-44487)"
    ),
    Price("stream errors", 10, "the peer provokes the reset instead (CVE-2025-8671)"),
    Price("refused streams", 10, "a stream too many, or a malformed request: decoded, and answered"),
    Price("streams opened while the budget is low", 5, "decoded and refused, nothing else"),
    Price("resets of closed streams", 10, "more than one for each stream there was"),
    Price("DATA on closed streams", 10, "answered with RST_STREAM"),
    Price("frames on streams that we have reset", 0.1, "a whole window may be under way: only looked up"),
    Price("HEADERS on streams that we have reset", 1, "decoded: they belong to the connection's table"),
    Price("PING", 1, "answered; gRPC's estimate of the bandwidth asks once for each DATA frame at the most"),
    Price("unasked acknowledgements", 1, "of PING or SETTINGS"),
    Price("SETTINGS", 10, "applied to every stream, and acknowledged; a connection needs a few"),
    Price("streams that SETTINGS have moved", 0.02, "each time that the initial window changes"),
    Price("GOAWAY", 100, "every stream is looked at; a graceful end needs two"),
    Price("interim responses", 1, "1xx: decoded, and passed on to nobody"),
    Price("frames of an unknown type", 1, "ignored (RFC 9113 §5.5)"),
    Price("PRIORITY", 10, "ignored (RFC 9113 §5.3.2); browsers send one for a stream"),
    Price("WINDOW_UPDATE", 0.5, "serves its purpose once or twice for a DATA frame of ours"),
    Price("empty DATA", 1, "neither payload nor END_STREAM (CVE-2019-9518)"),
    Price("tiny DATA", 1, "less than the five bytes that a gRPC message begins with, and no END_STREAM"),
    Price(
        "work on header blocks",
        5,
        "of a block that repeats none, each 50 fields beyond 100, or 400 Huffman-coded bytes beyond 16 KiB; of one "
        "that serves no call, each 50 or 400",
    ),
)
(
    RESET_AT_ONCE,
    STREAM_ERROR,
    REFUSED,
    REFUSED_LOW,
    RESET_CLOSED,
    DATA_ON_CLOSED,
    DATA_ON_RESET,
    HEADERS_ON_RESET,
    PING,
    ACKNOWLEDGEMENT,
    SETTINGS,
    MOVED_STREAMS,
    GOAWAY,
    INTERIM,
    UNKNOWN,
    PRIORITY,
    WINDOW_UPDATE,
    EMPTY_DATA,
    TINY_DATA,
    HEADER_WORK,
) = range(len(PRICES))
"""Where each stands in `PRICES`."""
TINY_BYTES = 5
HEADER_WORK_UNIT = 50
GOOD_STREAM_POINTS = 10.0
"""A stream that goes well pays for one that does not."""
DATA_SENT_POINTS = 10.0
"""A DATA frame that we send pays for the WINDOW_UPDATEs and the PING that answer it."""
CUT_SHORT_BYTES = 256
"""But not one that is cut to less than this, because the peer's window has no more: it makes work for nothing, of which
it could have any amount with windows of a few bytes (CVE-2019-9511)."""
_LOW = 0.25

_POINTS = tuple(price.points for price in PRICES)  # looked up once, not for every frame


class Served(Protocol):
    """A session, as its guard sees it."""

    @property
    def now(self) -> float:
        """Seconds, on any monotonic clock."""

    @property
    def points_earned(self) -> float:
        """What its streams and its DATA have earned so far."""


class Guard:
    """Counts, for one connection."""

    __slots__ = (
        "_earned",
        "_pending_acks",
        "_per_s",
        "_refused_early",
        "_resets_received",
        "_settled_at",
        "budget",
        "counts",
        "empty_data",
        "low_points",
        "points",
        "settings_acknowledged",
        "streams_for_nothing",
        "told_of_the_limit",
        "told_of_the_budget",
    )

    def __init__(self, budget: float, per_s: float) -> None:
        self.budget = budget
        self._per_s = per_s
        self.points = budget
        """What is left, but for what was earned since the last time that points were short."""
        self.low_points = _LOW * budget
        """With less than this the peer may open no more streams."""
        self._settled_at = 0.0
        self._earned = 0.0
        self.counts = [0.0] * len(PRICES)
        """How many there were of each price, in the order of `PRICES`."""
        self._refused_early = 0
        self._resets_received = 0
        self.streams_for_nothing = 0
        """Streams of the peer that were refused, reset by it unanswered, or reset for what it sent on them."""
        self.settings_acknowledged = False
        """The peer knows our limits."""
        self.told_of_the_limit = False
        """It has been told to the log that the peer has as many streams open as it may."""
        self.told_of_the_budget = False
        """The same of the budget."""
        self._pending_acks = 0
        self.empty_data = 0
        """DATA frames without payload, in a row. One with payload sets it back (here a call for each would cost)."""

    def begin(self, now: float) -> None:
        """The connection begins, and its budget is full."""
        self._settled_at = now

    def charge(self, which: int, session: Served, times: float = 1) -> None:
        """Take the price of `times` of these. Raises `PeerAbuse` if the budget does not cover it."""
        self.counts[which] += times
        self.points -= times * _POINTS[which]
        if self.points < 0:
            self._settle(session)
            if self.points < 0:
                raise PeerAbuse(self.bill(), limit="abuse_budget")

    def is_low(self, session: Served) -> bool:
        """Whether so little is left that the peer may open no more streams."""
        if self.points >= self.low_points:
            return False
        self._settle(session)
        return self.points < self.low_points

    def _settle(self, session: Served) -> None:
        """Add what was earned since the last time. It is never more than the budget.

        Done when points are short, and not for each price: so a peer that has earned much meanwhile may spend up to two
        budgets at once.
        """
        now, earned = session.now, session.points_earned
        self.points += (now - self._settled_at) * self._per_s + max(earned - self._earned, 0.0)
        self.points = min(self.points, self.budget)
        self._settled_at, self._earned = now, max(earned, self._earned)

    def bill(self) -> str:
        """What has cost most, in words."""
        cost = sorted(
            (
                (count * price.points, f"{count:.0f} {price.name}")
                for count, price in zip(self.counts, PRICES, strict=True)
                if count
            ),
            reverse=True,
        )
        return (
            f"too much work that serves no call: {', '.join(text for _, text in cost[:3])} "
            f"(abuse_budget is {self.budget:g} points, and {self._per_s:g} a second)"
        )

    def reset_received(self) -> int:
        """Count a RST_STREAM of the peer, and answer how many there were."""
        self._resets_received += 1
        return self._resets_received

    def may_not_know_the_limit(self) -> bool:
        """Whether a stream beyond our limit is forgiven: the peer has not acknowledged the limit yet."""
        self._refused_early += 1
        return not self.settings_acknowledged and self._refused_early <= _FIRST_FLIGHT

    def answer_owed(self) -> None:
        """A PING or SETTINGS asks for an acknowledgement that waits to be written: memory, whatever the budget."""
        self._pending_acks += 1
        if self._pending_acks > _PENDING_ACKS:
            raise PeerAbuse(
                f"more than {_PENDING_ACKS} PING and SETTINGS wait for an answer that is not being read",
                limit="unread_answers",
            )

    def answers_written(self) -> None:
        """The output is with the socket: nothing is owed any more."""
        self._pending_acks = 0

    def one_more_empty_data(self, session: Served) -> None:
        """DATA without payload and without END_STREAM."""
        self.empty_data += 1
        if self.empty_data > _EMPTY_DATA:
            raise PeerAbuse(f"more than {_EMPTY_DATA} DATA frames in a row are empty", limit="empty_data")
        self.charge(EMPTY_DATA, session)
