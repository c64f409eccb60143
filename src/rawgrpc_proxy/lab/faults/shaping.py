"""Time: what waits for its moment, and bytes that wait in a link. Pure: time is an argument.

`Agenda` calls back in the order of time, and at one time as it was asked. `Shaper` holds all bytes of one
direction of a connection, in order.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

from rawgrpc_proxy.http2.frames import Data

_PIECES_A_SECOND = 20
_LEAST_PIECE_BYTES = 64
_FEW = 64


class Appointment:
    """A callback and its moment."""

    __slots__ = ("_agenda", "call")

    def __init__(self, agenda: "Agenda", call: Callable[[], None]) -> None:
        self._agenda = agenda
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never call back. A second time does nothing."""
        if self.call is not None:
            self.call = None
            self._agenda.one_less()


class Agenda:
    """What is to be done, and when."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Appointment]] = []
        self._numbers = itertools.count()
        self._cancelled = 0

    def add(self, at: float, call: Callable[[], None]) -> Appointment:
        """Call back at `at`, or when it is looked next."""
        appointment = Appointment(self, call)
        heapq.heappush(self._heap, (at, next(self._numbers), appointment))
        return appointment

    @property
    def next_at(self) -> float:
        """When there is something to do; infinity: never."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else math.inf

    def call_due(self, now: float) -> None:
        """Do what is due."""
        while self.next_at <= now:
            appointment = heapq.heappop(self._heap)[2]
            call, appointment.call = appointment.call, None
            assert call is not None
            call()

    def one_less(self) -> None:
        """One was cancelled: those must not pile up."""
        self._cancelled += 1
        if self._cancelled > _FEW and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0


class Pace:
    """No more than so many bytes in a second, in pieces."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self.piece_bytes = max(_LEAST_PIECE_BYTES, int(bytes_per_s / _PIECES_A_SECOND))
        self.free_at = -math.inf
        """When the next piece may pass."""

    def took(self, size: int, at: float) -> None:
        """So much passes now."""
        self.free_at = max(self.free_at, at) + size / self._bytes_per_s


class Shaper:
    """The bytes that are under way in one direction. `held_bytes` of them are here."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._queue: deque[tuple[float, Data]] = deque()
        self._last = -math.inf
        """Nothing that comes later leaves before this."""
        self.latency = self.jitter = 0.0
        self.pace: Pace | None = None
        self.held_bytes = 0

    def hold(self, until: float) -> None:
        """What comes from now on leaves no sooner."""
        self._last = max(self._last, until)

    def push(self, data: Data, now: float) -> None:
        """These bytes set out."""
        delay = self.latency + (self._rng.random() * self.jitter if self.jitter else 0.0)
        self._last = max(self._last, now + delay)
        self.held_bytes += len(data)
        pace = self.pace
        if pace is None:
            self._queue.append((self._last, data))
            return
        view = memoryview(data)
        for start in range(0, len(view), pace.piece_bytes):
            piece = view[start : start + pace.piece_bytes]
            pace.took(len(piece), self._last)
            # They have passed when the last of them has.
            self._last = max(self._last, pace.free_at)
            self._queue.append((self._last, piece))

    @property
    def next_at(self) -> float:
        """When the first of them arrive; infinity: there are none."""
        return self._queue[0][0] if self._queue else math.inf

    def arrived(self, now: float) -> list[Data]:
        """Those that are there."""
        pieces = []
        while self._queue and self._queue[0][0] <= now:
            piece = self._queue.popleft()[1]
            self.held_bytes -= len(piece)
            pieces.append(piece)
        return pieces
