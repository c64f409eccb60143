"""The processes of a row: backends, callers, and the proxy between them with its settings, its log and its figures."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from interop.faults.row import Site
from interop.shared import proc
from interop.shared.processes import Listener, Trouble
from interop.shared.running import running

POLL_SECONDS = 0.01
READY_SECONDS = 20.0
#: How long callers are given to end their last calls.
END_SECONDS = 60.0
_KEPT_LINES = 500
_ADMIN = "admin.sock"


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for it; False if it is not so after that time."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110  # threads that read from processes make it true
            await trio.sleep(POLL_SECONDS)
    return condition()


# -------------------------------------------------------------------------------------------------------- the proxy


@dataclass(frozen=True)
class Logged:
    """A call, as the proxy's log tells of it; its end is on the monotonic clock, when the line was read."""

    upstream: str
    status: str
    origin: str
    detail: str
    ended: float
    seconds: float
    began: float
    """Since 1970, as the log has it, to a millisecond."""

    @property
    def over(self) -> float:
        """When it was, in the same way; the line is read later."""
        return self.began + self.seconds


class _AdminConnection(http.client.HTTPConnection):
    """To an admin listener at a Unix socket, which network namespaces do not keep apart."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Proxy:
    """A running `rawgrpc-proxy serve --config FILE`, with an admin listener."""

    def __init__(self, settings: str, folder: Path, prefix: Sequence[str] = ()) -> None:
        self.calls: list[Logged] = []
        self.said: deque[str] = deque(maxlen=_KEPT_LINES)
        """What the log has told beside calls that ended well."""
        self.file = folder / "proxy.toml"
        self.file.write_text(settings)
        command = [*prefix, sys.executable, "-m", "rawgrpc_proxy", "serve", f"--config={self.file}"]
        self.process = Listener("the proxy", command, on_error_line=self._read)

    @property
    def target(self) -> str:
        """Where it listens."""
        return self.process.target

    def _read(self, line: str) -> None:
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if told.get("event") == "call":
                seconds = told["duration_ms"] / 1e3
                call = Logged(
                    told["upstream"] or "", told["status"], told["origin"], told["detail"] or "",
                    time.monotonic(), seconds, told["time"] - seconds,
                )  # fmt: skip
                self.calls.append(call)
                if told["status"] == "OK":
                    return
        self.said.append(line.rstrip())

    async def ask(self, path: str) -> Any:
        """What the admin listener answers."""
        return await trio.to_thread.run_sync(self._ask, path)

    def _ask(self, path: str) -> Any:
        with contextlib.closing(_AdminConnection(self.file.with_name(_ADMIN))) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != http.HTTPStatus.OK:
                raise Trouble(f"the admin listener answered {answer.status} to {path}: {text}")
            return json.loads(text) if text.startswith("{") else text

    async def connections(self, side: str) -> list[dict[str, Any]]:
        """Its connections on one side, `downstream` or `upstream`."""
        everything = (await self.ask("/connections"))["connections"]
        return [each for each in everything if each["side"] == side]

    async def open_calls(self) -> int:
        """How many calls are open on it."""
        return int((await self.ask("/calls"))["open"])

    async def tasks(self) -> int:
        """How many tasks its workers have."""
        lines = str(await self.ask("/metrics")).splitlines()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.startswith("rawgrpc_proxy_worker_tasks{")
        )

    async def held_places(self) -> int:
        """Calls that its connections to backends carry, or that wait for one."""
        clusters = (await self.ask("/clusters"))["clusters"]
        endpoints = [endpoint for cluster in clusters for endpoint in cluster["endpoints"]]
        return sum(endpoint["calls"] + endpoint["waiting"] for endpoint in endpoints)

    async def quiet(self, seconds: float = 5.0) -> bool:
        """Whether no call is open and no place taken, at the latest after this time."""
        with trio.move_on_after(seconds):
            while await self.open_calls() or await self.held_places():  # noqa: ASYNC110  # another process is asked
                await trio.sleep(0.05)
            return True
        return False

    async def worker(self) -> int:
        """The process id of its worker; it has one."""
        state = await trio.to_thread.run_sync(self._state)
        return int(state["workers"][0]["pid"])

    def _state(self) -> dict[str, Any]:
        with contextlib.closing(_AdminConnection(self.file.with_name(_ADMIN))) as connection:
            connection.request("GET", "/events")
            answer = connection.getresponse()
            while True:
                line = answer.readline()
                if line.startswith(b"data: "):
                    state: dict[str, Any] = json.loads(line[6:])
                    return state
                if not line:
                    raise Trouble("the admin listener told of no state")

    def workers(self) -> list[int]:
        """Process ids of the supervisor and all that come from it."""
        return proc.with_descendants(self.process.pid)


@dataclass(frozen=True)
class Settings:
    """A settings file. Texts are TOML: `cluster` for the one cluster, `pool` and `http2` beside it, `route`."""

    endpoints: Sequence[str] = ()
    cluster: str = ""
    route: str = ""
    pool: str = ""
    http2: str = ""
    top: str = ""
    first: str = ""
    """Clusters and routes before that one."""
    log: str = 'format = "json"'
    listen: str = "127.0.0.1:0"

    def text(self, site: Site, admin: str) -> str:
        """The file."""
        engine = "" if site.engine is None else f'engine = "{site.engine}"\n'
        endpoints = f"endpoints = {json.dumps(list(self.endpoints))}\n" if self.endpoints else ""
        return (
            f'grace = 5\n{self.top}\nadmin = {{ address = "{admin}" }}\n'
            f'log = {{ {self.log}, fields = ["upstream", "status", "origin", "detail", "duration_ms"] }}\n'
            f"[pool]\n{self.pool}\n[http2]\n{engine}{self.http2}\n"
            f'[[listeners]]\naddress = "{self.listen}"\n'
            f"{self.first}[clusters.backend]\n{endpoints}{self.cluster}\n"
            f'[[routes]]\ncluster = "backend"\n{self.route}\n'
        )


@asynccontextmanager
async def proxying(site: Site, settings: Settings, prefix: Sequence[str] = ()) -> AsyncIterator[Proxy]:
    """The proxy, from its start to its end; `prefix` stands before its command."""
    with tempfile.TemporaryDirectory() as made:
        proxy = Proxy(settings.text(site, f"unix:{made}/{_ADMIN}"), Path(made), prefix)
        async with running(proxy.process):
            yield proxy
            proxy.process.check()
            tracebacks = [line for line in proxy.said if "Traceback" in line]
            if tracebacks:
                raise Trouble("the proxy has logged a traceback\n" + "\n".join(proxy.said))


# -------------------------------------------------------------------------------------------------------- backends


class Backend(Listener):
    """A backend process, at a port that it keeps when it is started anew."""

    def __init__(
        self, name: str = "backend", port: int = 0, host: str = "127.0.0.1", prefix: Sequence[str] = ()
    ) -> None:
        self.lines: list[str] = []
        command = [
            *prefix, sys.executable, "-m", "interop.faults.backend",
            f"--port={port}", f"--name={name}", f"--host={host}",
        ]  # fmt: skip
        super().__init__(f"the backend {name}", command, on_line=self.lines.append)
        self.backend_name = name

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def cancelled(self) -> dict[str, float]:
        """When it has heard of the end of which `Hold`."""
        found = (line.split() for line in list(self.lines) if line.startswith("cancelled "))
        return {identity: float(at) for _, identity, at in found}


def start_again(backend: Backend) -> Backend:
    """A backend of the same name, at the same port."""
    return Backend(backend.backend_name, int(backend.target.rpartition(":")[2]))


async def start(listener: Listener) -> None:
    """Start a process that is ended by `stop`."""
    await trio.to_thread.run_sync(listener.__enter__)


async def stop(listener: Listener) -> None:
    """End it in good order; one that was killed has ended."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(listener.__exit__, None, None, None)


@asynccontextmanager
async def backends(*names: str) -> AsyncIterator[list[Backend]]:
    """Backends, in a list whose items a row may kill, and replace."""
    every = [Backend(name) for name in names]
    started: list[Backend] = []
    try:
        for backend in every:
            await start(backend)
            started.append(backend)
        yield every
    finally:
        for backend in started if len(started) < len(every) else every:
            with contextlib.suppress(ProcessLookupError):
                if not backend.ended:
                    backend.signal(signal.SIGCONT)
            await stop(backend)


# --------------------------------------------------------------------------------------------------------- callers


@dataclass(frozen=True)
class Failure:
    """A call that has not ended with OK."""

    status: str
    details: str
    started: float
    ended: float


@dataclass
class Load:
    """A process of callers, and what came of its calls. The sums are there when it has finished."""

    failures: list[Failure] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    p50_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0
    longest_gap_s: float = 0.0

    @property
    def ok(self) -> int:
        """Calls that have ended well."""
        return self.statuses["OK"]

    @property
    def total(self) -> int:
        """All calls."""
        return self.statuses.total()

    def why(self) -> str:
        """The failures by status and text, the most frequent."""
        counts = Counter(f"{each.status}: {each.details[:100]}" for each in self.failures)
        return ", ".join(f"{count} × {text}" for text, count in counts.most_common(3))


class Callers:
    """The process of caller.py."""

    def __init__(self, target: str, prefix: Sequence[str] = (), **options: Any) -> None:
        self.load = Load()
        self.ready = False
        self._noise: list[str] = []
        self._finished = False
        command = [*prefix, sys.executable, "-m", "interop.faults.caller", f"--target={target}"]
        for name, value in options.items():
            option = f"--{name.replace('_', '-')}"
            command.append(option if value is True else f"{option}={value}")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("{"):
                self._noise.append(line)
                continue
            told = json.loads(line)
            if "sum" in told:
                for name, value in told["sum"].items():
                    setattr(self.load, name, Counter(value) if isinstance(value, dict) else value)
                self._finished = True
            elif "ready" in told:
                self.ready = True
            else:
                self.load.failures.append(Failure(**told))

    async def wait_until_ready(self) -> None:
        """Wait until each of them has had an answer. Raises `Trouble`."""
        if not await until(lambda: self.ready, READY_SECONDS):
            raise Trouble(f"the callers were not ready: {''.join(self._noise[-5:])} {self.load.why()}")

    async def finish(self) -> Load:
        """Have them make their last calls; what came of all. Raises `Trouble`."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not await until(lambda: self._finished, END_SECONDS):
            raise Trouble(f"the callers' last calls hang: {''.join(self._noise[-5:])} {self.load.why()}")
        return self.load

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@asynccontextmanager
async def calling(target: str, prefix: Sequence[str] = (), **options: Any) -> AsyncIterator[Callers]:
    """Callers, from the first answer of each."""
    callers = Callers(target, prefix, **options)
    try:
        await callers.wait_until_ready()
        yield callers
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(callers.kill)


@asynccontextmanager
async def holding(
    target: str, calls: int, prefix: Sequence[str] = ()
) -> AsyncIterator[subprocess.Popen[str]]:
    """A process that holds so many streams open; it is killed at the end, if it is still there."""
    command = [
        *prefix,
        sys.executable,
        "-m",
        "interop.faults.holder",
        f"--target={target}",
        f"--calls={calls}",
    ]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220  # short
    assert holder.stdout is not None
    try:
        with trio.fail_after(READY_SECONDS):
            await trio.to_thread.run_sync(holder.stdout.readline, abandon_on_cancel=True)
        yield holder
    except trio.TooSlowError:
        raise Trouble(f"{calls} streams could not be opened within {READY_SECONDS:.0f} s") from None
    finally:
        holder.kill()
        holder.wait()  # as short
        holder.stdout.close()


# ------------------------------------------------------------------------------------------------------- some calls


@dataclass(frozen=True)
class Result:
    """What came of a call of script.py; times are on the monotonic clock."""

    status: str
    details: str
    started: float
    ended: float
    messages: int
    """Of the answer."""
    size: int
    """Of all of them together."""
    digest: str
    """Their SHA-256."""
    cancelled: float | None
    """When it was given up, if it was."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.started


async def play(
    target: str,
    calls: Sequence[Mapping[str, Any]],
    *,
    at_a_time: int = 1000,
    prefix: Sequence[str] = (),
    within_s: float = 90.0,
) -> list[Result]:
    """Make these calls in a process of their own, by script.py, and answer what came of each. Raises `Trouble`."""
    command = [*prefix, sys.executable, "-m", "interop.faults.script", f"--target={target}"]
    command.append(f"--at-a-time={at_a_time}")
    try:
        with trio.fail_after(within_s):
            done = await trio.run_process(
                command,
                stdin=json.dumps(list(calls)).encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    except trio.TooSlowError:
        raise Trouble(f"calls hung for {within_s:.0f} s") from None
    if done.returncode:
        raise Trouble(f"the calls could not be made: {done.stderr.decode()[-800:]}")
    return [Result(**each) for each in json.loads(done.stdout)]
