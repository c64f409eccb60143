"""Two contenders beside each other: their CPU time for the same load, in turns, to a percent or so.

Both run at once on one CPU, and get the same load in turns, half a second each, in the order ABBA: what disturbs the
machine disturbs both. A turn's ratio is the CPU time of the first ÷ that of the second, of all processes of each and of
their threads, in nanoseconds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain

from interop.bench import machine
from interop.bench.backend import BULK, UNARY, WARM_BULK, WARM_SHARE
from interop.bench.contenders.contender import Contender
from interop.bench.target import CONNECTIONS, IN_FLIGHT, Bench, Sizes, Target, count_for, one_bench, started
from interop.shared import proc
from interop.shared.processes import Trouble
from interop.shared.programs import SYSTEM_PATH

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

    def calls(self, target: Target, share: float) -> int:
        """How many calls a turn has, after such a share of a whole warm-up with them."""
        warm_answer, warm_body = (WARM_BULK if name == BULK else name for name in (self.answer, self.body))
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


UNARY_CALLS = Load("unary, 100 in flight", lambda sizes: sizes.unary_s, CONNECTIONS, IN_FLIGHT // CONNECTIONS)
DOWN = Load("bulk down", lambda sizes: sizes.bulk_s, answer=BULK)
UP = Load("bulk up", lambda sizes: sizes.bulk_s, body=BULK)
LOADS = (UNARY_CALLS, Load("unary, one at a time", lambda sizes: sizes.unary_s), DOWN, UP)


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


@contextmanager
def a_bench(sizes: Sizes) -> Iterator[Bench]:
    """The backend, while in the context. Raises `Trouble` if a program is missing."""
    os.environ["PATH"] = SYSTEM_PATH
    os.environ["PYTHONHASHSEED"] = "0"
    if reason := machine.missing_program():
        raise Trouble(reason)
    with one_bench(sizes) as bench:
        yield bench


def in_turns(
    bench: Bench, pair: tuple[Contender, Contender], turns: int, loads: Sequence[Load] = LOADS
) -> Iterator[list[float]]:
    """Start both, and answer the ratios for each load."""
    with ExitStack() as stack:
        one, other = (stack.enter_context(started(bench, each)) for each in pair)
        for load in loads:
            share = 1.0 if load is loads[0] else AGAIN
            calls = min(load.calls(one, share), load.calls(other, share))
            ratios = []
            for turn in range(turns):
                order = (one, other) if turn % 2 else (other, one)
                cost = {id(target): load.cost(target, calls) for target in order}
                ratios.append(cost[id(one)] / cost[id(other)])
            yield ratios


def measured(
    bench: Bench,
    name: str,
    pair: tuple[Contender, Contender],
    loads: Sequence[Load],
    starts: int,
    turns: int,
    show: Callable[[str], None],
) -> list[Measured]:
    """Start the pair so often, and answer a row for each load. `show` hears when a load of a start is over."""
    rows = [Measured(name, load.name) for load in loads]
    for start in range(starts):
        for row, ratios in zip(rows, in_turns(bench, pair, turns, loads), strict=True):
            row.starts.append(ratios)
            show(f"{row.name}, {row.load}, start {start + 1}: {row.median:.4f} so far")
    return rows


def add_options(parser: argparse.ArgumentParser, *, starts: int) -> None:
    """Add those of every command that measures so, with the default of `--starts`."""
    add = parser.add_argument
    add("--pypy", default=os.environ.get("PYPY"), metavar="PATH", help="a PyPy 3.11 as well (default: $PYPY)")
    add(
        "--starts",
        type=int,
        default=starts,
        metavar="N",
        help="how often both are started (default: %(default)s)",
    )
    add(
        "--turns",
        type=int,
        default=16,
        metavar="N",
        help="of each load, in each start (default: %(default)s)",
    )
    add("--quick", action="store_true", help="little of everything, to see that it works")
