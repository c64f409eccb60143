"""Processes forked from this one: started, heard, told to stop, waited for, together with the signals that come to us.

Each has a *channel*, a socket pair whose other end it holds: what it says comes as bytes, and its end is seen by both.
Signals are read from a file descriptor (`signal.set_wakeup_fd`), so there is one place to wait in, and none is lost.

What it does not do: decide anything (`supervisor.py`). The invariant: a signal to a child that is just being born is
never taken for one of ours, nor the other way round: until it is a process of its own, signals wait.
"""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from rawgrpc_proxy.command.channel import ABORT
from rawgrpc_proxy.command.handover import InheritedChild

STOP = (signal.SIGINT, signal.SIGTERM)
_SIGNALS = (*STOP, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR2)
_CRASHED = 1
_MOST_AT_ONCE = 4096


@attrs.define(eq=False, kw_only=True)
class Child:
    """A process of ours."""

    pid: int
    number: int
    """Which worker it is, from 1; 0 is the admin process."""
    channel: socket.socket
    """Leads to it."""
    of: object | None
    """What it was started for; None after an upgrade, for what was started before it."""
    started: float = attrs.field(factory=time.monotonic)
    ready: bool = False
    told_to_stop: bool = False
    drains: bool = False
    """It has said that it takes no more connections."""
    grace_s: float = math.inf
    """How long it may go on when it was told to stop."""
    ends_by: float = math.inf
    """When, on the monotonic clock, it has to be over."""


class Children:
    """All of them, by process id. For a process with one thread, until `close`."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._by_descriptor: dict[int, Child] = {}
        """Those that still speak."""
        self._wakeup, self._woken = os.pipe()
        for descriptor in (self._wakeup, self._woken):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        # One that is ignored, as SIGCHLD may be from our own parent, or on macOS by default, would not come.
        self._handlers = {number: signal.signal(number, _never_called) for number in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._mask_before = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def close(self) -> None:
        """Leave signals as they were."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)
        os.close(self._wakeup)
        os.close(self._woken)

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __bool__(self) -> bool:
        return bool(self._children)

    # ---------------------------------------------------------------- waiting

    def wait(self, timeout_s: float | None) -> tuple[list[int], list[tuple[Child, bytes]]]:
        """Wait for something to happen: the signals that came, and what children have said."""
        said: list[tuple[Child, bytes]] = []
        # Rounded up: poll() rounds down, and would come back before it is time.
        for descriptor, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1e3 + 1):
            if (child := self._by_descriptor.get(descriptor)) is not None and (data := self._read(child)):
                said.append((child, data))
        # In any case: a signal that has interrupted poll() comes after what poll() has found.
        return list(self.signals()), said

    def signals(self) -> bytes:
        """Those that came since they were last asked for, without waiting."""
        heard = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._wakeup, _MOST_AT_ONCE):
                heard += data
        return heard

    def _read(self, child: Child) -> bytes:
        try:
            data = child.channel.recv(_MOST_AT_ONCE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:  # it ends, and `ended` will tell how
            self._hear_no_more(child)
        return data

    def _hear_no_more(self, child: Child) -> None:
        if self._by_descriptor.pop(child.channel.fileno(), None) is not None:
            self._poll.unregister(child.channel)

    # -------------------------------------------------------------- processes

    def start(
        self, number: int, of: object | None, life: Callable[[socket.socket], int], grace_s: float
    ) -> Child:
        """Fork; the new process does what `life` does with its end of the channel. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        ours.settimeout(0)

        def live() -> int:
            ours.close()  # or it would never read the end of it
            return life(theirs)

        try:
            pid = self.fork(live)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return self._know(Child(pid=pid, number=number, channel=ours, of=of, grace_s=grace_s))

    def fork(self, life: Callable[[], int]) -> int:
        """A process without a channel, which the caller has to wait for; answers its id. Raises `OSError`."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._become(life)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _become(self, life: Callable[[], int]) -> None:
        """The whole life of a process just forked. Does not return."""
        code = _CRASHED
        try:
            signal.set_wakeup_fd(-1)
            # A terminal sends these to all of us. The supervisor hears them for the others.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            for child in self:
                child.channel.close()
            os.close(self._wakeup)
            os.close(self._woken)
            code = life()
        except BaseException:  # noqa: BLE001  # nobody above us is a child
            with contextlib.suppress(Exception):
                sys.stderr.write(f"process {os.getpid()} crashed:\n{traceback.format_exc()}")
                sys.stderr.flush()
        finally:
            os._exit(code)

    def adopt(self, inherited: InheritedChild) -> Child:
        """One that was started by the program which was this process before an upgrade."""
        channel = socket.socket(fileno=inherited.descriptor)
        channel.set_inheritable(False)
        channel.settimeout(0)
        return self._know(
            Child(
                pid=inherited.pid,
                number=inherited.number,
                channel=channel,
                of=None,
                ready=True,
                told_to_stop=inherited.told_to_stop,
                grace_s=inherited.grace_s,
                ends_by=inherited.ends_by,
            )
        )

    def _know(self, child: Child) -> Child:
        self._children[child.pid] = child
        self._by_descriptor[child.channel.fileno()] = child
        self._poll.register(child.channel, select.POLLIN)
        return child

    def terminate(self, child: Child) -> None:
        """Tell it to stop."""
        child.told_to_stop = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)

    def abort(self, child: Child) -> None:
        """Tell one that drains to end at once. If it does not read, it is not told."""
        with contextlib.suppress(OSError):
            child.channel.send(ABORT)

    def kill(self, child: Child) -> None:
        """End it now, whatever it does."""
        child.ends_by = math.inf
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)

    def ended(self) -> Iterator[tuple[Child, int | None]]:
        """Those that are over, each with its exit code (None: somebody else was told); they are forgotten."""
        for child in self:
            is_over, code = exit_code(child.pid)
            if is_over:
                del self._children[child.pid]
                self._hear_no_more(child)
                child.channel.close()
                yield child, code


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Signals that come meanwhile are heard afterwards, be it by another program in this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_code(pid: int) -> tuple[bool, int | None]:
    """Whether this child is over, and its exit code; None if somebody else was told."""
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True, None
    return (True, os.waitstatus_to_exitcode(status)) if done else (False, None)


def how(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "is gone"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"


def _never_called(_number: int, _frame: Any) -> None:
    """A handler for signals that are read from the wake-up file descriptor."""
