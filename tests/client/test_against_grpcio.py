"""The client before grpcio's server, in a process of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from rawgrpc_proxy import Client, RpcError, Status
from rawgrpc_proxy.errors import DeadlineExceeded
from tests.processes import program

pytest.importorskip("grpc")

SERVER = """
import threading
from concurrent.futures import ThreadPoolExecutor
import grpc

def unary(request, context):
    context.send_initial_metadata((("x-first", "1"),))
    user = dict(context.invocation_metadata())["x-user"]
    context.set_trailing_metadata((("x-last-bin", b"\\xff\\x00"), ("x-user", user)))
    return request[::-1]

def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n

def client_stream(requests, context):
    return b"+".join(requests)

def bidi(requests, context):
    for request in requests:
        yield request

def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet: \\u00e4")

def sleep(request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    context.send_initial_metadata(())
    ended.wait()
    print("ended", flush=True)
    return b""

kinds = grpc.method_handlers_generic_handler("a.B", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
})
server = grpc.server(ThreadPoolExecutor(8), compression=grpc.Compression.Gzip)
server.add_generic_rpc_handlers((kinds,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on 127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""


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
