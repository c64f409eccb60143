"""Child processes of the suite: peers and proxies that tell where they listen."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 20.0
STOP_SECONDS = 20.0
TAIL_LINES = 30
LISTENING = re.compile(r"listening on (\S+:\d+)")
CANNOT = re.compile(r"cannot (\w+): (.*)")


class ProcessError(Exception):
    """A child did not start, died, or reported trouble."""


class Listener:
    """A server process: started on entering the context, ended by SIGTERM on leaving it.

    It listens where its standard output says `listening on HOST:PORT`; a program that does not say so is given
    the port it was told to use as `port`. What else it prints there goes to `on_line`, and its standard error, where
    it is not only kept for messages of errors, to `on_error_line`; both run in threads of their own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int | None = None,
        *,
        on_line: Callable[[str], None] | None = None,
        on_error_line: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.target = "" if port is None else f"127.0.0.1:{port}"
        self.cannot: dict[str, str] = {}
        self._command = list(command)
        self._port = port
        self._ready = threading.Event()
        self._tracebacks = 0
        self._on_line = on_line
        self._on_error_line = on_error_line
        self._last_error_lines = deque[str](maxlen=TAIL_LINES)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # it lasts as long as this object

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr if self._on_error_line is None else subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ProcessError(f"{self.name} did not start: {error}") from error
        threading.Thread(target=self._read_stdout, daemon=True).start()
        if self._on_error_line is not None:
            threading.Thread(target=self._read_stderr, daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._ready.wait(0.05) or (self._port is not None and accepts(self._port)):
                return self
        self._end()
        raise ProcessError(f"{self.name} did not start\n{self.stderr_tail()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._end() and error is None:
            raise ProcessError(f"{self.name} did not end within {STOP_SECONDS:.0f} s of SIGTERM")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once, as a crash would; leaving the context is then all right."""
        self._process.kill()
        self._process.wait()

    def check(self, *, tracebacks: bool) -> None:
        """Raise if the process has died or, where that matters, printed a traceback since the last check."""
        code = self._process.poll()
        if code is not None:
            raise ProcessError(f"{self.name} died with exit code {code}\n{self.stderr_tail()}")
        count = self._stderr_text().count("Traceback (most recent call last)")
        fresh, self._tracebacks = count - self._tracebacks, count
        if tracebacks and fresh:
            raise ProcessError(f"{self.name} printed {fresh} tracebacks\n{self.stderr_tail()}")

    def stderr_tail(self) -> str:
        """The last lines of its standard error, indented."""
        lines = self._stderr_text().splitlines()[-TAIL_LINES:]
        return "\n".join(f"    {self.name}: {line}" for line in lines)

    def _stderr_text(self) -> str:
        if self._on_error_line is not None:
            return "".join(self._last_error_lines.copy())
        # The child shares the file offset, so it is not to be moved: read by position.
        return os.pread(self._stderr.fileno(), 1 << 24, 0).decode(errors="replace")

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := CANNOT.match(line):
                self.cannot[found[1]] = found[2]
            elif not self._ready.is_set() and (found := LISTENING.search(line)):
                self.target = found[1]
                self._ready.set()
            elif self._on_line is not None:
                self._on_line(line)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        assert self._on_error_line is not None
        for line in self._process.stderr:
            self._last_error_lines.append(line)
            self._on_error_line(line)

    def _end(self) -> bool:
        """End the process; False if it had to be killed."""
        if self._process.poll() is not None:
            return True
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False


class Lines:
    """A process whose output is read line by line, each with a time limit; or as it comes, by `on_line` in a thread."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self._on_line = on_line
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment,
        )  # fmt: skip
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def take(self, count: int, seconds: float) -> list[str]:
        """All lines so far, as soon as there are `count` or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._lines) >= count, seconds)
            return list(self._lines)

    def wait(self, seconds: float) -> int | None:
        """The exit code, as soon as the process ends by itself; None if it has not after so long."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self._on_line is not None:
                self._on_line(line)
                continue
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()


def proxy_command(*options: str, engine: str | None = None) -> list[str]:
    """The command line of the proxy on a free port."""
    command = [sys.executable, "-m", "rawgrpc_proxy", "serve", "--listen=127.0.0.1:0", *options]
    return command if engine is None else [*command, f"--engine={engine}"]


def memory_mb(pid: int, name: str = "VmRSS") -> float:
    """Memory of a process: VmRSS is what it has now, VmHWM the most it has had."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


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
