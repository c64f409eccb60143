"""How long a caller's connection may last, and how long nobody may use it: gRFC A9, for those who set it.

    opened ──► as old as it may be, give or take a tenth ──┐
    its last call has ended ──► unused for too long ───────┴─► GOAWAY in two steps, calls finish in the grace, closed

Long connections keep what they were given when they came: a load balancer in front spreads connections, not calls, and
a server that was added gets none of those that exist. Unused ones keep files.

Costs nothing where nothing is set; else one timer for each connection, and with `max_connection_idle_s` a look at each
stream that closes. What it does not do: end the connection (`drain.py` does, its owner starts that).
"""

import math
import random
from collections.abc import Callable
from typing import Self

import trio

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ProxyStopping
from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.net.keepalive import Timer

_JITTER = 0.1
"""gRPC's. Connections that came together, as after a restart, do not all come again together."""

At = Callable[[float, Callable[[], None]], Timer]
"""Calls back at that moment of trio's clock, or soon after."""


class Lifetime:
    """Watches one connection from when it is made until `stop`; calls `retire` with the reason when it shall end.

    `at` and `retire` must neither wait nor raise. `chance` answers a number from 0 to 1.
    """

    __slots__ = ("_age_due", "_at", "_connection", "_idle_s", "_idle_since", "_opened", "_retire", "_timer")

    def __init__(
        self,
        connection: Connection,
        at: At,
        retire: Callable[[ProxyStopping], None],
        *,
        settings: Http2Settings,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connection = connection
        self._at = at
        self._retire = retire
        age_s = settings.max_connection_age_s * (1 + _JITTER * (2 * chance() - 1))
        self._age_due = connection.opened_at + age_s
        self._idle_s = settings.max_connection_idle_s
        self._idle_since = connection.opened_at
        """When its last call has ended, as far as `changed` was called."""
        self._opened = 0
        """How many streams had been opened by then."""
        self._timer = at(self._next(connection.opened_at), self._look)

    @classmethod
    def of(
        cls,
        connection: Connection,
        at: At,
        retire: Callable[[ProxyStopping], None],
        settings: Http2Settings,
    ) -> Self | None:
        """That of a connection with these settings; None if it may last, and nobody use it, for ever."""
        if min(settings.max_connection_age_s, settings.max_connection_idle_s) == math.inf:
            return None
        return cls(connection, at, retire, settings=settings)

    def changed(self) -> None:
        """A stream may have closed."""
        opened = self._connection.session.streams_opened
        if opened != self._opened and not self._connection.streams:
            self._opened = opened
            self._idle_since = trio.current_time()

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        now = trio.current_time()
        if self._connection.state is not ConnectionState.OPEN:
            return
        if now >= self._age_due:
            reason = "the connection is as old as it may be (max_connection_age_s)"
            self._retire(ProxyStopping(reason, why="max_connection_age"))
        elif now >= self._idle_due(now):
            reason = "nobody has used the connection for as long as it may be idle (max_connection_idle_s)"
            self._retire(ProxyStopping(reason, why="max_connection_idle"))
        else:
            self._timer = self._at(self._next(now), self._look)

    def _idle_due(self, now: float) -> float:
        return (now if self._connection.streams else self._idle_since) + self._idle_s

    def _next(self, now: float) -> float:
        """When to look again. With calls, it cannot have been unused for long enough before."""
        return min(self._age_due, self._idle_due(now))
