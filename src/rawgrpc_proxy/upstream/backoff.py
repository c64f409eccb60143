"""When the next dial to an address in trouble may begin.

    fine ──a dial fails──► the next one at once, then after pauses that grow ──one succeeds──► fine

Pure: no clock, no I/O; times are arguments. The first dial after one that failed comes at once: a backend that restarts
resets what waits in its queue. Later ones begin so long after the one before, with the jitter never more than 4 s, so
that the first success comes within 5 s of the backend's return, however long it was away.
"""

import math
import random

_AT_ONCE_S = 0.04
_FIRST_PAUSE_S = 0.25
_FACTOR = 2.0
_LONGEST_PAUSE_S = 3.3
_JITTER = 0.2
_OWN_FAULT_PAUSE_S = 0.1
"""Between dials that fail for want of something here, like file descriptors."""
_MOST_DOUBLINGS = 10


class Backoff:
    """The pauses between the dials to one address."""

    __slots__ = ("_failures", "_rng", "retry_at")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failures = 0
        self.retry_at = -math.inf
        """From when on the next dial may begin."""

    def failed(self, began: float, now: float, *, ours: bool) -> bool:
        """A dial that began then has failed; `ours`: for want of something here, which is not the upstream's fault.

        False: it was under way already when another one failed, and an outage counts once.
        """
        if began < self.retry_at > now:
            return False
        if ours:
            self.retry_at = now + _OWN_FAULT_PAUSE_S
            return True
        spread = self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        pause = 0.0
        if self._failures:
            pause = min(
                _FIRST_PAUSE_S * _FACTOR ** min(self._failures - 1, _MOST_DOUBLINGS), _LONGEST_PAUSE_S
            )
        # From when it began: one that has waited for an answer has been a pause already.
        self.retry_at = max(began + pause * spread, now + _AT_ONCE_S * spread)
        self._failures += 1
        return True

    def works(self) -> None:
        """A dial has succeeded, or is about to be tried with as much hope as the first one."""
        self._failures = 0
        self.retry_at = -math.inf
