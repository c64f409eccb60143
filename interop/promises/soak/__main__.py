"""A long run of honest clients at full load: no connection is closed by the proxy, and every call ends as it has to.

    .venv/bin/python -m interop.promises.soak [--minutes 25] [--engine h2|relay] [--out FILE]

One proxy at its defaults, in front of a grpcio server and of etcd. Three clients at once, as fast as they are answered:

- grpcio over several channels; 5 % of its calls are cancelled, 5 % have a deadline that passes;
- h2load, on connections that last as long as the run;
- etcdctl: put, get, and a watch that has to see every put.

h2load and etcd are left out where they are not installed. Exit code 1 if a connection was closed, or a call ended
otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from interop.shared import proc
from interop.shared.etcd import COMMAND_SECONDS, Etcdctl, EtcdPorts, etcd_server
from interop.shared.processes import Lines, Listener, Trouble, proxy_command
from interop.shared.progress import Progress

ETCD_SERVICES = ("KV", "Watch", "Lease")
H2LOAD_CONNECTIONS, H2LOAD_STREAMS = 2, 8
#: A process of etcdctl takes tens of milliseconds of CPU time, which the others are to have.
ETCDCTL_PAUSE_SECONDS = 0.1
SAMPLES_AT_LEAST = 5
#: How often, where there is no terminal, a line tells how far the run is.
PROGRESS_SECONDS = 30.0
#: How long a client may take to end when its time is over.
PATIENCE_SECONDS = 60.0
EVENT = re.compile(r'"event": "(\w+)"')
CALL = re.compile(r'"method": "([^"]*)".*?"status": "(\w+)", "origin": "(\w+)"')
H2LOAD_RESULT = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")


class ProxyLog:
    """The proxy's log, line by line: calls counted by method and end, everything else kept."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.events: Counter[str] = Counter()
        self.closed: list[str] = []

    def read(self, line: str) -> None:
        """One line, from the proxy's standard error."""
        event = EVENT.search(line)
        if event is None:
            self.events["not JSON"] += 1
        elif event[1] != "call":
            self.events[event[1]] += 1
            if event[1] == "connection_error":
                self.closed.append(line.strip())
        elif call := CALL.search(line):
            self.calls[call[1], call[2], call[3]] += 1


@dataclass
class Sample:
    """The proxy, some time after the start."""

    seconds: float
    calls: int
    memory_mb: float
    files: int


@dataclass
class Row:
    """What came of one client's calls."""

    client: str
    calls: int
    unexpected: Counter[str] = field(default_factory=Counter)
    #: As far as the client can tell.
    connections_lost: int = 0


class Grpcio:
    """The grpcio client, a process of its own."""

    def __init__(self, target: str, seconds: float) -> None:
        command = [
            sys.executable, "-m", "interop.promises.soak.grpcio_client", f"--target={target}", f"--seconds={seconds}"
        ]  # fmt: skip
        self._last = ""
        self._process = Lines(command, on_line=self._read)

    def _read(self, line: str) -> None:
        if line.startswith("{"):
            self._last = line

    def finish(self) -> list[Row]:
        """Wait for its end: a row for each group of calls."""
        code = self._process.wait(PATIENCE_SECONDS)
        self._process.stop()
        if code != 0 or not self._last:
            raise Trouble(f"the grpcio client ended with exit code {code}")
        told = json.loads(self._last)
        rows = [Row(f"grpcio, {group}", calls) for group, calls in sorted(told["calls"].items())]
        for text, count in told["unexpected"].items():
            group, _, outcome = text.partition(", ")
            next(row for row in rows if row.client == f"grpcio, {group}").unexpected[outcome] += count
        rows[0].connections_lost = told["disconnects"]
        return rows

    def stop(self) -> None:
        """End it."""
        self._process.stop()


class H2load:
    """h2load, on the same connections all the time."""

    def __init__(self, target: str, seconds: float) -> None:
        self._body = tempfile.NamedTemporaryFile()  # noqa: SIM115  # it lasts as long as this object
        self._body.write(b"\0" + (32).to_bytes(4) + bytes(32))
        self._body.flush()
        command = [
            "h2load", f"--clients={H2LOAD_CONNECTIONS}", f"--max-concurrent-streams={H2LOAD_STREAMS}",
            f"--duration={seconds:.0f}", f"--data={self._body.name}", "--header=content-type: application/grpc",
            "--header=te: trailers", f"http://{target}/interop.Bytes/Load",
        ]  # fmt: skip
        self._process = Lines(command)

    def finish(self) -> list[Row]:
        """Wait for its end."""
        self._process.wait(PATIENCE_SECONDS)
        self._process.stop()
        lines = self._process.take(0, 0)
        result = next((found for line in lines if (found := H2LOAD_RESULT.search(line))), None)
        if result is None:
            raise Trouble("h2load did not end well: " + " / ".join(lines[-3:]))
        succeeded, failed, errored, timed_out = map(int, result.groups())
        row = Row("h2load", succeeded + failed, connections_lost=errored)
        row.unexpected.update({"failed": failed, "timed out": timed_out})
        return [row]

    def stop(self) -> None:
        """End it."""
        self._process.stop()


class EtcdUser:
    """etcdctl: puts and gets, one after the other, while a watch runs."""

    def __init__(self, target: str, seconds: float) -> None:
        self._row = Row("etcdctl", 0)
        self._etcdctl = Etcdctl(target)
        self._end = time.monotonic() + seconds
        self._puts = 0
        self._watch = self._etcdctl.start("watch", "soak")
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while time.monotonic() < self._end:
            self._puts += 1
            value = str(self._puts)
            self._expect(self._etcdctl("put", "soak", value), "OK")
            self._expect(self._etcdctl("get", "soak", "--print-value-only"), value)
            time.sleep(ETCDCTL_PAUSE_SECONDS)

    def _expect(self, result: dict[str, object], line: str) -> None:
        self._row.calls += 1
        if result["exit"] != 0 or result["stdout"] != [line]:
            self._row.unexpected[f"{result['command']}: {result['stderr']} {result['stdout']}"[:200]] += 1

    def finish(self) -> list[Row]:
        """Wait for its end."""
        self._thread.join(PATIENCE_SECONDS)
        # Each put is three lines of the watch: PUT, the key, the value. The first ones may be older than the watch.
        seen = self._watch.take(3, COMMAND_SECONDS)
        first = int(seen[2]) if len(seen) > 2 and seen[2].isdigit() else 1
        wanted = [str(number) for number in range(first, self._puts + 1)]
        seen = self._watch.take(3 * len(wanted), COMMAND_SECONDS)
        self._watch.stop()
        if seen[2::3] != wanted:
            self._row.unexpected[f"the watch saw {len(seen) // 3} of {len(wanted)} puts: {seen[-1:]}"] += 1
            self._row.connections_lost += 1
        return [self._row]

    def stop(self) -> None:
        """End it."""
        self._end = 0.0
        self._watch.stop()


def sample(pid: int, log: ProxyLog, seconds: float) -> Sample:
    """The proxy now."""
    return Sample(
        round(seconds, 1), log.calls.total(), round(proc.memory(pid).now_mib, 1), proc.open_files(pid)
    )


def slope(samples: list[Sample]) -> float:
    """Memory in MB for each minute, by least squares; the first sample is the warm-up's."""
    points = [(sample.seconds / 60, sample.memory_mb) for sample in samples[1:]]
    middle = sum(minutes for minutes, _ in points) / len(points)
    spread = sum((minutes - middle) ** 2 for minutes, _ in points)
    return sum((minutes - middle) * memory for minutes, memory in points) / spread if spread else 0.0


@contextmanager
def proxy_before(engine: str | None, log: ProxyLog) -> Iterator[tuple[Listener, bool]]:
    """The proxy in front of its upstreams, and whether etcd is one of them."""
    with ExitStack() as stack:
        backend = stack.enter_context(
            Listener("the backend", [sys.executable, "-m", "interop.promises.bytes_server"])
        )
        options = [f"--upstream={backend.target}", "--log-format=json"]
        with_etcd = bool(shutil.which("etcd") and shutil.which("etcdctl"))
        if with_etcd:
            target = stack.enter_context(etcd_server(EtcdPorts()))
            options += [f"--route=/etcdserverpb.{service}/*={target}" for service in ETCD_SERVICES]
        command = proxy_command(*options, engine=engine)
        yield stack.enter_context(Listener("the proxy", command, on_error_line=log.read)), with_etcd


def unexpected_in(log: ProxyLog) -> Counter[str]:
    """Ends of calls in the proxy's log that no client has asked for. What a client ends, it knows of itself."""
    wanted = {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
    found: Counter[str] = Counter()
    for (method, status, origin), count in log.calls.items():
        if status not in wanted and origin != "downstream":
            found[f"{method}: {status} from {origin}"] += count
    for event, count in log.events.items():
        if event in {"refused", "handler_error", "accept_error", "not JSON"}:
            found[f"the log's event {event}"] += count
    return found


def soak(seconds: float, engine: str | None) -> tuple[list[Row], ProxyLog, list[Sample]]:
    """Run everything for that long."""
    log, samples = ProxyLog(), list[Sample]()
    with proxy_before(engine, log) as (proxy, with_etcd):
        start = time.monotonic()
        clients: list[Grpcio | H2load | EtcdUser] = [Grpcio(proxy.target, seconds)]
        try:
            if shutil.which("h2load"):
                clients.append(H2load(proxy.target, seconds))
            else:
                print("h2load is left out: it is not installed (Debian: nghttp2-client)")
            if with_etcd:
                clients.append(EtcdUser(proxy.target, seconds))
            else:
                print("etcd is left out: it is not installed (Debian: etcd-server, etcd-client)")
            progress = Progress(seconds, pause=PROGRESS_SECONDS)
            every = min(60.0, seconds / SAMPLES_AT_LEAST)
            before = 0
            while (passed := time.monotonic() - start) < seconds:
                time.sleep(1.0)
                proxy.check()
                if passed >= every * (len(samples) + 1):
                    samples.append(sample(proxy.pid, log, passed))
                total = log.calls.total()
                progress.show(
                    passed,
                    f"{total} calls, {total - before}/s, {len(log.closed)} connections closed, "
                    f"{proc.memory(proxy.pid).now_mib:.0f} MB",
                )
                before = total
            progress.end()
            rows = [row for client in clients for row in client.finish()]
            samples.append(sample(proxy.pid, log, time.monotonic() - start))
        finally:
            for client in clients:
                client.stop()
    return rows, log, samples


def report(seconds: float, rows: list[Row], log: ProxyLog, samples: list[Sample]) -> bool:
    """Print the tables; whether all is well."""
    print(f"{'client':20}{'calls':>12}{'per s':>9}{'unexpected':>12}{'connections lost':>18}")
    for row in rows:
        print(
            f"{row.client:20}{row.calls:12}{row.calls / seconds:9.1f}{row.unexpected.total():12}"
            f"{row.connections_lost:18}"
        )
    in_log = unexpected_in(log)
    total = log.calls.total()
    print(f"{'log of the proxy':20}{total:12}{total / seconds:9.1f}{in_log.total():12}{len(log.closed):18}")
    print(f"\n{'minutes':>8}{'calls':>12}{'memory, MB':>12}{'open files':>12}")
    for each in samples:
        print(f"{each.seconds / 60:8.1f}{each.calls:12}{each.memory_mb:12.1f}{each.files:12}")
    print(f"memory after the first of these: {slope(samples):+.2f} MB/min\n")
    for row in rows:
        for outcome, count in row.unexpected.most_common(10):
            if count:
                print(f"{row.client}: {count} × {outcome}")
    for outcome, count in in_log.most_common(10):
        print(f"log of the proxy: {count} × {outcome}")
    for line in log.closed[:10]:
        print(f"closed: {line}")
    if log.events:
        print(
            "other lines of the log:", ", ".join(f"{count} × {event}" for event, count in log.events.items())
        )
    lost = len(log.closed) + sum(row.connections_lost for row in rows)
    wrong = in_log.total() + sum(row.unexpected.total() for row in rows)
    print(f"{lost} connections lost, {wrong} unexpected ends: {'ok' if not lost and not wrong else 'FAILED'}")
    return not lost and not wrong


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="a long run of honest clients at full load")
    parser.add_argument("--minutes", type=float, default=25.0, help="default: 25")
    parser.add_argument("--engine", choices=["h2", "relay"], help="handed on to the proxy")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures there, as JSON")
    given = parser.parse_args()
    seconds = given.minutes * 60
    try:
        rows, log, samples = soak(seconds, given.engine)
    except Trouble as error:
        print(error)
        return 1
    good = report(seconds, rows, log, samples)
    if given.out is not None:
        calls = {" ".join(key): count for key, count in sorted(log.calls.items())}
        figures = {
            "minutes": given.minutes,
            "good": good,
            "clients": [vars(row) for row in rows],
            "calls": calls,
            "events": log.events,
            "closed": log.closed,
            "samples": [vars(each) for each in samples],
            "memory_mb_per_minute": slope(samples),
        }
        given.out.write_text(json.dumps(figures, indent=1, sort_keys=True))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
