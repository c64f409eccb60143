"""What happens again and again is told once in a while, with the number of those left out."""


class Repeats:
    """Remembers when what was told of whom; of more than `most`, those heard of the longest ago are forgotten.

    What goes on is told after `interval_s`, and then after twice as long each time, up to `longest_s`. It begins anew
    if nothing was heard of it for half of that.
    """

    def __init__(self, *, interval_s: float, most: int, longest_s: float | None = None) -> None:
        """Without `longest_s` the interval stays as it is."""
        self._interval_s = interval_s
        self._longest_s = interval_s if longest_s is None else longest_s
        self._most = most
        self._told: dict[tuple[str, str], _Told] = {}
        """By whom and what."""

    def left_out(self, whom: str, what: str, now: float) -> int | None:
        """None if this is to be left out, too. Else how many of these were left out since the last one told.

        `now` is in seconds, on any monotonic clock.
        """
        key = whom, what
        told = self._told.pop(key, None)
        if told is None:
            if len(self._told) >= self._most:
                del self._told[next(iter(self._told))]
            self._told[key] = _Told(now, self._interval_s)
            return 0
        self._told[key] = told
        if now - told.heard_at > self._longest_s / 2:
            told.interval_s = self._interval_s
        told.heard_at = now
        if now - told.at < told.interval_s:
            told.left_out += 1
            return None
        left_out, told.left_out = told.left_out, 0
        told.at, told.interval_s = now, min(2 * told.interval_s, self._longest_s)
        return left_out


class _Told:
    __slots__ = ("at", "heard_at", "interval_s", "left_out")

    def __init__(self, now: float, interval_s: float) -> None:
        self.at = self.heard_at = now
        self.interval_s = interval_s
        """Until it is told again."""
        self.left_out = 0
        """Since it was told."""
