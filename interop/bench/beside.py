"""What is promised of one contender beside another: CPU time for the same load, to a percent or so.

    python -m interop.bench.beside [--pypy PATH] [--starts 5] [--turns 16]
    python -m interop.bench.beside --pair relay-cpython nginx

Measured as `turns.py` says; a ratio is that of the first of a pair to the second. A row holds if its median is no more
than what is promised; a pair of one's own has no promise. The exit code is 1 if a row does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass

from interop.bench.contenders.catalogue import all_contenders
from interop.bench.target import QUICK
from interop.bench.turns import (
    DOWN,
    LOADS,
    SIZES,
    UNARY_CALLS,
    UP,
    Load,
    Measured,
    a_bench,
    add_options,
    measured,
)
from interop.shared.processes import Trouble
from interop.shared.progress import Progress


@dataclass(frozen=True)
class Pair:
    """Two contenders by name, the loads they get, and the most that the first may cost of the second."""

    one: str
    other: str
    loads: tuple[Load, ...] = LOADS
    most: tuple[float | None, ...] = (None,) * len(LOADS)


PROMISED = [
    Pair("relay-cpython-watched", "relay-cpython", (UNARY_CALLS,), (1.08,)),
    Pair("relay-cpython-tls", "relay-cpython", (UNARY_CALLS,), (1.4,)),
    Pair("relay-cpython-tls", "nginx-tls", (UNARY_CALLS, DOWN, UP), (1.7, 1.0, 1.0)),
]
"""What log and metrics cost, and what TLS does."""


def without_promise(pair: Pair) -> Pair:
    """The same on PyPy, whose calls cost so little that the ratios are others."""
    one, other = (name.replace("cpython", "pypy") for name in (pair.one, pair.other))
    return Pair(one, other, pair.loads, (None,) * len(pair.loads))


def main() -> int:
    """Measure, and judge."""
    options = _options()
    pairs = [Pair(*names) for names in options.pair]
    if not pairs:
        pairs = PROMISED + (list(map(without_promise, PROMISED)) if options.pypy else [])
    names = {contender.name: contender for contender in all_contenders(options.pypy, None)}
    for name in {name for pair in pairs for name in (pair.one, pair.other)}:
        if name not in names:
            sys.exit(f"there is no contender {name}; there are: {', '.join(names)}")
        names[name].version()  # raises `Trouble` if it cannot run here
    progress = Progress(1)
    with a_bench(QUICK if options.quick else SIZES) as bench:
        rows: list[tuple[Measured, float | None]] = []
        total = sum(len(pair.loads) for pair in pairs) * options.starts
        steps = itertools.count(1)
        for pair in pairs:
            of_pair = measured(
                bench,
                f"{pair.one} ÷ {pair.other}",
                (names[pair.one], names[pair.other]),
                pair.loads,
                options.starts,
                options.turns,
                lambda text: progress.show(next(steps) / total, text),
            )
            rows += zip(of_pair, pair.most, strict=True)
    progress.end()
    print(f"CPU time, {options.starts} starts of {options.turns} turns\n")
    print(f"{'':64} median   with 95 %           starts            promised")
    for row, most in rows:
        print(f"{row.name:42} {row.load:21} {row.told()}   {'' if most is None else f'{most:.2f}'}")
    return int(any(most is not None and row.median > most for row, most in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m interop.bench.beside",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--pair",
        nargs=2,
        action="append",
        default=[],
        metavar=("ONE", "OTHER"),
        help="names, as `--list` of the benchmark has them; may be given again",
    )
    add_options(parser, starts=5)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"nothing can be measured: {trouble}")
