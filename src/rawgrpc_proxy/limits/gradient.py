"""How many calls at a time an upstream takes well, learned from how long they take. Pure: time is an argument.

An upstream that is not full answers in its own time, however many calls it has; one that is full lets them queue, and
each takes longer. So the limit follows a gradient, the shortest time that calls have taken lately over the time that
they take now: it is 1 while nothing queues, and then the limit grows by its square root, to find out; it falls below
when calls queue, and the limit falls with it. This is the idea of Netflix's concurrency-limits and of Envoy's adaptive
concurrency.

What "the shortest" is has to be measured anew from time to time, for upstreams change. If calls are few by then that
costs nothing. Else half of the limit is in force for so long as that takes, and half of that, until calls do not get
shorter by it: so that no queue is in the measure.

What it does not do: count calls, or refuse any. The invariant: `minimum` <= `limit` <= `maximum`.
"""

import math
import statistics
from random import Random

from rawgrpc_proxy.errors import ConfigError

_WINDOW_S = 0.1
_FEWEST_SAMPLES = 10
_MOST_SAMPLES = 1000
"""A window lasts a tenth of a second and has ten samples, or it has a thousand."""
_QUEUED = 0.8
"""Calls that take less than this share of what they took before have queued."""
_TOLERANCE = 1.5
"""Calls may take so many times the shortest time: no two calls are alike. Netflix's value."""
_SMOOTHING = 0.2
"""How much of a change is made at the end of a window."""
_STEEPEST = 0.5
_BASELINE_S = 30.0
_JITTER = 0.1
"""The shortest time is measured anew after half a minute, give or take, so that not all workers do so at once."""
_FIRST_LIMIT = 20.0


class Gradient:
    """A limit that is learned. `began` is for each call that begins, `ended` and `expired` for what came of it."""

    __slots__ = (
        "_baseline_s",
        "_before_s",
        "_divisor",
        "_due_at",
        "_expired",
        "_limit",
        "_maximum",
        "_measures_since",
        "_minimum",
        "_most_open",
        "_rng",
        "_samples",
        "_window_from",
    )

    def __init__(self, minimum: int, maximum: int, rng: Random) -> None:
        if not 1 <= minimum <= maximum:
            raise ConfigError(f"a limit between {minimum} and {maximum} is none: write 1 <= min <= max")
        self._minimum, self._maximum = minimum, maximum
        self._limit = min(max(_FIRST_LIMIT, minimum), maximum)
        self._rng = rng
        self._baseline_s = math.inf
        """The shortest time, by the medians of windows; infinite as long as nothing is known."""
        self._due_at = 0.0
        """From when on it has to be measured anew."""
        self._divisor = 1
        """More while it is measured: of what the limit is."""
        self._measures_since = -math.inf
        """Since when this is so; calls that began before say nothing."""
        self._before_s = 0.0
        """What calls took before that."""
        self._window_from: float | None = None
        self._samples: list[float] = []
        self._expired = 0
        self._most_open = 0

    @property
    def limit(self) -> int:
        """How many calls may be open now."""
        return max(self._minimum, int(self._limit / self._divisor))

    def began(self, open_calls: int) -> None:
        """A call has begun, and so many are open with it."""
        self._most_open = max(self._most_open, open_calls)

    def ended(self, began_at: float, now: float) -> None:
        """A call has ended well."""
        if began_at >= self._measures_since:
            self._samples.append(now - began_at)
            self._look(now)

    def expired(self, began_at: float, now: float) -> None:
        """A call has ended by its deadline: it took longer than it may, and nobody knows how long."""
        if began_at >= self._measures_since:
            self._expired += 1
            self._look(now)

    def _look(self, now: float) -> None:
        if self._window_from is None:
            self._window_from = now
        count = len(self._samples) + self._expired
        if count < _FEWEST_SAMPLES or (now < self._window_from + _WINDOW_S and count < _MOST_SAMPLES):
            return
        self._close_window(now)
        self._samples.clear()
        self._expired = self._most_open = 0
        self._window_from = now

    def _close_window(self, now: float) -> None:
        if self._expired > len(self._samples):
            # No time of those that were fast enough says how slow the others are.
            self._divisor = 1
            self._move(_STEEPEST)
            return
        took_s = statistics.median(self._samples)
        is_crowded = self._most_open > self._limit / 2
        if self._divisor > 1:
            if took_s < _QUEUED * self._before_s and self.limit > self._minimum:
                self._halve(took_s, now)
                return
            self._measured(min(took_s, self._before_s), now)
        elif self._baseline_s == math.inf:
            self._baseline_s = took_s
            self._due_at = now
        elif now >= self._due_at:
            if is_crowded:
                self._halve(took_s, now)
                return
            self._measured(took_s, now)
        self._baseline_s = min(took_s, self._baseline_s)
        gradient = _TOLERANCE * self._baseline_s / took_s if took_s else 1.0
        self._move(min(1.0, max(_STEEPEST, gradient)))

    def _halve(self, before_s: float, now: float) -> None:
        self._divisor *= 2
        self._before_s = before_s
        self._measures_since = now

    def _measured(self, baseline_s: float, now: float) -> None:
        self._baseline_s = baseline_s
        self._due_at = now + _BASELINE_S * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        self._divisor = 1

    def _move(self, gradient: float) -> None:
        wanted = self._limit * gradient + math.sqrt(self._limit)
        if wanted > self._limit and self._most_open <= self._limit / 2:
            return  # so few calls say nothing of more
        moved = self._limit + _SMOOTHING * (wanted - self._limit)
        self._limit = min(max(moved, self._minimum), self._maximum)
