"""Child processes of the benchmark: held to CPUs, accounted with their descendants."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from types import TracebackType

from interop.shared import proc
from interop.shared.processes import Process, Trouble

Cpus = Collection[int]


class Child(Process):
    """A process and its descendants, in a session of their own, on these CPUs.

    Ctrl-C reaches the benchmark alone, which then ends its children. One that is slow to end is killed, and that is no
    trouble: what was to be measured has been.
    """

    stop_seconds = 5.0
    tail_lines = 8

    def __init__(
        self, name: str, command: Sequence[str], cpus: Cpus, port: int | None = None, *, talks: bool = False
    ) -> None:
        """With `talks`, standard input and output are pipes for `ask`."""
        super().__init__(
            name,
            on_cpus(cpus, command),
            port,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else None,
            own_session=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, line: str, seconds: float) -> str:
        """Send a line, and wait so long for the line it answers with. Raises `Trouble` if none comes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Trouble(f"{self.name} gave up on {line}\n{self.tail()}") from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise Trouble(f"{self.name} did not answer {line} within {seconds:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise Trouble(f"{self.name} gave up on {line}\n{self.tail()}")
        return answer

    def pids(self) -> list[int]:
        """Its own pid and those of its descendants."""
        return proc.with_descendants(self.pid)

    def cpu_seconds(self) -> float:
        """CPU time, of the user and of the system, of all its processes so far."""
        return proc.cpu_seconds(self.pids())

    def memory(self) -> proc.Memory:
        """The memory of all its processes."""
        return proc.memory(*self.pids())

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until it has nothing left to do, or the time is over."""
        deadline = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.25)
            now = self.cpu_seconds()
            if now - before <= 1 / proc.TICKS_PER_SECOND:
                return
            before = now

    def _end(self) -> bool:
        pids = self.pids()
        obeyed = super()._end()
        for pid in pids[1:]:
            # What outlives its parent. Its session tells it from a stranger that got the pid by now.
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self.pid:
                    os.kill(pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout, self._output):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return obeyed


def on_cpus(cpus: Cpus, command: Sequence[str]) -> list[str]:
    """The command, held to the CPUs."""
    return ["taskset", "-c", ",".join(map(str, sorted(cpus))), *command]
