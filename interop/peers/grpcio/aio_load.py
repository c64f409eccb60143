"""Calls `promises/bytes_server.py` as fast as it is answered, over several channels, in grpcio's asyncio API.

One call in five is cancelled, before or after its answer has begun, and one in five has a deadline that passes; one
that was answered before the cancel counts as good. Once a second, and at the end, a line of JSON tells what has come of
all calls so far: `calls` that have begun, by group; `unexpected` ends, by group, kind and what came; `disconnects` of
the channels.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc
import grpc.aio

#: Without this, channels to one target share one connection.
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
SMALL, LARGE = bytes(100), bytes(16 * 1024)
#: What a call says whose answer came before the cancel.
ANSWERED = "answered"
#: How long a call is let alone before it is cancelled: around the time that an answer takes, and up to many times that.
CANCEL_SECONDS = (0.0, 0.001, 0.003, 0.01, 0.05)
DEADLINE_SECONDS = (0.002, 0.01, 0.05)


class Client:
    """One channel, and the kinds of calls made on it."""

    def __init__(self, target: str, service: str) -> None:
        self.channel = grpc.aio.insecure_channel(target, OPTIONS)
        self.echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/{service}/Echo"
        )
        self.slow: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/{service}/Slow"
        )
        self.stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(
            f"/{service}/Stream"
        )
        self.watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(
            f"/{service}/Watch"
        )
        self.chat: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(
            f"/{service}/Chat"
        )

    async def unary(self) -> str:
        return self._same(await self.echo(SMALL), SMALL)

    async def large(self) -> str:
        return self._same(await self.echo(LARGE), LARGE)

    async def streaming(self) -> str:
        messages = [message async for message in self.stream(b"5")]
        return "OK" if len(messages) == 5 else f"{len(messages)} messages of 5"

    async def chatting(self) -> str:
        call = self.chat()
        for _ in range(3):
            await call.write(SMALL)
            if await call.read() != SMALL:
                return (
                    "OK without the message"
                    if await call.code() is grpc.StatusCode.OK
                    else await status(call)
                )
        await call.done_writing()
        return await status(call)

    async def cancelled_unary(self) -> str:
        return await self._cancelled(self.slow(SMALL))

    async def cancelled_about_when_answered(self) -> str:
        call = self.echo(SMALL)
        outcome = await self._cancelled(call)
        return ANSWERED if await call.code() is grpc.StatusCode.OK else outcome

    async def cancelled_before_the_answer(self) -> str:
        return await self._cancelled(self.chat())

    async def cancelled_after_the_answer_began(self) -> str:
        call = self.watch(SMALL)
        if await call.read() != SMALL:
            return await status(call)
        return await self._cancelled(call)

    async def expired(self) -> str:
        call = self.slow(SMALL, timeout=random.choice(DEADLINE_SECONDS))
        return await status(call, "DEADLINE_EXCEEDED")

    async def expired_stream(self) -> str:
        call = self.watch(SMALL, timeout=random.choice(DEADLINE_SECONDS))
        return await status(call, "DEADLINE_EXCEEDED")

    def _same(self, answer: bytes, wanted: bytes) -> str:
        return "OK" if answer == wanted else "another answer"

    async def _cancelled(self, call: grpc.aio.Call) -> str:
        await asyncio.sleep(random.choice(CANCEL_SECONDS))
        call.cancel()
        return await status(call, "CANCELLED")


async def status(call: grpc.aio.Call, expected: str = "OK") -> str:
    """OK if the call ends with the status that is expected; else how it ended."""
    code = await call.code()
    return "OK" if code.name == expected else f"{code.name}: {await call.details()}"


Kind = Callable[[Client], Awaitable[str]]
#: The kinds of calls of each group.
KINDS: dict[str, dict[str, Kind]] = {
    "good": {
        "unary": Client.unary,
        "large": Client.large,
        "streaming": Client.streaming,
        "chat": Client.chatting,
    },
    "cancelled": {
        "unary": Client.cancelled_unary,
        "about when answered": Client.cancelled_about_when_answered,
        "before the answer": Client.cancelled_before_the_answer,
        "after the answer began": Client.cancelled_after_the_answer_began,
    },
    "expired": {"unary": Client.expired, "streaming": Client.expired_stream},
}
#: How often each kind is chosen of the good ones; of the others all are equal.
GOOD_WEIGHTS = [16, 1, 1, 1]


class Tally:
    """What has come of the calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.disconnects = 0

    def next(self) -> str:
        """The group of the next call: the one that is short of its fifth of all calls, or else good."""
        total = self.calls.total()
        short = (group for group in ("cancelled", "expired") if 5 * self.calls[group] <= total)
        group = next(short, "good")
        self.calls[group] += 1
        return group

    def ended(self, group: str, name: str, outcome: str) -> None:
        """Note what came of a call."""
        if outcome == ANSWERED:
            self.calls[group] -= 1
            self.calls["good"] += 1
        elif outcome != "OK":
            self.unexpected[f"{group}, {name}: {outcome}"] += 1

    def report(self) -> None:
        """Print all of it."""
        print(json.dumps(vars(self)), flush=True)


async def work(client: Client, tally: Tally, end: float) -> None:
    """One call after another."""
    while time.monotonic() < end:
        group = tally.next()
        kinds = KINDS[group]
        name = random.choices(list(kinds), GOOD_WEIGHTS if group == "good" else None)[0]
        try:
            outcome = await kinds[name](client)
        except grpc.aio.AioRpcError as error:
            outcome = f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            outcome = "OK" if group == "cancelled" else "CANCELLED"
        tally.ended(group, name, outcome)


async def look_at_state(client: Client, tally: Tally) -> None:
    """Count how often the channel, once connected, loses its connection."""
    ready = grpc.ChannelConnectivity.READY
    state = client.channel.get_state(try_to_connect=True)
    while True:
        await client.channel.wait_for_state_change(state)
        before, state = state, client.channel.get_state(try_to_connect=True)
        tally.disconnects += before is ready and state is not ready


async def main() -> None:
    """Call for the given time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument(
        "--services", default="interop.Bytes", metavar="A,B", help="called on the channels in turn"
    )
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--at-a-time", type=int, default=24, help="on each channel")
    given = parser.parse_args()
    services = given.services.split(",")
    clients = [Client(given.target, services[number % len(services)]) for number in range(given.channels)]
    tally = Tally()
    end = time.monotonic() + given.seconds
    looking = [asyncio.create_task(look_at_state(client, tally)) for client in clients]
    working = asyncio.gather(
        *(work(client, tally, end) for client in clients for _ in range(given.at_a_time))
    )
    while not working.done():
        await asyncio.wait([working], timeout=1)
        tally.report()
    for task in looking:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await working


if __name__ == "__main__":
    asyncio.run(main())
