"""How many bytes of DATA wait in this process, and whose they are.

A peer that takes nothing makes us hold what others send it, up to a window for each of its streams. No window bounds
the sum over all streams and connections; this count does, and whoever acts on it: a session, which gives less credit
and opens no more streams while much waits (`Account`), and `net/memory_guard.py`, which ends the calls that have
stalled for longest.

    Account (one connection) ──┐
    Account (one connection) ──┴─► Buffered (the process): .bytes, alarm when they pass `near`

The invariant: what is added is taken away where it leaves its container, whatever has become of its stream.
A connection's output counts once the socket takes no more. What is not counted: the first kilobyte of a call that waits
for its upstream.
"""

import math
from collections.abc import Callable

NEAR = 0.75
"""The share of the limit from which on a process is short of memory."""
_KEEP = 0.5
"""The share up to which requests are kept for a second try."""
MUCH_BYTES = 32 * 1024 * 1024
"""Behind so much, what is free is given back to the system."""
PIECE_BYTES = 256
"""What the objects of a piece of DATA take beside its bytes: a bytearray, its holder, and their slack."""


class Buffered:
    """The process's count. `limit` is the smallest `max_buffered_bytes` of the connections that are open."""

    __slots__ = (
        "_alarm_at",
        "accounts",
        "bytes",
        "has_been_much",
        "keep_below",
        "limit",
        "near",
        "on_alarm",
        "passed",
    )

    def __init__(self) -> None:
        self.bytes = 0
        """What waits now."""
        self.passed = 0
        """What has ever waited: tells which of two pieces came first."""
        self.accounts = 0
        """How many connections there are."""
        self.on_alarm: Callable[[], None] = _nobody
        """Called while bytes are added and `near` is passed: must neither wait nor raise."""
        self.has_been_much = False
        """Whether `MUCH_BYTES` have waited at once, since it was forgotten last."""
        self._limit_to(math.inf)

    @property
    def is_short(self) -> bool:
        """Whether so much waits that something has to be done about it."""
        return self.bytes >= self.near

    def add(self, size: int) -> None:
        """`size` bytes wait."""
        self.bytes += size
        self.passed += size
        if self.bytes >= self._alarm_at:
            self._alarm()

    def _alarm(self) -> None:
        if self.bytes >= MUCH_BYTES:
            self.has_been_much = True
            self._alarm_at = self.near
        if self.bytes >= self.near:
            self.on_alarm()

    def forget_much(self) -> None:
        """What has waited until now has been given back."""
        self.has_been_much = False
        self._alarm_at = min(self.near, MUCH_BYTES)

    def open(self, limit: float) -> None:
        """A connection with this limit begins."""
        self.accounts += 1
        if limit < self.limit:
            self._limit_to(limit)

    def close(self) -> None:
        """A connection has ended."""
        self.accounts -= 1
        if not self.accounts:
            self._limit_to(math.inf)

    def _limit_to(self, limit: float) -> None:
        self.limit = limit
        self.near = NEAR * limit
        self.keep_below = _KEEP * limit
        self._alarm_at = self.near if self.has_been_much else min(self.near, MUCH_BYTES)


class Account:
    """One connection's part. `to_peer` waits for the peer to take it, `from_peer` came from it and waits elsewhere."""

    __slots__ = ("buffered", "from_peer", "to_peer")

    def __init__(self, buffered: Buffered) -> None:
        self.buffered = buffered
        self.to_peer = 0
        self.from_peer = 0

    @property
    def is_beyond_its_share(self) -> bool:
        """Whether the connection holds more than an equal share of the limit."""
        buffered = self.buffered
        return (self.to_peer + self.from_peer) * buffered.accounts > buffered.limit

    @property
    def its_peer_takes_too_little(self) -> bool:
        """Whether more than an equal share of the limit waits for the peer itself."""
        return self.to_peer * self.buffered.accounts > self.buffered.limit

    def add(self, size: int, origin: "Account | None") -> None:
        """`size` bytes wait for the peer. They have come from the peer of `origin`, if they have come from any."""
        self.to_peer += size
        if origin is not None:
            origin.from_peer += size
        self.buffered.add(size)

    def take(self, size: int, origin: "Account | None") -> None:
        """They wait no more: the opposite of `add`."""
        self.to_peer -= size
        self.buffered.bytes -= size
        if origin is not None:
            origin.from_peer -= size

    def add_arrived(self, size: int) -> None:
        """`size` bytes from the peer wait here, for nobody knows yet where they go."""
        self.from_peer += size
        self.buffered.add(size)

    def take_arrived(self, size: int) -> None:
        """They wait no more: the opposite of `add_arrived`."""
        self.from_peer -= size
        self.buffered.bytes -= size


def _nobody() -> None:
    """Nobody is called."""
