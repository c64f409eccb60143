"""How a call ends, before a backend of raw frames: never with success unless all of it has come."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.client.world import a_client, reset_code
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, RESPONSE, TRAILERS_ONLY, Field, PeerStream, message

pytestmark = on_every_engine


def status(number: int, *more: Field) -> list[Field]:
    return [(b"grpc-status", b"%d" % number), *more]


async def _empty_ok(served: PeerStream) -> None:
    await served.headers(TRAILERS_ONLY, end=True)


async def _two_messages(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1") + message(b"2"))
    await served.headers(OK, end=True)


async def _no_status(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1"))
    await served.headers([(b"x-a", b"1")], end=True)


async def _ends_with_data(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1"), end=True)


async def _half_a_message(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"12345")[:7])
    await served.headers(OK, end=True)


async def _half_a_prefix(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1") + b"\0\0")
    await served.headers(OK, end=True)


async def _bad_flag(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1", 2))


async def _too_long(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(b"\0\x00\x40\x00\x01")


async def _html(served: PeerStream) -> None:
    await served.headers([(b":status", b"200"), (b"content-type", b"text/html")])
    await served.data(b"<html>", end=True)


async def _bad_gateway(served: PeerStream) -> None:
    await served.headers([(b":status", b"502"), (b"content-type", b"text/html")])


async def _forbidden(served: PeerStream) -> None:
    await served.headers([(b":status", b"403")], end=True)


async def _teapot_with_a_status(served: PeerStream) -> None:
    fields = [(b":status", b"418"), *status(5, (b"grpc-message", b"gone"))]
    await served.headers(fields, end=True)


async def _trailers_only(served: PeerStream) -> None:
    await served.headers([*RESPONSE, *status(7, (b"grpc-message", b"no%20way"))], end=True)


async def _nonsense_status(served: PeerStream) -> None:
    await served.headers([*RESPONSE, (b"grpc-status", b"banana")], end=True)


async def _reset(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1"))
    await served.reset(2)


async def _cancelled(served: PeerStream) -> None:
    await served.reset(8)


async def _enhance_your_calm(served: PeerStream) -> None:
    await served.reset(11)


async def _killed(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.data(message(b"1"))
    await served.peer.aclose()


async def _killed_at_once(served: PeerStream) -> None:
    await served.peer.aclose()


async def _protocol_error(served: PeerStream) -> None:
    await served.headers(RESPONSE)
    await served.headers([(b"Bad", b"1")], end=True)


ENDINGS: list[tuple[Callable[[PeerStream], Awaitable[None]], Status, str]] = [
    (_empty_ok, Status.INTERNAL, "has status OK, and no message"),
    (_two_messages, Status.INTERNAL, "more than one message"),
    (_no_status, Status.UNKNOWN, "no grpc-status"),
    (_ends_with_data, Status.UNKNOWN, "no grpc-status"),
    (_half_a_message, Status.INTERNAL, "ends in the middle of a message"),
    (_half_a_prefix, Status.INTERNAL, "ends in the middle of a message"),
    (_bad_flag, Status.INTERNAL, "flag 2"),
    (_too_long, Status.RESOURCE_EXHAUSTED, r"4194305 bytes .* 4194304 .*max_message_bytes"),
    (_html, Status.UNKNOWN, "content-type is 'text/html'"),
    (_bad_gateway, Status.UNAVAILABLE, "HTTP status 502"),
    (_forbidden, Status.PERMISSION_DENIED, "HTTP status 403"),
    (_teapot_with_a_status, Status.NOT_FOUND, "gone"),
    (_trailers_only, Status.PERMISSION_DENIED, "no way"),
    (_nonsense_status, Status.UNKNOWN, "^UNKNOWN$"),
    (_reset, Status.INTERNAL, "the upstream reset the stream with INTERNAL_ERROR"),
    (_cancelled, Status.CANCELLED, "the upstream reset the stream with CANCEL"),
    (_enhance_your_calm, Status.RESOURCE_EXHAUSTED, "ENHANCE_YOUR_CALM"),
    (_killed, Status.UNAVAILABLE, "the connection to .* is lost"),
    (_killed_at_once, Status.UNAVAILABLE, "the connection to .* is lost"),
    (_protocol_error, Status.INTERNAL, "PROTOCOL_ERROR"),
]


@pytest.mark.parametrize(("script", "expected", "says"), ENDINGS)
@trio_test
async def test_a_unary_call_succeeds_only_with_one_whole_message_and_status_ok(
    engine: Engine, script: Callable[[PeerStream], Awaitable[None]], expected: Status, says: str
) -> None:
    async with a_client(engine) as world:

        async def serve() -> None:
            await script(await world.backend.request())

        world.nursery.start_soon(serve)
        call = world.client.unary_unary("/a.B/C", b"x")
        with pytest.raises(RpcError, match=says) as caught:
            await call
        assert caught.value.status is expected
        assert call.status is expected
        assert call.status_message == caught.value.message


@trio_test
async def test_a_stream_cut_off_gives_what_came_and_then_fails(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.stream_stream("/a.B/C") as call:
        served = await world.backend.request()
        await served.headers(RESPONSE)
        await served.data(message(b"1") + message(b"2") + b"\0\0")
        assert await call.receive() == b"1"
        await served.peer.aclose()
        assert await call.receive() == b"2"
        with pytest.raises(RpcError, match=r"UNAVAILABLE: the connection to .* is lost"):
            await call.receive()
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await call.send(b"x")


@trio_test
async def test_an_empty_stream_is_a_success(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.unary_stream("/a.B/C", b"") as call:
        served = await world.backend.request()
        await served.headers(TRAILERS_ONLY, end=True)
        assert await call.receive() is None
        assert call.status is Status.OK
        assert list(await call.receive_headers()) == []
        assert call.trailers is not None
        assert call.trailers["grpc-status"] == "0"


@trio_test
async def test_headers_come_before_the_first_message(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.stream_stream("/a.B/C") as call:
        served = await world.backend.request()
        headers = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                headers.append(await call.receive_headers())

            for _ in range(2):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await served.headers([*RESPONSE, (b"x-a", b"1")])
        assert [received["x-a"] for received in headers] == ["1", "1"]
        await call.done_sending()
        await served.headers(OK, end=True)
        assert await call.receive() is None


@trio_test
async def test_trailing_metadata_that_are_none_are_left_out_of_the_error(engine: Engine) -> None:
    async with a_client(engine) as world:

        async def serve() -> None:
            served = await world.backend.request()
            await served.headers(
                [*RESPONSE, *status(5, (b"x-bin", b"###"), (b"x-latin", b"\xe9"), (b"x-good", b"1"))],
                end=True,
            )

        world.nursery.start_soon(serve)
        call = world.client.unary_unary("/a.B/C", b"")
        with pytest.raises(RpcError) as caught:
            await call
        assert caught.value.trailing_metadata == (("x-good", "1"),)
        assert call.trailers is not None
        assert call.trailers["x-latin"] == "é"


async def _in_one_list(served: PeerStream, trailers: list[Field]) -> None:
    await served.headers([*RESPONSE, *trailers], end=True)


async def _in_two_lists(served: PeerStream, trailers: list[Field]) -> None:
    await served.headers(RESPONSE)
    await served.headers(trailers, end=True)


async def _without_trailers(served: PeerStream, _trailers: list[Field]) -> None:
    await served.headers(RESPONSE)
    await served.data(b"", end=True)


ENOUGH = status(8, (b"grpc-message", b"enough"))


@pytest.mark.parametrize(
    ("end", "trailers", "error", "says"),
    [
        (_in_one_list, OK, trio.BrokenResourceError, "status OK, and reads no more"),
        (_in_two_lists, OK, trio.BrokenResourceError, "status OK, and reads no more"),
        (_in_one_list, ENOUGH, RpcError, "RESOURCE_EXHAUSTED: enough"),
        (_in_two_lists, ENOUGH, RpcError, "RESOURCE_EXHAUSTED: enough"),
        (_without_trailers, status(2), RpcError, "UNKNOWN: the response has no grpc-status"),
    ],
)
@trio_test
async def test_an_early_status_ends_the_sending(
    engine: Engine,
    end: Callable[[PeerStream, list[Field]], Awaitable[None]],
    trailers: list[Field],
    error: type[Exception],
    says: str,
) -> None:
    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            served.peer.credits = False
            stopped = trio.Event()

            async def send() -> None:
                with pytest.raises(error, match=says):
                    await call.send(bytes(1_000_000))
                stopped.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await served.read(65_535)
                await trio.testing.wait_all_tasks_blocked()
                assert not stopped.is_set()
                await end(served, trailers)
            with pytest.raises(error, match=says):
                await call.send(b"2")
        # How the call went is known, though nobody has read the response to its end.
        assert call.status == int(trailers[0][1])
        assert call.trailers is not None
        # The rest of the request was given up, and of the response nothing is taken back.
        assert await reset_code(served) == ErrorCode.NO_ERROR


@trio_test
async def test_a_server_that_has_enough_of_a_request_may_answer(engine: Engine) -> None:
    async def for_ever() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    async with a_client(engine) as world:

        async def serve() -> None:
            served = await world.backend.request()
            await served.expect_data()
            await served.respond(b"enough")
            await served.reset(0)

        world.nursery.start_soon(serve)
        assert await world.client.stream_unary("/a.B/C", for_ever()) == b"enough"
