"""`rawgrpc-proxy lint FILE`: what is found in a recording is what was found while it was made."""

import json
from pathlib import Path

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.command import cli
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.events import Event, FrameSeen
from rawgrpc_proxy.lab.lint.findings import Finding, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.lab.recorded_views import tell_recorded
from rawgrpc_proxy.lab.recorder import Recorder
from rawgrpc_proxy.lab.recording import records
from rawgrpc_proxy.lab.taps import several_taps
from rawgrpc_proxy.lab.views import Views
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import OK, RESPONSE, request_fields


async def recorded(file: Path, engine: Engine = "relay") -> list[Finding]:
    """Record a caller without te and an upstream that encodes badly; answer what the linter told meanwhile."""
    found: list[Finding] = []
    linter = Linter(Findings(found.append))
    with Recorder(file) as recorder:
        tap = several_taps(recorder, Views(linter.tell))
        async with a_proxy(engine, tap=tap, pool={"tap": tap}) as house:
            client = await house.client()
            for _ in range(2):
                fields = [field for field in request_fields() if field[0] != b"te"]
                call = await client.open(fields, end=True)
                served = await house.backend.request()
                await served.headers(RESPONSE)
                await served.headers([*OK, (b"grpc-message", b"100%")], end=True)
                assert (await call.answer()).status == Status.OK
    return found


def said(found: list[Finding]) -> list[tuple[str, str, str, str, int]]:
    return [(each.rule.id, each.who, each.side, each.link.peer, each.stream_id) for each in found]


@on_every_engine
@trio_test
async def test_a_recording_has_the_findings_of_what_was_recorded(engine: Engine, tmp_path: Path) -> None:
    live = await recorded(tmp_path / "calls.jsonl", engine)
    assert {each.rule.id for each in live} == {"te-missing", "user-agent-missing", "grpc-message-encoding"}
    again: list[Finding] = []
    tell_recorded(records(tmp_path / "calls.jsonl"), Linter(Findings(again.append)).tell)
    assert sorted(said(again)) == sorted(said(live))
    for one, other in zip(
        sorted(again, key=lambda each: each.at), sorted(live, key=lambda each: each.at), strict=True
    ):
        assert abs(one.at - other.at) < 1  # seconds since 1970, not since the recording


@trio_test
async def test_of_a_file_that_was_cut_what_is_there_is_told_and_no_end(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    await recorded(file)
    lines = file.read_bytes().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if b'"DATA"' in line or b'"HEADERS"' in line)
    file.write_bytes(b"".join(lines[: cut + 1]) + lines[cut + 1][:10])
    told: list[Event] = []
    tell_recorded(records(file), told.append)
    assert any(isinstance(event, FrameSeen) and event.type == h2.HEADERS for event in told)
    assert {type(event).__name__ for event in told} == {
        "LinkOpened",
        "FrameSeen",
        "StreamBegun",
        "HeadersSeen",
        "HalfClosed",
    }


def test_the_command_has_its_table_and_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trio_test(recorded)(tmp_path / "calls.jsonl")
    assert cli.main(["lint", str(tmp_path / "calls.jsonl")]) == 1
    shown = capfd.readouterr().out
    assert "error te-missing: the caller (downstream client 127.0.0.1:" in shown
    assert "\n2      error     te-missing" in shown
    assert "looked at 4 streams on 2 connections" in shown
    ignore = [word for rule in ("te-missing", "grpc-message-encoding") for word in ("--ignore", rule)]
    assert cli.main(["lint", str(tmp_path / "calls.jsonl"), *ignore]) == 0


def test_json_can_go_to_standard_output_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trio_test(recorded)(tmp_path / "calls.jsonl")
    assert cli.main(["lint", str(tmp_path / "calls.jsonl"), "--json", "-"]) == 1
    shown = capfd.readouterr()
    assert json.loads(shown.out)["connections"] == 2
    assert "looked at 4 streams on 2 connections" in shown.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --upstream ADDRESS, or a recording"),
        (["/nowhere/x"], "/nowhere/x: No such file or directory"),
        ([__file__], "is no recording: line 1: this is no JSON"),
        ([__file__, "--upstream", "127.0.0.1:1"], "--upstream is for a proxy of its own"),
    ],
)
def test_what_cannot_be_looked_at_is_told_without_a_table(
    options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lint", *options]) == 2
    shown = capfd.readouterr()
    assert said in shown.err
    assert shown.out == ""
