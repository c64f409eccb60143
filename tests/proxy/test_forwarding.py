"""What happens between the director's choice and the upstream stream, and to the lease on every way out."""

import gc
import sys

import pytest
import trio
from hyperframe.frame import RstStreamFrame
from trio.testing import trio_test

from rawgrpc_proxy import (
    Call,
    CallContext,
    PoolConn,
    RpcError,
    Server,
    Status,
    StreamDirector,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConnectionFailed, Side
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.proxy.splice import Splice
from tests.proxy.directors import PlainDirector, Wrapped, a_proxy_with_plain_director
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE,
    PeerStream,
    message,
    request_fields,
)

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
async def test_a_deadline_is_kept_whichever_upstream_has_the_call(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
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
            call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
        assert (await house.record()).status == Status.OK
        assert (await house.record()).status == Status.OK
        await trio.sleep(1.1)  # past both deadlines, which nothing can tell of
        assert house.observer.unread == 0


def _of_calls() -> list[object]:
    # Not isinstance: it asks the proxies of weakref, too, which raise when what they stand for is gone.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Stream | Splice | Call)]


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy counts no references")
@pytest.mark.parametrize(
    "end",
    [
        "OK",
        "refused twice",
        "lost",
        "reset",
        "reset at once",
        "no director",
        "wrapped and failed",
        "deadline",
    ],
)
@trio_test
async def test_a_call_that_is_over_leaves_nothing_to_the_garbage_collector(engine: Engine, end: str) -> None:
    """It would have to look at every open call to find them, again and again."""

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        if end == "no director":
            raise RpcError(Status.NOT_FOUND)
        return context, await house.pool.get_conn(house.backend.address)

    def configure(server: Server, to_backend: StreamDirector) -> None:
        if end == "wrapped and failed":
            Wrapped().configure(server, to_backend)

    async with a_proxy(engine, director=director, configure=configure) as house:
        client = await house.client()
        await client.ping()
        gc.collect()
        gc.disable()
        try:
            if end == "reset at once":
                call = client.new_stream()
                reset = RstStreamFrame(call.id, error_code=ErrorCode.CANCEL)
                await client.send_bytes(client.header_frames(call.id, request_fields()) + reset.serialize())
            else:
                fields = ((b"grpc-timeout", b"30m"),) if end == "deadline" else ()
                call = await client.request("/a.B/C", *fields, body=b"x")
            if end == "OK":
                await (await house.backend.request()).respond(b"y")
            elif end == "refused twice":
                await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
                await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
            elif end == "lost":
                await (await house.backend.request()).peer.aclose()
            elif end == "reset":
                await house.backend.request()
                await call.reset()
            elif end == "wrapped and failed":
                await (await house.backend.request()).reset(ErrorCode.INTERNAL_ERROR)
            await house.record()
            await until(lambda: not _of_calls())
        finally:
            gc.enable()


@trio_test
async def test_a_director_that_has_given_back_its_connection_fails_its_own_call_alone(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        conn = await house.pool.get_conn(house.backend.address)
        if method == "/a.B/Bad":
            conn.close()
        return context, conn

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/Bad")).answer()
        assert answer.status == Status.INTERNAL
        assert "given back already" in (await house.record()).detail
        call = await client.request("/a.B/Good")
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("path", ["/a.B/C", "/a.B/Other"])
@trio_test
async def test_a_connection_that_the_proxy_gives_back_cannot_be_given_back_before_and_is_nobody_elses_trouble(
    engine: Engine, path: str
) -> None:
    leases = []

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        leases.append(await house.pool.get_conn(house.backend.address))
        return context, leases[-1]

    def configure(server: Server, _director: StreamDirector) -> None:
        Wrapped().configure(server, director)

    async with a_proxy(engine, director=director, configure=configure) as house:
        client = await house.client()
        call = await client.request(path)
        served = await house.backend.request()
        with pytest.raises(ValueError, match="more often than it was taken"):
            leases[0].close()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        await house.record()
        call = await client.request(path)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_call_that_comes_as_its_connection_ends_goes_to_another_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, at_its_end = trio.Event(), trio.Event()
    read_loop = Connection._read_loop

    async def then_tell(connection: Connection) -> ConnectionFailed:
        end = await read_loop(connection)
        if connection.side is Side.UPSTREAM:
            at_its_end.set()
        return end

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        if method == "/a.B/Second":
            waiting.set()
            await at_its_end.wait()
        return context, await house.pool.get_conn(house.backend.address)

    monkeypatch.setattr(Connection, "_read_loop", then_tell)
    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request("/a.B/First")
        served = await house.backend.request()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        call = await client.request("/a.B/Second")
        await waiting.wait()
        await served.peer.aclose()
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


# --- Plain directors: asked where the call was read, without a task ---


@trio_test
async def test_a_connection_that_a_plain_director_keeps_too_long_is_replaced(engine: Engine) -> None:
    async with a_proxy_with_plain_director(engine) as (house, director):
        conn = director.lost = await house.pool.get_conn(house.backend.address)
        await (await house.backend.connection()).goaway(0)
        await until(lambda: not conn.has_room)
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK
        assert len(house.backend.peers) == 2


@trio_test
async def test_a_request_too_long_for_the_upstream_is_refused_and_the_lease_comes_back(
    engine: Engine,
) -> None:
    director = PlainDirector()
    async with a_proxy(engine, director=director, backend={MAX_HEADER_LIST_SIZE: 500}) as house:
        director.house = house
        client = await house.client()
        for fields, status in (((), Status.OK), (((b"x-long", b"x" * 500),), Status.RESOURCE_EXHAUSTED)):
            call = await client.request("/a.B/C", *fields)
            if status == Status.OK:
                await (await house.backend.request()).respond()
            assert (await call.answer()).status == status
            assert (await house.record()).status == status
