"""What all of the laboratory costs while it is off: CPU time now beside a commit from before it."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from interop.bench.change import measured
from interop.lab.row import Row, Say
from interop.shared.processes import Trouble

LIMIT = 0.01
STARTS, TURNS = 7, 16


async def cost(say: Say, commit: str, engines: Sequence[str], pypy: str | None) -> list[Row]:
    """A row for each engine, interpreter and load."""
    part = (
        f"off: CPU time now ÷ {commit}, {STARTS} starts of {TURNS} turns; with 95 %; lowest and highest start"
    )
    try:
        results = await trio.to_thread.run_sync(
            lambda: measured(commit, engines, pypy, STARTS, TURNS, lambda _share, text: say(text))
        )
    except Trouble as trouble:
        return [Row(part, "all of it", False, str(trouble))]
    return [Row(part, f"{row.name}, {row.load}", row.median <= 1 + LIMIT, row.told()) for row in results]
