"""The backend and the load: nghttpd answers with files, h2load calls, the holder keeps calls open.

They share one CPU, and the proxy has the other. Each load is checked: every call has to be answered, with as many bytes
as the file has that it asked for.
"""

from __future__ import annotations

import json
import random
import re
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events

from interop.bench.child import Child, Cpus, Trouble, free_port, on_cpus

HERE = Path(__file__).resolve().parent
SERVICE = "bench.Bench"
UNARY, CHECK, BULK, WARM_BULK = "Unary.grpc", "Check.grpc", "Bulk.grpc", "WarmBulk.grpc"
MESSAGE_BYTES = 32
BULK_MESSAGE_BYTES = 64 * 1024
CHECK_BYTES = 300_000
WARM_SHARE = 8
MIB = 1024 * 1024
PERCENTILES = (50, 99)
LONGEST_SECONDS = 120.0
#: What to think of when a proxy was slow.
PATIENCE = "; the backend waits 60 s for the next frame of a request"

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


class Files:
    """What the backend answers and what the calls carry: gRPC messages of which nothing is compressed."""

    def __init__(self, folder: Path, bulk_bytes: int) -> None:
        self.folder = folder
        self.service = folder / SERVICE
        self.service.mkdir()
        self.types = folder / "mime.types"
        self.types.write_text("application/grpc grpc\n")
        bulk_message = _message(BULK_MESSAGE_BYTES)
        count = max(bulk_bytes // BULK_MESSAGE_BYTES, WARM_SHARE)
        self._write(UNARY, _message(MESSAGE_BYTES))
        self._write(CHECK, _message(CHECK_BYTES))
        self._write(BULK, bulk_message, count)
        self._write(WARM_BULK, bulk_message, count // WARM_SHARE)

    def path(self, name: str) -> Path:
        return self.service / name

    def size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def _write(self, name: str, message: bytes, count: int = 1) -> None:
        with self.path(name).open("wb") as file:
            for _ in range(count):
                file.write(message)


def _message(size: int) -> bytes:
    return b"\0" + size.to_bytes(4) + random.Random(size).randbytes(size)


class Backend(Child):
    """nghttpd, which answers a call with the file of its path and the status 0."""

    def __init__(self, program: str, files: Files, cpus: Cpus) -> None:
        port = free_port()
        command = [
            program, "--no-tls", "--address=127.0.0.1", f"--htdocs={files.folder}", "--trailer=grpc-status: 0",
            f"--mime-types-file={files.types}", "--max-concurrent-streams=1000000", "--window-bits=30",
            "--connection-window-bits=30", str(port),
        ]  # fmt: skip
        super().__init__("the backend", command, cpus, port)


class Load:
    """Calls through a port, by h2load."""

    def __init__(self, program: str, files: Files, cpus: Cpus) -> None:
        self._program = program
        self._cpus = cpus
        self.files = files

    def run(
        self, port: int, *, calls: int, connections: int, streams: int,
        answer: str = UNARY, body: str = UNARY, log: Path | None = None,
    ) -> Outcome:  # fmt: skip
        """Make the calls, `streams` at a time on each connection. Raises `Trouble` unless all are answered right."""
        command = [
            self._program, f"--requests={calls}", f"--clients={connections}", f"--max-concurrent-streams={streams}",
            f"--data={self.files.path(body)}", "--header=content-type: application/grpc", "--header=te: trailers",
            "--connection-inactivity-timeout=30", *([f"--log-file={log}"] if log else []),
            f"http://127.0.0.1:{port}/{SERVICE}/{answer}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                on_cpus(self._cpus, command), capture_output=True, text=True, timeout=LONGEST_SECONDS,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Trouble(f"the load did not end within {LONGEST_SECONDS:.0f} s") from error
        return self._checked(done.stdout + done.stderr, calls, answer)

    def latencies(self, port: int, *, calls: int, connections: int, streams: int) -> tuple[float, ...]:
        """The time that a call takes, in µs, at each of the `PERCENTILES`."""
        with tempfile.NamedTemporaryFile() as log:
            self.run(port, calls=calls, connections=connections, streams=streams, log=Path(log.name))
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


class Holder:
    """Holds connections and calls open: see holder.py."""

    def __init__(self, port: int, files: Files, cpus: Cpus) -> None:
        command = [sys.executable, str(HERE / "holder.py"), str(port), f"/{SERVICE}/{UNARY}"]
        self._child = _Talker("the holder", [*command, str(files.size(UNARY))], cpus)

    def __enter__(self) -> Self:
        self._child.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._child.__exit__(None, None, None)

    def connect(self, count: int) -> None:
        """Open connections more."""
        self._ask("connect", count)

    def open(self, count: int) -> None:
        """Open calls more, of which only the headers are sent."""
        self._ask("open", count)
        self.check()

    def check(self) -> None:
        """Raise unless all calls are still open."""
        if lost := self._ask("open", 0)["lost"]:
            raise Trouble(f"{lost} of the calls held open ended by themselves{PATIENCE}")

    def finish(self) -> None:
        """End the requests of all calls held, and wait for their answers."""
        answer = self._ask("finish", 0)
        if lost := answer["lost"]:
            raise Trouble(
                f"of {lost + answer['answered']} calls held open {lost} ended by themselves or were answered wrong"
                f"{PATIENCE}"
            )

    def _ask(self, verb: str, count: int) -> dict[str, int]:
        line = self._child.ask(json.dumps({verb: count}))
        if not line:
            raise Trouble(f"the holder gave up on `{verb} {count}`: {self._child.tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Trouble(f"`{verb} {count}` by the holder: {answer['error']}")
        return {name: int(value) for name, value in answer.items()}


class _Talker(Child):
    """A child that answers a line with a line."""

    talks = True

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(LONGEST_SECONDS):
                raise Trouble(f"{self.name} did not answer within {LONGEST_SECONDS:.0f} s")
        return self.process.stdout.readline().decode()


def check_answers(port: int, files: Files) -> None:
    """Make one call each way of the answer being small and large, and compare all that comes back."""
    for name in (UNARY, CHECK):
        headers, body, trailers = exchange(port, f"/{SERVICE}/{name}", files.path(UNARY).read_bytes())
        if headers.get(":status") != "200" or trailers.get("grpc-status") != "0":
            raise Trouble(f"wrong answer: headers {headers}, trailers {trailers}")
        if body != files.path(name).read_bytes():
            raise Trouble(
                f"wrong answer: {len(body)} bytes, and not those of the {files.size(name)} that were sent"
            )


def exchange(port: int, path: str, body: bytes) -> tuple[dict[str, str], bytes, dict[str, str]]:
    """One call on a connection of its own: the headers, the body and the trailers of its answer."""
    session = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    session.initiate_connection()
    request = (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", f"127.0.0.1:{port}"),
        ("content-type", "application/grpc"), ("te", "trailers"),
    )  # fmt: skip
    session.send_headers(1, request)
    session.send_data(1, body, end_stream=True)
    headers: dict[str, str] = {}
    trailers: dict[str, str] = {}
    answer = bytearray()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            link.sendall(session.data_to_send())
            while data := link.recv(65536):
                events = session.receive_data(data)
                for event in events:
                    match event:
                        case h2.events.ResponseReceived():
                            headers = dict(_text(event.headers))
                        case h2.events.TrailersReceived():
                            trailers = dict(_text(event.headers))
                        case h2.events.DataReceived():
                            answer += event.data
                            session.acknowledge_received_data(event.flow_controlled_length, 1)
                        case h2.events.StreamEnded():
                            return headers, bytes(answer), trailers or headers
                        case h2.events.StreamReset():
                            raise Trouble(f"wrong answer: the call was reset with code {event.error_code}")
                        case _:
                            pass
                link.sendall(session.data_to_send())
    except OSError as error:
        raise Trouble(f"no answer: {error}") from error
    raise Trouble("no answer: the connection was closed")


def _text(headers: Sequence[tuple[str | bytes, str | bytes]]) -> list[tuple[str, str]]:
    return [
        (
            name.decode() if isinstance(name, bytes) else name,
            value.decode() if isinstance(value, bytes) else value,
        )
        for name, value in headers
    ]
