"""RFC 9113 §3.4, §5.1.2, §6.5, §7 and §8.1: what peers agree on, and how exchanges begin and end, on both sides."""

import hpack
import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
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
    is_reset,
    nobody_asked,
    play_with_a_backend,
    play_with_a_caller,
    quiet,
    told,
)
from tests.conformance.rules import changed
from tests.http2.peer import (
    ENABLE_PUSH,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PREFACE,
    REQUEST,
    RESPONSE,
    SETTINGS_ACK,
    TRAILERS,
    continuation,
    data,
    goaway,
    headers,
    ping,
    priority,
    push_promise,
    raw,
    rst_stream,
    settings,
    window_update,
)
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, TRAILERS_ONLY

SETTINGS = 0x4
HELD, ASK, ASK_3, ASK_5 = headers(1), *(headers(n, end_stream=True) for n in (1, 3, 5))
SERVED: list[Step] = [answers(), "HEADERS 1 200", "HEADERS 1 grpc-status 0 END_STREAM"]
SERVED_3: list[Step] = [answers(), "HEADERS 3 200", "HEADERS 3 grpc-status 0 END_STREAM"]
SERVED_5: list[Step] = [answers(), "HEADERS 5 200", "HEADERS 5 grpc-status 0 END_STREAM"]
ASKED, ASKED_3, ASKED_5 = (f"HEADERS {n} /a.B/C END_STREAM" for n in (1, 3, 5))
ASKED_HELD = "HEADERS 1 /a.B/C"
REFUSED_3, REFUSED_5 = "RST_STREAM 3 REFUSED_STREAM", "RST_STREAM 5 REFUSED_STREAM"


def responds(stream_id: int) -> bytes:
    return headers(stream_id, TRAILERS_ONLY, end_stream=True)


async def preface(scene: Scene) -> None:
    await scene.wire.hear_preface()


def announced(setting: int, value: int | None) -> Step:
    """The proxy's SETTINGS have said this, or nothing of it."""

    async def step(scene: Scene) -> None:
        assert scene.wire.settings.get(setting) == value

    return step


FIRST_FRAMES = [
    ("DATA", data(1, b"x")),
    ("HEADERS", headers(1, end_stream=True)),
    ("PRIORITY", priority(1)),
    ("RST_STREAM", rst_stream(1)),
    ("PUSH_PROMISE", push_promise(1, 2)),
    ("PING", ping()),
    ("GOAWAY", goaway(0)),
    ("WINDOW_UPDATE", window_update(0, 1)),
    ("CONTINUATION", continuation(1, end_headers=True)),
    ("an acknowledgement", SETTINGS_ACK),
]
FIRST_SETTINGS = [
    ("on a stream", raw(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    ("with a window that is none", settings({INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    ("with a frame size that is none", settings({MAX_FRAME_SIZE: 1}), ErrorCode.PROTOCOL_ERROR),
]


def opening(name: str, *steps: Step) -> Exchange:
    """A rule on the first words of a caller."""
    return Exchange("3_4", name, steps, None, SMALL_WINDOWS)


def greeting(name: str, *steps: Step) -> Exchange:
    """A rule on the first words of a backend, to which the proxy has said its own."""
    begun: list[Step] = [calls(), preface, "SETTINGS"]
    return Exchange("3_4", name, [*begun, *steps], None, SMALL_WINDOWS, {"connect_wait_s": 0})


OPENINGS = [
    opening("a server begins with SETTINGS", PREFACE + settings(), "SETTINGS", "SETTINGS ACK", quiet),
    opening(
        "the preface may come in pieces",
        *(PREFACE[:1], PREFACE[1:20], PREFACE[20:] + settings()[:5], settings()[5:]),
        *("SETTINGS", "SETTINGS ACK", quiet),
    ),
    opening(
        "a request may come with the preface",
        *(PREFACE + settings() + ASK, "SETTINGS", "SETTINGS ACK", *SERVED),
    ),
    opening(
        "nobody waits for an acknowledgement",
        *(PREFACE + settings(), "SETTINGS", "SETTINGS ACK", ASK, *SERVED, SETTINGS_ACK, quiet),
    ),
    opening("a preface with a wrong end", PREFACE[:-1] + b"\r", CLOSED),
    opening("a preface of another version", PREFACE.replace(b"2.0", b"3.0") + settings(), CLOSED),
    opening("no preface", settings() + ping(), CLOSED),
    *(
        opening(
            f"a client does not begin with {name}",
            *(PREFACE + frame, "SETTINGS", "GOAWAY 0 PROTOCOL_ERROR", CLOSED),
        )
        for name, frame in [*FIRST_FRAMES, ("a frame of an unknown type", raw(0xEE, 0, 0))]
    ),
    *(
        opening(f"first SETTINGS {name}", PREFACE + frame, "SETTINGS", f"GOAWAY 0 {code.name}", CLOSED)
        for name, frame, code in [
            *FIRST_SETTINGS,
            ("that are cut short", raw(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        ]
    ),
]
GREETINGS = [
    greeting("a client begins with its preface and SETTINGS", settings(), "SETTINGS ACK", ASKED),
    greeting(
        "SETTINGS may come in pieces", settings({4: 9})[:7], settings({4: 9})[7:], "SETTINGS ACK", ASKED
    ),
    greeting(
        "nobody waits for an acknowledgement", settings(), "SETTINGS ACK", ASKED, responds(1), told(Status.OK)
    ),
    *(
        greeting(
            f"a server does not begin with {name}",
            *(frame, "GOAWAY 0 PROTOCOL_ERROR", CLOSED, told(Status.UNAVAILABLE)),
        )
        for name, frame in FIRST_FRAMES
    ),
    *(
        greeting(f"first SETTINGS {name}", frame, f"GOAWAY 0 {code.name}", CLOSED, told(Status.UNAVAILABLE))
        for name, frame, code in FIRST_SETTINGS
    ),
]

ENCODER = hpack.Encoder()
WITH_X = [*REQUEST, (b"x", b"y")]
NEW_FIELDS, OLD_FIELDS = ENCODER.encode(WITH_X), ENCODER.encode(WITH_X)
"""A header list, and the same again: the second block only names what the first has put into the table."""


def streams(limit: int, name: str, *steps: Step) -> Exchange:
    """A rule on callers of whom so many streams are taken."""
    return Exchange("5_1_2", name, steps, {}, {"max_concurrent_streams": limit})


def upstream_streams(limit: int, name: str, *steps: Step) -> Exchange:
    """A rule on a backend that takes so many streams, on the one connection that there may be."""
    return Exchange("5_1_2", name, steps, {MAX_CONCURRENT_STREAMS: limit}, {}, {"size": 1, "max_waiting": 10})


async def x_was_heard(scene: Scene) -> None:
    assert scene.served[-1].request.get(b"x") == b"y"


STREAMS = [
    streams(7, "the limit is announced", announced(MAX_CONCURRENT_STREAMS, 7)),
    streams(2, "one stream too many is refused", HELD, headers(3), headers(5), REFUSED_5, quiet),
    streams(2, "half-closed streams count", ASK, ASK_3, ASK_5, REFUSED_5, quiet),
    streams(1, "nobody is asked for what is refused", ASK, asked(), ASK_3, REFUSED_3, nobody_asked),
    streams(1, "others go on", ASK, ASK_3, REFUSED_3, *SERVED),
    streams(1, "the end of a stream makes room", ASK, *SERVED, ASK_3, *SERVED_3),
    streams(1, "a reset makes room", HELD, asked(), rst_stream(1), is_reset(8), ASK_3, *SERVED_3),
    streams(1, "what is refused takes no room", ASK, ASK_3, REFUSED_3, *SERVED, ASK_5, *SERVED_5),
    streams(
        1,
        "what is malformed takes no room",
        *(headers(1, [(b"x", b"y")]), "RST_STREAM 1 PROTOCOL_ERROR", ASK_3, *SERVED_3),
    ),
    streams(1, "an early response makes room", HELD, *SERVED, "RST_STREAM 1 NO_ERROR", ASK_3, *SERVED_3),
    streams(1, "what follows on it is ignored", ASK, headers(3), REFUSED_3, data(3, b"x"), ASK_3, quiet),
    streams(1, "a refused stream may be reset", ASK, headers(3), REFUSED_3, rst_stream(3), quiet),
    streams(
        1,
        "the fields of what is refused enter the table",
        *(HELD, asked(), headers(3, encoded=NEW_FIELDS), REFUSED_3, rst_stream(1), is_reset(8)),
        *(headers(5, encoded=OLD_FIELDS, end_stream=True), *SERVED_5, x_was_heard),
    ),
]
UPSTREAM_STREAMS = [
    upstream_streams(
        1,
        "no stream too many is opened",
        calls(),
        ASKED,
        calls(),
        quiet,
        responds(1),
        told(Status.OK),
        ASKED_3,
    ),
    upstream_streams(
        1,
        "a stream of which one half has ended counts",
        *(calls(b"", ends=False), ASKED_HELD, headers(1, RESPONSE), calls(), quiet),
        *(headers(1, OK, end_stream=True), "RST_STREAM 1 NO_ERROR", ASKED_3),
    ),
    upstream_streams(
        1, "a stream that was reset makes room", calls(), ASKED, calls(), quiet, rst_stream(1), ASKED_3
    ),
    upstream_streams(
        1,
        "a higher limit makes room",
        *(calls(), ASKED, calls(), quiet, settings({MAX_CONCURRENT_STREAMS: 2}), "SETTINGS ACK", ASKED_3),
    ),
    upstream_streams(
        2,
        "a lower limit ends nothing",
        *(calls(), ASKED, calls(), ASKED_3, settings({MAX_CONCURRENT_STREAMS: 1}), "SETTINGS ACK"),
        *(calls(), quiet, responds(1), told(Status.OK), quiet, responds(3), told(Status.OK, 1), ASKED_5),
    ),
    upstream_streams(
        1,
        "a limit of nothing ends nothing",
        *(calls(), ASKED, settings({MAX_CONCURRENT_STREAMS: 0}), "SETTINGS ACK", calls(), quiet),
        *(
            responds(1),
            told(Status.OK),
            quiet,
            settings({MAX_CONCURRENT_STREAMS: 1}),
            "SETTINGS ACK",
            ASKED_3,
        ),
    ),
    upstream_streams(
        0,
        "a limit of nothing at first",
        *(calls(), quiet, settings({MAX_CONCURRENT_STREAMS: 1}), "SETTINGS ACK", ASKED),
    ),
    upstream_streams(
        2**32 - 1, "there may be no limit to speak of", calls(), ASKED, calls(), ASKED_3, calls(), ASKED_5
    ),
]

LONG = [(b"grpc-status", b"0"), (b"x", b"v" * 20_000)]
TWICE = raw(SETTINGS, 0, 0, b"\0\4\0\0\0\x09\0\4\0\0\0\2")
"""Two initial windows, 9 and then 2."""
NO_WINDOW = {INITIAL_WINDOW_SIZE: 0}
IN_ORDER: list[Step] = [
    settings() + ping(b"between ") + settings({0xAB: 1}) + ping(b"and last"),
    *("SETTINGS ACK", "PING between  ACK", "SETTINGS ACK", "PING and last ACK", quiet),
]
SETTINGS_RULES = [
    Exchange("6_5_2", "a server has nothing to say of push", [announced(ENABLE_PUSH, None)]),
    Exchange("6_5_3", "each SETTINGS is acknowledged once and in order", IN_ORDER),
    Exchange("6_5_3", "many SETTINGS in a read", [settings({4: 7}) * 20, *["SETTINGS ACK"] * 20, quiet]),
    Exchange("6_5_3", "an acknowledgement is not acknowledged", [SETTINGS_ACK, quiet]),
    Exchange(
        "6_5_3",
        "the last SETTINGS count",
        [
            *(ASK, answers(b"12345"), "HEADERS 1 200", settings({4: 9}) + settings({4: 2})),
            *("SETTINGS ACK", "SETTINGS ACK", "DATA 1 [2]", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_5_3",
        "the last value of SETTINGS counts",
        [ASK, answers(b"12345"), "HEADERS 1 200", TWICE, "SETTINGS ACK", "DATA 1 [2]", quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_5_3",
        "what SETTINGS do not name stays as it is",
        [
            *(settings({4: 2}), "SETTINGS ACK", settings({3: 9}), "SETTINGS ACK"),
            *(ASK, answers(b"12345"), "HEADERS 1 200", "DATA 1 [2]", quiet),
        ],
    ),
    Exchange(
        "6_5_3",
        "frames may be longer from the acknowledgement on",
        [
            *(ASK, answers(trailers=LONG), "HEADERS 1 200", "HEADERS 1 END_STREAM"),
            *("CONTINUATION 1 grpc-status 0", settings({MAX_FRAME_SIZE: 32_768}), "SETTINGS ACK"),
            *(ASK_3, answers(trailers=LONG), "HEADERS 3 200", "HEADERS 3 grpc-status 0 END_STREAM"),
        ],
    ),
    Exchange(
        "6_5_3",
        "frames may be no longer than they were from the acknowledgement on",
        [
            *(settings({MAX_FRAME_SIZE: 16_384}), "SETTINGS ACK", ASK, answers(trailers=LONG)),
            *("HEADERS 1 200", "HEADERS 1 END_STREAM", "CONTINUATION 1 grpc-status 0"),
        ],
        {MAX_FRAME_SIZE: 32_768},
    ),
]
LONG_FIELD = (b"x", b"v" * 20_000)
UPSTREAM_SETTINGS_RULES = [
    Exchange("6_5_2", "a client allows no push", [calls(), ASKED, announced(ENABLE_PUSH, 0)]),
    Exchange("6_5_3", "each SETTINGS is acknowledged once and in order", [calls(), ASKED, *IN_ORDER]),
    Exchange("6_5_3", "an acknowledgement is not acknowledged", [calls(), ASKED, SETTINGS_ACK, quiet]),
    Exchange(
        "6_5_3",
        "the last SETTINGS count",
        [
            *(calls(b"12345"), ASKED_HELD, settings({4: 9}) + settings({4: 2})),
            *("SETTINGS ACK", "SETTINGS ACK", "DATA 1 [2]", quiet),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "6_5_3",
        "the last value of SETTINGS counts",
        [calls(b"12345"), ASKED_HELD, TWICE, "SETTINGS ACK", "DATA 1 [2]", quiet],
        NO_WINDOW,
    ),
    Exchange(
        "6_5_3",
        "frames may be longer from the acknowledgement on",
        [
            *(calls(None, LONG_FIELD), "HEADERS 1 END_STREAM", "CONTINUATION 1 /a.B/C"),
            *(settings({MAX_FRAME_SIZE: 32_768}), "SETTINGS ACK", calls(None, LONG_FIELD), ASKED_3),
        ],
    ),
]

CODES = [*range(ErrorCode.HTTP_1_1_REQUIRED + 1), 0xDEAD, 2**32 - 1]
CODES_OF_CALLERS = [
    *(
        Exchange("7", f"a reset with {code:#x} is a reset", [HELD, asked(), rst_stream(1, code), is_reset(8)])
        for code in CODES
    ),
    *(
        Exchange("7", f"a GOAWAY with {code:#x} ends no call", [ASK, goaway(0, code), *SERVED, quiet])
        for code in CODES
    ),
]
CODES_OF_BACKENDS = [
    *(
        Exchange(
            "7",
            f"a reset with {code:#x} ends that call alone",
            [
                *(calls(), ASKED, calls(), ASKED_3, rst_stream(1, code), told(status)),
                *(quiet, responds(3), told(Status.OK, 1)),
            ],
        )
        for code, status in [
            (0xE, Status.UNKNOWN),
            (0xDEAD, Status.UNKNOWN),
            (2**32 - 1, Status.UNKNOWN),
        ]
    ),
    *(
        Exchange(
            "7",
            f"a GOAWAY with {code:#x} ends no call before its last stream",
            [calls(), ASKED, goaway(1, code), responds(1), told(Status.OK)],
        )
        for code in CODES
    ),
]

FIELD = [(b"x", b"1")]
EARLY: list[Step] = [HELD, *SERVED, "RST_STREAM 1 NO_ERROR"]
MESSAGES = [
    Exchange("8_1", "an early response is whole and stops the request", [*EARLY, is_reset(0), quiet]),
    Exchange(
        "8_1",
        "what comes on the request after an early response is ignored",
        [*EARLY, data(1, b"x"), headers(1, FIELD, end_stream=True), window_update(1, 1), quiet],
    ),
    Exchange(
        "8_1",
        "an early response stops the request when it is out and not before",
        [
            *(HELD, answers(b"12"), "HEADERS 1 200", quiet, window_update(1, 2), "DATA 1 [2]"),
            *("HEADERS 1 grpc-status 0 END_STREAM", "RST_STREAM 1 NO_ERROR"),
        ],
        NO_WINDOW,
    ),
    Exchange(
        "8_1",
        "an early answer of the proxy's own stops the request",
        [
            headers(1, changed({b"content-type": b"text/plain"})),
            *("HEADERS 1 415 grpc-status 13 END_STREAM", "RST_STREAM 1 NO_ERROR", data(1, b"x"), quiet),
        ],
    ),
    Exchange("8_1", "a response to a whole request is not followed by a reset", [ASK, *SERVED, quiet]),
    Exchange(
        "8_1",
        "no HEADERS behind trailers",
        [
            *(HELD + headers(1, FIELD, end_stream=True), asked()),
            *(headers(1, FIELD, end_stream=True), "RST_STREAM 1 STREAM_CLOSED", quiet),
        ],
    ),
    Exchange(
        "8_1",
        "no DATA behind trailers",
        [
            *(HELD + headers(1, FIELD, end_stream=True), asked()),
            *(data(1, b"x"), "RST_STREAM 1 STREAM_CLOSED", quiet),
        ],
    ),
    Exchange(
        "8_1",
        "trailers end the request upstream",
        [HELD, data(1, b"12"), headers(1, FIELD, end_stream=True), asked(b"12"), quiet],
    ),
]
BEGUN: list[Step] = [calls(b"", ends=False), ASKED_HELD]
RESPONDED = headers(1, RESPONSE) + data(1, b"12") + headers(1, TRAILERS, end_stream=True)
LONG_RESPONSE = headers(1, RESPONSE) + data(1, bytes(16_384)) * 5 + headers(1, TRAILERS, end_stream=True)
"""More than a caller's window has at first."""
WHOLE_ANSWER = told(Status.OK, body=b"12")
UPSTREAM_MESSAGES = [
    Exchange(
        "8_1",
        "an early response ends the request",
        [*BEGUN, RESPONDED, "RST_STREAM 1 NO_ERROR", WHOLE_ANSWER],
    ),
    *(
        Exchange(
            "8_1",
            f"a reset with {code.name} takes no early response back",
            [*BEGUN, RESPONDED + rst_stream(1, code), WHOLE_ANSWER, quiet],
        )
        for code in (ErrorCode.NO_ERROR, ErrorCode.CANCEL, ErrorCode.PROTOCOL_ERROR)
    ),
    *(
        Exchange(
            "8_1",
            f"a reset with {code.name} takes no response back that still waits for its caller",
            [
                *(*BEGUN, caller_gives_no_credit, LONG_RESPONSE + rst_stream(1, code), quiet),
                *(caller_gives_credit, told(Status.OK, body=bytes(5 * 16_384))),
            ],
        )
        for code in (ErrorCode.NO_ERROR, ErrorCode.CANCEL)
    ),
    Exchange(
        "8_1",
        "a reset with NO_ERROR before the end is no response",
        [*BEGUN, headers(1, RESPONSE) + data(1, b"12") + rst_stream(1, 0), told(Status.INTERNAL), quiet],
    ),
    Exchange(
        "8_1",
        "HEADERS behind trailers harm nobody",
        [calls(), ASKED, RESPONDED + headers(1, FIELD, end_stream=True), WHOLE_ANSWER, quiet],
    ),
    Exchange(
        "8_1",
        "DATA behind trailers goes nowhere",
        [calls(), ASKED, RESPONDED + data(1, b"x"), "RST_STREAM 1 STREAM_CLOSED", WHOLE_ANSWER, quiet],
    ),
]


@on_every_engine
@pytest.mark.parametrize(
    "rule", [*OPENINGS, *STREAMS, *SETTINGS_RULES, *CODES_OF_CALLERS, *MESSAGES], ids=str
)
@trio_test
async def test_rfc9113_with_a_caller(engine: Engine, rule: Exchange) -> None:
    await play_with_a_caller(engine, rule)


@on_every_engine
@pytest.mark.parametrize(
    "rule",
    [*GREETINGS, *UPSTREAM_STREAMS, *UPSTREAM_SETTINGS_RULES, *CODES_OF_BACKENDS, *UPSTREAM_MESSAGES],
    ids=str,
)
@trio_test
async def test_rfc9113_with_a_backend(engine: Engine, rule: Exchange) -> None:
    await play_with_a_backend(engine, rule)
