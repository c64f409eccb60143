"""What the pool decides: pure functions of one address's record. No I/O, no clock, no trio.

The rules are those of the reference's pool, in its order:

    pick     newest first: connecting → skip; shut down, failing or past its ttl → drop it if it has no streams, skip;
             at its limit → busy, skip; otherwise one stream more, and that is the answer
    release  one stream less; one that was at its limit has room again; at zero streams it goes if there was an error,
             if enough idle ones are kept, or if it is past its ttl

and three changes: a connection that is being dialled takes callers up to `ms`, who wait for it; the limit is
min(ms, what the peer allows) and follows the peer; an error does not drop a connection that still carries streams.

The invariant: a connection is in `with_room`, in `busy`, or not pooled; `streams` is the number of leases on it.
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


class Leasable(Protocol):
    """What the record must know of a connection."""

    streams: int
    created_at: float
    pooled: bool

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""

    @property
    def peer_limit(self) -> int:
        """The peer's SETTINGS_MAX_CONCURRENT_STREAMS."""


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
    """The answer of `pick`: a connection with one stream more (None: dial), those to close, and why others were not
    taken."""

    connection: C | None
    close: list[C]
    passed_over: list[tuple[C, str]]


class PoolRecord(Generic[C]):
    """The connections to one address."""

    __slots__ = ("_limits", "busy", "with_room")

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self.with_room: list[C] = []
        """Oldest first."""
        self.busy: list[C] = []

    @property
    def count(self) -> int:
        """Pooled connections, those being dialled included."""
        return len(self.with_room) + len(self.busy)

    @property
    def idle(self) -> int:
        """Pooled connections without streams."""
        return sum(connection.streams == 0 for connection in self.with_room)

    @property
    def may_grow(self) -> bool:
        """Is there room for one connection more?"""
        return self.count < self._limits.size

    def limit_of(self, connection: C) -> int:
        """How many streams the connection may carry."""
        return min(self._limits.ms, connection.peer_limit)

    def expired(self, connection: C, now: float) -> bool:
        """Is it strictly older than the ttl?"""
        return now - connection.created_at > self._limits.ttl_s

    def pick(self, now: float) -> Pick[C]:
        """Find a connection for one more stream, and tidy up on the way."""
        answer: Pick[C] = Pick(None, [], [])
        connecting: C | None = None
        for connection in reversed(self.with_room):
            phase = connection.phase
            if phase is Phase.CONNECTING:
                if connecting is None and connection.streams < self._limits.ms:
                    connecting = connection
                reason: str = phase.value
            elif phase is not Phase.READY:
                reason = phase.value
                if connection.streams == 0:
                    self._drop(connection, answer)
            elif self.expired(connection, now):
                reason = "past its ttl"
                if connection.streams == 0:
                    self._drop(connection, answer)
            elif connection.streams >= self.limit_of(connection):
                reason = f"busy with {connection.streams} streams"
            else:
                connection.streams += 1
                answer.connection = connection
                break
            answer.passed_over.append((connection, reason))
        for connection, _ in answer.passed_over:
            if connection in self.with_room and self._is_busy(connection):
                self.with_room.remove(connection)
                self.busy.append(connection)
        if answer.connection is None and connecting is not None:
            connecting.streams += 1
            answer.connection = connecting
        return answer

    def add(self, connection: C) -> None:
        """Keep a connection that is being dialled for its first caller, or adopt one."""
        connection.pooled = True
        self.with_room.append(connection)

    def release(self, connection: C, now: float, *, failed: bool) -> bool:
        """Take back one stream. True: the connection is not kept and has to be closed."""
        connection.streams -= 1
        if not connection.pooled:
            # It was dialled beyond `size`. It is adopted if there is room by now.
            if not failed and self.may_grow and connection.phase is Phase.READY:
                self.add(connection)
            else:
                return connection.streams <= 0
        self.refresh(connection)
        if connection.streams > 0:
            return False
        idle_without_it = self.idle - 1
        if (
            failed
            or idle_without_it >= self._limits.idle
            or self.expired(connection, now)
            or connection.phase in {Phase.DRAINING, Phase.CLOSED}
        ):
            self.remove(connection)
            return True
        return False

    def refresh(self, connection: C) -> None:
        """Its limit or its streams have changed: move it back among those with room if it has some."""
        if connection in self.busy and not self._is_busy(connection):
            self.busy.remove(connection)
            self.with_room.append(connection)

    def remove(self, connection: C) -> None:
        """Forget it."""
        connection.pooled = False
        for place in (self.with_room, self.busy):
            if connection in place:
                place.remove(connection)

    def _is_busy(self, connection: C) -> bool:
        return connection.phase is Phase.READY and connection.streams >= self.limit_of(connection)

    def _drop(self, connection: C, answer: Pick[C]) -> None:
        self.remove(connection)
        answer.close.append(connection)
