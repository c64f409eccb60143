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

    @property
    def sign(self) -> str:
        return {True: "=", False: "≠", None: "-"}[self.good]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows by part, for people: what was shown, whether it held, what was seen."""
    width = max((len(row.what) for row in rows), default=0)
    lines: list[str] = []
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", part]
        for row in rows:
            if row.part == part:
                first, *more = textwrap.wrap(row.told, _WIDTH) or [""]
                lines.append(f"{row.sign} {row.what:{width}}  {first}".rstrip())
                lines += [f"  {'':{width}}  {line}" for line in more]
    count = {sign: sum(row.sign == sign for row in rows) for sign in "=≠-"}
    return [*lines, "", f"{count['=']} hold, {count['≠']} do not, {count['-']} could not be looked at"]
