"""What came of a soak, as tables for people and as figures for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interop.promises.soak.clients import Row
from interop.promises.soak.proxy import ProxyLog

#: How many different ends, and how many closed connections, are told in words.
LINES = 10


@dataclass
class Sample:
    """The proxy, some time after the start."""

    seconds: float
    calls: int
    memory_mb: float
    files: int


def shares_of(rows: list[Row]) -> dict[str, float]:
    """How many of the calls were cancelled, how many expired; 1 is all of them."""
    calls = sum(row.calls for row in rows) or 1
    return {
        "cancelled": sum(row.cancelled for row in rows) / calls,
        "expired": sum(row.expired for row in rows) / calls,
    }


@dataclass
class Report:
    """All that is known when the time is over."""

    seconds: float
    rows: list[Row]
    log: ProxyLog
    samples: list[Sample]

    @property
    def lost(self) -> int:
        """Connections that were lost, as the proxy's log and the clients tell."""
        return len(self.log.closed) + sum(row.connections_lost for row in self.rows)

    @property
    def wrong(self) -> int:
        """Ends of calls that nobody asked for."""
        return self.log.unexpected().total() + sum(row.unexpected.total() for row in self.rows)

    @property
    def good(self) -> bool:
        """Whether none was lost, and none went wrong."""
        return not self.lost and not self.wrong

    @property
    def slope(self) -> float:
        """Memory in MB for each minute, by least squares; the first sample is the warm-up's."""
        points = [(sample.seconds / 60, sample.memory_mb) for sample in self.samples[1:]]
        middle = sum(minutes for minutes, _ in points) / len(points)
        spread = sum((minutes - middle) ** 2 for minutes, _ in points)
        return sum((minutes - middle) * memory for minutes, memory in points) / spread if spread else 0.0

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Of the calls of clients that give up, and of all: how many were cancelled, how many expired; 1 is all."""
        impatient = [row for row in self.rows if row.cancelled or row.expired]
        return {
            "of clients that give up": shares_of(impatient),
            "of all": shares_of(self.rows),
        }

    def show(self) -> None:
        """Print the tables, and what went wrong."""
        self._show_clients()
        print(f"\n{'minutes':>8}{'calls':>12}{'memory, MB':>12}{'open files':>12}")
        for sample in self.samples:
            print(f"{sample.seconds / 60:8.1f}{sample.calls:12}{sample.memory_mb:12.1f}{sample.files:12}")
        print(f"memory after the first of these: {self.slope:+.2f} MB/min\n")
        self._show_faults()
        print(
            f"{self.lost} connections lost, {self.wrong} unexpected ends: {'ok' if self.good else 'FAILED'}"
        )

    def figures(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "minutes": self.seconds / 60,
            "good": self.good,
            "shares": self.shares,
            "clients": [vars(row) for row in self.rows],
            "calls": {" ".join(key): count for key, count in sorted(self.log.calls.items())},
            "events": self.log.events,
            "closed": self.log.closed,
            "samples": [vars(sample) for sample in self.samples],
            "memory_mb_per_minute": self.slope,
        }

    def _show_clients(self) -> None:
        in_log = Row(
            "log of the proxy",
            self.log.calls.total(),
            self.log.ended("CANCELLED"),
            self.log.ended("DEADLINE_EXCEEDED"),
            self.log.unexpected(),
            len(self.log.closed),
        )
        print(
            f"{'client':17}{'calls':>11}{'per s':>9}{'cancelled':>11}{'expired':>11}{'unexpected':>12}"
            f"{'connections lost':>18}"
        )
        for row in (*self.rows, in_log):
            print(
                f"{row.client:17}{row.calls:11}{row.calls / self.seconds:9.1f}{row.cancelled:11}{row.expired:11}"
                f"{row.unexpected.total():12}{row.connections_lost:18}"
            )
        print("(a client that resets its call at its deadline cancels it, as the proxy sees it)\n")
        for whose, shares in self.shares.items():
            print(f"{whose}: {shares['cancelled']:.1%} cancelled, {shares['expired']:.1%} expired")

    def _show_faults(self) -> None:
        seen = [(row.client, row.unexpected) for row in self.rows]
        for client, unexpected in (*seen, ("log of the proxy", self.log.unexpected())):
            for outcome, count in unexpected.most_common(LINES):
                if count:
                    print(f"{client}: {count} × {outcome}")
        for line in self.log.closed[:LINES]:
            print(f"closed: {line}")
        if self.log.events:
            events = ", ".join(f"{count} × {event}" for event, count in self.log.events.items())
            print(f"other lines of the log: {events}")
