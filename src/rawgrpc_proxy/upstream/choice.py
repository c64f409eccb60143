"""What the pool decides: pure functions of one address's record. No I/O, no clock, no trio.

The rules are those of the reference's pool, in its order:

    pick     newest first: connecting → skip; shut down, failing or past its ttl → drop it if it has no streams, skip;
             at its limit → move it to the busy ones, skip; otherwise one stream more, and that is the answer
    release  one that was dialled beyond `size` is adopted if there is room by now, else closed; one stream less; one
             that was at its limit is the newest of those with room; at zero streams it is closed if there was an
             error, if enough idle ones are kept, or if it is past its ttl

and six changes: a connection that is being dialled takes callers up to its limit, who wait for it, when nothing else
is there; the limit is min(ms, what the peer allows) and follows the peer; an error does not drop a connection that
still carries streams; one that has failed or drains is closed with its last stream, not on a later call; one that takes
no more streams but still carries some (past its ttl, failed, draining) counts for `size` no more, so that a few long
calls never fill the pool, and is `leaving` then, from when a pick meets it or its owner retires it; one in doubt, whose
peer owes the answer to a PING, counts as one at its limit as long as calls may wait or dial.

The invariant: a connection is in `with_room`, in `busy` (and pooled), in `leaving`, or beyond `size`; `streams` is the
number of leases on it.
"""

import enum
from typing import Generic, Protocol, TypeVar

import attrs


class Phase(enum.Enum):
    """Where a pooled connection is in its life; the first that fits."""

    CONNECTING = "connecting"
    CLOSED = "shut down"
    DRAINING = "draining"
    READY = "ready"


class Objection(enum.Enum):
    """Why a call does not get a connection, or not at once; the first that fits."""

    CONNECTING = "connecting"
    CLOSED = "shut down"
    DRAINING = "draining"
    EXPIRED = "past its ttl"
    IN_DOUBT = "owes the answer to a PING"
    FULL = "full"


_READY, _FULL = Phase.READY, Objection.FULL  # looked up once, not for every call


class Leasable(Protocol):
    """What the record must know of a connection."""

    streams: int
    created_at: float
    pooled: bool
    peer_limit: int
    """The peer's SETTINGS_MAX_CONCURRENT_STREAMS; while it is being dialled, what is hoped for."""
    in_doubt: bool
    """Whether its peer owes the answer to a PING."""

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""


C = TypeVar("C", bound=Leasable)


@attrs.frozen
class PoolLimits:
    """`size` connections per address, kept for `ttl_s` seconds, `idle` of them without streams, `ms` streams each."""

    size: int
    ttl_s: float
    idle: int
    ms: int


@attrs.define
class Pick(Generic[C]):
    """The answer of `pick`: a connection with one stream more (None: dial), and what to close."""

    connection: C | None
    close: list[C]


class PoolRecord(Generic[C]):
    """The connections to one address."""

    __slots__ = ("_limits", "busy", "leaving", "with_room")

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self.with_room: list[C] = []
        """Oldest first. One that has come to its limit stays here until a pick meets it."""
        self.busy: list[C] = []
        self.leaving: list[C] = []
        """They carry streams and take no more; closed with the last one. In the order in which they were retired."""

    @property
    def count(self) -> int:
        """Pooled connections, which take streams or are busy; those being dialled included, those leaving not."""
        return len(self.with_room) + len(self.busy)

    @property
    def idle(self) -> int:
        """Pooled connections without streams."""
        return sum(not connection.streams for place in (self.with_room, self.busy) for connection in place)

    @property
    def unused(self) -> C | None:
        """The oldest connection without streams, if there is one that is established."""
        return next((each for each in self.with_room if not each.streams and each.phase is _READY), None)

    @property
    def may_grow(self) -> bool:
        """Whether there is room for one connection more."""
        return self.count < self._limits.size

    def limit_of(self, connection: C) -> int:
        """How many streams the connection may carry now."""
        return 0 if connection.in_doubt else min(self._limits.ms, connection.peer_limit)

    def expires_at(self, connection: C) -> float:
        """The last moment at which it takes new streams."""
        return connection.created_at + self._limits.ttl_s

    def objection(self, connection: C, now: float) -> Objection | None:
        """Why the next call would not get this connection at once; None if it would."""
        phase = connection.phase
        if phase is not _READY:
            return Objection[phase.name]
        if now > connection.created_at + self._limits.ttl_s:
            return Objection.EXPIRED
        if connection.in_doubt:
            return Objection.IN_DOUBT
        streams = connection.streams
        if streams >= self._limits.ms or streams >= connection.peer_limit:
            return _FULL
        return None

    def pick_at_once(self, now: float) -> C | None:
        """What `pick` mostly comes to, for less: the newest connection that is not full, if it takes one more stream.

        None if something else is in the way; `pick` knows what to do then.
        """
        with_room, limits = self.with_room, self._limits
        while with_room:
            newest = with_room[-1]
            streams = newest.streams
            if streams < limits.ms and streams < newest.peer_limit:
                # As `objection`, without a call of it.
                if newest.phase is _READY and now <= newest.created_at + limits.ttl_s and not newest.in_doubt:
                    newest.streams = streams + 1
                    return newest
                break
            if self.objection(newest, now) is not _FULL:
                break
            self.busy.append(with_room.pop())
        return None

    def pick(self, now: float, other_than: C | None = None) -> Pick[C]:
        """Find a connection for one more stream, and tidy up on the way."""
        answer: Pick[C] = Pick(None, [])
        connecting: C | None = None
        for connection in reversed(self.with_room):  # from its end, so that what is met may leave the list
            if connection is other_than:
                continue
            objection = self.objection(connection, now)
            if objection is None:
                connection.streams += 1
                answer.connection = connection
                return answer
            if objection is Objection.CONNECTING:
                if connecting is None and connection.streams < self.limit_of(connection):
                    connecting = connection
            elif objection is Objection.FULL or objection is Objection.IN_DOUBT:
                self.with_room.remove(connection)
                self.busy.append(connection)
            elif self.retire(connection):
                answer.close.append(connection)
        if connecting is not None:
            connecting.streams += 1
            answer.connection = connecting
        return answer

    def pick_in_doubt(self) -> C | None:
        """After a `pick` that has found none: one with room but for its doubt, if the call would be refused else."""
        for connection in reversed(self.busy):
            limit = min(self._limits.ms, connection.peer_limit)
            if connection.in_doubt and connection.phase is _READY and connection.streams < limit:
                connection.streams += 1
                return connection
        return None

    def pick_beyond_ms(self, now: float) -> C | None:
        """One that is full by our own limit alone, with one stream more: for what must not wait behind calls."""
        for connection in reversed(self.busy):
            fits = (
                connection.phase is _READY and not connection.in_doubt and now <= self.expires_at(connection)
            )
            if fits and connection.streams < connection.peer_limit:
                connection.streams += 1
                return connection
        return None

    def add(self, connection: C) -> None:
        """Keep a connection that is being dialled for its first caller, or adopt one."""
        connection.pooled = True
        self.with_room.append(connection)

    def release_at_once(self, connection: C) -> bool:
        """What `release` mostly comes to, for less: one stream less on a connection that has others, and had room.

        False, and nothing done, if there is more to it.
        """
        streams = connection.streams
        if (
            streams < 2  # noqa: PLR2004
            or not connection.pooled
            or connection.in_doubt
            or streams >= self._limits.ms
            or streams >= connection.peer_limit
        ):
            return False
        connection.streams = streams - 1
        return True

    def release(self, connection: C, now: float, *, failed: bool) -> bool:
        """Take back one stream. True: the connection is not kept and has to be closed.

        Raises `ValueError` if there is none to take back.
        """
        if connection.streams < 1:
            raise ValueError(f"{connection!r} was given back more often than it was taken")
        if not connection.pooled and self.may_grow and self._takes_streams(connection, now):
            self.add(connection)
        was_full = connection.streams >= self.limit_of(connection)
        connection.streams -= 1
        if was_full and connection.pooled:
            self._has_room_again(connection)
        if connection.streams:
            return False
        if (
            not connection.pooled
            or failed
            or self.idle > self._limits.idle  # it is one of them by now
            or now > self.expires_at(connection)
            or connection.phase is Phase.DRAINING
            or connection.phase is Phase.CLOSED
        ):
            self.remove(connection)
            return True
        return False

    def refresh(self, connection: C) -> None:
        """Its limit has changed: if it is busy no more, it is the newest of those with room."""
        if connection in self.busy:
            self._has_room_again(connection)

    def retire(self, connection: C) -> bool:
        """It takes no more streams. True: it has none, is forgotten, and has to be closed."""
        if not connection.streams:
            self.remove(connection)
            return True
        if connection.pooled:
            self.remove(connection)
            self.leaving.append(connection)
        return False

    def remove(self, connection: C) -> None:
        """Forget it."""
        connection.pooled = False
        for place in (self.with_room, self.busy, self.leaving):
            if connection in place:
                place.remove(connection)

    def _takes_streams(self, connection: C, now: float) -> bool:
        return connection.phase is _READY and now <= self.expires_at(connection)

    def _has_room_again(self, connection: C) -> None:
        if connection.streams < self.limit_of(connection):
            self.remove(connection)
            self.add(connection)
