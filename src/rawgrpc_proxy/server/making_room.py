"""Who goes when another connection comes and there are as many as there may be: the last who came, of those in no use.

    full, one more comes ─► the youngest without a call gets GOAWAY, and is closed ─► the new one has its place
                         └► none is without a call, or enough have gone just now ───► the new one is closed, as it came

Last in, first out, by when they came. Were it the one that has been idle for longest, as in nginx, a flood of new
connections would push out, one by one, all callers who happen to have no call at the moment; so it pushes out itself.
Were it the one whose last call has ended last, callers who make one call after the other would go and those who do
nothing would stay. Those who have not even come through their handshake after a second go first of all. Nobody goes in
his first second, or one who connects in a crowd would go before he has sent his first call.

A flood does not make room for ever: few go at a time, and in a second, so it costs little more than to be refused. A
call that crosses GOAWAY is let finish; therefore there are, for a while, up to `AT_ONCE` connections too many.

What it does not do: close a connection. The invariant: one with a call is never chosen.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from rawgrpc_proxy.net.connection import ConnectionState

AT_ONCE = 16
"""Connections that leave at the same time. They are files beyond the plan, of its reserve (`descriptors.py`)."""
PAUSE_S = 0.05
"""So far apart are those that go, on the average, beyond `AT_ONCE` of them together."""
FIRST_MOMENT_S = 1.0
_IN_VAIN_PAUSE_S = 0.2
"""For how long nobody is looked for where nobody was found: it takes half a millisecond, with 10,000 connections."""


class Occupant(Protocol):
    """A connection, as it is seen here."""

    opened_at: float
    state: ConnectionState

    @property
    def streams(self) -> Mapping[int, object]:
        """Those that are open."""


_NO_STREAMS: Mapping[int, object] = {}
SomeOccupant = TypeVar("SomeOccupant", bound=Occupant)
Handshake = TypeVar("Handshake")


class MakingRoom:
    """Chooses, and knows who is about to leave."""

    __slots__ = ("_leaving", "_next_at")

    def __init__(self) -> None:
        self._leaving: dict[object, Mapping[int, object]] = {}
        """Each with its open streams, for as long as it is there."""
        self._next_at = 0.0
        """When the next one may go."""

    @property
    def leaving(self) -> int:
        """Connections whose places are as good as free. One with a call, that has crossed its GOAWAY, is none."""
        return sum(not streams for streams in self._leaving.values())

    def gone(self, leaver: object) -> None:
        """The connection, or the handshake, has ended."""
        self._leaving.pop(leaver, None)

    def choose(
        self, connections: dict[SomeOccupant, Any], handshakes: dict[Handshake, float], now: float
    ) -> SomeOccupant | Handshake | None:
        """Who shall go, of connections and of handshakes (with their beginnings), in the order in which they came.

        None: nobody. What is answered leaves from now on, and its owner has to end it, and to tell when it is `gone`.
        """
        if now < self._next_at or len(self._leaving) >= AT_ONCE:
            return None
        before = now - FIRST_MOMENT_S
        for handshake, began in handshakes.items():
            if began > before:
                break  # and so have all behind it
            if handshake not in self._leaving:
                self._goes(handshake, _NO_STREAMS, now)
                return handshake
        for connection in reversed(connections):
            if connection.streams or connection.opened_at > before:
                continue
            if connection.state is ConnectionState.OPEN:
                self._goes(connection, connection.streams, now)
                return connection
        self._next_at = now + _IN_VAIN_PAUSE_S
        return None

    def _goes(self, leaver: object, streams: Mapping[int, object], now: float) -> None:
        self._leaving[leaver] = streams
        self._next_at = max(self._next_at, now - AT_ONCE * PAUSE_S) + PAUSE_S
