"""`rawgrpc-proxy lint`: findings as they come, the table and the exit code at the end, silence where all is well."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Client
from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.demo import TRIALS, make_call
from tests.command.echo import an_echo_with_tls
from tests.http2.peer import Header
from tests.lab.lint.talk import METHOD, REQUEST, RESPONSE
from tests.processes import program
from tests.proxy.raw_peers import Backend, connect

NOTE = [field for field in REQUEST if field[0] != b"user-agent"]
WARNING = [*REQUEST, (b"grpc-mine", b"1")]
ERROR = [field for field in REQUEST if field[0] != b"te"]


async def lint_a_call(fields: list[Header], *options: str) -> tuple[list[str], int]:
    """One call with this request: the lines, and the exit code behind SIGINT."""
    async with trio.open_nursery() as nursery:
        upstream = Backend()
        await nursery.start(upstream.run)
        async with program("lint", "--upstream", upstream.address, *options) as proxy:
            client = await connect(await proxy.address(), nursery)
            stream = await client.open(fields, end=True)
            served = await upstream.request()
            await served.headers([*RESPONSE, (b"grpc-status", b"0")], end=True)
            assert (await stream.answer()).status == 0
            proxy.signal(signal.SIGINT)
            code = await proxy.exit_code()
            lines = proxy.stdout
            assert proxy.stderr == []
        nursery.cancel_scope.cancel()
    return lines, code


def lint(fields: list[Header], *options: str) -> tuple[list[str], int]:
    return trio.run(lint_a_call, fields, *options)


def test_a_finding_is_a_line_and_a_row_of_the_table() -> None:
    lines, code = lint(ERROR)
    assert code == 1
    assert re.match(
        r"\d\d:\d\d:\d\d error te-missing: the caller \(downstream client 127\.0\.0\.1:\d+ stream 1\) "
        r"/helloworld\.Greeter/SayHello: there is no te \[gRPC over HTTP/2, Requests\]$",
        lines[1],
    )
    assert lines[2:] == [
        "",
        "count  severity  rule        whose   side               method                        section",
        f"1      error     te-missing  caller  downstream client  {METHOD}  gRPC over HTTP/2, Requests",
        "1 error, 0 warnings, 0 notes; docs/lint.md says what to do",
        "looked at 2 streams on 2 connections",
    ]


def test_it_says_so_if_there_is_nothing() -> None:
    lines, code = lint(REQUEST)
    assert lines[1:] == ["no findings", "looked at 2 streams on 2 connections"]
    assert code == 0


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (NOTE, ["--fail-on", "warning"], 0),
        (WARNING, [], 0),
        (WARNING, ["--fail-on", "warning"], 1),
        (ERROR, ["--fail-on", "never"], 0),
        (ERROR, ["--ignore", "te-missing"], 0),
    ],
)
def test_the_exit_code_is_for_what_counts(fields: list[Header], options: list[str], expected: int) -> None:
    assert lint(fields, *options)[1] == expected


def test_programs_get_it_as_json(tmp_path: Path) -> None:
    file = tmp_path / "findings.json"
    lint(ERROR, "--json", str(file))
    told: dict[str, Any] = json.loads(file.read_text())
    assert (told["version"], told["connections"], told["streams"]) == (1, 2, 2)
    [finding] = told["findings"]
    first = finding.pop("first")
    assert finding == {
        "rule": "te-missing",
        "severity": "error",
        "section": "gRPC over HTTP/2, Requests",
        "text": "a request without te: trailers",
        "who": "caller",
        "side": "downstream client",
        "method": "/helloworld.Greeter/SayHello",
        "count": 1,
    }
    assert (first["stream"], first["seen"]) == (1, "there is no te")


def test_arguments_that_cannot_be_used_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, named in (
        (["--ignore", "te-mising"], "no rule 'te-mising' (did you mean te-missing?)"),
        (["--json", "/no/such/folder/x"], "--json"),
        (["--tls-cert", "x"], "--tls-key"),
    ):
        assert cli.main(["lint", "--upstream", "127.0.0.1:1", *arguments]) == 2
        assert named in capsys.readouterr().err
    assert cli.main(["lint"]) == 2


@trio_test
async def test_it_looks_into_tls_on_both_sides(tmp_path: Path) -> None:
    async with (
        an_echo_with_tls(tmp_path) as echo,
        program("lint", "--upstream", echo.upstream, *echo.options) as proxy,
    ):
        async with Client(await proxy.address(), ssl_context=echo.client) as client:
            assert await make_call(client, TRIALS[0]) == list(TRIALS[0].replies)
        proxy.signal(signal.SIGINT)
        assert await proxy.exit_code() == 0
        assert proxy.stdout[1:] == ["no findings", "looked at 2 streams on 2 connections"]


# --- grpcio on both sides

SERVER = """
from concurrent.futures import ThreadPoolExecutor
import threading
import grpc

def unary(request, context):
    context.set_trailing_metadata((("x-last-bin", b"\\xff\\x00"),))
    return request[::-1]

def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n * 10_000

def bidi(requests, context):
    yield from requests

def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "not here: \\u00e4 100%")

def sleep(request, context):
    context.send_initial_metadata(())
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait()
    return b""

kinds = grpc.method_handlers_generic_handler("a.B", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Sleep": grpc.unary_stream_rpc_method_handler(sleep),
})
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((kinds,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on 127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""
CALLER = """
import sys
import grpc

def status(run):
    try:
        run()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"

with grpc.insecure_channel(sys.argv[1]) as channel:
    unary = channel.unary_unary("/a.B/Unary")
    print(unary(b"abc", metadata=(("x-trace-bin", b"\\x00\\xff"),)))
    print(unary(b"abc" * 100_000, compression=grpc.Compression.Gzip)[:3])
    print(len(list(channel.unary_stream("/a.B/ServerStream")(b"50"))))
    print(list(channel.stream_stream("/a.B/Bidi")(iter([b"1", b"2", b""]))))
    print(status(lambda: channel.unary_unary("/a.B/Fail")(b"")))
    print(status(lambda: channel.unary_unary("/no.Such/Method")(b"")))
    print(status(lambda: list(channel.unary_stream("/a.B/Sleep")(b"", timeout=1))))
    left = channel.unary_stream("/a.B/Sleep")(b"")
    left.initial_metadata()
    left.cancel()
    print(status(lambda: list(left)))
"""


@pytest.mark.parametrize("engine", ["relay", "h2"])
def test_a_session_of_grpcio_has_no_findings(engine: str) -> None:
    pytest.importorskip("grpc")

    async def main() -> None:
        async with (
            program(python=["-c", SERVER]) as server,
            program("lint", "--upstream", await server.address(), "--engine", engine) as proxy,
            program(python=["-c", CALLER, await proxy.address()]) as client,
        ):
            assert await client.exit_code() == 0, client.stderr
            assert client.stdout == [
                "b'cba'", "b'cba'", "50", "[b'1', b'2', b'']",
                "NOT_FOUND", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "CANCELLED",
            ]  # fmt: skip
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0
            assert proxy.stdout[1:] == ["no findings", "looked at 16 streams on 2 connections"]

    trio.run(main)
