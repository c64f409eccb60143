"""What the code as it is now costs beside a commit: the CPU time of calls and of bulk, to a percent or so.

    python -m interop.bench.change --before COMMIT [--pypy PATH] [--starts 7] [--turns 16]

Both proxies run at once on one CPU, and get the same load in turns, half a second each, in the order ABBA: what
disturbs the machine disturbs both. A turn's ratio is now ÷ before. Told are the median of all turns, between which
values it lies with 95 %, and how far the medians of the starts lie apart, for two processes of the same code differ a
little, too: `--before HEAD` tells how exact all this is here and now. CPU time is that of all processes of a proxy and
of their threads, in nanoseconds. The exit code is 1 if a median is above 1 + `--limit`.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import chain
from pathlib import Path

from interop.bench import machine
from interop.bench.backend import BULK, UNARY, WARM_BULK, WARM_SHARE
from interop.bench.contenders.contender import Contender
from interop.bench.contenders.ours import CPYTHON, ROOT, Interpreter, PyPy, ours
from interop.bench.target import (
    CONNECTIONS,
    IN_FLIGHT,
    QUICK,
    Bench,
    Sizes,
    Target,
    count_for,
    one_bench,
    started,
)
from interop.shared import proc
from interop.shared.processes import Trouble
from interop.shared.programs import SYSTEM_PATH
from interop.shared.progress import Progress

SIZES = Sizes(unary_s=0.5, bulk_s=0.4, bulk_mib=64)
AGAIN = 0.25


@dataclass(frozen=True)
class Load:
    """One kind of load: how much of it is a turn, and how to make it."""

    name: str
    seconds: Callable[[Sizes], float]
    connections: int = 1
    streams: int = 1
    answer: str = UNARY
    body: str = UNARY

    def calls(self, target: Target) -> int:
        """How many calls a turn has, after a warm-up with them."""
        warm_answer, warm_body = (WARM_BULK if name == BULK else name for name in (self.answer, self.body))
        share = 1.0 if self is LOADS[0] else AGAIN
        rate = target.warm_up(self.connections, self.streams, answer=warm_answer, body=warm_body, share=share)
        seconds = self.seconds(target.bench.sizes)
        if BULK in (self.answer, self.body):
            return max(1, round(seconds * rate / WARM_SHARE))
        return count_for(rate, seconds)

    def cost(self, target: Target, calls: int) -> float:
        """CPU time of the proxy for so many calls."""
        pids = target.child.pids()
        before = proc.exact_cpu_seconds(pids)
        target.run(calls, self.connections, self.streams, answer=self.answer, body=self.body)
        return proc.exact_cpu_seconds(pids) - before


LOADS = (
    Load("unary, 100 in flight", lambda sizes: sizes.unary_s, CONNECTIONS, IN_FLIGHT // CONNECTIONS),
    Load("unary, one at a time", lambda sizes: sizes.unary_s),
    Load("bulk down", lambda sizes: sizes.bulk_s, answer=BULK),
    Load("bulk up", lambda sizes: sizes.bulk_s, body=BULK),
)


@dataclass
class Measured:
    """One load, with one engine on one interpreter."""

    name: str
    load: str
    starts: list[list[float]] = field(default_factory=list)
    """The ratios of the turns of each."""

    @property
    def turns(self) -> list[float]:
        """Those of all starts, the lowest first."""
        return sorted(chain.from_iterable(self.starts))

    @property
    def median(self) -> float:
        """Of all turns."""
        return statistics.median(self.turns)

    def told(self) -> str:
        """The median, where it lies with 95 %, and the medians of the starts."""
        turns, medians = self.turns, [statistics.median(start) for start in self.starts]
        # So many of the turns lie below the median, or above it, by chance (a sign test).
        off = min(int(0.98 * math.sqrt(len(turns))) + 1, len(turns) // 2)
        low, high = turns[len(turns) // 2 - off], turns[min(len(turns) // 2 + off, len(turns) - 1)]
        return f"{self.median:.4f}   {low:.4f} to {high:.4f}    {min(medians):.3f} to {max(medians):.3f}"


def main() -> int:
    """Measure, and judge."""
    options = _options()
    sizes = QUICK if options.quick else SIZES
    progress = Progress(1)
    results = measured(
        options.before, options.engine, options.pypy, options.starts, options.turns, progress.show, sizes
    )
    progress.end()
    print(f"CPU time, now ÷ {options.before}, {options.starts} starts of {options.turns} turns\n")
    print(f"{'':37} median   with 95 %           starts")
    print("\n".join(f"{row.name:15} {row.load:21} {row.told()}" for row in results))
    return int(any(row.median > 1 + options.limit for row in results))


def measured(
    commit: str,
    engines: Sequence[str],
    pypy: str | None,
    starts: int,
    turns: int,
    show: Callable[[float, str], None],
    sizes: Sizes = SIZES,
) -> list[Measured]:
    """Each engine on each interpreter, with each load. `show` hears how much of it is done. Raises `Trouble`."""
    os.environ["PATH"] = SYSTEM_PATH
    os.environ["PYTHONHASHSEED"] = "0"
    if reason := machine.missing_program():
        raise Trouble(reason)
    interpreters = [CPYTHON]
    if pypy:
        interpreters.append(Interpreter("pypy", "PyPy", PyPy(pypy).find, warms_up=True))
    pairs = [(interpreter, engine) for interpreter in interpreters for engine in engines]
    done, total = 0, len(pairs) * starts * len(LOADS)
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="before-") as folder, one_bench(sizes) as bench:
        before = _checked_out(commit, Path(folder))
        for interpreter, engine in pairs:
            rows = [Measured(f"{engine}-{interpreter.name}", load.name) for load in LOADS]
            results += rows
            both = (
                _contender(interpreter, engine, ROOT, "now"),
                _contender(interpreter, engine, before, "before"),
            )
            for start in range(starts):
                for row, ratios in zip(rows, _start(bench, both, turns), strict=True):
                    done += 1
                    row.starts.append(ratios)
                    show(done / total, f"{row.name}, {row.load}, start {start + 1}: {row.median:.4f} so far")
    return results


def _start(bench: Bench, both: tuple[Contender, Contender], turns: int) -> Iterator[list[float]]:
    """Start both, and answer the ratios for each load."""
    with ExitStack() as stack:
        now, before = (stack.enter_context(started(bench, each)) for each in both)
        for load in LOADS:
            calls = min(load.calls(now), load.calls(before))
            ratios = []
            for turn in range(turns):
                order = (now, before) if turn % 2 else (before, now)
                cost = {id(target): load.cost(target, calls) for target in order}
                ratios.append(cost[id(now)] / cost[id(before)])
            yield ratios


def _contender(interpreter: Interpreter, engine: str, source: Path, name: str) -> Contender:
    """Both are started in the same way, with the source on the path."""
    return replace(ours(interpreter, engine, before=source), name=name)


def _checked_out(commit: str, folder: Path) -> Path:
    """The source as it was at this commit. Raises `Trouble`."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "src"], capture_output=True, check=False
    )
    if done.returncode:
        raise Trouble(f"{commit} cannot be had: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m interop.bench.change", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--before", required=True, metavar="COMMIT", help="what to compare with, as git names it")
    add("--engine", nargs="+", default=["relay", "h2"], metavar="NAME", help="default: both")
    add("--pypy", default=os.environ.get("PYPY"), metavar="PATH", help="a PyPy 3.11 as well (default: $PYPY)")
    add(
        "--starts", type=int, default=7, metavar="N", help="how often both are started (default: %(default)s)"
    )
    add(
        "--turns",
        type=int,
        default=16,
        metavar="N",
        help="of each load, in each start (default: %(default)s)",
    )
    add(
        "--limit",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="what is allowed (default: %(default)s)",
    )
    add("--quick", action="store_true", help="little of everything, to see that it works")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"nothing can be measured: {trouble}")
