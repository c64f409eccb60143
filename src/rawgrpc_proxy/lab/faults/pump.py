"""Faults on a link: the pump that carries bytes between a transport and a pair of sockets, through the middle.

    server = Server(..., wrap=with_faults(striker))
    pool = Pool(..., wrap=with_faults(striker))

Two of its tasks read, two write what a socket did not take at once, one keeps time, and one sees to the ends. It stops
reading where what it has read cannot be written, so backpressure is kept. An end, or an error, on one side is passed to
the other when all that came before it is written.

The invariant: it ends when the connection has closed its transport, after a second at the most, and leaves nothing
open. A cancellation gives it the same second, so that the connection's farewell gets out.
"""

import contextlib
import errno
import math
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import trio

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.faults.fault import Striker
from rawgrpc_proxy.lab.faults.link_faults import LinkEnd
from rawgrpc_proxy.lab.faults.middle import Middle
from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.tapped import Link, Wrap
from rawgrpc_proxy.net.transport import SocketTransport, Take, Transport

MAX_WAITING_BYTES = 256 * 1024
"""So much may wait for one end; the other one is not read then."""
_LAST_S = 1.0
"""For what is left, once the connection is closed or cancelled."""


def with_faults(striker: Striker) -> Wrap:
    """What puts faults between connections and their peers: for `Server(wrap=…)` and `Pool(wrap=…)`."""

    def wrap(transport: Transport, link: Link, nursery: trio.Nursery) -> Transport:
        pump = _Pump(transport, Middle(link, striker, trio.current_time()))
        nursery.start_soon(pump.run)
        return pump.transport

    return wrap


class _Between:
    """What the connection has for its transport: one of a pair of sockets, and the rest of the peer's."""

    def __init__(self, near: SocketTransport, peer: Transport, on_closed: Callable[[], None]) -> None:
        self._near = near
        self._peer = peer
        self._on_closed = on_closed
        self.error: OSError | None = None
        """What has ended the link, to be raised when all that came before is read."""
        self.peer = peer.peer
        self.tls_peer: Mapping[str, Any] | None = peer.tls_peer

    @property
    def tls_version(self) -> str | None:
        return self._peer.tls_version

    def wire_bytes(self) -> tuple[int, int] | None:
        return self._peer.wire_bytes()

    def mind_lost_bytes(self, timeout_s: float) -> None:
        self._peer.mind_lost_bytes(timeout_s)

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        over = False

        def heard(data: bytes | None) -> Then:
            nonlocal over
            over = data == b""
            return take(data)

        await self._near.receive_each(heard, goes_on=goes_on)
        if over and self.error is not None:
            raise self.error

    def send_now(self, chunks: list[Data]) -> list[Data]:
        return self._near.send_now(chunks)

    async def send_all(self, chunks: list[Data], timeout_s: float) -> None:
        await self._near.send_all(chunks, timeout_s)

    async def send_eof(self) -> None:
        await self._near.send_eof()

    async def linger(self) -> None:
        await self._near.linger()

    async def aclose(self) -> None:
        self._on_closed()
        await self._near.aclose()

    async def abort(self) -> None:
        await self.aclose()


class _Outlet:
    """Writes to one side, in order. `on_change`: something was written, or nothing can be any more."""

    def __init__(self, transport: Transport, on_change: Callable[[], None]) -> None:
        self._transport = transport
        self._on_change = on_change
        self._chunks: list[Data] = []
        self._writing_bytes = 0
        self._wake = trio.Event()
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
                await self._transport.send_all(chunks, math.inf)
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


class _Pump:
    """See above. `transport` is the connection's."""

    def __init__(self, peer: Transport, middle: Middle) -> None:
        near, far = socket.socketpair()
        self._far = SocketTransport(far, peer.peer)
        self._far_socket = far
        self._peer = peer
        self._middle = middle
        self.transport = _Between(SocketTransport(near, peer.peer), peer, self._closed)
        self._to_peer = _Outlet(peer, self._changed)
        self._to_connection = _Outlet(self._far, self._changed)
        self._nap = trio.CancelScope()
        self._life = trio.CancelScope(shield=True)
        self._news = trio.Event()
        self._peer_ended = self._connection_ended = self._connection_told = self._is_closed = False
        self._cancelled = self._lingers = False

    # ------------------------------------------------------------------- life

    async def run(self) -> None:
        """Carry bytes until the connection has closed its transport. Raises nothing but faults of ours."""
        try:
            async with trio.open_nursery() as hears_of_cancellation:
                hears_of_cancellation.start_soon(self._mind_cancellation)
                with self._life:
                    async with trio.open_nursery() as nursery:
                        for task in (
                            self._to_peer.run,
                            self._to_connection.run,
                            self._read_peer,
                            self._read_connection,
                            self._keep_time,
                        ):
                            nursery.start_soon(task)
                        self._moved()
                        await self._see_to_ends()
                        nursery.cancel_scope.cancel()
                hears_of_cancellation.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._peer.aclose()
                await self._far.aclose()
                if self._cancelled and not self._is_closed:
                    await self.transport.aclose()

    async def _mind_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self._cancelled = True
            self._end_within_the_last_second()
            raise

    def _closed(self) -> None:
        self._is_closed = True
        self._end_within_the_last_second()
        self._changed()

    def _end_within_the_last_second(self) -> None:
        self._life.deadline = min(self._life.deadline, trio.current_time() + _LAST_S)

    async def _see_to_ends(self) -> None:
        middle, half_closed = self._middle, False
        while not (self._connection_ended and self._peer_is_served):
            if middle.end is not None and self._peer_is_served:
                await self._end_link(middle.end)
                break
            if middle.half_closed and self._peer_is_served and not half_closed:
                half_closed = True
                await self._peer.send_eof()
            elif self._peer_ended and self._connection_is_served:
                self._tell_connection()
                await self._change()
            else:
                await self._change()
        else:
            if not self._is_closed:
                await self._linger()
            return
        while not self._connection_ended:
            await self._change()

    async def _end_link(self, how: LinkEnd) -> None:
        """A fault ends it."""
        if how is LinkEnd.RESET:
            self.transport.error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._tell_connection()
            await self._peer.abort()
        else:
            self._tell_connection()
            await self._linger()

    async def _linger(self) -> None:
        """FIN for the peer, and what it still sends is thrown away: were it unread, the peer would get RST."""
        self._lingers = True
        await self._peer.send_eof()
        while not self._peer_ended:
            await self._change()

    def _tell_connection(self) -> None:
        """It gets no more."""
        if not self._connection_told:
            self._connection_told = True
            with contextlib.suppress(OSError):
                self._far_socket.shutdown(socket.SHUT_WR)

    # ------------------------------------------------------------------ bytes

    async def _read_peer(self) -> None:
        def take(data: bytes | None) -> Then:
            if not data:
                self._peer_ended = True
                return Then.STOP
            if self._lingers:
                return Then.WAIT
            self._middle.from_peer(data, trio.current_time())
            self._moved()
            return Then.STOP if self._too_much_from_peer else Then.WAIT

        try:
            while not self._peer_ended:
                while self._too_much_from_peer:
                    await self._change()
                await self._peer.receive_each(take)
        except OSError as error:
            self.transport.error = self.transport.error or error
        self._peer_ended = True
        self._changed()

    async def _read_connection(self) -> None:
        def take(data: bytes | None) -> Then:
            if not data:
                self._connection_ended = True
                return Then.STOP
            self._middle.from_connection(data, trio.current_time())
            self._moved()
            return Then.STOP if self._too_much_from_connection else Then.WAIT

        with contextlib.suppress(OSError):
            while not self._connection_ended:
                while self._too_much_from_connection:
                    await self._change()
                await self._far.receive_each(take)
        self._connection_ended = True
        self._changed()

    async def _keep_time(self) -> None:
        middle = self._middle
        while True:
            self._nap = trio.CancelScope(deadline=middle.next_at)
            with self._nap:
                await trio.sleep_forever()
            middle.advance(trio.current_time())
            self._moved()

    def _moved(self) -> None:
        """Something has come, or its time has: write what there is."""
        middle, now = self._middle, trio.current_time()
        self._to_peer.put(middle.to_peer(now))
        self._to_connection.put(middle.to_connection(now))
        self._nap.deadline = middle.next_at
        self._changed()

    # -------------------------------------------------------------- who waits

    @property
    def _too_much_from_peer(self) -> bool:
        # What the peer is owed counts as well: it may ask, and not read the answers.
        waiting = self._to_connection.waiting_bytes + self._middle.held_for(peer=False)
        return max(waiting, self._to_peer.waiting_bytes) > MAX_WAITING_BYTES

    @property
    def _too_much_from_connection(self) -> bool:
        return self._to_peer.waiting_bytes + self._middle.held_for(peer=True) > MAX_WAITING_BYTES

    @property
    def _peer_is_served(self) -> bool:
        """Nothing more is to be written to it, of what has come; or nothing can be."""
        if self._to_peer.error is not None:
            return True
        return not (
            self._to_peer.waiting_bytes or (self._middle.held_for(peer=True) and not self._middle.over)
        )

    @property
    def _connection_is_served(self) -> bool:
        held = self._middle.held_for(peer=False) and not self._middle.over
        return not (self._to_connection.waiting_bytes or held)

    def _changed(self) -> None:
        if self._to_peer.error is not None and not self._peer_ended:
            self.transport.error = self.transport.error or self._to_peer.error
            self._peer_ended = True
        if not self._news.is_set():
            self._news.set()

    async def _change(self) -> None:
        if self._news.is_set():
            self._news = trio.Event()
        await self._news.wait()
