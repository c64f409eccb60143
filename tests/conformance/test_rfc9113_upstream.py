"""RFC 9113, broken or kept by a backend: what is wrong with one stream costs that call alone."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from tests.conformance.rules import ByBackend, Costs, Rule, play_as_backend
from tests.http2.peer import RESPONSE, data, headers, ping, priority, raw, rst_stream, settings, window_update
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import message

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_HEADERS, PADDED = 0x4, 0x8
OK = [(b"grpc-status", b"0")]
WHOLE = headers(1, RESPONSE) + data(1, message(b"x")) + headers(1, OK, end_stream=True)
FINE = Costs(Status.OK, siblings_live=True)
ONE_CALL = Costs(Status.INTERNAL, siblings_live=True)
ALL = Costs(Status.UNAVAILABLE, siblings_live=False)


def response(*fields: tuple[bytes, bytes]) -> bytes:
    """Response headers with these fields behind an ordinary beginning."""
    return headers(1, [*RESPONSE, *fields])


def status(code: bytes) -> bytes:
    return headers(1, [(b":status", code), *RESPONSE[1:]])


def interim(code: bytes) -> bytes:
    return headers(1, [(b":status", code), (b"link", b"</a>; rel=preload")])


RULES = [
    Rule("4_1", "unknown frames are ignored", raw(0xEE, 0xFF, 0, b"x") + WHOLE, FINE),
    Rule("4_2", "a longer frame is an error", raw(DATA, 0, 1, bytes(16_385)), ALL),
    Rule("4_3", "what cannot be decoded is an error", headers(1, encoded=b"\xff\xff\xff\xff\xff\xff"), ALL),
    Rule("4_3", "a block is not interrupted", headers(1, RESPONSE, end_headers=False) + ping(), ALL),
    Rule("5_1", "DATA before HEADERS", data(1, b"x"), ONE_CALL),
    Rule("5_1", "DATA on an idle stream", data(9, b"x"), ALL),
    Rule("5_1", "HEADERS on an idle stream", headers(9, RESPONSE), ALL),
    Rule("5_1", "RST_STREAM on an idle stream", rst_stream(9), ALL),
    Rule("5_1", "WINDOW_UPDATE on an idle stream", window_update(9, 1), ALL),
    Rule("5_1", "PRIORITY on an idle stream is fine", priority(9) + WHOLE, FINE),
    Rule("5_1_1", "a server opens no streams", headers(2, RESPONSE), ALL),
    Rule("5_5", "unknown settings are ignored", raw(SETTINGS, 0, 0, b"\0\xab\0\0\0\1") + WHOLE, FINE),
    Rule("6_1", "DATA on stream 0", raw(DATA, 0, 0, b"x"), ALL),
    Rule(
        "6_1",
        "padding is taken off",
        headers(1, RESPONSE) + data(1, message(b"x"), padding=9) + headers(1, OK, end_stream=True),
        FINE,
    ),
    Rule(
        "6_1",
        "padding may not exceed the frame",
        headers(1, RESPONSE) + raw(DATA, PADDED, 1, b"\4\0\0\0"),
        ALL,
    ),
    Rule("6_4", "RST_STREAM has four bytes", raw(RST_STREAM, 0, 1, bytes(3)), ALL),
    Rule("6_4", "RST_STREAM ends the call", rst_stream(1, 2), ONE_CALL),
    Rule("6_5", "SETTINGS on a stream", raw(SETTINGS, 0, 1), ALL),
    Rule("6_5", "SETTINGS in mid-connection are fine", settings({3: 50}) + WHOLE, FINE),
    Rule("6_5_2", "a server enables no push", settings({2: 1}), ALL),
    Rule("6_5_2", "a window is at most 2^31-1", raw(SETTINGS, 0, 0, b"\0\4\x80\0\0\0"), ALL),
    Rule("6_6", "PUSH_PROMISE", raw(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), ALL),
    Rule("6_7", "PING has eight bytes", raw(PING, 0, 0, bytes(7)), ALL),
    Rule("6_8", "GOAWAY has eight bytes", raw(GOAWAY, 0, 0, bytes(7)), ALL),
    Rule("6_9", "WINDOW_UPDATE of nothing", window_update(0, 0), ALL),
    Rule("6_9_1", "a connection's window is at most 2^31-1", window_update(0, 2**31 - 1), ALL),
    Rule("6_10", "CONTINUATION needs HEADERS before it", raw(CONTINUATION, END_HEADERS, 1), ALL),
    Rule("8_1", "interim responses are passed over", headers(1, [(b":status", b"103")]) + WHOLE, FINE),
    *(
        Rule("8_1", f"an interim response with {code.decode()} is passed over", interim(code) + WHOLE, FINE)
        for code in (b"100", b"102", b"104", b"199")
    ),
    Rule(
        "8_1", "there may be several interim responses", interim(b"103") * 3 + interim(b"100") + WHOLE, FINE
    ),
    Rule(
        "8_1",
        "Trailers-Only may follow an interim response",
        interim(b"103") + headers(1, [*RESPONSE, *OK], end_stream=True),
        FINE,
    ),
    Rule("8_1", "an interim response is no response", interim(b"103") + data(1, b"x"), ONE_CALL),
    Rule(
        "8_1",
        "an interim response needs no trailers",
        interim(b"103") + headers(1, OK, end_stream=True),
        ONE_CALL,
    ),
    Rule("8_1", "no interim response behind the final one", headers(1, RESPONSE) + interim(b"103"), ONE_CALL),
    Rule(
        "8_1",
        "no interim response behind DATA",
        headers(1, RESPONSE) + data(1, message(b"x")) + interim(b"103"),
        ONE_CALL,
    ),
    Rule(
        "8_1",
        "an interim response may be malformed",
        headers(1, [(b":status", b"103"), (b"X", b"1")]),
        ONE_CALL,
    ),
    Rule(
        "8_1",
        "an interim response ends no stream",
        headers(1, [(b":status", b"103")], end_stream=True),
        ONE_CALL,
    ),
    Rule("8_1", "trailers end the stream", headers(1, RESPONSE) + headers(1, OK), ONE_CALL),
    Rule(
        "8_1",
        "trailers have no pseudo-fields",
        headers(1, RESPONSE) + headers(1, RESPONSE, end_stream=True),
        ONE_CALL,
    ),
    Rule("8_1_1", "more than content-length", response((b"content-length", b"1")) + data(1, b"xx"), ONE_CALL),
    Rule(
        "8_1_1",
        "less than content-length",
        response((b"content-length", b"9")) + headers(1, OK, end_stream=True),
        ONE_CALL,
    ),
    Rule("8_2_1", "no upper case in names", response((b"X", b"1")), ONE_CALL),
    Rule("8_2_1", "no line feed in values", response((b"x", b"a\nb")), ONE_CALL),
    Rule("8_2_2", "connection", response((b"connection", b"close")), ONE_CALL),
    Rule("8_2_2", "transfer-encoding", response((b"transfer-encoding", b"chunked")), ONE_CALL),
    Rule("8_3_2", "status is needed", headers(1, RESPONSE[1:]), ONE_CALL),
    Rule("8_3_2", "status comes first", headers(1, [*RESPONSE[1:], RESPONSE[0]]), ONE_CALL),
    Rule("8_3_2", "status once", headers(1, [RESPONSE[0], *RESPONSE]), ONE_CALL),
    Rule("8_3_2", "no pseudo-fields of requests", headers(1, [RESPONSE[0], (b":path", b"/")]), ONE_CALL),
    Rule("8_3_2", "status has three digits", status(b"20"), ONE_CALL),
    Rule("8_3_2", "status 000", status(b"000"), ONE_CALL),
    Rule("8_3_2", "status 999", status(b"999"), ONE_CALL),
    Rule("8_6", "status 101", status(b"101"), ONE_CALL),
]


@on_every_engine
@pytest.mark.parametrize("rule", RULES, ids=str)
@trio_test
async def test_rfc9113(engine: Engine, rule: Rule[ByBackend]) -> None:
    await play_as_backend(engine, rule)
