"""Backends that answer badly, or not at all: they get no calls for a while, and then some again."""

from __future__ import annotations

import signal
import time

import trio

from interop.faults.row import Figures, Outcome, Row, Site
from interop.faults.world import Backend, Proxy, Settings, backends, calling, proxying

EJECTED_SECONDS = 15.0
#: 30 s, and until the sweep after that; and what it takes to ask.
BACK_SECONDS = 41.0
#: Three checks that fail: 5.5 s each at the most, and a timeout of 1 s.
UNHEALTHY_SECONDS = 18.0
HEALTHY_SECONDS = 12.0
SHARE = (0.30, 0.36)
POLL_SECONDS = 0.1
A_WHILE = 5.0
SETTLES_SECONDS = 0.5


async def until_it_stands(proxy: Proxy, backend: Backend, standing: str, seconds: float) -> float | None:
    """After so many seconds the backend stands so in its cluster; None: it does not."""
    began = time.monotonic()
    with trio.move_on_after(seconds):
        while True:
            clusters = (await proxy.ask("/clusters"))["clusters"]
            for endpoint in (endpoint for cluster in clusters for endpoint in cluster["endpoints"]):
                if endpoint["address"] == backend.target and endpoint["standing"] == standing:
                    return time.monotonic() - began
            await trio.sleep(POLL_SECONDS)
    return None


def calls_of(proxy: Proxy, backend: Backend, since: float, until: float) -> tuple[int, int]:
    """How many calls have ended on this backend between these times, and how many of all."""
    upstreams = [call.upstream for call in list(proxy.calls) if since <= call.ended < until]
    return upstreams.count(backend.target), len(upstreams)


async def _ejected(site: Site, outlier: str, how: signal.Signals) -> Outcome:
    figures = Figures()
    async with backends("a", "b", "c") as servers:
        settings = Settings([each.target for each in servers], cluster=f"outlier = {outlier}")
        async with proxying(site, settings) as proxy:
            async with calling(proxy.target, at_a_time=4, rest=0.02) as callers:
                bad = servers[2]
                await trio.sleep(2)
                bad.signal(how)
                after = await until_it_stands(proxy, bad, "ejected", 3 * EJECTED_SECONDS)
                out = time.monotonic()
                figures.at_most("ejected after", after, EJECTED_SECONDS)
                bad.signal(how)
                after = await until_it_stands(proxy, bad, "in_rotation", 2 * BACK_SECONDS)
                back = time.monotonic()
                figures.at_most("back after", after, BACK_SECONDS)
                meanwhile, of = calls_of(proxy, bad, out + SETTLES_SECONDS, back - SETTLES_SECONDS)
                figures.note(f"meanwhile it got {meanwhile} of {of} calls", not meanwhile)
                await trio.sleep(A_WHILE)
                its, of = calls_of(proxy, bad, back + SETTLES_SECONDS, time.monotonic())
                share = its / max(of, 1)
                figures.note(f"then {share:.1%} of {of}", SHARE[0] <= share <= SHARE[1])
                load = await callers.finish()
            late = [each for each in load.failures if each.ended > out + SETTLES_SECONDS]
            figures.note(
                f"{len(load.failures)} of {load.total} calls failed, {len(late)} of them later", not late
            )
            reasons = [line for line in proxy.said if "endpoint_ejected" in line]
            figures.note(f"ejected {len(reasons)} times", len(reasons) == 1)
    return figures.outcome()


async def ejected_at_once(site: Site) -> Outcome:
    """It fails half of its calls by chance; outlier detection has its defaults."""
    return await _ejected(site, "{}", signal.SIGUSR1)


async def ejected_at_the_sweep(site: Site) -> Outcome:
    """It fails every second call, so that there are never two in a row."""
    small = '{ interval = "5s", failure_percentage = { threshold = 40, minimum_hosts = 3 } }'
    return await _ejected(site, small, signal.SIGUSR2)


async def hangs(site: Site) -> Outcome:
    """It is stopped; health checks find it, and find it again."""
    figures = Figures()
    async with backends("a", "b", "c") as servers:
        settings = Settings([each.target for each in servers], cluster="health = {}")
        async with proxying(site, settings) as proxy:
            async with calling(proxy.target, at_a_time=20, rest=0.02, timeout=2.0) as callers:
                bad = servers[2]
                bad.signal(signal.SIGSTOP)
                after = await until_it_stands(proxy, bad, "unhealthy", 3 * UNHEALTHY_SECONDS)
                out = time.monotonic()
                figures.at_most("unhealthy after", after, UNHEALTHY_SECONDS)
                await trio.sleep(A_WHILE)
                bad.signal(signal.SIGCONT)
                after = await until_it_stands(proxy, bad, "in_rotation", 3 * HEALTHY_SECONDS)
                back = time.monotonic()
                figures.at_most("back after", after, HEALTHY_SECONDS)
                await trio.sleep(A_WHILE)
                its, of = calls_of(proxy, bad, back + SETTLES_SECONDS, time.monotonic())
                share = its / max(of, 1)
                figures.note(f"then {share:.1%} of {of} calls", SHARE[0] <= share <= SHARE[1])
                load = await callers.finish()
            late = [each for each in load.failures if each.started > out + SETTLES_SECONDS]
            figures.note(
                f"{len(load.failures)} of {load.total} calls failed, {len(late)} of them begun later",
                not late,
            )
    return figures.outcome()


ROWS = [
    Row(
        "ejected",
        "one of three backends fails half of its calls, by chance",
        "outlier = {} ejects it within 15 s, and it comes back",
        60,
        ejected_at_once,
        waits=True,
    ),
    Row(
        "ejected-in-turn",
        "one of three backends fails every second call",
        "outlier with a threshold of 40 % each 5 s ejects it within 15 s, and it comes back",
        70,
        ejected_at_the_sweep,
        waits=True,
    ),
    Row(
        "unhealthy",
        "one of three backends is stopped (SIGSTOP), and goes on",
        "health = {} takes it out within 18 s, and puts it back within 12 s",
        45,
        hangs,
        waits=True,
    ),
]
