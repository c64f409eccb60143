"""What is measured of a proxy, and how: four stories, each with a fresh process of it.

`measure_calls`: unary calls at full load and one at a time, bulk both ways, memory before and after.
`measure_workers`: calls at full load, on enough connections for more than one worker.
`measure_connections`: memory of idle connections; the cost of a call as the load spreads over more connections.
`measure_open_calls`: memory of calls that wait; the cost of other calls while more and more of them are open.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from interop.bench.child import Child, Cpus, Trouble, free_port
from interop.bench.contenders.catalogue import Peer, Site
from interop.bench.load import (
    BULK,
    MIB,
    UNARY,
    WARM_BULK,
    WARM_SHARE,
    Backend,
    Files,
    Holder,
    Load,
    Outcome,
    check_answers,
)

IN_FLIGHT = 100
CONNECTIONS = 4
WORKERS_CONNECTIONS = 20
"""The system deals connections out to the workers, and of a few one worker may get most."""
HELD_ON = 100
"""Connections that the calls held open are spread over: many proxies allow no more than 100 on each."""
NEGLIGIBLE = 100
"""With so many calls on each connection, what it costs to make the connection does not count."""
PATIENCE = 3
"""How much longer than planned a warm-up may take."""
AGAIN = 0.25
"""The part of the warm-up that another kind of load needs, once the proxy is warm."""
GIB = 1024 * MIB

Values = dict[str, float]


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
    proxy_cpus: Callable[[Peer], Cpus]


@dataclass
class Record:
    """What one story brought: values by metric, and what went wrong by the measure it went wrong in."""

    values: Values = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def measuring(self, measure: str) -> Iterator[None]:
        """Note what goes wrong, and let the next measure have its turn."""
        try:
            yield
        except Trouble as trouble:
            self.troubles[measure] = str(trouble)


class Target:
    """A proxy that runs, or the backend itself, and the load on it."""

    def __init__(self, bench: Bench, peer: Peer, port: int, child: Child | None) -> None:
        self.bench = bench
        self.port = port
        self._child = child
        self._warm_s = bench.sizes.warm_compiler_s if peer.warms_up else bench.sizes.warm_s

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
            self.port, calls=calls, connections=connections, streams=streams, answer=answer, body=body
        )
        return outcome, self._cpu_seconds() - before

    def latencies(
        self, calls: int, connections: int = 1, streams: int = 1
    ) -> tuple[tuple[float, ...], float]:
        """The percentiles in µs; also tells the CPU time of the proxy, in seconds."""
        before = self._cpu_seconds()
        times = self.bench.load.latencies(self.port, calls=calls, connections=connections, streams=streams)
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
def started(bench: Bench, peer: Peer, *, many_calls: bool = False) -> Iterator[Target]:
    """The peer, which has answered right. Raises `Trouble` if it does not."""
    if peer.command is None:
        check_answers(bench.backend.port, bench.files)
        yield Target(bench, peer, bench.backend.port, None)
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        # An unprivileged worker of a server that was started by root has to get there.
        Path(folder).chmod(0o755)
        site = Site(free_port(), bench.backend.port, Path(folder), many_calls)
        with Child(peer.name, peer.command(site), bench.proxy_cpus(peer), site.listen) as child:
            check_answers(site.listen, bench.files)
            yield Target(bench, peer, site.listen, child)


def count_for(rate: float, seconds: float) -> int:
    """How many calls take about so long: no less than are in flight, and no more than a log of them is fit for."""
    return max(IN_FLIGHT, min(int(rate * seconds), 2_000_000))


# ------------------------------------------------------------------------------ calls


def measure_calls(bench: Bench, peer: Peer) -> Record:
    """Calls, one at a time and many, and bulk."""
    record = Record()
    with record.measuring("start"), started(bench, peer) as target:
        if peer.is_proxy:
            record.values["start_mib"] = target.child.memory().now_kib / 1024
        with record.measuring("unary calls"):
            _unary(target, record.values)
        with record.measuring("one call at a time"):
            _single(target, record.values)
        with record.measuring("bulk download"):
            _bulk(target, record.values, "down", answer=BULK)
        with record.measuring("bulk upload"):
            _bulk(target, record.values, "up", body=BULK)
        if peer.is_proxy:
            record.values["peak_mib"] = target.child.memory().peak_kib / 1024
    return record if peer.is_proxy else _without_cpu(record)


def _unary(target: Target, values: Values) -> None:
    sizes, streams = target.bench.sizes, IN_FLIGHT // CONNECTIONS
    rate = target.warm_up()
    outcome, cpu_s = target.run(count_for(rate, sizes.unary_s), CONNECTIONS, streams)
    values["cpu_us"] = cpu_s / outcome.calls * 1e6
    values["rate"] = outcome.rate
    values["busy_percent"] = cpu_s / outcome.seconds * 100
    times, _ = target.latencies(count_for(outcome.rate, sizes.latency_s), CONNECTIONS, streams)
    values["p50_us"], values["p99_us"] = times


def _single(target: Target, values: Values) -> None:
    rate = target.warm_up(1, 1, share=AGAIN)
    calls = count_for(rate, target.bench.sizes.single_s)
    (values["single_p50_us"], values["single_p99_us"]), cpu_s = target.latencies(calls)
    values["single_cpu_us"] = cpu_s / calls * 1e6


def _bulk(target: Target, values: Values, way: str, *, answer: str = UNARY, body: str = UNARY) -> None:
    """One stream after another, each with the whole file."""
    files = target.bench.files
    warm_answer, warm_body = (WARM_BULK if name == BULK else name for name in (answer, body))
    rate = target.warm_up(1, 1, answer=warm_answer, body=warm_body, share=AGAIN)
    calls = max(1, round(target.bench.sizes.bulk_s * rate / WARM_SHARE))
    read_before = target.bench.backend.bytes_read()
    outcome, cpu_s = target.run(calls, answer=answer, body=body)
    total = calls * files.size(BULK)
    if body == BULK and (read := target.bench.backend.bytes_read() - read_before) < total:
        raise Trouble(f"of {total} bytes sent the backend got {read}")
    values[f"{way}_mb_s"] = total / outcome.seconds / 1e6
    values[f"{way}_cpu_s_gib"] = cpu_s / (total / GIB)


def _without_cpu(record: Record) -> Record:
    wanted = {
        key: value for key, value in record.values.items() if "cpu" not in key and key != "busy_percent"
    }
    return replace(record, values=wanted)


# ------------------------------------------------------------------------------ workers


def measure_workers(bench: Bench, peer: Peer) -> Record:
    """Calls, with as many workers as the peer has; memory as well where there is more than one."""
    record = Record()
    with record.measuring("start of workers"), started(bench, peer) as target:
        at_start = target.child.memory().now_kib
        with record.measuring("calls with workers"):
            rate = target.warm_up(WORKERS_CONNECTIONS, IN_FLIGHT // WORKERS_CONNECTIONS)
            calls = count_for(rate, bench.sizes.unary_s)
            outcome, cpu_s = target.run(calls, WORKERS_CONNECTIONS, IN_FLIGHT // WORKERS_CONNECTIONS)
            record.values["workers_rate"] = outcome.rate
            record.values["workers_cpu_us"] = cpu_s / calls * 1e6
        if peer.workers > 1:
            record.values["start_mib"] = at_start / 1024
            record.values["peak_mib"] = target.child.memory().peak_kib / 1024
    return record


# ------------------------------------------------------------------------------ connections and open calls


def measure_connections(bench: Bench, peer: Peer) -> Record:
    """Idle ones in a process that has done nothing yet, then ones that work."""
    record = Record()
    with record.measuring("start of connections"), started(bench, peer) as target:
        with (
            record.measuring("idle connections"),
            Holder(target.port, bench.files, bench.load_cpus) as holder,
        ):
            # The first few pay for what is made once.
            holder.connect(10)
            before = _settled_kib(target)
            holder.connect(bench.sizes.idle_connections)
            grown = _settled_kib(target) - before
            record.values["connection_kib"] = grown / bench.sizes.idle_connections
        with record.measuring("calls on more connections"):
            target.child.settle()
            target.warm_up()
            for count in bench.sizes.connections:
                streams = max(IN_FLIGHT // count, 1)
                record.values[f"connections/{count}"] = _cost(target, count, streams)
    return record


def measure_open_calls(bench: Bench, peer: Peer) -> Record:
    """Calls of which the headers were sent and nothing came, and other calls meanwhile."""
    record = Record()
    with record.measuring("start of open calls"), started(bench, peer, many_calls=True) as target:
        target.warm_up()
        before = None
        for count in bench.sizes.open_calls:
            with (
                record.measuring(f"{count} calls held open"),
                Holder(target.port, bench.files, bench.load_cpus) as holder,
            ):
                holder.connect(HELD_ON)
                before = before or _settled_kib(target)
                holder.open(count)
                grown = _settled_kib(target) - before
                cost = _cost(target, CONNECTIONS, IN_FLIGHT // CONNECTIONS)
                holder.check()
                record.values[f"open_calls/{count}"] = cost
                if count == bench.sizes.open_calls[-1]:
                    record.values["call_kib"] = grown / count
                holder.finish()
    return record


def _settled_kib(target: Target) -> int:
    """The memory of the proxy when it has nothing left to do."""
    target.child.settle()
    return target.child.memory().now_kib


def _cost(target: Target, connections: int, streams: int) -> float:
    """CPU time of a call, in µs, under this load."""
    in_flight = connections * streams
    fewer = 2 * in_flight
    outcome, _ = target.run(fewer, connections, streams)
    calls = max(count_for(outcome.rate, target.bench.sizes.level_s), 4 * in_flight)
    if calls >= NEGLIGIBLE * connections:
        return target.run(calls, connections, streams)[1] / calls * 1e6
    # What a longer load costs more than a shorter one: so the cost of making the connections drops out.
    _, shorter_s = target.run(fewer, connections, streams)
    _, longer_s = target.run(fewer + calls, connections, streams)
    return max(longer_s - shorter_s, 0.0) / calls * 1e6


@dataclass(frozen=True)
class Story:
    """One of the stories: its name, how it goes, and of whom."""

    name: str
    tell: Callable[[Bench, Peer], Record]
    of: Callable[[Peer], bool]
    every_round: bool

    def peers(self, peers: Collection[Peer]) -> list[Peer]:
        """Those it is told of."""
        return [peer for peer in peers if self.of(peer)]


def _is_one_process(peer: Peer) -> bool:
    return peer.is_proxy and peer.workers == 1


STORIES = (
    Story("calls", measure_calls, lambda peer: peer.workers == 1, every_round=True),
    Story("workers", measure_workers, lambda peer: peer.in_comparison_of_workers, every_round=True),
    Story("connections", measure_connections, _is_one_process, every_round=False),
    Story("open calls", measure_open_calls, _is_one_process, every_round=False),
)
