"""Faults on a link: the pump that carries bytes between a transport and its connection, through the middle.

    server = Server(..., wrap=with_faults(striker))
    pool = Pool(..., wrap=with_faults(striker))

What the connection writes goes through the middle to the peer's transport at once, without a task, if that takes it.
One task reads the peer, one writes what was not taken at once, one keeps time, and one sees to the ends. Where what was
read cannot be written, nothing more is read, so backpressure is kept. The end of one side, or its error, is told to the
other behind all that came before.

The invariant: it ends when the connection has closed its transport, after a second at the most, and leaves nothing
open. A cancellation gives it the same second, so that the connection's farewell gets out.
"""

import errno
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import trio

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.faults.fault import Striker
from rawgrpc_proxy.lab.faults.link_faults import LinkEnd
from rawgrpc_proxy.lab.faults.middle import Middle
from rawgrpc_proxy.net.poller import Then, closed_error
from rawgrpc_proxy.net.tapped import Link, Wrap
from rawgrpc_proxy.net.transport import NothingTakenError, Take, Transport
from rawgrpc_proxy.net.turn import current_turn

MAX_WAITING_BYTES = 256 * 1024
"""So much may wait for one end; the other one is not read then."""
_LAST_S = 1.0
"""For what is left, once the connection is closed or cancelled."""
_STOP, _WAIT, _AGAIN = Then


def with_faults(striker: Striker) -> Wrap:
    """What puts faults between connections and their peers: for `Server(wrap=…)` and `Pool(wrap=…)`."""

    def wrap(transport: Transport, link: Link, nursery: trio.Nursery) -> Transport:
        pump = _Pump(transport, Middle(link, striker, trio.current_time()))
        nursery.start_soon(pump.run)
        return pump.transport

    return wrap


class _Outlet:
    """Writes to the peer, in order. `on_change`: something was written, or nothing can be any more."""

    def __init__(self, transport: Transport, on_change: Callable[[], None]) -> None:
        self._transport = transport
        self._on_change = on_change
        self._chunks: list[Data] = []
        self._wake = trio.Event()
        self.timeout_s = math.inf
        self.waiting_bytes = 0
        self.error: OSError | None = None

    def put(self, chunks: list[Data]) -> None:
        """Write this, what can be at once."""
        if not chunks or self.error is not None:
            return
        if not self.waiting_bytes:
            try:
                chunks = self._transport.send_now(chunks)
            except OSError as error:
                self._fail(error)
                return
        if chunks:
            self._chunks += chunks
            self.waiting_bytes += sum(map(len, chunks))
            self._wake.set()

    async def run(self) -> None:
        """Write what has to wait."""
        while True:
            await self._wake.wait()
            chunks, self._chunks = self._chunks, []
            size = sum(map(len, chunks))
            self._wake = trio.Event()
            try:
                await self._transport.send_all(chunks, self.timeout_s)
            except OSError as error:
                self._fail(error)
                return
            self.waiting_bytes -= size
            if self._chunks:
                self._wake.set()
            self._on_change()

    def _fail(self, error: OSError) -> None:
        self.error = error
        self._chunks.clear()
        self.waiting_bytes = 0
        self._on_change()


class _Between:
    """What the connection has for its transport."""

    def __init__(self, pump: "_Pump", peer: Transport) -> None:
        self._pump = pump
        self._peer = peer
        self.peer = peer.peer
        self.tls_peer: Mapping[str, Any] | None = peer.tls_peer
        self.incoming: list[Data] = []
        """What the connection is to read."""
        self.incoming_bytes = 0
        self.ended = self.closed = False
        """Nothing is to be read behind that; the connection has closed it."""
        self._arrival = trio.Event()

    @property
    def tls_version(self) -> str | None:
        return self._peer.tls_version

    def wire_bytes(self) -> tuple[int, int] | None:
        return self._peer.wire_bytes()

    def mind_lost_bytes(self, timeout_s: float) -> None:
        self._pump.outlet.timeout_s = timeout_s
        self._peer.mind_lost_bytes(timeout_s)

    # ---------------------------------------------------------------- reading

    def arrived(self, chunks: list[Data]) -> None:
        """For the connection to read."""
        if chunks and not self.closed:
            self.incoming += chunks
            self.incoming_bytes += sum(map(len, chunks))
            self._arrival.set()

    def end(self) -> None:
        """The connection reads no more than is here."""
        self.ended = True
        self._arrival.set()

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        turn = current_turn()
        then = _AGAIN if goes_on else _WAIT
        while then is not _STOP:
            if then is _AGAIN:
                await trio.lowlevel.checkpoint()
                with turn:
                    then = take(None)
                continue
            await self._wait_for_arrival()
            data = b"".join(self.incoming)
            self.incoming.clear()
            self.incoming_bytes = 0
            with turn:
                then = take(data)
            if not data:
                if self._pump.error is not None:
                    raise self._pump.error
                return
            self._pump.changed()

    async def _wait_for_arrival(self) -> None:
        await trio.lowlevel.checkpoint()
        while not (self.incoming or self.ended or self.closed):
            self._arrival = trio.Event()
            await self._arrival.wait()
        if self.closed:
            raise closed_error()

    # ---------------------------------------------------------------- writing

    def send_now(self, chunks: list[Data]) -> list[Data]:
        if self._pump.link_is_over:
            raise NothingTakenError(errno.EPIPE, os.strerror(errno.EPIPE))
        return [] if self._pump.take(chunks) else chunks

    async def send_all(self, chunks: list[Data], timeout_s: float) -> None:
        self._pump.outlet.timeout_s = timeout_s
        await trio.lowlevel.checkpoint()
        while not self._pump.take(chunks):
            await self._pump.change()

    async def send_eof(self) -> None:
        self._pump.connection_ended()

    async def linger(self) -> None:
        await self.send_eof()
        while not (self.ended or self.closed):
            self.incoming.clear()
            self.incoming_bytes = 0
            self._arrival = trio.Event()
            await self._arrival.wait()

    async def aclose(self) -> None:
        self.closed = True
        self.incoming.clear()
        self.incoming_bytes = 0
        self._arrival.set()
        self._pump.connection_closed()

    async def abort(self) -> None:
        await self.aclose()


class _Pump:
    """See above. `transport` is the connection's."""

    def __init__(self, peer: Transport, middle: Middle) -> None:
        self._peer = peer
        self._middle = middle
        self.transport = _Between(self, peer)
        self.outlet = _Outlet(peer, self.changed)
        self.error: OSError | None = None
        """What has ended the link, for the connection to be raised when all that came before is read."""
        self._nap = trio.CancelScope()
        self._life = trio.CancelScope(shield=True)
        self._news = trio.Event()
        self._owed_bytes = 0
        """Of what waits for the peer: what has come of what it has sent itself."""
        self._peer_ended = self._connection_ended = self._lingers = False

    # ------------------------------------------------------------------- life

    async def run(self) -> None:
        """Carry bytes until the connection has closed its transport. Raises nothing but faults of ours."""
        try:
            async with trio.open_nursery() as hears_of_cancellation:
                hears_of_cancellation.start_soon(self._mind_cancellation)
                with self._life:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.outlet.run)
                        nursery.start_soon(self._read_peer)
                        nursery.start_soon(self._keep_time)
                        self._moved()
                        await self._see_to_ends()
                        nursery.cancel_scope.cancel()
                hears_of_cancellation.cancel_scope.cancel()
        finally:
            self.transport.end()
            with trio.CancelScope(shield=True):
                await self._peer.aclose()

    async def _mind_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._end_soon()

    def connection_ended(self) -> None:
        """The connection writes no more."""
        self._connection_ended = True
        self.changed()

    def connection_closed(self) -> None:
        """It does not read any more, either."""
        self._end_soon()
        self.connection_ended()

    def _end_soon(self) -> None:
        self._life.deadline = min(self._life.deadline, trio.current_time() + _LAST_S)

    async def _see_to_ends(self) -> None:
        middle, half_closed = self._middle, False
        while True:
            if middle.end is not None and self._peer_is_served:
                await self._end_link(middle.end)
                break
            if self._connection_ended and self._peer_is_served:
                if not self.transport.closed:
                    await self._linger()
                break
            if middle.half_closed and self._peer_is_served and not half_closed:
                half_closed = True
                await self._peer.send_eof()
            elif self._peer_is_done:
                self.transport.end()
            await self.change()
        self.transport.end()
        while not self.transport.closed:
            await self.change()

    async def _end_link(self, how: LinkEnd) -> None:
        """A fault ends it."""
        if how is LinkEnd.RESET:
            self.error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self.transport.end()
            await self._peer.abort()
        else:
            self.transport.end()
            await self._linger()

    async def _linger(self) -> None:
        """FIN for the peer, and what it still sends is thrown away: were it unread, the peer would get RST."""
        self._lingers = True
        await self._peer.send_eof()
        while not self._peer_ended:
            await self.change()

    # ------------------------------------------------------------------ bytes

    async def _read_peer(self) -> None:
        def take(data: bytes | None) -> Then:
            if self._lingers and data:
                return _WAIT
            before = self.outlet.waiting_bytes
            if data:
                self._middle.from_peer(data, trio.current_time())
            else:
                self._peer_ended = True
                self._middle.peer_ended(trio.current_time())
            self._moved()
            self._owed_bytes = min(self._owed_bytes, before) + max(self.outlet.waiting_bytes - before, 0)
            if not data:
                return _STOP
            return _STOP if self._too_much_from_peer else _WAIT

        try:
            while not self._peer_ended:
                while self._too_much_from_peer:
                    await self.change()
                await self._peer.receive_each(take)
        except OSError as error:
            self.error = self.error or error
        self._peer_ended = True
        self.changed()

    def take(self, chunks: list[Data]) -> bool:
        """The connection writes this. False: it has to wait. Raises the link's `OSError`."""
        if self.outlet.error is not None:
            raise self.outlet.error
        if self.transport.closed:
            raise closed_error()
        if self._too_much_from_connection:
            return False
        now = trio.current_time()
        for chunk in chunks:
            self._middle.from_connection(chunk, now)
        self._moved()
        return True

    async def _keep_time(self) -> None:
        middle = self._middle
        while True:
            self._nap = trio.CancelScope(deadline=middle.next_at)
            with self._nap:
                await trio.sleep_forever()
            middle.advance(trio.current_time())
            self._moved()

    def _moved(self) -> None:
        """Something has come, or its time has: pass on what there is."""
        middle, now = self._middle, trio.current_time()
        self.outlet.put(middle.to_peer(now))
        self.transport.arrived(middle.to_connection(now))
        self._nap.deadline = middle.next_at
        self.changed()

    # -------------------------------------------------------------- who waits

    @property
    def _too_much_from_peer(self) -> bool:
        waiting = self.transport.incoming_bytes + self._middle.unsent_to(peer=False)
        # What it is owed counts as well: it may ask, and not read the answers. What the connection has written does
        # not: who reads nothing for now may have something to say.
        owed = min(self._owed_bytes, self.outlet.waiting_bytes)
        return max(waiting, owed) > MAX_WAITING_BYTES and not self._lingers

    @property
    def _too_much_from_connection(self) -> bool:
        if self._middle.over:
            return False
        return self.outlet.waiting_bytes + self._middle.unsent_to(peer=True) > MAX_WAITING_BYTES

    @property
    def link_is_over(self) -> bool:
        """Whether the connection is to hear so as soon as it is its turn: what it writes until then would be lost."""
        return self._peer_is_done or (self._middle.end is not None and self._peer_is_served)

    @property
    def _peer_is_done(self) -> bool:
        """Nothing more comes of it, and no fault keeps back what has come."""
        return self._peer_ended and (self._middle.over or not self._middle.held_for(peer=False))

    @property
    def _peer_is_served(self) -> bool:
        """Nothing more is to be written to it, of what has come; or nothing can be."""
        held = self._middle.held_for(peer=True) and not self._middle.over
        return self.outlet.error is not None or not (self.outlet.waiting_bytes or held)

    def changed(self) -> None:
        """Let whoever waits look again."""
        if self.outlet.error is not None and not self._peer_ended:
            self.error = self.error or self.outlet.error
            self._peer_ended = True
        self._news.set()

    async def change(self) -> None:
        """Wait for something to change."""
        if self._news.is_set():
            self._news = trio.Event()
        await self._news.wait()
