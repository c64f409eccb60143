"""The end of a downstream connection that lets its calls finish: no stream in flight is lost, no last byte unread.

    GOAWAY (id 2^31-1), PING ──► answered ──► GOAWAY (last id) ──► streams end ──► written ──► PING ──► answered

The first PING's answer shows that the peer knows of the first GOAWAY, so that whatever it has opened by then is
counted in the second (RFC 9113 §6.8). The last one's shows that it has read all answers: they may wait in the kernel
still, which drops them if the peer says anything once the socket is closed, and it will, if only WINDOW_UPDATE.

What it does not do: take the connection down. Its owner does that when `run` is through, or given up.
"""

from collections.abc import Callable, Collection
from typing import Protocol

import trio

from rawgrpc_proxy.http2.session import Session

_FIRST_PING = b"draining"
_LAST_PING = b"finished"
FIRST_PING_TIMEOUT_S = 5.0
_LAST_PING_TIMEOUT_S = 30.0
"""Where the grace is longer: a peer that answers no PING would keep its connection for ever."""


class Draining(Protocol):
    """What a drain needs of its connection."""

    session: Session
    ready: trio.Event

    @property
    def streams(self) -> Collection[int]:
        """The ids of those that are open."""

    @property
    def has_output(self) -> bool:
        """Whether anything waits for the socket."""

    def touch(self) -> None:
        """There is output: see that it is written."""


class Drain:
    """One drain of one connection, which tells it what happens meanwhile."""

    __slots__ = ("_answer_within_s", "_answered", "_connection", "_news", "_over", "scope")

    def __init__(
        self, connection: Draining, grace_s: float, *, answer_within_s: float = FIRST_PING_TIMEOUT_S
    ) -> None:
        self._answer_within_s = answer_within_s
        """How long the peer has to show that it knows of the first GOAWAY."""
        self.scope = trio.CancelScope(deadline=trio.current_time() + grace_s)
        """What `run` takes place in. Its deadline may be made earlier."""
        self._connection = connection
        self._answered: set[bytes] = set()
        """The PINGs that the peer has answered."""
        self._over = False
        self._news = trio.Event()

    def shorten(self, grace_s: float) -> None:
        """Take no longer than so much from now."""
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + grace_s)

    def ping_answered(self, opaque: bytes) -> None:
        """The peer has answered this PING."""
        self._answered.add(opaque)
        self.look()

    def look(self) -> None:
        """A stream has closed, or something was written."""
        self._news.set()

    def connection_ended(self) -> None:
        """Nothing is waited for any more: a peer that closes when it sees GOAWAY owes no PING."""
        self._over = True
        self.look()

    async def run(self) -> None:
        """Wait until the calls are done and told, the grace is over or the connection has ended."""
        connection = self._connection
        with self.scope:
            had_streams = bool(connection.streams)
            await self._announce_the_end()
            had_streams = had_streams or bool(connection.streams)
            await self._until(lambda: not connection.streams)
            await self._until(lambda: not connection.has_output)
            if had_streams:
                with trio.move_on_after(_LAST_PING_TIMEOUT_S):
                    await self._ping(_LAST_PING)

    async def _announce_the_end(self) -> None:
        connection, session = self._connection, self._connection.session
        with trio.move_on_after(self._answer_within_s):
            # The first frame of a server is SETTINGS, and they are sent when the peer's have come.
            await connection.ready.wait()
            session.go_away(final=False)
            await self._ping(_FIRST_PING)
        if session.peer_settings_seen:
            session.go_away(final=True)
            connection.touch()

    async def _ping(self, opaque: bytes) -> None:
        self._connection.session.ping(opaque)
        self._connection.touch()
        await self._until(lambda: opaque in self._answered)

    async def _until(self, done: Callable[[], bool]) -> None:
        while not (self._over or done()):
            self._news = trio.Event()
            await self._news.wait()
