"""Child processes: started and ended with a context, waited for until they listen, and heard when they fail.

It knows nothing of what the children are: their commands and what is measured of them are the callers' matter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from interop.shared.ports import accepts

START_SECONDS = 20.0
POLL_SECONDS = 0.02
LISTENING = re.compile(r"listening on (\S+:\d+)")
CANNOT = re.compile(r"cannot (\w+): (.*)")


class Trouble(Exception):
    """Something could not be run or measured; the text says why."""


class Process:
    """A child: started on entering the context, ended by SIGTERM on leaving it, killed if it does not obey.

    Entering takes until it listens on `port`, if it has one: up to `START_SECONDS`. Raises `Trouble` if the child does
    not start, or does not end when told to. Output that is given no other place is kept for messages of errors.
    """

    stop_seconds = 20.0
    tail_lines = 30

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int | None = None,
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        own_session: bool = False,
    ) -> None:
        self.name = name
        self.port = port
        self._command = list(command)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # it lasts as long as this object
        self._stdin = stdin
        self._stdout = self._output if stdout is None else stdout
        self._stderr = self._output if stderr is None else stderr
        self._own_session = own_session

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                self._command, stdin=self._stdin, stdout=self._stdout, stderr=self._stderr, text=True,
                start_new_session=self._own_session,
            )  # fmt: skip
        except OSError as error:
            raise Trouble(f"{self.name} did not start: {error}") from error
        try:
            self._started()
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._end() and error is None:
            raise Trouble(f"{self.name} did not end within {self.stop_seconds:.0f} s of SIGTERM")

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

    def check(self) -> None:
        """Raise `Trouble` if it has ended."""
        if (code := self._process.poll()) is not None:
            raise Trouble(f"{self.name} ended with exit code {code}\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of its output, indented."""
        lines = self._output_text().splitlines()[-self.tail_lines :]
        return "\n".join(f"    {line}" for line in lines) or "    it printed nothing"

    def _started(self) -> None:
        """What is to be done as soon as there is a process."""

    def _is_ready(self) -> bool:
        return self.port is None or accepts(self.port)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise Trouble(f"{self.name} did not listen within {START_SECONDS:.0f} s\n{self.tail()}")
            time.sleep(POLL_SECONDS)

    def _output_text(self) -> str:
        # The child shares the file offset, so it is not to be moved: read by position.
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

    def _end(self) -> bool:
        """End the process; False if it had to be killed."""
        if self.ended:
            return True
        self._process.terminate()
        try:
            self._process.wait(self.stop_seconds)
            return True
        except subprocess.TimeoutExpired:
            self.kill()
            return False


class Listener(Process):
    """A server that says on its standard output where it listens: `listening on HOST:PORT`, which becomes `target`.

    A program that does not say so is given the port it was told to use as `port`. Lines like `cannot CASE: REASON` fill
    `cannot`. What else it prints there goes to `on_line`, and its standard error, if that is not only kept for messages
    of errors, to `on_error_line`; both run in threads of their own.
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
        super().__init__(
            name,
            command,
            port,
            stdout=subprocess.PIPE,
            stderr=None if on_error_line is None else subprocess.PIPE,
        )
        self.target = "" if port is None else f"127.0.0.1:{port}"
        self.cannot: dict[str, str] = {}
        self._said_where = threading.Event()
        self._tracebacks = 0
        self._on_line = on_line
        self._on_error_line = on_error_line
        self._last_error_lines = deque[str](maxlen=self.tail_lines)

    def check_tracebacks(self) -> None:
        """Raise `Trouble` if it has ended, or has printed a traceback since the last check."""
        self.check()
        count = self._output_text().count("Traceback (most recent call last)")
        fresh, self._tracebacks = count - self._tracebacks, count
        if fresh:
            raise Trouble(f"{self.name} printed {fresh} tracebacks\n{self.tail()}")

    def _started(self) -> None:
        threading.Thread(target=self._read_stdout, daemon=True).start()
        if self._on_error_line is not None:
            threading.Thread(target=self._read_stderr, daemon=True).start()

    def _is_ready(self) -> bool:
        return self._said_where.is_set() or (self.port is not None and accepts(self.port))

    def _output_text(self) -> str:
        if self._on_error_line is not None:
            return "".join(self._last_error_lines.copy())
        return super()._output_text()

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := CANNOT.match(line):
                self.cannot[found[1]] = found[2]
            elif not self._said_where.is_set() and (found := LISTENING.search(line)):
                self.target = found[1]
                self._said_where.set()
            elif self._on_line is not None:
                self._on_line(line)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        assert self._on_error_line is not None
        for line in self._process.stderr:
            self._last_error_lines.append(line)
            self._on_error_line(line)


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


def proxy_command(
    *options: str, engine: str | None = None, python: str = sys.executable, port: int = 0
) -> list[str]:
    """The command line of this project's proxy, on a loopback port; 0: on a free one, which it tells."""
    command = [python, "-m", "rawgrpc_proxy", "serve", f"--listen=127.0.0.1:{port}", *options]
    return command if engine is None else [*command, f"--engine={engine}"]
