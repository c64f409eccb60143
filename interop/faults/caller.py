"""Calls the backend through the proxy, one call after the other on each of many tasks, until its input closes.

grpcio's asyncio API, and grpcio repeats nothing: what fails here has failed. Each answer is held against what it must
be, byte for byte. A line of JSON says `{"ready": true}` when every task has had an answer; each call that did not end
with OK has a line, as it ends; and the last line has the sum. Times are on the monotonic clock, which all processes
share.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from interop.faults.backend import SERVICE
from interop.faults.payload import Stream, content

#: Without the first, channels to one target share one connection.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
NO_RETRIES = ("grpc.enable_retries", 0)
LONGEST = 10_000


def percentile(sorted_values: list[float], share: float) -> float:
    """The value below which this share of them is."""
    return (
        sorted_values[min(int(len(sorted_values) * share), len(sorted_values) - 1)] if sorted_values else 0.0
    )


class Caller:
    """A channel, and how its calls are made."""

    def __init__(self, given: argparse.Namespace, numbers: Iterator[int]) -> None:
        options: list[tuple[str, Any]] = [*OPTIONS] if given.retries else [*OPTIONS, NO_RETRIES]
        if given.round_robin:
            # By itself grpcio makes an :authority of all addresses, which is none, and is refused as malformed.
            options.append(("grpc.default_authority", "callers.example"))
            options += [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 500)]
            options.append(("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'))
        channel = grpc.aio.insecure_channel(given.target, options)
        self.echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Echo")
        self.stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            f"/{SERVICE}/Stream"
        )
        self.upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
            f"/{SERVICE}/Upload"
        )
        self._given, self._numbers = given, numbers
        self._asked = Stream(given.count, given.size, given.pause)
        # Of a stream without an end nobody asks for it.
        self._digest = self._asked.digest() if given.count <= LONGEST else ""

    async def call_echo(self) -> tuple[bool, str]:
        """One unary call: whether its answer is whole, and who has answered."""
        message = content(next(self._numbers), self._given.size)
        call = self.echo(message, timeout=self._given.timeout)
        answer = await call
        return answer == message, _backend(await call.initial_metadata())

    async def call_stream(self) -> tuple[bool, str]:
        """One stream of answers."""
        call = self.stream(self._asked.encode(), timeout=self._given.timeout)
        total = hashlib.sha256()
        async for message in call:
            total.update(message)
            if self._given.sip:
                await asyncio.sleep(self._given.sip)
        # The loop ends quietly only with OK.
        return total.hexdigest() == self._digest, _backend(await call.initial_metadata())

    async def call_upload(self) -> tuple[bool, str]:
        """One stream of requests."""
        total = hashlib.sha256()

        async def messages() -> Any:
            for number in range(self._given.count):
                message = content(number, self._given.size)
                total.update(message)
                yield message

        call = self.upload(messages(), timeout=self._given.timeout)
        answer = await call
        return answer == total.hexdigest().encode(), _backend(await call.initial_metadata())


def _backend(metadata: Any) -> str:
    return next((str(value) for key, value in metadata or () if key == "backend"), "?")


class Tally:
    """What has come of the calls."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.backends: Counter[str] = Counter()
        self.truncated = 0
        self.seconds: list[float] = []
        self.last_ok = 0.0
        self.longest_gap = 0.0

    def ok(self, started: float, whole: bool, backend: str) -> None:
        """A call has ended with OK."""
        now = time.monotonic()
        self.statuses["OK"] += 1
        self.backends[backend] += 1
        self.truncated += not whole
        self.seconds.append(now - started)
        if self.last_ok:
            self.longest_gap = max(self.longest_gap, now - self.last_ok)
        self.last_ok = now

    def failed(self, started: float, status: str, details: str) -> None:
        """A call has ended otherwise."""
        self.statuses[status] += 1
        tell(status=status, details=details, started=started, ended=time.monotonic())

    def sum(self) -> dict[str, Any]:
        """All of it, as the last line says it."""
        times = sorted(self.seconds)
        return {
            "statuses": self.statuses, "backends": self.backends, "truncated": self.truncated,
            "p50_s": percentile(times, 0.5), "p99_s": percentile(times, 0.99), "max_s": percentile(times, 1.0),
            "longest_gap_s": self.longest_gap,
        }  # fmt: skip


def tell(**facts: Any) -> None:
    """Print one line."""
    print(json.dumps(facts), flush=True)


async def work(
    call: Callable[[], Awaitable[tuple[bool, str]]],
    tally: Tally,
    given: argparse.Namespace,
    stop: asyncio.Event,
) -> None:
    """One call after another."""
    while not stop.is_set():
        started = time.monotonic()
        try:
            whole, backend = await call()
            tally.ok(started, whole, backend)
        except grpc.aio.AioRpcError as error:
            tally.failed(started, error.code().name, error.details() or "")
        if given.rest:
            await asyncio.sleep(given.rest)


async def main() -> None:
    """Call until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT, or a target as grpcio takes it")
    parser.add_argument("--kind", choices=["echo", "stream", "upload"], default="echo")
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--at-a-time", type=int, default=8, help="calls on each channel")
    parser.add_argument("--size", type=int, default=1000, help="bytes of a message")
    parser.add_argument("--count", type=int, default=10, help="messages of a stream")
    parser.add_argument("--pause", type=float, default=0.0, help="after each message of a stream of answers")
    parser.add_argument("--sip", type=float, default=0.0, help="seconds between two messages that are read")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds between two calls of a task")
    parser.add_argument("--timeout", type=float, help="deadline of each call; none by default")
    parser.add_argument("--retries", action="store_true", help="let grpcio repeat what no server has seen")
    parser.add_argument("--round-robin", action="store_true")
    given = parser.parse_args()
    numbers, tally, stop = itertools.count(), Tally(), asyncio.Event()
    callers = [Caller(given, numbers) for _ in range(given.channels)]
    tasks = [
        asyncio.create_task(work(getattr(caller, f"call_{given.kind}"), tally, given, stop))
        for caller in callers
        for _ in range(given.at_a_time)
    ]
    until = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while given.kind == "echo" and tally.statuses.total() < len(tasks) and not until.done():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    tell(ready=True)
    await until
    stop.set()
    await asyncio.gather(*tasks)
    tell(sum=tally.sum())


if __name__ == "__main__":
    asyncio.run(main())
