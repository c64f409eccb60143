"""What a frame says beside its header, as values for `match`: `details(frame)`. Total over any bytes.

DATA and HEADERS say nothing here: messages and header lists are events of their own (`events.py`).
"""

import struct

import attrs

from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.events import FrameSeen

FRAME_NAMES = (
    "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE",
    "CONTINUATION",
)  # fmt: skip
"""By type."""

_SETTING = struct.Struct(">HL")
_ID_MASK = 0x7FFFFFFF


@attrs.frozen
class Settings:
    """SETTINGS: its entries in order, unknown ones included."""

    ack: bool
    entries: tuple[tuple[int, int], ...]


@attrs.frozen
class Ping:
    """PING, and its eight bytes."""

    ack: bool
    opaque: bytes


@attrs.frozen
class GoAway:
    """GOAWAY."""

    last_stream_id: int
    error_code: int
    debug: bytes


@attrs.frozen
class WindowUpdate:
    """WINDOW_UPDATE."""

    increment: int


@attrs.frozen
class RstStream:
    """RST_STREAM."""

    error_code: int


@attrs.frozen
class Priority:
    """PRIORITY."""

    depends_on: int
    weight: int


@attrs.frozen
class PushPromise:
    """PUSH_PROMISE."""

    promised_stream_id: int


@attrs.frozen
class Nothing:
    """DATA, HEADERS, CONTINUATION, and types that nobody knows."""


@attrs.frozen
class Malformed:
    """The payload is not as its type has it."""

    reason: str


Details = Settings | Ping | GoAway | WindowUpdate | RstStream | Priority | PushPromise | Nothing | Malformed


def details(frame: FrameSeen) -> Details:
    """What this frame says. To be called while its payload is valid."""
    payload, length = frame.payload, len(frame.payload)
    match frame.type:
        case h2.SETTINGS if length % 6 == 0:
            return Settings(bool(frame.flags & h2.ACK), tuple(_SETTING.iter_unpack(payload)))
        case h2.PING if length == 8:
            return Ping(bool(frame.flags & h2.ACK), bytes(payload))
        case h2.GOAWAY if length >= 8:
            return GoAway(h2.read_u32(payload) & _ID_MASK, h2.read_u32(payload, 4), bytes(payload[8:]))
        case h2.WINDOW_UPDATE if length == 4:
            return WindowUpdate(h2.read_u32(payload) & _ID_MASK)
        case h2.RST_STREAM if length == 4:
            return RstStream(h2.read_u32(payload))
        case h2.PRIORITY if length == 5:
            return Priority(h2.read_u32(payload) & _ID_MASK, payload[4] + 1)
        case h2.PUSH_PROMISE:
            start = 1 if frame.flags & h2.PADDED else 0
            if length >= start + 4:
                return PushPromise(h2.read_u32(payload, start) & _ID_MASK)
        case h2.DATA | h2.HEADERS | h2.CONTINUATION:
            return Nothing()
        case other if other >= len(FRAME_NAMES):
            return Nothing()
    return Malformed(f"{frame_name(frame.type)} has a payload of {length} bytes")


def frame_name(frame_type: int) -> str:
    """`SETTINGS`, or `type 0x1f` for what RFC 9113 does not know."""
    return FRAME_NAMES[frame_type] if frame_type < len(FRAME_NAMES) else f"type {frame_type:#x}"


def flag_names(frame_type: int, flags: int) -> list[str]:
    """The flags of a frame by name; those that its type has not as a number."""
    names = []
    for bit, name, types in _FLAGS:
        if flags & bit and frame_type in types:
            names.append(name)
            flags &= ~bit
    return [*names, f"{flags:#x}"] if flags else names


_FLAGS = (
    (h2.END_STREAM, "END_STREAM", (h2.DATA, h2.HEADERS)),
    (h2.ACK, "ACK", (h2.SETTINGS, h2.PING)),
    (h2.END_HEADERS, "END_HEADERS", (h2.HEADERS, h2.PUSH_PROMISE, h2.CONTINUATION)),
    (h2.PADDED, "PADDED", (h2.DATA, h2.HEADERS, h2.PUSH_PROMISE)),
    (h2.PRIORITY_FLAG, "PRIORITY", (h2.HEADERS,)),
)
