"""What a client refuses, and how it says so."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import Client, ConfigError, Http2Settings, Pool, RpcError
from rawgrpc_proxy.config import Engine
from tests.client.world import UNARY, a_client, a_client_of_ours, reset_code
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import MAX_HEADER_LIST_SIZE, RESPONSE, message
from tests.upstream.backend import deaf_port


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Client("nowhere"), ConfigError, "nowhere"),
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
        with pytest.raises(RuntimeError, match="async with"):
            await client.unary_stream(UNARY, b"x").receive()
        with pytest.raises(RuntimeError, match="async with"):
            await client.stream_stream(UNARY).send(b"x")
        with pytest.raises(TypeError, match=r"client.stream_unary\(method, requests\)"):
            await client.stream_unary(UNARY)


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
        async with Pool(connect_wait=0) as pool, Client(pool.target(address)) as client:
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
