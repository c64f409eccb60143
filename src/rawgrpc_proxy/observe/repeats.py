"""What happens again and again is told once a minute, with the number of those left out."""

_INTERVAL_S = 60.0
_MAX_REMEMBERED = 1024


class Repeats:
    """Remembers what was told of which host; of very many, those of which the least was heard lately are forgotten."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], list[float | int]] = {}
        """Host and event → when it was told, and how many were left out since."""

    def left_out(self, peer: str, event: str, now: float) -> int | None:
        """None if this is to be left out, too. Else how many of the peer's host were left out since the last one told.

        `peer` is HOST:PORT; `now` is in seconds, on any monotonic clock.
        """
        key = peer.rpartition(":")[0], event
        told = self._told.pop(key, None)
        if told is not None and now - told[0] < _INTERVAL_S:
            told[1] += 1
            self._told[key] = told
            return None
        if len(self._told) >= _MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        self._told[key] = [now, 0]
        return 0 if told is None else int(told[1])
