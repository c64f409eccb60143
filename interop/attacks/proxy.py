"""The proxy as a process that also tells how long its loop was busy with one step of one task at the most.

    python -m interop.attacks.proxy FILE MIB serve ...

The system allows it so much memory, if that is not 0. Behind it the arguments of `rawgrpc-proxy`. On SIGUSR1 it writes
the longest step since the last time into the file, in milliseconds of CPU time.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import trio

from rawgrpc_proxy.command.cli import main


class LongestStep(trio.abc.Instrument):
    """Times every step of every task."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.longest_s = 0.0
        self._started = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._started = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest_s = max(self.longest_s, time.thread_time() - self._started)

    def tell(self, *_signal: object) -> None:
        """Write it down, and begin anew."""
        longest_ms, self.longest_s = 1000 * self.longest_s, 0.0
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{longest_ms:.2f}")
        fresh.rename(self._file)


if __name__ == "__main__":
    longest = LongestStep(Path(sys.argv.pop(1)))
    if memory_bytes := int(sys.argv.pop(1)) * 2**20:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGUSR1, longest.tell)
    trio.run = partial(trio.run, instruments=[longest])  # type: ignore[assignment]
    sys.exit(main())
