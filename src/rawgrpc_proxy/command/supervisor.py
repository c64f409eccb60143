"""The process that serves nothing: it starts those that do, and keeps them running, through reloads and upgrades.

It owns the listening sockets, which its children inherit, so the kernel hands each connection to one of them and none
is lost when a worker dies, or is replaced by one with other settings (with one SO_REUSEPORT socket each, those queued
on the dead one would be). It runs no event loop and no thread, so it may fork at any time.

    SIGTERM, SIGINT    no more connections; all workers drain. The second one ends them at once
    SIGHUP             reload: new workers with the settings read again; when all of them serve, the old ones drain
    SIGUSR2            upgrade: as a reload, by the program as it is installed now, which takes this process over
    a worker dies      it is replaced; one that lives for less than a second is replaced ever more slowly, and so is one
                       that cannot be started, for want of memory or processes
    the supervisor     its workers notice (their channel reads end of file) and stop
    dies

All workers of one reading of the settings are a *generation*. Nothing changes before the next one serves: settings that
cannot be used, an address that is taken, a worker that does not start, leave the present one as it is, and are told of.
Beside the workers there may be an *admin process*, which speaks for all: it goes on through reloads, and ends last.

An upgrade replaces the program of this very process (`execve`), so that its id, which service managers, containers and
people know, stays the same, and so do its children. It is first tried (`upgrade.py`).

What it does not do: know what a worker does, or share anything between workers. Each has its own connections, so an
upstream sees up to N times as many.
"""

import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence

from rawgrpc_proxy.command.channel import DRAINING, READY
from rawgrpc_proxy.command.children import STOP, Child, Children, how, signals_wait
from rawgrpc_proxy.command.generation import Asked, Generation, Source
from rawgrpc_proxy.command.handover import Handover, InheritedChild
from rawgrpc_proxy.command.upgrade import NewProgram
from rawgrpc_proxy.errors import ConfigError

_RESTART_FIRST_S = 0.1
_RESTART_MAX_S = 5.0
_STEADY_AFTER_S = 1.0
_LETS_GO_WITHIN_S = 1.0
"""Until then workers that were told to stop take no more connections: whoever is told of a reload may rely on it."""
_ENDS_WITHIN_S = 10.0
"""A process that was told to stop, when its grace is over: for the last bytes and lines. One that hangs is killed."""
_READY_WITHIN_S = 60.0
"""For a generation that is to replace another, and for a new program. PyPy takes seconds on a busy machine."""
_ADMIN = 0
_ADMIN_ENDS_WITHIN_S = 3.0


class Supervisor:
    """Runs generations that come from a source until a signal stops it. For a process with one thread."""

    def __init__(self, source: Source, command: Sequence[str] = (), kept: Sequence[int] = ()) -> None:
        """`command` starts the program again, for an upgrade: its file, and all arguments from `argv[0]` on.

        `kept` are file descriptors that the next program is to have as well.
        """
        self._source = source
        self._kept = kept
        self._new_program = NewProgram(command)
        self._children = Children()
        self._present: Generation | None = None
        self._next: Generation | None = None
        """Takes over when all of its workers serve."""
        self._next_by = 0.0
        self._taken_over: str | None = None
        """What to tell of a generation that has taken over, when those before it take no more connections."""
        self._told_by = 0.0
        self._restarts: dict[int, float] = {}
        """The worker's number → when to start it again."""
        self._pauses: dict[int, float] = {}
        self._reload_at: float | None = None
        self._asked: deque[Asked] = deque()
        """Reloads and upgrades that wait until the one under way is over."""
        self._was_ready = False
        self._stopping = False
        self._failed = False

    def run(self, first: Generation | None, inherited: Handover | None = None) -> int:
        """Run it, and those that follow; answer 0 if all processes ended well.

        `inherited` are the children of the program before an upgrade: they drain once the first generation serves.
        There is none yet if the settings cannot be used any more: they go on, and it is tried again.
        """
        try:
            for child in inherited.children if inherited is not None else ():
                self._source.child_started(self._children.adopt(child))
            if first is None:
                self._reload_at = time.monotonic() + _RESTART_MAX_S
            elif self._children:
                self._next, self._next_by = first, time.monotonic() + _READY_WITHIN_S
            else:
                self._present = first
                self._start_admin(first)
            if first is not None:
                self._start_all(first)
            while self._children or self._new_program.is_tried or not self._stopping:
                self._turn()
        finally:
            self._children.close()
            if self._present is not None:
                self._present.retire(None)
        return 1 if self._failed else 0

    # --------------------------------------------------------------- the loop

    def _turn(self) -> None:
        """Wait for the next thing that happens, and see to it."""
        signals, said = self._children.wait(self._pause_s())
        for child, data in said:
            child.ready = child.ready or READY in data
            child.drains = child.drains or DRAINING in data
            if (asked := self._source.heard(child, data)) is not None:
                self._ask(asked)
        for number in signals:
            if number in STOP:
                self._stop(signal.Signals(number).name)
            elif number == signal.SIGHUP:
                self._ask("reload")
            elif number == signal.SIGUSR2:
                self._ask("upgrade")
        self._see_to_trial()
        for child, code in self._children.ended():
            self._ended(child, code)
        self._do_what_is_due()
        if self._next is not None:
            self._see_to_next()
        elif not self._was_ready and self._present is not None and self._serves(self._present):
            self._was_ready = True
            self._source.state("ready")
        self._see_to_taken_over()

    def _pause_s(self) -> float | None:
        """How long nothing is due."""
        now = time.monotonic()
        left = [due - now for due in self._restarts.values()] if not self._stopping else []
        if self._next is not None:
            left.append(self._next_by - now)
        if self._taken_over is not None:
            left.append(self._told_by - now)
        if self._reload_at is not None and not self._stopping:
            left.append(self._reload_at - now)
        left += [child.ends_by - now for child in self._children if child.ends_by < math.inf]
        if self._new_program.trial_by < math.inf:
            left.append(self._new_program.trial_by - now)
        if (pause_s := self._source.tick()) is not None:
            left.append(pause_s)
        return max(0.0, min(left)) if left else None

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for number, due in list(self._restarts.items()):
            if due <= now and not self._stopping and self._present is not None:
                del self._restarts[number]
                if number == _ADMIN:
                    self._start_admin(self._present)
                else:
                    self._start(number, self._present)
        if self._reload_at is not None and self._reload_at <= now:
            self._reload_at = None
            self._ask("reload")
        for child in self._children:
            if child.ends_by <= now:
                self._source.say(f"{_name(child.number)} (pid {child.pid}) hangs: it is killed")
                self._children.kill(child)

    def _ask(self, what: Asked) -> None:
        if what == "stop":
            if not self._stopping:  # another signal ends at once; who asks twice does not mean that
                self._stop("told to stop")
        elif not self._stopping:
            self._asked.append(what)
            self._see_to_asked()

    def _see_to_asked(self) -> None:
        """Begin what was asked for first, if nothing is under way."""
        while self._asked and not (self._is_changing or self._stopping):
            what = self._asked.popleft()
            # One is as good as many that were asked for before it begins.
            while self._asked and self._asked[0] == what:
                self._asked.popleft()
            if what == "reload" or self._present is None:
                self._reload()
            else:
                self._try_upgrade()

    @property
    def _is_changing(self) -> bool:
        return self._next is not None or self._new_program.is_tried or self._taken_over is not None

    def _stop(self, why: str) -> None:
        """The first time all drain; the second time they end at once."""
        again, self._stopping = self._stopping, True
        self._taken_over = None
        self._asked.clear()
        self._new_program.end_trial()
        if not again:
            self._source.state("stopping")
            self._source.say(f"{why}: stopping; a second signal ends at once")
            for generation in (self._next, self._present):
                if generation is not None:
                    generation.retire(None)
            self._next = None
        else:
            self._source.say(f"{why} again: ending at once")
        for child in self._workers():
            # One that drains already has its grace; a second signal would cut off its calls.
            if again or not child.told_to_stop:
                self._terminate(child)
        self._stop_admin_last()

    def _stop_admin_last(self) -> None:
        """While workers drain, the admin process tells of it."""
        if not self._workers():
            self._stop_admin()

    def _stop_admin(self) -> None:
        for child in self._children:
            if child.number == _ADMIN and not child.told_to_stop:
                self._terminate(child)

    def _replace_admin(self) -> None:
        """Start the present generation's when the one before has written down what it knows, or has had the time."""
        self._stop_admin()
        before = any(child.number == _ADMIN for child in self._children)
        self._restarts[_ADMIN] = time.monotonic() + (_ADMIN_ENDS_WITHIN_S if before else 0)

    # ------------------------------------------------------------ generations

    def _reload(self) -> None:
        self._source.state("reloading")
        try:
            self._next = self._source.generation(self._present)
        except ConfigError as error:
            self._reload_failed(problems_of(error))
            if self._present is None:
                self._reload_at = time.monotonic() + _RESTART_MAX_S
            return
        self._next_by = time.monotonic() + _READY_WITHIN_S
        self._start_all(self._next)

    def _reload_failed(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self._source.say(f"reload: {problem}")
        self._source.say("reload: nothing has changed; the workers that serve go on")
        self._source.reloaded(problems)
        self._source.state("ready")

    def _workers(self) -> list[Child]:
        return [child for child in self._children if child.number != _ADMIN]

    def _serves(self, generation: Generation) -> bool:
        running = [child for child in self._workers() if child.of is generation]
        return len(running) == generation.count and all(child.ready for child in running)

    def _see_to_next(self) -> None:
        """Let the next generation take over once it serves; give it up if it does not come to that."""
        assert self._next is not None
        if self._serves(self._next):
            self._take_over(self._next)
        elif time.monotonic() >= self._next_by:
            self._give_up_next(f"the new workers did not serve within {_READY_WITHIN_S:g} s")

    def _take_over(self, following: Generation) -> None:
        before, self._present, self._next = self._present, following, None
        self._was_ready = True
        self._reload_at = None
        self._restarts.clear()
        self._pauses.clear()
        if before is not None:
            before.retire(following)
        for child in self._workers():
            if child.of is not following and not child.told_to_stop:
                self._terminate(child)
        if before is None or before.admin != following.admin:
            self._replace_admin()
        draining = sum(child.told_to_stop for child in self._workers())
        self._taken_over = (
            f"{_count(following.count, 'new worker')} serving, with the settings as they are now; "
            f"{_count(draining, 'worker')} draining"
        )
        self._told_by = time.monotonic() + _LETS_GO_WITHIN_S

    def _see_to_taken_over(self) -> None:
        """Tell that a generation has taken over, once new connections are only for it."""
        if self._taken_over is None:
            return
        let_go = all(child.drains for child in self._workers() if child.told_to_stop)
        if let_go or time.monotonic() >= self._told_by:
            text, self._taken_over = self._taken_over, None
            self._source.reloaded([])
            self._source.say(text)
            self._source.state("ready")
            self._see_to_asked()

    def _give_up_next(self, why: str) -> None:
        given_up, self._next = self._next, None
        assert given_up is not None
        for child in self._workers():
            if child.of is given_up:
                self._terminate(child)
        if self._present is None:
            # The program was upgraded, and this was its first: the workers before go on, and it tries again.
            self._present = given_up
            self._reload_at = time.monotonic() + _RESTART_MAX_S
        else:
            given_up.retire(self._present)
        self._reload_failed([why])
        self._see_to_asked()

    # ---------------------------------------------------------------- upgrade

    def _try_upgrade(self) -> None:
        """Try the new program in a process of its own; when that has ended well, `_upgrade`."""
        self._source.state("reloading")
        try:
            self._new_program.begin_trial(self._children, self._handover, within_s=_READY_WITHIN_S)
        except OSError as error:
            self._upgrade_failed(f"the new program cannot be tried: {error.strerror}")

    def _see_to_trial(self) -> None:
        if not self._new_program.trial_has_ended():
            return
        if self._new_program.problem is not None:
            self._upgrade_failed(self._new_program.problem)
        elif not self._stopping:
            self._upgrade()

    def _upgrade(self) -> None:
        """Become the new program. Returns only if that cannot be."""
        handover = self._handover()
        with signals_wait():  # for the new program, which asks for them
            # What came before that only we have heard. Settings are read anew in any case.
            if (stop := next((each for each in self._children.signals() if each in STOP), None)) is not None:
                self._stop(signal.Signals(stop).name)
                return
            try:
                self._new_program.take_over(handover)
            except OSError as error:
                self._upgrade_failed(f"{error.strerror}")

    def _upgrade_failed(self, why: str) -> None:
        if not self._stopping:
            self._source.say(f"upgrade: {why}; nothing has changed, the workers that serve go on")
            self._source.state("ready")
            self._see_to_asked()

    def _handover(self) -> Handover:
        assert self._present is not None
        return Handover(
            listeners=self._present.handed_over(),
            kept=self._kept,
            children=[
                InheritedChild(
                    pid=child.pid,
                    number=child.number,
                    descriptor=child.channel.fileno(),
                    told_to_stop=child.told_to_stop,
                    grace_s=child.grace_s,
                    ends_by=child.ends_by,
                )
                for child in self._children
            ],
        )

    # -------------------------------------------------------------- processes

    def _start_all(self, generation: Generation) -> None:
        for number in range(1, generation.count + 1):
            if generation in (self._present, self._next):  # not given up meanwhile
                self._start(number, generation)

    def _start_admin(self, generation: Generation) -> None:
        for child in self._children:
            if child.number == _ADMIN:  # it hangs
                os.kill(child.pid, signal.SIGKILL)
        if generation.admin is not None:
            self._start(_ADMIN, generation)

    def _start(self, number: int, generation: Generation) -> None:
        def life(channel: socket.socket) -> int:
            return generation.run_admin(channel) if number == _ADMIN else generation.work(number, channel)

        try:
            child = self._children.start(number, generation, life, generation.grace_s)
        except OSError as error:
            if number != _ADMIN and generation is self._next:
                self._give_up_next(f"{_name(number)} cannot be started: {error.strerror}")
            else:
                pause_s = self._start_later(number, steady=False)
                self._source.say(
                    f"{_name(number)} cannot be started: {error.strerror}; next try in {pause_s:.1f} s"
                )
        else:
            self._source.child_started(child)

    def _ended(self, child: Child, code: int | None) -> None:
        self._source.child_ended(child)
        well = code in {0, -signal.SIGTERM, None}
        who = f"{_name(child.number)} (pid {child.pid})"
        if self._stopping:
            # One that had no time to listen for SIGTERM yet has nothing to finish either.
            self._failed = self._failed or not well
            self._stop_admin_last()
        elif child.told_to_stop:
            if not well:
                self._source.say(f"{who}, told to stop, {how(code)}")
            if child.number == _ADMIN and _ADMIN in self._restarts:
                self._restarts[_ADMIN] = time.monotonic()
        elif child.number != _ADMIN and child.of is self._next and self._next is not None:
            self._give_up_next(f"{who} {how(code)} before all of them served")
        elif child.number != _ADMIN and (child.of is None or child.of is not self._present):
            self._source.say(f"{who} of the program before {how(code)}")
        else:
            steady = time.monotonic() - child.started >= _STEADY_AFTER_S
            pause_s = self._start_later(child.number, steady=steady)
            self._source.say(f"{who} {how(code)}; it is replaced in {pause_s:.1f} s")

    def _terminate(self, child: Child) -> None:
        """Tell it to stop, by when it has to be over. The second time it ends at once."""
        at_once = child.number == _ADMIN or child.told_to_stop
        child.ends_by = time.monotonic() + (0.0 if at_once else child.grace_s) + _ENDS_WITHIN_S
        if child.told_to_stop:
            self._children.abort(child)
        else:
            self._children.terminate(child)

    def _start_later(self, number: int, *, steady: bool) -> float:
        """Have the process started again, and answer in how many seconds: ever more if it does not hold."""
        pause_s = (
            _RESTART_FIRST_S
            if steady
            else min(self._pauses.get(number, _RESTART_FIRST_S) * 2, _RESTART_MAX_S)
        )
        self._pauses[number] = pause_s
        self._restarts[number] = time.monotonic() + pause_s
        return pause_s


def problems_of(error: ConfigError) -> Sequence[str]:
    """What is wrong, one line each."""
    return getattr(error, "problems", None) or [str(error)]


def _name(number: int) -> str:
    return f"worker {number}" if number else "the admin process"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
