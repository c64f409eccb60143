"""A proxy that runs, and the load on it: how each start of one is made, checked, warmed up and loaded."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from interop.bench.answers import check_answers
from interop.bench.backend import MIB, UNARY, Backend, Files
from interop.bench.child import Child, Cpus
from interop.bench.contenders.contender import Contender, Site
from interop.bench.load import Load, Outcome
from interop.shared.ports import free_port

IN_FLIGHT = 100
CONNECTIONS = 4
PATIENCE = 3
"""How much longer than planned a warm-up may take."""


@dataclass(frozen=True)
class Sizes:
    """How long and how much. Times are what a measure aims at, in seconds; CPU time for the warm-up."""

    warm_s: float = 1.0
    warm_compiler_s: float = 8.0
    unary_s: float = 2.5
    latency_s: float = 1.0
    single_s: float = 2.0
    bulk_s: float = 1.5
    bulk_mib: int = 256
    level_s: float = 1.5
    idle_connections: int = 1000
    connections: tuple[int, ...] = (1, 10, 100, 1000)
    open_calls: tuple[int, ...] = (1, 10, 100, 1000, 10_000)

    def within(self, open_files: int) -> Sizes:
        """What can be done with that many open files in each process: nginx needs a connection for each call."""
        room = open_files - 500
        return replace(
            self,
            idle_connections=min(self.idle_connections, room),
            connections=tuple(count for count in self.connections if count <= room),
            open_calls=tuple(count for count in self.open_calls if count <= room),
        )


QUICK = Sizes(
    warm_s=0.3, warm_compiler_s=1.5, unary_s=0.5, latency_s=0.3, single_s=0.4, bulk_s=0.3, bulk_mib=32, level_s=0.3,
    idle_connections=200, connections=(1, 100), open_calls=(1, 100, 1000),
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """All that the measures of one run share."""

    sizes: Sizes
    files: Files
    backend: Backend
    load: Load
    load_cpus: Cpus
    proxy_cpus: Callable[[Contender], Cpus]


@contextmanager
def one_bench(sizes: Sizes) -> Iterator[Bench]:
    """The backend and its files, while in the context."""
    cpus = sorted(os.sched_getaffinity(0))
    proxy_cpu, load_cpu = cpus[0], cpus[min(1, len(cpus) - 1)]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = Files(Path(folder), sizes.bulk_mib * MIB)
        with Backend("nghttpd", files, {load_cpu}) as backend:
            yield Bench(
                sizes, files, backend, Load("h2load", files, {load_cpu}), {load_cpu},
                partial(_proxy_cpus, cpus, proxy_cpu, load_cpu),
            )  # fmt: skip


def _proxy_cpus(cpus: list[int], proxy_cpu: int, load_cpu: int, contender: Contender) -> Cpus:
    """One; for more workers all but that of the load, or all if that leaves too few."""
    if contender.workers == 1:
        return {proxy_cpu}
    free = set(cpus) - {load_cpu}
    return free if len(free) >= contender.workers else set(cpus)


class Target:
    """A proxy that runs, or the backend itself, and the load on it."""

    def __init__(self, bench: Bench, contender: Contender, port: int, child: Child | None) -> None:
        self.bench = bench
        self.port = port
        self._child = child
        self._tls = contender.tls
        self._warm_s = bench.sizes.warm_compiler_s if contender.warms_up else bench.sizes.warm_s

    @property
    def child(self) -> Child:
        """The process of the proxy."""
        assert self._child is not None
        return self._child

    def run(
        self, calls: int, connections: int = 1, streams: int = 1, *, answer: str = UNARY, body: str = UNARY
    ) -> tuple[Outcome, float]:
        """Make the calls; also tells the CPU time of the proxy, in seconds."""
        before = self._cpu_seconds()
        outcome = self.bench.load.run(
            self.port, calls=calls, connections=connections, streams=streams, answer=answer, body=body,
            tls=self._tls,
        )  # fmt: skip
        return outcome, self._cpu_seconds() - before

    def latencies(
        self, calls: int, connections: int = 1, streams: int = 1
    ) -> tuple[tuple[float, ...], float]:
        """The percentiles in µs; also tells the CPU time of the proxy, in seconds."""
        before = self._cpu_seconds()
        times = self.bench.load.latencies(
            self.port, calls=calls, connections=connections, streams=streams, tls=self._tls
        )
        return times, self._cpu_seconds() - before

    def warm_up(
        self, connections: int = CONNECTIONS, streams: int = IN_FLIGHT // CONNECTIONS, *,
        answer: str = UNARY, body: str = UNARY, share: float = 1.0,
    ) -> float:  # fmt: skip
        """Load it until it is warm; tells the calls per second it then makes.

        CPU time of the proxy counts, for a machine that has other things to do gives it little in the same time; but
        there is an end to waiting. With `share`, a part of the whole warm-up will do.
        """
        cpu_wanted_s = share * self._warm_s
        end = time.monotonic() + PATIENCE * cpu_wanted_s
        calls = connections * streams
        while True:
            outcome, cpu_s = self.run(calls, connections, streams, answer=answer, body=body)
            cpu_wanted_s -= cpu_s if self._child else outcome.seconds
            left_s = end - time.monotonic()
            if cpu_wanted_s <= 0 or left_s <= 0:
                return outcome.rate
            # Half of it at most, for it makes more calls the warmer it is; but each load has a start to pay for.
            calls = max(
                int(outcome.rate * min(cpu_wanted_s / 2 + 0.05, 5 * outcome.seconds)), connections * streams
            )

    def _cpu_seconds(self) -> float:
        if self._child is None:
            return 0.0
        self._child.check()
        return self._child.cpu_seconds()


@contextmanager
def started(bench: Bench, contender: Contender, *, many_calls: bool = False) -> Iterator[Target]:
    """The contender, which has answered right. Raises `Trouble` if it does not."""
    if contender.command is None:
        check_answers(bench.backend.port, bench.files)
        yield Target(bench, contender, bench.backend.port, None)
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        # An unprivileged worker of a server that was started by root has to get there.
        Path(folder).chmod(0o755)
        site = Site(free_port(), bench.backend.port, Path(folder), bench.files.certificate, many_calls)
        with Child(
            contender.name, contender.command(site), bench.proxy_cpus(contender), site.listen
        ) as child:
            check_answers(site.listen, bench.files, tls=contender.tls)
            yield Target(bench, contender, site.listen, child)


def count_for(rate: float, seconds: float) -> int:
    """How many calls take about so long: no less than are in flight, and no more than a log of them is fit for."""
    return max(IN_FLIGHT, min(int(rate * seconds), 2_000_000))
