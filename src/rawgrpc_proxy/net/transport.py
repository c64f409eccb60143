"""One link to a peer: bytes in, bytes out, nothing more.

Two kinds share an interface. `SocketTransport` works on a socket and can write without waiting, which saves a task
switch for every write while the socket has room; with TLS it is a `TlsTransport` (`tls.py`). `StreamTransport` wraps
any trio stream (in-memory pairs), where only waiting writes exist.

The invariant: a write that was cut short by cancellation is never followed by another one, since nobody knows how
much of it went out; the connection closes the transport then.
"""

import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net.poller import Poller, Then, closed_error, current_poller
from rawgrpc_proxy.net.turn import current_turn

READ_BYTES = 16 * 1024
BULK_READ_BYTES = (256 if sys.implementation.name != "pypy" else 64) * 1024
"""A read that fills its buffer is followed by one of twice the size, up to this: bulk costs a third less. Buffers of
this size for every read would cost the small ones page faults. PyPy counts each of more than some 100 KiB as memory in
use, full or not, until it has looked through the whole heap: it then does so for every few reads."""
_FLUSH_AT_ONCE_BYTES = 16 * 1024
"""So much is not kept until others have been read: that would gain nothing and pile up."""
_JOIN_UP_TO_BYTES = 16 * 1024
"""One copy of so little costs less than the system call's look at each piece."""
_PIECE_BYTES = 16 * 1024
_LOST_AFTER_S = 30.0
"""TCP gives up no link sooner: what was sent may be lost on the way, and has to be sent again."""
_SILENT_AFTER_S, _ASK_EVERY_S = 60, 15
"""So long after its last sign of life TCP asks a peer for one, and how often until it is given up: one that has
vanished without a word, its power or its network gone, would keep its file for ever."""
_TCP_INFO_BYTES = 136
"""Of Linux' struct tcp_info up to tcpi_bytes_acked and tcpi_bytes_received, its last two fields here."""
_IOV_MAX = 1024  # chunks for one sendmsg: the limit of Linux, macOS and the BSDs


Take = Callable[[bytes | None], Then]
"""Acts on what was read (no bytes: it is over), or on what it has left of that (None), and says what is next."""
_STOP, _WAIT, _AGAIN = Then


class NothingTakenError(OSError):
    """The link is over, as `receive_each` is about to say, and nothing of what was to be written has been taken."""


class Transport(Protocol):
    """What a connection needs of its link. Errors are `OSError`; a clean end of file is empty bytes."""

    peer: str
    tls_peer: Mapping[str, Any] | None
    """The peer's certificate, where it has shown one."""

    @property
    def tls_version(self) -> str | None:
        """The version of TLS that was agreed on: "TLSv1.3"; None for plaintext."""

    def wire_bytes(self) -> tuple[int, int] | None:
        """How many bytes have come from the peer, and how many it has acknowledged, as the system has counted them.

        None where it does not tell: anything but TCP on Linux. Nothing is counted here for this.
        """

    def mind_lost_bytes(self, timeout_s: float) -> None:
        """Have TCP give up the link when what was sent is not acknowledged, or not taken, for so long, at least 30 s.

        By itself it would try for 15 min (RFC 5482). A peer that is silent for a minute is asked for a sign of life
        (RFC 1122 §4.2.3.6), and given up as well if there is none. Nothing happens where the link is not TCP, or cannot
        be told.
        """

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        """Call `take` with what comes, read by read, until it answers STOP or nothing comes any more.

        Then it is called with no bytes: at the end of the file, and before an `OSError` is raised here. While it
        answers AGAIN nothing is read: it is called with None, each time after others have had their turn; with
        `goes_on` so at once. What it writes is flushed soon after. It must not wait; what it raises is raised here.
        """

    def send_now(self, chunks: list[Data]) -> list[Data]:
        """Write what can be written without waiting and answer the rest.

        Raises `NothingTakenError` if the link has something between that knows first that it is over.
        """

    async def send_all(self, chunks: list[Data], timeout_s: float) -> None:
        """Write everything, waiting as needed. Raises `TimeoutError` if nothing at all goes out for `timeout_s`."""

    async def send_eof(self) -> None:
        """Say that no more comes; reading goes on. Raises nothing where the link is gone."""

    async def linger(self) -> None:
        """Say that no more comes, and throw away what the peer still sends until it is done or gone.

        A socket that is closed with bytes unread is reset, and the peer may lose what was written to it last.
        """

    async def aclose(self) -> None:
        """Close without ceremony and without waiting for the peer. May be called twice, and when cancelled."""

    async def abort(self) -> None:
        """As `aclose`, and what is on its way is lost: with TCP the peer gets RST."""


class SocketTransport:
    """A connected, non-blocking stream socket."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock = sock
        self.peer = peer
        self.tls_peer: Mapping[str, Any] | None = None
        self._poller: Poller | None = None
        sock.settimeout(0)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            # Frames are written when they are complete; waiting for more (Nagle) only adds latency.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def mind_lost_bytes(self, timeout_s: float) -> None:
        _mind_lost_bytes(self._sock, timeout_s)

    @property
    def tls_version(self) -> str | None:
        return None

    def wire_bytes(self) -> tuple[int, int] | None:
        if not sys.platform.startswith("linux") or self._sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return None
        if len(info) < _TCP_INFO_BYTES:
            return None
        acknowledged, received = struct.unpack_from("=QQ", info, _TCP_INFO_BYTES - 16)
        return received, acknowledged

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        await self._receive_each(self._sock.recv, take, goes_on=goes_on)

    async def _receive_each(self, recv: Callable[[int], bytes], take: Take, *, goes_on: bool = False) -> None:
        """As `receive_each`. `recv` answers no bytes at the end, and raises `BlockingIOError` if there is nothing."""
        turn = current_turn()
        read_bytes = READ_BYTES
        then = _AGAIN if goes_on else _WAIT

        @trio.lowlevel.disable_ki_protection  # it leads to code of the user: Ctrl-C must get through
        def read() -> Then:
            nonlocal read_bytes, then
            if then is _AGAIN:
                then = take(None)
                return then
            try:
                data = recv(read_bytes)
            except BlockingIOError:
                return _WAIT
            except OSError:
                take(b"")
                raise
            then = take(data)
            if not data:
                return _STOP
            read_bytes = next_read_bytes(read_bytes, len(data))
            if then is _WAIT and len(data) >= _FLUSH_AT_ONCE_BYTES:
                turn.looks = 8
                turn.flush()
            return then

        self._poller = current_poller()
        await self._poller.watch(self._open_fd(), read, then)

    def send_now(self, chunks: list[Data]) -> list[Data]:
        sock = self._sock
        size = sum(map(len, chunks))
        while size:
            try:
                if len(chunks) == 1:
                    sent = sock.send(chunks[0])
                elif size <= _JOIN_UP_TO_BYTES:
                    sent = sock.send(b"".join(chunks))
                else:
                    sent = sock.sendmsg(chunks[:_IOV_MAX])
            except BlockingIOError:
                return chunks
            if sent == size:
                break
            size -= sent
            chunks = _after(chunks, sent)
        return []

    async def send_all(self, chunks: list[Data], timeout_s: float) -> None:
        while chunks:
            with trio.move_on_after(timeout_s) as patience:
                try:
                    await trio.lowlevel.wait_writable(self._open_fd())
                except trio.ClosedResourceError as error:
                    raise closed_error() from error
            rest = self.send_now(chunks)
            # On Linux it counts as writable when a third of its buffer is free; it takes bytes long before.
            if patience.cancelled_caught and rest is chunks:
                raise TimeoutError
            chunks = rest

    def _open_fd(self) -> int:
        """The number, not the socket: trio would ask for it, each time."""
        fd = self._sock.fileno()
        if fd < 0:
            raise closed_error()
        return fd

    async def send_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    async def linger(self) -> None:
        await self.send_eof()
        with contextlib.suppress(OSError):
            await self._receive_each(self._sock.recv, lambda _data: _WAIT)

    async def aclose(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            if self._poller is not None:
                self._poller.closing(self._sock.fileno())
            self._sock.close()

    async def abort(self) -> None:
        with contextlib.suppress(OSError):
            _reset_when_closed(self._sock)
        await self.aclose()


def next_read_bytes(asked: int, got: int) -> int:
    """How much to ask for, when of `asked` bytes `got` have come."""
    if got == asked:
        return min(2 * asked, BULK_READ_BYTES)
    if asked >= 4 * READ_BYTES and got < READ_BYTES:
        return READ_BYTES
    return asked


class StreamTransport:
    """Any trio stream."""

    def __init__(self, stream: trio.abc.Stream, peer: str) -> None:
        self._stream = stream
        self.peer = peer
        self.tls_peer: Mapping[str, Any] | None = None

    @property
    def tls_version(self) -> str | None:
        return None

    def wire_bytes(self) -> tuple[int, int] | None:
        return None

    def mind_lost_bytes(self, timeout_s: float) -> None:
        if isinstance(self._stream, trio.SocketStream):
            _mind_lost_bytes(self._stream.socket, timeout_s)

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        turn, read_bytes = current_turn(), READ_BYTES
        then = _AGAIN if goes_on else _WAIT
        while then is not _STOP:
            data = None
            if then is _AGAIN:
                await trio.lowlevel.checkpoint()
            else:
                data = await self._read(take, read_bytes)
                read_bytes = next_read_bytes(read_bytes, len(data))
            with turn:
                then = take(data)
            if data == b"":
                return

    async def _read(self, take: Take, read_bytes: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(read_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            take(b"")
            raise _as_os_error(error) from error

    def send_now(self, chunks: list[Data]) -> list[Data]:
        return chunks

    async def send_all(self, chunks: list[Data], timeout_s: float) -> None:
        data = memoryview(b"".join(chunks))
        # In pieces, since how much of one has gone out is not to be known.
        for start in range(0, len(data), _PIECE_BYTES):
            with trio.move_on_after(timeout_s) as patience:
                try:
                    await self._stream.send_all(data[start : start + _PIECE_BYTES])
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise _as_os_error(error) from error
            if patience.cancelled_caught:
                raise TimeoutError

    async def send_eof(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()

    async def linger(self) -> None:
        stream = self._stream
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await self.send_eof()
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await stream.receive_some(READ_BYTES):
                    pass

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def abort(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            with contextlib.suppress(OSError):
                _reset_when_closed(self._stream.socket)
        await self.aclose()


def _mind_lost_bytes(sock: socket.socket | trio.socket.SocketType, timeout_s: float) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in {socket.AF_INET, socket.AF_INET6}:
        timeout_ms = int(1000 * max(timeout_s, _LOST_AFTER_S))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_AFTER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _reset_when_closed(sock: socket.socket | trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _after(chunks: list[Data], sent: int) -> list[Data]:
    """What is left of `chunks` when `sent` bytes are gone."""
    for index, chunk in enumerate(chunks):
        if sent < len(chunk):
            rest = chunks[index:]
            if sent:
                rest[0] = memoryview(chunk)[sent:]
            return rest
        sent -= len(chunk)
    return []


def _as_os_error(error: Exception) -> OSError:
    cause = error.__cause__ or error
    return cause if isinstance(cause, OSError) else OSError(str(cause) or type(cause).__name__)
