"""Reads of all sockets, in rounds: one wake-up of one task for all that have become readable meanwhile.

    epoll of ours (all sockets) ──► one trio task ──► read, read, read ... ──► one flush for all

With a task of its own for each socket, every read costs a pass through trio's scheduler, and what a thousand callers
send to one upstream at the same moment is written there in a thousand pieces.
"""

import contextvars
import errno
import select
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import trio
import trio.lowlevel

from rawgrpc_proxy.net.turn import Turn, current_turn

_READS_A_ROUND = 64
"""Then everything else gets its turn."""
_READS_A_FLUSH = 16
"""What has been read is not kept waiting for longer."""
_ROUND_S = 0.005
"""After so long a round ends, and everything else gets its turn. The sockets that were not read come first in the next
one, so that a few which give much to do delay the others by a round, and never keep them out."""

OnReadable = Callable[[], bool]
"""Reads once, without waiting, and says whether to go on."""


class Poller(Protocol):
    """Calls functions whenever their sockets are readable, while the turn of this trio run collects."""

    async def watch(self, fd: int, on_readable: OnReadable) -> None:
        """Call `on_readable` as often as `fd` is readable, until it says that it is enough. Raises what it raises."""

    def closing(self, fd: int) -> None:
        """`fd` is about to be closed: whoever watches it gets an `OSError`."""


class _Watch:
    __slots__ = ("error", "on_readable", "run", "task")

    def __init__(self, on_readable: OnReadable) -> None:
        self.task = trio.lowlevel.current_task()
        # With the context variables of the task that watches, as if it did the reading itself.
        self.run = contextvars.copy_context().run
        self.on_readable = on_readable
        self.error: BaseException | None = None


class EpollPoller:
    """The one for Linux."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}

    @trio.lowlevel.enable_ki_protection
    async def watch(self, fd: int, on_readable: OnReadable) -> None:
        watch = _Watch(on_readable)
        if self._epoll.closed:
            # We are in a system task ourselves, and the run ends.
            raise closed_error()
        self._epoll.register(fd, select.EPOLLIN)
        self._watches[fd] = watch

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._forget(fd)
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            await trio.lowlevel.wait_task_rescheduled(give_up)
        finally:
            if watch.error is not None:
                try:
                    raise watch.error
                finally:
                    del watch  # the error leads here by its traceback: a circle

    def closing(self, fd: int) -> None:
        watch = self._watches.get(fd)
        if watch is not None:
            self._release(fd, watch, closed_error())

    def _release(self, fd: int, watch: _Watch, error: BaseException | None) -> None:
        watch.error = error
        if self._watches.get(fd) is watch:  # and was not cancelled by its own reader
            self._forget(fd)
            trio.lowlevel.reschedule(watch.task)

    def _forget(self, fd: int) -> None:
        # Both or neither: of a file that nobody watches, epoll would tell again and again.
        del self._watches[fd]
        if not self._epoll.closed:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Read until this trio run ends."""
        poll, watches, turn = self._epoll.poll, self._watches, self._turn
        with self._epoll:
            fd_of_all = self._epoll.fileno()
            ready: list[tuple[int, int]] = []
            while True:
                if ready:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(fd_of_all)
                    ready = poll(0, _READS_A_ROUND)
                turn.collecting = True
                unflushed = 0
                ends_at = perf_counter() + _ROUND_S
                for number, (fd, _) in enumerate(ready, 1):
                    watch = watches.get(fd)
                    if watch is None:
                        continue  # forgotten meanwhile
                    try:
                        more = watch.run(watch.on_readable)
                    except BaseException as error:  # noqa: BLE001  # it goes to whoever watches
                        self._release(fd, watch, error)
                    else:
                        if not more:
                            self._release(fd, watch, None)
                    unflushed += 1
                    if unflushed == _READS_A_FLUSH:
                        unflushed = 0
                        turn.flush()
                    if perf_counter() >= ends_at:
                        ready = ready[number:]
                        break
                else:
                    ready = []
                turn.flush()
                turn.collecting = False
                watch = None  # until the next round it would keep alive what has ended


class TaskPoller:
    """The one for systems without epoll: each task waits for its own socket."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def watch(self, fd: int, on_readable: OnReadable) -> None:
        turn = self._turn
        more = True
        while more:
            try:
                await trio.lowlevel.wait_readable(fd)
            except trio.ClosedResourceError as error:
                raise closed_error() from error
            turn.collecting = True
            try:
                more = on_readable()
            finally:
                turn.flush()
                turn.collecting = False

    def closing(self, fd: int) -> None:
        trio.lowlevel.notify_closing(fd)


_poller_of_run: trio.lowlevel.RunVar[Poller] = trio.lowlevel.RunVar("rawgrpc_proxy.poller")


def current_poller() -> Poller:
    """The poller of this trio run."""
    try:
        return _poller_of_run.get()
    except LookupError:
        poller = _new_poller()
        _poller_of_run.set(poller)
        return poller


def _new_poller() -> Poller:
    if not hasattr(select, "epoll"):
        return TaskPoller(current_turn())
    poller = EpollPoller(current_turn())
    trio.lowlevel.spawn_system_task(poller.run, name="rawgrpc_proxy.poller")
    return poller


def closed_error() -> OSError:
    """What a wait on a socket ends with when the socket is closed by ourselves."""
    return OSError(errno.EBADF, "the connection is closed")
