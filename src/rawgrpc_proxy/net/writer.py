"""The writer of a connection: what its session has to say goes to the socket, in order, as fast as the socket takes it.

Most writes need no task: at the end of a turn everything its reads have caused, on whichever connection, is written
right away as far as the sockets take it (`flush`). The writer's task finishes what a socket did not take, and writes
what other tasks have queued between the turns.

    nothing to write ──touch──► dirty ──flush──► with the socket: credit to the sources
                                           └──the socket is full──► writing, in the task ──┘

The invariants: bytes are credited only after they are with the socket; a write that was cut short, by whatever, is
followed by no other, since nobody knows how much of it went out.
"""

import math
from collections.abc import Callable

import trio
import trio.lowlevel

from rawgrpc_proxy.errors import PeerAbuse
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.output import Receipt
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.net.late_taps import Onlooker
from rawgrpc_proxy.net.transport import NothingTakenError, Transport
from rawgrpc_proxy.net.turn import current_turn

_WRITES_A_TURN = 4
FAREWELL_TIMEOUT_S = 1.0
"""For what is left when a connection ends."""


class Writer:
    """Writes what one session has to say.

    `on_written` is called when output has been written; `on_failed` with why nothing can be: the socket's `OSError`, a
    `ConnectionFailed`, or a fault of ours. Both must neither wait nor raise.
    """

    __slots__ = (
        "_dirty",
        "_ends",
        "_on_failed",
        "_on_written",
        "_receipts",
        "_scope",
        "_send_timeout_s",
        "_session",
        "_task",
        "_transport",
        "_turn",
        "_unsent",
        "_wake_pending",
        "_write_by",
        "closed",
        "onlooker",
        "sent_up_to",
        "writing",
    )

    def __init__(
        self,
        session: Session,
        transport: Transport,
        *,
        send_timeout_s: float,
        on_written: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._session = session
        self._transport = transport
        self._send_timeout_s = send_timeout_s
        self._on_written = on_written
        self._on_failed = on_failed
        self._turn = current_turn()
        self.onlooker: Onlooker | None = None
        self.closed = False
        """Nothing is flushed any more: what has not begun to leave when the peer is gone has not been processed."""
        self.writing = False
        """Whether a write waits for the socket."""
        self.sent_up_to = 0
        """The last stream that we have opened and whose headers may have begun to leave."""
        self._dirty = False
        self._unsent: list[Data] = []
        """Of the write under way, what the socket is still to be asked for."""
        self._receipts: list[Receipt] = []
        self._task: trio.lowlevel.Task | None = None
        self._wake_pending = False
        self._ends = False
        self._scope: trio.CancelScope | None = None
        """Of the write that waits. When the connection ends it has until `_write_by`."""
        self._write_by = math.inf

    def touch(self) -> None:
        """There is output: see that it is written at the end of this turn."""
        if self._dirty:
            return
        self._dirty = True
        turn = self._turn
        turn.dirty.append(self)
        if not turn.collecting:
            self._wake()

    @property
    def has_output(self) -> bool:
        """Whether anything waits for the socket."""
        return self.writing or self._session.wants_output

    @property
    def cut_short(self) -> bool:
        """Whether a write was begun and will never be finished."""
        return self.writing and not self._unsent

    # ---------------------------------------------------------- without a task

    def flush(self) -> None:
        """Write without waiting; the task gets what the socket does not take. Raises nothing."""
        self._dirty = False
        if self.writing or self.closed:
            return
        try:
            self._write_now()
        except BaseException as fault:  # noqa: BLE001  # other people's turn, and other people's tasks
            self._on_failed(fault)

    def _write_now(self) -> None:
        session = self._session
        for _ in range(_WRITES_A_TURN):
            if not session.wants_output:
                break
            if not self._write_some():
                self._wake()
                break
            self._credit()
        else:
            if session.wants_output:
                self._wake()
        self._on_written()

    def _write_some(self) -> bool:
        """Write what there is, as far as the socket takes it: all of it? The rest is `_unsent`, if not `cut_short`."""
        session = self._session
        chunks, self._receipts = session.take_output()
        if self.onlooker is not None:
            self.onlooker.sent(chunks)
        sent_up_to, self.sent_up_to = self.sent_up_to, session.last_opened_id
        self.writing = True
        try:
            self._unsent = self._transport.send_now(chunks)
        except NothingTakenError:
            # As if that were known here already, which it will be soon: nothing is flushed any more.
            self.sent_up_to, self.closed, self.writing = sent_up_to, True, False
            return False
        except OSError as error:
            self._on_failed(error)
            return False
        self.writing = bool(self._unsent)
        if self.writing:
            session.output_waits(sum(map(len, self._unsent)))
        return not self.writing

    def _credit(self) -> None:
        self._session.output_written()
        receipts, self._receipts = self._receipts, []
        for source, size in receipts:
            source.credit(size)

    # --------------------------------------------------------------- in a task

    async def run(self) -> None:
        """Write what has to wait, until `end`, or until it is cancelled while it does not write."""
        try:
            while not self.cut_short and (self.writing or not self._ends):
                if self.writing:
                    if not await self._write_rest():
                        return
                elif self._session.wants_output:
                    self._dirty = False
                    if not self._write_some():
                        continue
                else:
                    self._dirty = False  # so that the next touch wakes us
                    await self._wait_for_work()
                    continue
                self._credit()
                self._on_written()
                self._turn.flush()
                await trio.lowlevel.checkpoint()
        except OSError as error:
            if (
                isinstance(error, TimeoutError) and not error.errno
            ):  # the system's own, for a dead link, has a number
                self._on_failed(
                    PeerAbuse(
                        f"the peer has taken nothing of what waits for it for {self._send_timeout_s:g} s "
                        "(send_timeout_s)",
                        limit="send_timeout_s",
                    )
                )
            else:
                self._on_failed(error)

    async def _write_rest(self) -> bool:
        """Finish the write under way, even if the connection ends meanwhile. False: it was too late then."""
        chunks, self._unsent = self._unsent, []
        with trio.CancelScope(shield=True, deadline=self._write_by) as self._scope:
            await self._transport.send_all(chunks, self._send_timeout_s)
        too_late, self._scope = self._scope.cancelled_caught, None
        self.writing = too_late
        return not too_late

    def end(self) -> None:
        """Have `run` end when what is being written is with the socket; it has a second for that."""
        self._ends = True
        self._write_by = min(self._write_by, trio.current_time() + FAREWELL_TIMEOUT_S)
        if self._scope is not None:
            self._scope.deadline = self._write_by

    async def write_the_last(self) -> None:
        """Write what is left, once `run` has ended and unless a write was `cut_short`. Raises `OSError`."""
        chunks, _ = self._session.take_output()
        if self.onlooker is not None:
            self.onlooker.sent(chunks)
        await self._transport.send_all(self._unsent + chunks, FAREWELL_TIMEOUT_S)

    def forget_owner(self) -> None:
        """All is over: breaks the reference cycle with whoever was called back."""
        self._on_written, self._on_failed = _nothing, _nothing

    async def _wait_for_work(self) -> None:
        if self._wake_pending:
            self._wake_pending = False
            return
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._forget_task)

    def _forget_task(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is None:
            self._wake_pending = True
        else:
            trio.lowlevel.reschedule(task)


def _nothing(*_: object) -> None:
    """Nobody is called back any more."""
