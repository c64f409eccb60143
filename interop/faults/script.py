"""Makes the calls that standard input tells of, in grpcio's asyncio API without repeats, and tells what came of each.

    echo '[{"method": "Echo", "size": 100}]' | python -m interop.faults.script --target HOST:PORT

Of a call: `method`; `request`, text, or `size` of a message; `messages`, how many of them are sent, with a `pause_s`
after each (1; a stream of requests if it is there); `streams`, whether the answer is a stream; `timeout_s`; `after_s`,
when it begins; `cancel_after_s`, when it is given up, from its first answer on; `metadata`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from interop.faults.backend import SERVICE
from interop.faults.caller import NO_RETRIES, OPTIONS
from interop.faults.payload import content


class Script:
    def __init__(self, target: str, at_a_time: int) -> None:
        options = [*OPTIONS, NO_RETRIES, ("grpc.max_metadata_size", 1 << 20)]
        self._channel = grpc.aio.insecure_channel(target, options)
        self._places = asyncio.Semaphore(at_a_time)

    async def play(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Make one call, and answer what came of it."""
        await asyncio.sleep(asked.get("after_s", 0))
        async with self._places:
            return await self._play(asked)

    async def _play(self, asked: dict[str, Any]) -> dict[str, Any]:
        path = f"/{SERVICE}/{asked['method']}"
        message = asked["request"].encode() if "request" in asked else content(0, asked.get("size", 0))
        kind = ("stream" if "messages" in asked else "unary") + (
            "_stream" if asked.get("streams") else "_unary"
        )
        started, cancelled = time.monotonic(), None
        request = self._requests(message, asked) if "messages" in asked else message
        metadata = tuple(asked.get("metadata", {}).items())
        call = getattr(self._channel, kind)(path)(request, timeout=asked.get("timeout_s"), metadata=metadata)
        answers: list[bytes] = []
        try:
            if asked.get("streams"):
                async for answer in call:
                    answers.append(answer)
                    if "cancel_after_s" in asked and cancelled is None:
                        await asyncio.sleep(asked["cancel_after_s"])
                        cancelled = time.monotonic()
                        call.cancel()
            else:
                answers.append(await call)
            code, details = await call.code(), await call.details()
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
        except asyncio.CancelledError:
            code, details = await call.code(), await call.details()
        ended = time.monotonic()
        whole = b"".join(answers)
        return {
            "status": code.name, "details": details or "", "started": started, "ended": ended,
            "cancelled": cancelled, "messages": len(answers), "size": len(whole),
            "digest": hashlib.sha256(whole).hexdigest(),
        }  # fmt: skip

    async def _requests(self, message: bytes, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        for _ in range(asked["messages"]):
            yield message
            await asyncio.sleep(asked.get("pause_s", 0))


async def main() -> None:
    """Make all calls, at once but for `after_s` and what may be made at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument("--at-a-time", type=int, default=1000)
    given = parser.parse_args()
    script = Script(given.target, given.at_a_time)
    calls = json.load(sys.stdin)
    print(json.dumps(await asyncio.gather(*(script.play(asked) for asked in calls))))


if __name__ == "__main__":
    asyncio.run(main())
