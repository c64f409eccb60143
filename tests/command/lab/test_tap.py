"""`rawgrpc-proxy tap` in a process of its own: what people see, and what is in the file."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.demo import ECHO_SERVICE, TRIALS, Trial, make_call
from tests.command.echo import an_echo, an_echo_with_tls
from tests.processes import TIMEOUT_S, Program, program

BIDI = f"/{ECHO_SERVICE}/Bidi"
ROOT = Path(__file__).parents[3]
HELLO = b"\x0a\x05hello"


@asynccontextmanager
async def a_tap(*options: str) -> AsyncIterator[tuple[Program, Client]]:
    """A tap before an echo, and a client of it."""
    async with an_echo() as upstream, program("tap", "--upstream", upstream, *options) as running:
        listening = await running.line(r"^listening on (\S+)$", "stderr" if "-" in options else "stdout")
        async with Client(listening[1]) as client:
            yield running, client


async def stop(running: Program) -> None:
    running.signal(signal.SIGTERM)
    assert await running.exit_code() == 0


@trio_test
async def test_each_message_is_shown_while_the_stream_goes_on() -> None:
    async with a_tap("--decode") as (running, client):
        async with client.stream_stream(BIDI) as call:
            for number in range(20):
                await call.send(b"\x0a\x02%02d" % number)
                assert await call.receive() is not None
                for arrow in ("→", "←"):
                    await running.line(
                        rf'caller   {arrow} proxy    {BIDI}  #{number} 4 B 1: "{number:02}"$', "stdout"
                    )
            await call.done_sending()
            assert await call.receive() is None
        await running.line(
            rf"{BIDI}  OK .* 20 sent, 20 received; ended by proxy: HEADERS \(status from upstream\)$",
            "stdout",
        )
        await stop(running)
    assert not [line for line in running.stdout if "\x1b" in line]
    assert running.stderr == []


@trio_test
async def test_frames_of_both_connections_are_shown_without_secrets() -> None:
    async with a_tap("--frames", "--redact", "x-user") as (running, client):
        secret = [("authorization", "Bearer s3cr3t"), ("x-user", "s3cr3t")]
        async with client.stream_stream(BIDI, metadata=secret) as call:
            await call.send_all([HELLO])
            assert await call.receive() == HELLO
        await running.line(r"proxy    ← upstream HEADERS .* trailers: grpc-status: 0$", "stdout")
        await stop(running)
    shown = "\n".join(running.stdout)
    assert re.search(
        r"caller   → proxy    HEADERS .* authorization: \[redacted\]; x-user: \[redacted\]", shown
    )
    assert re.search(r"proxy    → upstream DATA 12 B", shown, re.MULTILINE)
    assert "s3cr3t" not in shown


@trio_test
async def test_a_file_has_what_was_asked_for_and_its_fields_are_documented(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    async with a_tap("--decode", "-o", str(file), "--filter", "status=UNIMPLEMENTED") as (running, client):
        for trial in TRIALS:
            await make_call(client, trial)
        with pytest.raises(RpcError, match="unknown method"):
            await make_call(client, Trial(f"/{ECHO_SERVICE}/Nope", (HELLO,), ()))
        await stop(running)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["event"] for row in rows] == ["begin", "message", "end"]
    assert rows[1]["message"] == [{"field": 1, "text": "hello"}]
    assert (rows[2]["status"], rows[2]["ended_by"], rows[2]["origin"]) == (
        Status.UNIMPLEMENTED.name,
        "proxy",
        "upstream",
    )
    page = (ROOT / "docs" / "tap.md").read_text(encoding="utf-8")
    fields = {
        name
        for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert {name for row in rows for name in row} <= fields


@trio_test
async def test_json_can_go_to_standard_output_alone() -> None:
    async with a_tap("-o", "-") as (running, client):
        await make_call(client, TRIALS[0])
        await running.line(r'"event":"end"', "stdout")
        await stop(running)
    assert [json.loads(line)["event"] for line in running.stdout] == ["begin", "message", "message", "end"]


@trio_test
async def test_who_reads_nothing_slows_no_call() -> None:
    async with an_echo() as upstream:
        command = ["-m", "rawgrpc_proxy", "tap", "--upstream", upstream, "--frames"]
        async with program(python=command) as running:
            address = await running.address()
            await running.hang_up("stdout")
            async with Client(address) as client:
                for trial in TRIALS:
                    assert await make_call(client, trial) == list(trial.replies)
            await stop(running)


@trio_test
async def test_a_terminal_that_takes_nothing_slows_no_call_nor_the_end() -> None:
    async with an_echo() as upstream:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "rawgrpc_proxy", "tap", "--upstream", upstream, "--frames", "-o", "-"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdout, process.stderr:
            try:
                with trio.fail_after(TIMEOUT_S):
                    said = b""
                    while b"\n" not in said:
                        said += await process.stderr.receive_some()
                    async with Client(said.decode().split()[-1]) as client:
                        # Ten times what a pipe holds.
                        for _ in range(100):
                            await make_call(client, TRIALS[0])
                    process.send_signal(signal.SIGTERM)
                    assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()


@trio_test
async def test_tls_is_spoken_on_both_sides(tmp_path: Path) -> None:
    async with (
        an_echo_with_tls(tmp_path / "certs") as echo,
        program("tap", "--upstream", echo.upstream, "--frames", *echo.options) as running,
    ):
        async with Client(await running.address(), ssl_context=echo.client) as client:
            assert await make_call(client, TRIALS[0]) == list(TRIALS[0].replies)
        for side in ("downstream", "upstream  "):
            await running.line(rf"{side} +connection with \S+ TLSv1\.3$", "stdout")
        await running.line(r"caller   ← proxy    HEADERS .* grpc-status: 0$", "stdout")
        await stop(running)


@trio_test
async def test_where_reflection_tells_nothing_messages_are_guessed_and_that_is_said() -> None:
    async with a_tap("--reflection") as (running, client):
        await running.line(r"^rawgrpc-proxy: no schema by reflection, messages are guessed: ", "stderr")
        await make_call(client, Trial(BIDI, (HELLO,), (HELLO,)))
        await running.line(r'#0 7 B 1: "hello"$', "stdout")
        await stop(running)


@trio_test
async def test_what_an_upstream_that_is_not_there_does_to_calls_is_told() -> None:
    async with program("tap", "--upstream", "127.0.0.1:1") as running:
        async with Client(await running.address()) as client:
            with pytest.raises(RpcError, match="cannot connect"):
                await make_call(client, TRIALS[0])
        await running.line(r"UNAVAILABLE .*\(status from proxy", "stdout")
        await stop(running)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --upstream ADDRESS, or --attach"),
        (["--upstream", "nowhere"], "'nowhere'"),
        (["--upstream", "127.0.0.1:1", "--filter", "x=1"], "'x' is nothing to filter by"),
        (["--upstream", "127.0.0.1:1", "--frames", "--messages"], "not allowed with"),
        (["--upstream", "127.0.0.1:1", "--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (
            ["--upstream", "127.0.0.1:1", "-o", "/nowhere/x"],
            "--output: /nowhere/x: No such file or directory",
        ),
        (
            ["--upstream", "127.0.0.1:1", "--descriptor-set", "/nowhere/x"],
            "/nowhere/x: No such file or directory",
        ),
        (["--upstream", "127.0.0.1:1", "--descriptor-set", __file__], "is no set of descriptors"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tap", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
