"""What is measured of a proxy, and how: four stories, each with a fresh process of it.

`measure_calls`: unary calls at full load and one at a time, bulk both ways, memory before and after.
`measure_workers`: calls at full load, on enough connections for more than one worker.
`measure_connections`: memory of idle connections; the cost of a call as the load spreads over more connections.
`measure_open_calls`: memory of calls that wait; the cost of other calls while more and more of them are open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from interop.bench.backend import BULK, MIB, UNARY, WARM_BULK, WARM_SHARE
from interop.bench.contenders.contender import Contender
from interop.bench.holder import Holder
from interop.bench.target import CONNECTIONS, IN_FLIGHT, Bench, Target, count_for, started
from interop.shared.processes import Trouble

WORKERS_CONNECTIONS = 20
"""The system deals connections out to the workers, and of a few one worker may get most."""
HELD_ON = 100
"""Connections that the calls held open are spread over: many proxies allow no more than 100 on each."""
NEGLIGIBLE = 100
"""With so many calls on each connection, what it costs to make the connection does not count."""
AGAIN = 0.25
"""The part of the warm-up that another kind of load needs, once the proxy is warm."""
GIB = 1024 * MIB

Values = dict[str, float]


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


# ------------------------------------------------------------------------------ calls


def measure_calls(bench: Bench, contender: Contender) -> Record:
    """Calls, one at a time and many, and bulk."""
    record = Record()
    with record.measuring("start"), started(bench, contender) as target:
        if contender.is_proxy:
            record.values["start_mib"] = target.child.memory().now_mib
        with record.measuring("unary calls"):
            _unary(target, record.values)
        with record.measuring("one call at a time"):
            _single(target, record.values)
        with record.measuring("bulk download"):
            _bulk(target, record.values, "down", answer=BULK)
        with record.measuring("bulk upload"):
            _bulk(target, record.values, "up", body=BULK)
        if contender.is_proxy:
            record.values["peak_mib"] = target.child.memory().peak_mib
    return record if contender.is_proxy else _without_cpu(record)


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


def measure_workers(bench: Bench, contender: Contender) -> Record:
    """Calls, with as many workers as the contender has; memory as well where there is more than one."""
    record = Record()
    with record.measuring("start of workers"), started(bench, contender) as target:
        at_start = target.child.memory().now_kib
        with record.measuring("calls with workers"):
            rate = target.warm_up(WORKERS_CONNECTIONS, IN_FLIGHT // WORKERS_CONNECTIONS)
            calls = count_for(rate, bench.sizes.unary_s)
            outcome, cpu_s = target.run(calls, WORKERS_CONNECTIONS, IN_FLIGHT // WORKERS_CONNECTIONS)
            record.values["workers_rate"] = outcome.rate
            record.values["workers_cpu_us"] = cpu_s / calls * 1e6
        if contender.workers > 1:
            record.values["start_mib"] = at_start / 1024
            record.values["peak_mib"] = target.child.memory().peak_mib
    return record


# ------------------------------------------------------------------------------ connections and open calls


def measure_connections(bench: Bench, contender: Contender) -> Record:
    """Idle ones in a process that has done nothing yet, then ones that work."""
    record = Record()
    with record.measuring("start of connections"), started(bench, contender) as target:
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


def measure_open_calls(bench: Bench, contender: Contender) -> Record:
    """Calls of which the headers were sent and nothing came, and other calls meanwhile."""
    record = Record()
    with record.measuring("start of open calls"), started(bench, contender, many_calls=True) as target:
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
    tell: Callable[[Bench, Contender], Record]
    of: Callable[[Contender], bool]
    every_round: bool

    def contenders(self, contenders: Collection[Contender]) -> list[Contender]:
        """Those it is told of."""
        return [contender for contender in contenders if self.of(contender)]


def _is_one_process(contender: Contender) -> bool:
    return contender.is_proxy and contender.workers == 1 and not contender.only_calls


STORIES = (
    Story("calls", measure_calls, lambda contender: contender.workers == 1, every_round=True),
    Story("workers", measure_workers, lambda contender: contender.in_comparison_of_workers, every_round=True),
    Story("connections", measure_connections, _is_one_process, every_round=False),
    Story("open calls", measure_open_calls, _is_one_process, every_round=False),
)
