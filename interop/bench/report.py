"""What came of a run, as results.json, as a table in Markdown, and as plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop.bench.contenders.contender import Contender
from interop.bench.contenders.ours import BEFORE
from interop.bench.stories import Record

#: Where reports go unless another place is given.
RESULTS = Path(__file__).resolve().with_name("results")


@dataclass(frozen=True)
class Metric:
    """One column: the key of its values, its heading, and how many digits say something."""

    key: str
    heading: str
    digits: int = 0


@dataclass(frozen=True)
class Table:
    """Columns that belong together."""

    title: str
    metrics: tuple[Metric, ...]


TABLES = (
    Table(
        "Unary calls, 100 in flight (4 connections of 25)",
        (
            Metric("cpu_us", "CPU µs/call", 1),
            Metric("rate", "calls/s"),
            Metric("busy_percent", "proxy's CPU, %"),
            Metric("p50_us", "p50 µs"),
            Metric("p99_us", "p99 µs"),
        ),
    ),
    Table(
        "Unary calls, one at a time",
        (
            Metric("single_cpu_us", "CPU µs/call", 1),
            Metric("single_p50_us", "p50 µs"),
            Metric("single_p99_us", "p99 µs"),
        ),
    ),
    Table(
        "Bulk: one stream of messages of 64 KiB",
        (
            Metric("down_mb_s", "download MB/s"),
            Metric("down_cpu_s_gib", "download CPU s/GiB", 2),
            Metric("up_mb_s", "upload MB/s"),
            Metric("up_cpu_s_gib", "upload CPU s/GiB", 2),
        ),
    ),
    Table(
        "Memory (resident, all processes)",
        (
            Metric("start_mib", "at start, MiB", 1),
            Metric("peak_mib", "peak, MiB", 1),
            Metric("connection_kib", "idle connection, KiB", 1),
            Metric("call_kib", "open call, KiB", 1),
        ),
    ),
)
CURVES = (
    ("open_calls", "CPU µs/call while so many other calls are open"),
    ("connections", "CPU µs/call with the load on so many connections"),
)


@dataclass
class Results:
    """All values of a run, by contender and metric, with what went wrong."""

    contenders: Sequence[Contender]
    facts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    troubles: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, contender: Contender, record: Record) -> None:
        """Take in what one story brought."""
        for key, value in record.values.items():
            self.values.setdefault(contender.name, {}).setdefault(key, []).append(value)
        for measure, reason in record.troubles.items():
            self.trouble(contender, measure, reason)

    def trouble(self, contender: Contender, measure: str, reason: str) -> None:
        """Take in that something went wrong."""
        self.troubles.setdefault(contender.name, {}).setdefault(measure, []).append(reason)

    def median(self, contender: Contender, key: str) -> float | None:
        """Over the rounds; None if there is no value."""
        rounds = self.values.get(contender.name, {}).get(key)
        return statistics.median(rounds) if rounds else None

    def measured(self, key: str) -> list[Contender]:
        """The contenders that have a value."""
        return [contender for contender in self.contenders if self.median(contender, key) is not None]

    def levels(self, curve: str) -> list[int]:
        """Where along the curve there are values."""
        keys = {key for values in self.values.values() for key in values if key.startswith(f"{curve}/")}
        return sorted(int(key.rsplit("/", 1)[1]) for key in keys)

    def spread(self, key: str) -> float | None:
        """How far the rounds lie apart, as a part of their median: the median of all contenders."""
        spreads = [
            (max(rounds) - min(rounds)) / statistics.median(rounds)
            for values in self.values.values()
            if len(rounds := values.get(key, [])) > 1 and statistics.median(rounds)
        ]
        return statistics.median(spreads) if spreads else None

    def as_json(self) -> str:
        """Everything."""
        contenders: dict[str, Any] = {
            contender.name: {
                "title": contender.title,
                "group": contender.group,
                "version": self.versions.get(contender.name),
                "values": {
                    key: {"median": statistics.median(rounds), "rounds": rounds}
                    for key, rounds in self.values.get(contender.name, {}).items()
                },
                "troubles": self.troubles.get(contender.name, {}),
            }
            for contender in self.contenders
        }
        return json.dumps({"facts": self.facts, "peers": contenders}, indent=2, ensure_ascii=False) + "\n"


# --------------------------------------------------------------------------------- Markdown


def markdown(results: Results, plots: Iterable[str]) -> str:
    """The tables, what they were made with, and what is missing from them and why."""
    parts = ["# Benchmark\n", _facts(results)]
    for table in TABLES:
        columns = [metric for metric in table.metrics if results.measured(metric.key)]
        if columns:
            keys = [(metric.key, metric.heading, metric.digits) for metric in columns]
            parts.append(f"## {table.title}\n\n{_table(results, keys)}{_spread(results, columns)}")
    for curve, title in CURVES:
        if levels := results.levels(curve):
            keys = [(f"{curve}/{level}", f"{level:,}", 1) for level in levels]
            parts.append(f"## {title}\n\n{_table(results, keys)}")
    if rows := _workers(results):
        parts.append(f"## Workers: unary calls, 100 in flight (20 connections of 5)\n\n{rows}")
    if rows := _changes(results):
        parts.append(f"## Now ÷ before, the median of the rounds' ratios (lowest to highest)\n\n{rows}")
    if troubles := _troubles(results):
        parts.append(f"## Not measured\n\n{troubles}")
    parts.extend(f"![{plot.removesuffix('.svg').replace('_', ' ')}]({plot})\n" for plot in plots)
    return "\n".join(parts)


def _facts(results: Results) -> str:
    lines = [f"- {name}: {fact}" for name, fact in results.facts.items()]
    titles = {contender.name: contender.title for contender in results.contenders if contender.is_proxy}
    lines += [f"- {titles[name]}: {version}" for name, version in results.versions.items() if name in titles]
    return "\n".join(lines) + "\n"


def _table(results: Results, columns: Sequence[tuple[str, str, int]]) -> str:
    contenders = [
        contender
        for contender in results.contenders
        if any(results.median(contender, key) is not None for key, _, _ in columns)
    ]
    rows = [
        [contender.title, *(number(results.median(contender, key), digits) for key, _, digits in columns)]
        for contender in contenders
    ]
    return _aligned(["", *(heading for _, heading, _ in columns)], rows)


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that can also be read as it is, with names to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join((name, *numbers))} |\n"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return line(headings) + line(rule) + "".join(map(line, rows))


def _spread(results: Results, metrics: Iterable[Metric]) -> str:
    spreads = [
        f"{metric.heading} {spread:.0%}"
        for metric in metrics
        if (spread := results.spread(metric.key)) is not None
    ]
    return f"\nFrom the lowest round to the highest, typically: {', '.join(spreads)}.\n" if spreads else ""


def _workers(results: Results) -> str:
    names = {contender.name: contender for contender in results.contenders}
    rows = []
    for many in results.contenders:
        one = names.get(many.name.removesuffix(f"-{many.workers}w"))
        if many.workers == 1 or one is None:
            continue
        keys = ("workers_rate", "workers_cpu_us")
        pairs = [(results.median(one, key), results.median(many, key)) for key in keys]
        if all(before and after for before, after in pairs):
            cells = (
                f"{number(before, 1)} → {number(after, 1)} (× {after / before:.2f})"
                for before, after in pairs
                if before and after
            )
            rows.append([f"{one.title}, 1 → {many.workers}", *cells])
    return _aligned(["", "calls/s", "CPU µs/call"], rows) if rows else ""


def _changes(results: Results) -> str:
    """What a change costs: each round's value through that of the same round before the change."""
    pairs = [
        (now, then)
        for now in results.contenders
        for then in results.contenders
        if then.name == now.name + BEFORE
    ]
    rows = []
    for metric in (metric for table in TABLES for metric in table.metrics):
        ratios = [_ratios(results, now, then, metric.key) for now, then in pairs]
        if any(ratios):
            cells = [
                f"{statistics.median(each):.3f} ({min(each):.2f} to {max(each):.2f})" if each else "-"
                for each in ratios
            ]
            rows.append([metric.key, *cells])
    return _aligned(["", *(now.title for now, _ in pairs)], rows) if rows else ""


def _ratios(results: Results, now: Contender, then: Contender, key: str) -> list[float]:
    values, before = (results.values.get(each.name, {}).get(key, []) for each in (now, then))
    return [value / other for value, other in zip(values, before, strict=False) if other]


def _troubles(results: Results) -> str:
    lines = []
    for contender in results.contenders:
        for measure, reasons in results.troubles.get(contender.name, {}).items():
            times = f" ({len(reasons)} times)" if len(reasons) > 1 else ""
            lines.append(f"- {contender.title}, {measure}{times}: {' '.join(reasons[-1].split())}\n")
    return "".join(lines)


def number(value: float | None, digits: int) -> str:
    """A number for people to read."""
    if value is None:
        return "-"
    return f"{value:,.{0 if abs(value) >= 1000 else digits}f}"
