"""RFC 9113, said by a caller."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from tests.conformance.rules import (
    CALM,
    CLOSED,
    COMPRESSION,
    FLOW,
    FRAME_SIZE,
    PROTOCOL,
    Answered,
    ByCaller,
    Ends,
    Fine,
    Resets,
    Rule,
    changed,
    play_as_caller,
)
from tests.http2.peer import (
    REQUEST,
    block,
    data,
    goaway,
    headers,
    ping,
    priority,
    raw,
    rst_stream,
    settings,
    window_update,
)
from tests.proxy.house import on_every_engine

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
HELD = headers(1)
WHOLE = headers(1, end_stream=True)
MALFORMED = Resets(PROTOCOL)


def setting(identifier: int, value: int) -> bytes:
    return raw(SETTINGS, 0, 0, identifier.to_bytes(2) + value.to_bytes(4))


FRAMES = [
    Rule("4_1", "frames of unknown types are ignored", raw(0xEE, 0xFF, 0, b"what"), Fine()),
    Rule("4_1", "unknown flags are ignored", raw(WINDOW_UPDATE, 0xFF, 0, b"\0\0\0\1"), Fine()),
    Rule(
        "4_1",
        "the reserved bit is ignored",
        window_update(0, 1).replace(b"\x08\0\0\0\0\0", b"\x08\0\x80\0\0\0", 1),
        Fine(),
    ),
    Rule("4_2", "a frame of 16384 bytes is taken", raw(0xEE, 0, 0, bytes(16_384)), Fine()),
    Rule("4_2", "a longer frame is an error", raw(0xEE, 0, 0, bytes(16_385)), Ends(FRAME_SIZE)),
    Rule("4_2", "longer DATA is an error", HELD + raw(DATA, 0, 1, bytes(16_385)), Ends(FRAME_SIZE)),
    Rule("4_2", "longer HEADERS are an error", raw(HEADERS, END_HEADERS, 1, bytes(16_385)), Ends(FRAME_SIZE)),
    Rule(
        "4_3",
        "what cannot be decoded is an error",
        headers(1, encoded=b"\xff\xff\xff\xff\xff\xff"),
        Ends(COMPRESSION),
    ),
    Rule(
        "4_3",
        "a block is not interrupted by another stream",
        headers(1, end_headers=False) + headers(3),
        Ends(PROTOCOL),
    ),
    Rule(
        "4_3",
        "a block is not interrupted by DATA",
        headers(1, end_headers=False) + data(1, b"x"),
        Ends(PROTOCOL),
    ),
    Rule("4_3", "a block is not interrupted by PING", headers(1, end_headers=False) + ping(), Ends(PROTOCOL)),
    Rule(
        "4_3",
        "a block is not interrupted by unknown frames",
        headers(1, end_headers=False) + raw(0xEE, 0, 1),
        Ends(PROTOCOL),
    ),
    Rule(
        "4_3",
        "a block goes on on its own stream",
        headers(1, end_headers=False) + raw(CONTINUATION, END_HEADERS, 3),
        Ends(PROTOCOL),
    ),
]
STATES = [
    Rule("5_1", "idle DATA is an error", data(1, b"x"), Ends(PROTOCOL)),
    Rule("5_1", "idle RST_STREAM is an error", rst_stream(1), Ends(PROTOCOL)),
    Rule("5_1", "idle WINDOW_UPDATE is an error", window_update(1, 1), Ends(PROTOCOL)),
    Rule("5_1", "idle CONTINUATION is an error", raw(CONTINUATION, END_HEADERS, 1), Ends(PROTOCOL)),
    Rule("5_1", "idle PRIORITY is fine", priority(1), Fine()),
    Rule("5_1", "half-closed DATA resets the stream", WHOLE + data(1, b"x"), Resets(CLOSED)),
    Rule("5_1", "half-closed HEADERS reset the stream", WHOLE + headers(1, end_stream=True), Resets(CLOSED)),
    Rule("5_1", "half-closed WINDOW_UPDATE is fine", WHOLE + window_update(1, 1), Fine()),
    Rule("5_1", "half-closed PRIORITY is fine", WHOLE + priority(1), Fine()),
    Rule("5_1", "half-closed RST_STREAM is fine", WHOLE + rst_stream(1), Fine()),
    Rule("5_1", "closed DATA resets the stream", HELD + rst_stream(1) + data(1, b"x"), Resets(CLOSED)),
    Rule("5_1", "closed HEADERS are an error", HELD + rst_stream(1) + headers(1), Ends(CLOSED)),
    Rule("5_1", "closed WINDOW_UPDATE is fine", HELD + rst_stream(1) + window_update(1, 1), Fine()),
    Rule("5_1", "closed RST_STREAM is fine", HELD + rst_stream(1) + rst_stream(1), Fine()),
    Rule("5_1", "closed PRIORITY is fine", HELD + rst_stream(1) + priority(1), Fine()),
    Rule("5_1_1", "an even id is an error", headers(2), Ends(PROTOCOL)),
    Rule("5_1_1", "ids only grow", headers(5) + headers(3), Ends(PROTOCOL)),
    Rule("5_1_1", "stream 0 has no HEADERS", headers(1).replace(b"\0\0\0\1", b"\0\0\0\0", 1), Ends(PROTOCOL)),
    Rule("5_1_1", "ids may be left out", headers(5, end_stream=True), Fine()),
    Rule("5_3", "a stream that depends on itself is nobody's trouble", headers(1, priority=True), Fine()),
    Rule("5_5", "unknown settings are ignored", setting(0xAB, 1), Fine()),
]
EACH_FRAME = [
    Rule("6_1", "DATA on stream 0 is an error", raw(DATA, 0, 0, b"x"), Ends(PROTOCOL)),
    Rule("6_1", "padding may fill the frame", HELD + raw(DATA, PADDED, 1, b"\3\0\0\0"), Fine()),
    Rule("6_1", "padding may not exceed the frame", HELD + raw(DATA, PADDED, 1, b"\4\0\0\0"), Ends(PROTOCOL)),
    Rule("6_1", "padded DATA has a pad length", HELD + raw(DATA, PADDED, 1), Ends(FRAME_SIZE)),
    Rule(
        "6_2",
        "padding of HEADERS may not exceed the frame",
        raw(HEADERS, PADDED | END_HEADERS, 1, b"\xff\0"),
        Ends(PROTOCOL),
    ),
    Rule("6_2", "padded HEADERS have a pad length", raw(HEADERS, PADDED | END_HEADERS, 1), Ends(FRAME_SIZE)),
    Rule("6_2", "padded HEADERS are taken", headers(1, padding=7), Fine()),
    Rule("6_2", "HEADERS with priority are taken", headers(1, priority=True), Fine()),
    Rule(
        "6_2", "priority takes five bytes", raw(HEADERS, 0x20 | END_HEADERS, 1, b"\0\0\0"), Ends(FRAME_SIZE)
    ),
    Rule(
        "6_3",
        "PRIORITY on stream 0 is an error",
        priority(1).replace(b"\0\0\0\1", b"\0\0\0\0", 1),
        Ends(PROTOCOL),
    ),
    Rule(
        "6_3",
        "PRIORITY of another length resets the stream",
        HELD + raw(PRIORITY, 0, 1, bytes(4)),
        Resets(FRAME_SIZE),
    ),
    Rule("6_4", "RST_STREAM on stream 0 is an error", raw(RST_STREAM, 0, 0, bytes(4)), Ends(PROTOCOL)),
    Rule("6_4", "RST_STREAM has four bytes", HELD + raw(RST_STREAM, 0, 1, bytes(3)), Ends(FRAME_SIZE)),
    Rule("6_4", "an unknown error code is fine", HELD + raw(RST_STREAM, 0, 1, b"\xff" * 4), Fine()),
    Rule("6_5", "SETTINGS on a stream are an error", raw(SETTINGS, 0, 1), Ends(PROTOCOL)),
    Rule("6_5", "an acknowledgement has no payload", raw(SETTINGS, ACK, 0, bytes(6)), Ends(FRAME_SIZE)),
    Rule("6_5", "SETTINGS come in entries of six bytes", raw(SETTINGS, 0, 0, bytes(5)), Ends(FRAME_SIZE)),
    Rule("6_5", "empty SETTINGS are fine", settings(), Fine()),
    Rule(
        "6_5", "the last value of a setting counts", raw(SETTINGS, 0, 0, b"\0\4\0\0\0\0\0\4\0\1\0\0"), Fine()
    ),
    Rule("6_5_2", "ENABLE_PUSH is 0 or 1", setting(2, 2), Ends(PROTOCOL)),
    Rule("6_5_2", "a client may enable push", setting(2, 1), Fine()),
    Rule("6_5_2", "a window is at most 2^31-1", setting(4, 2**31), Ends(FLOW)),
    Rule("6_5_2", "a window of 2^31-1 is fine", setting(4, 2**31 - 1), Fine()),
    Rule("6_5_2", "a window of nothing is fine", setting(4, 0) + setting(4, 65_535), Fine()),
    Rule("6_5_2", "frames have at least 2^14 bytes", setting(5, 2**14 - 1), Ends(PROTOCOL)),
    Rule("6_5_2", "frames have at most 2^24-1 bytes", setting(5, 2**24), Ends(PROTOCOL)),
    Rule("6_5_2", "frames of 2^24-1 bytes are fine", setting(5, 2**24 - 1), Fine()),
    Rule("6_5_2", "no streams of ours are fine", setting(3, 0), Fine()),
    Rule("6_5_2", "no table of ours is fine", setting(1, 0), Fine()),
    Rule(
        "6_6",
        "a client sends no PUSH_PROMISE",
        HELD + raw(PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
        Ends(PROTOCOL),
    ),
    Rule("6_7", "PING on a stream is an error", raw(PING, 0, 1, bytes(8)), Ends(PROTOCOL)),
    Rule("6_7", "PING has eight bytes", raw(PING, 0, 0, bytes(7)), Ends(FRAME_SIZE)),
    Rule("6_7", "an answer that nobody asked for is ignored", ping(ack=True), Fine()),
    Rule("6_8", "GOAWAY on a stream is an error", raw(GOAWAY, 0, 1, bytes(8)), Ends(PROTOCOL)),
    Rule("6_8", "GOAWAY has eight bytes", raw(GOAWAY, 0, 0, bytes(7)), Ends(FRAME_SIZE)),
    Rule("6_8", "a client that goes may still ask", goaway(0), Fine()),
    Rule("6_9", "a WINDOW_UPDATE of nothing is an error", window_update(0, 0), Ends(PROTOCOL)),
    Rule("6_9", "a WINDOW_UPDATE of nothing resets the stream", HELD + window_update(1, 0), Resets(PROTOCOL)),
    Rule("6_9", "WINDOW_UPDATE has four bytes", raw(WINDOW_UPDATE, 0, 0, bytes(3)), Ends(FRAME_SIZE)),
    Rule(
        "6_9",
        "WINDOW_UPDATE of a stream has four bytes",
        HELD + raw(WINDOW_UPDATE, 0, 1, bytes(5)),
        Ends(FRAME_SIZE),
    ),
    Rule("6_9_1", "a connection's window is at most 2^31-1", window_update(0, 2**31 - 1), Ends(FLOW)),
    Rule("6_9_1", "a stream's window is at most 2^31-1", HELD + window_update(1, 2**31 - 1), Resets(FLOW)),
    Rule("6_9_1", "a window may be filled to 2^31-1", window_update(0, 2**31 - 1 - 65_535 - 2**20), Fine()),
    Rule(
        "6_9_2",
        "SETTINGS may not move a window past 2^31-1",
        HELD + window_update(1, 2**30) + setting(4, 2**31 - 1),
        Ends(FLOW),
    ),
    Rule(
        "6_10",
        "CONTINUATION needs HEADERS before it",
        HELD + raw(CONTINUATION, END_HEADERS, 1),
        Ends(PROTOCOL),
    ),
    Rule(
        "6_10",
        "CONTINUATION goes on a block",
        raw(HEADERS, 0, 1, block(REQUEST)[:5]) + raw(CONTINUATION, END_HEADERS, 1, block(REQUEST)[5:]),
        Fine(),
    ),
    Rule(
        "6_10",
        "empty CONTINUATIONs are few",
        headers(1, end_headers=False) + raw(CONTINUATION, 0, 1) * 9,
        Ends(CALM),
    ),
]
MESSAGES = [
    Rule("8_1", "trailers end the stream", HELD + headers(1, [(b"x", b"1")]), MALFORMED),
    Rule(
        "8_1",
        "trailers have no pseudo-fields",
        HELD + headers(1, [(b":path", b"/")], end_stream=True),
        MALFORMED,
    ),
    Rule("8_1", "trailers are taken", HELD + headers(1, [(b"x", b"1")], end_stream=True), Fine()),
    Rule(
        "8_1_1",
        "more than content-length",
        headers(1, changed({}, (b"content-length", b"1"))) + data(1, b"xx"),
        MALFORMED,
    ),
    Rule(
        "8_1_1",
        "less than content-length",
        headers(1, changed({}, (b"content-length", b"2"))) + data(1, b"x", end_stream=True),
        MALFORMED,
    ),
    Rule(
        "8_1_1",
        "content-length without a body",
        headers(1, changed({}, (b"content-length", b"2")), end_stream=True),
        MALFORMED,
    ),
    Rule(
        "8_1_1",
        "two content-lengths",
        headers(1, changed({}, (b"content-length", b"1"), (b"content-length", b"2"))),
        MALFORMED,
    ),
    Rule(
        "8_1_1",
        "the same content-length twice",
        headers(1, changed({}, (b"content-length", b"1"), (b"content-length", b"1"))),
        Fine(),
    ),
    Rule("8_2_1", "no upper case in names", headers(1, changed({}, (b"X", b"1"))), MALFORMED),
    Rule("8_2_1", "no blank in names", headers(1, changed({}, (b"a b", b"1"))), MALFORMED),
    Rule("8_2_1", "no empty names", headers(1, changed({}, (b"", b"1"))), MALFORMED),
    Rule("8_2_1", "no colon in names", headers(1, changed({}, (b"a:b", b"1"))), MALFORMED),
    Rule("8_2_1", "no NUL in values", headers(1, changed({}, (b"x", b"a\0b"))), MALFORMED),
    Rule("8_2_1", "no CR in values", headers(1, changed({}, (b"x", b"a\rb"))), MALFORMED),
    Rule("8_2_1", "no LF in values", headers(1, changed({}, (b"x", b"a\nb"))), MALFORMED),
    Rule("8_2_1", "obsolete text in values is taken", headers(1, changed({}, (b"x", b"\xe4"))), Fine()),
    Rule("8_2_2", "connection", headers(1, changed({}, (b"connection", b"close"))), MALFORMED),
    Rule("8_2_2", "keep-alive", headers(1, changed({}, (b"keep-alive", b"1"))), MALFORMED),
    Rule("8_2_2", "proxy-connection", headers(1, changed({}, (b"proxy-connection", b"1"))), MALFORMED),
    Rule(
        "8_2_2", "transfer-encoding", headers(1, changed({}, (b"transfer-encoding", b"chunked"))), MALFORMED
    ),
    Rule("8_2_2", "upgrade", headers(1, changed({}, (b"upgrade", b"h2c"))), MALFORMED),
    Rule("8_2_2", "te says trailers", headers(1, changed({b"te": b"gzip"})), MALFORMED),
    Rule(
        "8_2_3",
        "cookie crumbs are taken",
        headers(1, changed({}, (b"cookie", b"a=1"), (b"cookie", b"b=2"))),
        Fine(),
    ),
    Rule("8_3", "pseudo-fields come first", headers(1, [*REQUEST[1:], REQUEST[0]]), MALFORMED),
    Rule("8_3", "no unknown pseudo-fields", headers(1, [(b":what", b"1"), *REQUEST]), MALFORMED),
    Rule("8_3", "no status in a request", headers(1, [(b":status", b"200"), *REQUEST]), MALFORMED),
    Rule("8_3_1", "method is needed", headers(1, changed({b":method": None})), MALFORMED),
    Rule("8_3_1", "scheme is needed", headers(1, changed({b":scheme": None})), MALFORMED),
    Rule("8_3_1", "path is needed", headers(1, changed({b":path": None})), MALFORMED),
    Rule("8_3_1", "authority or host is needed", headers(1, changed({b":authority": None})), MALFORMED),
    Rule("8_3_1", "host will do", headers(1, changed({b":authority": None}, (b"host", b"a"))), Fine()),
    Rule(
        "8_3_1",
        "host may repeat the authority",
        headers(1, changed({}, (b"host", b"greeter.example"))),
        Fine(),
    ),
    Rule("8_3_1", "host may not be another", headers(1, changed({}, (b"host", b"a"))), MALFORMED),
    Rule("8_3_1", "method once", headers(1, [REQUEST[0], *REQUEST]), MALFORMED),
    Rule("8_3_1", "scheme once", headers(1, [REQUEST[1], *REQUEST]), MALFORMED),
    Rule("8_3_1", "path once", headers(1, [REQUEST[2], *REQUEST]), MALFORMED),
    Rule("8_3_1", "authority once", headers(1, [REQUEST[3], *REQUEST]), MALFORMED),
    Rule("8_3_1", "path is not empty", headers(1, changed({b":path": b""})), MALFORMED),
    Rule("8_3_1", "authority is not empty", headers(1, changed({b":authority": b""})), MALFORMED),
    Rule("8_3_1", "authority names no user", headers(1, changed({b":authority": b"a@b"})), MALFORMED),
    Rule(
        "8_3_1",
        "path is no star",
        headers(1, changed({b":path": b"*"}), end_stream=True),
        Answered(b"200", Status.UNIMPLEMENTED),
    ),
    Rule(
        "8_3_1",
        "method is POST",
        headers(1, changed({b":method": b"GET"}), end_stream=True),
        Answered(b"405", Status.INTERNAL),
    ),
    Rule(
        "8_5",
        "CONNECT has neither scheme nor path",
        headers(1, changed({b":method": b"CONNECT", b":scheme": None, b":path": None})),
        MALFORMED,
    ),
    Rule(
        "8_5",
        "CONNECT is not served",
        headers(1, changed({b":method": b"CONNECT"}), end_stream=True),
        Answered(b"405", Status.INTERNAL),
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", [*FRAMES, *STATES, *EACH_FRAME, *MESSAGES], ids=str)
@trio_test
async def test_rfc9113(engine: Engine, rule: Rule[ByCaller]) -> None:
    await play_as_caller(engine, rule)
