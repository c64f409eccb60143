"""The plots of a run, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from interop.bench.contenders.contender import Contender
from interop.bench.report import CURVES, Results, number

mpl.use("svg")
# Letters stay letters: smaller files, and text that can be searched.
mpl.rcParams.update({"svg.fonttype": "none", "font.size": 10, "axes.titlesize": 11, "axes.axisbelow": True})
from matplotlib import pyplot as plt  # noqa: E402 the backend has to be chosen before
from matplotlib.patches import Patch  # noqa: E402

GROUPS = {
    "no proxy": "#999999",
    "C and C++": "#4878a8",
    "Go": "#56a9b8",
    "other Python": "#d6973a",
    "rawgrpc_proxy": "#3a9a5b",
}
MARKERS = "osD^vP*XhpdH8"
#: File, and its panels: key and title.
BARS = {
    "unary.svg": (("cpu_us", "CPU µs per call"), ("rate", "calls per second")),
    "bulk.svg": (
        ("down_cpu_s_gib", "download, CPU s/GiB"),
        ("up_cpu_s_gib", "upload, CPU s/GiB"),
        ("down_mb_s", "download, MB/s"),
        ("up_mb_s", "upload, MB/s"),
    ),
    "memory.svg": (
        ("start_mib", "at start, MiB"),
        ("peak_mib", "peak, MiB"),
        ("connection_kib", "an idle connection, KiB"),
        ("call_kib", "an open call, KiB"),
    ),
}
TITLES = {
    "unary.svg": "Unary calls, 100 in flight",
    "bulk.svg": "Bulk, one stream of messages of 64 KiB",
    "memory.svg": "Resident memory",
}
LATENCIES = (
    ("single_p50_us", "single_p99_us", "one call at a time"),
    ("p50_us", "p99_us", "100 calls in flight, as fast as they go"),
)
LEVELS = {"open_calls": "other calls open meanwhile", "connections": "connections with calls on them"}


def draw_all(results: Results, folder: Path) -> list[str]:
    """Draw what there are values for; tells the names of the files."""
    drawn = []
    for name, panels in BARS.items():
        wanted = [panel for panel in panels if results.measured(panel[0])]
        if wanted:
            _bars(results, folder / name, TITLES[name], wanted)
            drawn.append(name)
    if any(results.measured(key) for key, _, _ in LATENCIES):
        _latencies(results, folder / "latency.svg")
        drawn.append("latency.svg")
    for curve, title in CURVES:
        if len(results.levels(curve)) > 1:
            _curve(results, folder / f"{curve}.svg", curve, title)
            drawn.append(f"{curve}.svg")
    if any(contender.workers > 1 for contender in results.measured("workers_rate")):
        _workers(results, folder / "workers.svg")
        drawn.append("workers.svg")
    return drawn


def _bars(results: Results, file: Path, title: str, panels: list[tuple[str, str]]) -> None:
    contenders = [
        contender
        for contender in results.contenders
        if any(results.median(contender, key) for key, _ in panels)
    ]
    figure, grid = _panels(len(panels), len(contenders))
    for axes, (key, heading) in zip(grid, panels, strict=True):
        values = [max(results.median(contender, key) or 0.0, 0.0) for contender in contenders]
        bars = axes.barh(
            range(len(contenders)), values, color=[GROUPS[contender.group] for contender in contenders]
        )
        axes.bar_label(bars, [f" {number(value, 1)}" if value else " -" for value in values], fontsize=9)
        if any(values):
            axes.set_xscale("log")
            low, high = min(filter(None, values)), max(values)
            axes.set_xlim(low / 2, high * 4)
        _name_contenders(axes, contenders)
        axes.set_title(heading)
    _name_groups(figure, contenders)
    _save(figure, title, file)


def _latencies(results: Results, file: Path) -> None:
    contenders = [
        contender
        for contender in results.contenders
        if any(results.median(contender, key) for key, _, _ in LATENCIES)
    ]
    figure, grid = _panels(len(LATENCIES), len(contenders))
    for axes, (low_key, high_key, heading) in zip(grid, LATENCIES, strict=True):
        for row, contender in enumerate(contenders):
            low, high = results.median(contender, low_key), results.median(contender, high_key)
            if low is None or high is None:
                continue
            colour = GROUPS[contender.group]
            axes.plot((low, high), (row, row), color=colour, linewidth=2)
            axes.plot(low, row, "o", color=colour)
            axes.plot(high, row, "|", color=colour, markersize=13, markeredgewidth=2.5)
            axes.annotate(
                f"{number(low, 0)} – {number(high, 0)}",
                (high, row),
                (8, -3),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 6)
        _name_contenders(axes, contenders)
        axes.set_title(f"{heading}, µs")
    _name_groups(figure, contenders)
    _save(figure, "Time of a unary call: p50 (dot) to p99 (bar)", file)


def _curve(results: Results, file: Path, curve: str, title: str) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    levels = results.levels(curve)
    for index, contender in enumerate(results.contenders):
        points = [
            (level, cost) for level in levels if (cost := results.median(contender, f"{curve}/{level}"))
        ]
        if points:
            style = "--" if contender.group in {"C and C++", "Go"} else "-"
            axes.plot(
                *zip(*points, strict=True), style, marker=MARKERS[index % len(MARKERS)], color=f"C{index % 10}",
                label=contender.title,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(LEVELS[curve])
    axes.set_ylabel("CPU µs per call")
    axes.set_xticks(levels, [f"{level:,}" for level in levels])
    axes.minorticks_off()
    _number_axis(axes.yaxis)
    axes.grid(visible=True, which="major", color="#dddddd")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, title, file)


def _workers(results: Results, file: Path) -> None:
    # By name, so that the numbers of workers stand beside each other.
    contenders = sorted(results.measured("workers_rate"), key=lambda contender: contender.name)
    figure, grid = _panels(2, len(contenders))
    for axes, key, heading in zip(
        grid, ("workers_rate", "workers_cpu_us"), ("calls per second", "CPU µs per call"), strict=True
    ):
        values = [results.median(contender, key) or 0.0 for contender in contenders]
        colours = [
            "#8cc9a1" if contender.workers == 1 else GROUPS[contender.group] for contender in contenders
        ]
        bars = axes.barh(range(len(contenders)), values, color=colours)
        axes.bar_label(bars, [f" {number(value, 1)}" for value in values], fontsize=9)
        axes.set_xlim(right=max(values) * 1.25)
        _name_contenders(axes, contenders)
        axes.set_title(heading)
    _save(figure, "Unary calls by one worker and by more, 100 in flight (20 connections of 5)", file)


def _panels(count: int, rows: int) -> tuple[Any, list[Any]]:
    columns = min(count, 2)
    lines = -(-count // columns)
    height = 0.4 + lines * (1.1 + 0.32 * rows)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5.6 * columns, height), layout="constrained", squeeze=False, sharey=True
    )
    panels = list(grid.flat)
    for spare in panels[count:]:
        spare.set_visible(False)
    return figure, panels[:count]


def _name_contenders(axes: Any, contenders: list[Contender]) -> None:
    axes.set_yticks(range(len(contenders)), [contender.title for contender in contenders])
    axes.set_ylim(len(contenders) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    _number_axis(axes.xaxis)
    axes.grid(visible=True, axis="x", color="#dddddd")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _name_groups(figure: Any, contenders: list[Contender]) -> None:
    present = {contender.group for contender in contenders}
    handles = [Patch(color=colour, label=group) for group, colour in GROUPS.items() if group in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def _number_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:,.4g}" if value < 1000 else f"{value:,.0f}")


def _save(figure: Any, title: str, file: Path) -> None:
    figure.suptitle(title)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
