"""`serve`, seen from its supervisor: settings become a generation of workers, and again at every reload.

    settings ──► checked ──► listening ──► workers serve ──SIGHUP──► settings read again, new workers; old ones drain
                                                         ──SIGTERM─► all drain, for the grace ──► stopped

What a worker does is in `worker.py`; when it is started and ended is the supervisor's matter (`supervisor.py`).
The invariant: what cannot be used is found before anything changes.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rawgrpc_proxy.command import notify
from rawgrpc_proxy.command.admin_news import nameless_file, news_for_admin
from rawgrpc_proxy.command.assembly import objection_to_loops, process_of, workers_of
from rawgrpc_proxy.command.channel import ALIVE, LINK
from rawgrpc_proxy.command.check import text_of
from rawgrpc_proxy.command.children import Child, signals_wait
from rawgrpc_proxy.command.generation import Asked, State
from rawgrpc_proxy.command.handover import Handover, taken_over
from rawgrpc_proxy.command.listening import Listening, keys_of
from rawgrpc_proxy.command.log import log_for
from rawgrpc_proxy.command.settings.file import Settings
from rawgrpc_proxy.command.supervisor import Supervisor, problems_of
from rawgrpc_proxy.command.worker import Inherited, calm_garbage_collector, run_process
from rawgrpc_proxy.descriptors import raise_soft_limit
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.accept_share import AcceptShare, shared_counts
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineWriter, unbuffered

_WAITS_S = 0.1
"""For its log, before the supervisor looks after its workers again."""
_ASKED: tuple[Asked, ...] = ("stop", "reload")
_BEATS = 4
"""A worker says that it is alive so many times in the interval of the watchdog."""


def serve(read: Callable[[], Settings]) -> int:
    """Run `serve` with the settings that `read` answers, now and at every reload; answer the exit code.

    Raises `ConfigError` for what cannot be used at the start.
    """
    with signals_wait():  # until the supervisor hears them
        handover = taken_over()
        raise_soft_limit()
        with contextlib.closing(_Source(read, handover)) as source:
            first = _first(source, handover)
            if handover is not None and handover.is_trial:
                return 0
            calm_garbage_collector()
            command = [sys.executable, *sys.orig_argv]
            return Supervisor(source, command, [source.ledger]).run(first, handover)


def _first(source: "_Source", handover: Handover | None) -> "_Generation | None":
    """None if the settings cannot be used any more since the new program was tried: there is no way back to the old.

    Raises `ConfigError` at any other start.
    """
    try:
        return source.generation(None)
    except ConfigError as error:
        if handover is None or handover.is_trial:
            raise
        for problem in problems_of(error):
            source.say(f"upgrade: {problem}")
        source.say("upgrade: the workers of the program before go on; the settings are tried again")
        return None


class _Generation:
    """The workers of one reading of the settings."""

    def __init__(self, settings: Settings, listening: Listening, beat_s: float | None, ledger: int) -> None:
        self._ledger = ledger
        self.settings = settings
        self.count = workers_of(settings.serve)
        self.grace_s = settings.serve.grace_s
        listeners = [listener.address for listener in settings.serve.listeners]
        admin = settings.serve.admin
        self.admin: object | None = admin
        self.all_keys = keys_of([*listeners, *([admin.address] if admin is not None else [])])
        self.keys = self.all_keys[: len(listeners)]
        self._listening = listening
        self._counts = shared_counts(self.count)
        self._beat_s = beat_s

    def work(self, number: int, channel: socket.socket) -> int:
        """A worker's whole life."""
        self._listening.close_all_but(self.keys)
        several = self.count > 1
        log = log_for(self.settings.serve, worker=number if several else None)
        inherited = Inherited(
            listeners=[self._listening.sockets(key) for key in self.keys],
            share=AcceptShare(self._counts, number - 1) if several else None,
            channel=channel,
            beat_s=self._beat_s,
        )
        return run_process(log, lambda: process_of(self.settings, log, worker=number), inherited)

    def run_admin(self, channel: socket.socket) -> int:
        """The admin process's whole life."""
        from rawgrpc_proxy.command.admin_process import run_admin_process  # noqa: PLC0415  # HTTP and metrics: for few

        (key,) = self.all_keys[len(self.keys) :]
        self._listening.close_all_but([key])
        assert self.settings.serve.admin is not None
        return run_admin_process(
            channel,
            self._listening.sockets(key),
            log_for(self.settings.serve),
            names=self.settings.serve.admin.names(),
            may_set_faults=self.settings.serve.admin.faults,
            may_tap=self.settings.serve.admin.tap,
            ledger=self._ledger,
        )

    def retire(self, successor: object | None) -> None:
        """Stop listening where the successor does not."""
        kept = successor.all_keys if isinstance(successor, _Generation) else ()
        self._listening.close(key for key in self.all_keys if key not in kept)

    def handed_over(self) -> dict[str, list[int]]:
        """All that listens."""
        return self._listening.descriptors()


class _Source:
    """Reads settings, speaks for the supervisor, and listens to its processes."""

    def __init__(self, read: Callable[[], Settings], handover: Handover | None) -> None:
        self._read = read
        self._is_trial = handover is not None and handover.is_trial
        self._listening = Listening(
            handover.listeners if handover is not None and not self._is_trial else None
        )
        self._log: CallLog | None = None
        self._watchdog_s = notify.watchdog_s()
        self._petted_at = 0.0
        self._beats: dict[int, float] = {}
        """When each worker was last heard."""
        self._workers: dict[int, Child] = {}
        self._admin: Child | None = None
        self._asked = b""
        """A part of what the admin process asks for."""
        self._reload_asked = self._reload_is_asked = False
        """The admin process has asked for a reload; the one under way was asked for by it."""
        if handover is None or self._is_trial:
            self._ledger = nameless_file()
        else:
            (kept,) = handover.kept
            os.set_inheritable(kept, False)  # noqa: FBT003
            self._ledger = os.fdopen(kept, "r+b")
        self.ledger = self._ledger.fileno()
        """Of the admin process, of this one and of those that come."""
        self._settings: Settings | None = None
        """The last that could be used."""
        self._news: dict[str, Any] = {"state": "starting" if handover is None else "serving"}

    def generation(self, present: object | None) -> _Generation:
        """One of the settings as they are now. Raises `ConfigError`, with nothing changed."""
        self._reload_asked, self._reload_is_asked = False, self._reload_asked
        settings = self._read()
        log = log_for(settings.serve)
        if settings.serve.admin is not None:
            import rawgrpc_proxy.command.admin_process  # noqa: F401, PLC0415  # raises for what is not installed
        process_of(settings, log)  # raises for what is wrong with it; each worker makes its own
        beat_s = None if self._watchdog_s is None else self._watchdog_s / _BEATS
        generation = _Generation(settings, self._listening, beat_s, self.ledger)
        if self._is_trial:
            return generation
        if present is None:
            # What the program before an upgrade had, and this one has not. Its workers have it while they drain.
            self._listening.close(key for key in list(self._listening) if key not in generation.all_keys)
        opened = self._listening.open(generation.all_keys)
        try:
            objection_to_loops(settings, [self._listening.sockets(key) for key in generation.all_keys])
        except BaseException:
            self._listening.close(opened)
            raise
        log.collect()  # the supervisor must not wait for who reads it
        self._log, self._settings = log, settings
        if settings.serve.faults is not None:
            self.say(f"faults on purpose are in force, by {settings.serve.faults}", event="faults")
        if present is None:
            self._news |= _facts(settings)
        self._announce(generation, opened)
        return generation

    def _announce(self, generation: _Generation, opened: Sequence[str]) -> None:
        """Say on standard output where calls are accepted. Whoever has started us may not read."""
        stdout = LineWriter(unbuffered(sys.stdout), str)
        stdout.collect()
        for key in opened:
            where = self._listening.where(key)
            stdout.add(f"listening on {where}\n" if key in generation.keys else f"admin: {_url(where)}\n")
        stdout.flush()

    def close(self) -> None:
        """All is over."""
        self._ledger.close()

    def say(self, text: str, *, event: str = "workers") -> None:
        """Write it to the log; without settings its format is not known."""
        if self._log is None:
            self._log = CallLog("text", unbuffered(sys.stderr))
            self._log.collect()
        self._log.notice(event, text, message=text)
        self._log.flush(_WAITS_S)
        self._log.collect()

    def state(self, state: State) -> None:
        """Tell systemd, and the admin process."""
        self._news |= {} if state == "reloading" else {"state": "serving" if state == "ready" else "draining"}
        self._tell_admin(self._news)
        if state == "ready":
            notify.notify("READY=1\nSTATUS=Serving.")
        elif state == "reloading":
            notify.reloading()
        else:
            notify.notify("STOPPING=1\nSTATUS=Draining.")

    def child_started(self, child: Child) -> None:
        """Count a worker's silence from now on, and link it with the admin process."""
        is_new = child.of is not None  # else the program before an upgrade has started and linked it
        if child.number:
            self._beats[child.pid] = time.monotonic()
            self._workers[child.pid] = child
            if is_new:
                self._link(child)
            return
        self._admin, self._asked = child, b""
        if is_new:
            self._tell_admin({**self._news, "pids": list(self._workers)})
            for worker in self._workers.values():
                self._link(worker)
            self._tell_admin({"linked": True})

    def child_ended(self, child: Child) -> None:
        """Nobody waits for it any more."""
        self._beats.pop(child.pid, None)
        self._workers.pop(child.pid, None)
        if child is self._admin:
            self._admin = None

    def heard(self, child: Child, data: bytes) -> Asked | None:
        """A worker lives; or the admin process was asked for something."""
        if child.number:
            if ALIVE in data:
                self._beats[child.pid] = time.monotonic()
            return None
        *lines, self._asked = (self._asked + data).split(b"\n")
        asked = next((asked for asked in _ASKED if asked.encode() in lines), None)
        self._reload_asked = self._reload_asked or asked == "reload"
        return asked

    def _link(self, worker: Child) -> None:
        """Have a worker and the admin process talk to each other."""
        if self._admin is None:
            return
        with contextlib.suppress(OSError):  # it is gone, or hangs: then it answers nobody
            ours, theirs = socket.socketpair()
            with ours, theirs:
                if self._tell_admin({"worker": worker.number, "pid": worker.pid}, theirs):
                    socket.send_fds(worker.channel, [LINK], [ours.fileno()])

    def _tell_admin(self, news: Mapping[str, Any], link: socket.socket | None = None) -> bool:
        """Whether it could be told. An admin process that does not read is of no use: it is replaced."""
        if self._admin is None:
            return False
        try:
            news_for_admin(self._admin.channel, news, link)
        except OSError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._admin.pid, signal.SIGKILL)
            self._admin = None
            return False
        return True

    def tick(self) -> float | None:
        """Tell the watchdog that all is well, unless a worker is silent."""
        if self._watchdog_s is None:
            return None
        now = time.monotonic()
        if now - self._petted_at >= self._watchdog_s / _BEATS:
            self._petted_at = now
            if all(now - heard < self._watchdog_s for heard in self._beats.values()):
                notify.notify("WATCHDOG=1")
        return self._petted_at + self._watchdog_s / _BEATS - now

    def reloaded(self, problems: Sequence[str]) -> None:
        """Whoever has asked the admin process for it hears what came of it, and it has the settings in force."""
        if not problems and self._settings is not None:
            self._news |= _facts(self._settings)
        self._tell_admin({**self._news, **({"reloaded": list(problems)} if self._reload_is_asked else {})})
        self._reload_is_asked = False


def _facts(settings: Settings) -> dict[str, Any]:
    """What the admin process tells of the settings in force."""
    return {"config": text_of(settings), "engine": settings.serve.http2.engine}


def _url(address: Address) -> str:
    return str(address) if address.path is not None else f"http://{address}/"
