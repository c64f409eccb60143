"""Makes so many calls through the proxy, of which some are given up, some have deadlines that pass, and some are reset.

grpcio's asyncio API, without repeats. Of ten calls six end well, two are cancelled, one has a deadline that passes, and
one is reset by its backend (the service `raw.Bytes`). A line of JSON each second, and at the end, tells of the calls so
far: `calls`, by kind, and `unexpected` ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter

import grpc
import grpc.aio

from interop.faults.backend import SERVICE
from interop.faults.caller import NO_RETRIES, OPTIONS
from interop.faults.payload import Stream, content

RESET_SERVICE = "raw.Bytes"
SMALL = content(1, 200)
FEW = Stream(count=5, size=1000)
MANY = Stream(count=40, size=20_000)
CANCEL_SECONDS = (0.0, 0.001, 0.01, 0.05)
DEADLINE_SECONDS = (0.01, 0.05)
RESET_STATUSES = {"INTERNAL", "CANCELLED", "UNAVAILABLE"}


class Mixed:
    """A channel, and the kinds of calls made on it: each answers what was unexpected of its end, or nothing."""

    def __init__(self, target: str) -> None:
        channel = grpc.aio.insecure_channel(target, [*OPTIONS, NO_RETRIES])
        self._unary: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {
            name: channel.unary_unary(path)
            for name, path in {
                "echo": f"/{SERVICE}/Echo",
                "slow": f"/{SERVICE}/Slow",
                "reset": f"/{RESET_SERVICE}/Reset",
            }.items()
        }
        self._stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            f"/{SERVICE}/Stream"
        )

    async def echo(self) -> str:
        return "" if await self._unary["echo"](SMALL) == SMALL else "another answer"

    async def few(self) -> str:
        whole = b"".join([each async for each in self._stream(FEW.encode())])
        return "" if len(whole) == FEW.count * FEW.size else f"OK with {len(whole)} bytes"

    async def cancelled(self) -> str:
        call = self._unary["slow"](b"0.5")
        await asyncio.sleep(random.choice(CANCEL_SECONDS))
        call.cancel()
        return _unless((await call.code()).name, {"CANCELLED"})

    async def cancelled_download(self) -> str:
        call = self._stream(MANY.encode())
        await call.read()
        call.cancel()
        return _unless((await call.code()).name, {"CANCELLED"})

    async def expired(self) -> str:
        call = self._unary["slow"](b"0.5", timeout=random.choice(DEADLINE_SECONDS))
        return _unless((await call.code()).name, {"DEADLINE_EXCEEDED"})

    async def reset(self) -> str:
        return _unless((await self._unary["reset"](SMALL).code()).name, RESET_STATUSES)


def _unless(status: str, expected: set[str]) -> str:
    return "" if status in expected else status


KINDS = {
    Mixed.echo: 52,
    Mixed.few: 8,
    Mixed.cancelled: 16,
    Mixed.cancelled_download: 4,
    Mixed.expired: 10,
    Mixed.reset: 10,
}


async def main() -> None:
    """Make the calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--at-a-time", type=int, default=10, help="on each channel")
    given = parser.parse_args()
    calls: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    kinds, weights = list(KINDS), list(KINDS.values())
    left = given.calls

    async def work(mixed: Mixed) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            [kind] = random.choices(kinds, weights)
            try:
                text = await kind(mixed)
            except grpc.aio.AioRpcError as error:
                text = f"{error.code().name}: {error.details()}"
            calls[kind.__name__] += 1
            if text:
                unexpected[f"{kind.__name__}: {text}"] += 1

    every = [Mixed(given.target) for _ in range(given.channels)]
    working = asyncio.gather(*(work(mixed) for mixed in every for _ in range(given.at_a_time)))
    while not working.done():
        await asyncio.wait([working], timeout=1)
        print(json.dumps({"calls": calls, "unexpected": unexpected}), flush=True)
    await working


if __name__ == "__main__":
    asyncio.run(main())
