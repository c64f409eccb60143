"""What a session remembers of streams that have closed: enough to tell a late frame from a wrong one (RFC 9113 §5.1).

Bounded: of the streams that closed long ago nothing is known any more.
"""

_REMEMBERED = 1024


class ClosedStreams:
    """The streams that were closed lately, each with who closed it."""

    __slots__ = ("_before", "_lately")

    def __init__(self) -> None:
        self._lately: dict[int, bool] = {}
        self._before: dict[int, bool] = {}
        """Those closed before these. Dropping them together costs less than dropping them one by one."""

    def remember(self, stream_id: int, *, by_our_reset: bool) -> None:
        """`by_our_reset`: by a RST_STREAM of ours, so that the peer may not know yet."""
        lately = self._lately
        lately[stream_id] = by_our_reset
        if len(lately) >= _REMEMBERED:
            self._before, self._lately = lately, {}

    def by_our_reset(self, stream_id: int) -> bool | None:
        """Whether the stream was closed by a RST_STREAM of ours; None if that is long ago, or it is not closed."""
        ours = self._lately.get(stream_id)
        return self._before.get(stream_id) if ours is None else ours
