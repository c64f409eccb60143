"""`GET /tap`, as the admin process makes it: what all workers see, those that come while somebody watches as well.

Each worker is asked for lines some forty times a second (`worker_taps.py`), and only as fast as the watcher takes them:
one who is slow loses lines, which are counted in their place, and one who takes nothing at all loses the connection.
The invariant: while nobody watches, workers are asked nothing.
"""

import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import attrs
import trio

from rawgrpc_proxy.command.admin.messages import Refused, Stream
from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.command.link import Link, NoAnswer

MOST_WATCHERS = 4
_ASK_EVERY_S = 0.025
_ASK_AGAIN_S = 0.5
"""A worker that has not answered."""
_ANSWER_WITHIN_S = 1.0
_HEARTBEAT_S = 5.0

Send = Callable[[bytes], Awaitable[None]]


class Workers(Protocol):
    """Those that there are."""

    @property
    def links(self) -> Mapping[int, Link]:
        """To each, by its process id."""

    async def changed(self) -> None:
        """Wait until it may be others."""


class AdminTaps:
    """All who watch through the admin listener."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._names = (f"{os.getpid()}-{number}" for number in itertools.count(1))
        self._watching: set[_Watching] = set()

    def watch(self, wishes: TapWishes) -> Stream:
        """Take a place among those who watch, until the stream is closed. Raises `Refused` if there is none."""
        if len(self._watching) >= MOST_WATCHERS:
            raise Refused(
                503,
                f"{MOST_WATCHERS} are watching what passes already: each costs the workers something; try later",
                **{"Retry-After": "5"},
            )
        watching = _Watching(self._workers, next(self._names), wishes, self._watching.discard)
        self._watching.add(watching)
        return watching


class _Watching:
    """One who watches."""

    def __init__(
        self, workers: Workers, name: str, wishes: TapWishes, left: Callable[["_Watching"], None]
    ) -> None:
        self._workers = workers
        self._asked = {"id": name, "wishes": attrs.asdict(wishes)}
        self._name = name
        self._left = left
        self._sending = trio.Lock()
        self._sent_at = 0.0

    async def run(self, send: Send) -> None:
        """Follow each worker, until cancelled."""

        async def say(data: bytes) -> None:
            async with self._sending:
                self._sent_at = trio.current_time()
                await send(data)

        followed: set[Link] = set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, say)
            while True:
                links = self._workers.links
                followed &= set(links.values())
                for pid, link in links.items():
                    if link not in followed:
                        followed.add(link)
                        nursery.start_soon(self._follow, pid, link, say)
                await self._workers.changed()

    def close(self) -> None:
        self._left(self)

    async def _beat(self, say: Send) -> None:
        """An empty line now and then: a proxy in between may give up a connection on which nothing comes."""
        while True:
            await trio.sleep(_HEARTBEAT_S)
            if trio.current_time() - self._sent_at >= _HEARTBEAT_S:
                await say(b"\n")

    async def _follow(self, pid: int, link: Link, say: Send) -> None:
        """Tell what this worker sees, to its end."""
        where = {"pid": pid}
        is_told = False
        try:
            while not link.has_ended:
                try:
                    where = await link.ask("tap", self._asked, timeout_s=_ANSWER_WITHIN_S)
                    if not is_told:
                        is_told = True
                        await say(_line("attached", where))
                    await self._pass_on(link, say)
                except NoAnswer:
                    await trio.sleep(_ASK_AGAIN_S)
            if is_told:
                await say(_line("detached", where))
        finally:
            link.tell("tap_end", self._name)

    async def _pass_on(self, link: Link, say: Send) -> None:
        """Raises `NoAnswer` in the end."""
        while True:
            said = await link.ask("tap_lines", self._name, timeout_s=_ANSWER_WITHIN_S)
            if said["lines"]:
                await say(said["lines"].encode())
            if not said["more"]:
                await trio.sleep(_ASK_EVERY_S)


def _line(event: str, where: Mapping[str, int]) -> bytes:
    return json.dumps({"event": event, "time": round(time.time(), 6), **where}).encode() + b"\n"
