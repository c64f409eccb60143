"""The tasks that run the calls of one connection, kept for the next call when theirs is over.

A task of its own gives each call structured cancellation; to start one costs several times as much as to wake one that
waits. A kept task starts each call with the context variables of the connection, as a new task would.
"""

import contextvars
from collections.abc import Awaitable, Callable

import trio
import trio.lowlevel

from rawgrpc_proxy.net.connection import Turn
from rawgrpc_proxy.net.stream import Stream

_KEPT = 64
"""Idle tasks kept for each connection, at about 3 KB each."""

RunCall = Callable[[Stream, bool, trio.CancelScope], Awaitable[None]]
_Work = tuple[Stream, bool]


class _Idle:
    """A task that waits for its next call."""

    __slots__ = ("task", "work")

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.work: _Work | None = None


class CallRunners:
    """Runs each stream it is given through `run_call`, in tasks of `nursery`.

    `run_call` gets a cancel scope that it runs in, for the call to use: to cancel it, and to set its deadline. Entering
    a scope costs as much as all else a task needs, so one serves a task's calls until one of them was cancelled.
    """

    __slots__ = ("_closed", "_context", "_idle", "_nursery", "_run_call", "_turn")

    def __init__(self, nursery: trio.Nursery, run_call: RunCall, turn: Turn) -> None:
        self._nursery = nursery
        self._run_call = run_call
        self._turn = turn
        self._context = contextvars.copy_context()
        self._idle: list[_Idle] = []
        self._closed = False

    def start(self, stream: Stream, oversized: bool) -> None:
        """Run the call of `stream`, soon."""
        self._turn.starting += 1
        if self._idle:
            idle = self._idle.pop()
            idle.work = stream, oversized
            trio.lowlevel.reschedule(idle.task)
        else:
            self._nursery.start_soon(self._run, stream, oversized)

    def close(self) -> None:
        """Let the idle tasks end, and the others when their call is over."""
        self._closed = True
        while self._idle:
            trio.lowlevel.reschedule(self._idle.pop().task)

    async def _run(self, stream: Stream, oversized: bool) -> None:
        work: _Work | None = stream, oversized
        with trio.CancelScope() as scope:
            while work is not None:
                self._turn.starting -= 1
                await self._run_call(*work, scope)
                if scope.cancel_called or self._closed or len(self._idle) >= _KEPT:
                    return
                work = await self._next()

    async def _next(self) -> _Work | None:
        idle = _Idle(trio.lowlevel.current_task())

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._idle.remove(idle)
            return trio.lowlevel.Abort.SUCCEEDED

        idle.task.context = self._context.copy()
        self._idle.append(idle)
        await trio.lowlevel.wait_task_rescheduled(give_up)
        return idle.work
