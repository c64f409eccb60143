"""A thread with an event loop of its own, for code that has none: started, asked, and ended from outside.

The invariants: what goes wrong in the thread is raised where somebody waits for it, and nobody waits for ever. A
process that was forked has no such thread; there everything is refused, and ending it does nothing.
"""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

import trio

from rawgrpc_proxy.errors import ConfigError, alone

T = TypeVar("T")
Main = Callable[[Callable[[str], None]], Awaitable[None]]
"""Runs until it is cancelled; calls what it is given once it is ready, with what `start` shall answer."""

_START_S = 30.0
_ANSWER_S = 10.0
_STOP_S = 10.0


class LoopThread:
    """Runs one `Main`, once."""

    def __init__(self, name: str, on_over: Callable[[], None]) -> None:
        """`on_over` is called in the thread, at its end."""
        self._name = name
        self._on_over = on_over
        self._started: Future[str] = Future()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._stopping = False
        self._has_ended = False
        """The loop; the thread itself may live on for a moment."""
        self.error: BaseException | None = None
        """What it has died of."""

    @property
    def is_running(self) -> bool:
        """Whether it has begun, and has not ended."""
        return self._thread is not None and not self._has_ended

    def start(self, main: Main) -> str:
        """Run it; answers once it is ready. Raises what it raises before that."""
        if self._thread is not None:
            raise ConfigError(f"{self._name} was started before; make another one")
        self._pid = os.getpid()
        # A daemon: whoever forgets to end it, or is interrupted for the second time, does not wait for it at exit.
        self._thread = threading.Thread(target=self._run, args=(main,), name=self._name, daemon=True)
        self._thread.start()
        try:
            return self._started.result(_START_S)
        except BaseException as error:
            self._end()  # no harm if it has ended; Ctrl-C, or it hangs
            if isinstance(error, TimeoutError):
                raise self._hangs("start", _START_S) from None
            raise

    def ask(self, function: Callable[[], T]) -> T:
        """Call it in the thread, and answer what it answers, or raise what it raises. Must not wait."""
        self.check()
        assert self._token is not None
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001  # whoever asked gets it
                answer.set_exception(error)

        try:
            # Once trio has taken it, it is called, even if the run just ends.
            self._token.run_sync_soon(run)
            return answer.result(_ANSWER_S)
        except trio.RunFinishedError:
            raise self._crashed() from self.error
        except TimeoutError:
            if answer.done():
                raise  # it was the function's
            raise self._hangs("answer", _ANSWER_S) from None

    def check(self) -> None:
        """Raise `RuntimeError` unless it runs, in this process."""
        if self._thread is None:
            raise RuntimeError(f"{self._name} does not run yet: use it inside `with ... as proxy:`")
        self.check_process()
        if self._has_ended:
            raise self._crashed() from self.error

    def check_process(self) -> None:
        """Raise `RuntimeError` in a process that was forked from the one that has started it."""
        if self._thread is not None and os.getpid() != self._pid:
            raise RuntimeError(
                f"{self._name} runs in the process that has started it ({self._pid}), and this one was forked"
            )

    def stop(self) -> None:
        """End it, and wait for that. Raises `RuntimeError` if it had crashed, or does not end."""
        if self._thread is None or os.getpid() != self._pid:
            return
        self._end()
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            raise self._hangs("end", _STOP_S)
        if self.error is not None:
            raise self._crashed() from self.error

    # --------------------------------------------------------------- in the thread

    def _run(self, main: Main) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._main, main)
        except BaseException as raised:  # noqa: BLE001  # told to those who wait
            error = alone(raised)
        if error is None and not self._stopping:
            error = RuntimeError("it has ended by itself")
        if self._started.done():
            self.error = error
        else:
            self._started.set_exception(error or RuntimeError("it was ended before it was ready"))
        self._has_ended = True
        self._on_over()

    async def _main(self, main: Main) -> None:
        with trio.CancelScope() as self._scope:
            self._token = trio.lowlevel.current_trio_token()
            # Whoever ends it sets this, then looks for the token: one of the two sees the other.
            if self._stopping:
                self._scope.cancel()
            await main(self._started.set_result)

    def _end(self) -> None:
        self._stopping = True
        if self._token is not None and self._scope is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)

    # ---------------------------------------------------------------------- errors

    def _crashed(self) -> RuntimeError:
        what = (
            "has ended" if self.error is None else f"has crashed ({type(self.error).__name__}: {self.error})"
        )
        return RuntimeError(f"{self._name} {what}")

    def _hangs(self, what: str, seconds: float) -> RuntimeError:
        """It does not do it; says where it is, for that is mostly code of a user's that blocks."""
        assert self._thread is not None
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001  # documented, for this
        stack = "" if frame is None else "".join(traceback.format_stack(frame))
        return RuntimeError(
            f"{self._name} does not {what} within {seconds:g} s. Its thread is here:\n{stack}"
        )
