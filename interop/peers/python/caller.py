"""What all Python callers do, whatever their library: make the unary calls of a plan, and tell how each has ended.

    python -m interop.peers.grpcio.caller --target HOST:PORT --deadline 5 --plan '[{"calls": 1}, {"pause_s": 1}]'

A step of a plan is so many `calls` at once, of a message of `request_size` bytes that asks for one of `response_size`,
or a pause. For each step with calls there is a line of JSON, {"calls": [{"status", "message", "size", "seconds"}]};
`size` is that of the response's payload, or null if there was none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from interop.peers.generated import test_pb2
from interop.peers.python.messages import methods, run_blocking
from interop.peers.python.player import Client
from interop.peers.python.tls import Tls

UNARY = methods("TestService")["UnaryCall"]


async def play(client: Client, plan: list[dict[str, Any]], deadline_s: float) -> None:
    """Make the calls, and print what comes of them."""
    for step in plan:
        if "pause_s" in step:
            await client.sleep(step["pause_s"])
            continue
        request = test_pb2.SimpleRequest(
            response_size=step["response_size"], payload=test_pb2.Payload(body=bytes(step["request_size"]))
        )
        ends = await client.gather([_call(client, request, deadline_s) for _ in range(step["calls"])])
        print(json.dumps({"calls": ends}), flush=True)


async def _call(client: Client, request: test_pb2.SimpleRequest, deadline_s: float) -> dict[str, Any]:
    began = time.monotonic()
    try:
        call = await client.start(UNARY, request, [], deadline_s, False)
        response: Any = await call.recv()
        end = await call.end()
    except Exception as error:  # grpclib raises what it meets when it connects
        status, message, size = type(error).__name__, str(error), None
    else:
        status, message = end.status, end.message or ""
        size = None if response is None else len(response.payload.body)
    seconds = round(time.monotonic() - began, 4)
    return {"status": status, "message": message, "size": size, "seconds": seconds}


def run_sync(open_client: Callable[[str, int, Tls | None], Client]) -> None:
    """On a client whose awaits block."""
    host, port, plan, deadline_s = arguments()
    run_blocking(play(open_client(host, port, None), plan, deadline_s))


def run_async(open_client: Callable[[str, int, Tls | None], Client]) -> None:
    """On an asyncio client, which is opened on the running event loop."""

    async def run() -> None:
        host, port, plan, deadline_s = arguments()
        await play(open_client(host, port, None), plan, deadline_s)

    asyncio.run(run())


def run_trio(open_client: Callable[[str, int, Tls | None], AbstractAsyncContextManager[Client]]) -> None:
    """On a client for trio."""

    async def run() -> None:
        host, port, plan, deadline_s = arguments()
        async with open_client(host, port, None) as client:
            await play(client, plan, deadline_s)

    trio.run(run)


def arguments() -> tuple[str, int, list[dict[str, Any]], float]:
    """Host, port, plan and deadline from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument("--plan", required=True, type=json.loads, help="what to do, as JSON")
    parser.add_argument("--deadline", required=True, type=float, help="of each call, in seconds")
    given = parser.parse_args()
    host, port = given.target.rsplit(":", 1)
    return host, int(port), given.plan, given.deadline
