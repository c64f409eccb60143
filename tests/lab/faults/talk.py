"""Two ends with raw frames, and the middle between them: `Talk(faults...)`.

    talk = Talk(Fault(...))
    talk.client.request(1, b"hello")
    talk.server.respond(1, b"there")
    assert talk.client.log == [...]

Frames are hyperframe's, header blocks hpack's. Each end keeps its flow-control account, and fails the test where DATA
comes that it has not allowed.
"""

import random
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import hpack
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

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.faults.fault import Fault, Strike
from rawgrpc_proxy.lab.faults.middle import Middle
from rawgrpc_proxy.net.tapped import Link

Field = tuple[bytes, bytes]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RESPONSE: list[Field] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK: list[Field] = [(b"grpc-status", b"0")]
WINDOW = 65_535
INITIAL_WINDOW_SIZE = 4


def message(payload: bytes) -> bytes:
    return struct.pack(">BL", 0, len(payload)) + payload


def request_fields(path: str = "/a.B/C") -> list[Field]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"backend"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


class Scripted:
    """All faults strike their connection, or each call of their method."""

    def __init__(self, faults: Iterable[Fault], *, active: bool = True) -> None:
        self.faults = list(faults)
        self.active = active
        self.done: list[tuple[Fault, int]] = []

    def link_opened(self, link: Link) -> list[Strike]:
        return [Strike(fault, seed) for seed, fault in enumerate(self.faults) if fault.of_link]

    def call_begun(self, link: Link, method: str, headers: Sequence[Field]) -> list[Strike]:
        return [
            Strike(fault, seed)
            for seed, fault in enumerate(self.faults)
            if not fault.of_link and fault.method in {method, "/*"}
        ]

    def struck(self, strike: Strike, link: Link, stream_id: int) -> None:
        self.done.append((strike.fault, stream_id))


class End:
    """One end. `log` is what it got, in words; `got` the payloads of DATA by stream."""

    def __init__(self, send: Callable[[bytes], None], *, client: bool) -> None:
        self._send = send
        self.client = client
        self.log: list[str] = []
        self.got: defaultdict[int, bytes] = defaultdict(bytes)
        self.fields: defaultdict[int, list[list[Field]]] = defaultdict(list)
        self.raw = b""
        self._unread = b""
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._block = b""
        self._block_of: Frame | None = None
        self.credits = True
        """Give credit back for DATA at once, in the unit of `credit_every`."""
        self.credit_every = 1
        self._uncredited: defaultdict[int, int] = defaultdict(int)
        self.window = WINDOW
        self.initial = WINDOW
        """What this end allows, of its streams."""
        self.allows: dict[int, int] = {0: WINDOW}
        self.send_initial = WINDOW
        self.send_windows: dict[int, int] = {0: WINDOW}
        self.settings_in: dict[int, int] = {}

    # what goes

    def raw_bytes(self, data: bytes) -> None:
        self._send(data)

    def frame(self, frame: Frame) -> None:
        self._send(frame.serialize())

    def hello(self, settings: dict[int, int] | None = None) -> None:
        settings = settings or {}
        self.initial = settings.get(INITIAL_WINDOW_SIZE, WINDOW)
        hello = SettingsFrame(0, settings).serialize()
        self._send(PREFACE + hello if self.client else hello)

    def headers(self, stream_id: int, fields: Sequence[Field], *, end: bool = False, pieces: int = 1) -> None:
        block = self._encoder.encode(fields)
        size = -(-len(block) // pieces)
        parts = [block[start : start + size] for start in range(0, len(block), size)]
        for number, part in enumerate(parts):
            frame: Frame = ContinuationFrame(stream_id, part) if number else HeadersFrame(stream_id, part)
            if number == len(parts) - 1:
                frame.flags.add("END_HEADERS")
            if end and not number:
                frame.flags.add("END_STREAM")
            self.frame(frame)

    def data(self, stream_id: int, data: bytes, *, end: bool = False, pad: int | None = None) -> None:
        """One frame; the test fails if there is no window for it."""
        frame = DataFrame(stream_id, data, pad_length=pad or 0)
        if pad is not None:
            frame.flags.add("PADDED")
        if end:
            frame.flags.add("END_STREAM")
        flow = len(data) + (0 if pad is None else pad + 1)
        for number in (0, stream_id):
            self.send_windows.setdefault(number, self.send_initial)
            self.send_windows[number] -= flow
            assert not flow or self.send_windows[number] >= 0, f"no window for {flow} bytes on {number}"
        self.frame(frame)

    def room(self, stream_id: int) -> int:
        return min(self.send_windows[0], self.send_windows.get(stream_id, self.send_initial))

    def body(self, stream_id: int, data: bytes, *, end: bool = False) -> int:
        """As much as there is room for, in frames; answers how much that was."""
        sent = 0
        while sent < len(data) and (room := min(self.room(stream_id), 16_384)) > 0:
            piece = data[sent : sent + room]
            sent += len(piece)
            self.data(stream_id, piece, end=end and sent == len(data))
        return sent

    def request(
        self, stream_id: int, payload: bytes = b"", path: str = "/a.B/C", *, end: bool = True
    ) -> None:
        self.headers(stream_id, request_fields(path))
        self.data(stream_id, message(payload), end=end)

    def respond(self, stream_id: int, *payloads: bytes, trailers: Sequence[Field] = OK) -> None:
        self.headers(stream_id, RESPONSE)
        for payload in payloads:
            self.data(stream_id, message(payload))
        self.headers(stream_id, trailers, end=True)

    def reset(self, stream_id: int, code: int = 8) -> None:
        self.frame(RstStreamFrame(stream_id, code))

    def allow(self, stream_id: int, size: int) -> None:
        self.allows[stream_id] = self.allows.get(stream_id, self.initial) + size
        self.frame(WindowUpdateFrame(stream_id, size))

    # what comes

    def receive(self, data: bytes) -> None:
        self.raw += data
        self._unread += data
        if not self.client and self._unread.startswith(PREFACE):
            self._unread = self._unread[len(PREFACE) :]
        while len(self._unread) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._unread[:9]))
            if len(self._unread) < 9 + length:
                return
            body, self._unread = self._unread[9 : 9 + length], self._unread[9 + length :]
            frame.parse_body(memoryview(body))
            self._heard(frame)

    def _heard(self, frame: Frame) -> None:
        number = frame.stream_id
        end = " END" if "END_STREAM" in frame.flags else ""
        match frame:
            case HeadersFrame() | ContinuationFrame():
                if isinstance(frame, HeadersFrame):
                    self._block, self._block_of = b"", frame
                self._block += frame.data
                if "END_HEADERS" in frame.flags:
                    fields = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(self._block, raw=True)]
                    self.fields[number].append(fields)
                    assert self._block_of is not None
                    end = " END" if "END_STREAM" in self._block_of.flags else ""
                    self.log.append(f"HEADERS {number} {_short(fields)}{end}")
            case DataFrame():
                padded = f" padded {frame.pad_length}" if "PADDED" in frame.flags else ""
                self.log.append(f"DATA {number} {len(frame.data)}{padded}{end}")
                self.got[number] += frame.data
                self._flow(number, frame.flow_controlled_length)
            case RstStreamFrame():
                self.log.append(f"RST {number} {frame.error_code}")
            case WindowUpdateFrame():
                self.send_windows.setdefault(number, self.send_initial)
                self.send_windows[number] += frame.window_increment
                assert self.send_windows[number] < 2**31, "the window is larger than may be"
            case SettingsFrame() if "ACK" in frame.flags:
                self.log.append("SETTINGS ACK")
            case SettingsFrame():
                self._settings(frame)
            case GoAwayFrame():
                self.log.append(f"GOAWAY {frame.last_stream_id} {frame.error_code}")
            case PingFrame():
                self.log.append(f"PING{' ACK' if frame.flags else ''} {bytes(frame.opaque_data)!r}")
            case ExtensionFrame():
                self.log.append(f"TYPE {frame.type:#x} {number}")
            case _:
                self.log.append(type(frame).__name__)

    def _settings(self, frame: SettingsFrame) -> None:
        self.log.append(f"SETTINGS {dict(frame.settings)}")
        self.settings_in.update(frame.settings)
        initial = frame.settings.get(INITIAL_WINDOW_SIZE, self.send_initial)
        for number in self.send_windows:
            if number:
                self.send_windows[number] += initial - self.send_initial
        self.send_initial = initial

    def acknowledge(self) -> None:
        self.frame(SettingsFrame(0, flags=["ACK"]))

    def _flow(self, stream_id: int, size: int) -> None:
        for number in (0, stream_id):
            self.allows.setdefault(number, self.initial)
            self.allows[number] -= size
            assert not size or self.allows[number] >= 0, f"{-self.allows[number]} bytes too many on {number}"
        if self.credits and size:
            for number in (0, stream_id):
                self._uncredited[number] += size
                if self._uncredited[number] >= self.credit_every:
                    self.allow(number, self._uncredited.pop(number))


def _short(fields: Sequence[Field]) -> str:
    known = dict(fields)
    for name in (b":path", b"grpc-status", b":status"):
        if name in known:
            text = known[name].decode()
            return (
                f"{text}+{known[b':status'].decode()}"
                if name == b"grpc-status" and b":status" in known
                else text
            )
    return "?"


class Talk:
    """See above. Time is `now`; `pieces` cuts what both send."""

    def __init__(
        self,
        *faults: Fault,
        side: Side = Side.DOWNSTREAM,
        active: bool = True,
        client: dict[int, int] | None = None,
        server: dict[int, int] | None = None,
        cuts: random.Random | None = None,
        hello: bool = True,
    ) -> None:
        self.now = 0.0
        self.striker = Scripted(faults, active=active)
        link = Link(number=1, side=side, peer="127.0.0.1:1", tls=None)
        self.middle = Middle(link, self.striker, self.now)
        self._cuts = cuts
        self._peer_is_client = side is Side.DOWNSTREAM
        self.client = End(lambda data: self._sent(data, peer=self._peer_is_client), client=True)
        self.server = End(lambda data: self._sent(data, peer=not self._peer_is_client), client=False)
        self._queue: list[tuple[bool, bytes]] = []
        self._passing = False
        if hello:
            self.client.hello(client)
            self.server.hello(server)
            self.client.acknowledge()
            self.server.acknowledge()
            self.client.log.clear()
            self.server.log.clear()

    @property
    def peer(self) -> End:
        return self.client if self._peer_is_client else self.server

    @property
    def connection(self) -> End:
        return self.server if self._peer_is_client else self.client

    def _sent(self, data: bytes, *, peer: bool) -> None:
        self._queue.append((peer, data))
        self._pass()

    def _pass(self) -> None:
        if self._passing:
            return
        self._passing = True
        try:
            self._collect()
            while self._queue:
                peer, data = self._queue.pop(0)
                feed = self.middle.from_peer if peer else self.middle.from_connection
                for piece in self._cut(data):
                    feed(piece, self.now)
                    self._collect()
        finally:
            self._passing = False

    def _cut(self, data: bytes) -> list[bytes]:
        if self._cuts is None:
            return [data]
        pieces = []
        while data:
            size = self._cuts.choice([1, 2, 7, 9, 10, 50, 5000])
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    def _collect(self) -> None:
        for end, out in (
            (self.peer, self.middle.to_peer(self.now)),
            (self.connection, self.middle.to_connection(self.now)),
        ):
            for chunk in out:
                end.receive(bytes(chunk))

    def wait(self, seconds: float) -> None:
        """Let time pass, calling when it is asked for."""
        until = self.now + seconds
        while self.middle.next_at <= until:
            self.now = max(self.now, self.middle.next_at)
            self.middle.advance(self.now)
            self._pass()
        self.now = until

    def is_over(self) -> bool:
        """Whether nothing passes any more."""
        return self.middle.over

    @property
    def struck(self) -> list[int]:
        """The streams of all strikes that were told."""
        return [stream_id for _, stream_id in self.striker.done]
