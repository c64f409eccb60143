"""Raw frames, h2 connections past their handshake, and counters of calls, for the contract tests."""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Encoder
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

Header = tuple[bytes, bytes]
TraceFunction = Callable[[FrameType, str, Any], Any]

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
TRAILERS: list[Header] = [(b"grpc-status", b"0")]


def request_with(name: bytes, value: bytes) -> list[Header]:
    """Return the plain request with one field replaced where it stands, or added at the end."""
    if any(field == name for field, _ in REQUEST):
        return [(field, value if field == name else old) for field, old in REQUEST]
    return [*REQUEST, (name, value)]


# --- Frames as the peer would write them. Nothing here goes through h2, so nothing here is checked by it. ---


def block(fields: Sequence[Header]) -> bytes:
    """Encode a block which leaves the peer's table as it was: every field is sent as never indexed."""
    return Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


def headers(stream_id: int, fields: Sequence[Header], *, end_stream: bool = False) -> bytes:
    return headers_of_block(stream_id, block(fields), end_stream=end_stream)


def headers_of_block(
    stream_id: int, encoded: bytes, *, end_stream: bool = False, end_headers: bool = True
) -> bytes:
    frame = HeadersFrame(stream_id, data=encoded)
    if end_headers:
        frame.flags.add("END_HEADERS")
    if end_stream:
        frame.flags.add("END_STREAM")
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


def reset(stream_id: int, error_code: int = 8) -> bytes:
    return RstStreamFrame(stream_id, error_code).serialize()


def window_update(stream_id: int, increment: int) -> bytes:
    return WindowUpdateFrame(stream_id, increment).serialize()


def priority(stream_id: int, depends_on: int = 0) -> bytes:
    return PriorityFrame(stream_id, depends_on=depends_on).serialize()


def ping(payload: bytes = b"12345678") -> bytes:
    return PingFrame(0, payload).serialize()


def goaway(last_stream_id: int = 2**31 - 1, error_code: int = 0) -> bytes:
    return GoAwayFrame(0, last_stream_id, error_code).serialize()


def settings(values: dict[int, int] | None = None) -> bytes:
    body = b"".join(struct.pack(">HL", setting, value) for setting, value in (values or {}).items())
    return len(body).to_bytes(3, "big") + b"\x04\x00" + bytes(4) + body


def settings_ack() -> bytes:
    return SettingsFrame(0, flags=["ACK"]).serialize()


def push_promise(stream_id: int, promised_stream_id: int, fields: Sequence[Header]) -> bytes:
    frame = PushPromiseFrame(stream_id, promised_stream_id, block(fields))
    frame.flags.add("END_HEADERS")
    return frame.serialize()


def parse(wire: bytes) -> list[Frame]:
    frames: list[Frame] = []
    while wire:
        frame, length = Frame.parse_frame_header(memoryview(wire[:9]))
        frame.parse_body(memoryview(wire[9 : 9 + length]))
        frames.append(frame)
        wire = wire[9 + length :]
    return frames


# --- h2 connections, past the preface and both SETTINGS frames, with nothing left to send. ---


def connection(
    *,
    client_side: bool,
    checks: bool = False,
    local: dict[SettingCodes, int] | None = None,
    remote: dict[int, int] | None = None,
) -> H2Connection:
    """Make an h2 connection; ``checks`` turns validating and normalizing on, which is h2's own default."""
    conn = H2Connection(
        H2Configuration(
            client_side=client_side,
            header_encoding=None,
            validate_inbound_headers=checks,
            validate_outbound_headers=checks,
            normalize_inbound_headers=checks,
            normalize_outbound_headers=checks,
        )
    )
    if local is not None:
        conn.local_settings = Settings(client=client_side, initial_values=local)
    conn.initiate_connection()
    if not client_side:
        conn.receive_data(PREFACE)
    conn.receive_data(settings(remote))
    conn.receive_data(settings_ack())
    conn.clear_outbound_data_buffer()
    return conn


def server(
    *,
    checks: bool = False,
    local: dict[SettingCodes, int] | None = None,
    remote: dict[int, int] | None = None,
) -> H2Connection:
    return connection(client_side=False, checks=checks, local=local, remote=remote)


def client(
    *,
    checks: bool = False,
    local: dict[SettingCodes, int] | None = None,
    remote: dict[int, int] | None = None,
) -> H2Connection:
    return connection(client_side=True, checks=checks, local=local, remote=remote)


def server_with_request(*, end_stream: bool = False, checks: bool = False) -> H2Connection:
    """Make a server that has received a request on stream 1."""
    conn = server(checks=checks)
    conn.receive_data(headers(1, REQUEST, end_stream=end_stream))
    conn.clear_outbound_data_buffer()
    return conn


def client_with_request(*, end_stream: bool = False, checks: bool = False) -> H2Connection:
    """Make a client that has sent a request on stream 1."""
    conn = client(checks=checks)
    conn.send_headers(1, REQUEST, end_stream=end_stream)
    conn.clear_outbound_data_buffer()
    return conn


def client_with_response(*, end_stream: bool = False, checks: bool = False) -> H2Connection:
    """Make a client that has sent a request on stream 1 and received the head of its response."""
    conn = client_with_request(end_stream=end_stream, checks=checks)
    conn.receive_data(headers(1, RESPONSE))
    return conn


def forget_closed_streams(conn: H2Connection) -> None:
    """h2 moves closed streams out of ``streams`` when it counts the open ones, never before."""
    assert conn.open_inbound_streams >= 0
    assert conn.open_outbound_streams >= 0


def is_dead(conn: H2Connection) -> bool:
    """Whether h2 has closed the whole connection, told by whether it would still write a PING."""
    try:
        conn.ping(b"are you?")
    except ProtocolError:
        return True
    return False


def goaways(wire: bytes) -> list[int]:
    """Return the error codes of the GOAWAY frames on the wire."""
    return [frame.error_code for frame in parse(wire) if isinstance(frame, GoAwayFrame)]


def resets(wire: bytes) -> list[tuple[int, int]]:
    """Return stream and error code of the RST_STREAM frames on the wire."""
    return [(frame.stream_id, frame.error_code) for frame in parse(wire) if isinstance(frame, RstStreamFrame)]


def kinds(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


# --- Operation counts: what a cost depends on, without a clock. ---


def getter(owner: type, name: str) -> Callable[..., object]:
    """Return the function behind a property, to have its calls counted."""
    prop = vars(owner)[name]
    assert isinstance(prop, property)
    assert prop.fget is not None
    return prop.fget


@contextmanager
def counted_calls(function: Callable[..., object]) -> Iterator[Counter[CodeType]]:
    """Count the calls of one Python function; read ``count.total()`` afterwards."""
    code: CodeType = function.__code__
    count: Counter[CodeType] = Counter()

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code is code:
            count[code] += 1

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(previous)


@contextmanager
def counted_lines(function: Callable[..., object]) -> Iterator[Counter[CodeType]]:
    """Count the lines that one Python function runs through, loops included."""
    code: CodeType = function.__code__
    count: Counter[CodeType] = Counter()

    def trace_lines(_frame: FrameType, event: str, _arg: object) -> TraceFunction:
        if event == "line":
            count[code] += 1
        return trace_lines

    def trace_calls(frame: FrameType, _event: str, _arg: object) -> TraceFunction | None:
        return trace_lines if frame.f_code is code else None

    previous = sys.gettrace()
    sys.settrace(trace_calls)
    try:
        yield count
    finally:
        sys.settrace(previous)
