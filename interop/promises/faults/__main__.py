"""Faults of networks and backends, on real processes: how long until calls go through the proxy again.

    .venv/bin/python -m interop.promises.faults [--only a] [--engine h2|relay] [--json FILE]

a  a link to the backend goes silent with calls in flight, while new connections are healthy
b  the backend is killed, and comes back after 5, 30 and 90 s
c  the first dial to the backend is reset, the next one succeeds
d  a client with an open call vanishes without a word

Backend and clients are grpcio; the shim between them and the proxy is in shim.py. All stories run at once, each with a
proxy of its own at its defaults. Exit code 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from interop.promises.faults.shim import Shim
from interop.shared.ports import free_port
from interop.shared.processes import Lines, Listener, Trouble, proxy_command
from interop.shared.progress import Progress

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 30.0
READY_SECONDS = 20.0

NEW_CALLS_SAFE_SECONDS = 40.0
IN_FLIGHT_SECONDS = 45.0
BACK_SECONDS = 5.0
VANISHED_SECONDS = 80.0
#: How much longer than its bound a story is watched, to tell by how much it is missed.
BEYOND_SECONDS = 30.0

OUTAGES_SECONDS = (5, 30, 90)
IN_FLIGHT = 2
#: So slow that all calls lost on a silent link find room on it: a connection dialled for want of room proves nothing.
CAUGHT_RATE = 0.4
#: An idle link is left alone for so long before new calls come.
IDLE_SECONDS = 30.0
BURST = 10


@dataclass
class Call:
    """One call of the probe; times are on the monotonic clock."""

    kind: str
    started: float
    ended: float | None = None
    status: str = "still open"
    details: str = ""


@dataclass
class Measured:
    """A line of the table."""

    story: str
    what: str
    value: str
    bound: str
    held: bool


class Probe:
    """The probe client, and what it has told so far."""

    def __init__(self, target: str, **options: float) -> None:
        self.calls: dict[int, Call] = {}
        self.ready = False
        command = [sys.executable, "-m", "interop.promises.faults.probe_client", f"--target={target}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._noise: list[str] = []
        self._process = Lines(command, on_line=self._read)

    def _read(self, line: str) -> None:
        if not line.startswith("{"):
            self._noise.append(line)
            return
        told = json.loads(line)
        if "ready" in told:
            self.ready = True
        elif "started" in told:
            self.calls[told["call"]] = Call(told["kind"], told["started"])
        else:
            call = self.calls[told["call"]]
            call.status, call.details, call.ended = told["status"], told["details"], told["ended"]

    def probes(self) -> list[Call]:
        """The calls at the steady rate, oldest first."""
        return [call for call in list(self.calls.values()) if call.kind == "probe"]

    def held(self) -> list[Call]:
        """The calls that were to be held open."""
        return [call for call in list(self.calls.values()) if call.kind != "probe"]

    async def wait_until_ready(self) -> None:
        """Wait until what is to be in flight is."""
        if not await until(lambda: self.ready, READY_SECONDS):
            tail = " / ".join(self._noise[-3:])
            raise Trouble(f"the calls to be held were not open after {READY_SECONDS:.0f} s: {tail}")

    def stop(self) -> None:
        """End the process."""
        self._process.stop()


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for it; False if it is not so after that time."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110  # threads that read from interop.shared.processes make it true
            await trio.sleep(POLL_SECONDS)
    return condition()


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[Listener]:
    """The process, started and ended in a thread, since both take time and the shims have to go on."""
    await trio.to_thread.run_sync(listener.__enter__)
    try:
        yield listener
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(listener.__exit__, None, None, None)


@asynccontextmanager
async def shim_before(target: str) -> AsyncIterator[tuple[Shim, str]]:
    """A shim in front of `target`, and where it listens."""
    shim = Shim(target)
    async with trio.open_nursery() as nursery:
        yield shim, await nursery.start(shim.serve)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def probing(target: str, **options: float) -> AsyncIterator[Probe]:
    """The probe client."""
    probe = Probe(target, **options)
    try:
        yield probe
    finally:
        probe.stop()


def backend(port: int = 0, on_line: Callable[[str], None] | None = None) -> Listener:
    """The backend's process."""
    command = [sys.executable, "-m", "interop.promises.bytes_server", f"--port={port}"]
    return Listener("the backend", command, on_line=on_line)


@dataclass
class Stories:
    """What is measured, story by story."""

    engine: str | None
    table: list[Measured] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    async def silent_link(self, what: str, **held: float) -> None:
        """Story a: a link to the backend goes silent, with calls on it."""
        async with (
            running(backend()) as server,
            shim_before(server.target) as (shim, upstream),
            running(self._proxy(upstream)) as proxy,
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
            self._note(
                "a", f"{what}: the last new call that was lost came after", last, NEW_CALLS_SAFE_SECONDS
            )
            self._note_ends(f"{what}: calls in flight ended after", probe.held(), silent)
            if caught:
                self._note_ends(f"{what}: new calls that were lost ended after", caught, silent)

    async def outage(self, seconds: float) -> None:
        """Story b: the backend is killed, and comes back at the same port."""
        port = free_port()
        async with trio.open_nursery() as nursery:
            server = await nursery.start(self._until_killed, port)
            async with (
                running(self._proxy(f"127.0.0.1:{port}")) as proxy,
                probing(proxy.target, rate=2) as probe,
            ):
                await probe.wait_until_ready()
                await until(lambda: any(call.status == "OK" for call in probe.probes()), READY_SECONDS)
                server.kill()
                await trio.sleep(seconds)
                async with running(backend(port)):
                    back = time.monotonic()

                    def first_success() -> float | None:
                        ends = [call.ended for call in probe.probes() if call.status == "OK" and call.ended]
                        return min((end for end in ends if end > back), default=None)

                    await until(lambda: first_success() is not None, BACK_SECONDS + 2 * BEYOND_SECONDS)
                    success = first_success()
                    after = None if success is None else success - back
                    self._note(
                        "b", f"backend back after {seconds} s: first success after", after, BACK_SECONDS
                    )

    async def _until_killed(
        self, port: int, task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with running(backend(port)) as server:
            task_status.started(server)
            await until(lambda: server.ended, float("inf"))

    async def reset_dial(self) -> None:
        """Story c: the first connection to the backend is reset."""
        async with (
            running(backend()) as server,
            shim_before(server.target) as (shim, upstream),
            running(self._proxy(upstream)) as proxy,
        ):
            shim.reset_next()
            async with probing(proxy.target, burst=BURST, rate=10) as probe:
                await probe.wait_until_ready()
                await trio.sleep(3)
                ended = [call for call in probe.probes() if call.ended is not None]
                failed = [call for call in ended if call.status != "OK"]
                value = f"{len(failed)} of {len(ended)}, {shim.accepted} dials" + _statuses(failed)
                self.table.append(
                    Measured("c", "one dial reset: calls that failed", value, "0", not failed and bool(ended))
                )

    async def vanished_client(self) -> None:
        """Story d: nothing more comes from a client, not even its end."""
        watches = 0

        def read(line: str) -> None:
            nonlocal watches
            if line.startswith("watches "):
                watches = int(line.split()[1])

        async with (
            running(backend(on_line=read)) as server,
            running(self._proxy(server.target)) as proxy,
            shim_before(proxy.target) as (shim, front),
            probing(front, watches=1, after=1e6) as probe,
        ):
            await probe.wait_until_ready()
            if not watches:
                raise Trouble("the backend has not told of the watch")
            silent = time.monotonic()
            shim.silence()
            freed = await until(lambda: watches == 0, VANISHED_SECONDS + BEYOND_SECONDS)
            after = time.monotonic() - silent if freed else None
            self._note("d", "a client has vanished: its call is freed after", after, VANISHED_SECONDS)

    def _proxy(self, upstream: str) -> Listener:
        # Without grace: at the end nobody waits for calls that hang on a dead link.
        return Listener("the proxy", proxy_command(f"--upstream={upstream}", "--grace=0", engine=self.engine))

    def _note(self, story: str, what: str, seconds: float | None, bound: float) -> None:
        value = "never, as far as was watched" if seconds is None else f"{seconds:.1f} s"
        self.table.append(
            Measured(story, what, value, f"{bound:.0f} s", seconds is not None and seconds <= bound)
        )

    def _note_ends(self, what: str, calls: list[Call], since: float) -> None:
        open_ = [call for call in calls if call.ended is None]
        last = max((call.ended - since for call in calls if call.ended is not None), default=0.0)
        value = (f"{len(open_)} of {len(calls)} never" if open_ else f"{last:.1f} s") + _statuses(calls)
        held = not open_ and last <= IN_FLIGHT_SECONDS
        held = held and all(call.status == "UNAVAILABLE" for call in calls)
        self.table.append(Measured("a", what, value, f"{IN_FLIGHT_SECONDS:.0f} s, UNAVAILABLE", held))


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _statuses(calls: list[Call]) -> str:
    counts = Counter(call.status for call in calls)
    return "".join(f", {count} × {status}" for status, count in counts.items())


async def tell_stories(only: str, engine: str | None) -> list[Measured]:
    """Run the stories, all at once; the table."""
    stories = Stories(engine)
    plan: list[tuple[str, float, Callable[[], Any]]] = [
        ("a", IN_FLIGHT_SECONDS, lambda: stories.silent_link("idle watch", watches=1, after=IDLE_SECONDS)),
        ("a", IN_FLIGHT_SECONDS, lambda: stories.silent_link("unary calls", slow=IN_FLIGHT)),
        *(("b", seconds, lambda seconds=seconds: stories.outage(seconds)) for seconds in OUTAGES_SECONDS),
        ("c", 5.0, stories.reset_dial),
        ("d", VANISHED_SECONDS, stories.vanished_client),
    ]
    plan = [entry for entry in plan if entry[0] in only]

    async def tell(name: str, story: Callable[[], Any]) -> None:
        try:
            await story()
        except* Trouble as errors:
            stories.table.append(Measured(name, "could not be measured", str(_leaf(errors)), "", held=False))
        stories.unfinished.remove(name)

    stories.unfinished = [name for name, _, _ in plan]
    async with trio.open_nursery() as nursery:
        for name, _, story in plan:
            nursery.start_soon(tell, name, story)
        progress = Progress(max(seconds for _, seconds, _ in plan) + BEYOND_SECONDS, pause=PROGRESS_SECONDS)
        start = time.monotonic()
        while stories.unfinished:
            progress.show(
                time.monotonic() - start,
                f"unfinished: {' '.join(stories.unfinished)}; {len(stories.table)} measured",
            )
            await trio.sleep(POLL_SECONDS)
        progress.end()
    return sorted(stories.table, key=lambda line: line.story)


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description="how the proxy gets over faults of networks and backends")
    parser.add_argument("--only", default="abcd", metavar="abcd", help="these stories only")
    parser.add_argument("--engine", choices=["h2", "relay"], help="handed on to the proxy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args()
    if not set(given.only) & set("abcd"):
        parser.error(f"no such story: {given.only}")
    table = trio.run(tell_stories, given.only, given.engine)
    for line in table:
        state = "ok" if line.held else "MISSED"
        print(
            f"{line.story}  {state:7} {line.what}: {line.value}"
            + (f" (bound: {line.bound})" if line.bound else "")
        )
    missed = sum(not line.held for line in table)
    print(f"{len(table) - missed} bounds held, {missed} missed")
    if given.json is not None:
        given.json.write_text(json.dumps([vars(line) for line in table], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
