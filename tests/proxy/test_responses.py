"""What the caller gets of a response, whole or broken."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallContext,
    Metadata,
    PoolConn,
    ResponseChanges,
    RpcError,
    Status,
    Target,
)
from rawgrpc_proxy.config import Engine
from tests.proxy.house import House, Recorder, a_proxy, on_every_engine
from tests.proxy.raw_peers import (
    INITIAL_WINDOW_SIZE,
    MAX_HEADER_LIST_SIZE,
    OK,
    RESPONSE,
    TRAILERS_ONLY,
    Field,
    message,
    request_fields,
)

pytestmark = on_every_engine

NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 0, 1, 7, 8


@trio_test
async def test_headers_arrive_before_the_first_message(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers([*RESPONSE, (b"x-early", b"1")])
        assert (await call.expect_headers()).get(b"x-early") == b"1"
        await served.body(message(b"x"))
        await served.headers(OK, end=True)
        assert (await call.answer()).frames == ["DATA", "HEADERS END_STREAM"]


@trio_test
async def test_trailers_only_from_the_upstream_stays_one_frame(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.headers([*TRAILERS_ONLY, (b"x-t", b"1")], end=True)
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.headers is not None
        assert answer.headers.fields == [*TRAILERS_ONLY, (b"x-t", b"1")]


@trio_test
async def test_headers_and_trailers_without_a_message_stay_two_frames(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.headers(OK, end=True)
        assert (await call.answer()).frames == ["HEADERS", "HEADERS END_STREAM"]


@pytest.mark.parametrize("body", [[], [b"<br/>"]])
@trio_test
async def test_a_response_that_ends_with_empty_data_goes_on_with_it(
    engine: Engine, body: list[bytes]
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        for piece in body:
            await served.data(piece)
            assert (await call.expect_headers()).fields == RESPONSE
            assert (await call.expect_data()).data == piece
        await served.data(b"", end=True)
        assert (await call.answer()).frames == [*([] if body else ["HEADERS"]), "DATA END_STREAM"]
        record = await house.record()
        assert (record.status, record.origin, record.cause) == (Status.UNKNOWN, "http", "HTTP 200")


@trio_test
async def test_an_end_by_trailers_is_not_brought_forward_to_data_that_waits_for_the_caller(
    engine: Engine,
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client(settings={INITIAL_WINDOW_SIZE: 0})
        call = await client.request()
        served = await house.backend.request()
        await served.respond(b"x")
        await served.peer.ping()
        assert (await call.expect_headers()).fields == RESPONSE
        await client.credit(call, 100)
        assert (await call.answer()).frames == ["DATA", "HEADERS END_STREAM"]


@trio_test
async def test_empty_trailers_end_the_response(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.headers([], end=True)
        answer = await call.answer()
        assert answer.status is None
        assert answer.reset is None
        assert (await house.record()).status == Status.UNKNOWN


@trio_test
async def test_informational_responses_are_skipped(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers([(b":status", b"103"), (b"link", b"</x>")])
        await served.headers([(b":status", b"100")])
        await served.respond(b"x")
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
        assert answer.http_status == b"200"


@pytest.mark.parametrize(
    ("http_status", "status"), [(b"404", 12), (b"503", 14), (b"302", 2), (b"429", 14), (b"200", 2)]
)
@trio_test
async def test_an_answer_that_is_no_grpc_passes_unchanged(
    engine: Engine, http_status: bytes, status: int
) -> None:
    fields = [(b":status", http_status), (b"content-type", b"text/html"), (b"content-length", b"5")]
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(fields)
        await served.data(b"<br/>", end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.fields == fields
        assert answer.body == b"<br/>"
        assert answer.frames == ["HEADERS", "DATA END_STREAM"]
        record = await house.record()
        assert (record.status, record.origin, record.cause) == (
            status,
            "http",
            f"HTTP {http_status.decode()}",
        )


@trio_test
async def test_a_caller_who_cancels_cancels_the_upstream(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await call.reset(CANCEL)
        assert await served.expect_reset() == CANCEL
        record = await house.record()
        assert (record.status, record.origin) == (Status.CANCELLED, "downstream")


@trio_test
async def test_a_caller_who_cancels_in_mid_response_cancels_the_upstream(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.data(message(b"one"))
        await call.expect_headers()
        await call.reset(NO_ERROR)
        assert await served.expect_reset() == CANCEL
        await house.record()


@trio_test
async def test_a_caller_who_disconnects_cancels_the_upstream(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        calls = [await client.open(request_fields()) for _ in range(3)]
        served = [await house.backend.request() for _ in calls]
        await client.aclose()
        for stream in served:
            assert await stream.expect_reset() == CANCEL
            record = await house.record()
            assert (record.status, record.origin) == (Status.UNAVAILABLE, "downstream")


@trio_test
async def test_a_caller_who_says_that_no_more_comes_has_disconnected(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        await client.request()
        served = await house.backend.request()
        await served.request_body()
        client.end_at_once()
        assert await served.expect_reset() == CANCEL
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "downstream")
        await client.closed()


@trio_test
async def test_headers_and_reset_in_one_read_never_reach_the_upstream(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = client.new_stream()
        headers = client.header_frames(call.id, request_fields())
        reset = b"\0\0\4\3\0" + call.id.to_bytes(4, "big") + (8).to_bytes(4, "big")
        await client.send_bytes(headers + reset)
        assert (await house.record()).status == Status.CANCELLED
        assert house.backend.peers == []


@trio_test
async def test_an_early_response_comes_whole_and_then_stops_the_request(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await call.data(message(b"part"))
        await served.read(9)
        await served.respond(b"enough")
        answer = await call.answer()
        assert answer.body == message(b"enough")
        assert answer.status == Status.OK
        assert await call.expect_reset() == NO_ERROR
        assert await served.expect_reset() == NO_ERROR
        assert (await house.record()).status == Status.OK


@trio_test
async def test_an_early_answer_to_a_request_that_waits_for_windows_gives_the_stream_back(
    engine: Engine,
) -> None:
    # The request has ended as far as the proxy is concerned, but the upstream takes no more of it.
    async with a_proxy(engine) as house:
        house.backend.prepare = lambda peer: setattr(peer, "credits", False)
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await call.body(message(bytes(200_000)), end=True)
        await served.read(65_535)
        await served.headers(TRAILERS_ONLY, end=True)
        assert (await call.answer()).status == Status.OK
        assert await served.expect_reset() == NO_ERROR
        assert (await house.record()).status == Status.OK


@trio_test
async def test_a_slow_reader_gets_a_whole_response_that_was_followed_by_a_reset(engine: Engine) -> None:
    body = bytes(100_000)
    async with a_proxy(engine) as house:
        client = await house.client()
        client.credits = False
        call = await client.open(request_fields())
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(message(body))
        await served.headers(OK, end=True)
        await served.reset(NO_ERROR)
        await served.peer.ping()
        await call.expect_headers()
        got = await call.read(65_535)
        await client.credit_everything()
        answer = await call.answer()
        assert got + answer.body == message(body)
        assert answer.status == Status.OK
        assert await call.expect_reset() == NO_ERROR


@trio_test
async def test_a_slow_reader_gets_a_whole_response_though_the_upstream_connection_is_lost(
    engine: Engine,
) -> None:
    body = bytes(100_000)
    async with a_proxy(engine) as house:
        client = await house.client()
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(message(body))
        await served.headers(OK, end=True)
        await served.peer.ping()
        await served.peer.aclose()
        await call.expect_headers()
        got = await call.read(65_535)
        await client.credit_everything()
        answer = await call.answer()
        assert got + answer.body == message(body)
        assert answer.status == Status.OK
        assert (await house.record()).status == Status.OK


RESETS = [
    (0x0, 13),
    (0x1, 13),
    (0x2, 13),
    (0x3, 13),
    (0x4, 13),
    (0x5, 13),
    (0x6, 13),
    (0x7, 14),
    (0x8, 1),
    (0x9, 13),
    (0xA, 13),
    (0xB, 8),
    (0xC, 7),
    (0xD, 13),
    (0xE, 2),
    (0xFFFF_FFFF, 2),
]


@trio_test
async def test_a_reset_before_the_headers_becomes_trailers_only(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for code, status in RESETS:
            call = await client.request()
            for _ in range(2 if code == REFUSED_STREAM else 1):
                await (await house.backend.request()).reset(code)
            answer = await call.answer()
            assert answer.frames == ["HEADERS END_STREAM"]
            assert (answer.http_status, answer.status) == (b"200", status), hex(code)
            record = await house.record()
            assert (record.status, record.origin) == (status, "reset")


@trio_test
async def test_a_reset_after_the_headers_becomes_trailers(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for code, status in RESETS:
            call = await client.request()
            served = await house.backend.request()
            await served.headers(RESPONSE)
            await served.data(message(b"one")[:4])
            await served.reset(code)
            answer = await call.answer()
            assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
            assert answer.status == status, hex(code)
            assert (await house.record()).status == status
        assert house.backend.no_request_came()


@trio_test
async def test_a_reset_with_cancel_when_the_deadline_has_passed_is_deadline_exceeded(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
        served = await house.backend.request()
        deadline = trio.current_time() + 1.01
        while trio.current_time() < deadline:  # keeps the proxy from noticing first
            pass
        await served.reset(CANCEL)
        assert (await call.answer()).status == Status.DEADLINE_EXCEEDED


@trio_test
async def test_a_connection_lost_in_mid_message_is_never_a_success(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.data(message(bytes(1000))[:500])
        await served.peer.ping()
        await served.peer.aclose()
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert len(answer.body) == 500
        assert (await house.record()).status == Status.UNAVAILABLE
        # The next call gets a connection of its own.
        call = await client.request()
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_connection_lost_before_the_headers_is_unavailable_and_not_retried(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.peer.aclose()
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.UNAVAILABLE
        assert house.backend.no_request_came()


@trio_test
async def test_losing_a_connection_ends_its_calls_and_no_others(engine: Engine) -> None:
    async with a_proxy(engine, pool={"ms": 1}) as house:
        client = await house.client()
        first = await client.request()
        on_first = await house.backend.request()
        second = await client.request()
        on_second = await house.backend.request()
        assert on_first.peer is not on_second.peer
        await on_first.peer.aclose()
        assert (await first.answer()).status == Status.UNAVAILABLE
        await on_second.respond(b"fine")
        assert (await second.answer()).body == message(b"fine")


BAD_RESPONSES: list[tuple[str, list[Field]]] = [
    ("no :status", [(b"content-type", b"application/grpc")]),
    (":status that is no number", [(b":status", b"2x0")]),
    ("an upper-case name", [*RESPONSE, (b"X-Upper", b"1")]),
    ("a control character", [*RESPONSE, (b"x-a", b"a\0b")]),
    ("a header of HTTP/1.1", [*RESPONSE, (b"connection", b"close")]),
    ("a pseudo-header of requests", [*RESPONSE, (b":path", b"/")]),
    ("a content-length that makes no sense", [*RESPONSE, (b"content-length", b"-1")]),
]


@trio_test
async def test_a_malformed_response_ends_that_call_alone(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        sibling = await client.open(request_fields("/a.B/Sibling"))
        sibling_served = await house.backend.request()
        for name, fields in BAD_RESPONSES:
            call = await client.request()
            served = await house.backend.request()
            await served.request_body()
            await served.headers(fields)
            assert await served.expect_reset() == PROTOCOL_ERROR, name
            answer = await call.answer()
            assert answer.status == Status.INTERNAL, name
            assert answer.message is not None
            assert b"the proxy reset the stream with PROTOCOL_ERROR" in answer.message
            assert (await house.record()).origin == "proxy"
        await sibling.data(b"", end=True)
        await sibling_served.respond(b"fine")
        assert (await sibling.answer()).body == message(b"fine")


@trio_test
async def test_headers_in_mid_stream_end_that_call_alone(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.headers(RESPONSE)
        await served.data(message(b"one"))
        await served.headers([(b"x-mid", b"1")])
        assert await served.expect_reset() == PROTOCOL_ERROR
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
        assert answer.status == Status.INTERNAL
        await house.record()


@trio_test
async def test_trailers_that_are_too_long_keep_the_status(engine: Engine) -> None:
    failed = [(b"grpc-status", b"9"), (b"grpc-message", b"Userspace error.")]
    async with a_proxy(engine, max_header_list_bytes=2000) as house:
        client = await house.client()
        for headers in ([], [RESPONSE]):
            call = await client.request()
            served = await house.backend.request()
            for before in headers:
                await served.headers(before)
            details = (b"grpc-status-details-bin", b"x" * 2000)
            await served.headers([*([] if headers else RESPONSE), *failed, details], end=True)
            answer = await call.answer()
            assert answer.status == Status.FAILED_PRECONDITION
            assert answer.message == b"Userspace error."
            assert (await house.record()).status is Status.FAILED_PRECONDITION


@trio_test
async def test_the_observer_of_the_pool_hears_of_trailers_that_are_too_long(engine: Engine) -> None:
    heard = Recorder()
    async with a_proxy(engine, pool={"observer": heard}, max_header_list_bytes=2000) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers([*TRAILERS_ONLY, (b"x-long", b"x" * 2000)], end=True)
        assert (await call.answer()).status == Status.OK
        ((limit, detail),) = heard.limits_reached
        assert limit == "max_header_list_bytes"
        assert "max_header_list_bytes is 2000: of them only grpc-status and grpc-message" in detail


@pytest.mark.parametrize("kind", ["headers", "trailers", "trailers only"])
@trio_test
async def test_a_response_respects_the_longest_list_that_the_caller_takes(engine: Engine, kind: str) -> None:
    failed = [(b"grpc-status", b"9"), (b"grpc-message", b"Userspace error.")]
    long = (b"x-long", b"x" * 2000)
    async with a_proxy(engine) as house:
        client = await house.client(settings={MAX_HEADER_LIST_SIZE: 1000})
        call = await client.request()
        served = await house.backend.request()
        if kind == "headers":
            await served.headers([*RESPONSE, long])
        elif kind == "trailers":
            await served.headers(RESPONSE)
            await served.headers([*failed, long], end=True)
        else:
            await served.headers([*RESPONSE, *failed, long], end=True)
        answer = await call.answer()
        if kind == "headers":
            assert answer.status == Status.RESOURCE_EXHAUSTED
            assert b"the caller takes 1000" in (answer.message or b"")
        else:
            assert answer.status == Status.FAILED_PRECONDITION
            assert answer.message == b"Userspace error."
            assert [limit for limit, _ in house.observer.limits_reached] == ["SETTINGS_MAX_HEADER_LIST_SIZE"]
        await house.record()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RpcError(Status.NOT_FOUND, "who?", trailing_metadata={"x-long": "x" * 2000}), b"who?"),
        (RpcError(Status.NOT_FOUND, "?" * 2000), b"?" * 810),
    ],
)
@trio_test
async def test_a_status_of_our_own_respects_the_longest_list_that_the_caller_takes(
    engine: Engine, error: RpcError, message: bytes
) -> None:
    def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        raise error

    async with a_proxy(engine, director=director) as house:
        client = await house.client(settings={MAX_HEADER_LIST_SIZE: 1000})
        answer = await (await client.request()).answer()
        assert (answer.status, answer.message) == (Status.NOT_FOUND, message)
        assert answer.headers is not None
        assert sum(len(name) + len(value) + 32 for name, value in answer.headers.fields) <= 1000
        assert [limit for limit, _ in house.observer.limits_reached] == ["SETTINGS_MAX_HEADER_LIST_SIZE"]
        await house.record()


@pytest.mark.parametrize("only", [False, True])
@trio_test
async def test_trailers_that_are_too_long_for_us_and_for_the_caller_keep_the_status(
    engine: Engine, only: bool
) -> None:
    failed = [(b"grpc-status", b"9"), (b"grpc-message", b"Userspace error."), (b"x-long", b"x" * 3000)]
    async with a_proxy(engine, max_header_list_bytes=2000) as house:
        client = await house.client(settings={MAX_HEADER_LIST_SIZE: 1000})
        for _ in range(2):
            call = await client.request()
            served = await house.backend.request()
            if not only:
                await served.headers(RESPONSE)
            await served.headers([*(RESPONSE if only else []), *failed], end=True)
            answer = await call.answer()
            assert answer.status == Status.FAILED_PRECONDITION
            assert answer.message == b"Userspace error."
            await house.record()


@pytest.mark.parametrize("trailers", [False, True])
@trio_test
async def test_a_header_list_from_the_upstream_that_is_too_long_ends_that_call_alone(
    engine: Engine, trailers: bool
) -> None:
    async with a_proxy(engine, max_header_list_bytes=2000) as house:
        client = await house.client()
        sibling = await client.open(request_fields("/a.B/Sibling"))
        sibling_served = await house.backend.request()
        call = await client.request()
        served = await house.backend.request()
        if trailers:
            await served.headers(RESPONSE)
            await served.headers([*OK, (b"x-long", b"x" * 2000)], end=True)
        else:
            await served.headers([*RESPONSE, (b"x-long", b"x" * 2000)])
        answer = await call.answer()
        assert answer.status == (Status.OK if trailers else Status.RESOURCE_EXHAUSTED)
        await sibling.data(b"", end=True)
        await sibling_served.respond(b"fine")
        assert (await sibling.answer()).body == message(b"fine")


@trio_test
async def test_a_whole_response_that_nobody_reads_is_taken_back_when_the_deadline_passes(
    engine: Engine,
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        client.credits = False
        call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(bytes(100_000))
        await served.headers(OK, end=True)
        answer = await call.answer()
        assert answer.reset == CANCEL
        assert len(answer.body) < 100_000
        record = await house.record()
        assert (record.status, record.response_bytes) == (Status.DEADLINE_EXCEEDED, 100_000)


@pytest.mark.parametrize("trailers_only", [True, False])
@trio_test
async def test_blanks_around_a_message_arrive(engine: Engine, trailers_only: bool) -> None:
    status = [(b"grpc-status", b"9"), (b"grpc-message", b" said so\t ")]
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        if trailers_only:
            await served.headers([*RESPONSE, *status], end=True)
        else:
            await served.headers(RESPONSE)
            await served.headers(status, end=True)
        answer = await call.answer()
        assert (answer.status, answer.message) == (9, b"%20said so%09%20")
        assert (await house.record()).detail == " said so\t "


EDGE = ResponseChanges(remove=["x-internal"], set_values={"x-edge": "1", "x-who": "proxy"})


@asynccontextmanager
async def a_proxy_that_changes(engine: Engine, changes: Any = EDGE) -> AsyncIterator[House]:
    """With a director that changes what callers get."""

    def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
        changed = attrs.evolve(context, response_changes=changes)
        return changed, house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        yield house


@trio_test
async def test_response_headers_and_trailers_come_as_the_director_has_changed_them(engine: Engine) -> None:
    async with a_proxy_that_changes(engine) as house:
        client = await house.client()
        for _ in range(3):  # what repeats is not worked out again
            call = await client.request()
            served = await house.backend.request()
            await served.headers(
                [*RESPONSE, (b"x-internal", b"1"), (b"x-who", b"backend"), (b"x-kept", b" k")]
            )
            await served.body(message(b"x"))
            await served.headers([*OK, (b"x-internal", b"2"), (b"x-who", b"backend")], end=True)
            answer = await call.answer()
            assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
            assert answer.headers is not None
            assert answer.headers.fields == [
                *RESPONSE,
                (b"x-kept", b"k"),
                (b"x-edge", b"1"),
                (b"x-who", b"proxy"),
            ]
            assert answer.trailers is not None
            assert answer.trailers.fields == [*OK, (b"x-who", b"backend")]
            assert (await house.record()).status == Status.OK


@trio_test
async def test_a_response_that_is_one_list_is_changed_as_headers_are(engine: Engine) -> None:
    async with a_proxy_that_changes(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        fields = [*RESPONSE, (b"grpc-status", b"5"), (b"grpc-message", b"gone"), (b"x-internal", b"1")]
        await served.headers(fields, end=True)
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.headers is not None
        assert answer.headers.fields == [*fields[:-1], (b"x-edge", b"1"), (b"x-who", b"proxy")]
        record = await house.record()
        assert (record.status, record.origin, record.detail) == (Status.NOT_FOUND, "upstream", "gone")


@trio_test
async def test_an_error_of_the_proxy_is_not_changed(engine: Engine) -> None:
    async with a_proxy_that_changes(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.reset(CANCEL)
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.get(b"x-edge") is None
        await house.record()


@trio_test
async def test_what_is_set_counts_for_what_the_caller_takes(engine: Engine) -> None:
    changes = ResponseChanges(set_values={"x-long": "x" * 500})
    async with a_proxy_that_changes(engine, changes) as house:
        client = await house.client(settings={MAX_HEADER_LIST_SIZE: 400})
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.headers(RESPONSE)
        assert (await call.answer()).status == Status.RESOURCE_EXHAUSTED
        assert await served.expect_reset() == CANCEL
        await house.record()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.headers(TRAILERS_ONLY, end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.fields == TRAILERS_ONLY  # how the call went, and no more
        await house.record()


@trio_test
async def test_what_is_removed_counts_no_more(engine: Engine) -> None:
    async with a_proxy_that_changes(engine) as house:
        client = await house.client(settings={MAX_HEADER_LIST_SIZE: 400})
        call = await client.request()
        served = await house.backend.request()
        await served.headers([*RESPONSE, (b"x-internal", b"x" * 500)])
        await served.headers([*OK, (b"x-internal", b"x" * 500)], end=True)
        answer = await call.answer()
        assert answer.status == Status.OK
        assert not house.observer.limits_reached
        await house.record()


@trio_test
async def test_a_call_that_is_sent_once_more_is_changed_as_well(engine: Engine) -> None:
    async with a_proxy_that_changes(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.reset(REFUSED_STREAM)
        served = await house.backend.request()
        await served.respond(b"x")
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.get(b"x-edge") == b"1"
        await house.record()


@trio_test
async def test_changes_that_are_none_cost_their_call_alone(engine: Engine) -> None:
    async with a_proxy_that_changes(engine, {"x-edge": "1"}) as house:
        client = await house.client()
        assert (await (await client.request()).answer()).status == Status.INTERNAL
        [error] = house.observer.failed
        assert "the changes to a response are ResponseChanges, not dict" in str(error)
        await house.record()
        with pytest.raises(TypeError, match="ResponseChanges, not dict"):
            CallContext(method="/p.S/M", metadata=Metadata(), peer="").with_response_changes({})  # type: ignore[arg-type]
