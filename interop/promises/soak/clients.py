"""The clients of the soak: what each is told to do, and what came of it."""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Protocol

from interop.peers.catalogue import peer_command
from interop.shared.etcd import COMMAND_SECONDS, Etcdctl
from interop.shared.processes import Lines, Trouble

H2LOAD_CONNECTIONS, H2LOAD_STREAMS = 2, 8
#: On each connection. Few, for most calls are to come from clients that do not always wait for the answer.
H2LOAD_CALLS_PER_SECOND = 100
#: A process of etcdctl takes tens of milliseconds of CPU time, which the others are to have.
ETCDCTL_PAUSE_SECONDS = 0.1
#: How long a client may take to end when its time is over.
PATIENCE_SECONDS = 60.0
H2LOAD_RESULT = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")


@dataclass
class Row:
    """What came of one client's calls."""

    client: str
    calls: int
    cancelled: int = 0
    expired: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    #: As far as the client can tell.
    connections_lost: int = 0


class Client(Protocol):
    """A client that has been started, for a given time."""

    def finish(self) -> Row:
        """Wait for its end: what came of it. Raises `Trouble` if it did not end well."""
        ...

    def stop(self) -> None:
        """End it, whether its time is over or not."""
        ...


class Impatient:
    """One of the peers as a client that cancels a fifth of its calls, and whose deadline passes in another fifth."""

    def __init__(self, peer: str, target: str, services: list[str], seconds: float) -> None:
        self.peer = peer
        options = [f"--target={target}", f"--services={','.join(services)}", f"--seconds={seconds}"]
        self._last = ""
        self._said = deque[str](maxlen=3)
        self._process = Lines([*peer_command(peer, "load"), *options], on_line=self._read)

    def _read(self, line: str) -> None:
        if line.startswith("{"):
            self._last = line
        else:
            self._said.append(line.strip())

    def finish(self) -> Row:
        """Wait for its end."""
        code = self._process.wait(PATIENCE_SECONDS)
        self._process.stop()
        if code != 0 or not self._last:
            raise Trouble(f"{self.peer} ended with exit code {code}: {' / '.join(self._said)}")
        told = json.loads(self._last)
        calls = Counter[str](told["calls"])
        return Row(
            self.peer,
            calls.total(),
            calls["cancelled"],
            calls["expired"],
            Counter(told["unexpected"]),
            told["disconnects"],
        )

    def stop(self) -> None:
        """End it."""
        self._process.stop()


class H2load:
    """h2load, on the same connections all the time, at a steady pace."""

    def __init__(self, target: str, service: str, seconds: float) -> None:
        self._body = tempfile.NamedTemporaryFile()  # noqa: SIM115  # it lasts as long as this object
        self._body.write(b"\0" + (32).to_bytes(4) + bytes(32))
        self._body.flush()
        command = [
            "h2load", f"--clients={H2LOAD_CONNECTIONS}", f"--max-concurrent-streams={H2LOAD_STREAMS}",
            f"--rps={H2LOAD_CALLS_PER_SECOND}",
            f"--duration={seconds:.0f}", f"--data={self._body.name}", "--header=content-type: application/grpc",
            "--header=te: trailers", f"http://{target}/{service}/Load",
        ]  # fmt: skip
        self._process = Lines(command)

    def finish(self) -> Row:
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
        return row

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

    def finish(self) -> Row:
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
        return self._row

    def stop(self) -> None:
        """End it."""
        self._end = 0.0
        self._watch.stop()
