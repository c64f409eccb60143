"""RFC 9113 §5.2 and §6.9: who may send how much, in both directions and on both sides of the proxy."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import DEFAULT_WINDOW, MAX_WINDOW, Engine
from tests.conformance.exchanges import (
    CLOSED,
    SMALL_WINDOWS,
    Exchange,
    Scene,
    Step,
    answers,
    asked,
    caller_gives_credit,
    caller_gives_no_credit,
    calls,
    gives_up,
    play_with_a_backend,
    play_with_a_caller,
    quiet,
    told,
)
from tests.conformance.rules import changed
from tests.http2.peer import (
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RESPONSE,
    TRAILERS,
    data,
    headers,
    rst_stream,
    settings,
    window_update,
)
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, RawPeer

ASK, ASK_3 = headers(1, end_stream=True), headers(3, end_stream=True)
NO_WINDOW = {INITIAL_WINDOW_SIZE: 0}
END = "HEADERS 1 grpc-status 0 END_STREAM"
WIDE = {INITIAL_WINDOW_SIZE: MAX_WINDOW}
"""Windows of streams that nothing fills: what holds DATA back then is the connection's."""
FULL = ["DATA 1 [16384]", "DATA 1 [16384]", "DATA 1 [16384]", "DATA 1 [16383]"]
"""As much as the connection's window has at first."""


def window(size: int) -> bytes:
    """SETTINGS with this initial window."""
    return settings({INITIAL_WINDOW_SIZE: size})


# --- What the proxy sends to a caller ---

TO_A_CALLER = [
    Exchange(
        "5_2_1",
        "only DATA is held back",
        [ASK, answers(), "HEADERS 1 200", END],
        NO_WINDOW,
    ),
    Exchange(
        "5_2_1",
        "headers do not wait for the window that holds DATA back",
        [ASK, answers(b"12345"), "HEADERS 1 200", quiet, window_update(1, 5), "DATA 1 [5]", END],
        NO_WINDOW,
    ),
    Exchange(
        "5_2_1",
        "a stream without a window does not hold up another",
        [
            *(ASK, answers(b"12345"), "HEADERS 1 200"),
            *(ASK_3, answers(b"123"), "HEADERS 3 200", quiet),
            *(window_update(3, 3), "DATA 3 [3]", "HEADERS 3 grpc-status 0 END_STREAM", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "5_2_1",
        "a stream that was reset with DATA waiting sends none of it",
        [ASK, answers(b"12345"), "HEADERS 1 200", rst_stream(1), window_update(1, 5), quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "a window of nothing lets nothing out",
        [ASK, answers(b"1", ends=False), "HEADERS 1 200", quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "a WINDOW_UPDATE lets out as much as it says",
        [
            *(ASK, answers(b"12345"), "HEADERS 1 200"),
            *(window_update(1, 3), "DATA 1 [3]", quiet, window_update(1, 1), "DATA 1 [1]", quiet),
            *(window_update(1, 7), "DATA 1 [1]", END),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "what a WINDOW_UPDATE gave too much is kept",
        [
            *(ASK, window_update(1, 4), answers(b"123", ends=False), "HEADERS 1 200", "DATA 1 [3]"),
            *(window(1), "SETTINGS ACK", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "WINDOW_UPDATEs add up",
        [ASK, window_update(1, 2) * 3, answers(b"1234567"), "HEADERS 1 200", "DATA 1 [6]", quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "the connection's WINDOW_UPDATE opens no stream",
        [ASK, answers(b"12345"), "HEADERS 1 200", window_update(0, 100), quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "the reserved bit of an increment is no part of it",
        [
            *(ASK, answers(b"12345"), "HEADERS 1 200"),
            *(window_update(1, 2**31 + 2), "DATA 1 [2]", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9_1",
        "a stream's window at its end",
        [ASK, answers(bytes(DEFAULT_WINDOW + 1)), "HEADERS 1 200", *FULL, quiet],
    ),
    Exchange(
        "6_9_1",
        "the connection's window at its end",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW + 10)), "HEADERS 1 200", *FULL, quiet),
            *(window_update(0, 4), "DATA 1 [4]", quiet),
            *(window_update(0, 100), "DATA 1 [6]", END),
        ],
        WIDE,
    ),
    Exchange(
        "6_9_1",
        "a stream's WINDOW_UPDATE does not open the connection",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW + 10)), "HEADERS 1 200", *FULL, quiet),
            *(window_update(1, 1), quiet),
        ],
        {INITIAL_WINDOW_SIZE: 100_000},
    ),
    Exchange(
        "6_9_1",
        "the stream first and then the connection",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW + 1)), "HEADERS 1 200", *FULL, quiet),
            *(window_update(1, 1), quiet, window_update(0, 1), "DATA 1 [1]", END),
        ],
    ),
    Exchange(
        "6_9_1",
        "the connection first and then the stream",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW + 1)), "HEADERS 1 200", *FULL, quiet),
            *(window_update(0, 1), quiet, window_update(1, 1), "DATA 1 [1]", END),
        ],
    ),
    Exchange(
        "6_9_1",
        "the smaller of the two windows counts",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW + 10)), "HEADERS 1 200", *FULL),
            *(window_update(0, 7) + window_update(1, 3), "DATA 1 [3]", quiet),
            *(window_update(0, 100), quiet),
        ],
    ),
    Exchange(
        "6_9_1",
        "streams share the connection's window",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW), ends=False), "HEADERS 1 200", *FULL),
            *(ASK_3, answers(b"12345"), "HEADERS 3 200", quiet),
            *(window_update(0, 5), "DATA 3 [5]", "HEADERS 3 grpc-status 0 END_STREAM"),
        ],
        WIDE,
    ),
    Exchange(
        "6_9_1",
        "the last frame may leave a window of nothing",
        [ASK, answers(b"12345"), "HEADERS 1 200", "DATA 1 [5]", END],
        {INITIAL_WINDOW_SIZE: 5},
    ),
    Exchange(
        "6_9_1",
        "a WINDOW_UPDATE may come before the answer",
        [ASK + window_update(1, 2), answers(b"12345"), "HEADERS 1 200", "DATA 1 [2]", quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_9_2",
        "the first SETTINGS count for the first stream",
        [ASK, answers(b"12345"), "HEADERS 1 200", "DATA 1 [2]", quiet],
        {INITIAL_WINDOW_SIZE: 2},
    ),
    Exchange(
        "6_9_2",
        "without SETTINGS a window has 65535 bytes",
        [window_update(0, 10), ASK, answers(bytes(DEFAULT_WINDOW + 1)), "HEADERS 1 200", *FULL, quiet],
    ),
    Exchange(
        "6_9_2",
        "SETTINGS open the windows of streams that wait",
        [
            *(ASK, answers(b"12345"), "HEADERS 1 200", quiet),
            *(window(3), "SETTINGS ACK", "DATA 1 [3]", quiet, window(9), "SETTINGS ACK", "DATA 1 [2]", END),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9_2",
        "SETTINGS count for streams that open later",
        [
            *(ASK, answers(b"12345"), "HEADERS 1 200", "DATA 1 [5]", END),
            *(window(2), "SETTINGS ACK", ASK_3, answers(b"12345"), "HEADERS 3 200", "DATA 3 [2]", quiet),
        ],
    ),
    Exchange(
        "6_9_2",
        "SETTINGS do not touch the connection's window",
        [
            *(ASK, answers(bytes(DEFAULT_WINDOW + 10)), "HEADERS 1 200", *FULL),
            *(window(100_000), "SETTINGS ACK", quiet, window_update(0, 1), "DATA 1 [1]", quiet),
        ],
    ),
    Exchange(
        "6_9_2",
        "a window below nothing has to grow first",
        [
            *(ASK, answers(b"123456789"), "HEADERS 1 200", "DATA 1 [6]"),
            *(window(2), "SETTINGS ACK", window_update(1, 3), quiet, window_update(1, 1), quiet),
            *(window_update(1, 1), "DATA 1 [1]", quiet, window_update(1, 9), "DATA 1 [2]", END),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "SETTINGS lead out of a window below nothing",
        [
            *(ASK, answers(b"123456789"), "HEADERS 1 200", "DATA 1 [6]", window(0), "SETTINGS ACK", quiet),
            *(window(6), "SETTINGS ACK", quiet, window(8), "SETTINGS ACK", "DATA 1 [2]", quiet),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "a window below nothing holds up no other stream",
        [
            *(ASK, answers(b"123456789"), "HEADERS 1 200", "DATA 1 [6]", window(2), "SETTINGS ACK"),
            *(ASK_3, answers(b"12"), "HEADERS 3 200", "DATA 3 [2]", "HEADERS 3 grpc-status 0 END_STREAM"),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "the end of a response does not wait for a window below nothing",
        [
            *(ASK, answers(b"123456", ends=False), "HEADERS 1 200", "DATA 1 [6]", window(2), "SETTINGS ACK"),
            *(rst_stream(1), quiet, ASK_3, answers(), "HEADERS 3 200", "HEADERS 3 grpc-status 0 END_STREAM"),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "SETTINGS leave a stream what WINDOW_UPDATE gave it",
        [
            *(ASK + window_update(1, 4) + window(1), "SETTINGS ACK"),
            *(answers(b"123456789"), "HEADERS 1 200", "DATA 1 [5]", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9_2",
        "a window is full only by the SETTINGS before its WINDOW_UPDATE",
        [
            *(ASK, window(0) + window_update(1, MAX_WINDOW), "SETTINGS ACK"),
            *(answers(b"12345"), "HEADERS 1 200", "DATA 1 [5]", END),
        ],
    ),
    Exchange(
        "6_9_2",
        "a WINDOW_UPDATE behind SETTINGS that fill the window costs its stream alone",
        [
            *(ASK, window(MAX_WINDOW) + window_update(1, 1), "SETTINGS ACK"),
            *("RST_STREAM 1 FLOW_CONTROL_ERROR", quiet),
        ],
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", TO_A_CALLER, ids=str)
@trio_test
async def test_rfc9113_data_to_a_caller(engine: Engine, rule: Exchange) -> None:
    await play_with_a_caller(engine, rule)


# --- What the proxy sends to a backend ---

EMPTY_END = "DATA 1 [0] END_STREAM"
REQUEST, WHOLE_REQUEST = "HEADERS 1 /a.B/C", "HEADERS 1 /a.B/C END_STREAM"
FULL_BODY = bytes(DEFAULT_WINDOW + 1)

TO_A_BACKEND = [
    Exchange("5_2_1", "headers are not held back", [calls(), WHOLE_REQUEST], NO_WINDOW),
    Exchange("5_2_1", "an end without DATA is not held back", [calls(b""), REQUEST, EMPTY_END], NO_WINDOW),
    Exchange(
        "5_2_1",
        "a reset is not held back",
        [calls(b"12345", ends=False), REQUEST, gives_up(), "RST_STREAM 1 CANCEL", window_update(1, 5), quiet],
        NO_WINDOW,
    ),
    Exchange(
        "5_2_1",
        "a stream without a window does not hold up another",
        [
            *(calls(b"12345"), REQUEST, calls(b"123"), "HEADERS 3 /a.B/C", quiet),
            *(window_update(3, 3), "DATA 3 [3] END_STREAM", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "5_2_1",
        "an answer may come while the request is held back",
        [
            *(calls(b"12345"), REQUEST, headers(1, RESPONSE) + data(1, b"x")),
            *(headers(1, TRAILERS, end_stream=True), "RST_STREAM 1 NO_ERROR", told(Status.OK, body=b"x")),
        ],
        NO_WINDOW,
    ),
    Exchange("6_9", "a window of nothing lets nothing out", [calls(b"12345"), REQUEST, quiet], NO_WINDOW),
    Exchange(
        "6_9",
        "a WINDOW_UPDATE lets out as much as it says",
        [
            *(calls(b"12345"), REQUEST, window_update(1, 3), "DATA 1 [3]", quiet),
            *(window_update(1, 2), "DATA 1 [2] END_STREAM", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9",
        "END_STREAM waits for the last byte",
        [calls(b"12345"), REQUEST, "DATA 1 [4]", quiet, window_update(1, 9), "DATA 1 [1] END_STREAM"],
        {INITIAL_WINDOW_SIZE: 4},
    ),
    Exchange(
        "6_9",
        "the connection's WINDOW_UPDATE opens no stream",
        [calls(b"12345"), REQUEST, window_update(0, 100), quiet],
        NO_WINDOW,
    ),
    Exchange("6_9_1", "a stream's window at its end", [calls(FULL_BODY), REQUEST, *FULL, quiet]),
    Exchange(
        "6_9_1",
        "the connection's window at its end",
        [
            *(calls(FULL_BODY), REQUEST, *FULL, quiet, window_update(1, 1), quiet),
            *(window_update(0, 1), "DATA 1 [1] END_STREAM"),
        ],
        {INITIAL_WINDOW_SIZE: 100_000},
    ),
    Exchange(
        "6_9_1",
        "the stream first and then the connection",
        [
            *(calls(FULL_BODY), REQUEST, *FULL, window_update(1, 1), quiet),
            *(window_update(0, 1), "DATA 1 [1] END_STREAM"),
        ],
    ),
    Exchange(
        "6_9_1",
        "the connection first and then the stream",
        [
            *(calls(FULL_BODY), REQUEST, *FULL, window_update(0, 1), quiet),
            *(window_update(1, 1), "DATA 1 [1] END_STREAM"),
        ],
    ),
    Exchange(
        "6_9_1",
        "streams share the connection's window",
        [
            *(calls(bytes(DEFAULT_WINDOW), ends=False), REQUEST, *FULL),
            *(calls(b"12345"), "HEADERS 3 /a.B/C", quiet),
            *(window_update(0, 5), "DATA 3 [5] END_STREAM"),
        ],
        WIDE,
    ),
    Exchange(
        "6_9_2",
        "SETTINGS open the windows of streams that wait",
        [
            *(calls(b"12345"), REQUEST, quiet, window(3), "SETTINGS ACK", "DATA 1 [3]", quiet),
            *(window(5), "SETTINGS ACK", "DATA 1 [2] END_STREAM"),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_9_2",
        "SETTINGS count for streams that open later",
        [
            *(calls(b"12345"), REQUEST, "DATA 1 [5] END_STREAM", window(2), "SETTINGS ACK"),
            *(calls(b"12345"), "HEADERS 3 /a.B/C", "DATA 3 [2]", quiet),
        ],
    ),
    Exchange(
        "6_9_2",
        "SETTINGS do not touch the connection's window",
        [
            *(calls(FULL_BODY), REQUEST, *FULL, window(100_000), "SETTINGS ACK", quiet),
            *(window_update(0, 1), "DATA 1 [1] END_STREAM"),
        ],
    ),
    Exchange(
        "6_9_2",
        "a window below nothing has to grow first",
        [
            *(calls(b"123456789"), REQUEST, "DATA 1 [6]", window(2), "SETTINGS ACK"),
            *(window_update(1, 4), quiet, window_update(1, 1), "DATA 1 [1]", quiet),
            *(window_update(1, 9), "DATA 1 [2] END_STREAM"),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "SETTINGS lead out of a window below nothing",
        [
            *(calls(b"123456789"), REQUEST, "DATA 1 [6]", window(0), "SETTINGS ACK", quiet),
            *(window(6), "SETTINGS ACK", quiet, window(9), "SETTINGS ACK", "DATA 1 [3] END_STREAM"),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "a window below nothing holds up no other stream",
        [
            *(calls(b"123456789"), REQUEST, "DATA 1 [6]", window(2), "SETTINGS ACK"),
            *(calls(b"12"), "HEADERS 3 /a.B/C", "DATA 3 [2] END_STREAM"),
        ],
        {INITIAL_WINDOW_SIZE: 6},
    ),
    Exchange(
        "6_9_2",
        "a window is full only by the SETTINGS before its WINDOW_UPDATE",
        [
            *(calls(b"", ends=False), REQUEST, window(0) + window_update(1, MAX_WINDOW), "SETTINGS ACK"),
            *(headers(1, [*RESPONSE, *OK], end_stream=True), "RST_STREAM 1 NO_ERROR", told(Status.OK)),
        ],
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", TO_A_BACKEND, ids=str)
@trio_test
async def test_rfc9113_data_to_a_backend(engine: Engine, rule: Exchange) -> None:
    await play_with_a_backend(engine, rule)


# --- What the proxy gives back, and to whom ---

HELD = headers(1)
FRAME, REST = data(1, bytes(16_384)), data(1, bytes(16_383))
BACK, BACK_OF_REST = "WINDOW_UPDATE 0 +16384", "WINDOW_UPDATE 0 +16383"
PADDED = data(1, b"x", padding=255) * 64


async def backend_gives_no_credit(scene: Scene) -> None:
    def stingy(peer: RawPeer) -> None:
        peer.credits = False

    scene.house.backend.prepare = stingy


async def backend_gives_credit(scene: Scene) -> None:
    await scene.served[0].peer.credit_everything()


A_WINDOWFUL: list[Step] = [
    *(FRAME, BACK, FRAME, BACK, "WINDOW_UPDATE 1 +32768"),
    *(FRAME, BACK, REST, BACK_OF_REST, "WINDOW_UPDATE 1 +32767"),
]
"""All that a stream may carry at first, delivered as it comes."""
NOT_TAKEN: list[Step] = [FRAME, BACK, FRAME, BACK, FRAME, BACK, REST, BACK_OF_REST, quiet]
"""The same, when nobody takes it: only the connection gets it back."""

FROM_A_CALLER = [
    Exchange(
        "6_9_2",
        "the connection's window is raised by WINDOW_UPDATE",
        [PREFACE + settings(), "SETTINGS", f"WINDOW_UPDATE 0 +{1_000_000 - DEFAULT_WINDOW}", "SETTINGS ACK"],
        None,
        {"connection_window_bytes": 1_000_000},
    ),
    Exchange(
        "6_9_2",
        "a window that is as at first needs no word",
        [PREFACE + settings(), "SETTINGS", "SETTINGS ACK", quiet],
        None,
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9", "the connection gets back what came", [HELD, asked(), FRAME, BACK, quiet], {}, SMALL_WINDOWS
    ),
    Exchange(
        "6_9",
        "a stream gets back what was delivered",
        [HELD, asked(), *A_WINDOWFUL, quiet],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "a stream that has ended gets nothing back",
        [HELD, asked(), FRAME, BACK, data(1, bytes(16_384), end_stream=True), BACK, quiet],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "a stream gets back no more than what was delivered",
        [
            *(backend_gives_no_credit, HELD, asked(), *A_WINDOWFUL, *NOT_TAKEN),
            *(backend_gives_credit, "WINDOW_UPDATE 1 +65535"),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9_1",
        "a stream's window may not be passed",
        [
            *(backend_gives_no_credit, HELD, asked(), *A_WINDOWFUL, *NOT_TAKEN),
            *(data(1, b"x"), "GOAWAY 1 FLOW_CONTROL_ERROR", CLOSED),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9_1",
        "padding may not pass a stream's window",
        [
            *(backend_gives_no_credit, HELD, asked(), *A_WINDOWFUL, *NOT_TAKEN),
            *(data(1, padding=0), "GOAWAY 1 FLOW_CONTROL_ERROR", CLOSED),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9_1",
        "an end without DATA needs no window",
        [
            *(backend_gives_no_credit, HELD, asked(), *A_WINDOWFUL, *NOT_TAKEN),
            *(data(1, end_stream=True), quiet),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9_1",
        "padding is given back as well",
        [
            *(HELD, asked(), PADDED, "WINDOW_UPDATE 0 +16448"),
            *(PADDED, "WINDOW_UPDATE 0 +16448", "WINDOW_UPDATE 1 +32896", quiet),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "DATA on a stream that was reset is given back to the connection",
        [HELD, asked(), rst_stream(1), FRAME, BACK, "RST_STREAM 1 STREAM_CLOSED", quiet],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "DATA on a stream that was refused is given back to the connection",
        [headers(1, [(b"x", b"y")]), "RST_STREAM 1 PROTOCOL_ERROR", FRAME, BACK, quiet],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "DATA that is malformed is given back to the connection",
        [
            *(headers(1, changed({}, (b"content-length", b"1"))), asked()),
            *(FRAME, BACK, "RST_STREAM 1 PROTOCOL_ERROR", quiet),
        ],
        {},
        SMALL_WINDOWS,
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", FROM_A_CALLER, ids=str)
@trio_test
async def test_rfc9113_data_from_a_caller(engine: Engine, rule: Exchange) -> None:
    await play_with_a_caller(engine, rule)


ANSWERED: list[Step] = [calls(), WHOLE_REQUEST, headers(1, RESPONSE)]
FROM_A_BACKEND = [
    Exchange("6_9", "the connection gets back what came", [*ANSWERED, FRAME, BACK, quiet], {}, SMALL_WINDOWS),
    Exchange(
        "6_9", "a stream gets back what was delivered", [*ANSWERED, *A_WINDOWFUL, quiet], {}, SMALL_WINDOWS
    ),
    Exchange(
        "6_9",
        "a stream that has ended gets nothing back",
        [*ANSWERED, FRAME, BACK, data(1, bytes(16_384), end_stream=True), BACK, quiet],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "a stream gets back no more than what was delivered",
        [
            *(*ANSWERED, caller_gives_no_credit, *A_WINDOWFUL, *NOT_TAKEN),
            *(caller_gives_credit, "WINDOW_UPDATE 1 +65535"),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9_1",
        "a stream's window may not be passed",
        [
            *(*ANSWERED, caller_gives_no_credit, *A_WINDOWFUL, *NOT_TAKEN),
            *(data(1, b"x"), "GOAWAY 0 FLOW_CONTROL_ERROR", CLOSED),
            *(caller_gives_credit, told(Status.UNAVAILABLE)),
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9_1",
        "padding is given back as well",
        [
            *ANSWERED,
            PADDED,
            "WINDOW_UPDATE 0 +16448",
            PADDED,
            "WINDOW_UPDATE 0 +16448",
            "WINDOW_UPDATE 1 +32896",
        ],
        {},
        SMALL_WINDOWS,
    ),
    Exchange(
        "6_9",
        "DATA for a call that was given up is given back to the connection",
        [*ANSWERED, gives_up(), "RST_STREAM 1 CANCEL", FRAME, BACK, quiet],
        {},
        SMALL_WINDOWS,
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", FROM_A_BACKEND, ids=str)
@trio_test
async def test_rfc9113_data_from_a_backend(engine: Engine, rule: Exchange) -> None:
    await play_with_a_backend(engine, rule)
