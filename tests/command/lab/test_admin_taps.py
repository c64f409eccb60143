"""From a worker to who watches: bounded, whoever is slow, and over when nobody asks any more."""

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.command.admin.messages import Refused
from rawgrpc_proxy.command.lab import worker_taps
from rawgrpc_proxy.command.lab.admin_taps import MOST_WATCHERS, AdminTaps
from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.command.lab.worker_taps import WorkerTaps
from rawgrpc_proxy.command.link import Link, answer
from rawgrpc_proxy.net.connection import Connection
from tests.proxy.house import House, a_proxy, until

FRAMES = TapWishes(mode="frames", side="both")


class Workers:
    """Those that a test has made."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self._changed = trio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    def has_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@contextlib.asynccontextmanager
async def a_worker(workers: Workers, taps: WorkerTaps, pid: int = 1) -> AsyncIterator[None]:
    """A worker in this process, over a link."""
    ours, theirs = socket.socketpair()
    link, scope = Link(ours), trio.CancelScope()

    async def work() -> None:
        with scope:
            await answer(theirs, taps.answers)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        nursery.start_soon(work)
        workers.links[pid] = link
        workers.has_changed()
        try:
            yield
        finally:
            scope.cancel()
    del workers.links[pid]
    workers.has_changed()


class Watcher:
    """Takes what comes, as fast as it may."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.gate = trio.Event()
        self.gate.set()

    async def send(self, data: bytes) -> None:
        await self.gate.wait()
        self.rows += [json.loads(line) for line in data.split(b"\n") if line]

    def told(self) -> int:
        """Rows of calls, and how many are said to be missing."""
        calls = [row for row in self.rows if row["event"] in {"begin", "message", "end"}]
        return len(calls) + sum(int(row["rows"]) for row in self.rows if row["event"] == "dropped")

    @property
    def events(self) -> list[str]:
        return [row["event"] for row in self.rows]


async def a_call(house: House) -> None:
    client = house.clients[0] if house.clients else await house.client()
    call = await client.request(body=b"x" * 100)
    await (await house.backend.request()).respond(b"y")
    assert (await call.answer()).status == Status.OK


def connections(house: House) -> list[Connection]:
    return list(house.server._connections)


def is_seen(house: House) -> bool:
    return any(connection._onlooker is not None for connection in connections(house))


def no_more_asked(taps: WorkerTaps) -> None:
    """Have the time pass in which somebody should have asked for lines."""
    for watcher in taps._watchers.values():
        watcher._wait_until = 0.0


@trio_test
async def test_who_watches_is_told_what_passes_until_he_goes() -> None:
    workers, watcher = Workers(), Watcher()
    async with a_proxy("relay") as house, a_worker(workers, WorkerTaps(3)):
        await a_call(house)
        assert not is_seen(house)
        stream = AdminTaps(workers).watch(FRAMES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run, watcher.send)
            await until(lambda: watcher.events.count("open") == 2)
            assert is_seen(house)
            await a_call(house)
            await until(lambda: watcher.events.count("end") == 2)
            nursery.cancel_scope.cancel()
        stream.close()
        await until(lambda: not is_seen(house))
    assert watcher.events[0] == "attached"
    assert {(row["worker"], row["pid"]) for row in watcher.rows} == {(3, os.getpid())}


@trio_test
async def test_who_is_slow_is_told_in_its_place_how_much_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_taps, "_MAX_WAITING", 20_000)
    workers, watcher = Workers(), Watcher()
    async with a_proxy("relay") as house, a_worker(workers, WorkerTaps(1)):
        await a_call(house)
        stream = AdminTaps(workers).watch(TapWishes(mode="messages", side="downstream"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run, watcher.send)
            await until(lambda: watcher.events == ["attached"])
            watcher.gate = trio.Event()
            for _ in range(100):
                await a_call(house)
            watcher.gate.set()
            # It may be told twice: when somebody asks in the middle of them, there is room again.
            await until(lambda: watcher.told() == 4 * 100)
            assert watcher.events[-1] == "dropped"
            assert 20 < len(watcher.rows) < 200
            await a_call(house)
            await until(lambda: watcher.told() == 4 * 101)
            nursery.cancel_scope.cancel()
    assert watcher.events[-5:] == ["dropped", "begin", "message", "message", "end"]


@trio_test
async def test_a_worker_that_is_asked_no_more_looks_no_more() -> None:
    async with a_proxy("relay") as house:
        await a_call(house)
        taps = WorkerTaps(1)
        begin: Any = taps.answers["tap"]
        begin({"id": "a", "wishes": {"mode": "frames"}})
        assert is_seen(house)
        no_more_asked(taps)
        await a_call(house)  # with what comes first it is noticed
        assert not is_seen(house)


@trio_test
async def test_there_are_places_for_few_and_one_that_is_given_back_is_free() -> None:
    taps = AdminTaps(Workers())
    streams = [taps.watch(FRAMES) for _ in range(MOST_WATCHERS)]
    with pytest.raises(Refused, match="are watching what passes already") as refused:
        taps.watch(FRAMES)
    assert refused.value.status == 503
    streams[0].close()
    taps.watch(FRAMES)


@trio_test
async def test_a_worker_takes_no_more_than_so_many_but_those_that_are_gone_make_room() -> None:
    taps = WorkerTaps(1)
    begin: Any = taps.answers["tap"]
    for number in range(8):
        begin({"id": number, "wishes": {}})
        begin({"id": number, "wishes": {}})  # asked again, since the answer was late
    with pytest.raises(ValueError, match="8 are watching already"):
        begin({"id": 8, "wishes": {}})
    no_more_asked(taps)
    begin({"id": 8, "wishes": {}})


@trio_test
async def test_workers_that_come_are_followed_and_of_those_that_go_it_is_said() -> None:
    workers, watcher = Workers(), Watcher()
    async with trio.open_nursery() as nursery:
        stream = AdminTaps(workers).watch(FRAMES)
        nursery.start_soon(stream.run, watcher.send)
        async with a_worker(workers, WorkerTaps(1), pid=10):
            await until(lambda: watcher.events == ["attached"])
            async with a_worker(workers, WorkerTaps(2), pid=11):
                await until(lambda: watcher.events == ["attached"] * 2)
            await until(lambda: "detached" in watcher.events)
        await until(lambda: watcher.events.count("detached") == 2)
        nursery.cancel_scope.cancel()
    assert [(row["event"], row["worker"]) for row in watcher.rows] == [
        ("attached", 1),
        ("attached", 2),
        ("detached", 2),
        ("detached", 1),
    ]


def test_where_nothing_passes_an_empty_line_comes_now_and_then() -> None:
    sent: list[bytes] = []

    async def send(data: bytes) -> None:
        sent.append(data)

    async def main() -> None:
        with trio.move_on_after(12):
            await AdminTaps(Workers()).watch(FRAMES).run(send)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sent == [b"\n", b"\n"]
