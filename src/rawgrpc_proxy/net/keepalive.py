"""Keepalive: a peer that has calls and is silent is asked for a sign of life, and given up if there is none.

    silent for `interval_s` ──► PING ──► silent for `timeout_s` more ──► the connection counts as lost

(From the PING on it is in doubt, and a pool gives new calls to others.)

Without it a link that is dead without a word (a machine without power, a firewall that has forgotten) takes new calls
for as long as TCP believes in it, and a caller that has vanished is never freed. Any byte is a sign of life; what costs
nothing while there is traffic is one timer for each connection, which looks once in an interval.

gRPC's servers count PINGs, too: more than two that come within five minutes of each other, with nothing of a call sent
in between, and they end the connection with "too_many_pings". So of the PINGs to an upstream that answers them and says
nothing else, two come early, a third only if a call was begun since; all others keep five minutes' distance. Callers do
not count. What it does not do: judge the PINGs of others.
"""

import math
from collections.abc import Callable
from typing import Protocol

import trio

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ConnectionFailed, ConnectionGone
from rawgrpc_proxy.net.connection import Connection, ConnectionState

_EARLY_PINGS = 2
_WITHOUT_DATA_S = 300.0
"""gRPC's shortest time between PINGs without data that a server tolerates unless it is told otherwise."""


def pinged_too_often(error: ConnectionFailed) -> bool:
    """Whether the peer has ended the connection since it had more PINGs than it likes (gRPC's own words for that)."""
    return error.error_code == ErrorCode.ENHANCE_YOUR_CALM and "too_many_pings" in error.message


class Timer(Protocol):
    """A callback to come."""

    def cancel(self) -> None:
        """Never call back."""


class Keepalive:
    """Watches one connection from when it is made until `stop`.

    `at(when, callback)` calls back at that moment of trio's clock, or soon after, and never waits or raises.
    """

    __slots__ = (
        "_asked_at",
        "_at",
        "_connection",
        "_early",
        "_heard_at",
        "_interval_s",
        "_opened",
        "_timeout_s",
        "_timer",
    )

    def __init__(
        self,
        connection: Connection,
        at: Callable[[float, Callable[[], None]], Timer],
        *,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._at = at
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._asked_at: float | None = None
        """When the PING went out whose answer is waited for."""
        self._heard_at = -math.inf
        """When the answer to the last one came, if nothing has come since."""
        self._early = 0
        """PINGs since the peer has last said something else."""
        self._opened = 0
        """How many streams had been opened at the last PING."""
        self._timer: Timer | None = None
        if interval_s < math.inf:
            self._timer = at(connection.heard_at + interval_s, self._look)

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        connection, now = self._connection, trio.current_time()
        if connection.state is ConnectionState.CLOSED:
            return
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is not None:
            if connection.heard_at >= asked_at:
                connection.trust()
            elif not connection.reading_pauses:
                connection.close(
                    ConnectionGone(
                        f"no sign of life for {now - connection.heard_at:.0f} s, nor an answer to a PING within "
                        f"{self._timeout_s:g} s",
                        why="keepalive_timeout",
                    )
                )
                return
            self._heard_at = connection.heard_at
        elif connection.streams and now >= self._due(now):
            self._ask(now)
        self._timer = self._at(self._next(now), self._look)

    def _due(self, now: float) -> float:
        """When the next PING may go out."""
        connection = self._connection
        heard_at = connection.heard_at
        if heard_at != self._heard_at:
            self._early = 0  # it has said something since it answered the last PING
        if (
            not connection.session.client_side
            or self._early < _EARLY_PINGS
            or (self._early == _EARLY_PINGS and connection.session.streams_opened > self._opened)
        ):
            return heard_at + self._interval_s
        return heard_at + max(self._interval_s, _WITHOUT_DATA_S)

    def _ask(self, now: float) -> None:
        connection = self._connection
        self._early += 1
        self._asked_at = now
        self._opened = connection.session.streams_opened
        connection.ask()

    def _next(self, now: float) -> float:
        """When to look again."""
        if self._asked_at is not None:
            return now + self._timeout_s
        due = self._connection.heard_at + self._interval_s
        # One that waits for longer is looked at all the same: a call may begin meanwhile.
        return due if due > now else now + self._interval_s / 4
