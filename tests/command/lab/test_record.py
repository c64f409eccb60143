"""`rawgrpc-proxy record`, in a process of its own."""

import signal
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy import Client
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command.cli import main as run_command
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.recording import Frame, read
from tests.command.echo import an_echo
from tests.processes import program

UNARY = "/rawgrpc.demo.Echo/Unary"


def test_calls_go_through_and_are_in_the_file_after_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"

    async def main() -> None:
        async with an_echo() as upstream:
            arguments = ("record", "-o", str(path), "--upstream", upstream)
            async with program(*arguments) as recording:
                async with Client(await recording.address()) as client:
                    assert await client.unary_unary(UNARY, b"hello") == b"hello"
                recording.signal(signal.SIGTERM)
                assert await recording.exit_code() == 0
                assert recording.stderr == []
                assert recording.stdout[-1] == f"2 connections recorded in {path}"

    trio.run(main)
    recording = read(path)
    assert recording.complete
    for side in (Side.DOWNSTREAM, Side.UPSTREAM):
        [link] = recording.side(side)
        frames = [entry for entry in link.entries if isinstance(entry, Frame)]
        assert [frame.payload for frame in frames if frame.type == 0 and frame.payload] == [
            b"\0\0\0\0\x05hello"
        ] * 2
        assert (b"grpc-status", b"%d" % Status.OK) in [
            field for frame in frames for field in frame.headers or ()
        ]


def test_standard_output_is_no_place_for_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["record", "-o", "-", "--upstream", "127.0.0.1:1"]) == 2
    assert "does not go to standard output" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_said_in_a_line(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()

    async def main() -> None:
        async with program(
            "record", "-o", str(there), "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1"
        ) as refused:
            assert await refused.exit_code() == 2
            assert refused.stderr == [
                f"rawgrpc-proxy: {there} is there already, and is left as it is: give another name"
            ]

    trio.run(main)
