"""Ejects endpoints of a cluster: counts how their calls end, sweeps in time, and takes outliers out and back in.

What it does not do: find outliers (`outlier.py`), or keep calls away from whoever is ejected (`Cluster`). The
invariant: `endpoint.ejected` says what the detector thinks.
"""

import random
import time
from collections.abc import Callable
from functools import partial

import trio

from rawgrpc_proxy.cluster.endpoint import Attempt, Endpoint
from rawgrpc_proxy.cluster.outlier import Ejection, OutlierDetector, OutlierStats
from rawgrpc_proxy.cluster.outlier_settings import OutlierDetection
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.tell import tell

_OK, _DEADLINE_EXCEEDED = Status.OK, Status.DEADLINE_EXCEEDED


class Ejector:
    """Outlier detection for the endpoints of one cluster."""

    def __init__(
        self,
        settings: OutlierDetection,
        *,
        name: str,
        refresh: Callable[[], None],
        observer: PoolObserver | None,
        rng: random.Random,
    ) -> None:
        """`name` is the cluster's, for the observer; `refresh` may be called in the middle of the end of a call.

        Raises `ConfigError` for settings that do not fit together.
        """
        rate = settings.success_rate
        for field, problem in (*settings.problems(), *(() if rate is None else rate.problems())):
            raise ConfigError(f"{field} {problem}")
        self._settings = settings
        self._failures = frozenset(Status[failure] for failure in settings.failures)
        self._detector = OutlierDetector(settings, rng)
        self._endpoints: dict[OutlierStats, Endpoint] = {}
        self._name = name
        self._refresh = refresh
        self._observer = observer

    def open(self, nursery: trio.Nursery) -> None:
        """Begin to sweep."""
        nursery.start_soon(self._run)

    def join(self, endpoint: Endpoint) -> None:
        """Look after this one, too."""
        stats = self._detector.add()
        self._endpoints[stats] = endpoint
        endpoint.hear_ended = partial(self._ended, stats)

    def leave(self, endpoint: Endpoint) -> None:
        """It is of the cluster no more; what its last calls say is nobody's business."""
        endpoint.hear_ended = None
        stats = next(stats for stats, each in self._endpoints.items() if each is endpoint)
        del self._endpoints[stats]
        self._detector.remove(stats)

    async def _run(self) -> None:
        now = trio.current_time()
        while True:
            # The times of sweeps are those that they should have: three intervals are then never less than 30 s.
            now = max(now + self._settings.interval_s, trio.current_time())
            await trio.sleep_until(now)
            sweep = self._detector.sweep(now)
            for ejection in sweep.ejected:
                self._eject(ejection)
            for stats in sweep.returned:
                self._take_back(self._endpoints[stats])

    def _ended(self, stats: OutlierStats, status: Status, call: Attempt) -> None:
        """An attempt at a call has ended so. Runs for each."""
        if status is _OK or status not in self._failures:
            stats.successes += 1
            stats.in_a_row = 0
        elif status is not _DEADLINE_EXCEEDED or self._had_time(call):
            ejection = self._detector.failed(stats, trio.current_time())
            if ejection is not None:
                self._eject(ejection)

    def _had_time(self, call: Attempt) -> bool:
        return time.perf_counter() - call.started >= self._settings.least_deadline_s

    def _eject(self, ejection: Ejection) -> None:
        endpoint = self._endpoints[ejection.stats]
        endpoint.ejected = True
        endpoint.why_ejected = f"{ejection.why} (for {ejection.for_s:g} s, until the next sweep)"
        self._refresh()
        tell(
            self._observer,
            "endpoint_ejected",
            self._name,
            endpoint.address,
            ejection.algorithm,
            ejection.why,
            ejection.for_s,
        )

    def _take_back(self, endpoint: Endpoint) -> None:
        endpoint.ejected = False
        endpoint.why_ejected = None
        self._refresh()
        tell(self._observer, "endpoint_returned", self._name, endpoint.address)
