"""The program as it is installed now: tried in a process of its own, then put in the place of this one (`execve`).

There is no way back, hence the trial: the new program reads its settings, and its exit code says whether it could run.
What it does not do: say when (`supervisor.py`), or what the new program has of the old one (`handover.py`).
"""

import math
import os
import signal
import time
from collections.abc import Callable, Sequence

from rawgrpc_proxy.command.children import Children, exit_code, how
from rawgrpc_proxy.command.handover import Handover


class NewProgram:
    """What `command` starts: its file, and all arguments from `argv[0]` on. For a process with one thread."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._trial: int | None = None
        """The process that tries it."""
        self._within_s = self._trial_by = math.inf
        self.problem: str | None = None
        """What was wrong in the last trial, in words."""

    @property
    def is_tried(self) -> bool:
        """Whether a trial is under way."""
        return self._trial is not None

    @property
    def trial_by(self) -> float:
        """When, on the monotonic clock, it has to be over: then it is to be looked at."""
        return math.inf if self._trial is None else self._trial_by

    def begin_trial(self, children: Children, handover: Callable[[], Handover], *, within_s: float) -> None:
        """Try it, with what it would be handed over. Raises `OSError` if there is no process for it."""
        self._trial = children.fork(lambda: self._exec(handover(), is_trial=True))
        self._within_s, self._trial_by = within_s, time.monotonic() + within_s

    def trial_has_ended(self) -> bool:
        """Whether one has, since this was last asked; `problem` says what came of it. One that hangs is killed."""
        if self._trial is None:
            return False
        is_over, code = exit_code(self._trial)
        if not is_over:
            if time.monotonic() >= self._trial_by:
                self.end_trial()  # reloads wait for it
            return False
        self._trial = None
        hung = self._trial_by == math.inf
        what = f"had not started within {self._within_s:g} s" if hung else how(code)
        self.problem = None if code == 0 else f"the new program {what} when it was tried"
        return True

    def end_trial(self) -> None:
        """Kill the process that tries it; its end is still to be waited for."""
        if self._trial is not None:
            os.kill(self._trial, signal.SIGKILL)
            self._trial_by = math.inf

    def take_over(self, handover: Handover) -> None:
        """Become it. Raises `OSError` if that cannot be, with nothing changed; else there is nobody to return to."""
        descriptors = handover.descriptors()
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)  # noqa: FBT003
        try:
            self._exec(handover)
        except OSError as error:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)  # noqa: FBT003
            raise OSError(error.errno, f"{self._command[0]}: {error.strerror}") from error

    def _exec(self, handover: Handover, *, is_trial: bool = False) -> int:
        program, *arguments = self._command
        os.execve(program, arguments, handover.environment(trial=is_trial))  # noqa: S606  # what runs already
