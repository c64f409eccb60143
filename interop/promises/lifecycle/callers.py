"""Calls `bytes_server.py` steadily in grpcio's asyncio API, until its standard input ends, and tells of each call.

Each caller has a channel of its own, with a connection of its own, for as long as the process lives. Those of unary
calls make one after the other, with a pause between; streams are bidirectional, exchange a message now and then, and
end after some seconds, whereupon the next one begins. The authority of a channel is the name of its caller.

A line for each call that has ended: caller, start and end on the monotonic clock, which all processes of a machine
share, status and, as JSON, details. A stream in which a message did not come back is told of as CUT.

What grpcio does by itself: it connects again when its connection says GOAWAY or is lost, and calls wait meanwhile; when
that attempt fails, so do they, as `wait_for_ready` is off. Without a retry policy, and there is none here, it repeats a
call only where the server cannot have seen it: as often as need be while it has not left the process, and once if the
server says so (REFUSED_STREAM, or an id above the last one of GOAWAY). These *transparent* retries (gRFC A6) are part
of what any gRPC client does; `--no-retries` takes them away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio

SERVICE = "/interop.Bytes/"
REQUEST = bytes(100)
#: A call that hangs is one that failed.
DEADLINE_SECONDS = 20.0
STREAM_SECONDS = (1.0, 4.0)
MESSAGE_PAUSE_SECONDS = (0.05, 0.3)
FLUSH_SECONDS = 0.2
#: After a call that has failed, so that one cause is not counted a thousand times.
FAILED_PAUSE_SECONDS = 0.1


class Caller:
    """One channel, and calls on it one after the other."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self._name = name
        self._pause_s: float = given.pause
        options: list[tuple[str, str | int]] = [
            # Without this, channels to one target share one connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0 if given.no_retries else 1),
            ("grpc.default_authority", name),
        ]
        if given.tls_ca is None:
            self._channel = grpc.aio.insecure_channel(given.target, options)
        else:
            options.append(("grpc.ssl_target_name_override", "localhost"))
            credentials = grpc.ssl_channel_credentials(given.tls_ca.read_bytes())
            self._channel = grpc.aio.secure_channel(given.target, credentials, options)
        self._echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            SERVICE + "Echo"
        )
        self._chat: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            SERVICE + "Chat"
        )

    async def repeat(self, once: Callable[[], Awaitable[tuple[str, str]]], stop: asyncio.Event) -> None:
        """Make one call after the other, and tell of each."""
        while not stop.is_set():
            start = time.monotonic()
            try:
                status, details = await once()
            except grpc.aio.AioRpcError as error:
                status, details = error.code().name, error.details() or ""
            print(self._name, f"{start:.6f} {time.monotonic():.6f}", status, json.dumps(details))
            await asyncio.sleep(self._pause_s if status == "OK" else FAILED_PAUSE_SECONDS)
        await self._channel.close()

    async def unary(self) -> tuple[str, str]:
        """One call; its status and details."""
        answer = await self._echo(REQUEST, timeout=DEADLINE_SECONDS)
        return ("OK", "") if answer == REQUEST else ("CUT", "another answer")

    async def stream(self) -> tuple[str, str]:
        """One stream, from its first message to its end."""
        call = self._chat(timeout=DEADLINE_SECONDS)
        until = time.monotonic() + random.uniform(*STREAM_SECONDS)
        cut = ""
        while time.monotonic() < until and not cut:
            try:
                await call.write(REQUEST)
            except asyncio.InvalidStateError:  # it has ended while we were asleep
                cut = "ended in the middle"
            else:
                if await call.read() != REQUEST:
                    cut = "a message did not come back"
                await asyncio.sleep(random.uniform(*MESSAGE_PAUSE_SECONDS))
        if not cut:
            await call.done_writing()
            if await call.read() is not grpc.aio.EOF:
                cut = "more came than was sent"
        code, details = await call.code(), await call.details()
        if code is not grpc.StatusCode.OK:
            return code.name, details or ""
        return ("CUT", cut) if cut else ("OK", "")


async def main() -> None:
    """Call until standard input ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True, help="HOST:PORT, or unix:PATH")
    parser.add_argument("--number", type=int, default=0, help="of this process, for the names")
    parser.add_argument("--unary", type=int, default=5, help="callers of unary calls")
    parser.add_argument("--streams", type=int, default=5, help="callers of streams")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two calls of a caller")
    parser.add_argument("--no-retries", action="store_true", help="without transparent retries")
    parser.add_argument("--tls-ca", type=Path, help="speak TLS, and trust this authority")
    given = parser.parse_args()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(given.unary):
            caller = Caller(f"unary-{given.number}-{number}", given)
            tasks.create_task(caller.repeat(caller.unary, stop))
        for number in range(given.streams):
            caller = Caller(f"stream-{given.number}-{number}", given)
            tasks.create_task(caller.repeat(caller.stream, stop))
        reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        while not reading.done():
            sys.stdout.flush()
            await asyncio.wait([reading], timeout=FLUSH_SECONDS)
        stop.set()


if __name__ == "__main__":
    asyncio.run(main())
