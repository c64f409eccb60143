"""The inbox of a stream: it holds what comes until somebody takes it."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.config import Engine
from tests.net.test_connection import a_link
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, RESPONSE, TRAILERS_ONLY, request_fields

pytestmark = on_every_engine


@trio_test
async def test_a_response_is_received_piece_by_piece(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        served = link.peer.streams[stream.id]
        await served.headers(RESPONSE)
        await served.data(b"one")
        assert await stream.inbox.receive() == b"one"
        # What waits is joined, whatever frames it came in.
        for piece in (b"t", b"w", b"o"):
            await served.data(piece)
        await served.headers(OK, end=True)
        await link.peer.ping()
        assert await stream.inbox.receive() == b"two"
        assert await stream.inbox.receive() is None
        assert stream.inbox.trailers_received == OK


@trio_test
async def test_small_frames_that_wait_together_are_credited_in_full(engine: Engine) -> None:
    async with a_link(engine, stream_window_bytes=64 * 1024) as link:
        call = await link.peer.open(request_fields())
        for _ in range(50):
            await call.data(bytes(1000))
        await link.peer.ping()
        assert call.window == 64 * 1024 - 50_000
        (stream,) = link.requests
        assert await stream.inbox.receive() == bytes(50_000)
        await link.peer.ping()
        assert call.window == 64 * 1024


@trio_test
async def test_headers_that_end_the_stream_are_its_trailers(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        await link.peer.streams[stream.id].headers(TRAILERS_ONLY, end=True)
        assert await stream.inbox.receive() is None
        assert stream.inbox.trailers_received == TRAILERS_ONLY


@trio_test
async def test_a_reset_comes_after_what_was_received_before_it(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        served = link.peer.streams[stream.id]
        await served.headers(RESPONSE)
        await served.data(b"one")
        await served.reset(11)
        await link.peer.ping()
        assert await stream.inbox.receive() == b"one"
        with pytest.raises(RpcError) as caught:
            await stream.inbox.receive()
        assert caught.value.status == Status.RESOURCE_EXHAUSTED


@trio_test
async def test_a_reset_wakes_whoever_waits(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link, trio.open_nursery() as nursery:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(link.peer.streams[stream.id].reset, 8)
        with pytest.raises(RpcError, match="CANCEL"):
            await stream.inbox.receive()


@trio_test
async def test_a_cancelled_receive_loses_nothing(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        served = link.peer.streams[stream.id]
        await served.headers(RESPONSE)
        await served.data(b"kept")
        await link.peer.ping()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.inbox.receive()
        assert scope.cancelled_caught
        assert await stream.inbox.receive() == b"kept"


@trio_test
async def test_a_peek_waits_for_so_much_or_for_the_end_and_takes_nothing(engine: Engine) -> None:
    async with a_link(engine, stream_window_bytes=64 * 1024) as link:
        call = await link.peer.open(request_fields())
        await link.peer.ping()
        (stream,) = link.requests
        inbox = stream.inbox
        assert inbox.peek(1) is None
        await call.data(b"begin")
        await call.data(bytes(2000))  # long enough to be a piece of its own
        await link.peer.ping()
        assert inbox.peek(3) == b"beg"
        assert inbox.peek(7) == b"begin\0\0"
        assert inbox.peek(2006) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call.data, b"!")
            assert await inbox.await_first(2006) == b"begin" + bytes(2000) + b"!"
        assert call.window == 64 * 1024 - 2006
        await call.data(b"", end=True)
        await link.peer.ping()
        assert inbox.peek(9999) == b"begin" + bytes(2000) + b"!"
        assert await inbox.receive() == b"begin"
        assert await inbox.receive() == bytes(2000) + b"!"
