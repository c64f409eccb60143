"""An upstream made of raw frames, for tests of the pool: it counts streams and does as it is told, and nothing else."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import hpack
import trio
import trio.testing
from hyperframe.frame import (
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BOUND_S = 20.0

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/pkg.Service/Method"),
    (b":authority", b"backend"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


class Clock:
    """Runs like the real one, and may be put forward; the bound on the test moves along."""

    def __init__(self) -> None:
        self.trio_clock = trio.testing.MockClock(rate=1.0)
        self.scope = trio.CancelScope()

    def jump(self, seconds: float) -> None:
        self.scope.deadline += seconds
        self.trio_clock.jump(seconds)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run `test`, within a bound."""

    async def bounded() -> None:
        with trio.fail_after(BOUND_S):
            await test()

    trio.run(bounded)


def run_with_clock(test: Callable[[Clock], Awaitable[None]]) -> None:
    """Run `test` with a clock that it may put forward, within a bound."""
    clock = Clock()

    async def bounded() -> None:
        clock.scope.deadline = trio.current_time() + BOUND_S
        with clock.scope:
            await test(clock)
        assert not clock.scope.cancelled_caught, f"not done within {BOUND_S} s"

    trio.run(bounded, clock=clock.trio_clock)


class Upstream:
    """Accepts connections on a loopback port (or a Unix socket) and speaks HTTP/2 on them."""

    def __init__(
        self, max_concurrent_streams: int | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.max_concurrent_streams = max_concurrent_streams
        self.connections: list[UpstreamConnection] = []
        self.address = ""
        self.silent = False
        """Whether SETTINGS are held back."""
        self.refuse = False
        """Whether connections are closed as soon as they come."""
        self.refuse_next = 0
        """How many of the next ones are."""
        self._tls = tls
        self._changed = trio.Event()

    async def serve(
        self,
        path: str | None = None,
        port: int = 0,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, on the Unix socket `path` or on a loopback port; `address` says where."""
        if path is not None:
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            await sock.bind(path)
            self.address = f"unix:{path}"
        else:
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await sock.bind(("127.0.0.1", port))
            self.address = f"127.0.0.1:{sock.getsockname()[1]}"
        sock.listen(1024)
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve_one, [trio.SocketListener(sock)])
            task_status.started()

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        if self.refuse or self.refuse_next:
            self.refuse_next = max(0, self.refuse_next - 1)
            await trio.aclose_forcefully(stream)
            return
        link: trio.abc.Stream = stream
        if self._tls is not None:
            link = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        connection = UpstreamConnection(self, link)
        self.connections.append(connection)
        self.changed()
        await connection.run()

    def changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at whenever something has been received."""
        while not condition():
            await self._changed.wait()

    async def connected(self, count: int) -> "list[UpstreamConnection]":
        """Wait until so many connections have come with their SETTINGS."""
        await self.until(lambda: len(self.live) >= count)
        return self.live

    @property
    def live(self) -> "list[UpstreamConnection]":
        return [connection for connection in self.connections if connection.greeted and not connection.ended]


class UpstreamConnection:
    """One of them, seen from the upstream."""

    def __init__(self, upstream: Upstream, stream: trio.abc.Stream) -> None:
        self.open: set[int] = set()
        self.peak = 0
        """The most streams that were open at once."""
        self.goaway: GoAwayFrame | None = None
        self.pinged: bytes | None = None
        """The last PING that has not been answered; nobody answers by himself."""
        self.greeted = False
        self.ended = False
        self._upstream = upstream
        self._stream = stream
        self._encoder = hpack.Encoder()
        self._settings_acknowledged = 0
        self._settings_sent = 0
        self._pongs = 0
        self._buffer = b""

    async def run(self) -> None:
        try:
            await self._expect(len(PREFACE))
            if not self._upstream.silent:
                await self.greet()
            while True:
                head = await self._expect(9)
                frame, length = Frame.parse_frame_header(memoryview(head))
                frame.parse_body(memoryview(await self._expect(length)))
                await self._take(frame)
                self._upstream.changed()
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended = True
            self._upstream.changed()
            await trio.aclose_forcefully(self._stream)

    async def _expect(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._stream.receive_some(65536)
            if not data:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    async def _take(self, frame: Frame) -> None:
        match frame:
            case SettingsFrame():
                if "ACK" in frame.flags:
                    self._settings_acknowledged += 1
                    self.greeted = True
                elif self._settings_sent:
                    await self._send(SettingsFrame(0, flags=["ACK"]))
            case HeadersFrame():
                self.open.add(frame.stream_id)
                self.peak = max(self.peak, len(self.open))
            case RstStreamFrame():
                self.open.discard(frame.stream_id)
            case PingFrame() if "ACK" in frame.flags:
                self._pongs += 1
            case PingFrame():
                self.pinged = frame.opaque_data
            case GoAwayFrame():
                self.goaway = frame
            case _:
                pass

    async def _send(self, frame: Frame) -> None:
        await self._stream.send_all(frame.serialize())

    async def _send_settings(self, values: dict[int, int]) -> None:
        self._settings_sent += 1
        await self._send(SettingsFrame(0, settings=values))

    async def greet(self) -> None:
        """Send the first SETTINGS."""
        limit = self._upstream.max_concurrent_streams
        await self._send_settings({} if limit is None else {SettingsFrame.MAX_CONCURRENT_STREAMS: limit})
        if self._upstream.silent:
            await self._send(SettingsFrame(0, flags=["ACK"]))  # held back as well

    async def allow(self, streams: int) -> None:
        """Change MAX_CONCURRENT_STREAMS, and wait until the peer has taken note."""
        await self.announce({SettingsFrame.MAX_CONCURRENT_STREAMS: streams})

    async def announce(self, settings: dict[int, int]) -> None:
        """Send SETTINGS, and wait until the peer has taken note."""
        await self._send_settings(settings)
        await self._upstream.until(lambda: self._settings_acknowledged == self._settings_sent)

    async def go_away(
        self, *, last_stream_id: int = 2**31 - 1, error_code: int = 0, debug: bytes = b"restart"
    ) -> None:
        """Send GOAWAY, and wait until the peer has taken note, or closed."""
        await self._send(GoAwayFrame(0, last_stream_id, error_code, debug))
        pongs = self._pongs
        await self._send(PingFrame(0, opaque_data=b"noticed?"))
        await self._upstream.until(lambda: self._pongs > pongs or self.ended)

    async def pong(self) -> None:
        """Answer the last PING."""
        assert self.pinged is not None
        await self._send(PingFrame(0, opaque_data=self.pinged, flags=["ACK"]))
        self.pinged = None

    async def answer(self, stream_id: int) -> None:
        """End a stream with status OK."""
        self.open.discard(stream_id)
        block = self._encoder.encode([(":status", "200"), ("grpc-status", "0")])
        await self._send(HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"]))

    async def close(self) -> None:
        """Drop the connection."""
        await trio.aclose_forcefully(self._stream)

    async def gone(self) -> None:
        """Wait until the peer has closed."""
        await self._upstream.until(lambda: self.ended)


@contextmanager
def deaf_port() -> Iterator[str]:
    """The address of a port on which nobody listens; nobody gets it by chance meanwhile."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"
