"""What the code as it is now costs beside a commit: the CPU time of calls and of bulk, to a percent or so.

    python -m interop.bench.change --before COMMIT [--pypy PATH] [--starts 7] [--turns 16] [--load up] [--tls]

Measured as `turns.py` says; a ratio is now ÷ before. Told are the median of all turns, between which values it lies
with 95 %, and how far the medians of the starts lie apart, for two processes of the same code differ a little, too:
`--before HEAD` tells how exact all this is here and now. The exit code is 1 if a median is above 1 + `--limit`.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from interop.bench.contenders.contender import Contender
from interop.bench.contenders.ours import CPYTHON, ROOT, Interpreter, PyPy, ours
from interop.bench.target import QUICK, Sizes
from interop.bench.turns import LOADS, SIZES, Load, Measured, a_bench, add_options
from interop.bench.turns import measured as turns_of
from interop.shared.processes import Trouble
from interop.shared.progress import Progress

NAMED = dict(zip(("unary", "single", "down", "up"), LOADS, strict=True))


def main() -> int:
    """Measure, and judge."""
    options = _options()
    sizes = QUICK if options.quick else SIZES
    progress = Progress(1)
    results = measured(
        options.before,
        options.engine,
        options.pypy,
        options.starts,
        options.turns,
        progress.show,
        sizes,
        [NAMED[name] for name in options.load],
        tls=options.tls,
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
    loads: Sequence[Load] = LOADS,
    *,
    tls: bool = False,
) -> list[Measured]:
    """Each engine on each interpreter, with each load. `show` hears how much of it is done. Raises `Trouble`."""
    interpreters = [CPYTHON]
    if pypy:
        interpreters.append(Interpreter("pypy", "PyPy", PyPy(pypy).find, warms_up=True))
    pairs = [(interpreter, engine) for interpreter in interpreters for engine in engines]
    steps, total = itertools.count(1), len(pairs) * starts * len(loads)
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="before-") as folder, a_bench(sizes) as bench:
        before = _checked_out(commit, Path(folder))
        for interpreter, engine in pairs:
            both = (
                _contender(interpreter, engine, ROOT, "now", tls),
                _contender(interpreter, engine, before, "before", tls),
            )
            results += turns_of(
                bench,
                f"{engine}-{interpreter.name}",
                both,
                loads,
                starts,
                turns,
                lambda text: show(next(steps) / total, text),
            )
    return results


def _contender(interpreter: Interpreter, engine: str, source: Path, name: str, tls: bool) -> Contender:
    """Both are started in the same way, with the source on the path."""
    return replace(ours(interpreter, engine, before=source, tls=tls), name=name)


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
    add("--load", nargs="+", default=list(NAMED), choices=list(NAMED), help="default: all")
    add("--tls", action="store_true", help="callers speak TLS")
    add_options(parser, starts=7)
    add(
        "--limit",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="what is allowed (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"nothing can be measured: {trouble}")
