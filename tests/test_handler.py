"""What happens between the director's choice and the upstream stream, and to the lease on every way out."""

import gc
import sys

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    Call,
    CallContext,
    PoolConn,
    RpcError,
    Server,
    Status,
    StreamDirector,
    transparent_handler,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side, StreamReset
from rawgrpc_proxy.forwarding import _settled
from rawgrpc_proxy.net.splice import Splice
from rawgrpc_proxy.net.stream import Stream
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE, PeerStream, message

pytestmark = on_every_engine


class SlowDirector:
    """Picks a connection, then waits until it is told to answer, whatever happens to that connection meanwhile."""

    def __init__(self) -> None:
        self.house: House | None = None
        self.picked = trio.Event()
        self.go_on = trio.Event()
        self.conn: PoolConn | None = None

    async def __call__(self, context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        assert self.house is not None
        self.conn = await self.house.pool.get_conn(self.house.backend.address)
        self.picked.set()
        await self.go_on.wait()
        return context, self.conn

    async def pick_and_lose(self) -> None:
        """Wait for the choice, then have the backend take the connection away."""
        assert self.house is not None
        await self.picked.wait()
        assert self.conn is not None
        conn = self.conn
        peer = await self.house.backend.connection()
        await peer.goaway(0)
        await until(lambda: not conn.has_room)
        self.go_on.set()


@trio_test
async def test_a_connection_lost_after_the_choice_is_replaced(engine: Engine) -> None:
    director = SlowDirector()
    async with a_proxy(engine, director=director) as house:
        director.house = house
        client = await house.client()
        call = await client.request(body=b"x")
        await director.pick_and_lose()
        served = await house.backend.request()
        assert served.peer is not house.backend.peers[0]
        assert await served.request_body() == message(b"x")
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_the_lease_comes_back_once_if_the_replacement_does_not_do_either(engine: Engine) -> None:
    director = SlowDirector()
    async with a_proxy(engine, director=director, backend={MAX_HEADER_LIST_SIZE: 500}) as house:
        director.house = house
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-long", b"x" * 500))
        await director.pick_and_lose()
        assert (await call.answer()).status == Status.RESOURCE_EXHAUSTED
        assert len(house.backend.peers) == 2


@trio_test
async def test_the_lease_comes_back_once_if_there_is_no_replacement(engine: Engine) -> None:
    director = SlowDirector()
    async with a_proxy(engine, director=director) as house:
        director.house = house
        client = await house.client()
        call = await client.request()
        await director.picked.wait()
        await house.backend.stop_listening()
        await director.pick_and_lose()
        assert (await call.answer()).status == Status.UNAVAILABLE


@trio_test
async def test_a_deadline_that_passes_while_the_director_holds_out_never_reaches_the_upstream(
    engine: Engine,
) -> None:
    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        conn = await house.pool.get_conn(house.backend.address)
        assert context.deadline is not None
        with trio.CancelScope(shield=True):
            await trio.sleep_until(context.deadline)
        return context, conn

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/C", (b"grpc-timeout", b"20m"))).answer()
        assert answer.status == Status.DEADLINE_EXCEEDED
        assert house.backend.no_request_came()


@trio_test
async def test_a_hundred_calls_share_connections_up_to_the_peers_limit(engine: Engine) -> None:
    most = 0

    async def serve(served: PeerStream) -> None:
        nonlocal most
        running[served.peer] = running.get(served.peer, 0) + 1
        most = max(most, running[served.peer])
        await trio.lowlevel.checkpoint()
        # The place is free for the proxy as soon as it has read the end of the response.
        running[served.peer] -= 1
        await served.respond()

    running: dict[object, int] = {}
    limits = {MAX_CONCURRENT_STREAMS: 3}
    pool = {"size": 4, "max_waiting": 100}
    async with a_proxy(engine, backend=limits, pool=pool) as house, trio.open_nursery() as backends:
        backends.start_soon(house.backend.answer_all, serve)
        client = await house.client()
        calls = [await client.request() for _ in range(100)]
        for call in calls:
            assert (await call.answer()).status == Status.OK
        backends.cancel_scope.cancel()
        assert most <= 3
        assert len(house.backend.peers) <= 4


@trio_test
async def test_only_a_cancel_after_the_deadline_counts_as_the_deadline(engine: Engine) -> None:
    now = trio.current_time()
    cancel = StreamReset(Status.CANCELLED, ErrorCode.CANCEL, side=Side.UPSTREAM)
    refused = StreamReset(Status.UNAVAILABLE, ErrorCode.REFUSED_STREAM, side=Side.UPSTREAM)
    assert _settled(cancel, now).status == Status.DEADLINE_EXCEEDED
    assert _settled(cancel, now + 10) is cancel
    assert _settled(cancel, None) is cancel
    assert _settled(refused, now) is refused


class Wrapped:
    """A handler of a user's own around the proxy's: it hears how each call went, when it is over."""

    def __init__(self) -> None:
        self.ends: list[object] = []

    def configure(self, server: Server, director: StreamDirector) -> None:
        """Answer /a.B/C with this."""
        self._forward = transparent_handler(director)
        server.add_handler("/a.B/C", self)

    async def __call__(self, call: Call) -> None:
        try:
            await self._forward(call)
        except BaseException as error:
            self.ends.append(error)
            raise
        self.ends.append("well")


@trio_test
async def test_a_handler_around_the_proxys_goes_on_when_the_call_is_over(engine: Engine) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        call = await client.request(body=b"x")
        served = await house.backend.request()
        await served.request_body()
        assert not wrapped.ends
        await served.respond(b"y")
        assert (await call.answer()).body == message(b"y")
        assert (await house.record()).status == Status.OK
        assert wrapped.ends == ["well"]


@trio_test
async def test_a_handler_around_the_proxys_hears_why_a_call_failed(engine: Engine) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).reset(ErrorCode.INTERNAL_ERROR)
        assert (await call.answer()).status == Status.INTERNAL
        (error,) = wrapped.ends
        assert isinstance(error, RpcError)
        assert (error.status, error.side) == (Status.INTERNAL, Side.UPSTREAM)
        assert (await house.record()).status == Status.INTERNAL


@trio_test
async def test_a_handler_around_the_proxys_does_not_notice_a_second_try(engine: Engine) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        call = await client.request(body=b"x")
        await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
        served = await house.backend.request()
        assert await served.request_body() == message(b"x")
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).status == Status.OK
        assert wrapped.ends == ["well"]


@pytest.mark.parametrize("when", ["the caller gives up", "the deadline passes"])
@trio_test
async def test_a_handler_around_the_proxys_is_told_and_the_upstream_too_when(
    engine: Engine, when: str
) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        fields = ((b"grpc-timeout", b"30m"),) if when == "the deadline passes" else ()
        call = await client.request("/a.B/C", *fields)
        served = await house.backend.request()
        await served.request_body()
        if not fields:
            await call.reset()
        assert await served.expect_reset() == ErrorCode.CANCEL
        record = await house.record()
        assert record.status == (Status.DEADLINE_EXCEEDED if fields else Status.CANCELLED)
        assert isinstance(wrapped.ends[0], trio.Cancelled if fields else RpcError)


@trio_test
async def test_a_deadline_is_kept_whichever_upstream_has_the_call(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"300m"))
        await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
        served = await house.backend.request()
        await served.request_body()
        assert await served.expect_reset() == ErrorCode.CANCEL
        assert (await call.answer()).status == Status.DEADLINE_EXCEEDED
        assert (await house.record()).status == Status.DEADLINE_EXCEEDED


@trio_test
async def test_a_call_that_ends_in_time_hears_no_more_of_its_deadline(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for _ in range(2):
            call = await client.request("/a.B/C", (b"grpc-timeout", b"50m"))
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
        assert (await house.record()).status == Status.OK
        assert (await house.record()).status == Status.OK
        await trio.sleep(0.06)  # past both deadlines, which nothing can tell of
        assert house.observer.unread == 0


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy counts no references")
@trio_test
async def test_calls_that_are_over_leave_nothing_to_the_garbage_collector(engine: Engine) -> None:
    """It would have to look at every open call to find them, again and again."""
    async with a_proxy(engine) as house:
        client = await house.client()
        gc.disable()
        try:
            call = await client.request(body=b"x")
            await (await house.backend.request()).respond(b"y")
            assert (await call.answer()).status == Status.OK
            call = await client.request(body=b"x")
            await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
            await (await house.backend.request()).reset(ErrorCode.INTERNAL_ERROR)
            assert (await call.answer()).status == Status.INTERNAL
            call = await client.request("/a.B/C", (b"grpc-timeout", b"1H"))
            await house.backend.request()
            await call.reset()
            for _ in range(3):
                await house.record()
            await until(
                lambda: not [thing for thing in gc.get_objects() if isinstance(thing, Stream | Splice | Call)]
            )
        finally:
            gc.enable()
