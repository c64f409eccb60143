"""What a worker does for those who watch it through the admin listener: its part of `GET /tap`.

    "tap"        begin: look at all connections, those that are open and those that come
    "tap_lines"  what has been seen since, as JSON Lines
    "tap_end"    nobody watches any more

The admin process asks for lines again and again (`admin_taps.py`). The invariants: calls wait for none of this; what
waits to be asked for is bounded, and what finds no room is counted where it is missing; who does not ask for a while is
taken for gone.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from rawgrpc_proxy.command.lab.tap_wishes import SIDES, TapWishes
from rawgrpc_proxy.command.lab.worker_findings import FindingLines
from rawgrpc_proxy.command.link import Answers
from rawgrpc_proxy.lab.events import Event
from rawgrpc_proxy.lab.late_views import LateViews
from rawgrpc_proxy.lab.readable import MAX_READABLE_BYTES
from rawgrpc_proxy.lab.redact import Redactor
from rawgrpc_proxy.lab.row_text import json_of
from rawgrpc_proxy.lab.rows import Row, Rows
from rawgrpc_proxy.net.late_taps import current_late_taps

_MOST = 8
"""Who watch a worker. The admin listener allows fewer: some may be gone, and not known to be."""
_MAX_WAITING = 1024 * 1024
"""Characters of lines that nobody has asked for yet."""
_AT_ONCE = 128 * 1024
_PATIENCE_S = 30.0
"""More than a slow reader is waited for by the admin listener."""
_JOIN_FOR_S = 0.005


class WorkerTaps:
    """All who watch one worker."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._watchers: dict[str, _Watcher] = {}

    @property
    def answers(self) -> Answers:
        """What may be asked."""
        return {"tap": self._begin, "tap_lines": self._lines, "tap_end": self._end}

    def _begin(self, asked: dict[str, Any]) -> dict[str, int]:
        """Raises `ConfigError` for wishes that make no sense, and `ValueError` if there are too many already."""
        name = asked["id"]
        for other, watcher in list(self._watchers.items()):
            if watcher.is_gone:
                self._end(other)
        if name not in self._watchers:
            if len(self._watchers) >= _MOST:
                raise ValueError(f"{_MOST} are watching already")
            wishes = TapWishes(**asked["wishes"])
            self._watchers[name] = _Watcher(wishes, self._worker, partial(self._end, name))
        else:
            self._watchers[name].lines.again()
        return {"worker": self._worker, "pid": os.getpid()}

    def _lines(self, name: str) -> dict[str, Any]:
        return self._watchers[name].take()

    def _end(self, name: str) -> None:
        watcher = self._watchers.pop(name, None)
        if watcher is not None:
            watcher.end()


class Lines(Protocol):
    """What one who watches is told of what passes. The invariant: what waits is bounded."""

    def tell(self, event: Event) -> None:
        """Hear of what has passed."""

    def take(self) -> tuple[str, bool]:
        """The next lines, and whether there are others already."""

    def again(self) -> None:
        """What was taken last may not have arrived."""


class _RowLines:
    """Rows, each once."""

    def __init__(self, rows: Callable[[Callable[[Row], None]], Rows], where: Mapping[str, int]) -> None:
        self._where = where
        self._lines: deque[str] = deque()
        self._waiting = self._dropped = 0
        self.tell = rows(self._write).tell

    def take(self) -> tuple[str, bool]:
        taken, size = [], 0
        while self._lines and size < _AT_ONCE:
            taken.append(self._lines.popleft())
            size += len(taken[-1])
        self._waiting -= size
        if self._dropped and not self._lines:
            taken.append(json_of({"event": "dropped", "rows": self._dropped, **self._where}))
            self._dropped = 0
        return "".join(taken), bool(self._lines)

    def again(self) -> None:
        """They are not kept."""

    def _write(self, row: Row) -> None:
        line = json_of({**row, **self._where})
        # Once something is missing, what comes is missing as well until that is told: so it is told in its place.
        if self._dropped or self._waiting + len(line) > _MAX_WAITING:
            self._dropped += 1
        else:
            self._lines.append(line)
            self._waiting += len(line)


class _Watcher:
    """One who watches. `gone` is called when that is noticed."""

    def __init__(self, wishes: TapWishes, worker: int, gone: Callable[[], None]) -> None:
        self._gone = gone
        self._wait_until = time.monotonic() + _PATIENCE_S
        self.lines = _lines(wishes, {"worker": worker, "pid": os.getpid()})
        self._views = LateViews(
            self._tell,
            sides=SIDES[wishes.side],
            payload_bytes=MAX_READABLE_BYTES if wishes.payload else 0,
        )
        self._joining: Iterator[None] | None = current_late_taps().attach(self._views)
        self._join()

    @property
    def is_gone(self) -> bool:
        """Whether nobody has asked for lines for so long."""
        return time.monotonic() > self._wait_until

    def take(self) -> dict[str, Any]:
        """The next lines; `more` says that there are others already."""
        self._wait_until = time.monotonic() + _PATIENCE_S
        self._join()
        lines, more = self.lines.take()
        return {"lines": lines, "more": more or self._joining is not None}

    def end(self) -> None:
        """See nothing more."""
        current_late_taps().detach(self._views)
        self._joining = None

    def _join(self) -> None:
        """Look at more of the connections that were open, for some milliseconds."""
        until = time.monotonic() + _JOIN_FOR_S
        while self._joining is not None and time.monotonic() < until:
            if next(self._joining, self) is self:
                self._joining = None

    def _tell(self, event: Event) -> None:
        if self.is_gone:
            self._gone()
        else:
            self.lines.tell(event)


def _lines(wishes: TapWishes, where: Mapping[str, int]) -> Lines:
    if wishes.mode == "findings":
        return FindingLines(where)
    return _RowLines(
        partial(
            Rows,
            mode=wishes.mode,
            filters=wishes.parsed_filters(),
            redactor=Redactor(more=wishes.redact),
            keeps_payloads=wishes.payload,
        ),
        where,
    )
