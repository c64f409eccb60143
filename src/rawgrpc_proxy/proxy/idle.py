"""Whether a call has been idle for too long: nothing of it has passed, either way, for as long as that may be.

Frames know nothing of it. Four times in each timeout somebody looks how far the call is; so one that is idle ends
after at least the timeout, and at most a quarter more. What it does not do: wait, or end the call.
"""

from collections.abc import Callable

_LOOKS = 4


class IdleWatch:
    """One call, and when something of it was last seen to have passed. Times are those of one clock."""

    __slots__ = ("_passed", "_seen", "_since", "timeout_s")

    def __init__(self, passed: Callable[[], object], timeout_s: float) -> None:
        """`passed` answers another value whenever something has passed."""
        self._passed = passed
        self.timeout_s = timeout_s
        self._seen: object = None
        self._since = 0.0

    def begin(self, now: float) -> float:
        """From now on it counts. Answers when to `look`."""
        self._seen, self._since = self._passed(), now
        return now + self.timeout_s / _LOOKS

    def look(self, now: float) -> float | None:
        """When to look again; None: the call has been idle for too long."""
        passed = self._passed()
        if passed != self._seen:
            self._seen, self._since = passed, now
        elif now >= self._since + self.timeout_s:
            return None
        return min(now + self.timeout_s / _LOOKS, self._since + self.timeout_s)
