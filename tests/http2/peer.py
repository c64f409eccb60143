"""The other end of a session, in raw frames: hyperframe writes and reads them, hpack codes the header blocks.

A test tells the session frames and compares its events; it hears the session's frames as short lines, so that an
exchange reads like a transcript: ``HEADERS 1 END_STREAM``, ``DATA 1 [5]``, ``RST_STREAM 1 CANCEL``. Nothing the
peer says goes through a state machine, so it may say anything.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.http2.events import ConnectionEnded, Event, StreamReset
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.http2.stream_state import CreditSource
from rawgrpc_proxy.net.connection import make_session

Header = tuple[bytes, bytes]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST: list[Header] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/helloworld.Greeter/SayHello"),
    (b":authority", b"greeter.example"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
RESPONSE: list[Header] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TRAILERS: list[Header] = [(b"grpc-status", b"0"), (b"grpc-message", b"")]
TRAILERS_ONLY: list[Header] = [*RESPONSE, (b"grpc-status", b"12")]

# Settings by their numbers (RFC 9113 section 6.5.2).
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535


# --- What a peer may say ---


def raw(
    frame_type: int, flags: int, stream_id: int, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """Any nine bytes and a payload, sensible or not."""
    declared = len(payload) if length is None else length
    return declared.to_bytes(3, "big") + bytes([frame_type, flags]) + stream_id.to_bytes(4, "big") + payload


def block(fields: Sequence[Header]) -> bytes:
    """A header block that leaves the decoder's table as it was."""
    return hpack.Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


def headers(
    stream_id: int,
    fields: Sequence[Header] = REQUEST,
    *,
    end_stream: bool = False,
    end_headers: bool = True,
    encoded: bytes | None = None,
    padding: int | None = None,
    priority: bool = False,
) -> bytes:
    frame = HeadersFrame(stream_id, data=block(fields) if encoded is None else encoded)
    if end_stream:
        frame.flags.add("END_STREAM")
    if end_headers:
        frame.flags.add("END_HEADERS")
    if padding is not None:
        frame.flags.add("PADDED")
        frame.pad_length = padding
    if priority:
        frame.flags.add("PRIORITY")
        frame.stream_weight = 15
    return frame.serialize()


def continuation(stream_id: int, encoded: bytes = b"", *, end_headers: bool = False) -> bytes:
    frame = ContinuationFrame(stream_id, data=encoded)
    if end_headers:
        frame.flags.add("END_HEADERS")
    return frame.serialize()


def data(
    stream_id: int, payload: bytes = b"", *, end_stream: bool = False, padding: int | None = None
) -> bytes:
    frame = DataFrame(stream_id, payload)
    if end_stream:
        frame.flags.add("END_STREAM")
    if padding is not None:
        frame.flags.add("PADDED")
        frame.pad_length = padding
    return frame.serialize()


def rst_stream(stream_id: int, error_code: int = ErrorCode.CANCEL) -> bytes:
    return RstStreamFrame(stream_id, int(error_code)).serialize()


def window_update(stream_id: int, increment: int) -> bytes:
    return raw(0x8, 0, stream_id, increment.to_bytes(4, "big"))


def priority(stream_id: int) -> bytes:
    return PriorityFrame(stream_id, depends_on=0).serialize()


def ping(opaque: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return PingFrame(0, opaque, flags=["ACK"] if ack else []).serialize()


def goaway(last_stream_id: int, error_code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> bytes:
    return GoAwayFrame(0, last_stream_id, int(error_code), debug).serialize()


def settings(values: dict[int, int] | None = None) -> bytes:
    return raw(0x4, 0, 0, b"".join(struct.pack(">HL", *item) for item in (values or {}).items()))


SETTINGS_ACK = SettingsFrame(0, flags=["ACK"]).serialize()


def push_promise(stream_id: int, promised: int) -> bytes:
    frame = PushPromiseFrame(stream_id, promised, block(REQUEST))
    frame.flags.add("END_HEADERS")
    return frame.serialize()


# --- What a peer hears ---


def parse(wire: bytes) -> list[Any]:
    """The frames in `wire`, which must hold them whole. Any: each kind has fields of its own."""
    found: list[Any] = []
    view = memoryview(wire)
    while view:
        frame, length = Frame.parse_frame_header(view[:9], strict=True)
        assert len(view) >= 9 + length, "the output ends in mid-frame"
        frame.parse_body(view[9 : 9 + length])
        found.append(frame)
        view = view[9 + length :]
    return found


def show(frame: Frame) -> str:
    """One line of a transcript."""
    stream_id = frame.stream_id
    match frame:
        case DataFrame():
            line = f"DATA {stream_id} [{len(frame.data)}]"
        case HeadersFrame():
            line = f"HEADERS {stream_id}"
        case ContinuationFrame():
            line = f"CONTINUATION {stream_id}"
        case RstStreamFrame():
            line = f"RST_STREAM {stream_id} {ErrorCode(frame.error_code).name}"
        case WindowUpdateFrame():
            line = f"WINDOW_UPDATE {stream_id} +{frame.window_increment}"
        case GoAwayFrame():
            line = f"GOAWAY {frame.last_stream_id} {ErrorCode(frame.error_code).name}"
        case SettingsFrame():
            line = "SETTINGS"
        case PingFrame():
            line = f"PING {frame.opaque_data.decode('latin-1')}"
        case _:
            raise AssertionError(f"a session has no business to send {frame!r}")
    flags = [flag for flag in ("ACK", "END_STREAM") if flag in frame.flags]
    return " ".join([line, *flags])


class Peer:
    """A session under test, and the peer that talks with it.

    `bodies` and `lists` collect what the session has sent on each stream, `receipts` what `take_output` gave.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.bodies: dict[int, bytes] = {}
        self.lists: dict[int, list[list[Header]]] = {}
        self.receipts: list[tuple[CreditSource, int]] = []
        self.decoder = hpack.Decoder()
        self.now = 0.0
        self._blocks: dict[int, bytes] = {}

    def tell(self, *wire: bytes) -> list[Event]:
        """The session's events for these bytes, in one piece."""
        return self.session.receive(b"".join(wire), self.now)

    def has_room(self) -> bool:
        """May the session open a stream? (Asked through a method, since mypy takes an attribute to stay as it was.)"""
        return self.session.room

    def wants_output(self) -> bool:
        """Has the session something to say?"""
        return self.session.wants_output

    def take(self) -> bytes:
        """The session's output, and its receipts into `receipts`."""
        chunks, receipts = self.session.take_output()
        self.receipts += [(source, credit) for source, credit in receipts]
        self.session.output_written()
        return b"".join(chunks)

    def frames(self) -> list[Any]:
        """The frames of the session's output."""
        found = parse(self.take().removeprefix(PREFACE))
        for frame in found:
            self._note(frame)
        return found

    def hear(self) -> list[str]:
        """The transcript of the session's output."""
        return [show(frame) for frame in self.frames()]

    def _note(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if isinstance(frame, DataFrame):
            self.bodies[stream_id] = self.bodies.get(stream_id, b"") + frame.data
        elif isinstance(frame, HeadersFrame | ContinuationFrame):
            encoded = self._blocks.pop(stream_id, b"") + frame.data
            if "END_HEADERS" in frame.flags:
                fields = [
                    (bytes(name), bytes(value)) for name, value in self.decoder.decode(encoded, raw=True)
                ]
                self.lists.setdefault(stream_id, []).append(fields)
            else:
                self._blocks[stream_id] = encoded


def new_session(engine: Engine, *, client_side: bool, **changes: Any) -> Session:
    """A session that has sent and received nothing."""
    return make_session(attrs.evolve(Http2Settings(), engine=engine, **changes), client_side=client_side)


def server(engine: Engine, *, peer_settings: dict[int, int] | None = None, **changes: Any) -> Peer:
    """A server's session past the exchange of SETTINGS, with nothing left to say."""
    peer = Peer(new_session(engine, client_side=False, **changes))
    peer.tell(PREFACE, settings(peer_settings), SETTINGS_ACK)
    peer.hear()
    return peer


def client(engine: Engine, *, peer_settings: dict[int, int] | None = None, **changes: Any) -> Peer:
    """A client's session past the exchange of SETTINGS, with nothing left to say."""
    peer = Peer(new_session(engine, client_side=True, **changes))
    peer.session.start()
    peer.tell(settings(peer_settings), SETTINGS_ACK)
    peer.hear()
    return peer


class Owed:
    """A source of DATA, which hears of its credit."""

    account = None

    def __init__(self) -> None:
        self.credited = 0

    def credit(self, size: int) -> None:
        self.credited += size


# --- Short words for what came of it ---


def kinds(events: Iterable[object]) -> list[str]:
    return [type(event).__name__ for event in events]


def resets(events: Iterable[Event]) -> list[tuple[int, int, bool]]:
    """Stream, error code and `by_peer` of the resets among the events."""
    return [(e.stream_id, e.error_code, e.by_peer) for e in events if isinstance(e, StreamReset)]


def assert_connection_error(peer: Peer, events: list[Event], code: ErrorCode) -> str:
    """The connection has ended with this code, the peer was told, and nothing more comes. Answers the reason."""
    assert isinstance(events[-1], ConnectionEnded), events
    assert kinds(events).count("ConnectionEnded") == 1
    assert events[-1].error.error_code == code
    assert peer.session.ended
    last = peer.frames()[-1]
    assert isinstance(last, GoAwayFrame)
    assert last.error_code == code
    assert last.additional_data.decode() == events[-1].error.message[: len(last.additional_data)]
    assert peer.tell(ping()) == []
    assert not peer.session.wants_output
    return events[-1].error.message


def assert_alive(peer: Peer) -> None:
    """The connection still answers."""
    peer.hear()
    assert kinds(peer.tell(ping(b"alive???"))) == []
    assert peer.hear() == ["PING alive??? ACK"]


def views(events: Iterable[Event]) -> list[Data]:
    """The payloads of the DATA among the events."""
    return [event.data for event in events if hasattr(event, "data")]
