"""Calls the backend at a steady rate, in grpcio's asyncio API, until it is ended, and holds some calls open.

A line of JSON for each call that starts and each that ends, with the time on the monotonic clock, which all processes
of a machine share. When the calls that are to be held are open, and those of the burst have ended, it says
{"ready": true}.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

from interop.faults.backend import SERVICE

METHODS = f"/{SERVICE}/"
REQUEST = bytes(100)
NAME = b"watch"
#: How long calls that never answer are given to arrive at the server.
ARRIVAL_SECONDS = 0.5


def tell(**facts: Any) -> None:
    """Print one line."""
    print(json.dumps(facts), flush=True)


class Prober:
    """The calls, each with a number."""

    def __init__(self, target: str) -> None:
        channel = grpc.aio.insecure_channel(target)
        self._echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHODS + "Echo")
        self._slow: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHODS + "Slow")
        self._watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHODS + "Hold")
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a call in a task of its own."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def probe(self) -> None:
        """A call that is answered at once."""
        await self._told("probe", self._echo(REQUEST))

    async def slow(self) -> None:
        """A call that is answered after a minute."""
        await self._told("slow", self._slow(b"60"))

    async def watch(self, opened: asyncio.Event) -> None:
        """A call that is answered with one message, and then nothing more."""
        call = self._watch(NAME)
        if await call.read() == NAME:
            opened.set()
        await self._told("watch", call)

    async def _told(self, kind: str, call: grpc.aio.Call) -> None:
        number = next(self._numbers)
        tell(call=number, kind=kind, started=time.monotonic())
        code = await call.code()
        tell(call=number, kind=kind, ended=time.monotonic(), status=code.name, details=await call.details())


async def main() -> None:
    """Call until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument("--rate", type=float, default=2.0, help="probes a second")
    parser.add_argument(
        "--after", type=float, default=0.0, help="seconds before the first one, when all is ready"
    )
    parser.add_argument("--burst", type=int, default=0, help="probes at once, before all else")
    parser.add_argument("--watches", type=int, default=0)
    parser.add_argument("--slow", type=int, default=0)
    given = parser.parse_args()
    prober = Prober(given.target)
    await asyncio.gather(*(prober.probe() for _ in range(given.burst)))
    for _ in range(given.watches):
        opened = asyncio.Event()
        prober.start(prober.watch(opened))
        await opened.wait()
    for _ in range(given.slow):
        prober.start(prober.slow())
    await asyncio.sleep(ARRIVAL_SECONDS)
    tell(ready=True)
    await asyncio.sleep(given.after)
    while True:
        prober.start(prober.probe())
        await asyncio.sleep(1 / given.rate)


if __name__ == "__main__":
    asyncio.run(main())
