"""`rawgrpc-proxy lint --attach` before a running `serve`, as real processes; and how workers are summed up."""

import json
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.demo import ECHO_SERVICE, TRIALS, make_call
from rawgrpc_proxy.command.lab.lint_attach import Totals
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.lab.lint.findings import Findings
from tests.command.lab.serving import Serving, serving
from tests.lab.lint.talk import METHOD, REQUEST, changed
from tests.processes import Program
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import PeerStream, RawPeer, connect

UNARY = f"/{ECHO_SERVICE}/Unary"
ECHO = changed(REQUEST, b":path", UNARY.encode())
NO_TE = [field for field in ECHO if field[0] != b"te"]
BIDI = f"/{ECHO_SERVICE}/Bidi"


@asynccontextmanager
async def caller(house: Serving) -> AsyncIterator[RawPeer]:
    async with trio.open_nursery() as nursery:
        yield await connect(house.address, nursery)
        nursery.cancel_scope.cancel()


async def ask(peer: RawPeer, fields: list[tuple[bytes, bytes]]) -> PeerStream:
    call = await peer.open(fields, end=True)
    await call.answer()
    return call


async def looking(lint: Program, workers: int = 2) -> None:
    """Wait until all workers are looked at."""
    for number in range(1, workers + 1):
        await lint.line(rf"^looking at worker {number} \(process \d+\)$", "stdout")


async def ended(lint: Program, code: int) -> list[str]:
    """Have it end; answer its table."""
    lint.signal(signal.SIGINT)
    assert await lint.exit_code() == code, lint.stderr
    assert lint.stderr == []
    return lint.stdout[lint.stdout.index("") + 1 :] if "" in lint.stdout else lint.stdout


@on_every_engine
@trio_test
async def test_findings_of_all_workers_are_one_table_also_on_connections_that_were_open(
    engine: Engine, tmp_path: Path
) -> None:
    async with serving(tmp_path, engine=engine) as house, trio.open_nursery() as nursery:
        peers = [await connect(house.address, nursery)]
        await ask(peers[0], NO_TE)  # nobody looks yet
        async with house.lint() as lint:
            await looking(lint)
            while len(peers) < 2 or len(await workers_with_callers(house)) < 2:
                peers.append(await connect(house.address, nursery))
            for number, peer in enumerate(peers):
                await ask(peer, NO_TE)
                await ask(peer, changed(NO_TE, b":path", b"/a.B/%d" % number))
                await lint.line(rf"te-missing: .* /a\.B/{number}: ", "stdout")
            first = next(line for line in lint.stdout if "te-missing" in line)
            assert re.search(
                r"^\d\d:\d\d:\d\d error te-missing: the caller \(worker \d, downstream client 127\.0\.0\.1:\d+ stream "
                rf"3\) {UNARY}: there is no te \[gRPC over HTTP/2, Requests\]$",
                first,
            )
            head, row, *rows, total, looked = await ended(lint, 1)
        assert head.split() == ["count", "severity", "rule", "whose", "side", "method", "section"]
        assert re.match(rf"{len(peers)} +error +te-missing +caller +downstream client +{UNARY} ", row)
        assert len(rows) == len(peers)
        assert total == f"{2 * len(peers)} errors, 0 warnings, 0 notes; docs/lint.md says what to do"
        assert re.fullmatch(r"looked at \d+ streams on \d+ connections", looked)
        nursery.cancel_scope.cancel()


async def workers_with_callers(house: Serving) -> set[int]:
    host, _, port = house.admin.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET /connections HTTP/1.0\r\nHost: {house.admin}\r\n\r\n".encode())
        page = b"".join([data async for data in stream])
    connections = json.loads(page.partition(b"\r\n\r\n")[2])["connections"]
    return {each["worker"] for each in connections if each["side"] == "downstream"}


@on_every_engine
@trio_test
async def test_of_good_calls_there_is_nothing_to_tell_through_a_reload(
    engine: Engine, tmp_path: Path
) -> None:
    async with serving(tmp_path, engine=engine) as house, Client(house.address) as client:
        async with client.stream_stream(BIDI) as call:
            await call.send(b"\x0a\x05first")
            assert await call.receive() is not None
            async with house.lint("--fail-on", "warning") as lint:
                await looking(lint)
                await call.send(b"\x0a\x06second")
                assert await call.receive() is not None
                house.program.signal(signal.SIGHUP)
                await lint.line(r"^looking at worker 2 \(process \d+\)$", "stdout")
                await call.done_sending()
                assert await call.receive() is None
                for number in (1, 2):
                    await lint.line(rf"^worker {number} \(process \d+\) has ended$", "stdout")
                async with Client(house.address) as other:
                    for trial in TRIALS:
                        assert await make_call(other, trial) == list(trial.replies)
                said = await ended(lint, 0)
        assert said[-2] == "no findings"
        assert len([line for line in said if line.startswith("looking at")]) == 4


@trio_test
async def test_programs_get_it_as_json_with_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "findings.json"
    async with serving(tmp_path, workers=1) as house, caller(house) as peer:
        options = ("--json", str(file), "--fail-on", "never", "--ignore", "user-agent-missing")
        async with house.lint(*options) as lint:
            await looking(lint, 1)
            await ask(peer, [field for field in NO_TE if field[0] != b"user-agent"])
            await lint.line(r"te-missing", "stdout")
            await ended(lint, 0)
    told: dict[str, Any] = json.loads(file.read_text())
    [finding] = told["findings"]
    assert (finding["rule"], finding["who"], finding["count"]) == ("te-missing", "caller", 1)
    assert (finding["first"]["worker"], finding["first"]["stream"]) == (1, 1)
    assert (told["version"], told["connections"], told["streams"]) == (1, 2, 2)


@trio_test
async def test_when_the_proxy_ends_first_it_says_that_not_all_was_looked_at(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as house, house.lint() as lint:
        await looking(lint, 1)
        house.program.signal(signal.SIGTERM)
        assert await lint.exit_code() == 2
        [said] = lint.stderr
        assert "its proxy has ended, and what passed last was not looked at" in said
        assert "no findings" in lint.stdout


@trio_test
async def test_what_passes_is_private_until_the_settings_say_otherwise(tmp_path: Path) -> None:
    async with serving(tmp_path, tap=False, workers=1) as house, house.lint() as lint:
        assert await lint.exit_code() == 2
        [said] = lint.stderr
        assert re.search(r"--attach: 127\.0\.0\.1:\d+: 403: .* tap = true in the table \[admin\]", said)
        assert lint.stdout == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --upstream ADDRESS, or a recording, or --attach ADMIN"),
        (["--attach", "127.0.0.1:1"], "--attach: 127.0.0.1:1: "),
        (["--attach", "127.0.0.1:1", "--upstream", "127.0.0.1:1"], "--upstream is for a proxy of its own"),
        (["calls.jsonl", "--attach", "127.0.0.1:1"], "one of them"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lint", *options]) == 2
    heard = capsys.readouterr()
    assert said in heard.err
    assert heard.out == ""


# --- sums


def row(pid: int, count: int, **more: Any) -> Mapping[str, Any]:
    return {
        "event": "finding", "time": 1.0, "rule": "te-missing", "severity": "error", "section": "s", "text": "t",
        "who": "caller", "side": "downstream client", "method": METHOD, "count": count, "link": 1, "peer": "p",
        "stream": 1, "seen": "s", "worker": pid, "pid": pid, **more,
    }  # fmt: skip


def summed(*rows: Mapping[str, Any], **options: Any) -> tuple[list[tuple[str, int]], Totals]:
    findings, said = Findings(), list[str]()
    totals = Totals(findings, said.append, **options)
    for each in rows:
        totals.take(dict(each))
    return [(each.first.rule.id, each.count) for each in findings.counted], totals


def test_what_workers_say_by_now_is_added_up_once() -> None:
    assert summed(row(1, 2), row(2, 5), row(1, 3), row(1, 3), row(2, 6))[0] == [("te-missing", 9)]


def test_a_worker_that_counts_anew_takes_nothing_away() -> None:
    assert summed(row(1, 5), row(1, 2), row(1, 3))[0] == [("te-missing", 8)]


def test_a_process_that_has_gone_is_not_remembered() -> None:
    counted, totals = summed(
        {"event": "attached", "worker": 1, "pid": 1},
        row(1, 5),
        {"event": "looked", "connections": 2, "streams": 9, "worker": 1, "pid": 1},
        {"event": "detached", "worker": 1, "pid": 1},
    )
    assert counted == [("te-missing", 5)]
    assert (totals.links_seen, totals.streams_seen, totals._told) == (2, 9, {})


def test_a_rule_of_a_newer_proxy_is_told_in_its_own_words() -> None:
    findings = Findings()
    Totals(findings, lambda _: None).take(
        dict(row(1, 1, rule="brand-new", severity="warning", section="§ 1"))
    )
    [counted] = findings.counted
    rule = counted.first.rule
    assert (rule.id, rule.severity.word, rule.section, rule.text) == ("brand-new", "warning", "§ 1", "t")


def test_rules_that_are_ignored_are_left_out() -> None:
    assert summed(row(1, 5), row(1, 5, rule="te-value"), ignore={"te-missing"})[0] == [("te-value", 5)]
