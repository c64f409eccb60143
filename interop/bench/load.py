"""The load: h2load calls, and every call has to be answered with as many bytes as the file has that it asked for."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from interop.bench.backend import SERVICE, UNARY, Files
from interop.bench.child import Cpus, on_cpus
from interop.shared.processes import Trouble

PERCENTILES = (50, 99)
LONGEST_SECONDS = 120.0

FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s), ([\d.]+) req/s")
SUCCEEDED = re.compile(r"(\d+) succeeded, (\d+) failed")
STATUSES = re.compile(r"status codes: (\d+) 2xx")
DATA_BYTES = re.compile(r"\((\d+)\) data")
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Outcome:
    """What a load that went well came to."""

    calls: int
    seconds: float
    rate: float


class Load:
    """Calls through a port, by h2load."""

    def __init__(self, program: str, files: Files, cpus: Cpus) -> None:
        self._program = program
        self._cpus = cpus
        self.files = files

    def run(
        self, port: int, *, calls: int, connections: int, streams: int,
        answer: str = UNARY, body: str = UNARY, log: Path | None = None, tls: bool = False,
    ) -> Outcome:  # fmt: skip
        """Make the calls, `streams` at a time on each connection. Raises `Trouble` unless all are answered right."""
        command = [
            self._program, f"--requests={calls}", f"--clients={connections}", f"--max-concurrent-streams={streams}",
            f"--data={self.files.path(body)}", "--header=content-type: application/grpc", "--header=te: trailers",
            "--connection-inactivity-timeout=30", *([f"--log-file={log}"] if log else []),
            f"http{'s' * tls}://127.0.0.1:{port}/{SERVICE}/{answer}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                on_cpus(self._cpus, command), capture_output=True, text=True, timeout=LONGEST_SECONDS,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Trouble(f"the load did not end within {LONGEST_SECONDS:.0f} s") from error
        return self._checked(done.stdout + done.stderr, calls, answer)

    def latencies(
        self, port: int, *, calls: int, connections: int, streams: int, tls: bool = False
    ) -> tuple[float, ...]:
        """The time that a call takes, in µs, at each of the `PERCENTILES`."""
        with tempfile.NamedTemporaryFile() as log:
            self.run(port, calls=calls, connections=connections, streams=streams, log=Path(log.name), tls=tls)
            times = sorted(int(line.rsplit(b"\t", 1)[1]) for line in log)
        if len(times) != calls:
            raise Trouble(f"the log of {calls} calls tells of {len(times)}")
        return tuple(
            float(times[min(len(times) * percent // 100, len(times) - 1)]) for percent in PERCENTILES
        )

    def _checked(self, text: str, calls: int, answer: str) -> Outcome:
        finished, succeeded, statuses, data = (
            pattern.search(text) for pattern in (FINISHED, SUCCEEDED, STATUSES, DATA_BYTES)
        )
        if not (finished and succeeded and statuses and data):
            raise Trouble(f"the load did not run: {text.strip()[-300:]}")
        if int(succeeded[1]) != calls or int(statuses[1]) != calls:
            raise Trouble(f"of {calls} calls {succeeded[1]} succeeded, {statuses[1]} with a status 2xx")
        wanted = calls * self.files.size(answer)
        if int(data[1]) != wanted:
            raise Trouble(
                f"{calls} answers came to {data[1]} bytes instead of {wanted}: "
                f"{calls - int(data[1]) / self.files.size(answer):g} of them are missing, as if those calls had failed"
            )
        seconds = float(finished[1]) * UNITS[finished[2]]
        return Outcome(calls, seconds, calls / max(seconds, 1e-6))
