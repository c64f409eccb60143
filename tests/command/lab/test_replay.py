"""`rawgrpc-proxy replay` and `serve-recording`, each in a process of its own."""

import signal
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import trio

from rawgrpc_proxy import Client, Server, identity_codec, unary_unary
from rawgrpc_proxy.command.cli import main as run_command
from rawgrpc_proxy.lab.recorder import Recorder
from rawgrpc_proxy.services.methods import ServedCall
from tests.processes import program

DO = "/a.B/Do"


def a_server(suffix: bytes, recorder: Recorder | None = None) -> Server:
    async def do(request: bytes, _call: ServedCall) -> bytes:
        return request + suffix

    server = Server(codec=identity_codec(), tap=recorder)
    server.add_method(DO, unary_unary(do, bytes))
    return server


async def record(path: Path, connections: int = 1) -> None:
    with Recorder(path) as recorder:
        async with trio.open_nursery() as nursery:
            address: str = await nursery.start(a_server(b"!", recorder).serve, "127.0.0.1:0")
            async with Client(address) as client:
                assert await client.unary_unary(DO, b"one") == b"one!"
                assert await client.unary_unary(DO, b"two") == b"two!"
            for number in range(2, connections + 1):
                async with Client(address) as client:
                    assert await client.unary_unary(DO, b"%d" % number) == b"%d!" % number
            nursery.cancel_scope.cancel()


def test_a_server_that_answers_as_recorded_passes_and_one_that_does_not_is_told_of(tmp_path: Path) -> None:
    path, xml = tmp_path / "calls.jsonl", tmp_path / "result.xml"

    async def main() -> None:
        await record(path)
        for suffix, code in ((b"!", 0), (b"?", 1)):
            async with trio.open_nursery() as nursery:
                address: str = await nursery.start(a_server(suffix).serve, "127.0.0.1:0")
                arguments = ("replay", str(path), "--to", address, "--speed", "max", "--junit", str(xml))
                async with program(*arguments) as replayed:
                    assert await replayed.exit_code() == code, replayed.stderr
                    assert replayed.stderr == []
                nursery.cancel_scope.cancel()
            suite = ET.fromstring(xml.read_bytes())  # noqa: S314  # our own
            assert (suite.get("tests"), suite.get("failures")) == ("2", "0" if code == 0 else "2")
            if code == 0:
                assert replayed.stdout[-1] == "2 calls replayed: all as recorded"
            else:
                assert replayed.stdout[-1] == "2 calls replayed: 2 differ"
                assert "      message 0 has other bytes (the first at byte 3)" in replayed.stdout
                failure = suite.find("testcase/failure")
                assert failure is not None
                assert failure.get("message") == "message 0 has other bytes (the first at byte 3)"

    trio.run(main)


@pytest.mark.parametrize("more", [(), ("--concurrency", "2")])
def test_a_recording_that_is_served_exactly_is_what_replay_finds_as_recorded(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    path = tmp_path / "calls.jsonl"

    async def main() -> None:
        await record(path, connections=6)
        async with program("serve-recording", str(path), "--listen", "127.0.0.1:0", "--exact") as served:
            arguments = ("replay", str(path), "--to", await served.address(), "--speed", "max", *more)
            async with program(*arguments) as replayed:
                assert await replayed.exit_code() == 0, replayed.stdout
            served.signal(signal.SIGTERM)
            assert await served.exit_code() == 0, served.stdout
            assert served.stdout[1:] == ["0 recorded connections were not asked for"]

    trio.run(main)


def test_a_client_is_served_from_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"

    async def main() -> None:
        await record(path)
        async with program("serve-recording", str(path)) as served:
            async with Client(await served.address()) as client:
                assert await client.unary_unary(DO, b"two") == b"two!"
            served.signal(signal.SIGINT)
            assert await served.exit_code() == 0
            assert served.stdout[1:] == ["1 recorded calls were not asked for"]

    trio.run(main)


@pytest.mark.parametrize(
    ("to", "why"), [("127.0.0.1:1", "Connection refused"), ("unix:/nowhere/x", "No such file or directory")]
)
def test_where_nobody_listens_one_line_says_so_and_the_exit_code_is_none_of_differences(
    tmp_path: Path, to: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, xml = tmp_path / "calls.jsonl", tmp_path / "result.xml"
    trio.run(partial(record, path, connections=3))
    assert run_command(["replay", str(path), "--to", to, "--junit", str(xml)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"rawgrpc-proxy: --to: nobody listens on {to} ({why}), so nothing was played; start the server, or say where "
        "it is\n"
    )
    assert not xml.exists()


def test_a_server_that_goes_in_the_middle_answers_differently(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"

    async def main() -> None:
        await record(path, connections=2)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        arguments = ("replay", str(path), "--to", f"127.0.0.1:{port}", "--concurrency", "1", "--speed", "max")
        async with program(*arguments) as replayed:
            async with listener:
                stream = await listener.accept()
            await stream.aclose()
            assert await replayed.exit_code() == 1
            assert replayed.stderr == []
            assert "      no connection: Connection refused" in replayed.stdout
            assert replayed.stdout[-1].startswith("3 calls replayed: ")

    trio.run(main)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--speed", "0x"], "is no speed; write 2x, 0.5x or max"),
        (["--side", "upstream"], "no upstream connection was recorded"),
        (["--slower", "soon"], "is no number of seconds"),
        (["--upstream-ca", "/nowhere/ca.pem"], "/nowhere/ca.pem: No such file or directory"),
    ],
)
def test_mistakes_are_said_in_a_line(
    tmp_path: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "calls.jsonl"
    trio.run(record, path)
    assert run_command(["replay", str(path), "--to", "127.0.0.1:1", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_junit_can_go_to_standard_output_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"

    async def main() -> None:
        await record(path)
        async with trio.open_nursery() as nursery:
            address: str = await nursery.start(a_server(b"?").serve, "127.0.0.1:0")
            async with program(
                "replay", str(path), "--to", address, "--speed", "max", "--junit", "-"
            ) as replayed:
                assert await replayed.exit_code() == 1
            nursery.cancel_scope.cancel()
        said = "\n".join(replayed.stdout)
        assert said.startswith("<?xml")
        assert "<testsuite" in said
        assert replayed.stderr[-1] == "2 calls replayed: 2 differ"

    trio.run(main)


def test_a_recording_is_served_exactly_or_leniently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["serve-recording", str(tmp_path / "x"), "--exact", "--lenient"]) == 2
    assert "not allowed with" in capsys.readouterr().err
