"""One attack on one proxy: a fresh one, its backends, a victim, and what is measured of it all."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from interop.attacks.proxies import Proxy, Site, longest_step_ms
from interop.attacks.rows import Row
from interop.shared import proc
from interop.shared.ports import free_port
from interop.shared.processes import Listener, Trouble

STEP_MS, VICTIM_MS = 25.0, 50.0
PEAK_MIB = 8.0
"""At the most, for each connection of the attacker's."""
LEFT_MIB = 8.0
"""What may stay when all of them have gone."""
BEFORE_S, PATIENT_S = 2.0, 40.0
SETTLING_S, STILL_S = 5.0, 2.0
"""How long a proxy may take to give back what it held for connections that have gone, and without a change until it is
done with that: ours gives memory back to the system after a second."""
LATE_S = 60.0
"""How much longer than it was told to attack or to call somebody may take."""


@dataclass
class Result:
    """What one attack has come to."""

    row: str
    side: str
    proxy: str
    is_ours: bool
    connections: int
    peak_bound_mib: float
    step_ms: float | None = None
    """The longest step of the loop, in CPU time; of ours alone."""
    cpu_s: float | None = None
    """CPU time of the proxy from the attack's begin to its end, the victim's calls included."""
    peak_mib: float | None = None
    """How far its memory rose at the most."""
    left_mib: float | None = None
    """How much of that is left when the attacker has gone."""
    before_p50_ms: float | None = None
    before_p99_ms: float | None = None
    victim_p50_ms: float | None = None
    victim_p99_ms: float | None = None
    failures: dict[str, int] = field(default_factory=dict)
    """The victim's calls that failed, by kind."""
    ended: str = ""
    """What ended the attack, or that it went on."""
    trouble: list[str] = field(default_factory=list)
    """Why this was not measured: an attacker that did not get through, a proxy that died."""

    @property
    def missed(self) -> list[str]:
        """The bounds that did not hold. For references there are none."""
        if not self.is_ours:
            return []
        bounds = {
            "step": at_most(self.step_ms, STEP_MS),
            "peak": at_most(self.peak_mib, self.peak_bound_mib),
            "left": at_most(self.left_mib, LEFT_MIB),
            "victim": at_most(self.victim_p99_ms, max(VICTIM_MS, 2 * (self.before_p99_ms or 0))),
            "failures": not self.failures,
            "trouble": not self.trouble,
        }
        return [name for name, held in bounds.items() if not held]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"missed": self.missed}


def at_most(figure: float | None, bound: float) -> bool:
    """Whether it was measured, and is within its bound."""
    return figure is not None and figure <= bound


class Teller:
    """A module of this package that ends by itself, and tells what came of it in one line of JSON."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            module(name, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def told(self, seconds: float) -> dict[str, Any]:
        """What it tells. Raises `Trouble` if it is not done within so many seconds, or dies."""
        try:
            out, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise Trouble(f"the {self._name} did not end within {seconds:.0f} s") from error
        if self._process.returncode:
            last = errors.strip().splitlines()[-1:] or ["it printed nothing"]
            raise Trouble(f"the {self._name} ended with exit code {self._process.returncode}: {last[0]}")
        answer: dict[str, Any] = json.loads(out)
        return answer


class Hostile:
    """What a hostile backend says of its connections, each of which is an attack."""

    def __init__(self) -> None:
        self._begun = 0
        self._ends: list[tuple[int, str]] = []

    def hear(self, line: str) -> None:
        """One line of its standard output."""
        if line.startswith("attack begun"):
            self._begun += 1
        elif line.startswith("attack ended: "):
            kib, _, how = line.removeprefix("attack ended: ").strip().partition(" ")
            self._ends.append((int(kib), how))

    def ended(self) -> str:
        """What ended the attacks so far. Raises `Trouble` if there was none."""
        if not self._begun:
            raise Trouble("no call has come to the hostile backend")
        if not self._ends:
            return f"{self._begun} go on"
        kib = median(kib for kib, _ in self._ends)
        return f"{len(self._ends)} of {self._begun} after {kib:.0f} KiB: {self._ends[0][1]}"


class Measurement:
    """A proxy under attack: what it has used, since the attack began."""

    def __init__(self, running: Listener, proxy: Proxy, site: Site) -> None:
        self._running = running
        self._proxy = proxy
        self._site = site
        pids = proc.with_descendants(running.pid)
        if proxy.is_ours:
            longest_step_ms(running, site)
        for pid in pids:
            proc.forget_peak(pid)
        self._memory_mib = proc.memory(*pids).now_mib
        self._cpu_s = proc.cpu_seconds(pids)

    def attack_over(self, result: Result) -> None:
        """Note what it came to. Raises `Trouble` if the proxy has died."""
        self._running.check()
        pids = proc.with_descendants(self._running.pid)
        result.cpu_s = round(proc.cpu_seconds(pids) - self._cpu_s, 2)
        if self._proxy.is_ours:
            result.step_ms = round(longest_step_ms(self._running, self._site), 1)
        result.peak_mib = round(proc.memory(*pids).peak_mib - self._memory_mib, 1)
        result.left_mib = round(self._settled_mib(pids) - self._memory_mib, 1)

    def _settled_mib(self, pids: list[int]) -> float:
        """The memory once it has stopped falling, now that nobody is there any more."""
        deadline = time.monotonic() + SETTLING_S
        least, least_at = proc.memory(*pids).now_mib, time.monotonic()
        while (now := time.monotonic()) < min(deadline, least_at + STILL_S):
            time.sleep(0.05)
            if (mib := proc.memory(*pids).now_mib) < least - 0.1:
                least, least_at = mib, now
        return least


def module(name: str, *arguments: str) -> list[str]:
    """The command of a module of this package."""
    return [sys.executable, "-m", f"interop.attacks.{name}", *arguments]


def measure(row: Row, side: str, proxy: Proxy, connections: int, seconds: float) -> Result:
    """Attack a fresh proxy from one side. Whatever goes wrong is in the result."""
    bound_mib = PEAK_MIB * connections if row.memory_mib is None else row.memory_mib * (1 / 4 + 1 / 8)
    result = Result(row.name, side, proxy.name, proxy.is_ours, connections, bound_mib)
    seconds = PATIENT_S if row.patient else seconds
    try:
        _measure(row, proxy, seconds, result)
    except Trouble as trouble:
        result.trouble.append(" ".join(str(trouble).split())[:300])
    return result


def _measure(row: Row, proxy: Proxy, seconds: float, result: Result) -> None:
    upstream = result.side == "upstream"
    hostile = Hostile()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = stack.enter_context(Listener("the backend", module("backend")))
        other = stack.enter_context(
            Listener(
                "the other backend",
                module("backend", *_habits_of_backend(row, upstream=upstream)),
                on_line=hostile.hear,
            )
        )
        site = Site(
            folder,
            free_port(),
            *(int(each.target.split(":")[1]) for each in (backend, other)),
            row.memory_mib,
        )
        running = stack.enter_context(Listener("the proxy", proxy.command(site), site.listen))
        target = f"--target=127.0.0.1:{site.listen}"
        with Teller("victim", target, f"--seconds={BEFORE_S}") as victim:
            before = victim.told(BEFORE_S + LATE_S)
        result.before_p50_ms, result.before_p99_ms = before["p50_ms"], before["p99_ms"]
        measurement = Measurement(running, proxy, site)
        attacker = stack.enter_context(
            Teller(
                "attacker", f"--row={row.name}", target, f"--seconds={seconds}",
                f"--connections={result.connections}", *(["--calls-only"] if upstream else []),
            )
        )  # fmt: skip
        victim = stack.enter_context(Teller("victim", target, f"--seconds={seconds}"))
        try:
            told = victim.told(seconds + LATE_S)
            result.victim_p50_ms, result.victim_p99_ms = told["p50_ms"], told["p99_ms"]
            result.failures = told["failures"]
        except Trouble as trouble:
            result.trouble.append(str(trouble))
        try:
            said = attacker.told(LATE_S)
            if said["not_made"] is not None:
                missing = result.connections - said["made"]
                result.trouble.append(f"{missing} connections were not made: {said['not_made']}")
            # While the proxy still runs: its end ends all that goes on.
            result.ended = hostile.ended() if upstream else _ended(said)
        except Trouble as trouble:
            result.trouble.append(str(trouble))
        measurement.attack_over(result)


def _habits_of_backend(row: Row, *, upstream: bool) -> list[str]:
    return [f"--hostile={row.name}"] * upstream + ["--stalls"] * row.stalls


def _ended(said: dict[str, Any]) -> str:
    if not said["closed"]:
        return f"goes on, {said['sent_kib']} KiB"
    after = f"after {said['sent_kib']} KiB, {said['after_s']} s"
    return f"{said['closed']} of {said['made']} {after}: {said['how']}"
