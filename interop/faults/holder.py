"""Holds streams open, each of which has had its first message, until it is killed: a line says that all have."""

from __future__ import annotations

import argparse
import asyncio

import grpc.aio

from interop.faults.backend import SERVICE


async def main() -> None:
    """Open them, and wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument("--calls", type=int, default=1)
    given = parser.parse_args()
    channel = grpc.aio.insecure_channel(given.target)
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Hold")
    calls = [method(str(number).encode()) for number in range(given.calls)]
    for call in calls:
        await call.read()
    print("all are open", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
