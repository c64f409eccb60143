"""Faults of networks, backends and callers, on real processes: what is promised for each, and what came of it.

    .venv/bin/python -m interop.faults [--only GLOB ...] [--list] [--engine h2|relay] [--endurance N] [--json FILE]

A row is a fault. It has processes of its own, among them a fresh proxy (`serve --config FILE`); backends and callers
are grpcio, but for those that have to do what no library does, which speak raw frames. Rows that mostly wait are
measured together, before the others, which have the machine to themselves. Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import trio

from interop.faults.catalogue import ROWS
from interop.faults.row import Outcome, Row, Site
from interop.shared.processes import Trouble
from interop.shared.progress import Progress

POLL_SECONDS = 0.5
#: How often, where there is no terminal, a line tells how far the run is.
PROGRESS_SECONDS = 20.0
_WIDTHS = 16, 34, 40, 8, 74
_HEAD = "row", "fault", "promise", "outcome", "figures"


def _seconds(row: Row, site: Site) -> float:
    return row.seconds * (site.endurance if row.per_call else 1)


async def _measured(row: Row, site: Site) -> Outcome:
    limit = 3 * _seconds(row, site) + 60
    with trio.move_on_after(limit) as scope:
        try:
            return await row.measure(site)
        except* (Trouble, OSError) as troubles:
            error: BaseException = troubles
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            text = str(error) or repr(error)
    if scope.cancelled_caught:
        text = f"not over after {limit:.0f} s"
    return Outcome(kept=False, figures=f"could not be measured: {text}")


async def measure(rows: Sequence[Row], site: Site) -> dict[str, Outcome]:
    """Measure them, and answer what came of each, by its name."""
    outcomes: dict[str, Outcome] = {}
    running: list[str] = []

    async def run(row: Row) -> None:
        running.append(row.name)
        outcomes[row.name] = await _measured(row, site)
        running.remove(row.name)

    async def run_all() -> None:
        async with trio.open_nursery() as nursery:
            for row in rows:
                if row.waits:
                    nursery.start_soon(run, row)
        for row in rows:
            if not row.waits:
                await run(row)

    waiting = max((_seconds(row, site) for row in rows if row.waits), default=0.0)
    total = waiting + sum(_seconds(row, site) for row in rows if not row.waits)
    progress = Progress(total, pause=PROGRESS_SECONDS)
    start = time.monotonic()

    async def show() -> None:
        while True:
            broken = sum(not outcome.kept for outcome in outcomes.values())
            text = f"{len(outcomes)} of {len(rows)} rows, {broken} broken; now {', '.join(running)}"
            progress.show(time.monotonic() - start, text)
            await trio.sleep(POLL_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        await run_all()
        nursery.cancel_scope.cancel()
    progress.end()
    return outcomes


def show(rows: Sequence[Row], outcomes: dict[str, Outcome]) -> None:
    """Print the table."""
    _print_line(_HEAD)
    print("  ".join("-" * width for width in _WIDTHS))
    for row in rows:
        outcome = outcomes[row.name]
        word = "left out" if outcome.left_out else "kept" if outcome.kept else "BROKEN"
        _print_line((row.name, row.fault, row.promise, word, outcome.figures))
    broken = [row.name for row in rows if not outcomes[row.name].kept]
    left = sum(outcomes[row.name].left_out for row in rows)
    print(f"{len(rows) - len(broken) - left} kept, {len(broken)} broken, {left} left out")
    if broken:
        print(f"broken: {', '.join(broken)}")


def _print_line(cells: Sequence[str]) -> None:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, _WIDTHS, strict=True)]
    for number in range(max(map(len, columns))):
        texts = (column[number] if number < len(column) else "" for column in columns)
        print("  ".join(text.ljust(width) for text, width in zip(texts, _WIDTHS, strict=True)).rstrip())


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.faults", description="what the proxy makes of faults of others"
    )
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="these rows only")
    parser.add_argument("--list", action="store_true", help="tell what rows there are")
    parser.add_argument("--engine", choices=["h2", "relay"], help="handed on to the proxy")
    parser.add_argument(
        "--endurance",
        type=int,
        metavar="N",
        help="run the row endurance, with so many calls; alone unless --only",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args()
    if given.list:
        for row in ROWS:
            print(f"{row.name:16} {row.fault}" + (" (only if it is named)" if row.asked_for else ""))
        return 0
    only = given.only or (["endurance"] if given.endurance else None)
    rows = [
        row
        for row in ROWS
        if (not row.asked_for if only is None else any(fnmatch.fnmatch(row.name, glob) for glob in only))
    ]
    if not rows:
        parser.error(f"no such row: {' '.join(only or ())}; see --list")
    site = Site(given.engine, given.endurance or Site.endurance)
    outcomes = trio.run(measure, rows, site)
    show(rows, outcomes)
    if given.json is not None:
        table = [
            {"row": row.name, "fault": row.fault, "promise": row.promise, **asdict(outcomes[row.name])}
            for row in rows
        ]
        given.json.write_text(json.dumps(table, indent=1, ensure_ascii=False))
    return 0 if all(outcome.kept for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
