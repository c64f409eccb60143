"""All rows, in the order of the table."""

from __future__ import annotations

from interop.faults.row import Row
from interop.faults.rows import (
    cancels,
    deaths,
    dropped,
    endurance,
    fairness,
    fitness,
    frames,
    links,
    names,
    services,
)

ROWS: list[Row] = [
    *deaths.ROWS,
    *cancels.ROWS,
    *frames.ROWS,
    *links.ROWS,
    *names.ROWS,
    *dropped.ROWS,
    *fairness.ROWS,
    *fitness.ROWS,
    *services.ROWS,
    *endurance.ROWS,
]
