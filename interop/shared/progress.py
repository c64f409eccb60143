"""How far a long measurement is."""

from __future__ import annotations

import sys
import time

WIDTH = 30
QUIET_SECONDS = 30.0


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = time.monotonic()
        self._shown = self._start

    def show(self, text: str) -> None:
        """Show how much of the time is over, and a word on how it goes."""
        now = time.monotonic()
        done = min((now - self._start) / self._seconds, 1.0)
        if sys.stderr.isatty():
            bar = "█" * int(WIDTH * done) + "░" * (WIDTH - int(WIDTH * done))
            print(f"\r\033[K{bar} {done:4.0%} {text}", end="", file=sys.stderr, flush=True)
        elif now - self._shown >= QUIET_SECONDS:
            self._shown = now
            print(f"{done:4.0%} {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the bar away."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
