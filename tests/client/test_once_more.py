"""Calls that the server has provably not processed are made once more, elsewhere, where nothing is lost by it."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.client.world import World, a_client
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import MAX_CONCURRENT_STREAMS, RESPONSE, PeerStream, message

pytestmark = on_every_engine

Refusal = Callable[[PeerStream], Awaitable[None]]


async def _refused(served: PeerStream) -> None:
    await served.reset(ErrorCode.REFUSED_STREAM)
    await served.peer.ping()


async def _goaway(served: PeerStream) -> None:
    await served.peer.goaway(max(0, served.id - 2))
    await served.peer.closed()


refusals = pytest.mark.parametrize("refusal", [_refused, _goaway])


async def in_two(world: World, call: Callable[[], Awaitable[None]], refusal: Refusal) -> PeerStream:
    """The second attempt of a call whose first one was refused."""
    world.nursery.start_soon(call)
    first = await world.backend.request()
    await refusal(first)
    second = await world.backend.request()
    assert second.peer is not first.peer
    assert second.request == first.request
    return second


@refusals
@trio_test
async def test_a_unary_call_is_made_once_more_on_another_connection(engine: Engine, refusal: Refusal) -> None:
    async with a_client(engine) as world:
        done = trio.Event()

        async def call() -> None:
            assert await world.client.unary_unary("/a.B/C", b"x" * 100_000) == b"y"
            done.set()

        second = await in_two(world, call, refusal)
        assert await second.request_body() == message(b"x" * 100_000)
        await second.respond(b"y")
        await done.wait()


@refusals
@trio_test
async def test_a_second_refusal_is_the_calls_end(engine: Engine, refusal: Refusal) -> None:
    async with a_client(engine) as world:
        done = trio.Event()

        async def call() -> None:
            with pytest.raises(RpcError, match="UNAVAILABLE: the upstream reset the stream with REFUSED"):
                await world.client.unary_unary("/a.B/C", b"x")
            done.set()

        await refusal(await in_two(world, call, refusal))
        await done.wait()
        assert world.backend.no_request_came()


@refusals
@pytest.mark.parametrize("first", ["send", "receive", "headers", "done"])
@trio_test
async def test_a_stream_on_which_nothing_was_sent_is_opened_once_more(
    engine: Engine, refusal: Refusal, first: str
) -> None:
    async with a_client(engine) as world:
        done = trio.Event()

        async def call() -> None:
            async with world.client.stream_stream("/a.B/C") as call:
                if first == "done":
                    await call.done_sending()
                elif first == "send":
                    await refused.wait()
                    await call.send(b"1")
                elif first == "headers":
                    assert (await call.receive_headers())["x-a"] == "1"
                assert await call.receive() == b"y"
                assert await call.receive() is None
            done.set()

        refused = trio.Event()
        world.nursery.start_soon(call)
        served = await world.backend.request()
        await refusal(served)
        refused.set()
        second = await world.backend.request()
        await second.headers([*RESPONSE, (b"x-a", b"1")])
        await second.data(message(b"y"))
        if first == "send":
            assert await second.read(6) == message(b"1")
        elif first == "done":
            assert await second.request_frames() == ["HEADERS", "DATA END_STREAM"]
        await second.headers([(b"grpc-status", b"0")], end=True)
        await done.wait()


@trio_test
async def test_two_tasks_that_hear_of_a_refusal_open_the_stream_once(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.stream_stream("/a.B/C") as call:
        first = await world.backend.request()

        async def headers() -> None:
            await call.receive_headers()

        async def receive() -> None:
            assert await call.receive() == b"y"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(headers)
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await _refused(first)
            second = await world.backend.request()
            await second.headers(RESPONSE)
            await second.data(message(b"y"))
        assert world.backend.no_request_came()


@trio_test
async def test_what_was_sent_is_not_sent_twice(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            await call.send(b"1")
            await served.read(6)
            await _refused(served)
            with pytest.raises(RpcError, match="REFUSED_STREAM"):
                await call.receive()
            assert call.status is Status.UNAVAILABLE
        async with world.client.unary_stream("/a.B/C", b"") as answered:
            served = await world.backend.request()
            await served.headers(RESPONSE)
            await answered.receive_headers()
            await _refused(served)
            with pytest.raises(RpcError, match="REFUSED_STREAM"):
                await answered.receive()
        assert world.backend.no_request_came()


@trio_test
async def test_calls_below_the_last_id_of_a_goaway_go_on_and_others_go_elsewhere(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.stream_stream("/a.B/C") as call:
        served = await world.backend.request()
        await served.peer.goaway(served.id)
        await served.peer.ping()
        await call.send(b"1")
        assert await served.read(6) == message(b"1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.unary, "/a.B/D", b"")
            other = await world.backend.request()
            assert other.peer is not served.peer
            await other.respond(b"")
        await served.respond(b"2")
        assert await call.receive() == b"2"
        assert await call.receive() is None


@trio_test
async def test_a_call_that_is_cancelled_between_its_attempts_gives_both_places_back(engine: Engine) -> None:
    async with a_client(
        engine, settings={MAX_CONCURRENT_STREAMS: 1}, pool={"size": 1, "max_waiting": 9}
    ) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.unary, "/a.B/C", b"")
            first = await world.backend.request()
            nursery.start_soon(world.unary, "/a.B/D", b"")  # stands in line, and gets the place
            await trio.testing.wait_all_tasks_blocked()
            await _refused(first)
            assert (await world.backend.request()).request.get(b":path") == b"/a.B/D"
            nursery.cancel_scope.cancel()
        await world.nothing_is_left()


@trio_test
async def test_a_wait_that_is_cancelled_between_attempts_leaves_the_second_to_others(engine: Engine) -> None:
    limits = {"size": 1, "max_waiting": 9}
    async with (
        a_client(engine, settings={MAX_CONCURRENT_STREAMS: 1}, pool=limits) as world,
        world.client.stream_stream("/a.B/C") as call,
    ):
        first = await world.backend.request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.unary, "/a.B/D", b"")  # stands in line, and gets the place
            await trio.testing.wait_all_tasks_blocked()
            await _refused(first)
            async with trio.open_nursery() as impatient:
                impatient.start_soon(call.receive)
                other = await world.backend.request()
                await trio.testing.wait_all_tasks_blocked()
                impatient.cancel_scope.cancel()
            await other.respond(b"")
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await call.receive() == b"y"

            nursery.start_soon(receive)
            second = await world.backend.request()
            await second.headers(RESPONSE)
            await second.data(message(b"y"))


@trio_test
async def test_a_call_may_be_cancelled_from_another_task_between_its_attempts(engine: Engine) -> None:
    async with a_client(
        engine, settings={MAX_CONCURRENT_STREAMS: 1}, pool={"size": 1, "max_waiting": 9}
    ) as world:
        async with trio.open_nursery() as nursery:
            call = world.client.unary_unary("/a.B/C", b"")

            async def make() -> None:
                with pytest.raises(RpcError, match="CANCELLED: the call was cancelled"):
                    await call

            nursery.start_soon(make)
            first = await world.backend.request()
            nursery.start_soon(world.unary, "/a.B/D", b"")
            await trio.testing.wait_all_tasks_blocked()
            await _refused(first)
            second = await world.backend.request()
            call.cancel()  # as the timer does
            await second.respond(b"")
        await world.nothing_is_left()
