"""`rawgrpc-proxy tap --attach` before a running `serve`, as real processes."""

import json
import re
import signal
import socket
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.demo import ECHO_SERVICE, TRIALS, Trial, make_call
from rawgrpc_proxy.command.lab.tap_attach import AdminUrl
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConfigError
from tests.command.lab.serving import serving
from tests.command.test_supervisor import children
from tests.processes import Program
from tests.proxy.house import on_every_engine

BIDI = f"/{ECHO_SERVICE}/Bidi"
ROOT = Path(__file__).parents[3]
HELLO = b"\x0a\x05hello"


async def stop(tap: Program) -> None:
    tap.signal(signal.SIGTERM)
    assert await tap.exit_code() == 0
    assert tap.stderr == []


@on_every_engine
@trio_test
async def test_a_call_that_is_open_is_shown_from_its_next_message_on_on_both_sides(
    engine: Engine, tmp_path: Path
) -> None:
    async with serving(tmp_path, engine=engine) as house, Client(house.address) as client:
        secret = [("authorization", "s3cr3t"), ("x-user", "alice")]
        async with client.stream_stream(BIDI, metadata=secret) as call:
            await call.send(b"\x0a\x05first")
            assert await call.receive() is not None
            async with house.tap("--decode", "--side", "both") as tap:
                shown = r"is open .*authorization: \[redacted\]; x-user: alice$"
                joined = await tap.line(rf" (\d):(\d+\.1) +caller   → proxy    {BIDI}  {shown}", "stdout")
                worker, number = joined[1], joined[2]
                for index in (1, 2, 3):
                    await call.send(b"\x0a\x02%02d" % index)
                    assert await call.receive() is not None
                    # Each is here before the next, as the call goes on.
                    for arrow, end in (("→", "proxy    → upstream"), ("←", "proxy    ← upstream")):
                        shown = rf'{BIDI}  #{index} 4 B 1: "0{index}"$'
                        await tap.line(rf"{worker}:{number} +caller   {arrow} proxy    {shown}", "stdout")
                        await tap.line(rf"{worker}:{number}/\d+\.1 +{end} {shown}", "stdout")
                await call.done_sending()
                assert await call.receive() is None
                await tap.line(
                    rf"downstream +{BIDI}  OK 4 sent, 4 received; ended by proxy: HEADERS$", "stdout"
                )
                await stop(tap)
        assert not [line for line in tap.stdout if "s3cr3t" in line or "first" in line]


@trio_test
async def test_workers_that_come_with_a_reload_are_followed(tmp_path: Path) -> None:
    async with serving(tmp_path) as house, house.tap("--decode") as tap:
        await house.attached(tap)
        house.program.signal(signal.SIGHUP)
        for number in (1, 2):
            await tap.line(rf"worker {number} \(process \d+\): detached$", "stdout")
        for text in (b"one", b"two", b"three"):
            async with Client(house.address) as client:
                await make_call(
                    client, Trial(BIDI, (b"\x0a\x05" + text.ljust(5),), (b"\x0a\x05" + text.ljust(5),))
                )
            await tap.line(f'1: "{text.decode():5}"$', "stdout")
        await stop(tap)
    pids = set(re.findall(r"process (\d+)\): attached", "\n".join(tap.stdout)))
    assert len(pids) == 4


@trio_test
async def test_what_passes_is_private_until_the_settings_say_otherwise(tmp_path: Path) -> None:
    async with serving(tmp_path, tap=False, workers=1) as house, house.tap() as tap:
        assert await tap.exit_code() == 2
        [said] = tap.stderr
        assert re.search(r"--attach: 127\.0\.0\.1:\d+: 403: .* tap = true in the table \[admin\]", said)


@trio_test
async def test_rows_are_json_whose_fields_are_documented_and_what_they_say_is_chosen(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as house:
        file = tmp_path / "rows.jsonl"
        options = ("--frames", "--side", "both", "--filter", "metadata.x-user=bob", "--filter", "peer=nobody")
        async with house.tap(*options, "-o", str(file)) as tap, Client(house.address) as client:
            await house.attached(tap, 1)
            for user in ("alice", "bob"):
                trial = Trial(BIDI, (HELLO,), (HELLO,))
                call = client.stream_stream(BIDI, metadata=[("x-user", user)])
                async with call:
                    await call.send_all(trial.requests)
                    assert await call.receive() == HELLO
                    assert await call.receive() is None
            await tap.line(r"upstream +" + BIDI + "  OK", "stdout")
            await tap.line(r"downstream +" + BIDI + "  OK", "stdout")
            await stop(tap)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        calls = {row["call"] for row in rows if "call" in row}
        assert len(calls) == 1
        assert {row["side"] for row in rows if "call" in row} == {"downstream", "upstream"}
        assert {row["event"] for row in rows} == {"attached", "frame", "end"}
        page = (ROOT / "docs" / "tap.md").read_text(encoding="utf-8")
        cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        fields = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        assert {name for row in rows for name in row} <= fields


@trio_test
async def test_few_may_watch_and_the_places_of_those_that_are_killed_are_free_again(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as house:
        async with AsyncExitStack() as stack:
            taps = [await stack.enter_async_context(house.tap()) for _ in range(4)]
            for tap in taps:
                await house.attached(tap, 1)
            async with house.tap() as one_more:
                assert await one_more.exit_code() == 2
                assert "503: 4 are watching what passes already" in one_more.stderr[0]
            for tap in taps:
                tap.signal(signal.SIGKILL)
                await tap.exit_code()
        while True:
            async with house.tap() as tap:
                first = trio.Event()
                async with trio.open_nursery() as nursery:

                    async def refused() -> None:
                        await tap.exit_code()
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(refused)
                    await house.attached(tap, 1)
                    first.set()
                    nursery.cancel_scope.cancel()
                if first.is_set():
                    async with Client(house.address) as client:
                        await make_call(client, TRIALS[0])
                    await tap.line(r"  OK ", "stdout")
                    await stop(tap)
                    return


@trio_test
async def test_when_the_proxy_has_ended_so_has_the_tap(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as house, house.tap() as tap:
        await house.attached(tap, 1)
        house.program.signal(signal.SIGTERM)
        assert await tap.exit_code() == 1
        assert tap.stderr == ["rawgrpc-proxy: the admin listener tells nothing more: its proxy has ended"]


@trio_test
async def test_it_ends_when_nobody_reads_what_it_shows(tmp_path: Path) -> None:
    async with serving(tmp_path) as house, Client(house.address) as client, house.tap() as tap:
        await tap.hang_up("stdout")
        with trio.CancelScope() as calling:
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    while True:
                        await make_call(client, TRIALS[0])

                nursery.start_soon(call)
                assert await tap.exit_code() == 128 + signal.SIGPIPE
                calling.cancel()
        assert tap.stderr == []


@trio_test
async def test_who_takes_nothing_costs_no_call_anything(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as house:
        host, port = house.admin.rsplit(":", 1)
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream, Client(house.address) as client:
            await stream.send_all(
                f"GET /tap?mode=frames&payload=1 HTTP/1.1\r\nHost: {house.admin}\r\n\r\n".encode()
            )
            assert (await stream.receive_some(1)) == b"H"
            for _ in range(200):
                assert await make_call(client, TRIALS[0]) == list(TRIALS[0].replies)
        assert len(children(house.program)) == 2  # and nobody was replaced


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --upstream ADDRESS, or --attach"),
        (["--attach", "nowhere"], "'nowhere'"),
        (["--attach", "ftp://a/"], "is no address of an admin listener; write http://HOST:PORT/"),
        (["--attach", "127.0.0.1:1"], "--attach: 127.0.0.1:1: "),
        (["--attach", "127.0.0.1:1", "--upstream", "127.0.0.1:1"], "--upstream is for a proxy of its own"),
        (["--attach", "127.0.0.1:1", "--tls-cert", "a"], "--tls-cert is for a proxy of its own"),
        (["--attach", "127.0.0.1:1", "--show-secrets"], "--show-secrets does not go with --attach"),
        (["--attach", "127.0.0.1:1", "--reflection"], "--reflection does not go with --attach"),
        (["--attach", "127.0.0.1:1", "--filter", "x=1"], "'x' is nothing to filter by"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["tap", *options])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    assert code == 2
    assert said in capsys.readouterr().err


def test_the_address_of_a_grpc_server_is_told_from_that_of_an_admin_listener(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                connection.recv(65536)

        server = threading.Thread(target=greet)
        server.start()
        assert cli.main(["tap", "--attach", f"127.0.0.1:{listener.getsockname()[1]}"]) == 2
        server.join()
    assert "is no admin listener, for it does not speak HTTP/1.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address", "path", "is_tls"),
    [
        ("127.0.0.1:9901", "127.0.0.1:9901", "", False),
        ("http://localhost:9901/", "localhost:9901", "", False),
        ("http://[::1]:9901", "[::1]:9901", "", False),
        ("https://admin.example/proxy/", "admin.example:443", "/proxy", True),
        ("unix:/run/admin.sock", "unix:/run/admin.sock", "", False),
    ],
)
def test_an_admin_listener_is_named_as_it_names_itself(
    text: str, address: str, path: str, is_tls: bool
) -> None:
    url = AdminUrl.parse(text)
    assert (str(url.address), url.path, url.is_tls) == (address, path, is_tls)


def test_a_url_without_a_port_that_can_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address of an admin listener"):
        AdminUrl.parse("http://localhost:99999999/")
