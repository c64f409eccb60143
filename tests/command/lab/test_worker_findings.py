"""What a worker finds for one who looks: each kind again when it has changed, in few lines, whatever peers do."""

import json
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.command.lab import worker_findings
from rawgrpc_proxy.command.lab.admin_taps import AdminTaps
from rawgrpc_proxy.command.lab.lint_attach import WISHES
from rawgrpc_proxy.command.lab.worker_findings import FindingLines
from rawgrpc_proxy.command.lab.worker_taps import WorkerTaps
from rawgrpc_proxy.lab.link_view import LinkView
from tests.command.lab.test_admin_taps import Watcher, Workers, a_worker, is_seen, no_more_asked
from tests.http2.peer import PREFACE, SETTINGS_ACK, data, headers, settings
from tests.lab.lint.talk import CLIENT, MESSAGE, METHOD, REQUEST, SERVER, changed, link
from tests.proxy.house import House, a_proxy, until
from tests.proxy.raw_peers import request_fields

BAD = [field for field in REQUEST if field[0] != b"te"]


class Desk:
    """A connection, and what is said of it."""

    def __init__(self) -> None:
        self.lines = FindingLines({"worker": 3, "pid": 7})
        self.view = LinkView(link(), self.lines.tell)
        self.view.feed(CLIENT, PREFACE + settings(), 1.0)
        self.view.feed(SERVER, settings() + SETTINGS_ACK, 1.0)
        self._stream = -1

    def ask(self, path: bytes = METHOD.encode()) -> None:
        self._stream += 2
        fields = changed(BAD, b":path", path)
        self.view.feed(
            CLIENT, headers(self._stream, fields) + data(self._stream, MESSAGE, end_stream=True), 2.0
        )

    def take(self) -> list[dict[str, Any]]:
        said, more = self.lines.take()
        assert not more
        return [json.loads(line) for line in said.splitlines()]


def test_a_kind_of_finding_is_said_when_it_has_changed_with_its_first_case() -> None:
    desk = Desk()
    assert [row["event"] for row in desk.take()] == ["looked"]
    assert desk.take() == []
    desk.ask()
    desk.ask()
    [finding, looked] = desk.take()
    assert finding == {
        "event": "finding",
        "time": 2.0,
        "rule": "te-missing",
        "severity": "error",
        "section": "gRPC over HTTP/2, Requests",
        "text": "a request without te: trailers",
        "who": "caller",
        "side": "downstream client",
        "method": METHOD,
        "count": 2,
        "link": 1,
        "peer": "127.0.0.1:5",
        "stream": 1,
        "seen": "there is no te",
        "worker": 3,
        "pid": 7,
    }
    assert looked == {"event": "looked", "connections": 1, "streams": 2, "worker": 3, "pid": 7}
    assert desk.take() == []
    desk.ask()
    assert [(row["event"], row.get("count")) for row in desk.take()] == [("finding", 3), ("looked", None)]


def test_an_answer_that_was_lost_is_said_again() -> None:
    desk = Desk()
    desk.ask()
    lost = desk.take()
    assert desk.take() == []
    desk.lines.again()
    assert desk.take() == lost


def test_many_kinds_are_said_little_by_little_and_each_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_findings, "_AT_ONCE", 2000)
    desk = Desk()
    methods = [b"/a.B/%d" % number for number in range(20)]
    told: set[str] = set()
    for _ in range(4):
        for method in methods:
            desk.ask(method)  # all of them change again and again
        rows = [row for row in desk.take() if row["event"] == "finding"]
        assert 0 < sum(len(json.dumps(row)) for row in rows) < 3000
        told |= {row["method"] for row in rows}
    assert len(told) == 20


async def a_bad_call(house: House) -> None:
    client = house.clients[0] if house.clients else await house.client()
    call = await client.open([field for field in request_fields() if field[0] != b"te"], end=True)
    await (await house.backend.request()).respond(b"y")
    assert (await call.answer()).status == Status.OK


@trio_test
async def test_who_looks_hears_of_findings_and_nothing_is_looked_at_when_he_has_gone() -> None:
    workers, watcher = Workers(), Watcher()
    async with a_proxy("relay") as house, a_worker(workers, WorkerTaps(3)):
        await a_bad_call(house)
        assert not is_seen(house)
        stream = AdminTaps(workers).watch(WISHES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run, watcher.send)
            await until(lambda: "looked" in watcher.events)
            await a_bad_call(house)
            await until(lambda: any(row.get("rule") == "te-missing" for row in watcher.rows))
            nursery.cancel_scope.cancel()
        stream.close()
        await until(lambda: not is_seen(house))
    rules = {row["rule"] for row in watcher.rows if row["event"] == "finding"}
    assert rules == {"te-missing", "user-agent-missing"}


@trio_test
async def test_a_worker_that_is_asked_no_more_holds_nothing_any_more() -> None:
    async with a_proxy("relay") as house:
        desk = WorkerTaps(1)
        begin: Any = desk.answers["tap"]
        begin({"id": "a", "wishes": {"mode": "findings", "side": "both"}})
        await a_bad_call(house)
        assert is_seen(house)
        no_more_asked(desk)
        await a_bad_call(house)  # with what comes first it is noticed
        assert not is_seen(house)
        assert not desk._watchers


@trio_test
async def test_who_is_asked_to_begin_again_says_all_again() -> None:
    async with a_proxy("relay") as house:
        desk = WorkerTaps(1)
        begin: Any = desk.answers["tap"]
        lines: Any = desk.answers["tap_lines"]
        question = {"id": "a", "wishes": {"mode": "findings", "side": "both"}}
        begin(question)
        await a_bad_call(house)
        first = lines("a")["lines"]
        assert "te-missing" in first
        begin(question)  # the answer was late, and is lost
        assert sorted(lines("a")["lines"].splitlines()) == sorted(first.splitlines())
