"""What a client refuses, and how it says so."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, Client, ConfigError, Http2Settings, Pool, RpcError, Target
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import PoolExhausted
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.upstream.pooled import PooledConnection
from tests.client.world import UNARY, a_client, a_client_of_ours, reset_code
from tests.proxy.house import on_every_engine, until
from tests.proxy.raw_peers import MAX_HEADER_LIST_SIZE, RESPONSE, message
from tests.upstream.backend import deaf_port


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Client("nowhere"), ConfigError, "nowhere"),
        (lambda: Client(Pool()), ConfigError, r"pool.target\(address\), not <.*Pool"),  # type: ignore[arg-type]
        (lambda: Client("a:1", max_message_bytes=-1), ConfigError, "max_message_bytes"),
        (lambda: Client("a:1", metadata={"x": b"1"}), TypeError, "-bin"),
        (lambda: Client("a:1", metadata={"Content-Type": "x"}), ValueError, "application/grpc"),
        (lambda: Client("a:1", authority="ü"), ValueError, "authority"),
        (lambda: Client("a:1").unary_unary("a.B/C", b""), ValueError, "/package.Service/Method"),
        (lambda: Client("a:1").unary_unary("/a/../b", b""), ValueError, "malformed"),
        (lambda: Client("a:1").unary_unary("/a.B/C", "x"), TypeError, "not str"),
        (
            lambda: Client("a:1").unary_unary("/a.B/C", b"", metadata={"grpc-timeout": "1S"}),
            ValueError,
            "use timeout=",
        ),
        (
            lambda: Client(Pool().target("a:1"), settings=Http2Settings()),
            ConfigError,
            r"pool.target\(address, ssl_context=",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    make: Callable[[], Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make()


@trio_test
async def test_a_client_is_used_inside_its_block() -> None:
    client = Client("127.0.0.1:1")
    with pytest.raises(ConfigError, match="async with Client"):
        await client.unary_unary("/a.B/C", b"")
    async with client:
        with pytest.raises(ConfigError, match="open already"):
            await client.__aenter__()
    assert not client._calls


@on_every_engine
@trio_test
async def test_a_call_is_made_once_and_streams_are_blocks(engine: Engine) -> None:
    async with a_client_of_ours(engine) as client:
        call = client.unary_unary(UNARY, b"x")
        await call
        with pytest.raises(RuntimeError, match="a call is made once"):
            await call
        stream = client.stream_stream(UNARY)
        with pytest.raises(RuntimeError, match="async with"):
            await stream.receive()
        with pytest.raises(RuntimeError, match="async with"):
            await stream.send(b"x")
        async with stream as opened:
            assert opened is stream
            assert stream.address == str(stream.address)
            assert repr(stream) == f"<StreamStreamCall {UNARY}>"
        assert repr(stream) == f"<StreamStreamCall {UNARY} CANCELLED>"
        with pytest.raises(TypeError, match=r"client.stream_unary\(method, requests\)"):
            await client.stream_unary(UNARY)


@trio_test
async def test_a_call_that_was_forgotten_is_told() -> None:
    async with Client("127.0.0.1:1") as client:
        forgotten = [client.unary_unary("/a.B/C", b"")]

        def forget() -> None:
            forgotten.clear()
            gc.collect()

        with pytest.warns(RuntimeWarning, match=r"<UnaryUnaryCall /a.B/C> was never made: await it"):
            forget()


@on_every_engine
@trio_test
async def test_one_task_receives_and_one_sends(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            served.peer.credits = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call.receive)
                nursery.start_soon(call.send, bytes(500_000))
                await trio.testing.wait_all_tasks_blocked(0.01)
                with pytest.raises(trio.BusyResourceError):
                    await call.receive()
                with pytest.raises(trio.BusyResourceError):
                    await call.send(b"")
                nursery.cancel_scope.cancel()
        await reset_code(served)


@on_every_engine
@trio_test
async def test_a_server_that_cannot_be_reached_is_unavailable(engine: Engine) -> None:
    with deaf_port() as address:
        async with Pool(connect_wait_s=0) as pool, Client(pool.target(address)) as client:
            with pytest.raises(RpcError, match=f"UNAVAILABLE: cannot connect to {address}"):
                await client.unary_unary("/a.B/C", b"")
            with pytest.raises(RpcError, match=f"UNAVAILABLE: cannot connect to {address}"):
                async with client.stream_stream("/a.B/C"):
                    raise AssertionError("there is no call")


@on_every_engine
@trio_test
async def test_metadata_that_the_server_would_not_take_cost_their_own_call(engine: Engine) -> None:
    async with a_client(engine, settings={MAX_HEADER_LIST_SIZE: 1000}) as world:
        with pytest.raises(
            RpcError, match=r"RESOURCE_EXHAUSTED: the request headers have \d+ bytes; .* 1000"
        ):
            await world.client.unary_unary("/a.B/C", b"", metadata={"x-a": "1" * 1000})
        assert world.backend.no_request_came()


@on_every_engine
@trio_test
async def test_a_codec_that_fails_costs_its_call(engine: Engine) -> None:
    class Broken:
        name = "broken"

        def marshal(self, value: object) -> bytes:
            return value  # type: ignore[return-value]

        def unmarshal(self, data: bytes, into: type[Any]) -> Any:
            raise KeyError("cannot")

    async with a_client(engine, codec=Broken()) as world:
        with pytest.raises(TypeError, match="has marshalled bytes"):
            world.client.unary_unary("/a.B/C", "text")
        async with world.client.stream_stream("/a.B/C") as call:
            served = await world.backend.request()
            await served.headers(RESPONSE)
            await served.data(message(b"1"))
            with pytest.raises(KeyError, match="cannot"):
                await call.receive()
        await reset_code(served)


class Odd:
    """Who takes calls need not be a target: this one's first places are full, and it hears of each call."""

    def __init__(self, target: Target, before: Callable[[], None] = lambda: None) -> None:
        self._target = target
        self._before = before
        self.asked: list[CallContext] = []
        self.out = 0
        self.ended: list[RpcError | None] = []

    async def take_place(self, context: CallContext) -> "OddPlace":
        self.asked.append(context)
        self._before()
        return self.place(await self._target.take(), has_room=False)

    def place(self, conn: PooledConnection, *, has_room: bool) -> "OddPlace":
        self.out += 1
        return OddPlace(self, conn, has_room=has_room)


class OddPlace:
    is_tls = True
    peer_max_header_list_bytes = 2**31 - 1

    def __init__(self, odd: Odd, conn: PooledConnection, *, has_room: bool) -> None:
        self._odd, self._conn, self.has_room = odd, conn, has_room
        self.address = "unix:/odd"

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        return self._conn.open_stream(headers, end_stream)

    async def again(self) -> "OddPlace":
        return self._odd.place(await self._conn.again(), has_room=True)

    def ended(self, error: RpcError | None) -> None:
        self._odd.ended.append(error)

    def give_back(self) -> None:
        self._odd.out -= 1
        self._conn.give_back()


@on_every_engine
@trio_test
async def test_whoever_has_places_may_take_calls(engine: Engine) -> None:
    async with a_client(engine) as world:
        odd = Odd(world.pool.target(world.backend.address))
        async with Client(odd, metadata={"x-key": "7"}) as client, trio.open_nursery() as nursery:

            async def call() -> None:
                assert await client.unary_unary("/a.B/C", b"", timeout=60) == b"y"

            nursery.start_soon(call)
            served = await world.backend.request()
            assert served.request.get(b":authority") == b"localhost"
            assert served.request.get(b":scheme") == b"https"
            await served.respond(b"y")
        [context] = odd.asked
        assert context.method == "/a.B/C"
        assert context.metadata["x-key"] == "7"
        assert context.deadline is not None
        await until(lambda: odd.out == 0)
        assert odd.ended == [None]


@on_every_engine
@trio_test
async def test_a_place_that_comes_too_late_is_given_back(engine: Engine) -> None:
    def cancel() -> None:
        call.cancel()

    async with a_client(engine) as world:
        odd = Odd(world.pool.target(world.backend.address), cancel)
        async with Client(odd) as client:
            call = client.unary_unary("/a.B/C", b"")
            with pytest.raises(RpcError, match="CANCELLED: the call was cancelled"):
                await call
        assert odd.out == 0
        assert world.backend.no_request_came()


@on_every_engine
@trio_test
async def test_whoever_has_no_place_fails_the_call(engine: Engine) -> None:
    def none() -> None:
        raise PoolExhausted("no place")

    async with (
        a_client(engine) as world,
        Client(Odd(world.pool.target(world.backend.address), none)) as client,
    ):
        with pytest.raises(PoolExhausted, match="no place"):
            await client.unary_unary("/a.B/C", b"")
        assert not client._calls
