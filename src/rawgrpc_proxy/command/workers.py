"""Several processes on one listening socket: `run_workers` forks them, and keeps them running.

The socket is bound before the first fork and inherited, so the kernel hands each connection to one worker and none is
lost when a worker dies or is replaced (with one SO_REUSEPORT socket each, those queued on the dead one would be). Which
worker gets it is up to them (`net/accept_share.py`).
The parent serves nothing: it waits for signals and for children.

    SIGTERM, SIGINT    to the parent: passed on to all workers as SIGTERM; the second one too, which ends them at once
    a worker dies      it is replaced; one that lives for less than a second is replaced ever more slowly, and so is one
                       that cannot be started, for want of memory or processes
    the parent dies    each worker notices (its `orphaned` file descriptor reads end of file) and stops

What it does not do: share anything between the workers. Each has its own pools, so an upstream sees up to N times as
many connections.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

_RESTART_FIRST_S = 0.1
_RESTART_MAX_S = 5.0
_STEADY_AFTER_S = 1.0
_SHORTEST_ALARM_S = 0.001
"""The system would take a fraction of a microsecond for none, and no alarm would come."""
_CRASHED = 1
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM}

Serve = Callable[[int, int], int]
"""What a worker does, given its number (from 1) and the `orphaned` descriptor; answers the process's exit code. What it
raises is shown on standard error, and the code is 1."""


def cores() -> int:
    """How many processors this process may use."""
    count: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_workers(count: int, serve: Serve, say: Callable[[str], None]) -> int:
    """Run `count` workers until a signal stops them, and answer 0 if all of them ended well.

    Call it in a process with one thread, before any event loop. `say` gets a line when a worker is replaced, or cannot
    be started; it must not wait, for signals do meanwhile.
    """
    return _Supervisor(serve, say).run(count)


class _Supervisor:
    def __init__(self, serve: Serve, say: Callable[[str], None]) -> None:
        self._serve = serve
        self._say = say
        self._running: dict[int, tuple[int, float]] = {}
        """Process id → the worker's number and when it was started."""
        self._restarts: dict[int, float] = {}
        """The worker's number → when to start it again."""
        self._pauses: dict[int, float] = {}
        self._stopping = False
        self._failed = False
        self._orphaned, self._alive = os.pipe()

    def run(self, count: int) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # One that is ignored, as SIGCHLD may be from our own parent, or on macOS by default, is not waited for either.
        heard = signal.signal(signal.SIGCHLD, _never_called)
        try:
            for number in range(1, count + 1):
                self._start(number)
            while self._running or (self._restarts and not self._stopping):
                self._handle(self._next_signal())
                self._reap()
                self._restart_due()
        finally:
            signal.signal(signal.SIGCHLD, heard or signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(self._orphaned)
            os.close(self._alive)
        return 1 if self._failed else 0

    def _start(self, number: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            pause = self._start_later(number, steady=False)
            self._say(f"worker {number} cannot be started: {error.strerror}; next try in {pause:.1f} s")
            return
        if pid:
            self._running[pid] = number, time.monotonic()
        else:
            self._become(number)

    def _become(self, number: int) -> None:
        """The worker's whole life. Does not return."""
        code = _CRASHED
        try:
            # A terminal sends SIGINT to all of us. The parent hears it for the workers.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(self._alive)
            code = self._serve(number, self._orphaned)
        except BaseException:  # noqa: BLE001  # nobody above us is a worker
            with contextlib.suppress(Exception):
                sys.stderr.write(f"worker {number} crashed:\n{traceback.format_exc()}")
                sys.stderr.flush()
        finally:
            os._exit(code)

    def _next_signal(self) -> int:
        if not self._restarts or self._stopping:
            return signal.sigwait(_SIGNALS)
        pause = min(self._restarts.values()) - time.monotonic()
        if pause <= 0:
            return signal.SIGALRM
        # An alarm, for want of sigtimedwait on PyPy.
        signal.setitimer(signal.ITIMER_REAL, max(pause, _SHORTEST_ALARM_S))
        received = signal.sigwait(_SIGNALS)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return received

    def _handle(self, signal_number: int) -> None:
        if signal_number in {signal.SIGCHLD, signal.SIGALRM}:
            return
        self._stopping = True
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        for pid in list(self._running):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, None  # somebody else was told how it ended
            if not done:
                continue
            number, started = self._running.pop(pid)
            code = None if status is None else os.waitstatus_to_exitcode(status)
            if self._stopping:
                # One that had no time to listen for SIGTERM yet has nothing to finish either.
                self._failed = self._failed or code not in {0, -signal.SIGTERM, None}
                continue
            pause = self._start_later(number, steady=time.monotonic() - started >= _STEADY_AFTER_S)
            self._say(f"worker {number} (pid {pid}) {_how(code)}; it is replaced in {pause:.1f} s")

    def _start_later(self, number: int, *, steady: bool) -> float:
        """Have the worker started again, and answer in how many seconds: ever more if it does not hold."""
        pause = (
            _RESTART_FIRST_S
            if steady
            else min(self._pauses.get(number, _RESTART_FIRST_S) * 2, _RESTART_MAX_S)
        )
        self._pauses[number] = pause
        self._restarts[number] = time.monotonic() + pause
        return pause

    def _restart_due(self) -> None:
        now = time.monotonic()
        for number, due in list(self._restarts.items()):
            if due <= now and not self._stopping:
                del self._restarts[number]
                self._start(number)


def _how(code: int | None) -> str:
    """How a worker ended."""
    if code is None:
        return "is gone"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"


def _never_called(_number: int, _frame: Any) -> None:
    """The handler of a signal that is waited for."""
