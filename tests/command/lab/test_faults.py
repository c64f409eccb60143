"""`rawgrpc-proxy faults` in a process of its own: what callers get, what people see, and arguments that are wrong."""

import os
import pty
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
from rawgrpc_proxy.command.demo import ECHO_SERVICE
from rawgrpc_proxy.lab.faults.presets import PRESETS
from tests.command.echo import an_echo, an_echo_with_tls
from tests.processes import Program, program

UNARY = f"/{ECHO_SERVICE}/Unary"
HELLO = b"\x0a\x05hello"


@asynccontextmanager
async def faulty(*options: str) -> AsyncIterator[tuple[Program, Client]]:
    """The command before an echo, and a client of it."""
    async with (
        an_echo() as upstream,
        program("faults", "--upstream", upstream, *options) as running,
        Client(await running.address()) as client,
    ):
        yield running, client


async def statuses(client: Client, times: int) -> list[str]:
    found = []
    for _ in range(times):
        try:
            assert await client.unary_unary(UNARY, HELLO) == HELLO
        except RpcError as error:
            found.append(error.status.name)
        else:
            found.append("OK")
    return found


async def stop(running: Program) -> None:
    running.signal(signal.SIGTERM)
    assert await running.exit_code() == 0
    assert running.stderr == []


@trio_test
async def test_each_strike_is_a_line_and_the_end_a_table(tmp_path: Path) -> None:
    rules = tmp_path / "faults.toml"
    rules.write_text(
        f"""
        [[faults]]
        name = "two"
        method = "{UNARY}"
        calls = "first 2"
        do = {{ status = "UNAVAILABLE", message = "on purpose" }}
        [[faults]]
        name = "never"
        method = "/a.B/*"
        do = "cut"
        """
    )
    async with faulty("--rules", str(rules)) as (running, client):
        await running.line(r"^seed 0, rules: two, never$", "stdout")
        assert await statuses(client, 3) == ["UNAVAILABLE", "UNAVAILABLE", "OK"]
        await running.line(
            rf"^\d\d:\d\d:\d\d two: status UNAVAILABLE {UNARY} \(downstream 127\.0\.0\.1:\d+ stream 1\)$",
            "stdout",
        )
        await running.line(r" two: .* stream 3\)$", "stdout")
        await stop(running)
    assert running.stdout[-4:] == [
        "",
        "rule   fitted  struck  what",
        "two    3       2       status UNAVAILABLE",
        "never  0       0       cut",
    ]
    assert not [line for line in running.stdout if "\x1b" in line]


@trio_test
async def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    rules = tmp_path / "faults.toml"
    rules.write_text('seed = 3\n[[faults]]\nshare = 0.5\ndo = { status = "ABORTED" }\n')

    async def run(*options: str) -> list[str]:
        async with faulty("--rules", str(rules), *options) as (_, client):
            return await statuses(client, 20)

    in_the_file = await run()
    assert await run("--seed", "3") == in_the_file
    assert await run("--seed", "4") != in_the_file


@trio_test
async def test_faults_on_the_upstreams_connection_are_the_proxys_to_bear(tmp_path: Path) -> None:
    rules = tmp_path / "faults.toml"
    rules.write_text('[[faults]]\nside = "upstream"\ncalls = "1"\nwhere = "response_headers"\ndo = "reset"\n')
    async with faulty("--rules", str(rules)) as (running, client):
        with pytest.raises(RpcError, match="INTERNAL_ERROR") as caught:
            await client.unary_unary(UNARY, HELLO)
        assert caught.value.status is Status.INTERNAL
        assert await statuses(client, 1) == ["OK"]
        await running.line(r" fault-1: reset .*\(upstream 127\.0\.0\.1:\d+ stream \d+\)$", "stdout")
        await stop(running)


@trio_test
async def test_it_works_within_tls(tmp_path: Path) -> None:
    async with (
        an_echo_with_tls(tmp_path / "certs") as echo,
        program("faults", "--upstream", echo.upstream, "--preset", "lb-502", *echo.options) as running,
    ):
        async with Client(await running.address(), ssl_context=echo.client) as client:
            with pytest.raises(RpcError, match="HTTP status 502") as caught:
                await client.unary_unary(UNARY, HELLO)
            assert caught.value.status is Status.UNAVAILABLE
        await stop(running)


def test_there_are_colours_on_a_terminal_and_only_there(tmp_path: Path) -> None:
    def seen(**environment: str) -> str:
        async def main() -> str:
            async with an_echo() as upstream:
                ours, theirs = pty.openpty()
                command = [sys.executable, "-m", "rawgrpc_proxy", "faults", "--upstream", upstream]
                process = await trio.lowlevel.open_process(
                    [*command, "--preset", "lb-502", "--listen", f"unix:{tmp_path}/faults"],
                    stdout=theirs,
                    env={**os.environ, "TERM": "xterm", **environment},
                )
                os.close(theirs)
                said = b""

                async def until(what: bytes) -> None:
                    nonlocal said
                    while what not in said:
                        await trio.lowlevel.wait_readable(ours)
                        said += os.read(ours, 4096)

                try:
                    with trio.fail_after(60):
                        await until(b"rules: lb-502")
                        async with Client(f"unix:{tmp_path}/faults") as client:
                            assert await statuses(client, 1) == ["UNAVAILABLE"]
                        await until(b"stream 1)")
                finally:
                    process.terminate()
                    await process.wait()
                    os.close(ours)
                return said.decode()

        return trio.run(main)

    assert re.search(r"\x1b\[2m\d\d:\d\d:\d\d\x1b\[0m lb-502: \x1b\[31mhttp 502\x1b\[0m ", seen())
    assert "\x1b" not in seen(NO_COLOR="1")


def test_the_presets_are_listed_without_an_upstream(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["faults", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "one of the arguments --preset --rules --list is required (see rawgrpc-proxy faults --help)"),
        (
            ["--preset", "goawy"],
            f"--preset: there is no 'goawy' (did you mean goaway?); known: {', '.join(PRESETS)}",
        ),
        (
            ["--preset", "ping", "--rules", "x"],
            "argument --rules: not allowed with argument --preset (see rawgrpc-proxy faults --help)",
        ),
        (
            ["--preset", "ping", "--seed", "x"],
            "argument --seed: 'x' is no whole number (see rawgrpc-proxy faults --help)",
        ),
        (["--rules", "/nowhere"], "/nowhere: No such file or directory"),
        (["--preset", "ping", "--tls-key", "x"], "--tls-cert and --tls-key go together"),
    ],
)
def test_arguments_that_are_wrong_are_told_in_a_line(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["faults", "--upstream", "127.0.0.1:1", *arguments]) == 2
    assert capsys.readouterr().err == f"rawgrpc-proxy: {problem}\n"


def test_every_mistake_in_a_file_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "faults.toml"
    rules.write_text('[[faults]]\nshare = 2\ncalls = "x"\ndo = "restet"\n')
    assert cli.main(["faults", "--upstream", "127.0.0.1:1", "--rules", str(rules)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [re.match(rf"rawgrpc-proxy: {rules}: faults\[0\]\.(\w+)", line)[1] for line in lines] == [  # type: ignore[index]
        "share",
        "calls",
        "do",
    ]


def test_the_command_is_completed_and_helped() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "rawgrpc_proxy", "faults", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    for option in ("--preset", "--rules", "--seed", "--list"):
        assert option in told.stdout
