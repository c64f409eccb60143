"""The stories: what happens to the proxy in each, and how long it takes until calls go through again.

Each has processes of its own, so all can be told at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from interop.promises.faults.probe import READY_SECONDS, Call, probing, until
from interop.promises.faults.shim import shim_before
from interop.promises.running import backend, running
from interop.shared.ports import free_port
from interop.shared.processes import Listener, Trouble, proxy_command

NEW_CALLS_SAFE_SECONDS = 40.0
IN_FLIGHT_SECONDS = 45.0
BACK_SECONDS = 5.0
#: 60 s without a word, 20 s for the answer to the PING; and the reset has to reach the backend.
VANISHED_SECONDS = 60.0 + 20.0 + 2.0
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
class Measured:
    """A line of the table."""

    story: str
    what: str
    value: str
    bound: str
    held: bool


@dataclass(frozen=True)
class Story:
    """One story, as it is told in this run."""

    name: str
    seconds: float
    """About how long it takes."""
    tell: Callable[[], Awaitable[None]]
    """Raises `Trouble`, maybe in groups, if it cannot be told to its end."""


@dataclass
class Stories:
    """All stories, with a proxy on this engine, and what has been measured so far."""

    engine: str | None
    table: list[Measured] = field(default_factory=list)

    def plan(self) -> list[Story]:
        """What there is to tell."""
        return [
            Story(
                "a", IN_FLIGHT_SECONDS, partial(self.silent_link, "idle watch", watches=1, after=IDLE_SECONDS)
            ),
            Story("a", IN_FLIGHT_SECONDS, partial(self.silent_link, "unary calls", slow=IN_FLIGHT)),
            *(Story("b", seconds, partial(self.outage, seconds)) for seconds in OUTAGES_SECONDS),
            Story("c", 5.0, self.reset_dial),
            Story("d", VANISHED_SECONDS, self.vanished_client),
        ]

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


def _statuses(calls: list[Call]) -> str:
    counts = Counter(call.status for call in calls)
    return "".join(f", {count} × {status}" for status, count in counts.items())
