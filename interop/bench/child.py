"""Child processes of the benchmark: started on one set of CPUs, accounted with their descendants, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 20.0
STOP_SECONDS = 5.0
TAIL_CHARACTERS = 600
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Cpus = Collection[int]


class Trouble(Exception):
    """Something could not be measured; the text says why."""


@dataclass(frozen=True)
class Memory:
    """Resident memory in KiB: now, and at its highest. Pages shared between processes count in each of them."""

    now_kib: int
    peak_kib: int


class Child:
    """A process and its descendants: started on entering the context, ended on leaving it.

    It has a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends its children.
    """

    talks = False
    """Its standard output is a pipe to be read, not kept for messages of errors."""

    def __init__(self, name: str, command: Sequence[str], cpus: Cpus, port: int = 0) -> None:
        self.name = name
        self.port = port
        """Where it listens; 0 if it does not."""
        self._command = on_cpus(cpus, command)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 closed when the child ends

    def __enter__(self) -> Self:
        try:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stderr=self._output,
                stdout=subprocess.PIPE if self.talks else self._output, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Trouble(f"{self.name} did not start: {error}") from error
        try:
            self._wait_until_it_listens()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def check(self) -> None:
        """Raise if the process is gone."""
        if (code := self.process.poll()) is not None:
            raise Trouble(f"{self.name} ended with exit code {code}: {self.tail()}")

    def tail(self) -> str:
        """The last that it printed, on one line."""
        # The child shares the file offset, so it is not to be moved: read by position.
        text = os.pread(self._output.fileno(), 1 << 20, 0).decode(errors="replace")
        return " | ".join(text[-TAIL_CHARACTERS:].split("\n")).strip(" |") or "it printed nothing"

    def cpu_seconds(self) -> float:
        """CPU time, of the user and of the system, of all its processes so far."""
        fields = (_stat(pid) for pid in self.pids())
        return sum(int(stat[11]) + int(stat[12]) for stat in fields if stat) / TICKS_PER_SECOND

    def bytes_read(self) -> int:
        """What it has read so far, from sockets and files."""
        text = Path(f"/proc/{self.process.pid}/io").read_text()
        return int(text.split("rchar:")[1].split()[0])

    def memory(self) -> Memory:
        """The memory of all its processes."""
        now = peak = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                now += int(status.split("VmRSS:")[1].split()[0])
                peak += int(status.split("VmHWM:")[1].split()[0])
        return Memory(now, peak)

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until it has nothing left to do, or the time is over."""
        deadline = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.25)
            now = self.cpu_seconds()
            if now - before <= 1 / TICKS_PER_SECOND:
                return
            before = now

    def pids(self) -> list[int]:
        """Its own pid and those of its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
                children.setdefault(int(stat[1]), []).append(int(entry.name))
        pids = [self.process.pid]
        for pid in pids:
            pids.extend(children.get(pid, ()))
        return pids

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.port and not accepts(self.port):
            self.check()
            if time.monotonic() > deadline:
                raise Trouble(f"{self.name} did not listen within {START_SECONDS:.0f} s: {self.tail()}")
            time.sleep(0.02)

    def _end(self) -> None:
        pids = self.pids()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids[1:]:
            # What outlives its parent. Its session tells it from a stranger that got the pid by now.
            with contextlib.suppress(OSError):
                if os.getsid(pid) == pids[0]:
                    os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self._output):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def on_cpus(cpus: Cpus, command: Sequence[str]) -> list[str]:
    """The command, held to the CPUs."""
    return ["taskset", "-c", ",".join(map(str, sorted(cpus))), *command]


def accepts(port: int) -> bool:
    """Whether somebody listens on the loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def output_of(*command: str) -> str:
    """What a command that ends at once prints, on either stream."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Trouble(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        raise Trouble(f"{' '.join(command)} failed: {done.stdout.strip()[-TAIL_CHARACTERS:]}")
    return done.stdout.strip()


def _stat(pid: int) -> list[str] | None:
    # The fields after the name, which may itself hold spaces and parentheses; None for a process that is gone.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
