"""As much HTTP/2 (RFC 9113) as a client needs that wants to misbehave, or to hold thousands of calls in little memory.

Frames are written and split, and requests of gRPC calls encoded; there are no sessions, no windows, no decoded headers.
It stands apart from the proxy's own code, which would otherwise be measured with itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
HEADER_BYTES = 9


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def window_update(stream_id: int, size: int) -> bytes:
    """So many bytes more for a stream; 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4))


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame with these values."""
    payload = b"".join(name.to_bytes(2) + value.to_bytes(4) for name, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def grpc_request(path: str, authority: str) -> bytes:
    """The header block of a call."""
    fields = (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
        ("content-type", "application/grpc"), ("te", "trailers"),
    )  # fmt: skip
    return header_block(fields)


def header_block(fields: Iterable[tuple[str, str]]) -> bytes:
    """These fields, without indexing and without Huffman coding (RFC 7541 §6.2.2)."""
    return b"".join(b"\0" + b"".join(map(_string, field)) for field in fields)


def _string(text: str) -> bytes:
    # The length has a prefix of 7 bits (§5.1), and the bit before it is 0: no Huffman coding (§5.2).
    rest = len(text) - 127
    if rest < 0:
        return bytes((len(text),)) + text.encode()
    length = bytearray((127,))
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + text.encode()


def acknowledgement(kind: int, payload: bytes) -> bytes:
    """What answers a SETTINGS or PING frame."""
    return frame(kind, ACK, 0, payload if kind == PING else b"")


def goaway_reason(payload: bytes) -> str:
    """Why a GOAWAY ends the connection, in words; empty if that is no error."""
    code = int.from_bytes(payload[4:8])
    return f"GOAWAY {code} {payload[8:].decode(errors='replace')}" if code else ""


def take_frames(buffer: bytearray) -> Iterator[tuple[int, int, int, bytes]]:
    """Take the whole frames from the front of the buffer: kind, flags, stream id and payload of each."""
    start = 0
    try:
        while len(buffer) - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + int.from_bytes(buffer[start : start + 3])
            if len(buffer) < end:
                return
            kind, flags = buffer[start + 3], buffer[start + 4]
            stream_id = int.from_bytes(buffer[start + 5 : start + HEADER_BYTES])
            payload = bytes(buffer[start + HEADER_BYTES : end])
            start = end
            yield kind, flags, stream_id, payload
    finally:
        del buffer[:start]
