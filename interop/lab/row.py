"""What a part of the laboratory's proof comes to: rows of one table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Say = Callable[[str], None]
"""Told what goes on, for the progress bar."""
_WIDTH = 110


@dataclass(frozen=True)
class Row:
    """One thing that was to be shown."""

    part: str
    what: str
    good: bool | None
    """None: it could not be looked at here."""
    told: str = ""
    """What was seen, or why nothing was."""
    known: str = ""
    """Why it does not hold, where that is somebody else's fault, and known: it is no failure of the run."""

    @property
    def sign(self) -> str:
        """How it is written in the table."""
        return {True: "=", False: "!" if self.known else "≠", None: "-"}[self.good]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows by part, for people: what was shown, whether it held, what was seen."""
    lines: list[str] = []
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", part]
        width = max(len(row.what) for row in rows if row.part == part)
        for row in rows:
            if row.part == part:
                told = f"{row.told}; known: {row.known}" if row.sign == "!" else row.told
                first, *more = textwrap.wrap(told, _WIDTH) or [""]
                lines.append(f"{row.sign} {row.what:{width}}  {first}".rstrip())
                lines += [f"  {'':{width}}  {line}" for line in more]
    count = {sign: sum(row.sign == sign for row in rows) for sign in "=≠!-"}
    words = f"{count['=']} hold, {count['≠']} do not, {count['!']} do not for a known reason"
    return [*lines, "", f"{words}, {count['-']} could not be looked at"]
