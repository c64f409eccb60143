"""What the laboratory promises, with real peers: recordings, the linter, tap, and faults by preset.

A line for each promise: `=` it holds, `≠` it does not, `!` it does not for a known fault of a library, `-` it could not
be looked at here; the last two with the reason. The exit code is 1 for a `≠`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trio

from interop.lab.cost import cost
from interop.lab.planted import planted
from interop.lab.presets import presets
from interop.lab.programs import ENGINE
from interop.lab.recordings import recordings
from interop.lab.row import Row, Say, table
from interop.lab.tap import tapped
from interop.lab.traffic import traffic
from interop.shared.progress import Progress

Part = Callable[[Say], Awaitable[list[Row]]]
SECONDS = {"recordings": 60, "planted": 55, "traffic": 220, "tap": 60, "presets": 240, "cost": 3000}
"""About how long each takes, for the progress."""


def main() -> int:
    """Show what is asked for."""
    options = _options()
    parts: dict[str, Part] = {
        "recordings": recordings,
        "planted": planted,
        "traffic": traffic,
        "tap": partial(tapped, gib=options.gib),
        "presets": partial(presets, only=options.presets, clients=options.clients, seed=options.seed),
    }
    if options.before is not None:
        parts["cost"] = partial(cost, commit=options.before, engines=("relay", "h2"), pypy=options.pypy)
    ENGINE.set(options.engine)
    start = time.monotonic()
    rows = _shown({name: part for name, part in parts.items() if name in (options.only or parts)})
    print("\n".join(table(rows)))
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    if options.json is not None:
        options.json.write_text(
            json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
        )
    return int(any(row.sign == "≠" for row in rows))


def _shown(parts: dict[str, Part]) -> list[Row]:
    rows: list[Row] = []
    progress, done = Progress(sum(SECONDS[name] for name in parts)), 0.0
    for name, part in parts.items():
        began = time.monotonic()

        def say(text: str, *, began: float = began, done: float = done, most: float = SECONDS[name]) -> None:
            progress.show(done + min(time.monotonic() - began, most), text)

        rows += trio.run(part, say)
        done += SECONDS[name]
    progress.end()
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m interop.lab", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--only", nargs="+", choices=tuple(SECONDS), metavar="PART", help=f"some of it: {', '.join(SECONDS)}")
    add("--engine", help="handed on to the commands that are proxies")
    add(
        "--gib",
        type=float,
        default=2.0,
        metavar="N",
        help="what passes tap in a stream (default: %(default)s)",
    )
    add("--presets", nargs="+", default=["*"], metavar="GLOB", help="faults by these names (default: all)")
    add(
        "--clients",
        nargs="+",
        default=["*"],
        metavar="GLOB",
        help="of whose calls they are done (default: all)",
    )
    add("--seed", type=int, default=7, metavar="N", help="of faults by chance (default: %(default)s)")
    add(
        "--before",
        metavar="COMMIT",
        help="measure what calls cost beside this commit, too: three quarters of an hour",
    )
    add(
        "--pypy", default=os.environ.get("PYPY"), metavar="PATH", help="a PyPy 3.11 for that (default: $PYPY)"
    )
    add("--json", type=Path, metavar="FILE", help="write all rows there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
