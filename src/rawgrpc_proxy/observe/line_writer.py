"""Lines for a reader who may be slow, or have stopped reading: written by a thread, so that nobody waits for him.

A pipe that nobody empties blocks whoever writes into it, for ever. So lines are collected, a thread writes them, and
whoever has to know waits for the thread, for a bounded time. What it does not do: format, or open and rotate files.
The invariants: memory is bounded, and what had to be dropped is counted where it is missing; once lines are collected
no method but `flush` waits, and `flush` not beyond its time.
"""

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Protocol, TextIO

import trio

_INTERVAL_S = 0.25
_MAX_WAITING = 8 * 1024 * 1024
"""Characters of the lines that are not written yet: some seconds of the busiest proxy."""
_LINE_OVERHEAD = 64
"""What Python adds to a line, in bytes: many short ones cost memory, too."""
_AT_ONCE = 256
"""Lines in one write: of calls about what a pipe takes on Linux, 64 KiB."""
_FLUSH_TIMEOUT_S = 1.0


class LineFile(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> int:
        """Write all of it, waiting as needed."""

    def flush(self) -> None:
        """See that it has left the process."""


class LineWriter:
    """Writes lines to a file: at once, or once `collect` was called, from a thread and many together.

    `missing` makes the line that says how many had to be dropped. For one thread, but for its own. Whatever the file
    raises is ignored: nobody reads any more, the disk is full, it is closed.
    """

    def __init__(self, file: LineFile | IO[str], missing: Callable[[int], str]) -> None:
        self._file = file
        self._missing = missing
        self._lines: deque[str] = deque()
        self._room = 0
        """So many characters may be added before anybody has to look how much waits: with it most lines cost little."""
        self._given = 0
        """Characters, overhead included, of all lines so far, and `_room`."""
        self._written = 0
        """As many of the lines are written. Two counts, each with one writer, need no lock."""
        self._dropped = 0
        self.dropped_lines = 0
        """Lines that found no room, since the start."""
        self._collecting = False
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()

    def add(self, line: str) -> None:
        """Write this line, or have it written. One that finds no room is counted, and told of in its place."""
        room = self._room - len(line) - _LINE_OVERHEAD
        if room >= 0:
            self._room = room
            self._lines.append(line)
        else:
            self._add_after_a_look(line)

    def add_all(self, lines: Sequence[str]) -> None:
        """`add` each of them."""
        room = self._room - sum(map(len, lines)) - _LINE_OVERHEAD * len(lines)
        if room >= 0:
            self._room = room
            self._lines.extend(lines)
        else:
            for line in lines:
                self.add(line)

    def _add_after_a_look(self, line: str) -> None:
        size = len(line) + _LINE_OVERHEAD
        if self._waiting + size > _MAX_WAITING:
            self._dropped += 1
            self.dropped_lines += 1
            self._count(0)  # no room for a shorter one either, before this is told
            return
        if self._dropped:
            self._tell_dropped()
        self._count(size)
        self._lines.append(line)
        if not self._collecting:
            self._write()
        else:
            self._room = _MAX_WAITING - self._waiting
            self._given += self._room

    @property
    def _waiting(self) -> int:
        """Characters of lines that are not written yet."""
        return self._given - self._room - self._written

    def _count(self, size: int) -> None:
        """A line of this size is added, whatever room there is."""
        self._given += size - self._room
        self._room = 0

    def collect(self) -> None:
        """From now on until `flush` has written them, lines wait."""
        self._collecting = True

    async def run(self, *, interval_s: float = _INTERVAL_S) -> None:
        """Collect lines, and have them written four times a second, until cancelled; then they wait for `flush`."""
        self.collect()
        while True:
            await trio.sleep(interval_s)
            if self._dropped and not self._lines:
                self._tell_dropped()
            if self._lines:
                self._start_thread()

    def flush(self, timeout_s: float = _FLUSH_TIMEOUT_S) -> None:
        """Have all that waits written, and wait for that, but no longer than `timeout_s` seconds."""
        if self._dropped:
            self._tell_dropped()
        until = time.monotonic() + timeout_s
        while self._waiting and (left := until - time.monotonic()) > 0:
            self._start_thread()
            if self._thread is None:
                break
            self._thread.join(left)
        self._collecting = self._waiting > 0
        if not self._collecting:
            self._count(0)  # no room: the next line has to be written at once

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        line = self._missing(dropped)
        self._count(len(line) + _LINE_OVERHEAD)
        self._lines.append(line)

    def _start_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            # A daemon: the process may end while it waits for a reader.
            thread = threading.Thread(target=self._write, name="log", daemon=True)
            with contextlib.suppress(RuntimeError):  # the system has no thread for us now
                thread.start()
                self._thread = thread

    def _write(self) -> None:
        """Write all that waits; the only method that may run in another thread."""
        lines = self._lines
        with self._writing:
            while lines:
                together = [lines.popleft() for _ in range(min(len(lines), _AT_ONCE))]
                text = "".join(together)
                try:
                    self._file.write(text)
                    self._file.flush()
                except Exception:  # noqa: BLE001, S110  # calls go on, and there is nobody to tell
                    pass
                self._written += len(text) + len(together) * _LINE_OVERHEAD


class DescriptorFile:
    """A file descriptor as text, without buffers and their locks.

    A thread that hangs in a write to `sys.stderr` holds the lock of its buffer, and Python waits for that, or aborts,
    when it ends.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor = descriptor
        self._encoding = encoding

    def write(self, text: str, /) -> int:
        """Write all of it, waiting as needed. Raises `OSError`."""
        data = memoryview(text.encode(self._encoding, "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody who shares the descriptor has made it so
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def unbuffered(stream: TextIO | None) -> LineFile:
    """One of `sys.stdout` and `sys.stderr` by its descriptor; as it is if it has none, nothing if there is none.

    Whoever starts us with a descriptor closed gives its number to the next file we open, which may be a peer's.
    """
    if stream is None:
        return _Nowhere()
    try:
        stream.flush()
        return DescriptorFile(stream.fileno(), stream.encoding or "utf-8")
    except (OSError, ValueError, AttributeError):
        return stream


class _Nowhere:
    def write(self, text: str, /) -> int:
        return len(text)

    def flush(self) -> None:
        pass
