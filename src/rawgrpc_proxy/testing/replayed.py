"""A recorded failure as a unit test."""

import math
from functools import partial
from pathlib import Path

import trio
from trio.testing import memory_stream_pair

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.recording import read
from rawgrpc_proxy.lab.replay import Verdict, replay
from rawgrpc_proxy.server.server import Server


async def replayed(
    path: Path | str,
    server: Server,
    *,
    side: Side = Side.DOWNSTREAM,
    speed: float = 1.0,
    slower_s: float = math.inf,
) -> list[str]:
    """Play the clients of a recording to `server`, in memory, and say what differs: an empty list if nothing does.

        async def test_what_failed_last_night(autojump_clock):
            async with in_memory(my_methods) as house:
                assert await replayed("failure.jsonl", house.proxy) == []

    Frames, their order and their pauses are those of the recording, by trio's clock, so under `MockClock` they take no
    time. `side` says whose connections are played: those of callers, or with `Side.UPSTREAM` those the proxy had to its
    upstream. A call that takes `slower_s` seconds more than it did differs, too. Raises `ConfigError` for a file that
    is no recording, or has no such connection.
    """
    links = read(path).side(side)
    if not links:
        raise ConfigError(
            f"{path} has no connection of the side {side.value!r}; see rawgrpc-proxy record --side"
        )
    async with trio.open_nursery() as nursery:

        async def dial() -> trio.abc.HalfCloseableStream:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(partial(server.serve_stream, theirs, peer="recorded"))
            return ours

        verdicts = await replay(links, dial, speed=speed, slower_s=slower_s)
        nursery.cancel_scope.cancel()
    return [f"{_name(verdict)}: {text}" for verdict in verdicts for text in verdict.differences]


def _name(verdict: Verdict) -> str:
    return f"connection {verdict.link}, {verdict.name}"
