"""One cell of the matrix: two outcomes of a case, and the sign they come to."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from typing import Any

EQUAL, DIFFERS, FAILED, CANNOT = "=", "≠", "!", "-"


@dataclass
class Cell:
    """One case of one pair: what came of it, without the proxy and with it."""

    sign: str
    outcomes: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    known: str | None = None

    @property
    def good(self) -> bool:
        """Nothing to complain about."""
        return self.sign in (EQUAL, CANNOT) or (self.sign == FAILED and self.known is not None)


def compare(direct: Any, proxied: Any, found: list[str], known: str | None = None) -> Cell:
    """The cell for two outcomes."""
    outcomes = [direct, proxied]
    seconds = [outcome.pop("seconds", 0.0) for outcome in outcomes]
    if direct != proxied:
        before, after = (
            json.dumps(outcome, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
            for outcome in outcomes
        )
        diff = difflib.unified_diff(before, after, "without the proxy", "through the proxy", lineterm="", n=4)
        return Cell(DIFFERS, outcomes, list(diff), seconds)
    if found:
        return Cell(FAILED, outcomes, found, seconds, known)
    return Cell(EQUAL, outcomes, [], seconds)
