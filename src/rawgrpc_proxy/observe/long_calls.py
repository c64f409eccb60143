"""Calls that last: which are open for so long that the log is to tell of them.

One dictionary in the order in which they began, so whoever looks for the old ones looks at these alone, and at each
once. What it does not do: know the time, or write. The invariant: of a call that has ended nothing is left here.
"""

from itertools import islice

from rawgrpc_proxy.observe.record import CallRecord


class LongCalls:
    """Calls from their start to their end; those that are open for `after_s` seconds are answered by `due`, once."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._fresh: dict[int, tuple[CallRecord, float]] = {}
        """By the identity of their records: with when they began. Records have no other, and live as long."""
        self._told: dict[int, CallRecord] = {}

    def started(self, record: CallRecord, now: float) -> None:
        """The call has begun."""
        self._fresh[id(record)] = record, now

    def ended(self, record: CallRecord) -> bool:
        """The call is over. Answers whether `due` has answered it."""
        if self._fresh.pop(id(record), None) is not None:
            return False
        return self._told.pop(id(record), None) is not None

    def due(self, now: float, most: int) -> list[tuple[CallRecord, float]]:
        """Those that are open for long enough, oldest first, with their age in seconds, but no more than `most`."""
        since = now - self._after_s
        found = [
            (record, now - began) for record, began in islice(self._fresh.values(), most) if began <= since
        ]
        for record, _ in found:
            self._told[id(record)] = record
            del self._fresh[id(record)]
        return found
