"""The admin process: it answers HTTP for all workers, asks them how they are, and tells the supervisor what was asked.

    supervisor ──channel──► lines of JSON: state, settings, what came of a reload; with a worker's, its end of a link
               ◄──channel── "reload", "stop"
    workers    ──link──► reports (`link.py`)

It goes on while workers are replaced, and ends after the last of them, so that what they had counted is not lost. It is
apart from the supervisor, which has no event loop and must not wait, and from the workers: a slow reader of metrics
costs no call anything.
"""

import contextlib
import json
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

import trio

from rawgrpc_proxy.command.admin.site import serve_admin
from rawgrpc_proxy.command.link import Link, LinkLost
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.exposition import exposition
from rawgrpc_proxy.observe.merge import Reports, merged

RELOAD, STOP = "reload", "stop"
_ANSWER_WITHIN_S = 1.0
_LOOK_EVERY_S = 5.0
"""What a worker has counted since is lost if it is killed."""
_AT_ONCE = 64 * 1024
_MOST_DESCRIPTORS = 64
_RELOAD_WITHIN_S = 90.0


class _Supervisor:
    """The other end of the channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._rest = b""
        self._links: list[socket.socket] = []
        channel.settimeout(0)

    async def news(self) -> list[tuple[dict[str, Any], socket.socket | None]]:
        """Wait for what it tells, each with the link that came with it; nothing when it is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._channel)
            try:
                data, descriptors, _, _ = socket.recv_fds(self._channel, _AT_ONCE, _MOST_DESCRIPTORS)
            except BlockingIOError:
                continue
            except OSError:
                return []
            self._links += [socket.socket(fileno=descriptor) for descriptor in descriptors]
            if not data:
                return []
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                news = [json.loads(line) for line in lines]
                return [(each, self._links.pop(0) if "worker" in each else None) for each in news]

    def tell(self, what: str) -> None:
        """Ask it for something."""
        with contextlib.suppress(OSError):
            self._channel.send(what.encode() + b"\n")


class Workers:
    """A `Source` of the admin listener: all workers, through their links."""

    def __init__(self, supervisor: _Supervisor) -> None:
        self.config = self.engine = ""
        self.state = "starting"
        self.started_at = time.time()
        self.exposition = exposition
        self.merged = merged
        self._supervisor = supervisor
        self._links: dict[int, Link] = {}
        """By process id."""
        self._reports = Reports()
        self._level: str | None = None
        self._reloaded: trio.Event | None = None
        self._problems: list[str] = []

    async def run(self) -> None:
        """Hear the supervisor until it is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_now_and_then)
            while news := await self._supervisor.news():
                for each, link in news:
                    self._hear(each, link, nursery)
            nursery.cancel_scope.cancel()

    def _hear(self, news: dict[str, Any], link: socket.socket | None, nursery: trio.Nursery) -> None:
        if link is not None:
            nursery.start_soon(self._keep, news["pid"], Link(link))
        self.state = news.get("state", self.state)
        self.config = news.get("config", self.config)
        self.engine = news.get("engine", self.engine)
        if "reloaded" in news and self._reloaded is not None:
            self._problems = news["reloaded"]
            self._reloaded.set()

    async def _keep(self, pid: int, link: Link) -> None:
        self._links[pid] = link
        async with trio.open_nursery() as nursery:
            if self._level is not None:
                nursery.start_soon(self._ask, link, "log", self._level)
            await link.run()
            nursery.cancel_scope.cancel()
        if self._links.get(pid) is not link:
            return  # after an upgrade there is another one, until the new admin process takes over
        del self._links[pid]
        if link.last_words is not None:
            self._reports.heard(link.last_words)
        self._reports.lost(pid)

    async def _look_now_and_then(self) -> None:
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            await self.reports()

    async def _ask(self, link: Link, question: str, argument: Any = None) -> Any:
        """The answer, or None if the worker gives none."""
        with contextlib.suppress(LinkLost):
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
        """The report of each worker, and of those that are gone what they had counted."""
        for report in await self._ask_all("report"):
            if report["pid"] in self._links:
                self._reports.heard(report)
        return [dict(report) for report in self._reports.all()]

    async def calls(self, limit: int) -> list[dict[str, Any]]:
        """Open calls of all workers, the longest quiet ones of each."""
        return [call for calls in await self._ask_all("calls", limit) for call in calls]

    async def connections(self) -> list[dict[str, Any]]:
        """Open connections of all workers."""
        return [each for several in await self._ask_all("connections") for each in several]

    async def reload(self) -> list[str]:
        """Have the supervisor reload; answer what is wrong."""
        self._reloaded = trio.Event()
        self._supervisor.tell(RELOAD)
        with trio.move_on_after(_RELOAD_WITHIN_S):
            await self._reloaded.wait()
            return self._problems
        return [f"the new workers did not serve within {_RELOAD_WITHIN_S:g} s; the log says more"]

    def drain(self) -> None:
        """Have the supervisor stop the workers."""
        if self.state != "draining":
            self._supervisor.tell(STOP)

    async def set_log_level(self, level: str) -> None:
        """Of the workers that are, and of those that come."""
        self._level = level
        await self._ask_all("log", level)


def run_deputy(
    channel: socket.socket,
    listeners: Sequence[socket.socket],
    log: CallLog,
) -> int:
    """Answer HTTP until SIGTERM comes, or the supervisor is gone; answer the exit code."""
    log.collect()

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            workers = Workers(_Supervisor(channel))

            async def until_told_to_stop() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            async def until_supervisor_is_gone() -> None:
                await workers.run()
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.run)
                nursery.start_soon(until_told_to_stop)
                nursery.start_soon(until_supervisor_is_gone)
                await serve_admin(
                    listeners,
                    workers,
                    on_change=lambda text: log.notice("admin", f"admin: {text}", message=text),
                    on_fault=lambda where, error: log.fault("admin_error", f"- admin: {where}:", error),
                )

    try:
        trio.run(main)
    finally:
        log.flush()
    return 0
