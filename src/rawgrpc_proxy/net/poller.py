"""Reads of all sockets, in rounds: one wake-up of one task for all that have become readable meanwhile.

    epoll of ours (all sockets) ──► queue ──► one trio task: read, read, read ... ──► one flush for all
                                      ▲──────────────────┘ with a part of what it has read still to be acted on

With a task of its own for each socket, every read costs a pass through trio's scheduler, and what a thousand callers
send to one upstream at the same moment is written there in a thousand pieces.
"""

import contextvars
import enum
import errno
import select
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import trio
import trio.lowlevel

from rawgrpc_proxy.net.turn import Turn, current_turn

_NEW_A_LOOK = 64
"""So many sockets that have become readable epoll tells of at once."""
_READS_A_FLUSH = 16
"""What has been read is not kept waiting for longer."""
_ROUND_S = 0.003
"""After so long a round ends, and everything else gets its turn."""


class Then(enum.Enum):
    """What comes after a read."""

    STOP = enum.auto()
    WAIT = enum.auto()
    """Until there is something to read."""
    AGAIN = enum.auto()
    """Another step, after others have had their turn: what was read has given more to do than one may do at once."""


_STOP, _WAIT, _AGAIN = Then  # looked up once, not for every read

Step = Callable[[], Then]
"""Reads once, without waiting, or goes on with what it has read, and says what is next."""


class Poller(Protocol):
    """Calls functions whenever their sockets are readable, while the turn of this trio run collects."""

    async def watch(self, fd: int, step: Step, then: Then = Then.WAIT) -> None:
        """Call `step` as often as `fd` is readable, or as it asks for it, until it says STOP. Raises what it raises.

        `then` is what it has said before.
        """

    def closing(self, fd: int) -> None:
        """`fd` is about to be closed: whoever watches it gets an `OSError`."""


class _Watch:
    __slots__ = ("error", "fd", "queued", "run", "step", "task")

    def __init__(self, fd: int, step: Step) -> None:
        self.fd = fd
        self.task = trio.lowlevel.current_task()
        # With the context variables of the task that watches, as if it did the reading itself.
        self.run = contextvars.copy_context().run
        self.step = step
        self.queued = False
        self.error: BaseException | None = None


class EpollPoller:
    """The one for Linux.

    Whoever is readable, or goes on, stands in the queue, once: so a few that give much to do delay the others by a step
    of each, and never keep them out.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._queue: deque[_Watch] = deque()

    @trio.lowlevel.enable_ki_protection
    async def watch(self, fd: int, step: Step, then: Then = _WAIT) -> None:
        if then is _AGAIN and await _go_on(self._turn, step) is _STOP:
            return
        watch = _Watch(fd, step)
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
            self._release(watch, closed_error())

    def _release(self, watch: _Watch, error: BaseException | None) -> None:
        watch.error = error
        if self._watches.get(watch.fd) is watch:  # and was not cancelled by its own step
            self._forget(watch.fd)
            trio.lowlevel.reschedule(watch.task)

    def _forget(self, fd: int) -> None:
        # Both or neither: of a file that nobody watches, epoll would tell again and again.
        del self._watches[fd]
        if not self._epoll.closed:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Read until this trio run ends."""
        queue, turn = self._queue, self._turn
        with self._epoll:
            fd_of_all = self._epoll.fileno()
            while True:
                if queue:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(fd_of_all)
                self._look()
                turn.collecting = True
                unflushed = 0
                ends_at = perf_counter() + _ROUND_S
                while queue:
                    self._step(queue.popleft())
                    unflushed += 1
                    if unflushed == _READS_A_FLUSH:
                        unflushed = 0
                        turn.flush()
                    if perf_counter() >= ends_at:
                        break
                    if not queue and turn.looks:
                        # There may be more of it already, and to wait costs as much as ten reads of little.
                        turn.looks -= 1
                        turn.flush()
                        unflushed = 0
                        self._look()
                turn.flush()
                turn.collecting = False

    def _look(self) -> None:
        """Whoever has become readable goes to the end of the queue."""
        watches, queue = self._watches, self._queue
        for fd, _ in self._epoll.poll(0, _NEW_A_LOOK):
            watch = watches[fd]
            if not watch.queued:
                watch.queued = True
                queue.append(watch)

    def _step(self, watch: _Watch) -> None:
        watch.queued = False
        if self._watches.get(watch.fd) is not watch:
            return  # forgotten meanwhile
        try:
            then = watch.run(watch.step)
        except BaseException as error:  # noqa: BLE001  # it goes to whoever watches
            self._release(watch, error)
            del watch  # the error leads here by its traceback: a circle
        else:
            if then is _AGAIN:
                watch.queued = True
                self._queue.append(watch)
            elif then is _STOP:
                self._release(watch, None)


class TaskPoller:
    """The one for systems without epoll: each task waits for its own socket."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def watch(self, fd: int, step: Step, then: Then = _WAIT) -> None:
        turn = self._turn
        while then is not _STOP:
            if then is _AGAIN:
                then = await _go_on(turn, step)
                continue
            try:
                await trio.lowlevel.wait_readable(fd)
            except trio.ClosedResourceError as error:
                raise closed_error() from error
            with turn:
                then = step()

    def closing(self, fd: int) -> None:
        trio.lowlevel.notify_closing(fd)


async def _go_on(turn: Turn, step: Step) -> Then:
    """Take the steps that need nothing new, in the task that watches, each a turn by itself."""
    then = _AGAIN
    while then is _AGAIN:
        await trio.lowlevel.checkpoint()
        with turn:
            then = step()
    return then


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
