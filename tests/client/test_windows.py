"""Messages of any size, as fast as the other side takes them, and no faster."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, ServedCall, unary_unary
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.net.memory_guard import current_memory_guard
from tests.client.world import BIDI, a_client, a_client_of_ours, raw_server, reset_code
from tests.proxy.house import on_every_engine, until
from tests.proxy.raw_peers import INITIAL_WINDOW, OK, RESPONSE, message

pytestmark = on_every_engine

MB = 1024 * 1024


@trio_test
async def test_huge_messages_go_both_ways(engine: Engine) -> None:
    async def echo(request: bytes, call: ServedCall) -> bytes:
        return request

    server = raw_server()
    server.add_method("/a.B/Echo", unary_unary(echo, bytes, max_message_bytes=8 * MB))
    payload = bytes(range(256)) * (4096 * 6)  # 6 MiB
    async with a_client_of_ours(engine, server, max_message_bytes=6 * MB) as client:
        assert await client.unary_unary("/a.B/Echo", payload) == payload
        with pytest.raises(
            RpcError, match=r"RESOURCE_EXHAUSTED: a message of 6291457 bytes .*max_message_bytes"
        ):
            await client.unary_unary("/a.B/Echo", payload + b"x")


@trio_test
async def test_send_waits_while_the_server_takes_nothing(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.stream_stream("/a.B/C") as call:
        served = await world.backend.request()
        served.peer.credits = False
        sent = []

        async def send() -> None:
            for n in range(100):
                await call.send(bytes(10_000))
                sent.append(n)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            # A window and 64 KiB, and no more.
            assert served.received_bytes == INITIAL_WINDOW
            assert INITIAL_WINDOW < 10_005 * len(sent) < INITIAL_WINDOW + 64 * 1024 + 10_005
            await served.peer.credit_everything()
        assert len(sent) == 100
        await served.read(100 * 10_005)


@trio_test
async def test_a_server_may_send_a_window_until_somebody_receives(engine: Engine) -> None:
    async with a_client(engine, http2={"stream_window_bytes": INITIAL_WINDOW}) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            await served.headers(RESPONSE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.body, message(bytes(10_000)) * 50)
                await served.blocked.wait()
                assert served.sent_bytes <= INITIAL_WINDOW
                for _ in range(50):
                    assert len(await call.receive() or b"") == 10_000
        await reset_code(served)


@trio_test
async def test_a_message_of_many_frames_is_counted_where_it_waits(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            await served.headers(RESPONSE)
            await served.body(message(bytes(300_000))[:200_000])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call.receive)
                held = call._exchange._messages
                await until(lambda: held._kept_bytes == 200_000)
                assert current_memory_guard().buffered.bytes >= 200_000
                nursery.cancel_scope.cancel()
        await reset_code(served)
        assert current_memory_guard().buffered.bytes == 0


@trio_test
async def test_messages_that_are_left_are_counted_no_more(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with world.client.unary_stream("/a.B/C", b"") as call:
            served = await world.backend.request()
            await served.headers(RESPONSE)
            await served.body(message(bytes(5000)) * 20)
            await served.headers(OK, end=True)
            await served.peer.ping()
            await call.receive()
        assert current_memory_guard().buffered.bytes == 0


@trio_test
async def test_many_small_messages_let_others_have_their_turn(engine: Engine) -> None:
    async with a_client(engine) as world, world.client.unary_stream("/a.B/C", b"") as call:
        served = await world.backend.request()
        await served.headers(RESPONSE)
        await served.body(message(b"") * 10_000)
        await served.headers(OK, end=True)
        await served.peer.ping()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            assert len([reply async for reply in call]) == 10_000
            nursery.cancel_scope.cancel()
        assert turns >= 10_000 // 256


@trio_test
async def test_sending_and_receiving_at_once_never_locks_up(engine: Engine) -> None:
    async def large() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield bytes(200_000)

    async with a_client_of_ours(engine) as client, client.stream_stream(BIDI, large()) as call:
        assert [len(reply) async for reply in call] == [200_000] * 50
