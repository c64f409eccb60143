"""What the attacks came to, for people."""

from __future__ import annotations

from itertools import groupby

from interop.attacks.run import Result

HEADING = (
    f"{'attack, side':30} {'proxy':8} {'step ms':>8} {'CPU s':>6} {'MiB peak, left':>15} "
    f"{'victim p50 ms':>15} {'victim p99 ms':>15}  missed; what ended it"
)
ENDED_CHARACTERS = 150


def table(results: list[Result]) -> str:
    """A line for each proxy, those of one attack below each other."""
    lines = [HEADING]
    for attack, group in groupby(results, lambda result: f"{result.row}, {result.side}"):
        lines += [_line("" if number else attack, result) for number, result in enumerate(group)]
    return "\n".join(lines)


def _line(attack: str, result: Result) -> str:
    memory = f"{_figure(result.peak_mib, 1)}, {_figure(result.left_mib, 1)}"
    p50 = f"{_figure(result.before_p50_ms, 1)} → {_figure(result.victim_p50_ms, 1)}"
    p99 = f"{_figure(result.before_p99_ms, 1)} → {_figure(result.victim_p99_ms, 1)}"
    missed = (", ".join(result.missed) or "-") if result.is_ours else "(reference)"
    words = [result.ended[:ENDED_CHARACTERS], *result.trouble]
    if result.failures:
        words.append(
            "calls failed: " + ", ".join(f"{count} × {kind}" for kind, count in result.failures.items())
        )
    return (
        f"{attack:30} {result.proxy:8} {_figure(result.step_ms, 1):>8} {_figure(result.cpu_s, 2):>6} {memory:>15} "
        f"{p50:>15} {p99:>15}  {missed}; {'; '.join(word for word in words if word)}"
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
