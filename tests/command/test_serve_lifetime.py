"""A real client of gRPC, in a process of its own, across connections that grow old: it loses no call."""

import json
import sys
from pathlib import Path

import pytest
import trio

from tests.processes import program
from tests.proxy.raw_peers import Backend, PeerStream

pytest.importorskip("grpc")

CALLER = """
import json, sys, time
import grpc

def same(data):
    return data

codes, until = {}, time.monotonic() + 4
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/a.B/C", same, same)
    while time.monotonic() < until:
        try:
            answer = call(b"hello", timeout=30)
        except grpc.RpcError as error:
            answer = f"{error.code()} {error.details()}".encode()
        codes[answer.decode()] = codes.get(answer.decode(), 0) + 1
print(json.dumps(codes))
"""
FILE = """
[http2]
max_connection_age = "500ms"
[[listeners]]
address = "127.0.0.1:0"
[clusters.a]
endpoints = ["{backend}"]
[[routes]]
cluster = "a"
"""


async def answer(stream: PeerStream) -> None:
    await stream.request_body()
    await stream.respond(b"hello")


def test_a_client_of_grpc_loses_no_call_when_its_connections_grow_old(tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            backend = Backend()
            await nursery.start(backend.run)
            nursery.start_soon(backend.answer_all, answer)
            file = tmp_path / "proxy.toml"
            file.write_text(FILE.format(backend=backend.address))
            async with program("serve", "--config", str(file)) as proxy:
                address = await proxy.address()
                caller = await trio.run_process([sys.executable, "-c", CALLER, address], capture_stdout=True)
                codes = json.loads(caller.stdout)
                await proxy.lines(r" /a\.B/C ", sum(codes.values()))
                callers = {
                    line.split(" /a.B/C ")[1].split()[0] for line in proxy.stderr if " /a.B/C " in line
                }
            nursery.cancel_scope.cancel()
        assert set(codes) == {"hello"}
        assert len(callers) > 2  # connections, one after the other

    trio.run(main)
