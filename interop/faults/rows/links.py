"""Networks between the processes: a shim behind the proxy, or before it, does what they do."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

import trio

from interop.faults.payload import Stream
from interop.faults.probe import READY_SECONDS, Call, probing
from interop.faults.row import Figures, Outcome, Row, Site
from interop.faults.shim import Shim, shim_before
from interop.faults.world import Result, Settings, backends, play, proxying, start, start_again, until

NEW_CALLS_SAFE_SECONDS = 40.0
IN_FLIGHT_SECONDS = 45.0
BACK_SECONDS = 5.0
#: 60 s without a word, 20 s for the answer to the PING; and the reset has to reach the backend.
VANISHED_SECONDS = 60.0 + 20.0 + 2.0
#: How much longer than its bound a row is watched, to tell by how much it is missed.
BEYOND_SECONDS = 30.0
OUTAGES_SECONDS = (5, 30, 90)
IN_FLIGHT = 2
#: So slow that all calls lost on a silent link find room on it: a connection dialled for want of room proves nothing.
CAUGHT_RATE = 0.4
#: An idle link is left alone for so long before new calls come.
IDLE_SECONDS = 30.0
BURST = 10
DELAY_SECONDS = 0.05
ENDS_SECONDS = 0.1


# ------------------------------------------------------------------------------------------------------- silent links


async def silent_link(site: Site, **held: float) -> Outcome:
    """A link to the backend goes silent, with calls on it; new connections are healthy."""
    figures = Figures()
    async with (
        backends("a") as (server,),
        shim_before(server.target) as (shim, upstream),
        proxying(site, Settings([upstream])) as proxy,
        probing(proxy.target, rate=CAUGHT_RATE, **held) as probe,
    ):
        await probe.wait_until_ready()
        silent = time.monotonic()
        shim.silence()

        def over() -> bool:
            probes = [call for call in probe.probes() if call.started > silent]
            healthy = len(probes) > 3 and all(call.status == "OK" for call in probes[-3:])
            return healthy and all(call.ended is not None for call in probe.held())

        await until(over, IN_FLIGHT_SECONDS + BEYOND_SECONDS)
        caught = [call for call in probe.probes() if call.started > silent and call.status != "OK"]
        # The last one may just have been sent.
        caught = [call for call in caught if call.ended or time.monotonic() - call.started > 1.0]
        last = max((call.started - silent for call in caught), default=0.0)
        figures.at_most("the last new call that was lost came after", last, NEW_CALLS_SAFE_SECONDS)
        _note_ends(figures, "calls in flight ended after", probe.held(), silent)
        if caught:
            _note_ends(figures, "new calls that were lost ended after", caught, silent)
    return figures.outcome()


def _note_ends(figures: Figures, what: str, calls: list[Call], since: float) -> None:
    ends = [None if call.ended is None else call.ended - since for call in calls]
    last = None if None in ends else max((end for end in ends if end is not None), default=0.0)
    figures.at_most(what, last, IN_FLIGHT_SECONDS)
    counts = Counter(call.status for call in calls)
    text = ", ".join(f"{count} × {status}" for status, count in counts.items())
    figures.note(text, set(counts) <= {"UNAVAILABLE"})


async def outage(site: Site, seconds: float) -> Outcome:
    """The only backend is killed, and comes back at the same port."""
    figures = Figures()
    async with (
        backends("a") as servers,
        proxying(site, Settings([servers[0].target])) as proxy,
        probing(proxy.target, rate=2) as probe,
    ):
        await probe.wait_until_ready()
        await until(lambda: any(call.status == "OK" for call in probe.probes()), READY_SECONDS)
        servers[0].kill()
        await trio.sleep(seconds)
        servers[0] = start_again(servers[0])
        await start(servers[0])
        back = time.monotonic()

        def first_success() -> float | None:
            ends = [call.ended for call in probe.probes() if call.status == "OK" and call.ended]
            return min((end for end in ends if end > back), default=None)

        await until(lambda: first_success() is not None, BACK_SECONDS + 2 * BEYOND_SECONDS)
        success = first_success()
        figures.at_most("first success after", None if success is None else success - back, BACK_SECONDS)
    return figures.outcome()


async def reset_dial(site: Site) -> Outcome:
    """The first connection to the backend is reset."""
    figures = Figures()
    async with (
        backends("a") as (server,),
        shim_before(server.target) as (shim, upstream),
        proxying(site, Settings([upstream])) as proxy,
    ):
        shim.reset_next()
        async with probing(proxy.target, burst=BURST, rate=10) as probe:
            await probe.wait_until_ready()
            await trio.sleep(3)
            ended = [call for call in probe.probes() if call.ended is not None]
            failed = [call for call in ended if call.status != "OK"]
            figures.note(f"{len(failed)} of {len(ended)} calls failed", not failed and bool(ended))
            figures.note(f"{shim.accepted} dials")
    return figures.outcome()


async def vanished_caller(site: Site) -> Outcome:
    """Nothing more comes from a caller, not even its end."""
    figures = Figures()
    async with (
        backends("a") as (server,),
        proxying(site, Settings([server.target])) as proxy,
        shim_before(proxy.target) as (shim, front),
        probing(front, watches=1, after=1e6) as probe,
    ):
        await probe.wait_until_ready()
        silent = time.monotonic()
        shim.silence()
        freed = await until(lambda: bool(server.cancelled()), VANISHED_SECONDS + BEYOND_SECONDS)
        after = time.monotonic() - silent if freed else None
        figures.at_most("the backend's call was freed after", after, VANISHED_SECONDS)
    return figures.outcome()


# ------------------------------------------------------------------------------------------- what a shim does to calls

_STREAM = Stream(count=20, size=5000, pause_s=0.05)
_CALLS = [
    {"method": "Stream", "request": _STREAM.encode().decode(), "streams": True, "timeout_s": 8},
    {"method": "Echo", "size": 5000, "timeout_s": 8},
    {"method": "Slow", "request": "1.0", "timeout_s": 8},
]


async def bad_link(site: Site, *, upstream: bool) -> Outcome:
    """All that can be done to the bytes on one side, one after the other, with a stream and unary calls under way."""
    figures = Figures()
    async with backends("a") as (server,):
        for name, does in _DEEDS.items():
            async with shim_before(server.target) as (behind, to_backend):
                settings = Settings([to_backend if upstream else server.target])
                async with proxying(site, settings) as proxy, shim_before(proxy.target) as (before, front):
                    await play(proxy.target, [{"method": "Echo"}])
                    await _deed(figures, name, does, behind if upstream else before, front)
                    [result] = await play(proxy.target, [{"method": "Echo", "timeout_s": 10}])
                    if result.status != "OK":
                        figures.note(f"{name}: a call afterwards was {result.status}", kept=False)
                    if not await proxy.quiet():
                        figures.note(f"{name}: a place was not given back", kept=False)
    return figures.outcome()


async def _deed(figures: Figures, name: str, does: str, shim: Shim, front: str) -> None:
    results: list[Result] = []
    done_at = 0.0
    if does == "delay":
        shim.delay_s = DELAY_SECONDS
    elif does == "trickle":
        shim.trickle_bytes = 1

    async def call() -> None:
        results.extend(await play(front, _CALLS))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        if does in {"cut", "reset", "half_close", "silence"}:
            await until(lambda: shim.passed > 20_000, 20)
            done_at = time.monotonic()
            if does == "cut":
                shim.cut_after(1)
            elif does == "half_close":
                await shim.half_close()
            else:
                getattr(shim, does)()
    shim.resume()
    shim.delay_s, shim.trickle_bytes = 0.0, 0
    stream, *_ = results
    truncated = stream.status == "OK" and stream.digest != _STREAM.digest()
    truncated = truncated or any(each.status == "OK" and each.size == 0 for each in results)
    counts = Counter(each.status for each in results)
    text = f"{name}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    if does in {"cut", "reset"}:
        late = max(each.ended - done_at for each in results if each.status != "OK")
        text += f" after {late * 1e3:.0f} ms"
        kept = late <= ENDS_SECONDS and set(counts) <= {"OK", "UNAVAILABLE"}
    elif does in {"delay", "trickle"}:
        kept = set(counts) == {"OK"}
    else:
        kept = set(counts) <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    figures.note(text, kept and not truncated)


#: What is done, in words, and by which means of the shim.
_DEEDS = {
    "delay of 50 ms": "delay",
    "one byte at a time": "trickle",
    "RST": "reset",
    "cut": "cut",
    "half-closed": "half_close",
    "silent": "silence",
}

ROWS = [
    Row(
        "silent_watch",
        "a link to the backend goes silent under an idle stream; new connections are healthy",
        "no new call is lost after 40 s; the stream ends as UNAVAILABLE within 45 s",
        IN_FLIGHT_SECONDS,
        partial(silent_link, watches=1, after=IDLE_SECONDS),
        waits=True,
    ),
    Row(
        "silent_unary",
        "the same under unary calls",
        "no new call is lost after 40 s; those in flight end as UNAVAILABLE within 45 s",
        IN_FLIGHT_SECONDS,
        partial(silent_link, slow=IN_FLIGHT),
        waits=True,
    ),
    *(
        Row(
            f"outage_{seconds}",
            f"the only backend is killed, and comes back after {seconds} s",
            f"the first success is at most {BACK_SECONDS:.0f} s later",
            seconds + BACK_SECONDS,
            partial(outage, seconds=seconds),
            waits=True,
        )
        for seconds in OUTAGES_SECONDS
    ),
    Row("reset_dial", "the first dial to the backend is reset", "no call fails", 5, reset_dial, waits=True),
    Row(
        "vanished",
        "a caller with an open stream vanishes without a word",
        "the backend's call is freed within 82 s",
        VANISHED_SECONDS,
        vanished_caller,
        waits=True,
    ),
    Row(
        "link_upstream",
        "the link to the backend is slow, trickles, is reset, cut, half closed, silent",
        "slow ones succeed; RST and cut: UNAVAILABLE within 100 ms; never a truncated success, calls go on after",
        20,
        partial(bad_link, upstream=True),
    ),
    Row(
        "link_downstream",
        "the same between caller and proxy",
        "the same",
        20,
        partial(bad_link, upstream=False),
    ),
]
