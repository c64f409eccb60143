"""gRPC over HTTP/2 (PROTOCOL-HTTP2.md): requests, responses, and what the errors of HTTP/2 mean for a call."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.timeout import parse_timeout
from tests.conformance.rules import Answered, ByCaller, Field, Rule, changed, play_as_caller
from tests.http2.peer import headers
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import message, request_fields

pytestmark = on_every_engine


def refused(content_type: bytes | None) -> bytes:
    return headers(1, changed({b"content-type": content_type}), end_stream=True)


NO_GRPC = Answered(b"415", Status.INTERNAL)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("requests", "content-type is needed", refused(None), NO_GRPC),
        Rule("requests", "content-type is that of grpc", refused(b"application/json"), NO_GRPC),
        Rule("requests", "content-type is not longer", refused(b"application/grpcx"), NO_GRPC),
        Rule("requests", "content-type is not that of grpc-web", refused(b"application/grpc-web"), NO_GRPC),
    ],
    ids=str,
)
@trio_test
async def test_requests(engine: Engine, rule: Rule[ByCaller]) -> None:
    await play_as_caller(engine, rule)


async def heard(engine: Engine, *extra: Field) -> list[Field]:
    """What the backend hears of a call with these fields."""
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", *extra)
        served = await house.backend.request()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        return served.request.fields


@pytest.mark.parametrize(
    "kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8"]
)
@trio_test
async def test_requests_any_subtype_of_grpc_passes_as_it_is(engine: Engine, kind: bytes) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        fields = [(name, kind if name == b"content-type" else value) for name, value in request_fields()]
        call = await client.open(fields, end=True)
        served = await house.backend.request()
        assert served.request.get(b"content-type") == kind
        await served.respond()
        assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("unit", [b"H", b"M", b"S"])
@trio_test
async def test_timeout_has_six_units_and_what_is_left_is_told(engine: Engine, unit: bytes) -> None:
    told = dict(await heard(engine, (b"grpc-timeout", b"9" + unit)))[b"grpc-timeout"]
    assert 0.9 * parse_timeout(b"9" + unit) < parse_timeout(told) <= parse_timeout(b"9" + unit)


@pytest.mark.parametrize(("asked", "seconds"), [(b"99999999m", 99_999.999), (b"99999999u", 99.999999)])
@trio_test
async def test_timeout_has_eight_digits(engine: Engine, asked: bytes, seconds: float) -> None:
    told = dict(await heard(engine, (b"grpc-timeout", asked)))[b"grpc-timeout"]
    assert 0.9 * seconds < parse_timeout(told) <= seconds


@pytest.mark.parametrize(
    "field",
    [
        (b"user-agent", b"grpc-c++/1.2 (linux)"),
        (b"x-data-bin", b"AAEC/w"),
        (b"x-data-bin", b"AAEC/w=="),
        (b"x-data-bin", b"AAEC,/w"),
        (b"grpc-encoding", b"zstd"),
        (b"grpc-accept-encoding", b"identity,deflate,gzip"),
        (b"grpc-previous-rpc-attempts", b"1"),
        (b"x-any", b"any ASCII ~"),
    ],
)
@trio_test
async def test_metadata_pass_as_they_are(engine: Engine, field: Field) -> None:
    assert field in await heard(engine, field)


@trio_test
async def test_te_trailers_is_said_upstream(engine: Engine) -> None:
    assert (b"te", b"trailers") in await heard(engine)


@pytest.mark.parametrize("size", [1, 4, 5, 6, 13])
@trio_test
async def test_messages_may_be_cut_into_frames_anywhere(engine: Engine, size: int) -> None:
    body = message(b"one") + message(b"") + message(b"three", flag=1)
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        for at in range(0, len(body), size):
            await call.data(body[at : at + size], end=at + size >= len(body))
        served = await house.backend.request()
        assert await served.request_body() == body
        await served.headers([(b":status", b"200"), (b"content-type", b"application/grpc")])
        for at in range(0, len(body), size):
            await served.data(body[at : at + size])
        await served.headers([(b"grpc-status", b"0")], end=True)
        answer = await call.answer()
        assert (answer.body, answer.status) == (body, Status.OK)
        assert (await house.record()).response_messages == 3


@pytest.mark.parametrize(
    "trailers",
    [
        [(b"grpc-status", b"0")],
        [(b"grpc-status", b"5"), (b"grpc-message", b"not%20here%21 %E2%98%83")],
        [(b"grpc-status", b"13"), (b"grpc-status-details-bin", b"CAUSAQ")],
        [(b"grpc-status", b"99")],
    ],
)
@trio_test
async def test_responses_end_as_the_backend_ended_them(engine: Engine, trailers: list[Field]) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for only_trailers in (True, False):
            call = await client.request()
            served = await house.backend.request()
            start = [(b":status", b"200"), (b"content-type", b"application/grpc")]
            if only_trailers:
                await served.headers([*start, *trailers], end=True)
                answer = await call.answer()
                assert answer.headers is not None
                assert answer.headers.fields == [*start, *trailers]
            else:
                await served.headers(start)
                await served.headers(trailers, end=True)
                answer = await call.answer()
                assert answer.trailers is not None
                assert answer.trailers.fields == trailers


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.NO_ERROR, Status.INTERNAL),
        (ErrorCode.PROTOCOL_ERROR, Status.INTERNAL),
        (ErrorCode.INTERNAL_ERROR, Status.INTERNAL),
        (ErrorCode.FLOW_CONTROL_ERROR, Status.INTERNAL),
        (ErrorCode.SETTINGS_TIMEOUT, Status.INTERNAL),
        (ErrorCode.FRAME_SIZE_ERROR, Status.INTERNAL),
        (ErrorCode.CANCEL, Status.CANCELLED),
        (ErrorCode.COMPRESSION_ERROR, Status.INTERNAL),
        (ErrorCode.CONNECT_ERROR, Status.INTERNAL),
        (ErrorCode.ENHANCE_YOUR_CALM, Status.RESOURCE_EXHAUSTED),
        (ErrorCode.INADEQUATE_SECURITY, Status.PERMISSION_DENIED),
    ],
)
@trio_test
async def test_errors_a_reset_means_a_status(engine: Engine, code: ErrorCode, status: Status) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request(body=b"x")
        served = await house.backend.request()
        await served.request_body()
        await served.reset(code)
        assert (await call.answer()).status == status


@trio_test
async def test_errors_a_refused_stream_is_tried_once_more_and_then_unavailable(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request(body=b"x")
        for _ in range(2):
            await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
        assert (await call.answer()).status == Status.UNAVAILABLE
