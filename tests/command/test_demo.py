import io
import re
import signal
import sys
from collections.abc import Sequence

import pytest
import trio

from rawgrpc_proxy import Client
from rawgrpc_proxy.command import demo
from rawgrpc_proxy.command.demo import ECHO_SERVICE, TRIALS, Trial, make_call, run_demo
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.errors import ConfigError, RpcError
from rawgrpc_proxy.grpc.health import SERVICE as HEALTH_SERVICE
from tests.processes import program

ADDRESS = r"127\.0\.0\.1:\d+"
UNARY = f"/{ECHO_SERVICE}/Unary"


def test_the_demo_shows_a_call_of_each_shape_and_health_and_ends_well() -> None:
    async def main() -> None:
        async with program("demo") as shown:
            assert await shown.exit_code() == 0
            assert shown.stderr == []
            path = rf"{ADDRESS} (→|->) {ADDRESS} (→|->) {ADDRESS}"
            for call, sent, received in (
                (f"{ECHO_SERVICE}/Unary", 1, 1),
                (f"{ECHO_SERVICE}/ServerStream", 1, 3),
                (f"{ECHO_SERVICE}/ClientStream", 3, 1),
                (f"{ECHO_SERVICE}/Bidi", 3, 3),
                (f"{HEALTH_SERVICE}/Check", 1, 1),
            ):
                row = rf"{re.escape(call)} +{sent} +{received} +OK +[\d.]+ ms  {path}"
                assert [line for line in shown.stdout if re.fullmatch(row, line)], call
            assert shown.stdout[-1] == "all 5 calls were answered as expected"
            assert "\x1b" not in "".join(shown.stdout)

    trio.run(main)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_call_shows_the_addresses_that_were_announced(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo_in_process(engine=engine) == 0
    backend, proxy, _, _, _, *rows = capsys.readouterr().out.splitlines()
    backend_address = re.findall(ADDRESS, backend)
    proxy_address = re.findall(ADDRESS, proxy)
    assert len(backend_address) == len(proxy_address) == 1
    assert f"engine: {engine}" in proxy
    assert [re.findall(ADDRESS, row)[1:] for row in rows[: len(TRIALS)]] == [
        proxy_address + backend_address
    ] * len(TRIALS)


def test_the_columns_stand_under_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_in_process() == 0
    lines = capsys.readouterr().out.splitlines()
    [head] = [line for line in lines if line.startswith("call ")]
    rows = [line for line in lines if line.startswith((ECHO_SERVICE, HEALTH_SERVICE))]
    assert len(rows) == len(TRIALS)
    for row in rows:
        assert row.index(" OK ") == head.index(" status ")
        assert row.index(" ms ") + len(" ms") == head.index("duration") + len("duration")
        assert row.index("127.0.0.1") == head.index("client")


def demo_in_process(*, engine: str = "h2", trials: Sequence[Trial] = TRIALS) -> int:
    [known] = [name for name in ENGINES if name == engine]
    return run_demo(settings=Http2Settings(engine=known), trials=trials)


def test_the_demo_speaks_tls_on_both_sides_if_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trustme")
    assert run_demo(tls=True) == 0
    out = capsys.readouterr().out
    assert "All three speak TLS" in out
    assert out.endswith(f"all {len(TRIALS)} calls were answered as expected\n")

    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ConfigError, match=r"pip install 'rawgrpc-proxy\[certs\]'"):
        run_demo(tls=True)


@pytest.mark.parametrize(
    ("trial", "row", "says"),
    [
        (
            Trial(UNARY, (b"hello",), (b"goodbye",)),
            r"1 +1 OK",
            r"the replies are [b'hello'], not [b'goodbye']",
        ),
        (Trial(UNARY, (b"hello",), ()), r"1 +1 OK", "the replies are [b'hello'], not []"),
        (
            Trial(f"/{ECHO_SERVICE}/Nope", (b"hello",), ()),
            r"1 +0 UNIMPLEMENTED",
            f"UNIMPLEMENTED: unknown method /{ECHO_SERVICE}/Nope",
        ),
        (Trial(UNARY, (b"one", b"two"), (b"one",)), r"\d +0 INTERNAL", "more than one message"),
    ],
)
def test_an_answer_that_is_not_as_expected_is_shown_and_makes_the_exit_code_1(
    trial: Trial, row: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo_in_process(trials=[TRIALS[0], trial]) == 1
    captured = capsys.readouterr()
    assert re.search(f"^{re.escape(trial.path[1:])} +{row}", captured.out.splitlines()[6])
    assert captured.out.endswith("\n1 of 2 calls were not answered as expected\n")
    assert captured.err.startswith(f"rawgrpc-proxy: {trial.path}: ")
    assert says in captured.err


def test_a_call_that_gets_no_answer_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_CALL_TIMEOUT_S", 0.2)
    # Waits for a second reply to its one request, in vain.
    waits = Trial(f"/{ECHO_SERVICE}/ClientStream", (b"hello",), (b"hello",), lockstep=True)
    assert demo_in_process(trials=[waits]) == 1
    assert capsys.readouterr().err == f"rawgrpc-proxy: {waits.path}: no answer within 0.2 s\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_stay_others_can_call_and_a_signal_ends_it(number: signal.Signals) -> None:
    async def main() -> None:
        async with program("demo", "--stay") as shown:
            proxy = (await shown.line(rf"^proxy +({ADDRESS}) ", "stdout"))[1]
            command = await shown.line(r"grpcurl .* (127\.0\.0\.1:\d+) (\S+)$", "stdout")
            assert command[1] == proxy
            assert command[2] == UNARY[1:]
            async with Client(proxy) as client:
                assert await make_call(client, Trial(UNARY, (b"\x0a\x05hello",), ())) == [b"\x0a\x05hello"]
                with pytest.raises(RpcError):
                    await make_call(client, Trial("/x.Y/Z", (b"",), ()))
            await shown.line(r"^x\.Y/Z +1 +0 UNIMPLEMENTED ", "stdout")
            await shown.line(r"'unknown method /x\.Y/Z' \(status from: upstream\)", "stdout")
            assert len([line for line in shown.stdout if line.startswith(f"{ECHO_SERVICE}/Unary ")]) == 2
            shown.signal(number)
            assert await shown.exit_code() == 0
            assert shown.stderr == []

    trio.run(main)


def test_the_proto_that_stay_shows_fits_the_service() -> None:
    for trial in TRIALS[:-1]:
        service, method = trial.path[1:].rsplit("/", 1)
        package, name = service.rsplit(".", 1)
        assert f"package {package};" in demo._PROTO
        assert f"service {name} {{" in demo._PROTO
        assert f"rpc {method}(" in demo._PROTO


class Terminal(io.TextIOWrapper):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown_on(file: io.TextIOWrapper) -> str:
    screen = demo._Screen(file, "127.0.0.1:1")
    screen.introduce("127.0.0.1:2", "h2")
    screen.conclude(1, 0)
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode()


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mall 1 calls" in shown_on(Terminal(io.BytesIO(), "utf-8"))
    assert "\x1b" not in shown_on(io.TextIOWrapper(io.BytesIO(), "utf-8"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown_on(Terminal(io.BytesIO(), "utf-8"))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown_on(Terminal(io.BytesIO(), "utf-8"))


def test_arrows_are_plain_where_the_encoding_has_none() -> None:
    assert "client → proxy → backend" in shown_on(io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert "client -> proxy -> backend" in shown_on(io.TextIOWrapper(io.BytesIO(), "ascii"))


def test_the_checks_go_on_when_nobody_reads_any_more() -> None:
    async def main() -> None:
        async with program("demo") as shown:
            await shown.hang_up("stdout")
            assert await shown.exit_code() == 0
            assert shown.stderr == []

    trio.run(main)
