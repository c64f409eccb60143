"""Of every status that a caller gets it is known who made it, and of what: in the record, by scenario."""

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Call, CallContext, CallPolicy, RetryPolicy, Server, Status, StreamDirector
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import LinkLost, RpcError, Side
from rawgrpc_proxy.observe.causes import ORIGINS, is_known
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import RESPONSE, PeerStream, RawPeer, request_fields

pytestmark = on_every_engine

Play = Callable[[House, RawPeer], Awaitable[PeerStream | None]]
"""Has one call end, and answers it if its caller waits for the answer still."""


async def answered(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    await (await house.backend.request()).respond(trailers=[(b"grpc-status", b"5")])
    return call


async def reset_by_the_upstream(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    await (await house.backend.request()).reset(ErrorCode.ENHANCE_YOUR_CALM)
    return call


async def left_out_twice(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    for _ in range(2):
        await (await house.backend.request()).peer.goaway(0, ErrorCode.ENHANCE_YOUR_CALM)
    return call


async def closed_after_a_goaway(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    served = await house.backend.request()
    await served.peer.goaway(served.id, ErrorCode.INTERNAL_ERROR)
    served.peer.end_at_once()
    return call


async def closed_by_the_upstream(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    served = await house.backend.request()
    await served.request_body()
    served.peer.end_at_once()
    return call


async def no_grpc(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    await (await house.backend.request()).headers([(b":status", b"502")], end=True)
    return call


async def malformed_by_the_upstream(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    await (await house.backend.request()).headers([*RESPONSE, (b"X-Upper", b"1")])
    return call


async def broken_by_the_upstream(house: House, client: RawPeer) -> PeerStream:
    call = await client.request()
    await (await house.backend.request()).peer.send_bytes(b"\0\0\1\6\0\0\0\0\0\0")  # PING of one byte
    return call


async def out_of_time(house: House, client: RawPeer) -> PeerStream:
    call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
    await house.backend.request()
    return call


async def nowhere_to_go(house: House, client: RawPeer) -> PeerStream:
    await house.backend.stop_listening()
    return await client.request()


async def given_up(house: House, client: RawPeer) -> None:
    call = await client.open(request_fields())
    await house.backend.request()
    await call.reset(ErrorCode.CANCEL)


async def gone(house: House, client: RawPeer) -> None:
    await client.open(request_fields())
    await house.backend.request()
    client.end_at_once()


def asks(
    *extra: tuple[bytes, bytes], path: str = "/a.B/C", content_type: bytes = b"application/grpc"
) -> Play:
    """A call with these request headers, which nobody upstream gets."""

    async def play(house: House, client: RawPeer) -> PeerStream:
        fields = dict(request_fields(path, *extra))
        fields[b"content-type"] = content_type
        return await client.open(list(fields.items()), end=True)

    return play


def refuses(context: CallContext, method: str) -> Any:
    raise RpcError(Status.PERMISSION_DENIED, "not you")


def breaks(context: CallContext, method: str) -> Any:
    return 1 // 0


def lets_through(context: CallContext, method: str) -> Any:
    raise RpcError(Status.NOT_FOUND, "who is that", origin="upstream", side=Side.UPSTREAM)


async def lets_another_through(context: CallContext, method: str) -> Any:
    raise LinkLost("the connection to the accounts is lost", cause="FIN")


def handled(server: Server, director: StreamDirector) -> None:
    async def handler(call: Call) -> None:
        call.end(Status.ABORTED, "by hand")

    server.add_handler("/a.B/Here", handler)


@attrs.frozen
class Case:
    name: str
    play: Play
    status: Status
    origin: str
    cause: str
    proxy: dict[str, Any] = attrs.field(factory=dict)


CASES = [
    Case("its own status", answered, Status.NOT_FOUND, "upstream", ""),
    Case("RST", reset_by_the_upstream, Status.RESOURCE_EXHAUSTED, "reset", "RST_STREAM ENHANCE_YOUR_CALM"),
    Case("left out", left_out_twice, Status.UNAVAILABLE, "reset", "GOAWAY ENHANCE_YOUR_CALM"),
    Case("GOAWAY", closed_after_a_goaway, Status.UNAVAILABLE, "lost", "GOAWAY INTERNAL_ERROR"),
    Case("FIN", closed_by_the_upstream, Status.UNAVAILABLE, "lost", "FIN"),
    Case("HTTP", no_grpc, Status.UNAVAILABLE, "http", "HTTP 502"),
    Case("malformed", malformed_by_the_upstream, Status.INTERNAL, "proxy", "stream error PROTOCOL_ERROR"),
    Case("broken", broken_by_the_upstream, Status.UNAVAILABLE, "lost", "connection error FRAME_SIZE_ERROR"),
    Case("deadline", out_of_time, Status.DEADLINE_EXCEEDED, "proxy", "deadline"),
    Case("no connection", nowhere_to_go, Status.UNAVAILABLE, "proxy", "connect"),
    Case("given up", given_up, Status.CANCELLED, "downstream", "RST_STREAM CANCEL"),
    Case("gone", gone, Status.UNAVAILABLE, "downstream", "FIN"),
    Case("refused", asks(), Status.PERMISSION_DENIED, "director", "", {"director": refuses}),
    Case("let through", asks(), Status.NOT_FOUND, "director", "", {"director": lets_through}),
    Case("lost by it", asks(), Status.UNAVAILABLE, "director", "FIN", {"director": lets_another_through}),
    Case("a fault", asks(), Status.INTERNAL, "proxy", "exception", {"director": breaks}),
    Case("nobody", asks(), Status.UNIMPLEMENTED, "proxy", "no_route", {"unknown": False}),
    Case("no method", asks(path="/a.B/C?d"), Status.UNIMPLEMENTED, "proxy", "malformed_path"),
    Case("no gRPC", asks(content_type=b"text/html"), Status.INTERNAL, "proxy", "not_grpc"),
    Case(
        "too long",
        asks((b"x-long", bytes(b"x" * 2000))),
        Status.RESOURCE_EXHAUSTED,
        "proxy",
        "max_header_list_bytes",
        {"max_header_list_bytes": 1024},
    ),
    Case("by hand", asks(path="/a.B/Here"), Status.ABORTED, "handler", "", {"configure": handled}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@trio_test
async def test_a_status_is_known_by_who_made_it_and_what_it_comes_of(engine: Engine, case: Case) -> None:
    async with a_proxy(engine, **case.proxy) as house:
        client = await house.client()
        call = await case.play(house, client)
        if call is not None and case.origin != "http":
            answer = await call.answer()
            assert answer.status == case.status
        record = await house.record()
        assert (record.status, record.origin, record.cause) == (case.status, case.origin, case.cause)
        assert record.origin in ORIGINS
        assert not record.cause or is_known(record.cause)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.origin != "downstream"], ids=lambda case: case.name
)
@trio_test
async def test_a_trailer_tells_the_caller_the_same_if_it_shall(engine: Engine, case: Case) -> None:
    async with a_proxy(engine, **case.proxy, status_origin_trailer="x-origin") as house:
        client = await house.client()
        call = await case.play(house, client)
        assert call is not None
        answer = await call.answer()
        last = answer.trailers or answer.headers
        assert last is not None
        told = f"{case.origin}: {case.cause}" if case.cause else case.origin
        assert [value for name, value in last.fields if name == b"x-origin"] == [told.encode()]
        await house.record()


@trio_test
async def test_no_upstream_and_no_director_can_say_who_has_made_a_status(engine: Engine) -> None:
    lie = (b"x-origin", b"proxy: stopping")

    def director(context: CallContext, method: str) -> Any:
        if method == "/a.B/Refused":
            raise RpcError(Status.ABORTED, trailing_metadata=[("x-origin", "upstream"), ("x-b", "2")])
        return context, house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director, status_origin_trailer="x-origin") as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers([*RESPONSE, lie])
        await served.headers([(b"grpc-status", b"0"), lie, (b"x-a", b"1")], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.trailers is not None
        assert answer.headers.fields == RESPONSE
        assert answer.trailers.fields == [(b"grpc-status", b"0"), (b"x-a", b"1"), (b"x-origin", b"upstream")]
        refused = (await (await client.request("/a.B/Refused")).answer()).headers
        assert refused is not None
        assert refused.fields[-2:] == [(b"x-b", b"2"), (b"x-origin", b"director")]


@trio_test
async def test_a_call_that_was_sent_twice_is_told_of_once(engine: Engine) -> None:
    async with a_proxy(engine, status_origin_trailer="x-origin") as house:
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
        await (await house.backend.request()).respond()
        answer = await call.answer()
        assert answer.trailers is not None
        assert answer.trailers.fields == [(b"grpc-status", b"0"), (b"x-origin", b"upstream")]


@pytest.mark.parametrize("begins", [False, True])
@trio_test
async def test_a_call_that_was_sent_again_by_a_policy_is_told_of_once(engine: Engine, begins: bool) -> None:
    policy = CallPolicy(retry=RetryPolicy(initial_backoff_s=0.001))
    lie = (b"x-origin", b"proxy: stopping")

    def director(context: CallContext, method: str) -> Any:
        return context.with_policy(policy), house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director, status_origin_trailer="x-origin") as house:
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).headers([*RESPONSE, (b"grpc-status", b"14"), lie], end=True)
        served = await house.backend.request()
        if begins:
            await served.headers([*RESPONSE, lie])
            await served.reset(ErrorCode.INTERNAL_ERROR)
        else:
            await served.headers([*RESPONSE, lie, (b"grpc-status", b"5")], end=True)
        answer = await call.answer()
        last = answer.trailers or answer.headers
        assert last is not None
        told = b"reset: RST_STREAM INTERNAL_ERROR" if begins else b"upstream"
        assert [value for name, value in last.fields if name == b"x-origin"] == [told]


@trio_test
async def test_a_call_that_one_too_many_wait_before_says_which_limit_that_is(engine: Engine) -> None:
    async with a_proxy(engine, pool={"size": 1, "ms": 1, "max_waiting": 0}) as house:
        client = await house.client()
        first = await client.request()
        served = await house.backend.request()
        answer = await (await client.request()).answer()
        assert answer.status == Status.RESOURCE_EXHAUSTED
        record = await house.record()
        assert (record.origin, record.cause) == ("proxy", "max_waiting")
        await served.respond()
        await first.answer()
