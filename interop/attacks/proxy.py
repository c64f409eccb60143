"""The proxy as a process that also tells how long its loop was busy with one step of one task at the most.

Arguments as of `rawgrpc-proxy`. On SIGUSR1 it writes the longest step since the last time, in milliseconds of CPU time,
into the file that `LONGEST_STEP_FILE` names.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import trio

from rawgrpc_proxy.command.cli import main


class LongestStep(trio.abc.Instrument):
    """Times every step of every task."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._started = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._started = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest_s = max(self.longest_s, time.thread_time() - self._started)

    def tell(self, *_signal: object) -> None:
        """Write it down, and begin anew."""
        longest_ms, self.longest_s = 1000 * self.longest_s, 0.0
        file = Path(os.environ["LONGEST_STEP_FILE"])
        file.with_suffix(".new").write_text(f"{longest_ms:.2f}")
        file.with_suffix(".new").rename(file)


if __name__ == "__main__":
    longest = LongestStep()
    signal.signal(signal.SIGUSR1, longest.tell)
    trio.run = partial(trio.run, instruments=[longest])  # type: ignore[assignment]
    sys.exit(main())
