"""Taps: who may see all bytes of a connection, in both directions, as plaintext; and who may stand in between.

What it does not do: read frames, or change anything. A connection that nobody looks into has its transport as it is:
this costs nothing. A tap sees what is on the wire, so it is nearer to it than what a `Wrap` puts between. The
invariant: whatever a tap does, the connection goes on; one that raises is told nothing more.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.transport import Take, Transport
from rawgrpc_proxy.observe.tell import report

_numbers = itertools.count(1)


@attrs.frozen(kw_only=True)
class Link:
    """A connection, as those who tap it know it."""

    number: int
    """No other one of this process has it."""
    side: Side
    """Whether the peer is a caller (`DOWNSTREAM`) or an upstream."""
    peer: str
    """`HOST:PORT` or `unix:…`: a caller's own, or an upstream's as the pool was given it."""
    tls: str | None
    """The version of TLS ("TLSv1.3"); None for plaintext."""


class LinkTap(Protocol):
    """Sees one connection. Called in the middle of its work: must not wait, nor keep views for longer than the call."""

    def received(self, data: Data) -> None:
        """These bytes have come from the peer, in whatever pieces they were read."""

    def sent(self, data: Data) -> None:
        """These go to the peer: each byte is told once, in order, before it is written."""

    def closed(self) -> None:
        """The connection is over. Told once, at the end."""


class Tap(Protocol):
    """Asked of each new connection of a server (`Server(tap=…)`) or a pool (`Pool(tap=…)`)."""

    def link(self, link: Link) -> LinkTap | None:
        """Who is to see this connection; None: nobody. What it raises is reported, and nobody sees it."""


def next_link_number() -> int:
    """A number that no other link of this process has."""
    return next(_numbers)


class Wrap(Protocol):
    """Asked for each new connection of a server (`Server(wrap=…)`) or a pool (`Pool(wrap=…)`)."""

    def __call__(self, transport: Transport, link: Link, nursery: trio.Nursery) -> Transport:
        """The transport that the connection is to have instead of its own: this one, or one around it.

        Tasks that it needs run in the nursery, which lives as long as the connection or longer: they must end soon
        after the transport is closed, and raise nothing. What this raises is reported, and nothing is between then.
        """


def looked_into(
    transport: Transport, tap: Tap | None, wrap: Wrap | None, side: Side, nursery: trio.Nursery
) -> Transport:
    """The same link, for `tap` to see if it wants to, with what `wrap` puts between that and the connection."""
    if tap is None and wrap is None:
        return transport
    link = Link(number=next_link_number(), side=side, peer=transport.peer, tls=transport.tls_version)
    if tap is not None:
        transport = _tapped(transport, tap, link)
    if wrap is not None:
        try:
            transport = wrap(transport, link, nursery)
        except Exception as error:  # noqa: BLE001  # any code of a user's
            report(error, wrap)
    return transport


def _tapped(transport: Transport, tap: Tap, link: Link) -> Transport:
    try:
        link_tap = tap.link(link)
    except Exception as error:  # noqa: BLE001  # any code of a user's
        report(error, tap)
        return transport
    return transport if link_tap is None else _TappedTransport(transport, link_tap)


class _TappedTransport:
    """A transport whose bytes somebody sees."""

    def __init__(self, inner: Transport, tap: LinkTap) -> None:
        self._inner = inner
        self._tap: LinkTap | None = tap
        self._told: Sequence[Data] = ()
        """What was told, and has not been written yet."""
        self.peer = inner.peer
        self.tls_peer: Mapping[str, Any] | None = inner.tls_peer

    @property
    def tls_version(self) -> str | None:
        return self._inner.tls_version

    def wire_bytes(self) -> tuple[int, int] | None:
        return self._inner.wire_bytes()

    def mind_lost_bytes(self, timeout_s: float) -> None:
        self._inner.mind_lost_bytes(timeout_s)

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        def heard(data: bytes | None) -> Then:
            if data:
                self._tell("received", data)
            return take(data)

        await self._inner.receive_each(heard, goes_on=goes_on)

    def send_now(self, chunks: list[Data]) -> list[Data]:
        self._tell_sent(chunks)
        rest = self._inner.send_now(chunks)
        self._told = tuple(rest)
        return rest

    async def send_all(self, chunks: list[Data], timeout_s: float) -> None:
        self._tell_sent(chunks)
        self._told = ()
        await self._inner.send_all(chunks, timeout_s)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def linger(self) -> None:
        await self._inner.linger()

    async def aclose(self) -> None:
        self._closed()
        await self._inner.aclose()

    async def abort(self) -> None:
        self._closed()
        await self._inner.abort()

    def _closed(self) -> None:
        self._tell("closed")
        self._tap = None

    def _tell_sent(self, chunks: Sequence[Data]) -> None:
        """Tell of these, but for what was told before the socket was found full: the same objects, at the beginning."""
        known = 0
        for chunk, told in zip(chunks, self._told, strict=False):
            if chunk is not told:
                break
            known += 1
        for chunk in chunks[known:]:
            self._tell("sent", chunk)

    def _tell(self, what: str, *data: Data) -> None:
        if self._tap is None:
            return
        try:
            getattr(self._tap, what)(*data)
        except Exception as error:  # noqa: BLE001  # any code of a user's
            tap, self._tap = self._tap, None
            report(error, tap)
