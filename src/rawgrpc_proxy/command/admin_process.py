"""The admin process: it answers HTTP for all workers, asks them how they are, and tells the supervisor what was asked.

    supervisor ──channel──► news: state, settings, what came of a reload; with a worker's, its end of a link
               ◄──channel── "reload", "stop"
    workers    ──link──► reports (`link.py`)

It goes on while workers are replaced, and ends after the last of them, so that what they had counted is not lost; what
must not be lost with itself is in a ledger, which the next admin process has, too (`admin_news.py`). It is apart from
the supervisor, which has no event loop and must not wait, and from the workers: a slow reader of metrics costs no call
anything.
"""

import contextlib
import signal
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import trio

from rawgrpc_proxy.command.admin.messages import Refused, Stream
from rawgrpc_proxy.command.admin.site import serve_admin
from rawgrpc_proxy.command.admin_news import news_from_supervisor, read_ledger, write_ledger
from rawgrpc_proxy.command.lab.admin_faults import TELL, FaultOrders, summed
from rawgrpc_proxy.command.lab.admin_taps import AdminTaps
from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.command.link import Link, NoAnswer
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.exposition import exposition
from rawgrpc_proxy.observe.merge import GONE, Reports, merged

RELOAD, STOP = "reload", "stop"
_ANSWER_WITHIN_S = 1.0
_LOOK_EVERY_S = 5.0
"""What a worker has counted since is lost if it is killed."""
_HEARS_OF_IT_WITHIN_S = 0.5
"""The admin process, from the supervisor, that the service stops."""
_RELOAD_WITHIN_S = 25.0
"""Less than `Limits.answer_timeout_s` of the admin listener."""
SILENT = "silent"
"""The state of a worker that does not answer: what it had said before is all that is known of it."""


class _Supervisor:
    """The other end of the channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        channel.settimeout(0)

    async def news(self) -> tuple[dict[str, Any], socket.socket | None] | None:
        """Wait for what it tells, and the link that comes with it; None when it is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._channel)
            with contextlib.suppress(BlockingIOError):
                return news_from_supervisor(self._channel)

    def tell(self, what: str) -> None:
        """Ask it for something."""
        with contextlib.suppress(OSError):
            self._channel.send(what.encode() + b"\n")


class _Reload:
    """One that was asked for."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.problems: list[str] | None = None
        """What is wrong with the settings; None if they were not read."""


class Workers:
    """A `Source` of the admin listener: all workers, through their links."""

    def __init__(
        self, supervisor: _Supervisor, ledger: int, *, may_set_faults: bool = False, may_tap: bool = False
    ) -> None:
        before = read_ledger(ledger)
        self.config = self.engine = ""
        self.state = "starting"
        self.started_at = before.get("started_at", time.time())
        self.exposition = exposition
        self.merged = merged
        self._supervisor = supervisor
        self._links: dict[int, Link] = {}
        """By process id."""
        self._reports = Reports(before.get("reports", ()))
        self._level: str | None = before.get("level")
        self.may_set_faults = may_set_faults
        self._faults = FaultOrders(before.get("faults", ()) if may_set_faults else ())
        self._in_step: dict[Link, list[tuple[str, Any]]] = {}
        """Which orders of faults a worker has taken last, all of them."""
        self._reload = _Reload()
        self._changed = trio.Event()
        """The state, or who is linked."""
        self._taps = AdminTaps(self) if may_tap else None
        self._ledger = ledger

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear the supervisor until it is gone. Started as soon as it has linked all workers, or is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_now_and_then)
            linked = False
            while (news := await self._supervisor.news()) is not None:
                self._hear(*news, nursery)
                if "linked" in news[0]:
                    linked = True
                    task_status.started()
            if not linked:
                task_status.started()
            nursery.cancel_scope.cancel()

    def _hear(self, news: dict[str, Any], link: socket.socket | None, nursery: trio.Nursery) -> None:
        if link is not None:
            nursery.start_soon(self._keep, news["pid"], Link(link))
        self.state = news.get("state", self.state)
        self._has_changed()
        self.config = news.get("config", self.config)
        self.engine = news.get("engine", self.engine)
        if "pids" in news:
            self._reports.only(news["pids"])
        if "reloaded" in news or self.state == "draining":
            self._reload.problems = news.get("reloaded")
            self._reload.over.set()

    def _has_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _keep(self, pid: int, link: Link) -> None:
        self._links[pid] = link
        self._has_changed()
        async with trio.open_nursery() as nursery:
            if self._level is not None:
                nursery.start_soon(self._ask, link, "log", self._level)
            if self._faults.orders:
                nursery.start_soon(self._tell_faults, link)
            else:
                self._in_step[link] = self._faults.orders
            await link.run()
            del self._links[pid]
            self._in_step.pop(link, None)
            if link.last_words is not None:
                self._reports.heard(link.last_words)
            self._reports.lost(pid)
            self._write_ledger()
            self._has_changed()
            nursery.cancel_scope.cancel()

    async def _look_now_and_then(self) -> None:
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            await self.reports()
            for link in list(self._links.values()):
                await self._tell_faults(link)

    def _write_ledger(self) -> None:
        ledger = {
            "started_at": self.started_at,
            "level": self._level,
            "faults": self._faults.orders,
            "reports": self._reports.all(),
        }
        with contextlib.suppress(OSError):  # no memory: the next admin process has older numbers
            write_ledger(self._ledger, ledger)

    async def _ask(self, link: Link, question: str, argument: Any = None) -> Any:
        """The answer, or None if the worker gives none."""
        with contextlib.suppress(NoAnswer):
            return await link.ask(question, argument, timeout_s=_ANSWER_WITHIN_S)
        return None

    async def _ask_all(self, question: str, argument: Any = None) -> list[Any]:
        answers: list[Any] = []

        async def ask(link: Link) -> None:
            said = await self._ask(link, question, argument)
            if said is not None:
                answers.append(said)

        async with trio.open_nursery() as nursery:
            for link in list(self._links.values()):
                nursery.start_soon(ask, link)
        return answers

    async def reports(self) -> list[dict[str, Any]]:
        """The report of each worker, and of those that are gone what they had counted.

        Of one that does not answer it is the last one, for no counter may go down; its state is `SILENT`.
        """
        answered = {GONE}
        for report in await self._ask_all("report"):
            if report["pid"] in self._links:
                self._reports.heard(report)
                answered.add(report["pid"])
        self._write_ledger()  # whoever comes after us must not tell less
        return [
            {**report, **({} if {report["pid"], report["state"]} & answered else {"state": SILENT})}
            for report in self._reports.all()
        ]

    async def calls(self, limit: int) -> list[dict[str, Any]]:
        """Open calls of all workers, the longest quiet ones of each."""
        return [call for calls in await self._ask_all("calls", limit) for call in calls]

    async def connections(self) -> list[dict[str, Any]]:
        """Open connections of all workers."""
        return [each for several in await self._ask_all("connections") for each in several]

    async def faults(self) -> list[dict[str, Any]]:
        """The rules of all workers, with the sums of what has come of them."""
        return summed(await self._ask_all(TELL))

    async def put_faults(self, toml: str) -> list[str]:
        """In the workers that are, and in those that come; answer what is wrong. Raises `Refused`."""
        before = self._faults.orders
        problems = self._faults.put(toml)
        if not problems:
            await self._order(before)
        return problems

    async def clear_faults(self) -> None:
        """In the workers that are, and in those that come."""
        before = self._faults.orders
        self._faults.clear()
        await self._order(before)

    async def _order(self, before: list[tuple[str, Any]]) -> None:
        """Tell the last order to those who have taken all before; who has not, or does not answer, hears all later."""
        self._write_ledger()
        orders = self._faults.orders

        async def tell(link: Link) -> None:
            if await self._ask(link, *orders[-1]) is not None and self._in_step.get(link) is before:
                self._in_step[link] = orders

        async with trio.open_nursery() as nursery:
            for link in list(self._links.values()):
                nursery.start_soon(tell, link)

    async def _tell_faults(self, link: Link) -> None:
        """All that is ordered, to a worker that has not taken it; again if something else is ordered meanwhile."""
        while self._in_step.get(link) is not self._faults.orders and not link.has_ended:
            orders = self._faults.orders
            for question, toml in orders:
                if await self._ask(link, question, toml) is None:
                    return  # it is asked again when it is looked at next
            self._in_step[link] = orders

    def tap(self, wishes: TapWishes) -> Stream:
        """What passes in all workers. Raises `Refused`."""
        if self._taps is None:
            raise Refused(
                403,
                "what passes may not be seen here; tap = true in the table [admin] of the settings allows it",
            )
        return self._taps.watch(wishes)

    @property
    def links(self) -> Mapping[int, Link]:
        """To each worker, by its process id."""
        return self._links

    async def changed(self) -> None:
        """Wait until there are other workers, or they are in another state."""
        await self._changed.wait()

    async def reload(self) -> list[str]:
        """Have the supervisor reload; answer what is wrong. Raises `Refused` if nothing comes of it."""
        asked = self._reload = _Reload()
        if self.state != "draining":
            self._supervisor.tell(RELOAD)
            with trio.move_on_after(_RELOAD_WITHIN_S):
                await asked.over.wait()
            if not asked.over.is_set():
                raise Refused(
                    504,
                    f"not done after {_RELOAD_WITHIN_S:g} s; it goes on, and the log says what comes of it",
                )
        if asked.problems is None:
            raise Refused(409, "the proxy is draining, and reads no settings any more")
        return asked.problems

    async def until_drained(self) -> None:
        """If the workers drain, wait until the last is gone: a service manager may signal all processes at once."""
        with trio.move_on_after(_HEARS_OF_IT_WITHIN_S):
            while self.state != "draining":
                await self._changed.wait()
        while self.state == "draining" and self._links:
            await self._changed.wait()

    def drain(self) -> None:
        """Have the supervisor stop the workers."""
        self._supervisor.tell(STOP)

    async def set_log_level(self, level: str) -> None:
        """Of the workers that are, and of those that come."""
        self._level = level
        self._write_ledger()
        await self._ask_all("log", level)


def run_admin_process(
    channel: socket.socket,
    listeners: Sequence[socket.socket],
    log: CallLog,
    *,
    names: Collection[str],
    ledger: int,
    may_set_faults: bool,
    may_tap: bool,
) -> int:
    """Answer HTTP until SIGTERM comes and no worker drains, or the supervisor is gone; answer the exit code.

    `names` are those under which it may be asked for; `ledger` is a file descriptor; `may_tap`: whoever may ask may see
    what passes.
    """
    log.collect()

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            workers = Workers(_Supervisor(channel), ledger, may_set_faults=may_set_faults, may_tap=may_tap)

            async def until_told_to_stop() -> None:
                await anext(signals)
                await workers.until_drained()
                await workers.reports()
                nursery.cancel_scope.cancel()

            async def until_supervisor_is_gone(task_status: trio.TaskStatus[None]) -> None:
                await workers.run(task_status)
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.run)
                nursery.start_soon(until_told_to_stop)
                await nursery.start(
                    until_supervisor_is_gone
                )  # before, counters could be told that are too low
                await serve_admin(
                    listeners,
                    workers,
                    names=names,
                    on_change=lambda text: log.notice("admin", f"admin: {text}", message=text),
                    on_fault=lambda where, error: log.fault("admin_error", f"- admin: {where}:", error),
                )

    try:
        trio.run(main)
    finally:
        log.flush()
    return 0
