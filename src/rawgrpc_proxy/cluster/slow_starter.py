"""`SlowStarter`: gives endpoints that have joined, or come back, their weight little by little.

What it does not do: the curve (`slow_start.py`), or share out calls (`balance.py`). The invariant: while an endpoint
starts, the cluster is refreshed at each tick; otherwise nothing runs.
"""

from collections.abc import Callable, Iterable

import trio

from rawgrpc_proxy.cluster.endpoint import Endpoint
from rawgrpc_proxy.cluster.slow_start import SlowStart


class SlowStarter:
    """Slow start for the endpoints of one cluster. Those that it has at first begin with all of their weight."""

    def __init__(self, settings: SlowStart, refresh: Callable[[], None]) -> None:
        self._settings = settings
        self._refresh = refresh
        self._since: dict[Endpoint, float] = {}
        """When each of those that are fit has become so; None of the others."""
        self._warm: set[Endpoint] = set()
        """Those that were there at first, until they are fit for the first time."""
        self._has_begun = False
        self._nursery: trio.Nursery | None = None
        self._ticks = False

    def open(self, nursery: trio.Nursery) -> None:
        """What has to run does so there."""
        self._nursery = nursery
        self._has_begun = self._ticks = False

    def join(self, endpoint: Endpoint) -> None:
        """There is one endpoint more."""
        if not self._has_begun:
            self._warm.add(endpoint)

    def leave(self, endpoint: Endpoint) -> None:
        """There is one less."""
        self._since.pop(endpoint, None)
        self._warm.discard(endpoint)

    def weigh(self, fit: Iterable[Endpoint]) -> None:
        """Give each endpoint its weight of this moment. `fit` are those that calls would go to."""
        now = trio.current_time()
        since, self._since = self._since, {}
        starts = False
        for endpoint in fit:
            began = since.get(endpoint)
            if began is None:
                began = now - self._settings.window_s if endpoint in self._warm else now
                self._warm.discard(endpoint)
            self._since[endpoint] = began
            part = self._settings.part(now - began)
            endpoint.effective_weight = endpoint.found.weight * part
            starts = starts or part < 1
        self._has_begun = self._has_begun or bool(self._since or self._warm)
        if starts and not self._ticks and self._nursery is not None:
            self._ticks = True
            self._nursery.start_soon(self._tick)

    async def _tick(self) -> None:
        await trio.sleep(self._settings.tick_s)
        self._ticks = False
        self._refresh()
