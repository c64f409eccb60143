"""Child processes of the suite: peers and proxies that tell where they listen."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
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
    the port it was told to use as `port`.
    """

    def __init__(self, name: str, command: Sequence[str], port: int | None = None) -> None:
        self.name = name
        self.target = "" if port is None else f"127.0.0.1:{port}"
        self.cannot: dict[str, str] = {}
        self._command = list(command)
        self._port = port
        self._ready = threading.Event()
        self._tracebacks = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # it lasts as long as this object

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            raise ProcessError(f"{self.name} did not start: {error}") from error
        threading.Thread(target=self._read_stdout, daemon=True).start()
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
    """A process whose standard output is read line by line, each with a time limit."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
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

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()


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
