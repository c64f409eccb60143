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
from pathlib import Path

import trio

from interop.promises.faults.probe import POLL_SECONDS
from interop.promises.faults.stories import BEYOND_SECONDS, Measured, Stories, Story
from interop.shared.processes import Trouble
from interop.shared.progress import Progress

#: How often, where there is no terminal, a line tells how far the run is.
PROGRESS_SECONDS = 30.0


async def tell_stories(only: str, engine: str | None) -> list[Measured]:
    """Tell the stories, all at once; the table."""
    stories = Stories(engine)
    plan = [story for story in stories.plan() if story.name in only]
    unfinished = [story.name for story in plan]

    async def tell(story: Story) -> None:
        try:
            await story.tell()
        except* Trouble as troubles:
            text = str(_leaf(troubles))
            stories.table.append(Measured(story.name, "could not be measured", text, "", held=False))
        unfinished.remove(story.name)

    progress = Progress(max(story.seconds for story in plan) + BEYOND_SECONDS, pause=PROGRESS_SECONDS)
    start = time.monotonic()
    async with trio.open_nursery() as nursery:
        for story in plan:
            nursery.start_soon(tell, story)
        while unfinished:
            text = f"unfinished: {' '.join(unfinished)}; {len(stories.table)} measured"
            progress.show(time.monotonic() - start, text)
            await trio.sleep(POLL_SECONDS)
    progress.end()
    return sorted(stories.table, key=lambda line: line.story)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.promises.faults",
        description="how the proxy gets over faults of networks and backends",
    )
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
