"""Outlier detection, gRFC A50: endpoints that do worse than others, or fail too much, are left out for a while.

    in use ──an algorithm finds it──► ejected for base_ejection_time × multiplier ──the first sweep after that──► in use

Pure: no clock, no I/O; times are arguments, and chance is a `random.Random`. What it does not do: decide what counts as
a failure (its owner does, by `OutlierDetection.failures`), or keep calls away (`Cluster` does).

Beyond A50 there is one algorithm, Envoy's: a number of failures one after another, which ejects at once, not at the
sweep, by the same multiplier and maximum. And one thing is not as A50 has it: an endpoint that is ejected already is
not ejected once more by what late calls say of it, which would prolong its time.
"""

import math
import random
from collections.abc import Iterator

import attrs

from rawgrpc_proxy.cluster.outlier_settings import FailurePercentage, OutlierDetection, SuccessRate

_A_ROUNDING_ERROR = 1e-9
"""The mean of equal rates may come out that much above them, and they are no outliers for it."""

CONSECUTIVE_FAILURES = "consecutive_failures"
SUCCESS_RATE = "success_rate"
FAILURE_PERCENTAGE = "failure_percentage"


class OutlierStats:
    """What is counted of one endpoint, and whether it is ejected. `OutlierDetector.add` makes it.

    At the end of each call its owner adds one to `successes` and sets `in_a_row` to 0, or calls
    `OutlierDetector.failed`.
    """

    __slots__ = ("_bucket", "ejected_at", "failures", "in_a_row", "multiplier", "successes")

    def __init__(self) -> None:
        self.successes = 0
        """Calls that have ended well since the last sweep."""
        self.failures = 0
        self.in_a_row = 0
        """Failures since the last call that ended well."""
        self.ejected_at: float | None = None
        """None: it is not ejected."""
        self.multiplier = 0
        """How many base ejection times the present, or last, ejection lasts; one less for each sweep in use."""
        self._bucket = (0, 0)

    def swap(self) -> None:
        """Keep what was counted since the last time for the algorithms, and begin anew."""
        self._bucket = (self.successes, self.failures)
        self.successes = self.failures = 0

    @property
    def volume(self) -> int:
        """Calls between the last two sweeps."""
        successes, failures = self._bucket
        return successes + failures

    @property
    def success_rate(self) -> float:
        """The share of them that ended well, 0 to 1."""
        return self._bucket[0] / self.volume

    @property
    def failure_percentage(self) -> float:
        """The share of them that failed, 0 to 100."""
        return 100 * self._bucket[1] / self.volume


@attrs.frozen
class Ejection:
    """An endpoint is ejected now, for at least so many seconds; `algorithm` found it, and `why` says what."""

    stats: OutlierStats
    algorithm: str
    why: str
    for_s: float


@attrs.frozen
class Sweep:
    """What a sweep has changed."""

    ejected: list[Ejection]
    returned: list[OutlierStats]


class OutlierDetector:
    """Outlier detection of one cluster."""

    def __init__(self, settings: OutlierDetection, rng: random.Random) -> None:
        self.settings = settings
        self._rng = rng
        self._all: dict[OutlierStats, None] = {}
        """In the order in which they were added."""
        self._ejected = 0
        self.unenforced = 0
        """How often one was found that was not ejected: `max_ejection_percent`, or chance (`enforcement`)."""

    def add(self) -> OutlierStats:
        """There is one endpoint more."""
        stats = OutlierStats()
        self._all[stats] = None
        return stats

    def remove(self, stats: OutlierStats) -> None:
        """There is one less, ejected or not."""
        del self._all[stats]
        if stats.ejected_at is not None:
            self._ejected -= 1

    @property
    def ejected(self) -> int:
        """How many endpoints are ejected now."""
        return self._ejected

    def failed(self, stats: OutlierStats, now: float) -> Ejection | None:
        """A call has failed. An ejection if it was one too many in a row."""
        stats.failures += 1
        stats.in_a_row += 1
        limit = self.settings.consecutive_failures
        if limit is None or stats.in_a_row < limit:
            return None
        stats.in_a_row = 0  # found once, ejected or not
        why = f"{limit} calls in a row have failed"
        return next(self._eject(stats, CONSECUTIVE_FAILURES, why, 100, now), None)

    def sweep(self, now: float) -> Sweep:
        """Look at what was counted since the last sweep. To be called each `interval_s`."""
        for stats in self._all:
            stats.swap()
        ejected: list[Ejection] = []
        if self.settings.success_rate is not None:
            ejected += self._by_success_rate(self.settings.success_rate, now)
        if self.settings.failure_percentage is not None:
            ejected += self._by_failure_percentage(self.settings.failure_percentage, now)
        returned = []
        for stats in self._all:
            if stats.ejected_at is None:
                stats.multiplier = max(0, stats.multiplier - 1)
            elif now >= stats.ejected_at + self._duration_s(stats):
                stats.ejected_at = None
                stats.in_a_row = 0
                self._ejected -= 1
                returned.append(stats)
        return Sweep(ejected, returned)

    def _by_success_rate(self, settings: SuccessRate, now: float) -> Iterator[Ejection]:
        rated = self._with_volume(settings.request_volume)
        if len(rated) < settings.minimum_hosts:
            return
        rates = [stats.success_rate for stats in rated]
        mean = math.fsum(rates) / len(rates)
        deviation = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / len(rates))
        least = mean - deviation * settings.stdev_factor / 1000
        for stats, rate in zip(rated, rates, strict=True):
            if rate < least - _A_ROUNDING_ERROR:
                why = f"{100 * rate:.1f} % of its calls ended well; going by all endpoints, {100 * least:.1f} % should"
                yield from self._eject(stats, SUCCESS_RATE, why, settings.enforcement, now)

    def _by_failure_percentage(self, settings: FailurePercentage, now: float) -> Iterator[Ejection]:
        rated = self._with_volume(settings.request_volume)
        if len(rated) < settings.minimum_hosts:
            return
        for stats in rated:
            if stats.failure_percentage > settings.threshold:
                why = f"{stats.failure_percentage:.1f} % of its calls have failed"
                yield from self._eject(stats, FAILURE_PERCENTAGE, why, settings.enforcement, now)

    def _with_volume(self, least: int) -> list[OutlierStats]:
        return [stats for stats in self._all if stats.volume >= least]

    def _eject(
        self, stats: OutlierStats, algorithm: str, why: str, enforcement: int, now: float
    ) -> Iterator[Ejection]:
        """Eject an outlier, unless it is already (or gone), or enough are, or chance will not."""
        if stats.ejected_at is not None or stats not in self._all:
            return
        enough = 100 * self._ejected >= self.settings.max_ejection_percent * len(self._all)
        if enough or self._rng.randrange(100) >= enforcement:
            self.unenforced += 1
            return
        stats.ejected_at = now
        stats.multiplier += 1
        self._ejected += 1
        yield Ejection(stats, algorithm, why, self._duration_s(stats))

    def _duration_s(self, stats: OutlierStats) -> float:
        base = self.settings.base_ejection_time_s
        return min(base * stats.multiplier, max(base, self.settings.max_ejection_time_s))
