"""Calls that are given up, wherever they are, leave nothing: no stream, no place, no task, no timer."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import Client, Pool, RpcError, Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import DeadlineExceeded
from tests.client.world import BIDI, UNARY, World, a_client, a_client_of_ours, reset_code
from tests.proxy.house import on_every_engine, until
from tests.proxy.raw_peers import RESPONSE, PeerStream, message
from tests.upstream.backend import Upstream

pytestmark = on_every_engine

Stage = Callable[[World], Awaitable[PeerStream]]


async def _served(world: World) -> PeerStream:
    return await world.backend.request()


async def _headers(world: World) -> PeerStream:
    served = await world.backend.request()
    await served.headers(RESPONSE)
    return served


async def _half_a_message(world: World) -> PeerStream:
    served = await _headers(world)
    await served.data(message(b"12345")[:7])
    return served


stages = pytest.mark.parametrize("stage", [_served, _headers, _half_a_message])


@stages
@trio_test
async def test_a_unary_call_that_is_cancelled_resets_its_stream(engine: Engine, stage: Stage) -> None:
    async with a_client(engine) as world:
        call = world.client.unary_unary("/a.B/C", b"x")

        async def make() -> None:
            await call

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            served = await stage(world)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await reset_code(served) == ErrorCode.CANCEL
        assert call.status is Status.CANCELLED
        await world.nothing_is_left()


@stages
@trio_test
async def test_leaving_a_block_early_resets_the_stream(engine: Engine, stage: Stage) -> None:
    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await stage(world)
            await call.send(b"1")
        assert await reset_code(served) == ErrorCode.CANCEL
        assert call.status is Status.CANCELLED
        await world.nothing_is_left()
        with pytest.raises(trio.ClosedResourceError, match="the call was left"):
            await call.receive()
        with pytest.raises(trio.ClosedResourceError, match="the call was left"):
            await call.send(b"2")


@trio_test
async def test_an_exception_in_the_block_comes_out_as_it_is(engine: Engine) -> None:
    async def for_ever() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    async with a_client_of_ours(engine) as client:
        for requests in (None, for_ever()):
            with pytest.raises(KeyError, match="mine"):
                async with client.stream_stream(BIDI, requests):
                    raise KeyError("mine")


@trio_test
async def test_cancelling_a_wait_loses_no_message(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.stream_stream("/a.B/C") as call:
        served = await _half_a_message(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call.receive)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        await served.data(message(b"12345")[7:])
        assert await call.receive() == b"12345"


@trio_test
async def test_a_call_may_be_cancelled_from_another_task(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            served.peer.credits = False

            async def receive() -> None:
                with pytest.raises(RpcError, match="CANCELLED: the call was cancelled"):
                    await call.receive()

            async def send() -> None:
                with pytest.raises(RpcError, match="CANCELLED: the call was cancelled"):
                    await call.send(bytes(500_000))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked(0.01)
                call.cancel()
            assert call.status is Status.CANCELLED
        assert await reset_code(served) == ErrorCode.CANCEL
        await world.nothing_is_left()


@trio_test
async def test_a_call_is_cancelled_while_it_waits_for_a_connection(engine: Engine) -> None:
    silent = Upstream()
    silent.silent = True
    async with trio.open_nursery() as nursery:
        await nursery.start(silent.serve)
        async with Pool() as pool, Client(pool.target(silent.address)) as client:
            with trio.move_on_after(0) as scope:
                await client.unary_unary("/a.B/C", b"")
            assert scope.cancelled_caught
            call = client.unary_unary("/a.B/C", b"")

            async def wait() -> None:
                with pytest.raises(RpcError, match="CANCELLED: the call was cancelled"):
                    await call

            async with trio.open_nursery() as inner:
                inner.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.01)
                call.cancel()
            assert not client._calls
        nursery.cancel_scope.cancel()


@trio_test
async def test_leaving_the_client_ends_its_calls(engine: Engine) -> None:
    async with a_client(engine) as world:
        outcomes = []

        async def make(client: Client) -> None:
            with pytest.raises(RpcError, match="CANCELLED: the client is closed") as caught:
                await client.unary_unary("/a.B/C", b"", timeout=3600)
            outcomes.append(caught.value.status)

        async with trio.open_nursery() as nursery, Client(world.pool.target(world.backend.address)) as client:
            nursery.start_soon(make, client)
            served = await world.backend.request()
        assert outcomes == [Status.CANCELLED]
        assert await reset_code(served) == ErrorCode.CANCEL


@trio_test
async def test_whoever_makes_the_requests_may_fail(engine: Engine) -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield b"1"
        raise KeyError("no more")

    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C", requests()) as call:
            served = await world.backend.request()
            with pytest.raises(KeyError, match="no more"):
                await call.receive()
        assert await reset_code(served) == ErrorCode.CANCEL
        with pytest.raises(KeyError, match="no more"):
            await world.client.stream_unary("/a.B/C", requests())
        async with trio.open_nursery() as nursery:

            async def leave_without_a_look() -> None:
                with pytest.raises(KeyError, match="no more"):
                    async with world.client.stream_stream("/a.B/C", requests()):
                        await seen.wait()

            seen = trio.Event()
            await world.backend.request()  # that of the call before
            nursery.start_soon(leave_without_a_look)
            await reset_code(await world.backend.request())
            seen.set()


@trio_test
async def test_requests_that_fail_as_calls_do_are_not_taken_for_the_call(engine: Engine) -> None:
    async def requests(error: Exception) -> AsyncIterator[bytes]:
        yield b"1"
        raise error

    async with a_client(engine) as world:
        for error in (RpcError(Status.ABORTED, "mine"), trio.BrokenResourceError("mine")):
            async with world.client.stream_stream("/a.B/C", requests(error)) as call:
                served = await world.backend.request()
                with pytest.raises(type(error), match="mine"):
                    await call.receive_headers()
            await reset_code(served)
        with pytest.raises(RpcError, match="ABORTED: mine"):
            await world.client.stream_unary("/a.B/C", requests(RpcError(Status.ABORTED, "mine")))


@trio_test
async def test_requests_that_are_given_end_with_the_block(engine: Engine) -> None:
    ended = []

    async def requests() -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async with a_client_of_ours(engine) as client:
        async with client.stream_stream(BIDI, requests()) as call:
            assert await call.receive() == b"1"
        assert ended == [True]


# ------------------------------------------------------------------------- deadlines


class Clock:
    """Real time, which may be put forward."""

    def __init__(self) -> None:
        self.trio_clock = trio.testing.MockClock(rate=1.0)

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        trio.run(test, clock=self.trio_clock)


@stages
def test_a_deadline_ends_a_call_wherever_it_is(engine: Engine, stage: Stage) -> None:
    clock = Clock()

    async def main() -> None:
        async with a_client(engine, bound_s=1000, timeout=5) as world:
            unary, stream = world.client.unary_unary("/a.B/C", b"x"), world.client.stream_stream("/a.B/C")

            async def make() -> None:
                with pytest.raises(DeadlineExceeded, match="longer than its timeout of 5 s"):
                    await unary

            async with trio.open_nursery() as nursery:
                nursery.start_soon(make)
                served = [await stage(world)]
                async with stream:
                    served.append(await stage(world))
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    clock.trio_clock.jump(5)
                    with pytest.raises(DeadlineExceeded):
                        await stream.receive()
                    with pytest.raises(DeadlineExceeded):
                        await stream.send(b"")
            for call in served:
                assert await reset_code(call) == ErrorCode.CANCEL
            assert unary.status is stream.status is Status.DEADLINE_EXCEEDED

    clock.run(main)


def test_a_deadline_resets_the_stream_though_nobody_looks_at_the_call(engine: Engine) -> None:
    clock = Clock()

    async def main() -> None:
        async with a_client(engine, bound_s=1000) as world, world.client.stream_stream("/a.B/C", timeout=5):
            served = await world.backend.request()
            clock.trio_clock.jump(5)
            assert await reset_code(served) == ErrorCode.CANCEL

    clock.run(main)


def test_a_deadline_covers_the_wait_for_a_connection(engine: Engine) -> None:
    clock = Clock()

    async def main() -> None:
        silent = Upstream()
        silent.silent = True
        async with trio.open_nursery() as nursery:
            await nursery.start(silent.serve)
            async with Pool(dial_timeout_s=1000) as pool, Client(pool.target(silent.address)) as client:

                async def make() -> None:
                    with pytest.raises(DeadlineExceeded):
                        await client.unary_unary("/a.B/C", b"", timeout=2)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(make)
                await trio.testing.wait_all_tasks_blocked(0.01)
                clock.trio_clock.jump(2)
                await trio.sleep_forever()

    clock.run(main)


def test_a_server_that_cancels_at_the_deadline_is_no_other_failure(engine: Engine) -> None:
    clock = Clock()

    async def main() -> None:
        async with a_client(engine, bound_s=1000) as world:
            # The timer of a call is late by as much as the loop is busy: then the server is first.
            world.client.call_at = lambda _when, _callback: _Never()  # type: ignore[method-assign,assignment,return-value]
            async with world.client.unary_stream("/a.B/C", b"", timeout=5) as call:
                served = await world.backend.request()
                clock.trio_clock.jump(5)
                await served.reset(8)
                with pytest.raises(DeadlineExceeded):
                    await call.receive()
                assert call.status is Status.DEADLINE_EXCEEDED

    clock.run(main)


class _Never:
    def cancel(self) -> None:
        pass


@trio_test
async def test_no_time_at_all_is_too_little_and_nothing_is_sent(engine: Engine) -> None:
    async with a_client(engine) as world:
        with pytest.raises(DeadlineExceeded):
            await world.client.unary_unary("/a.B/C", b"", timeout=0)
        assert not world.backend.peers
        with pytest.raises(ValueError, match="NaN"):
            world.client.unary_unary("/a.B/C", b"", timeout=math.nan)
        with pytest.raises(TypeError, match="number of seconds, not str"):
            world.client.unary_unary("/a.B/C", b"", timeout="5")  # type: ignore[call-overload]


@trio_test
async def test_an_infinite_timeout_is_none(engine: Engine) -> None:
    async with a_client_of_ours(engine, timeout=0) as client:
        assert await client.unary_unary(UNARY, b"x", timeout=math.inf) == b"x"


@trio_test
async def test_hundreds_of_calls_that_are_given_up_give_their_places_back(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(world.unary, "/a.B/C", b"x")
            for _ in range(300):
                await world.backend.request()
            nursery.cancel_scope.cancel()
        await world.nothing_is_left()
        await until(lambda: sum(len(peer.streams) for peer in world.backend.peers) == 300)
        for peer in world.backend.peers:
            for served in peer.streams.values():
                assert await reset_code(served) == ErrorCode.CANCEL
