"""The client before grpcio's server, in a process of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from rawgrpc_proxy import Client, RpcError, Status
from rawgrpc_proxy.errors import DeadlineExceeded
from tests.client.grpcio_server import SERVER
from tests.processes import program

pytest.importorskip("grpc")


@asynccontextmanager
async def a_client_of_grpcio() -> AsyncIterator[tuple[Client, trio.Event]]:
    """And an event that is set when the server's `Sleep` has heard of the end of a call."""
    ended = trio.Event()

    async def watch() -> None:
        await server.line("^ended$", "stdout")
        ended.set()

    async with (
        program(python=["-c", SERVER]) as server,
        Client(await server.address(), metadata={"x-user": "bob"}) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch)
        yield client, ended
        nursery.cancel_scope.cancel()


def test_all_shapes_are_understood_compressed_or_not() -> None:
    async def main() -> None:
        async with a_client_of_grpcio() as (client, _):
            call = client.unary_unary("/a.B/Unary", b"abc" * 1000)
            assert await call == b"cba" * 1000
            assert call.headers is not None
            assert call.headers["x-first"] == "1"
            assert call.headers["grpc-encoding"] == "gzip"
            assert call.trailers is not None
            assert call.trailers["x-last-bin"] == b"\xff\x00"
            assert call.trailers["x-user"] == "bob"
            async with client.unary_stream("/a.B/ServerStream", b"500") as stream:
                assert [reply async for reply in stream] == [b"%d" % n for n in range(500)]
            assert await client.stream_unary("/a.B/ClientStream", [b"a", b"b", b""]) == b"a+b+"
            async with client.stream_stream("/a.B/Bidi") as talk:
                for n in range(20):
                    await talk.send(b"%d" % n * 1000)
                    assert await talk.receive() == b"%d" % n * 1000
                await talk.done_sending()
                assert await talk.receive() is None
                assert talk.status is Status.OK

    trio.run(main)


def test_statuses_are_understood() -> None:
    async def main() -> None:
        async with a_client_of_grpcio() as (client, _):
            with pytest.raises(RpcError, match="FAILED_PRECONDITION: not yet: ä") as failed:
                await client.unary_unary("/a.B/Fail", b"")
            assert dict(failed.value.trailing_metadata)["x-why"] == "because"
            with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                await client.unary_unary("/a.B/Nothing", b"")

    trio.run(main)


def test_the_server_hears_of_a_deadline() -> None:
    async def main() -> None:
        async with a_client_of_grpcio() as (client, ended):
            with pytest.raises(DeadlineExceeded):
                await client.unary_unary("/a.B/Sleep", b"", timeout=1)
            await ended.wait()

    trio.run(main)


def test_the_server_hears_of_a_call_that_is_left() -> None:
    async def main() -> None:
        async with a_client_of_grpcio() as (client, ended):
            async with client.unary_stream("/a.B/Sleep", b"") as call:
                await call.receive_headers()
            assert call.status is Status.CANCELLED
            await ended.wait()

    trio.run(main)
