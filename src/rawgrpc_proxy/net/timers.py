"""Callbacks in time, for calls and connections that have no task: one task watches all of them.

A deadline: while a step of a call runs in a task, its cancel scope has it (`Call.runs_in`); once the call is on its
way, a timer of these does (`server/dispatch.py`).
"""

import heapq
import itertools
import math
from collections.abc import Callable

import trio

_FEW = 64
_CALLS_A_TURN = 32
"""When many deadlines pass at one moment, others have their turn after so many: a millisecond, about."""


class Timer:
    """A callback and its moment. `cancel` it when it is not wanted any more; a second time does nothing."""

    __slots__ = ("_callback", "_timers")

    def __init__(self, timers: "Timers", callback: Callable[[], None]) -> None:
        self._timers = timers
        self._callback: Callable[[], None] | None = callback

    @property
    def waits(self) -> bool:
        """Whether it is still to come."""
        return self._callback is not None

    def cancel(self) -> None:
        """Never call back."""
        if self._callback is not None:
            self._callback = None
            self._timers.one_less()

    def call(self) -> None:
        """Its moment has come."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Timers:
    """Calls back at given times of trio's clock, in a task of `nursery` that exists from the first `add` to `close`."""

    __slots__ = ("_cancelled", "_closed", "_heap", "_nap", "_numbers", "_nursery")

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._nap: trio.CancelScope | None = None
        """What the task sleeps in, until the first of the timers."""
        self._closed = False

    def add(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` at `when` or soon after. It must neither wait nor raise."""
        timer = Timer(self, callback)
        heapq.heappush(self._heap, (when, next(self._numbers), timer))
        if self._nap is None:
            self._nap = trio.CancelScope()
            self._nursery.start_soon(self._watch)
        elif when < self._nap.deadline:
            self._nap.deadline = when
        return timer

    def close(self) -> None:
        """End the task. Nobody is called back any more."""
        self._closed = True
        if self._nap is not None:
            self._nap.cancel()

    def one_less(self) -> None:
        """A timer was cancelled. Calls mostly end long before their deadline: timers must not pile up until then."""
        self._cancelled += 1
        if self._cancelled > _FEW and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].waits]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def _watch(self) -> None:
        while not self._closed:
            self._nap = trio.CancelScope(deadline=self._call_those_due())
            with self._nap:
                await trio.sleep_forever()

    def _call_those_due(self) -> float:
        """As many as may be in one turn. Answers when the next one is."""
        heap, now = self._heap, trio.current_time()
        left = _CALLS_A_TURN
        while heap and left and (heap[0][0] <= now or not heap[0][2].waits):
            timer = heapq.heappop(heap)[2]
            if timer.waits:
                timer.call()
                left -= 1
                heap = self._heap
            else:
                self._cancelled -= 1
        return heap[0][0] if heap else math.inf
