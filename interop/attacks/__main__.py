"""Attacks the proxy, and tells what each attack costs and who is hurt. Loopback only, and every attack has an end.

    .venv/bin/python -m interop.attacks [--only GLOB] [--engine relay|h2] [--connections N] [--seconds S] [--json FILE]

For each attack a fresh proxy at its defaults. Measured: the longest step of its loop, how much its memory rises, how
long somebody else's calls take meanwhile (and before, since the machine has its own moods), and what ends the attack.
The bounds: a step of 25 ms, 8 MiB, 50 ms for the ninety-ninth call of a hundred, and the proxy lives. Exit code 1 if
one is missed with the engine relay; h2 is told beside it, and is slow in the library itself.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interop.attacks.rows import ROWS, Row
from interop.shared import proc
from interop.shared.ports import free_port
from interop.shared.processes import Listener, Trouble
from interop.shared.progress import Progress

STEP_MS, MEMORY_MIB, VICTIM_MS = 25.0, 8.0, 50.0
BEFORE_S, PATIENT_S = 2.0, 40.0
ENGINES = ("relay", "h2")


@dataclass
class Result:
    """What one attack has come to."""

    row: str
    side: str
    engine: str
    step_ms: float = 0.0
    memory_mib: float = 0.0
    """How far it rose at the most."""
    left_mib: float = 0.0
    """How much of that is left when the attack is over."""
    before_ms: float | None = None
    victim_ms: float | None = None
    failed: int = 0
    lives: bool = True
    ended: str = ""

    @property
    def missed(self) -> list[str]:
        """The bounds that did not hold."""
        found = []
        if self.step_ms > STEP_MS:
            found.append("step")
        if self.memory_mib > MEMORY_MIB:
            found.append("memory")
        if self.victim_ms is None or self.victim_ms > max(VICTIM_MS, 2 * (self.before_ms or 0)):
            found.append("victim")
        if self.failed or not self.lives:
            found.append("lives")
        return found


def module(name: str, *arguments: str) -> list[str]:
    """The command of a module of this package."""
    return [sys.executable, "-m", f"interop.attacks.{name}", *arguments]


def told_by(command: list[str]) -> dict[str, Any]:
    """The JSON that a process ends with."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Trouble(f"{' '.join(command)}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def longest_step(proxy: Listener, file: Path) -> float:
    """The longest step since it was asked last, in milliseconds."""
    file.unlink(missing_ok=True)
    os.kill(proxy.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not file.exists():
        proxy.check()
        if time.monotonic() > deadline:
            raise Trouble("the proxy does not tell of its steps")
        time.sleep(0.01)
    return float(file.read_text())


def measure(row: Row, side: str, engine: str, connections: int, seconds: float) -> Result:
    """Attack a fresh proxy."""
    result = Result(row.name, side, engine)
    ends: list[str] = []
    hostile = ["--hostile", row.name] if side == "upstream" else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "longest"
        os.environ["LONGEST_STEP_FILE"] = str(file)
        port = free_port()
        with (
            Listener("the backend", module("backend")) as backend,
            Listener("the other backend", module("backend", *hostile), on_line=ends.append) as other,
            Listener(
                "the proxy",
                module(
                    "proxy", "serve", f"--listen=127.0.0.1:{port}", f"--upstream={backend.target}",
                    f"--route=/attack.Attack/*={other.target}", f"--engine={engine}", "--log-format=json",
                ),
                port,
            ) as proxy,
        ):  # fmt: skip
            target = f"127.0.0.1:{port}"
            result.before_ms = told_by(module("victim", f"--target={target}", f"--seconds={BEFORE_S}"))[
                "p99_ms"
            ]
            longest_step(proxy, file)
            memory = proc.memory(proxy.pid).now_mib
            # Upstream the attack is the answer to calls like anybody's.
            caller = "thousand_calls" if row.name == "settings_window" else "one_call"
            row_said = caller if hostile else row.name
            attacker = subprocess.Popen(
                module(
                    "attacker", f"--row={row_said}", f"--target={target}", f"--seconds={seconds}",
                    f"--connections={connections}",
                ),
                stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            victim = told_by(module("victim", f"--target={target}", f"--seconds={seconds}"))
            said, _ = attacker.communicate(timeout=60 + seconds)
            now = proc.memory(proxy.pid)
            result.memory_mib, result.left_mib = (
                round(now.peak_mib - memory, 1),
                round(now.now_mib - memory, 1),
            )
            result.lives = not proxy.ended
            result.step_ms = round(longest_step(proxy, file), 1)
            result.victim_ms, result.failed = victim["p99_ms"], victim["failed"]
    told = json.loads(said)
    if hostile:
        result.ended = ends[0].strip() if ends else "goes on"
    elif told["closed"]:
        after = f"after {told['sent_kib']} KiB, {told['after_s']} s"
        result.ended = f"{told['closed']} of {told['of']} {after}: {told['how']}"
    else:
        result.ended = f"goes on, {told['sent_kib']} KiB"
    return result


def print_table(results: list[Result]) -> None:
    """For people."""
    heading = f"{'attack':18} {'side':10} {'engine':6} {'step ms':>8} {'MiB, left':>10} {'victim ms':>12}"
    print(f"{heading}  missed; what ended it")
    for each in results:
        victim = f"{each.before_ms or 0:.0f} → {each.victim_ms or 0:.0f}"
        memory = f"{each.memory_mib:.1f}, {each.left_mib:.1f}"
        missed = ", ".join(each.missed) or "-"
        print(
            f"{each.row:18} {each.side:10} {each.engine:6} {each.step_ms:8.1f} {memory:>10} {victim:>12}  "
            f"{missed}; {each.ended[:150]}"
        )


def main() -> int:
    """Parse the arguments and attack."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.attacks", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="these attacks alone")
    parser.add_argument("--engine", choices=ENGINES, help="default: both")
    parser.add_argument("--side", choices=["downstream", "upstream"], help="default: both")
    parser.add_argument("--connections", type=int, default=1, help="of the attacker; default: 1")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each attack; default: 4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--list", action="store_true", help="tell the attacks")
    given = parser.parse_args()
    if given.list:
        for row in ROWS:
            print(f"{row.name:18} {row.what}{', from a backend too' if row.upstream else ''}")
        return 0
    steps = [
        (row, side, engine)
        for row in ROWS
        if fnmatch.fnmatch(row.name, given.only)
        for side in ("downstream", "upstream")
        if given.side in (None, side) and (row.upstream if side == "upstream" else row.downstream)
        for engine in ENGINES
        if given.engine in (None, engine)
    ]
    if not steps:
        print(f"no attack is called {given.only}; --list tells their names", file=sys.stderr)
        return 2
    results: list[Result] = []
    progress = Progress(len(steps))
    for number, (row, side, engine) in enumerate(steps):
        progress.show(number, f"{row.name}, {side}, {engine}")
        seconds = PATIENT_S if row.patient else given.seconds
        try:
            results.append(measure(row, side, engine, given.connections, seconds))
        except Trouble as trouble:
            results.append(Result(row.name, side, engine, lives=False, ended=str(trouble)[:200]))
    progress.end()
    print_table(results)
    if given.json is not None:
        given.json.write_text(
            json.dumps([asdict(each) | {"missed": each.missed} for each in results], indent=1)
        )
    return int(any(each.missed for each in results if each.engine == "relay"))


if __name__ == "__main__":
    sys.exit(main())
