"""gRPC over HTTP/2 (PROTOCOL-HTTP2.md, http-grpc-status-mapping.md): responses, timeouts, errors, connections."""

from typing import Any

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, PoolConn, RpcError, Server, Status, StreamDirector, transparent_handler
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.conformance.exchanges import (
    CLOSED,
    Exchange,
    Scene,
    Step,
    answers,
    asked,
    calls,
    connection,
    hangs_up,
    nobody_asked,
    play_with_a_backend,
    play_with_a_caller,
    quiet,
    told,
)
from tests.conformance.rules import ByCaller, Field, Resets, Rule, changed, play_as_caller
from tests.http2.peer import RESPONSE, data, goaway, headers, ping, rst_stream
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import TRAILERS_ONLY, message

pytestmark = on_every_engine

GRPC = (b"content-type", b"application/grpc")
HTML = (b"content-type", b"text/html")

# --- "Responses", and HTTP statuses that stand for one ---

BY_HTTP_STATUS = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    431: Status.INTERNAL,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
} | dict.fromkeys((200, 204, 302, 402, 405, 408, 413, 415, 500, 501, 505, 599), Status.UNKNOWN)


@pytest.mark.parametrize(("http_status", "status"), BY_HTTP_STATUS.items())
@pytest.mark.parametrize("form", ["headers alone", "with a body", "with trailers"])
@trio_test
async def test_status_without_grpc_status_is_that_of_http(
    engine: Engine, http_status: int, status: Status, form: str
) -> None:
    """It is the log's status. The caller gets the response as it came, and does the same by its own table."""
    start = [(b":status", b"%d" % http_status), HTML]
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(start, end=form == "headers alone")
        if form == "with a body":
            await served.data(b"<p>", end=True)
        elif form == "with trailers":
            await served.headers([(b"x", b"1")], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.fields == start
        assert answer.status is None
        record = await house.record()
        assert (record.status, record.origin) == (status, "http")
        assert record.cause == ("HTTP unknown" if http_status == 599 else f"HTTP {http_status}")


LAST = [
    ("a status", [(b"grpc-status", b"5")], Status.NOT_FOUND),
    ("a message", [(b"grpc-status", b"5"), (b"grpc-message", b"not here")], Status.NOT_FOUND),
    ("a percent-encoded message", [(b"grpc-status", b"5"), (b"grpc-message", b"%E2%98%83%25")], Status.NOT_FOUND),
    ("a message with a broken escape", [(b"grpc-status", b"5"), (b"grpc-message", b"100%zz%2")], Status.NOT_FOUND),
    ("a message that is no ASCII", [(b"grpc-status", b"5"), (b"grpc-message", b"\xe2\x98\x83\xff")], Status.NOT_FOUND),
    ("an empty message", [(b"grpc-status", b"5"), (b"grpc-message", b"")], Status.NOT_FOUND),
    ("a message before the status", [(b"grpc-message", b"m"), (b"grpc-status", b"5")], Status.NOT_FOUND),
    ("metadata", [(b"grpc-status", b"9"), (b"x-retry", b"1"), (b"x-retry", b"2")], Status.FAILED_PRECONDITION),
    ("binary metadata", [(b"grpc-status", b"9"), (b"x-bin", b"AA==,AQ")], Status.FAILED_PRECONDITION),
    ("details", [(b"grpc-status", b"3"), (b"grpc-status-details-bin", b"CAM")], Status.INVALID_ARGUMENT),
    ("a status beyond the last", [(b"grpc-status", b"17")], Status.UNKNOWN),
    ("a status that is no number", [(b"grpc-status", b"OK")], Status.UNKNOWN),
    ("a negative status", [(b"grpc-status", b"-1")], Status.UNKNOWN),
    ("an empty status", [(b"grpc-status", b"")], Status.UNKNOWN),
]  # fmt: skip
STARTS = [
    ("of grpc", [(b":status", b"200"), GRPC]),
    ("of grpc+proto", [(b":status", b"200"), (b"content-type", b"application/grpc+proto")]),
    ("of another type", [(b":status", b"200"), HTML]),
    ("of no type", [(b":status", b"200")]),
    ("of a proxy in trouble", [(b":status", b"503"), HTML]),
]


@pytest.mark.parametrize(
    ("start", "last", "status"),
    [
        *(pytest.param(STARTS[0][1], last, status, id=name) for name, last, status in LAST),
        *(pytest.param(start, LAST[1][1], LAST[1][2], id=name) for name, start in STARTS[1:]),
    ],
)
@pytest.mark.parametrize("form", ["trailers only", "trailers"])
@trio_test
async def test_responses_with_grpc_status_pass_as_they_are(
    engine: Engine, start: list[Field], last: list[Field], status: Status, form: str
) -> None:
    """A grpc-status counts whatever the HTTP status and the type beside it are."""
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        if form == "trailers only":
            await served.headers([*start, *last], end=True)
        else:
            await served.headers(start)
            await served.data(message(b"x"))
            await served.headers(last, end=True)
        answer = await call.answer()
        assert answer.headers is not None
        if form == "trailers only":
            assert (answer.frames, answer.headers.fields) == (["HEADERS END_STREAM"], [*start, *last])
        else:
            assert answer.trailers is not None
            assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
            assert (answer.headers.fields, answer.trailers.fields) == (start, last)
        record = await house.record()
        assert (record.status, record.origin) == (status, "upstream")


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("not here", b"not here"),
        ("100%", b"100%25"),
        ("one\ntwo\t", b"one%0Atwo%09"),
        ("Schneemann ☃", b"Schneemann %E2%98%83"),
        ("~!\x7f", b"~!%7F"),
    ],
)
@trio_test
async def test_responses_of_the_proxy_are_trailers_only_and_percent_encoded(
    engine: Engine, text: str, encoded: bytes
) -> None:
    def director(_context: CallContext, _method: str) -> tuple[CallContext, PoolConn]:
        raise RpcError(Status.ABORTED, text, trailing_metadata=[("x", "1"), ("x-bin", b"\0\1\xff")])

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        answer = await (await client.request(body=None)).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.headers is not None
        assert answer.headers.fields == [
            *((b":status", b"200"), GRPC, (b"grpc-status", b"10"), (b"grpc-message", encoded)),
            *((b"x", b"1"), (b"x-bin", b"AAH/")),
        ]


# --- "Requests": grpc-timeout ---

NO_TIMEOUTS = [
    *(
        b"",
        b"S",
        b"1",
        b"1s",
        b"1 S",
        b"-1S",
        b"+1S",
        b"1.5S",
        b"1e3m",
        b"0x1S",
        b"1SS",
        b"1H2M",
        b"S1",
        b"1D",
    ),
    *(b"123456789S", b"000000001S", b"1,5S", b"1_0S", b"\xb2S", b"infinity", b"1ms"),
]


@pytest.mark.parametrize("value", NO_TIMEOUTS)
@trio_test
async def test_timeout_that_is_none_is_passed_on_and_sets_no_deadline(engine: Engine, value: bytes) -> None:
    contexts: list[CallContext] = []

    def configure(server: Server, to_backend: StreamDirector) -> None:
        def director(context: CallContext, method: str) -> Any:
            contexts.append(context)
            return to_backend(context, method)

        server.add_handler("/a.B/C", transparent_handler(director))

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", value))
        served = await house.backend.request()
        assert served.request.get_all(b"grpc-timeout") == [value]
        await served.respond()
        assert (await call.answer()).status == Status.OK
    assert contexts[0].deadline is None


@pytest.mark.parametrize(
    "rule",
    [
        Rule(
            "timeout",
            "there is one at the most",
            headers(1, changed({}, (b"grpc-timeout", b"1S"), (b"grpc-timeout", b"2S"))),
            Resets(ErrorCode.PROTOCOL_ERROR),
        )
    ],
    ids=str,
)
@trio_test
async def test_requests(engine: Engine, rule: Rule[ByCaller]) -> None:
    await play_as_caller(engine, rule)


# --- "Errors", "Connection Management": what a backend may do to its calls ---

ASKED, ASKED_3 = "HEADERS 1 /a.B/C END_STREAM", "HEADERS 3 /a.B/C END_STREAM"
DONE, DONE_3 = (headers(stream, TRAILERS_ONLY, end_stream=True) for stream in (1, 3))
NEVER = 2**31 - 1
BEGUN = headers(1, RESPONSE)
IN_MESSAGE = BEGUN + data(1, message(b"12345")[:7])
BY_RESET = dict.fromkeys(ErrorCode, Status.INTERNAL) | {
    ErrorCode.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCode.CANCEL: Status.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}
TIMEOUT = (b"grpc-timeout", b"300m")
WARM: list[Step] = [calls(), ASKED, DONE, told(Status.OK)]
"""A call before one with a deadline, which then need not wait for a dial."""


def closes(last: int = 0, code: str = "NO_ERROR") -> list[Step]:
    """The proxy ends the connection, in good order."""
    return [f"GOAWAY {last} {code}", CLOSED]


BACKENDS = [
    *(
        Exchange(
            "errors",
            f"{code.name} {when}",
            [calls(), ASKED, begun + rst_stream(1, code), told(status), quiet],
        )
        for when, begun in (("behind headers", BEGUN), ("in a message", IN_MESSAGE))
        for code, status in BY_RESET.items()
    ),
    *(
        Exchange(
            "errors", f"{code.name} at first", [calls(), ASKED, rst_stream(1, code), told(Status.INTERNAL)]
        )
        for code in (ErrorCode.STREAM_CLOSED, ErrorCode.HTTP_1_1_REQUIRED)
    ),
    Exchange(
        "errors",
        "a reset behind the status changes nothing",
        [calls(), ASKED, DONE + rst_stream(1, ErrorCode.INTERNAL_ERROR), told(Status.OK), quiet],
    ),
    Exchange(
        "cancellation",
        "a deadline is one",
        [
            *WARM,
            calls(None, TIMEOUT),
            ASKED_3,
            "RST_STREAM 3 CANCEL",
            told(Status.DEADLINE_EXCEEDED, 1),
            quiet,
        ],
    ),
    Exchange(
        "cancellation",
        "a status behind it changes nothing",
        [
            *(*WARM, calls(None, TIMEOUT), ASKED_3, "RST_STREAM 3 CANCEL", DONE_3),
            *(told(Status.DEADLINE_EXCEEDED, 1), quiet),
        ],
    ),
    Exchange(
        "goaway", "what was taken is answered", [calls(), ASKED, goaway(1), DONE, told(Status.OK), *closes()]
    ),
    Exchange(
        "goaway",
        "new calls go elsewhere",
        [
            *(calls(), ASKED, goaway(1), quiet, calls(), connection(1), ASKED, DONE, told(Status.OK, 1)),
            *(connection(0), DONE, told(Status.OK), *closes()),
        ],
    ),
    Exchange(
        "goaway",
        "what was not taken goes elsewhere",
        [
            *(calls(), ASKED, calls(), ASKED_3, goaway(1)),
            *(connection(1), ASKED, DONE, told(Status.OK, 1)),
            *(connection(0), DONE, told(Status.OK), *closes()),
        ],
    ),
    Exchange(
        "goaway",
        "whatever its code what was not taken goes elsewhere",
        [
            *(
                calls(),
                ASKED,
                calls(),
                ASKED_3,
                goaway(1, ErrorCode.ENHANCE_YOUR_CALM),
                DONE,
                told(Status.OK),
            ),
            *(connection(1), ASKED, DONE, told(Status.OK, 1)),
        ],
    ),
    Exchange(
        "goaway",
        "what nobody takes is unavailable",
        [calls(), ASKED, goaway(0), connection(1), ASKED, goaway(0), told(Status.UNAVAILABLE)],
    ),
    Exchange(
        "goaway",
        "a second one may name less",
        [
            *(calls(), ASKED, calls(), ASKED_3, goaway(NEVER), quiet, goaway(1)),
            *(connection(1), ASKED, DONE, told(Status.OK, 1)),
        ],
    ),
    Exchange(
        "goaway",
        "what has an answer is not sent again",
        [calls(), ASKED, BEGUN + goaway(0), told(Status.UNAVAILABLE)],
    ),
    Exchange(
        "goaway",
        "what was taken may be lost",
        [calls(), ASKED, goaway(1), quiet, hangs_up, told(Status.UNAVAILABLE)],
    ),
    Exchange(
        "ping", "it comes back as it was", [calls(), ASKED, ping(b"\0\1~abcde"), "PING \0\1~abcde ACK", quiet]
    ),
    Exchange("ping", "an answer is not answered", [calls(), ASKED, ping(ack=True), quiet]),
]


@pytest.mark.parametrize("rule", BACKENDS, ids=str)
@trio_test
async def test_with_a_backend(engine: Engine, rule: Exchange) -> None:
    await play_with_a_backend(engine, rule)


# --- The same, as a caller sees it from the proxy ---


async def stops(scene: Scene) -> None:
    """The proxy is told to stop, when its calls are done."""
    scene.house.server.stop(grace_s=20)


async def backend_answers(scene: Scene) -> None:
    await scene.served[-1].respond()


ASK, ASK_3, ASK_5 = (headers(stream, end_stream=True) for stream in (1, 3, 5))
LEAVING: list[Step] = [
    *(stops, f"GOAWAY {NEVER} NO_ERROR", "PING draining"),
    *(ping(b"draining", ack=True), "GOAWAY 1 NO_ERROR", quiet),
]
LEFT: list[Step] = ["PING finished", ping(b"finished", ack=True), "GOAWAY 1 NO_ERROR", CLOSED]
ANSWERED: list[Step] = [backend_answers, "HEADERS 1 200", "DATA 1 [5]", "HEADERS 1 grpc-status 0 END_STREAM"]
CALLERS = [
    *(
        Exchange(
            "timeout",
            f"{value.decode()} has passed",
            [
                headers(1, changed({}, (b"grpc-timeout", value)), end_stream=True),
                *("HEADERS 1 200 grpc-status 4 END_STREAM", nobody_asked, quiet),
            ],
        )
        for value in (b"0H", b"00000000S", b"0n")
    ),
    Exchange("goaway", "the proxy says it before it goes", [ASK, asked(), *LEAVING, *ANSWERED, *LEFT]),
    Exchange(
        "goaway",
        "what comes before the last one is taken",
        [
            *(ASK, asked(), stops, f"GOAWAY {NEVER} NO_ERROR", "PING draining"),
            *(ASK_3, asked(), ping(b"draining", ack=True), "GOAWAY 3 NO_ERROR"),
        ],
    ),
    Exchange(
        "goaway",
        "what comes behind the last one is not taken",
        [ASK, asked(), *LEAVING, ASK_3 + ASK_5, quiet, nobody_asked, *ANSWERED, *LEFT],
    ),
    Exchange(
        "goaway",
        "a caller that goes is answered",
        [ASK, goaway(0), quiet, answers(), "HEADERS 1 200", "HEADERS 1 grpc-status 0 END_STREAM"],
    ),
    Exchange("ping", "it comes back as it was", [ping(b"\0\1~abcde"), "PING \0\1~abcde ACK", quiet]),
    Exchange(
        "ping",
        "each comes back in order",
        [ping(b"1st ping") + ping(b"2nd ping"), "PING 1st ping ACK", "PING 2nd ping ACK", quiet],
    ),
    Exchange("ping", "an answer is not answered", [ping(ack=True), quiet]),
]


@pytest.mark.parametrize("rule", CALLERS, ids=str)
@trio_test
async def test_with_a_caller(engine: Engine, rule: Exchange) -> None:
    await play_with_a_caller(engine, rule)
