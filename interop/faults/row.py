"""A row of the table: a fault, what is promised for it, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """How the proxy is run, and what else was asked for."""

    engine: str | None = None
    endurance: int = 200_000
    """Calls of the row `endurance`."""


@dataclass(frozen=True)
class Outcome:
    """What came of a row. `left_out`: why nothing has."""

    kept: bool
    figures: str
    left_out: bool = False


@dataclass(frozen=True)
class Row:
    """One fault. `measure` raises `Trouble`, maybe in groups, if it cannot be measured."""

    name: str
    fault: str
    promise: str
    seconds: float
    """About how long it takes; three times that, and a minute, it may."""
    measure: Callable[[Site], Awaitable[Outcome]]
    waits: bool = False
    """It mostly waits, so it can be measured beside others that do."""
    asked_for: bool = False
    """Only measured if it is named."""
    per_call: bool = False
    """`seconds` is for each call of `endurance`."""


class Figures:
    """Collects what was measured, and whether all of it is as promised."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.kept = True

    def note(self, text: str, kept: bool = True) -> None:
        """A figure; one that breaks the promise is marked."""
        self._texts.append(text if kept else f"{text} (BROKEN)")
        self.kept = self.kept and kept

    def at_most(self, what: str, value: float | None, bound: float, unit: str = "s") -> None:
        """A figure that has a bound; None: it never came."""
        shown = "never" if value is None else f"{value:.3g} {unit}".strip()
        self.note(f"{what} {shown} (≤ {bound:g})", value is not None and value <= bound)

    def milliseconds(self, what: str, seconds: Sequence[float], bound_s: float) -> None:
        """Median and maximum, of which the latter is bounded."""
        if not seconds:
            self.note(f"{what}: none was measured", kept=False)
            return
        ordered = sorted(seconds)
        median, longest = ordered[len(ordered) // 2] * 1e3, ordered[-1] * 1e3
        text = f"{what}: median {median:.1f}, max {longest:.1f} ms of {len(ordered)} (≤ {bound_s * 1e3:.0f})"
        self.note(text, longest <= bound_s * 1e3)

    def outcome(self) -> Outcome:
        """All of it."""
        return Outcome(self.kept, "; ".join(self._texts))


def left_out(why: str) -> Outcome:
    """A row that cannot be measured on this machine, which is no failure."""
    return Outcome(kept=True, figures=why, left_out=True)
