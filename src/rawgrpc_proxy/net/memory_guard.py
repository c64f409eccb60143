"""What is done when too much DATA waits in this process: the calls that have stalled for longest end.

    bytes ──NEAR──► sessions give less credit (`http2/sending.py`), and open no streams beyond a connection's share
                    (`http2/header_blocks.py`); calls that have stalled since then for `STALLED_S` end
    bytes ──limit─► whatever waits ends, the longest stalled first, until `NEAR` is reached

The connection that holds most comes first, so that a caller who fills the memory loses calls, and others do not. It is
the idea of Envoy's overload manager, which ends the streams that hold most.

When much has waited, and its connections have gone, the memory goes back to the system (`heap.py`).

What it does not do: count (`http2/buffered.py`), or say which calls of a connection end (`stalled.py`). The invariant:
it runs in a task of its own, never in the middle of a reader's work, and lets others have their turn after each
connection.
"""

import contextlib
import math
from typing import Protocol

import trio
import trio.lowlevel

from rawgrpc_proxy.http2.buffered import MUCH_BYTES, Buffered
from rawgrpc_proxy.net.heap import shrink_heap
from rawgrpc_proxy.net.stalled import Stalling, end_stalled
from rawgrpc_proxy.net.turn import current_turn

STALLED_S = 5.0
"""Near the limit, a call of which nothing has moved for so long ends."""
_LOOK_S = 0.25
_SETTLING_S = 1.0
"""So long after the end of a connection the last of its objects are gone."""


class Holder(Stalling, Protocol):
    """A connection, as the guard sees it."""

    def give_credit(self) -> None:
        """Give the peer what was withheld while the process was short of memory, as far as it may be given."""


class MemoryGuard:
    """Minds the memory of the connections of one trio run. It has a task only while much waits."""

    __slots__ = ("_connections", "_full", "_runs", "_shrinks", "_turn", "buffered")

    def __init__(self) -> None:
        self.buffered = Buffered()
        self.buffered.on_alarm = self._alarm
        self._connections: dict[Holder, None] = {}
        self._runs = self._shrinks = False
        self._full: trio.Event | None = None
        self._turn = current_turn()

    def open(self, connection: Holder, limit: float) -> None:
        """A connection begins, whose settings allow the process so many bytes."""
        self._connections[connection] = None
        self.buffered.open(limit)

    def close(self, connection: Holder) -> None:
        """It has ended."""
        del self._connections[connection]
        self.buffered.close()
        if self.buffered.has_been_much and not self._shrinks:
            self._shrinks = True
            trio.lowlevel.spawn_system_task(self._shrink_heap, name="rawgrpc_proxy.shrink_heap")

    def _alarm(self) -> None:
        if not self._runs:
            self._runs = True
            trio.lowlevel.spawn_system_task(self._run, name="rawgrpc_proxy.memory_guard")
        elif self._full is not None and self.buffered.bytes >= self.buffered.limit:
            self._full.set()

    async def _run(self) -> None:
        buffered = self.buffered
        mark, marked_at = buffered.passed, trio.current_time()
        try:
            while buffered.is_short:
                now = trio.current_time()
                if buffered.bytes >= buffered.limit:
                    await self._end_stalled(math.inf)
                elif now >= marked_at + STALLED_S:
                    await self._end_stalled(mark)
                    mark, marked_at = buffered.passed, now
                self._give_credit()
                self._full = trio.Event()
                with trio.move_on_after(_LOOK_S):
                    await self._full.wait()
        finally:
            self._full = None
            self._runs = False
        self._give_credit()

    async def _shrink_heap(self) -> None:
        """As soon as what waited is gone: its calls, on whichever connection, end after the one that has brought it."""
        try:
            while True:
                await trio.sleep(_SETTLING_S)
                if self.buffered.bytes < MUCH_BYTES / 2:
                    break
        finally:
            self._shrinks = False
        self.buffered.forget_much()
        with contextlib.suppress(
            RuntimeError
        ):  # no thread is to be had; what is raised here would end the program
            await trio.to_thread.run_sync(shrink_heap)

    async def _end_stalled(self, before: float) -> None:
        for connection in sorted(self._connections, key=_held, reverse=True):
            if not self.buffered.is_short:
                return
            with self._turn:
                end_stalled(connection, before)
            await trio.lowlevel.checkpoint()

    def _give_credit(self) -> None:
        with self._turn:
            for connection in self._connections:
                connection.give_credit()


def _held(connection: Holder) -> int:
    account = connection.account
    return account.to_peer + account.from_peer


_guard_of_run: trio.lowlevel.RunVar[MemoryGuard] = trio.lowlevel.RunVar("rawgrpc_proxy.memory_guard")


def current_memory_guard() -> MemoryGuard:
    """The guard of this trio run."""
    try:
        return _guard_of_run.get()
    except LookupError:
        guard = MemoryGuard()
        _guard_of_run.set(guard)
        return guard
