"""Retries before grpcio's server, in a process of its own, which sends headers before it fails."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    Client,
    Cluster,
    HedgingPolicy,
    Pool,
    RetryPolicy,
    RpcError,
    Server,
    Status,
    transparent_handler,
)
from rawgrpc_proxy.proxy.director import Direction
from tests.processes import program

pytest.importorskip("grpc")

SERVER = """
import threading
from concurrent.futures import ThreadPoolExecutor
import grpc

tries = {}

def flaky(request, context):
    context.send_initial_metadata((("x-first", "1"),))
    tries[request] = tries.get(request, 0) + 1
    said = dict(context.invocation_metadata()).get("grpc-previous-rpc-attempts", "0")
    if tries[request] < 3:
        context.abort(grpc.StatusCode.UNAVAILABLE, f"try {said}")
    return b"try " + said.encode()

def slow_at_first(request, context):
    said = dict(context.invocation_metadata()).get("grpc-previous-rpc-attempts", "0")
    if said == "0":
        ended = threading.Event()
        context.add_callback(ended.set)
        context.send_initial_metadata(())
        ended.wait()
        print("cancelled", flush=True)
    return b"try " + said.encode()

kinds = grpc.method_handlers_generic_handler("a.B", {
    "Flaky": grpc.unary_unary_rpc_method_handler(flaky),
    "SlowAtFirst": grpc.unary_unary_rpc_method_handler(slow_at_first),
})
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((kinds,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on 127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""
POLICIES = {
    "/a.B/Flaky": CallPolicy(retry=RetryPolicy(initial_backoff_s=0.01)),
    "/a.B/SlowAtFirst": CallPolicy(hedging=HedgingPolicy(hedging_delay_s=0.05)),
}


@trio_test
async def test_headers_then_unavailable_is_retried_and_a_slow_call_hedged() -> None:
    def director(context: CallContext, method: str) -> Direction:
        wanted = "x-plain" not in context.metadata
        return context.with_policy(POLICIES[method] if wanted else None), cluster

    async with (
        program(python=["-c", SERVER]) as backend,
        Pool() as pool,
        Cluster([await backend.address()], pool=pool) as cluster,
        trio.open_nursery() as nursery,
    ):
        address = await nursery.start(
            Server(unknown_service_handler=transparent_handler(director)).serve, "127.0.0.1:0"
        )
        async with Client(address) as client:
            call = client.unary_unary("/a.B/Flaky", b"one")
            assert await call == b"try 2"
            assert call.headers is not None
            assert call.headers["x-first"] == "1"
            with pytest.raises(RpcError) as failed:
                await client.unary_unary("/a.B/Flaky", b"two", metadata={"x-plain": "1"})
            assert (failed.value.status, failed.value.message) == (Status.UNAVAILABLE, "try 0")
            assert await client.unary_unary("/a.B/SlowAtFirst", b"") == b"try 1"
            await backend.line("^cancelled$", "stdout")
        nursery.cancel_scope.cancel()
