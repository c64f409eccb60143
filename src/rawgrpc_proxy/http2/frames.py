"""HTTP/2 frames on the wire: splitting the input into frames, and writing the frames that need no state.

What it does not do: give a frame a meaning. It never looks past the 9-byte header, except for SETTINGS and padding.
The invariant: at most one incomplete frame is held, and only after its declared length has been checked against the
advertised maximum. What is fed is split as far as is asked: the rest is held back for the next turn, uncopied.
Owns RFC 9113 §4.1, §4.2, §6.1 (padding) and §6.5.1.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ProtocolViolation
from rawgrpc_proxy.http2 import first_bytes

Data = bytes | memoryview

PREFACE = first_bytes.PREFACE
HEADER_BYTES = 9

# Frame types, RFC 9113 §6. Plain integers: an enum member costs a lookup for every frame.
DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

HEADER = struct.Struct(">LBL")
"""Length and type in one number, `length << 8 | type`, flags, stream id: three numbers cost less than five."""
_LONG = struct.Struct(">L")
_SETTING = struct.Struct(">HL")
_STREAM_ID_MASK = 0x7FFFFFFF
UNLIMITED = 2**31 - 1
"""The largest window and the highest stream id (RFC 9113 §5.1.1, §6.9.1), and a limit that the peer has not set."""

SMALL_BYTES = 4096
"""Payloads below this are copied: a view costs more, and keeps the chunk it was read in (64 KiB) alive."""

ALL = 1 << 62
"""More steps than any input has."""
_WITH_BLOCKS = (HEADERS, CONTINUATION)
_BLOCK_BYTES_A_STEP = 32
"""A header block is as much work as one other frame for each so many of its bytes, and one more for its list."""

Frame = tuple[int, int, int, Data]
"""type, flags, stream id, payload"""


class Setting(IntEnum):
    """The settings of RFC 9113 §6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class FrameSplitter:
    """Cuts a byte stream into frames.

    `max_frame_bytes` is what our SETTINGS advertise. `expect_preface` is True on the server's side. Payloads of some
    size are views into the chunk that was fed (a frame that spans chunks is copied together once), valid as long as
    somebody holds them.
    """

    def __init__(self, max_frame_bytes: int, *, expect_preface: bool, goes_on: bool = False) -> None:
        """`goes_on`: the first bytes were seen by somebody else, and a frame begins."""
        self._max_frame_bytes = max_frame_bytes
        self._partial = bytearray()
        self._held: Data = b""
        self._held_from = 0
        """Where in `_held` the first frame begins that was not split off yet."""
        self._frames_begin = first_bytes.preface_end if expect_preface else first_bytes.settings_start
        self._start: bytes | None = None if goes_on else b""
        """The first bytes, until it is certain that the peer speaks HTTP/2."""

    @property
    def begins_otherwise(self) -> bool:
        """Whether a client has said something that is no HTTP/2, though not enough to tell what."""
        return self._start is not None and not PREFACE.startswith(self._start)

    @property
    def has_begun(self) -> bool:
        """Whether it is certain that the peer speaks HTTP/2."""
        return self._start is None

    @property
    def unsplit(self) -> bytes:
        """What it was given that was not yielded: a copy."""
        return (self._start or b"") + bytes(self._partial) + bytes(memoryview(self._held)[self._held_from :])

    @property
    def holds_back(self) -> bool:
        """Whether `split` has stopped before the end of what it was given."""
        return self._held_from < len(self._held)

    @property
    def begun(self) -> tuple[int, int, int, int] | None:
        """The type, flags, stream and length of a frame of which a part has come, its header included."""
        if len(self._partial) < HEADER_BYTES:
            return None
        length_and_type, flags, stream_id = HEADER.unpack_from(self._partial)
        return length_and_type & 0xFF, flags, stream_id & _STREAM_ID_MASK, length_and_type >> 8

    def split(self, data: Data, steps: int = ALL) -> Iterator[Frame]:
        """Yield the frames that `data` completes, after those that were held back.

        It stops when these have come to so many `steps`, and holds the rest back: `split(b"")` goes on with it. A
        frame is a step; one with a header block is more, the longer it is. At least one frame is yielded.

        Raises `NotHttp2` for a peer that speaks something else, and `ProtocolViolation` with FRAME_SIZE_ERROR as soon
        as the header of a frame declares more than the maximum. Frames yielded before the error stand.
        """
        if self._start is not None:
            data = self._begin(self._start, data)
        offset = 0
        if self._held:
            held, offset = self._held, self._held_from
            self._held, self._held_from = b"", 0
            data, offset = (bytes(memoryview(held)[offset:]) + data, 0) if data else (held, offset)
        end = len(data)
        if self._partial:
            offset, frame = self._complete_partial(data)
            if frame is not None:
                yield frame
        view = memoryview(data)
        unpack, maximum, with_blocks = HEADER.unpack_from, self._max_frame_bytes, _WITH_BLOCKS
        while end - offset >= HEADER_BYTES:
            length_and_type, flags, stream_id = unpack(data, offset)
            length, frame_type = length_and_type >> 8, length_and_type & 0xFF
            if length > maximum:
                raise _oversized(frame_type, length, maximum)
            start = offset + HEADER_BYTES
            stop = start + length
            if stop > end:
                break
            offset = stop
            payload = data[start:stop] if length < SMALL_BYTES else view[start:stop]
            yield frame_type, flags, stream_id & _STREAM_ID_MASK, payload
            steps -= 1
            if frame_type in with_blocks:
                steps -= 1 + length // _BLOCK_BYTES_A_STEP
            if steps <= 0:
                self._held, self._held_from = data, offset
                return
        if offset < end:
            self._partial += view[offset:]

    def _begin(self, held: bytes, data: Data) -> Data:
        """Look at the first bytes, however they are cut, and answer what is to be split into frames.

        Until they tell what the peer speaks they are held back.
        """
        start = held + bytes(data[: first_bytes.MAX_FIRST_BYTES - len(held)])
        position = self._frames_begin(start)
        if position is None:
            self._start = start
            return b""
        self._start = None
        return (held + data if held else data)[position:]

    def _complete_partial(self, data: Data) -> tuple[int, Frame | None]:
        """Take just enough of `data` to finish the frame that is held back, and answer how much that was."""
        partial, taken = self._partial, 0
        missing = HEADER_BYTES - len(partial)
        if missing > 0:
            partial += data[:missing]
            if len(partial) < HEADER_BYTES:
                return len(data), None
            taken = missing
        length_and_type, flags, stream_id = HEADER.unpack_from(partial)
        length, frame_type = length_and_type >> 8, length_and_type & 0xFF
        if length > self._max_frame_bytes:
            raise _oversized(frame_type, length, self._max_frame_bytes)
        missing = HEADER_BYTES + length - len(partial)
        partial += memoryview(data)[taken : taken + missing]
        if len(partial) < HEADER_BYTES + length:
            return len(data), None
        self._partial = bytearray()
        payload = memoryview(partial)[HEADER_BYTES:]
        return taken + missing, (frame_type, flags, stream_id & _STREAM_ID_MASK, payload)


def _oversized(frame_type: int, length: int, maximum: int) -> ProtocolViolation:
    return ProtocolViolation(
        ErrorCode.FRAME_SIZE_ERROR,
        f"a frame of type {frame_type:#x} declares {length} bytes; SETTINGS_MAX_FRAME_SIZE is {maximum}",
    )


def without_padding(flags: int, payload: Data) -> Data:
    """The payload of a DATA or HEADERS frame without pad length and padding (RFC 9113 §6.1)."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a padded frame has no room for its pad length")
    padding = payload[0]
    if padding >= len(payload):
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "the padding is as long as the frame or longer")
    return payload[1 : len(payload) - padding]


def frame_header(frame_type: int, flags: int, stream_id: int, length: int) -> bytes:
    """The nine bytes in front of a payload of `length` bytes."""
    return HEADER.pack(length << 8 | frame_type, flags, stream_id)


def rst_stream(stream_id: int, error_code: int) -> bytes:
    """RFC 9113 §6.4."""
    return frame_header(RST_STREAM, 0, stream_id, 4) + _LONG.pack(error_code)


def window_update(stream_id: int, increment: int) -> bytes:
    """RFC 9113 §6.9; `increment` is 1 to 2^31-1, `stream_id` 0 means the connection."""
    return frame_header(WINDOW_UPDATE, 0, stream_id, 4) + _LONG.pack(increment)


def ping(opaque: Data, *, ack: bool = False) -> bytes:
    """RFC 9113 §6.7; `opaque` is eight bytes."""
    return frame_header(PING, ACK if ack else 0, 0, 8) + bytes(opaque)


def goaway(last_stream_id: int, error_code: int, debug: bytes = b"") -> bytes:
    """RFC 9113 §6.8."""
    return (
        frame_header(GOAWAY, 0, 0, 8 + len(debug))
        + _LONG.pack(last_stream_id)
        + _LONG.pack(error_code)
        + debug
    )


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame (RFC 9113 §6.5)."""
    return frame_header(SETTINGS, 0, 0, 6 * len(values)) + b"".join(
        _SETTING.pack(setting, value) for setting, value in values.items()
    )


SETTINGS_ACK = frame_header(SETTINGS, ACK, 0, 0)


def parse_settings(payload: Data, max_entries: int) -> dict[Setting, int]:
    """The known settings in `payload`, the last value of each; unknown ones are dropped (RFC 9113 §6.5.2).

    Raises `ProtocolViolation` for a length that is no multiple of six, a value out of its range, or more than
    `max_entries` entries.
    """
    if len(payload) % 6:
        raise ProtocolViolation(
            ErrorCode.FRAME_SIZE_ERROR, f"a SETTINGS frame has {len(payload)} bytes, not n × 6"
        )
    if len(payload) > 6 * max_entries:
        raise ProtocolViolation(
            ErrorCode.ENHANCE_YOUR_CALM,
            f"a SETTINGS frame has {len(payload) // 6} entries; {max_entries} are allowed",
        )
    known: dict[Setting, int] = {}
    for identifier, value in _SETTING.iter_unpack(payload):
        if not Setting.HEADER_TABLE_SIZE <= identifier <= Setting.MAX_HEADER_LIST_SIZE:
            continue
        setting = Setting(identifier)
        if setting is Setting.ENABLE_PUSH and value > 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}, not 0 or 1")
        if setting is Setting.INITIAL_WINDOW_SIZE and value > _STREAM_ID_MASK:
            raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        if setting is Setting.MAX_FRAME_SIZE and not 2**14 <= value < 2**24:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
        known[setting] = value
    return known


def read_u32(payload: Data, offset: int = 0) -> int:
    """Four bytes of `payload`, big-endian."""
    value: int = _LONG.unpack_from(payload, offset)[0]
    return value
