"""The load: caller processes (callers.py), and what they have told of their calls so far."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from interop.shared.processes import Trouble

END_SECONDS = 30.0


@dataclass(frozen=True)
class Call:
    """A call that has ended; times are on the monotonic clock."""

    caller: str
    started: float
    ended: float
    status: str
    details: str

    @property
    def ok(self) -> bool:
        """Whether it ended as it has to."""
        return self.status == "OK"

    @property
    def is_stream(self) -> bool:
        """Whether it is one of the long ones."""
        return self.caller.startswith("stream")


@dataclass(frozen=True)
class Crowd:
    """How many call, and how."""

    unary: int
    streams: int
    processes: int
    pause_s: float
    retries: bool

    @property
    def names(self) -> list[str]:
        """Of all callers, as callers.py has them."""
        return [
            f"{kind}-{process}-{number}"
            for process in range(self.processes)
            for kind, many in (
                ("unary", self._share(self.unary, process)),
                ("stream", self._share(self.streams, process)),
            )
            for number in range(many)
        ]

    def options(self, process: int) -> list[str]:
        """Of the process with this number."""
        options = [
            f"--number={process}",
            f"--unary={self._share(self.unary, process)}",
            f"--streams={self._share(self.streams, process)}",
            f"--pause={self.pause_s}",
        ]
        return options if self.retries else [*options, "--no-retries"]

    def _share(self, many: int, process: int) -> int:
        return len(range(process, many, self.processes))


class Load:
    """Running caller processes. Their lines are read in threads."""

    def __init__(self, crowd: Crowd, target: str, options: Sequence[str] = ()) -> None:
        self.calls: list[Call] = []
        """As they are told of: of one caller in their order."""
        self._noise: list[str] = []
        command = [sys.executable, "-m", "interop.promises.lifecycle.callers", f"--target={target}", *options]
        self._processes = [
            subprocess.Popen(
                [*command, *crowd.options(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(crowd.processes)
        ]
        self._readers = [
            threading.Thread(target=self._read, args=[process], daemon=True) for process in self._processes
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                caller, started, ended, status, details = line.split(" ", 4)
                self.calls.append(Call(caller, float(started), float(ended), status, json.loads(details)))
            except ValueError:
                self._noise.append(line)

    def check(self) -> None:
        """Raises `Trouble` if one of the processes is gone."""
        for process in self._processes:
            if process.poll() is not None:
                raise Trouble(
                    f"callers ended with exit code {process.returncode}\n{''.join(self._noise[-30:])}"
                )

    def finish(self) -> None:
        """Have all make their last call, and wait until it is told. Raises `Trouble`."""
        self.check()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        by = time.monotonic() + END_SECONDS
        for process, reader in zip(self._processes, self._readers, strict=True):
            try:
                process.wait(max(0.0, by - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Trouble(f"callers had not made their last call after {END_SECONDS:.0f} s") from None
            reader.join()
        if self._noise:
            raise Trouble("callers have printed:\n" + "".join(self._noise[-30:]))

    def kill(self) -> None:
        """End what is left of them."""
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def calling(crowd: Crowd, target: str, options: Sequence[str] = ()) -> Iterator[Load]:
    """The load, from its first call to its last."""
    load = Load(crowd, target, options)
    try:
        yield load
        load.finish()
    finally:
        load.kill()
