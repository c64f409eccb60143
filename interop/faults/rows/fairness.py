"""Streams that share a connection with one that is slow, or takes all it can get."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import trio

from interop.faults.row import Figures, Outcome, Row, Site
from interop.faults.world import Callers, Load, Proxy, Settings, backends, calling, proxying
from interop.shared import proc

ROUNDS = 3
ROUND_SECONDS = 4.0
UNARY_CALLS = 99
P99_TIMES = 3.0
SHARE = 0.9
#: A window of 1 MiB on each side of the proxy, what waits in sockets, and messages in grpcio.
HELD_MIB = 8.0


async def _round(proxy: Proxy, at_a_time: int, rest: float = 0.0) -> Load:
    async with calling(proxy.target, channels=1, at_a_time=at_a_time, size=100, rest=rest) as callers:
        await trio.sleep(ROUND_SECONDS)
        return await callers.finish()


async def bulk_and_unary(site: Site) -> Outcome:
    """99 unary calls at a time, with and without a bulk stream on the one connection to the backend."""
    figures = Figures()
    alone, beside = list[Load](), list[Load]()
    async with (
        backends("a") as (server,),
        proxying(site, Settings([server.target], pool="size = 1\nttl = 600")) as proxy,
    ):
        await _round(proxy, UNARY_CALLS, rest=0.2)
        for _ in range(ROUNDS):
            alone.append(await _round(proxy, UNARY_CALLS, rest=0.2))
            async with _streaming(proxy):
                beside.append(await _round(proxy, UNARY_CALLS, rest=0.2))
        connections = await proxy.connections("upstream")
    base = sorted(load.p99_s for load in alone)[ROUNDS // 2]
    with_bulk = sorted(load.p99_s for load in beside)[ROUNDS // 2]
    figures.note(f"p99 alone {base * 1e3:.1f} ms, beside a bulk stream {with_bulk * 1e3:.1f} ms")
    figures.at_most("ratio", with_bulk / base, P99_TIMES, "")
    medians = [sorted(load.p50_s for load in loads)[ROUNDS // 2] * 1e3 for loads in (alone, beside)]
    figures.note(f"medians {medians[0]:.1f} and {medians[1]:.1f} ms")
    figures.note(f"{len(connections)} connection to the backend", len(connections) == 1)
    failed = sum(len(load.failures) for load in (*alone, *beside))
    figures.note(f"{failed} of {sum(load.total for load in (*alone, *beside)):,} failed", not failed)
    return figures.outcome()


def _streaming(proxy: Proxy, sip: float = 0.0) -> AbstractAsyncContextManager[Callers]:
    """A stream of 64 KiB messages without an end."""
    return calling(
        proxy.target, kind="stream", channels=1, at_a_time=1, size=65_536, count=1_000_000, sip=sip
    )


async def slow_consumer(site: Site) -> Outcome:
    """One stream is read in sips, and siblings on the same connections have what they had."""
    figures = Figures()
    alone, beside = list[Load](), list[Load]()
    async with (
        backends("a") as (server,),
        proxying(site, Settings([server.target], pool="size = 1\nttl = 600")) as proxy,
    ):
        await _round(proxy, 8)
        for _ in range(ROUNDS):
            alone.append(await _round(proxy, 8))
            before = proc.memory(*proxy.workers()).now_mib
            async with _streaming(proxy, sip=0.05):
                beside.append(await _round(proxy, 8))
                grown = proc.memory(*proxy.workers()).now_mib - before
    base = sorted(load.ok for load in alone)[ROUNDS // 2]
    with_slow = sorted(load.ok for load in beside)[ROUNDS // 2]
    figures.note(f"{base / ROUND_SECONDS:,.0f} calls/s alone, {with_slow / ROUND_SECONDS:,.0f} beside it")
    figures.note(f"{with_slow / base:.0%} (≥ {SHARE:.0%})", with_slow >= SHARE * base)
    figures.at_most("memory grows by", grown, HELD_MIB, "MiB")
    return figures.outcome()


ROWS = [
    Row(
        "bulk",
        f"one bulk stream and {UNARY_CALLS} unary calls on one connection",
        f"unary p99 ≤ {P99_TIMES:.0f} × that without the stream",
        ROUNDS * 14,
        bulk_and_unary,
    ),
    Row(
        "slow_consumer",
        "a stream whose reader takes 20 messages of 64 KiB a second",
        f"siblings on its connection keep {SHARE:.0%} of their throughput; memory stays bounded",
        ROUNDS * 13,
        slow_consumer,
    ),
]
