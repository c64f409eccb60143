"""Callers that give up, or vanish."""

from __future__ import annotations

import time

from interop.faults.payload import Stream
from interop.faults.row import Figures, Outcome, Row, Site
from interop.faults.world import Settings, backends, holding, play, proxying, until

CANCEL_SECONDS = 0.05
CANCELS = 200
HELD = 50
BULK = Stream(count=400, size=65_536)
#: What 64 MiB take at the most on a connection whose windows are as they were; it is a second, or so.
WHOLE_SECONDS = 15.0


async def cancels(site: Site) -> Outcome:
    """Each of 200 streams is given up after its first message."""
    figures = Figures()
    async with backends("a") as (server,), proxying(site, Settings([server.target])) as proxy:
        calls = [
            {"method": "Hold", "request": str(number), "streams": True, "cancel_after_s": 0.02}
            for number in range(CANCELS)
        ]
        results = await play(proxy.target, calls, at_a_time=5)
        await until(lambda: len(server.cancelled()) == CANCELS, 5)
        heard = server.cancelled()
        delays = [
            heard[str(number)] - result.cancelled
            for number, result in enumerate(results)
            if result.cancelled is not None and str(number) in heard
        ]
        figures.milliseconds("the backend heard after", delays, CANCEL_SECONDS)
        figures.note(f"{len(delays)} of {CANCELS} heard of", len(delays) == CANCELS)
        figures.note("all places given back", await proxy.quiet())
    return figures.outcome()


async def disconnects(site: Site) -> Outcome:
    """A process with 50 streams is killed."""
    figures = Figures()
    async with backends("a") as (server,), proxying(site, Settings([server.target])) as proxy:
        async with holding(proxy.target, HELD) as caller:
            killed = time.monotonic()
            caller.kill()
            caller.wait()  # short
            # On a busy machine the system takes its time to end a process, and to close its sockets.
            gone = time.monotonic()
        await until(lambda: len(server.cancelled()) == HELD, 5)
        delays = [max(at - gone, 0.0) for at in server.cancelled().values()]
        figures.note(f"the process was gone after {(gone - killed) * 1e3:.1f} ms")
        figures.milliseconds("the backend heard after", delays, CANCEL_SECONDS)
        figures.note(f"{len(delays)} of {HELD} heard of", len(delays) == HELD)
        figures.note("all places given back", await proxy.quiet())
    return figures.outcome()


async def cancelled_downloads(site: Site) -> Outcome:
    """Downloads are given up with much of them on the way, on one connection, which then has to carry a whole one."""
    figures = Figures()
    async with backends("a") as (server,):
        settings = Settings([server.target], pool="size = 1\nttl = 600")
        async with proxying(site, settings) as proxy:
            request = BULK.encode().decode()
            call = {"method": "Stream", "request": request, "streams": True}
            results = await play(proxy.target, [{**call, "cancel_after_s": 0.05}] * CANCELS, at_a_time=10)
            given_up = [each for each in results if each.status == "CANCELLED"]
            figures.note(f"{len(given_up)} downloads given up", len(given_up) == CANCELS)
            figures.note("all places given back", await proxy.quiet())
            whole = Stream(count=1000, size=65_536)
            [last] = await play(proxy.target, [{**call, "request": whole.encode().decode(), "timeout_s": 60}])
            figures.note(f"then one of 64 MiB: {last.status}, whole", last.digest == whole.digest())
            figures.at_most("in", last.seconds, WHOLE_SECONDS)
            connections = await proxy.connections("upstream")
            figures.note(f"{len(connections)} connection to the backend", len(connections) == 1)
    return figures.outcome()


ROWS = [
    Row(
        "cancels",
        f"{CANCELS} callers give up",
        "RST_STREAM(CANCEL) reaches the backend within 50 ms, places are given back",
        8,
        cancels,
    ),
    Row(
        "disconnects",
        f"a caller with {HELD} streams is killed",
        "RST_STREAM(CANCEL) reaches the backend within 50 ms, places are given back",
        5,
        disconnects,
    ),
    Row(
        "credit",
        f"{CANCELS} downloads of 25 MB are given up, on one connection to the backend",
        "its windows are as before: 64 MiB go through on it",
        25,
        cancelled_downloads,
    ),
]
