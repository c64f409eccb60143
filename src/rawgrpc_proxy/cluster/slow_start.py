"""Slow start: an endpoint that joins, or comes back, gets its share of the calls little by little.

Caches are cold then, code is not compiled yet, pools are empty. Pure: no trio, no clock; times are arguments. The curve
is Envoy's.
"""

import attrs

from rawgrpc_proxy.validators import between

_TICKS = 50
_SHORTEST_TICK_S, _LONGEST_TICK_S = 0.1, 2.0


@attrs.frozen(kw_only=True)
class SlowStart:
    """How an endpoint gets its weight once it has joined; `slow_start = "30s"` is short for `{ window = "30s" }`."""

    window_s: float = attrs.field(validator=between(0.1, 86_400))
    """So long after it has joined an endpoint has all of its weight."""

    aggression: float = attrs.field(default=1.0, validator=between(0.01, 100))
    """1: the weight grows in proportion to the time; above that it grows faster at first, below more slowly."""

    min_weight: float = attrs.field(default=0.1, validator=between(0.001, 1))
    """The part of its weight that an endpoint begins with: with nothing it would never get warm."""

    @property
    def tick_s(self) -> float:
        """How often weights are worth being worked out again, while an endpoint starts."""
        return min(max(self.window_s / _TICKS, _SHORTEST_TICK_S), _LONGEST_TICK_S)

    def part(self, age_s: float) -> float:
        """The part of its weight that an endpoint has, so long after it has joined; `min_weight` to 1."""
        if age_s >= self.window_s:
            return 1.0
        part: float = (max(age_s, 0.0) / self.window_s) ** (1 / self.aggression)
        return max(self.min_weight, part)
