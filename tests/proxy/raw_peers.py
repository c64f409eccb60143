"""A peer that speaks raw HTTP/2 frames, for either side of the proxy, so that a test reads like a transcript.

    client = await house.client()
    call = await client.request("/a.B/C", body=message(b"hello"))
    served = await house.backend.request()
    await served.headers(RESPONSE)
    ...
    assert await call.answer() == ...

Nothing of the proxy is used here: frames are hyperframe's, header blocks hpack's. A peer does nothing by itself but
acknowledge SETTINGS and PING and give back flow-control credit, and each of these can be switched off.
"""

import itertools
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import hpack
import trio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

Field = tuple[bytes, bytes]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
FRAME_BYTES = 16_384
SOCKET_BUFFER_BYTES = 256 * 1024
PATIENCE_S = 10.0
INITIAL_WINDOW = 65_535
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE = 0x3, 0x4, 0x6

RESPONSE: list[Field] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK: list[Field] = [(b"grpc-status", b"0")]
TRAILERS_ONLY: list[Field] = [*RESPONSE, (b"grpc-status", b"0")]


def message(payload: bytes, flag: int = 0) -> bytes:
    """One length-prefixed gRPC message."""
    return struct.pack(">BL", flag, len(payload)) + payload


def request_fields(path: str = "/a.B/C", *extra: Field) -> list[Field]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"backend.example"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *extra,
    ]


# --- What a peer hears ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headers:
    fields: list[Field]
    end_stream: bool

    def get(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.fields if key == name), None)

    def get_all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


@dataclass(frozen=True)
class Data:
    data: bytes
    end_stream: bool


@dataclass(frozen=True)
class Reset:
    code: int


@dataclass(frozen=True)
class Lost:
    """The connection ended under the stream."""


StreamEvent = Headers | Data | Reset | Lost


@dataclass(frozen=True)
class GoAway:
    last_stream_id: int
    code: int
    debug: bytes


@dataclass
class Answer:
    """What came on a stream up to its end. Trailers-Only has `headers` alone."""

    headers: Headers | None = None
    body: bytes = b""
    trailers: Headers | None = None
    reset: int | None = None
    lost: bool = False
    frames: list[str] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        """grpc-status, wherever it came."""
        raw = self.get(b"grpc-status")
        return None if raw is None else int(raw)

    @property
    def message(self) -> bytes | None:
        return self.get(b"grpc-message")

    @property
    def http_status(self) -> bytes | None:
        return None if self.headers is None else self.headers.get(b":status")

    def get(self, name: bytes) -> bytes | None:
        last = self.trailers or self.headers
        return None if last is None else last.get(name)


class PeerStream:
    """One stream, as one of its peers sees it."""

    def __init__(self, peer: "RawPeer", stream_id: int) -> None:
        self.peer = peer
        self.id = stream_id
        self.sent_bytes = 0
        """Payload of DATA that went out."""
        self.received_bytes = 0
        self.window = peer.initial_send_window
        self.blocked = trio.Event()
        """Set while `body` waits for the other side to open a window."""
        self.uncredited = 0
        self.request = Headers([], end_stream=False)
        """The request headers, on streams that the other side opened."""
        self.sender, self._events = trio.open_memory_channel[StreamEvent](100_000)

    # what comes

    async def next(self) -> StreamEvent:
        """The next frame on this stream."""
        with trio.fail_after(PATIENCE_S):
            return await self._events.receive()

    def nothing_came(self) -> bool:
        """Nothing that has not been taken yet."""
        return self._events.statistics().current_buffer_used == 0

    async def expect_headers(self) -> Headers:
        event = await self.next()
        assert isinstance(event, Headers), event
        return event

    async def expect_data(self) -> Data:
        event = await self.next()
        assert isinstance(event, Data), event
        return event

    async def expect_reset(self) -> int:
        """The code of the RST_STREAM that comes next."""
        event = await self.next()
        assert isinstance(event, Reset), event
        return event.code

    async def read(self, size: int) -> bytes:
        """Exactly this much of the body, in whatever frames it comes."""
        pieces, left = [], size
        while left > 0:
            piece = (await self.expect_data()).data
            pieces.append(piece)
            left -= len(piece)
        assert left == 0, f"{-left} bytes more than {size} came"
        return b"".join(pieces)

    async def answer(self) -> Answer:
        """All that comes until the end of the stream: END_STREAM, RST_STREAM or the end of the connection."""
        answer = Answer()
        chunks = []
        while True:
            match await self.next():
                case Headers(end_stream=end) as headers:
                    answer.frames.append("HEADERS END_STREAM" if end else "HEADERS")
                    if answer.headers is None:
                        answer.headers = headers
                    else:
                        answer.trailers = headers
                case Data(data, end):
                    answer.frames.append("DATA END_STREAM" if end else "DATA")
                    chunks.append(data)
                case Reset(code):
                    answer.frames.append("RST_STREAM")
                    answer.reset, end = code, True
                case Lost():
                    answer.frames.append("lost")
                    answer.lost, end = True, True
            if end:
                answer.body = b"".join(chunks)
                return answer

    async def request_body(self) -> bytes:
        """The rest of the request's body; the request must end by END_STREAM."""
        pieces: list[bytes] = []
        ended = self.request.end_stream
        while not ended:
            event = await self.next()
            assert not isinstance(event, Reset | Lost), event
            if isinstance(event, Data):
                pieces.append(event.data)
            ended = event.end_stream
        return b"".join(pieces)

    async def request_frames(self) -> list[str]:
        """All frames of a request that came, which must end by END_STREAM: "HEADERS", "DATA END_STREAM"."""
        if self.request.end_stream:
            return ["HEADERS END_STREAM"]
        return ["HEADERS", *(await self.answer()).frames]

    # what goes

    async def headers(self, fields: Sequence[Field], *, end: bool = False) -> None:
        await self.peer.send_headers(self.id, fields, end=end)

    async def data(self, data: bytes, *, end: bool = False) -> None:
        """One DATA frame, flow control or not."""
        self.sent_bytes += len(data)
        self.window -= len(data)
        self.peer.window -= len(data)
        frame = DataFrame(self.id, data)
        if end:
            frame.flags.add("END_STREAM")
        await self.peer.send(frame)

    async def body(self, data: bytes, *, end: bool = False) -> None:
        """DATA in frames as large as the windows allow, waiting for them to open."""
        view = memoryview(data)
        while view:
            while (room := min(self.window, self.peer.window, FRAME_BYTES)) <= 0:
                changed = self.peer.windows_changed
                self.blocked.set()
                await changed.wait()
            if self.blocked.is_set():
                self.blocked = trio.Event()
            piece, view = bytes(view[:room]), view[room:]
            await self.data(piece, end=end and not view)
        if end and not data:
            await self.data(b"", end=True)

    async def reset(self, code: int = 8) -> None:
        await self.peer.send(RstStreamFrame(self.id, code))

    async def respond(self, body: bytes = b"", trailers: Sequence[Field] = OK) -> None:
        """A whole response: headers, `body` as one message, trailers."""
        await self.headers(RESPONSE)
        await self.body(message(body))
        await self.headers(trailers, end=True)


class RawPeer:
    """One side of an HTTP/2 connection: `client_side` says which."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        client_side: bool,
        settings: dict[int, int] | None = None,
        on_request: Callable[[PeerStream], None] | None = None,
    ) -> None:
        self.streams: dict[int, PeerStream] = {}
        self.window = INITIAL_WINDOW
        self.initial_send_window = INITIAL_WINDOW
        self.windows_changed = trio.Event()
        self.peer_settings: dict[int, int] = {}
        self.settings_came = trio.Event()
        self.ended = trio.Event()
        """The other side has closed the connection."""
        self.credits = True
        """Give credit back for DATA at once."""
        self.answers_pings = True
        self.last_taken_id = 2**31 - 1
        """What this side's last GOAWAY said."""
        self.log: list[str] = []
        """Every frame that came, in words: "HEADERS 1 END_STREAM"."""
        self._stream = stream
        self._client_side = client_side
        self._settings = settings or {}
        self._on_request = on_request
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder(max_header_list_size=2**24)
        self._sending = trio.Lock()
        self._next_id = 1
        self._uncredited = 0
        self._block = b""
        self._block_ends_stream = False
        self._pongs: dict[bytes, trio.Event] = {}
        self._ping_ids = itertools.count(1)
        self._reading = trio.Event()
        self._reading.set()
        self._goaways_in, self._goaways = trio.open_memory_channel[GoAway](100)
        self._pings_in, self._pings = trio.open_memory_channel[bytes](10_000)

    # --- life

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Say hello, then read until the connection ends."""
        hello = SettingsFrame(0, self._settings).serialize()
        try:
            await self.send_bytes(PREFACE + hello if self._client_side else hello)
            task_status.started(self)
            await self._read()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended.set()
            for stream in self.streams.values():
                stream.sender.send_nowait(Lost())
            await self.aclose()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def closed(self) -> None:
        """Wait until the other side has closed the connection."""
        with trio.fail_after(PATIENCE_S):
            await self.ended.wait()

    def stop_reading(self) -> None:
        """Leave in the socket what comes from now on (what is read already still counts)."""
        self._reading = trio.Event()

    def go_on_reading(self) -> None:
        self._reading.set()

    # --- what goes

    async def send_bytes(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)

    def send_at_once(self, data: bytes) -> None:
        """Send little, on TCP, before anything else runs."""
        assert isinstance(self._stream, trio.SocketStream)
        assert os.write(self._stream.socket.fileno(), data) == len(data)

    def end_at_once(self) -> None:
        """Send the end of the file, before anything else runs."""
        assert isinstance(self._stream, trio.SocketStream)
        self._stream.socket.shutdown(socket.SHUT_WR)

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(frame.serialize() for frame in frames))

    async def send_headers(self, stream_id: int, fields: Sequence[Field], *, end: bool = False) -> None:
        async with self._sending:
            await self._stream.send_all(self.header_frames(stream_id, fields, end=end))

    def header_frames(self, stream_id: int, fields: Iterable[Field], *, end: bool = False) -> bytes:
        """The frames of a header list. They have to be sent in the order in which they were made."""
        block = self._encoder.encode(list(fields), huffman=False)
        first, rest = block[:FRAME_BYTES], block[FRAME_BYTES:]
        frames: list[Frame] = [HeadersFrame(stream_id, first)]
        while rest:
            frames.append(ContinuationFrame(stream_id, rest[:FRAME_BYTES]))
            rest = rest[FRAME_BYTES:]
        if end:
            frames[0].flags.add("END_STREAM")
        frames[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in frames)

    def data_frame(self, stream_id: int, data: bytes, *, end: bool = False) -> bytes:
        """A DATA frame, to be sent in one write with other frames."""
        frame = DataFrame(stream_id, data)
        if end:
            frame.flags.add("END_STREAM")
        return frame.serialize()

    async def open(self, fields: Sequence[Field], *, end: bool = False) -> PeerStream:
        """Open a stream with these request headers."""
        stream = self.new_stream()
        await stream.headers(fields, end=end)
        return stream

    def new_stream(self) -> PeerStream:
        """A stream of which nothing has been sent yet."""
        stream = self.streams[self._next_id] = PeerStream(self, self._next_id)
        self._next_id += 2
        return stream

    async def request(self, path: str = "/a.B/C", *extra: Field, body: bytes | None = b"") -> PeerStream:
        """A whole unary request: `body` as one message. None: no body, END_STREAM on HEADERS."""
        stream = await self.open(request_fields(path, *extra), end=body is None)
        if body is not None:
            await stream.body(message(body), end=True)
        return stream

    async def goaway(self, last_stream_id: int, code: int = 0, debug: bytes = b"") -> None:
        self.last_taken_id = last_stream_id
        await self.send(GoAwayFrame(0, last_stream_id, code, debug))

    async def ping(self) -> None:
        """Wait for the answer to a PING: everything sent before has been dealt with then."""
        opaque = struct.pack(">Q", next(self._ping_ids))
        pong = self._pongs[opaque] = trio.Event()
        await self.send(PingFrame(0, opaque))
        with trio.fail_after(PATIENCE_S):
            await pong.wait()

    async def pong(self, opaque: bytes) -> None:
        frame = PingFrame(0, opaque)
        frame.flags.add("ACK")
        await self.send(frame)

    async def change_settings(self, settings: dict[int, int]) -> None:
        await self.send(SettingsFrame(0, settings))

    async def credit(self, stream: PeerStream | None, size: int) -> None:
        """WINDOW_UPDATE of a stream, or of the connection."""
        await self.send(WindowUpdateFrame(0 if stream is None else stream.id, size))

    async def credit_everything(self) -> None:
        """Give back what was held back, and from now on at once."""
        self.credits = True
        await self._give_credit()

    # --- what comes

    async def expect_goaway(self) -> GoAway:
        with trio.fail_after(PATIENCE_S):
            return await self._goaways.receive()

    async def expect_ping(self) -> bytes:
        """A PING that this side was told not to answer."""
        with trio.fail_after(PATIENCE_S):
            return await self._pings.receive()

    async def _read(self) -> None:
        buffer = bytearray()
        preface_left = 0 if self._client_side else len(PREFACE)
        while True:
            await self._reading.wait()
            chunk = await self._stream.receive_some(65_536)
            if not chunk:
                return
            buffer += chunk
            if preface_left:
                if len(buffer) < preface_left:
                    continue
                assert buffer[:preface_left] == PREFACE, bytes(buffer[:preface_left])
                del buffer[:preface_left]
                preface_left = 0
            while len(buffer) >= FRAME_HEADER_BYTES:
                frame, length = Frame.parse_frame_header(memoryview(bytes(buffer[:FRAME_HEADER_BYTES])))
                if len(buffer) < FRAME_HEADER_BYTES + length:
                    break
                payload = bytes(buffer[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + length])
                del buffer[: FRAME_HEADER_BYTES + length]
                frame.parse_body(memoryview(payload))
                await self._hear(frame)

    async def _hear(self, frame: Frame) -> None:
        self.log.append(" ".join([frame_name(frame), str(frame.stream_id), *sorted(frame.flags)]))
        match frame:
            case HeadersFrame() | ContinuationFrame():
                self._hear_headers(frame)
            case DataFrame():
                await self._hear_data(frame)
            case RstStreamFrame():
                self._tell(frame.stream_id, Reset(frame.error_code))
            case SettingsFrame() if "ACK" not in frame.flags:
                self._hear_settings(frame.settings)
                acknowledgement = SettingsFrame(0)
                acknowledgement.flags.add("ACK")
                await self.send(acknowledgement)
            case PingFrame() if "ACK" in frame.flags:
                self._pongs.pop(frame.opaque_data).set()
            case PingFrame():
                if self.answers_pings:
                    await self.pong(frame.opaque_data)
                else:
                    self._pings_in.send_nowait(frame.opaque_data)
            case GoAwayFrame():
                self._goaways_in.send_nowait(
                    GoAway(frame.last_stream_id, frame.error_code, frame.additional_data)
                )
            case WindowUpdateFrame():
                if frame.stream_id:
                    if frame.stream_id in self.streams:
                        self.streams[frame.stream_id].window += frame.window_increment
                else:
                    self.window += frame.window_increment
                self._windows_change()
            case _:
                pass

    def _hear_headers(self, frame: HeadersFrame | ContinuationFrame) -> None:
        if isinstance(frame, HeadersFrame):
            self._block, self._block_ends_stream = b"", "END_STREAM" in frame.flags
        self._block += frame.data
        if "END_HEADERS" not in frame.flags:
            return
        decoded = self._decoder.decode(self._block, raw=True)
        event = Headers([(bytes(name), bytes(value)) for name, value in decoded], self._block_ends_stream)
        if frame.stream_id not in self.streams and not self._client_side:
            stream = self.streams[frame.stream_id] = PeerStream(self, frame.stream_id)
            stream.request = event
            if self._on_request is not None:
                self._on_request(stream)
        else:
            self._tell(frame.stream_id, event)

    async def _hear_data(self, frame: DataFrame) -> None:
        stream = self.streams[frame.stream_id]
        stream.received_bytes += len(frame.data)
        stream.uncredited += frame.flow_controlled_length
        self._uncredited += frame.flow_controlled_length
        self._tell(frame.stream_id, Data(frame.data, "END_STREAM" in frame.flags))
        if self.credits:
            await self._give_credit()

    async def _give_credit(self) -> None:
        frames = []
        if self._uncredited:
            frames.append(WindowUpdateFrame(0, self._uncredited))
            self._uncredited = 0
        for stream in self.streams.values():
            if stream.uncredited:
                frames.append(WindowUpdateFrame(stream.id, stream.uncredited))
                stream.uncredited = 0
        # A peer that has closed its side wants no credit any more.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.send(*frames)

    def _hear_settings(self, settings: dict[int, int]) -> None:
        self.peer_settings.update(settings)
        if INITIAL_WINDOW_SIZE in settings:
            growth = settings[INITIAL_WINDOW_SIZE] - self.initial_send_window
            self.initial_send_window += growth
            for stream in self.streams.values():
                stream.window += growth
            self._windows_change()
        self.settings_came.set()

    def _windows_change(self) -> None:
        self.windows_changed.set()
        self.windows_changed = trio.Event()

    def _tell(self, stream_id: int, event: StreamEvent) -> None:
        if stream_id in self.streams:
            self.streams[stream_id].sender.send_nowait(event)


class Backend:
    """Listens on a port of its own; every connection to it is a `RawPeer`, every stream on it a request."""

    def __init__(
        self, settings: dict[int, int] | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.settings = settings or {}
        """SETTINGS of the connections to come."""
        self._host, self._port = host, port
        self.address = ""
        self.peers: list[RawPeer] = []
        self.raw_script: Callable[[trio.SocketStream], Awaitable[None]] | None = None
        """Instead of HTTP/2: what to do with the connections to come."""
        self.prepare: Callable[[RawPeer], None] = lambda _: None
        """Called with each new peer before it says anything."""
        self._nursery: trio.Nursery | None = None
        self._listener: trio.SocketListener | None = None
        self._scope = trio.CancelScope()
        self._requests_in, self._requests = trio.open_memory_channel[PeerStream](100_000)
        self._peers_in, self._peers_out = trio.open_memory_channel[RawPeer](10_000)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        (self._listener,) = await trio.open_tcp_listeners(self._port, host=self._host)
        _limit_buffers(self._listener.socket)
        host, port = self._listener.socket.getsockname()[:2]
        self.address = f"{host}:{port}"
        async with self._listener, trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            with self._scope:
                while True:
                    stream = await self._listener.accept()
                    nursery.start_soon(self._serve, stream)

    async def stop_listening(self) -> None:
        self._scope.cancel()
        if self._listener is not None:
            await self._listener.aclose()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if self.raw_script is not None:
                await self.raw_script(stream)
                return
            peer = RawPeer(
                stream,
                client_side=False,
                settings=dict(self.settings),
                on_request=self._requests_in.send_nowait,
            )
            self.prepare(peer)
            self.peers.append(peer)
            self._peers_in.send_nowait(peer)
            await peer.run()

    async def request(self) -> PeerStream:
        """The next request, on whatever connection."""
        with trio.fail_after(PATIENCE_S):
            return await self._requests.receive()

    async def connection(self) -> RawPeer:
        """The next connection."""
        with trio.fail_after(PATIENCE_S):
            return await self._peers_out.receive()

    def no_request_came(self) -> bool:
        return self._requests.statistics().current_buffer_used == 0

    async def answer_all(self, script: Callable[[PeerStream], Awaitable[None]]) -> None:
        """Run `script` for each request, each in a task of its own, for ever."""
        async with trio.open_nursery() as nursery:
            async for stream in self._requests:
                nursery.start_soon(script, stream)


async def connect(address: str, nursery: trio.Nursery, *, settings: dict[int, int] | None = None) -> RawPeer:
    """A client's connection to `address`, its SETTINGS sent and the other side's seen."""
    return await start_client(await connected(address), nursery, settings=settings)


async def connected(address: str) -> trio.SocketStream:
    """A connection to `address` on which nothing has been said yet."""
    host, _, port = address.rpartition(":")
    sock = trio.socket.socket()
    _limit_buffers(sock)
    await sock.connect((host, int(port)))
    return trio.SocketStream(sock)


async def start_client(
    stream: trio.abc.Stream, nursery: trio.Nursery, *, settings: dict[int, int] | None = None
) -> RawPeer:
    peer = RawPeer(stream, client_side=True, settings=settings)
    await nursery.start(peer.run)
    with trio.fail_after(PATIENCE_S):
        await peer.settings_came.wait()
    return peer


def _limit_buffers(sock: trio.socket.SocketType) -> None:
    """Keep the kernel from hiding for long that nobody reads.

    For a socket that is not connected yet, or listens: a receive buffer that shrinks later makes the kernel throw away
    what it has promised to take, and wait for seconds until it is sent again.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)


def frame_name(frame: Frame) -> str:
    if isinstance(frame, ExtensionFrame):
        return f"0x{frame.type:x}"
    return {
        HeadersFrame: "HEADERS",
        DataFrame: "DATA",
        RstStreamFrame: "RST_STREAM",
        SettingsFrame: "SETTINGS",
        PingFrame: "PING",
        GoAwayFrame: "GOAWAY",
        WindowUpdateFrame: "WINDOW_UPDATE",
        ContinuationFrame: "CONTINUATION",
    }.get(type(frame), type(frame).__name__)
