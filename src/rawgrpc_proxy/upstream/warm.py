"""`Warm`: the connections of a target that are kept ready, dialled before a call needs them.

So many take calls at any time: the successor of one that comes to its ttl is there before that one retires, and what is
lost is replaced. What it does not do: dial an upstream in trouble (`target.py` does, one dial at a time, for as long as
connections are to be ready), or go beyond a limit of the pool: with `size` or `max_connections` reached, it waits until
there is room.

The invariant: it dials at most so many connections a second as it keeps, whatever the upstream does with them.
"""

import math
from typing import Protocol

import trio

from rawgrpc_proxy.upstream.choice import PoolRecord
from rawgrpc_proxy.upstream.pooled import PooledConnection

_PAUSE_S = 1.0
"""Between dials: an upstream that accepts connections and closes them at once shall not have us dial without end."""


class Keeps(Protocol):
    """A target, as far as this goes."""

    record: PoolRecord[PooledConnection]

    def dial_spare(self) -> bool:
        """Begin to dial a connection that nobody waits for. False: not now."""

    def kept_ready_no_more(self) -> None:
        """It has ended."""


class Warm:
    """Keeps `count` connections of a target ready, in a task of the pool's, until `count` is 0."""

    __slots__ = ("_ahead_s", "_changed", "_target", "count")

    def __init__(self, target: Keeps, count: int, ahead_s: float) -> None:
        self._target = target
        self.count = count
        self._ahead_s = ahead_s
        """So long before its ttl a connection has a successor dialled."""
        self._changed = trio.Event()

    def look(self) -> None:
        """Something has changed: there may be one too few."""
        self._changed.set()

    async def run(self) -> None:
        """Dial whatever is missing, now and whenever that changes. Cancelled when the pool closes."""
        may_dial_at = -math.inf
        try:
            while self.count:
                self._changed = trio.Event()
                now = trio.current_time()
                missing, until = self._missing(now)
                if missing > 0 and now < may_dial_at:
                    until = min(until, may_dial_at)
                elif missing > 0 and self._dial(missing):
                    may_dial_at = now + _PAUSE_S
                with trio.move_on_at(until):
                    await self._changed.wait()
        finally:
            self._target.kept_ready_no_more()

    def _missing(self, now: float) -> tuple[int, float]:
        """How many are too few, and when one more will be if nothing else changes."""
        record = self._target.record
        ends = [record.expires_at(conn) - self._ahead_s for conn in (*record.with_room, *record.busy)]
        fresh = [end for end in ends if end > now]
        return self.count - len(fresh), min(fresh, default=math.inf)

    def _dial(self, count: int) -> bool:
        """Begin so many dials, or as many as there may be. False: none."""
        begun = 0
        while begun < count and self._target.dial_spare():
            begun += 1
        return begun > 0
