"""The tasks in which calls begin, kept for the next calls when theirs have begun.

A call needs a task only while it may have to wait: for its director, for a connection. Once its streams are joined
the readers move it on. So the calls of one read mostly begin in one step of one task, which costs less than half of
what a task for each of them would.
"""

import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.lowlevel

from rawgrpc_proxy.net.turn import Turn

_KEPT = 64
"""Idle tasks kept, at about 3 KB each."""
_JOBS_A_STEP = 32
"""Then everything else gets its turn."""

Job = Callable[[Any, trio.CancelScope], Awaitable[None]]


class CallRunners:
    """Runs jobs in tasks of `nursery`, each as soon as may be, however long the others wait.

    A job gets its subject and a cancel scope that it runs in, for it to use: to cancel it, and to set its deadline.
    Entering a scope costs as much as all else a task needs, so one serves a task's jobs until one of them was
    cancelled. Each job starts with the context variables that there were when this was made, as in a new task.
    """

    __slots__ = ("_closed", "_context", "_idle", "_nursery", "_turn", "_waiting", "_woken")

    def __init__(self, nursery: trio.Nursery, turn: Turn) -> None:
        self._nursery = nursery
        self._turn = turn
        self._context = contextvars.copy_context()
        self._waiting: deque[tuple[Job, Any]] = deque()
        self._idle: list[trio.lowlevel.Task] = []
        self._woken = False
        """A task is about to look for jobs, and so for all that are added meanwhile."""
        self._closed = False

    def start(self, job: Job, subject: Any) -> None:
        """Run `job(subject, scope)`, soon. What it writes before it waits is flushed with what its neighbours write."""
        self._waiting.append((job, subject))
        if not self._woken:
            self._wake()

    def close(self) -> None:
        """Let the idle tasks end, and the others when their job is done."""
        self._closed = True
        while self._idle:
            trio.lowlevel.reschedule(self._idle.pop())

    def _wake(self) -> None:
        self._woken = True
        if self._idle:
            trio.lowlevel.reschedule(self._idle.pop())
        else:
            # It must not inherit what the job that runs here has done to its context.
            self._context.run(self._nursery.start_soon, self._run)

    async def _run(self) -> None:
        intact = True
        try:
            with trio.CancelScope() as scope:
                while True:
                    self._woken = False
                    # What another task's jobs have said, if it waits in a later one by now.
                    self._turn.flush()
                    try:
                        await self._run_waiting(scope)
                    finally:
                        intact = is_innermost(scope)
                        self._turn.flush()
                        if self._waiting and not self._woken:
                            self._wake()
                    if self._closed or not intact or len(self._idle) >= _KEPT:
                        return
                    await self._rest()
        except RuntimeError:
            # A job has left a scope open, and ours is the first to notice that it is not the innermost. The job has
            # been told (`Calls`); trio has put the task's scopes in order again.
            if intact:
                raise

    async def _run_waiting(self, scope: trio.CancelScope) -> None:
        """Run what waits, as far as this task can."""
        waiting, task = self._waiting, trio.lowlevel.current_task()
        for _ in range(_JOBS_A_STEP):
            if not waiting:
                return
            job, subject = waiting.popleft()
            if waiting and not self._woken:
                # Should this job have to wait, the next ones need not.
                self._wake()
            await job(subject, scope)
            if scope.cancel_called or task._cancel_status is not scope._cancel_status:  # noqa: SLF001  # trio has no other way to tell
                # Ends the task, at its next wait or at once.
                return
            if not _same(contextvars.copy_context(), self._context):
                return

    async def _rest(self) -> None:
        task = trio.lowlevel.current_task()

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._idle.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        task.context = self._context.copy()
        self._idle.append(task)
        await trio.lowlevel.wait_task_rescheduled(give_up)


def is_innermost(scope: trio.CancelScope) -> bool:
    """Whether the running task is in this scope, and has left all that it has entered inside it."""
    return trio.lowlevel.current_task()._cancel_status is scope._cancel_status  # noqa: SLF001


def _same(now: contextvars.Context, before: contextvars.Context) -> bool:
    """Whether no variable was set. Values are not compared by `==`, which is their owners' code."""
    return len(now) == len(before) and all(before.get(variable, now) is now[variable] for variable in now)
