"""How far something long is: a bar on a terminal, lines elsewhere. All of it goes to standard error."""

from __future__ import annotations

import sys
import time

WIDTH = 30


class Progress:
    """Out of `total`, in whatever unit: steps or seconds.

    Where there is no terminal, each change of what is done is a line, but for those within `pause` seconds of the last.
    """

    def __init__(self, total: float, *, pause: float = 0.0) -> None:
        self._total = max(total, 1e-9)
        self._pause = pause
        self._start = time.monotonic()
        self._line_at = self._start - pause
        self._done = -1.0

    def show(self, done: float, text: str) -> None:
        """So much is done; `text` says what goes on, or how it goes."""
        now = time.monotonic()
        share = min(done / self._total, 1.0)
        minutes = (now - self._start) / 60
        left = f", about {minutes / share * (1 - share):.1f} left" if 0 < share < 1 else ""
        line = f"{share:4.0%} {minutes:.1f} min{left}  {text}"
        if sys.stderr.isatty():
            full = int(WIDTH * share)
            print(f"\r\033[K{'█' * full}{'░' * (WIDTH - full)} {line}", end="", file=sys.stderr, flush=True)
        elif done != self._done and now - self._line_at >= self._pause:
            self._line_at = now
            print(line, file=sys.stderr, flush=True)
        self._done = done

    def end(self) -> None:
        """Take the bar away."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
