"""What happens again and again is told once in a while, with the number of those left out."""


class Repeats:
    """Remembers when what was told of whom; of more than `most`, those heard of the longest ago are forgotten."""

    def __init__(self, *, interval_s: float, most: int) -> None:
        self._interval_s = interval_s
        self._most = most
        self._told: dict[tuple[str, str], list[float | int]] = {}
        """Whom and what → when it was told, and how many were left out since."""

    def left_out(self, whom: str, what: str, now: float) -> int | None:
        """None if this is to be left out, too. Else how many of these were left out since the last one told.

        `now` is in seconds, on any monotonic clock.
        """
        key = whom, what
        told = self._told.pop(key, None)
        if told is not None and now - told[0] < self._interval_s:
            told[1] += 1
            self._told[key] = told
            return None
        if len(self._told) >= self._most:
            del self._told[next(iter(self._told))]
        self._told[key] = [now, 0]
        return 0 if told is None else int(told[1])
