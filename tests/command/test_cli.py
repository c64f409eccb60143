import contextlib
import gc
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy.call import Call
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command.assembly import Process
from rawgrpc_proxy.command.cli import main
from rawgrpc_proxy.command.log import heard_by, log_for
from rawgrpc_proxy.command.settings.file import settings_of
from rawgrpc_proxy.command.settings.model import ServeSettings
from rawgrpc_proxy.command.worker import Inherited, run_process
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.descriptors import DescriptorPlan
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.grpc.status import parse_status
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.methods import ServedCall, stream_stream
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.version import version
from tests.http2 import peer as wire
from tests.processes import TIMEOUT_S, Program, program

TALK = "/p.Talk/Bidi"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket has some 100 bytes at the most.
    with tempfile.TemporaryDirectory(prefix="rgp") as name:
        yield Path(name)


def settings_in(tree: dict[str, object]) -> ServeSettings:
    return settings_of(
        [("here", {"listeners": [{"address": ":0"}], "clusters": {}, "routes": [], **tree, **ONE_ROUTE})]
    ).serve


ONE_ROUTE = {"clusters": {"c": {"endpoints": ["h:1"]}}, "routes": [{"cluster": "c"}]}


def backend(name: str) -> Server:
    """Answers every method with its name; TALK with what it is told."""

    async def answer(call: Call) -> None:
        call.send_headers()
        call.stream.send_data(encode_message(name.encode()))
        call.end(Status.OK)
        call.record.status = Status.OK

    async def talk(requests: AsyncIterator[bytes], _call: ServedCall) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = Server(unknown_service_handler=answer, codec=identity_codec())
    server.add_method(TALK, stream_stream(talk, bytes))
    return server


@asynccontextmanager
async def backends(*addresses: str) -> AsyncIterator[list[str]]:
    """Run a backend on each of these addresses, called a, b, c, …; gives the addresses they really have."""
    async with trio.open_nursery() as nursery:
        yield [
            await nursery.start(backend(chr(ord("a") + place)).serve, address)
            for place, address in enumerate(addresses)
        ]
        nursery.cancel_scope.cancel()


async def answer_to(
    client: Pool,
    address: str,
    method: str,
    ssl_context: ssl.SSLContext | None = None,
    *,
    request: bytes = b"?",
) -> bytes:
    """The one message that comes back from a unary call."""
    async with Client(client.target(address, ssl_context=ssl_context)) as caller:
        return await caller.unary_unary(method, request)


class Talk:
    """A streaming call that runs until it is told to end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def say(self, text: bytes) -> bytes:
        """Send a message, and answer the bytes of the next one that comes back."""
        self._stream.send_data(encode_message(text))
        data = await self._stream.inbox.receive()
        assert data is not None
        return data[5:]

    async def end(self) -> Status | None:
        """Half-close, and answer the status."""
        self._stream.send_data(b"", end_stream=True)
        assert await self._stream.inbox.receive() is None
        return parse_status(dict(self._stream.inbox.trailers_received or ()).get(b"grpc-status"))

    async def failure(self) -> Status:
        """Wait until it is cut off, with trailers or a reset, and answer with which status."""
        try:
            assert await self._stream.inbox.receive() is None
        except RpcError as cut_off:
            return cut_off.status
        status = parse_status(dict(self._stream.inbox.trailers_received or ()).get(b"grpc-status"))
        assert status is not None
        return status


@asynccontextmanager
async def talk(client: Pool, address: str) -> AsyncIterator[Talk]:
    """A streaming call on its way: one message went there and back."""
    conn = await client.get_conn(address)
    talking = Talk(
        conn.open_stream(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", TALK.encode()),
                (b":authority", b"test"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            ]
        )
    )
    assert await talking.say(b"hello") == b"hello"
    try:
        yield talking
    finally:
        conn.close()


def serve(*arguments: str) -> Callable[[Callable[[Program, str, Pool], Awaitable[None]]], None]:
    """Run the decorated test on a proxy that was started with these arguments, and {a}, {b} for backends.

    It gets the running program, its address, and a pool for calls; the program has to end with exit code 0 by itself.
    """

    def run(test: Callable[[Program, str, Pool], Awaitable[None]]) -> None:
        async def main() -> None:
            async with backends("127.0.0.1:0", "127.0.0.1:0") as (a, b), Pool() as client:
                filled = [argument.format(a=a, b=b) for argument in arguments]
                async with program("serve", *filled) as proxy:
                    await test(proxy, await proxy.address(), client)
                    assert await proxy.exit_code() == 0

        trio.run(main)

    return run


# --------------------------------------------------------------------- forwarding


@pytest.mark.parametrize("engine", ENGINES)
def test_serve_forwards_calls_and_says_where_it_listens_in_its_only_line_on_stdout(engine: str) -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}", "--engine", engine)
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address)
        assert await answer_to(client, address, "/p.A/Get") == b"a"
        proxy.signal(signal.SIGTERM)
        await proxy.exit_code()
        assert proxy.stdout == [f"listening on {address}"]


def test_routes_are_tried_in_order_and_before_the_upstream() -> None:
    @serve(
        *("--listen", "127.0.0.1:0", "--upstream", "{a}"),
        *("--route", "/p.B/Exact={a}", "--route", "/p.B/*={b}", "--route", "/p.C/One={b}", "--grace", "5"),
    )
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        for method, name in (
            ("/p.A/Get", b"a"),
            ("/p.B/Exact", b"a"),
            ("/p.B/Get", b"b"),
            ("/p.C/One", b"b"),
            ("/p.C/Two", b"a"),
        ):
            assert await answer_to(client, address, method) == name, method
        proxy.signal(signal.SIGTERM)


def test_without_an_upstream_a_method_without_a_route_is_unimplemented() -> None:
    @serve("--listen", "127.0.0.1:0", "--route", "/p.B/*={b}")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        assert await answer_to(client, address, "/p.B/Get") == b"b"
        with pytest.raises(RpcError) as refused:
            await answer_to(client, address, "/x.Y/Z")
        assert (refused.value.status, refused.value.message) == (
            Status.UNIMPLEMENTED,
            "no route for /x.Y/Z",
        )
        proxy.signal(signal.SIGTERM)


def test_unix_sockets_serve_on_both_sides_and_the_file_is_gone_in_the_end(folder: Path) -> None:
    async def main() -> None:
        listen = f"unix:{folder}/proxy.sock"
        async with backends(f"unix:{folder}/backend.sock") as [upstream], Pool() as client:
            async with program("serve", "--listen", listen, "--upstream", upstream) as proxy:
                assert await proxy.address() == listen
                assert await answer_to(client, listen, "/p.A/Get") == b"a"
                proxy.signal(signal.SIGTERM)
                assert await proxy.exit_code() == 0
            assert not (folder / "proxy.sock").exists()

    trio.run(main)


def test_the_socket_file_of_another_proxy_is_left_alone(folder: Path) -> None:
    async def main() -> None:
        listen = f"unix:{folder}/proxy.sock"
        async with (
            backends("127.0.0.1:0") as [upstream],
            Pool() as client,
            program("serve", "--listen", listen, "--upstream", upstream) as first,
        ):
            await first.address()
            async with program("serve", "--listen", listen, "--upstream", upstream) as second:
                assert await second.exit_code() == 2
                assert second.stderr == [f"rawgrpc-proxy: cannot listen on {listen}: Address already in use"]
            assert await answer_to(client, listen, "/p.A/Get") == b"a"
            first.signal(signal.SIGTERM)
            assert await first.exit_code() == 0

    trio.run(main)


def test_a_path_is_free_for_the_next_proxy_while_the_last_one_still_drains(folder: Path) -> None:
    async def main() -> None:
        listen = f"unix:{folder}/proxy.sock"
        async with (
            backends("127.0.0.1:0") as [upstream],
            Pool() as old_client,
            Pool() as client,
            program("serve", "--listen", listen, "--upstream", upstream) as first,
        ):
            await first.address()
            async with talk(old_client, listen) as talking:
                first.signal(signal.SIGTERM)
                await first.line("draining")
                async with program("serve", "--listen", listen, "--upstream", upstream) as second:
                    await second.address()
                    assert await talking.end() is Status.OK
                    assert await first.exit_code() == 0
                    assert await answer_to(client, listen, "/p.A/Get") == b"a"
                    second.signal(signal.SIGTERM)
                    assert await second.exit_code() == 0

    trio.run(main)


def test_the_options_of_the_pool_reach_it() -> None:
    @serve(
        *("--listen", "127.0.0.1:0", "--upstream", "{a}", "--grace", "0"),
        *("--size", "1", "--ms", "1", "--idle", "1", "--ttl", "60", "--max-waiting", "0"),
    )
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        # One connection with one call at a time, and nobody may wait.
        async with talk(client, address):
            with pytest.raises(RpcError) as refused:
                await answer_to(client, address, "/p.A/Get")
            assert refused.value.status is Status.RESOURCE_EXHAUSTED
        proxy.signal(signal.SIGTERM)


def test_the_options_of_http2_are_in_force() -> None:
    @serve(
        *("--listen", "127.0.0.1:0", "--upstream", "{a}", "--grace", "0", "--max-concurrent-streams", "7"),
        *("--max-header-list-bytes", "2000", "--max-header-fields", "30"),
    )
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        conn = await client.get_conn(address)
        assert conn.peer_limit == 7
        assert conn.peer_max_header_list_bytes == 2000 + 30 * 32  # RFC 9113 §6.5.2 counts 32 for each field
        conn.close()
        proxy.signal(signal.SIGTERM)


# ----------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_accepting_and_lets_a_running_call_finish(number: signal.Signals) -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}", "--grace", "60")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        async with talk(client, address) as talking:
            proxy.signal(number)
            await proxy.line(f"{number.name}: stopping; a second signal ends at once$")
            await proxy.line("draining, 1 call still running, for up to 60 s$")
            host, port = address.split(":")
            with pytest.raises(ConnectionRefusedError), socket.socket() as late:
                late.connect((host, int(port)))
            assert await talking.say(b"still there?") == b"still there?"
            assert await talking.end() is Status.OK
        await proxy.line(rf"{TALK} .* OK \(upstream\)")
        await proxy.line("stopped")


def test_calls_that_outlast_the_grace_are_cut_off() -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}", "--grace", "0.05")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        async with talk(client, address) as talking:
            proxy.signal(signal.SIGTERM)
            assert await talking.failure() is Status.UNAVAILABLE
        await proxy.line(rf"{TALK} .* UNAVAILABLE ")


def test_a_second_signal_ends_at_once() -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}", "--grace", "3600")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        async with talk(client, address) as talking:
            proxy.signal(signal.SIGTERM)
            await proxy.line("draining, 1 call still running")
            proxy.signal(signal.SIGINT)
            assert await talking.failure() is Status.UNAVAILABLE
        await proxy.line("SIGINT again: ending at once")
        await proxy.line("ending at once, 1 call cut off")


# ---------------------------------------------------------------------------- log


def test_the_text_log_has_a_line_for_each_call() -> None:
    @serve("--listen", "127.0.0.1:0", "--route", "/p.A/*={a}")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        await answer_to(client, address, "/p.A/Get")
        with pytest.raises(RpcError):
            await answer_to(client, address, "/x.Y/Z")
        peer = r"127\.0\.0\.1:\d+"
        await proxy.line(
            rf"^\S+Z /p\.A/Get {peer} -> {peer} OK \(upstream\) in 1 msg/6 B out 1 msg/6 B [\d.]+ ms$"
        )
        await proxy.line(
            rf"^\S+Z /x\.Y/Z {peer} -> - UNIMPLEMENTED \(proxy: no_route\) 'no route for /x\.Y/Z' in .* [\d.]+ ms$"
        )
        proxy.signal(signal.SIGTERM)


def test_the_json_log_has_an_object_for_each_event() -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}", "--log-format", "json")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        await answer_to(client, address, "/p.A/Get")
        proxy.signal(signal.SIGTERM)
        await proxy.exit_code()
        # The worker and its supervisor write each for themselves.
        events = {event["event"]: event for event in map(json.loads, proxy.stderr)}
        call, stopping, draining = events["call"], events["workers"], events["draining"]
        assert (call["method"], call["status"], call["origin"]) == ("/p.A/Get", "OK", "upstream")
        assert (call["request_messages"], call["response_messages"]) == (1, 1)
        assert stopping["message"] == "SIGTERM: stopping; a second signal ends at once"
        assert (draining["calls"], draining["grace_s"]) == (0, 30)
        assert set(events) == {"call", "workers", "draining", "stopped"}


def test_without_a_log_only_the_proxy_itself_is_told_of() -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}", "--log-format", "none")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        await answer_to(client, address, "/p.A/Get")
        proxy.signal(signal.SIGTERM)
        await proxy.exit_code()
        assert [line[: len("rawgrpc-proxy: S")] for line in proxy.stderr] == [
            "rawgrpc-proxy: S",
            "rawgrpc-proxy: d",
            "rawgrpc-proxy: s",
        ]


def test_a_reader_of_the_log_who_has_gone_does_not_end_the_proxy() -> None:
    @serve("--listen", "127.0.0.1:0", "--upstream", "{a}")
    async def _test(proxy: Program, address: str, client: Pool) -> None:
        await proxy.hang_up("stderr")
        async with talk(client, address) as talking:
            await answer_to(client, address, "/p.A/Get")
            proxy.signal(signal.SIGTERM)
            assert await talking.say(b"still there?") == b"still there?"
            assert await talking.end() is Status.OK


def fill(pipe: int) -> None:
    """Write into a pipe until it takes no more, and leave it as it was."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x")
    os.set_blocking(pipe, True)


async def until_it_listens(path: Path) -> None:
    """Wait for one that cannot tell us."""
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(str(path)):  # noqa: ASYNC110  # there is no event
            await trio.sleep(0.02)


@contextmanager
def nobody_reads() -> Iterator[int]:
    """The writing end of a pipe that is full."""
    reading, writing = os.pipe()
    fill(writing)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


@asynccontextmanager
async def unread(*arguments: str, stdout: int = subprocess.DEVNULL) -> AsyncIterator[trio.Process]:
    """`rawgrpc-proxy serve`, whose standard error is a full pipe."""
    with nobody_reads() as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "rawgrpc_proxy", "serve", *arguments], stdout=stdout, stderr=stderr
        )
        try:
            with trio.fail_after(TIMEOUT_S):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.mark.parametrize("more", [[], ["--log-format", "none"], ["--workers", "2"]])
@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_ends_the_process_whatever_the_reader_of_the_log_does(
    more: list[str], signals: int, folder: Path
) -> None:
    async def main() -> None:
        listen = f"unix:{folder}/proxy.sock"
        grace = "0" if signals == 1 else "3600"
        async with backends("127.0.0.1:0") as [upstream], Pool() as client:
            arguments = ["--listen", listen, "--upstream", upstream, "--grace", grace, *more]
            async with unread(*arguments) as proxy:
                await until_it_listens(folder / "proxy.sock")
                async with talk(client, listen) as talking:
                    proxy.send_signal(signal.SIGTERM)
                    if signals == 2:
                        while client.explain(listen)[0].startswith("has room"):  # noqa: ASYNC110
                            await trio.sleep(0.01)  # until GOAWAY says that it has heard the first one
                        assert await talking.say(b"still there?") == b"still there?"
                        proxy.send_signal(signal.SIGTERM)
                    before = trio.current_time()
                    assert await proxy.wait() == 0
                    assert trio.current_time() - before < 10
                    assert await talking.failure() is Status.UNAVAILABLE

    trio.run(main)


def test_a_full_standard_output_does_not_keep_it_from_serving(folder: Path) -> None:
    async def main() -> None:
        listen = f"unix:{folder}/proxy.sock"
        with nobody_reads() as stdout:
            async with (
                backends("127.0.0.1:0") as [upstream],
                Pool() as client,
                unread("--listen", listen, "--upstream", upstream, stdout=stdout) as proxy,
            ):
                await until_it_listens(folder / "proxy.sock")
                assert await answer_to(client, listen, "/p.A/Get") == b"a"
                proxy.send_signal(signal.SIGTERM)
                assert await proxy.wait() == 0

    trio.run(main)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_without_standard_streams_nothing_is_written_to_whatever_has_their_numbers(
    closed: str, folder: Path
) -> None:
    async def main() -> None:
        listen = f"unix:{folder}/proxy.sock"
        async with backends("127.0.0.1:0") as [upstream], Pool() as client:
            arguments = ["-m", "rawgrpc_proxy", "serve", "--listen", listen, "--upstream", upstream]
            process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with trio.fail_after(TIMEOUT_S):
                await until_it_listens(folder / "proxy.sock")
                assert await answer_to(client, listen, "/p.A/Get") == b"a"
                async with talk(client, listen) as talking:
                    process.send_signal(signal.SIGTERM)
                    assert await talking.end() is Status.OK
                assert await process.wait() == 0

    trio.run(main)


@pytest.mark.parametrize("log_format", ["text", "json", "none"])
def test_a_crash_is_in_the_log_with_its_traceback_and_in_the_exit_code(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_in({"log_format": log_format})

    def crash() -> Process:
        raise RuntimeError("a fault")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        inherited = Inherited(listeners=[], share=None, channel=theirs, beat_s=None)
        assert run_process(log_for(settings, worker=3), crash, inherited) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    if log_format == "json":
        event = json.loads(first)
        assert (event["event"], event["worker"]) == ("crashed", 3)
        assert "RuntimeError: a fault" in event["traceback"]
        assert rest == []
    else:
        assert re.search(r" w3 (- )?the proxy crashed:$", first)
        assert rest[-1] == "    RuntimeError: a fault"


def test_what_python_would_write_to_standard_error_is_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Faulty:
        def __del__(self) -> None:
            raise RuntimeError("a fault")

    log = log_for(settings_in({"log_format": "json"}))
    with warnings.catch_warnings(), heard_by(log):
        warnings.simplefilter("always")
        Faulty()
        gc.collect()  # PyPy
        warnings.warn("look out", RuntimeWarning, stacklevel=1)
    unraisable, warning = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert unraisable["event"] == "unraisable"
    assert "RuntimeError: a fault" in unraisable["traceback"]
    assert "RuntimeWarning: look out" in warning["message"]


# -------------------------------------------------------------------------- loops


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_upstream_that_comes_to_be_the_proxy_itself_is_told_of_at_the_first_call(
    workers: str, folder: Path
) -> None:
    async def main() -> None:
        listen, link = f"unix:{folder}/proxy.sock", folder / "upstream.sock"
        arguments = ["--listen", listen, "--upstream", f"unix:{link}", "--workers", workers]
        async with program("serve", *arguments) as proxy, Pool() as client:
            await proxy.address()
            link.symlink_to(folder / "proxy.sock")
            for _ in range(3):
                with pytest.raises(RpcError) as refused:
                    await answer_to(client, listen, "/p.A/Get")
                assert refused.value.status is Status.UNAVAILABLE
                assert (
                    f"unix:{link} is this proxy itself, which listens on {listen}: "
                    "calls would go round in a loop"
                ) in refused.value.message
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0
            told = [line for line in proxy.stderr if " - unix:" in line and line.endswith("round in a loop")]
            assert len(told) == 1

    trio.run(main)


def test_proxies_that_lead_to_each_other_end_a_call_at_the_limit_of_hops(folder: Path) -> None:
    async def main() -> None:
        one, two = f"unix:{folder}/one.sock", f"unix:{folder}/two.sock"
        limit = ("--hop-limit", "5", "--grace", "0")
        async with (
            program("serve", "--listen", one, "--upstream", two, *limit) as first,
            program("serve", "--listen", two, "--upstream", one, *limit) as second,
            Pool() as client,
        ):
            await first.address()
            await second.address()
            with pytest.raises(RpcError) as refused:
                await answer_to(client, one, "/p.A/Get")
            assert refused.value.status is Status.FAILED_PRECONDITION
            assert "has passed 5 proxies, and the limit is 5 (--hop-limit)" in refused.value.message
            for proxy in (first, second):
                proxy.signal(signal.SIGTERM)
                assert await proxy.exit_code() == 0

    trio.run(main)


def test_a_client_beyond_the_connections_allowed_is_turned_away(folder: Path) -> None:
    async def main() -> None:
        place = f"{folder}/proxy.sock"
        options = ("--max-connections", "1", "--upstream", f"unix:{folder}/nobody.sock", "--grace", "0")
        async with program("serve", "--listen", f"unix:{place}", *options) as proxy:
            await proxy.address()
            async with await trio.open_unix_socket(place) as first:
                # With a call, or the first one might make room, on a machine that is slow.
                watch = [
                    (b":path", b"/grpc.health.v1.Health/Watch") if n == b":path" else (n, v)
                    for n, v in wire.REQUEST
                ]
                request = wire.data(1, b"\0\0\0\0\x0f\x0a\x0drawgrpc_proxy", end_stream=True)
                await first.send_all(wire.PREFACE + wire.settings() + wire.headers(1, watch) + request)
                heard = b""
                while b"application/grpc" not in heard:
                    chunk = await first.receive_some()
                    assert chunk
                    heard += chunk
                async with await trio.open_unix_socket(place) as second:
                    with contextlib.suppress(trio.BrokenResourceError):
                        assert await second.receive_some() == b""
                await first.send_all(wire.ping())
                assert await first.receive_some()
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0
            why = "1 connections are open, as many as may be: set by max_connections"
            assert any(why in line for line in proxy.stderr)

    trio.run(main)


# -------------------------------------------------------------------------- files


def test_a_burst_of_slow_calls_needs_few_connections() -> None:
    async def main() -> None:
        upstream = backend("a")
        async with trio.open_nursery() as nursery, Pool(ms=100) as client:
            address = await nursery.start(upstream.serve, "127.0.0.1:0")
            async with program("serve", "--listen", "127.0.0.1:0", "--upstream", address) as proxy:
                listening = await proxy.address()
                all_open = trio.Event()
                opened = 0

                async def hold() -> None:
                    nonlocal opened
                    async with talk(client, listening) as talking:
                        opened += 1
                        if opened == 600:
                            all_open.set()
                        await all_open.wait()
                        assert await talking.end() is Status.OK

                async with trio.open_nursery() as callers:
                    for _ in range(600):
                        callers.start_soon(hold)
                    await all_open.wait()
                    assert upstream.open_connections <= 8
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_limit_on_files_is_raised_at_the_start() -> None:
    async def main() -> None:
        async with backends("127.0.0.1:0") as [upstream]:
            arguments = ("serve", "--listen", "127.0.0.1:0", "--upstream", upstream)
            async with program(*arguments, files=(64, 256)) as proxy, contextlib.AsyncExitStack() as clients:
                address = await proxy.address()
                for _ in range(100):
                    client = await clients.enter_async_context(Pool())
                    assert await answer_to(client, address, "/p.A/Get") == b"a"

    trio.run(main)


def test_where_files_are_few_the_log_says_which_limit_turns_connections_away() -> None:
    async def main() -> None:
        async with backends("127.0.0.1:0") as [upstream]:
            arguments = ("serve", "--listen", "127.0.0.1:0", "--upstream", upstream)
            async with program(*arguments, files=(64, 64)) as proxy, contextlib.AsyncExitStack() as clients:
                address = await proxy.address()
                host, port = address.split(":")
                for _ in range(40):
                    await clients.enter_async_context(await trio.open_tcp_stream(host, int(port)))
                told = await proxy.line(r"\d+ connections? turned away: (\d+) connections are open.*")
                assert int(told[1]) == DescriptorPlan.of(64).downstream
                assert "the process may have 64 files open; raise that with `ulimit -n`" in told[0]

    trio.run(main)


def test_where_files_are_few_connections_to_upstreams_have_their_share_and_no_more() -> None:
    async def main() -> None:
        async with backends("127.0.0.1:0") as [upstream], Pool(ms=100) as client:
            arguments = ("serve", "--listen", "127.0.0.1:0", "--upstream", upstream, "--ms", "1")
            async with (
                program(*arguments, "--max-waiting", "0", files=(64, 64)) as proxy,
                contextlib.AsyncExitStack() as calls,
            ):
                address = await proxy.address()
                for _ in range(DescriptorPlan.of(64).upstream):
                    await calls.enter_async_context(talk(client, address))
                with pytest.raises(RpcError, match="max_connections") as refused:
                    await answer_to(client, address, "/p.A/Get")
                assert refused.value.status is Status.RESOURCE_EXHAUSTED

    trio.run(main)


# ---------------------------------------------------------------------- arguments


SERVE = ["serve", "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["serve", "--upstream", "127.0.0.1:1"],
            "listeners is empty: there is nowhere to accept calls; give --listen",
        ),
        (
            ["serve", "--listen", "127.0.0.1:0"],
            "routes is empty: calls would go nowhere; give --upstream HOST:PORT or",
        ),
        (["bogus"], "invalid choice: 'bogus'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["demo", "--bogus"], "unrecognized arguments: --bogus"),
        ([*SERVE, "--bogus"], "unrecognized arguments: --bogus"),
        ([*SERVE, "extra\nline"], r"unrecognized arguments: extra\nline"),
        ([*SERVE, "--listen"], "argument --listen: expected one argument"),
        (
            [*SERVE, "--listen", "8080"],
            "argument --listen: '8080' is no address; write HOST:PORT or unix:PATH",
        ),
        ([*SERVE, "--upstream", ":8080"], "argument --upstream: ':8080' names no host"),
        ([*SERVE, "--upstream", "127.0.0.1:0"], "argument --upstream: '127.0.0.1:0' has port 0"),
        ([*SERVE, "--route", "/p.S/*"], "argument --route: '/p.S/*' is no route; write"),
        ([*SERVE, "--route", "p.S=h:1"], "argument --route: 'p.S' is no pattern; write"),
        ([*SERVE, "--size", "-1"], "argument --size: '-1' is no whole number of 0 or more"),
        ([*SERVE, "--idle", "many"], "argument --idle: 'many' is no whole number of 0 or more"),
        ([*SERVE, "--ms", "0"], "argument --ms: '0' is no whole number of 1 or more"),
        ([*SERVE, "--ttl", "nan"], "argument --ttl: 'nan' is no number of seconds; write 0 or more"),
        ([*SERVE, "--grace", "-1"], "argument --grace: '-1' is no number of seconds; write 0 or more"),
        ([*SERVE, "--grace", "soon"], "argument --grace: 'soon' is no number of seconds"),
        (
            [*SERVE, "--max-waiting", "1.5"],
            "argument --max-waiting: '1.5' is no whole number of 0 or more, nor 'none'",
        ),
        (
            [*SERVE, "--size", "0", "--max-waiting", "1"],
            "argument --size of 0 would never let a call through",
        ),
        ([*SERVE, "--size", "0"], 'give max_waiting "none", too'),
        ([*SERVE, "--config", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["check", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["check"], "the following arguments are required: FILE"),
        (["serve", "--upstream", "h:1", "--tls-cert", "x"], "--tls-cert goes with --listen"),
        (["serve", "--listen", ":0", "--upstream-tls"], "--upstream-tls goes with --upstream or --route"),
        ([*SERVE, "--tls-cert", "x"], "listeners[0].tls.key is missing"),
        ([*SERVE, "--tls-cert", "/no", "--tls-key", "/no"], "/no: No such file or directory"),
        ([*SERVE, "--hop-limit", "0"], "argument --hop-limit: '0' is no whole number of 1 or more"),
        (
            [*SERVE, "--max-connections", "none"],
            "argument --max-connections: 'none' is no whole number of 1 or more",
        ),
        (
            [*SERVE, "--max-concurrent-streams", "0"],
            "argument --max-concurrent-streams: max_concurrent_streams is 0; it must be between 1 and 2147483647",
        ),
        (
            [*SERVE, "--max-header-list-bytes", "8k"],
            "argument --max-header-list-bytes: '8k' is no whole number",
        ),
        (
            [*SERVE, "--max-header-fields", "7"],
            "argument --max-header-fields: max_header_fields is 7; it must be between 8 and 10000",
        ),
        (
            [*SERVE, "--upstream-keepalive", "5"],
            "argument --upstream-keepalive: upstream_keepalive_s is 5.0; it must be between 10 and inf",
        ),
        (
            [*SERVE, "--downstream-keepalive", "soon"],
            "argument --downstream-keepalive: 'soon' is no number of seconds",
        ),
        (
            [*SERVE, "--keepalive-timeout", "inf"],
            "argument --keepalive-timeout: keepalive_timeout_s is inf; it must be between 0.001 and 3600",
        ),
        ([*SERVE, "--engine", "steam"], "argument --engine: invalid choice: 'steam'"),
        ([*SERVE, "--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
        ([*SERVE, "--up", "127.0.0.1:1"], "unrecognized arguments: --up"),
        (
            [*SERVE, "--upstream", "h:1", "--upstream", "h:2"],
            "argument --upstream: is there twice; several are",
        ),
        (
            [*SERVE, "--upstream", "h:1,h:2"],
            "argument --upstream: 'h:1,h:2' is more than one address; several are",
        ),
        (
            [*SERVE, "--listen", "unix:/no/such/folder/x"],
            "cannot listen on unix:/no/such/folder/x: No such file",
        ),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rawgrpc-proxy: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


@pytest.mark.parametrize("upstream", ["127.0.0.1", "localhost", "0.0.0.0"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_proxy_that_would_be_its_own_upstream_does_not_start(
    upstream: str, workers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listen = ["serve", "--listen", f"127.0.0.1:{port}", "--workers", workers]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        assert main([*listen, "--route", f"/p.A/*={upstream}:{port}", "--upstream", "127.0.0.1:1"]) == 2
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert capfd.readouterr().err == (
        f"rawgrpc-proxy: argument --route: {upstream}:{port} is this proxy itself, which listens on "
        f"127.0.0.1:{port}: calls would go round in a loop\n"
    )


def test_a_unix_socket_that_would_be_its_own_upstream_does_not_start_by_any_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "link").symlink_to(folder / "proxy.sock")
    assert main(["serve", "--listen", f"unix:{folder}/proxy.sock", "--upstream", f"unix:{folder}/link"]) == 2
    assert "in a loop" in capsys.readouterr().err
    assert not (folder / "proxy.sock").exists()


def test_a_taken_port_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--listen", f"127.0.0.1:{port}", "--upstream", "127.0.0.1:1"]) == 2
    error = f"rawgrpc-proxy: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert capsys.readouterr().err == error


def test_a_wrong_argument_ends_a_real_process_with_exit_code_2() -> None:
    async def run() -> None:
        async with program("serve", "--listen", "nowhere") as wrong:
            assert await wrong.exit_code() == 2
            assert wrong.stdout == []
            [line] = wrong.stderr
            assert line.startswith("rawgrpc-proxy: argument --listen: 'nowhere' is no address")

    trio.run(run)


def test_no_arguments_at_all_show_the_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "serve" in captured.err
    assert "demo" in captured.err
    assert captured.err.count("\n") < 24  # a terminal has so many lines


def test_whoever_reads_the_output_may_have_enough(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(
        '[[listeners]]\naddress = ":1"\n[clusters.c]\nendpoints = ["h:1"]\n[[routes]]\ncluster = "c"\n'
    )
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as unread:
        done = subprocess.run(
            [sys.executable, "-m", "rawgrpc_proxy", "check", str(file)],
            stdout=unread,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"]])
def test_help_is_no_error(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['rawgrpc-proxy', *command])} ")


def test_the_help_of_serve_tells_the_default_of_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option, default in (
        ("--size N", "(default: 100)"),
        ("--ttl SECONDS", "in seconds (default: 60)"),
        ("--idle N", "(default: 50)"),
        ("--ms N", "(default: 100)"),
        ("--max-waiting N", "(default: 1000)"),
        ("--hop-limit N", "(default: none)"),
        ("--max-connections N", "(default: two thirds of the files that it may have open)"),
        ("--max-concurrent-streams N", f"(default: {Http2Settings().max_concurrent_streams})"),
        ("--max-header-list-bytes N", f"(default: {Http2Settings().max_header_list_bytes})"),
        ("--max-header-fields N", f"(default: {Http2Settings().max_header_fields})"),
        ("--upstream-keepalive SECONDS", f"(default: {Http2Settings().upstream_keepalive_s:g})"),
        ("--downstream-keepalive SECONDS", f"(default: {Http2Settings().downstream_keepalive_s:g})"),
        ("--keepalive-timeout SECONDS", f"(default: {Http2Settings().keepalive_timeout_s:g})"),
        ("--grace SECONDS", "in seconds (default: 30)"),
        ("--log-format {text,json,none}", "(default: text)"),
        ("--engine {", "(default: relay)"),
    ):
        described = text[text.rindex(option) + len(option) :].split(" --")[0]
        assert default in described, option


def test_version_prints_in_one_line_what_a_report_of_a_fault_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(
        r"rawgrpc-proxy \d+\.\d+\S* \(engine relay; (CPython|PyPy) 3\.\d+\.\d+\S*, \w+ \w+\)\n",
        capsys.readouterr().out,
    )


def test_version_says_so_where_the_package_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rawgrpc_proxy.version._DISTRIBUTION", "no-such-distribution")
    version.cache_clear()
    try:
        assert main(["--version"]) == 0
    finally:
        version.cache_clear()
    assert capsys.readouterr().out.startswith("rawgrpc-proxy not-installed (engine ")


def test_a_command_does_not_load_what_only_others_need() -> None:
    script = (
        "import sys; from rawgrpc_proxy.command.cli import main; main(['certs', '--help']); "
        "print(*(name for name in sys.modules if name.startswith('rawgrpc_proxy.command.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "rawgrpc_proxy.command.cli rawgrpc_proxy.command.certs"


def test_ctrl_c_before_signals_are_received_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_settings: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("rawgrpc_proxy.command.demo.run_demo", interrupted)
    assert main(["demo"]) == 128 + signal.SIGINT
