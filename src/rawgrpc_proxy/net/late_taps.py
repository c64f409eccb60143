"""Taps that come when connections are open already, and go again: `current_late_taps()` has those of a trio run.

    taps = current_late_taps()
    for _ in taps.attach(tap):                  # asked of each connection that is open, then of each that comes
        await trio.lowlevel.checkpoint()
    taps.detach(tap)

What a connection reads is told as it is read, what it writes as it is taken from the session: whole frames. So who
comes late begins between two frames; what is in the session's output then was said before, and is not told. What it
does not do: find out what these frames mean (`lab/late_views.py`). While nobody is attached a connection pays a test
for each read and each write. The invariant: whatever a tap does, the connection goes on; one that raises is told
nothing more.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import trio

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.position import Position
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.tapped import Link, LinkTap, next_link_number
from rawgrpc_proxy.net.transport import Transport
from rawgrpc_proxy.observe.tell import report


class Onlooker(Protocol):
    """Sees all that one connection reads and writes. Must neither wait nor raise."""

    def received(self, data: Data) -> None:
        """The peer has said so much more."""

    def sent(self, chunks: Sequence[Data]) -> None:
        """These are about to be written, together whole frames."""


class Watchable(Protocol):
    """A connection, as those who look on see it."""

    peer: str
    side: Side
    session: Session
    streams: dict[int, Stream]

    @property
    def transport(self) -> Transport:
        """Its link."""

    def look_on(self, onlooker: Onlooker | None) -> None:
        """From now on this one sees it; None: nobody."""


class LateTap(Protocol):
    """Asked of each connection of a trio run, in whichever state it is."""

    def join(self, link: Link, connection: Watchable, position: Position | None) -> LinkTap | None:
        """Who is to see this connection; None: nobody. What it raises is reported, and nobody sees it.

        `position` is where it stands; None: it is new, and has said nothing.
        """


@runtime_checkable
class JoinsInSteps(Protocol):
    """A link tap that has more to do about a connection that was open than may be done at once."""

    def join_more(self) -> bool:
        """Do some of it: whether there is more. What it raises is reported, and it sees nothing more."""


@attrs.define(eq=False)
class _Seeing:
    by: LateTap
    link_tap: LinkTap
    skip: int
    """Chunks of the output that were there before."""


class _Onlookers:
    """All who see one connection."""

    def __init__(self) -> None:
        self.seeing: list[_Seeing] = []

    def received(self, data: Data) -> None:
        for each in list(self.seeing):
            self._tell(each, "received", data)

    def sent(self, chunks: Sequence[Data]) -> None:
        for each in list(self.seeing):
            skip, each.skip = each.skip, 0
            for chunk in itertools.islice(chunks, skip, None):
                self._tell(each, "sent", chunk)

    def closed(self) -> None:
        for each in list(self.seeing):
            self._tell(each, "closed")

    def join_more(self, by: LateTap) -> bool:
        """Have this one go on: whether there is more to do."""
        more = False
        for each in list(self.seeing):
            if each.by is by and isinstance(each.link_tap, JoinsInSteps):
                more = bool(self._tell(each, "join_more"))
        return more

    def _tell(self, each: _Seeing, what: str, *data: Data) -> object:
        if each not in self.seeing:
            return None  # it was let go in the middle of this
        try:
            return getattr(each.link_tap, what)(*data)
        except Exception as error:  # noqa: BLE001  # any code of a user's
            if each in self.seeing:
                self.seeing.remove(each)
            report(error, each.link_tap)
            return None


class LateTaps:
    """Those of one trio run, and the connections that there are."""

    def __init__(self) -> None:
        self._taps: list[LateTap] = []
        self._connections: dict[Watchable, _Onlookers | None] = {}
        self._links: dict[Watchable, Link] = {}
        """Of connections that somebody has asked about."""

    # ------------------------------------------------------ for connections

    def open(self, connection: Watchable) -> None:
        """One begins to run."""
        self._connections[connection] = None
        for tap in list(self._taps):
            self._join(tap, connection, is_new=True)

    def close(self, connection: Watchable) -> None:
        """It is over."""
        onlookers = self._connections.pop(connection)
        if onlookers is not None:
            onlookers.closed()
            connection.look_on(None)
        self._links.pop(connection, None)

    # ------------------------------------------------------------- for taps

    def attach(self, tap: LateTap) -> Iterator[None]:
        """Have this tap asked of all connections; those that are open in steps, between which others may run."""
        self._taps.append(tap)
        # Callers' first: what upstreams' streams are part of is known then.
        for connection in sorted(self._connections, key=lambda each: each.side is Side.UPSTREAM):
            if tap not in self._taps:
                return
            if connection in self._connections and not self._sees(tap, connection):
                self._join(tap, connection, is_new=False)
                yield
                while (onlookers := self._connections.get(connection)) and onlookers.join_more(tap):
                    yield

    def detach(self, tap: LateTap) -> None:
        """It sees nothing more, and is not told that any connection is over. Nothing happens if it is not attached."""
        if tap not in self._taps:
            return
        self._taps.remove(tap)
        for connection, onlookers in self._connections.items():
            if onlookers is not None:
                onlookers.seeing = [each for each in onlookers.seeing if each.by is not tap]
                if not onlookers.seeing:
                    self._connections[connection] = None
                    connection.look_on(None)

    def link_of(self, connection: Any) -> Link | None:
        """An open connection, as all late taps know it; None if there is no such."""
        if connection not in self._connections:
            return None
        link = self._links.get(connection)
        if link is None:
            transport = connection.transport
            link = Link(
                number=next_link_number(),
                side=connection.side,
                peer=connection.peer,
                tls=transport.tls_version,
            )
            self._links[connection] = link
        return link

    def _sees(self, tap: LateTap, connection: Watchable) -> bool:
        onlookers = self._connections[connection]
        return onlookers is not None and any(each.by is tap for each in onlookers.seeing)

    def _join(self, tap: LateTap, connection: Watchable, *, is_new: bool) -> None:
        if connection.session.ended:
            return
        link = self.link_of(connection)
        assert link is not None
        position = None if is_new else connection.session.position()
        try:
            link_tap = tap.join(link, connection, position)
        except Exception as error:  # noqa: BLE001  # any code of a user's
            report(error, tap)
            return
        if link_tap is None or tap not in self._taps:
            return
        onlookers = self._connections[connection]
        if onlookers is None:
            onlookers = self._connections[connection] = _Onlookers()
            connection.look_on(onlookers)
        skip = 0 if position is None else position.untaken_chunks
        onlookers.seeing.append(_Seeing(tap, link_tap, skip))


_taps_of_run: trio.lowlevel.RunVar[LateTaps] = trio.lowlevel.RunVar("rawgrpc_proxy.late_taps")


def current_late_taps() -> LateTaps:
    """Those of this trio run."""
    try:
        return _taps_of_run.get()
    except LookupError:
        taps = LateTaps()
        _taps_of_run.set(taps)
        return taps
