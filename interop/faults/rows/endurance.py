"""Very many calls that end in every way: afterwards everything is as it was."""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from interop.faults.payload import Stream
from interop.faults.raw_backend import CANCEL, INTERNAL_ERROR, NO_ERROR, Link, RawBackend, listening
from interop.faults.row import Figures, Outcome, Row, Site
from interop.faults.world import Proxy, Settings, backends, play, proxying
from interop.shared import proc
from interop.shared.processes import Lines

PROCESSES = 2
TASKS_A_CONNECTION = 3
"""Of one to a backend: its life, what it reads, and what it writes."""
SAMPLE_SECONDS = 2.0
#: Over the second half: the line through all samples, from its beginning to its end.
SLOPE = 0.01
#: Calls that have to be over before the descriptors are counted: connections that are kept have been made by then.
WARM_CALLS = 4000
#: The share of calls that may end otherwise than they were to: an answer and a deadline can meet.
UNEXPECTED = 0.0001
WHOLE = Stream(count=300, size=65_536)
CODES = INTERNAL_ERROR, CANCEL, NO_ERROR


async def _resets(link: Link, stream_id: int) -> None:
    """Each call is reset: at once, after headers, or after a message."""
    step, code = stream_id // 2 % 3, CODES[stream_id // 6 % 3]
    if step:
        await link.headers(stream_id)
    if step == 2:
        await link.data(stream_id, 100)
    await link.reset(stream_id, code)


@dataclass
class _Told:
    """What a process of callers has told last."""

    calls: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    noise: list[str] = field(default_factory=list)

    def read(self, line: str) -> None:
        if line.startswith("{"):
            told = json.loads(line)
            self.calls, self.unexpected = Counter(told["calls"]), Counter(told["unexpected"])
        else:
            self.noise.append(line)


@asynccontextmanager
async def _mixed(target: str, calls: int) -> AsyncIterator[list[tuple[Lines, _Told]]]:
    started = []
    try:
        for _ in range(PROCESSES):
            told = _Told()
            command = [
                sys.executable, "-m", "interop.faults.mixed", f"--target={target}",
                f"--calls={calls // PROCESSES}",
            ]  # fmt: skip
            started.append((Lines(command, on_line=told.read), told))
        yield started
    finally:
        for lines, _ in started:
            lines.stop()


async def _make(proxy: Proxy, worker: int, calls: int) -> tuple[Counter[str], Counter[str], list[float]]:
    """Make so many calls, and answer how many of which kind there were, what was unexpected, and memory in MiB."""
    samples: list[float] = []
    async with _mixed(proxy.target, calls) as every:
        while any(lines.wait(0) is None for lines, _ in every):
            await trio.sleep(SAMPLE_SECONDS)
            samples.append(proc.memory(worker).now_mib)
    made, unexpected = Counter[str](), Counter[str]()
    for _, told in every:
        made += told.calls
        unexpected += told.unexpected + Counter(told.noise[-3:])
    return made, unexpected, samples


async def _state(proxy: Proxy, worker: int) -> dict[str, float]:
    """What must be as it was: once no call is open, and connections of callers are gone."""
    with trio.move_on_after(10):
        while await proxy.connections("downstream") or not await proxy.quiet(1):  # noqa: ASYNC110
            await trio.sleep(0.1)
    upstream = await proxy.connections("upstream")
    return {
        "descriptors": proc.open_files(worker) - len(upstream),
        "tasks": await proxy.tasks() - TASKS_A_CONNECTION * len(upstream),
        "calls": await proxy.open_calls(),
        "places": await proxy.held_places(),
        "callers' connections": len(await proxy.connections("downstream")),
    }


async def endurance(site: Site) -> Outcome:
    """So many calls as were asked for."""
    figures = Figures()
    raw = RawBackend(_resets)
    async with backends("a") as (server,), listening(raw.serve) as resetting:
        settings = Settings(
            [server.target],
            first=f'[clusters.raw]\nendpoints = ["{resetting}"]\n[[routes]]\nmatch = "/raw.Bytes/*"\ncluster = "raw"\n',
            log='format = "none"',
        )
        async with proxying(site, settings) as proxy:
            worker = await proxy.worker()
            await _make(proxy, worker, WARM_CALLS)
            before = await _state(proxy, worker)
            began = trio.current_time()
            made, unexpected, samples = await _make(proxy, worker, site.endurance)
            rate = made.total() / (trio.current_time() - began)
            after = await _state(proxy, worker)
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in made.most_common())
            figures.note(f"{made.total():,} calls ({kinds}), {rate:,.0f}/s")
            odd = ", ".join(f"{count} × {text}" for text, count in unexpected.most_common(3))
            figures.note(
                f"{unexpected.total()} unexpected ends" + (f" ({odd})" if odd else ""),
                unexpected.total() <= UNEXPECTED * made.total(),
            )
            half = samples[len(samples) // 2 :]
            if len(half) > 3:
                slope, intercept = statistics.linear_regression(range(len(half)), half)
                change = slope * (len(half) - 1) / intercept
                figures.note(
                    f"memory {samples[0]:.1f} MiB at first, {half[0]:.1f} at half, {half[-1]:.1f} at the end; the "
                    f"second half's slope {change:+.2%} (± {SLOPE:.0%})",
                    abs(change) <= SLOPE,
                )
            else:
                figures.note("too few samples of memory", kept=site.endurance < 10_000)
            for name, value in before.items():
                # Of tasks there may be less: some wait a while for calls that need one.
                kept = after[name] <= value if name == "tasks" else after[name] == value
                figures.note(f"{name} {value:g} → {after[name]:g}", kept)
            await _note_credit(figures, proxy)
    return figures.outcome()


async def _note_credit(figures: Figures, proxy: Proxy) -> None:
    """Whether the connections carry as much as at first: what has no credit any more would stand still."""
    call = {"method": "Stream", "request": WHOLE.encode().decode(), "streams": True, "timeout_s": 60}
    results = await play(proxy.target, [call] * 5)
    whole = sum(each.status == "OK" and each.digest == WHOLE.digest() for each in results)
    figures.note(f"then {whole} of 5 downloads of 19 MiB whole", whole == 5)


ROWS = [
    Row(
        "endurance",
        "very many calls, of which a fifth is cancelled, a tenth expires, and a tenth is reset",
        "memory's slope 0 ± 1 %; descriptors, tasks, calls, places and credit are as before",
        1 / 1000,
        endurance,
        asked_for=True,
        per_call=True,
    )
]
