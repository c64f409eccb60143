"""How a server listens, refuses, and stops."""

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import (
    CallContext,
    Client,
    ConfigError,
    Http2Settings,
    Pool,
    PoolConn,
    Server,
    Status,
)
from rawgrpc_proxy.call import Call
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConnectionLimit
from rawgrpc_proxy.net.address import Address
from tests.http2 import peer as wire
from tests.http2.peer import MAX_CONCURRENT_STREAMS
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RawPeer,
    connect,
    message,
    request_fields,
    start_client,
)

pytestmark = on_every_engine

MIB = 2**20


async def _refuses_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        stream = await trio.open_tcp_stream(host, int(port))
    except OSError:
        return True
    await stream.aclose()
    return False


# --- graceful stop -------------------------------------------------------------------------------------------------


@trio_test
async def test_a_graceful_stop_says_goaway_twice_with_a_ping_between(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        client.answers_pings = False
        call = await client.open(request_fields())
        served = await house.backend.request()

        house.server.stop(grace_s=20)
        first = await client.expect_goaway()
        assert (first.last_stream_id, first.code) == (2**31 - 1, 0)
        ping = await client.expect_ping()
        assert await _refuses_connections(house.address)

        # What the client sends before it has seen the first GOAWAY is served.
        late = await client.request("/a.B/Late", body=b"late")
        await client.pong(ping)
        second = await client.expect_goaway()
        assert (second.last_stream_id, second.code) == (late.id, 0)

        # What it sends after the second is not.
        too_late = await client.open(request_fields("/a.B/TooLate"))
        late_served = await house.backend.request()
        await late_served.respond(b"in time")
        assert (await late.answer()).body == message(b"in time")
        await call.data(message(b"x"), end=True)
        assert await served.request_body() == message(b"x")
        await served.respond(b"done")
        assert (await call.answer()).body == message(b"done")
        await client.pong(await client.expect_ping())
        await client.closed()
        assert (await too_late.answer()).lost
        assert house.backend.no_request_came()
        records = {(await house.record()).status for _ in range(2)}
        assert records == {Status.OK}


@trio_test
async def test_a_stream_that_opens_when_the_others_have_ended_during_the_stop_is_served(
    engine: Engine,
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        client.answers_pings = False
        call = await client.open(request_fields())
        served = await house.backend.request()
        house.server.stop(grace_s=20)
        ping = await client.expect_ping()
        await served.respond(b"one")
        await call.data(b"", end=True)
        assert (await call.answer()).status == Status.OK
        await until(lambda: house.server.open_calls == 0)
        late = await client.request("/a.B/Late")
        late_served = await house.backend.request()
        await client.pong(ping)
        await client.expect_goaway()
        await client.expect_goaway()
        await late_served.respond(b"two")
        answer = await late.answer()
        assert (answer.status, answer.body) == (Status.OK, message(b"two"))


@trio_test
async def test_serve_returns_when_the_last_call_has_ended(engine: Engine) -> None:
    returned = trio.Event()

    async with a_proxy(engine) as house:
        server = Server(unknown_service_handler=house.server._answering.unknown_service_handler)

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await server.serve("127.0.0.1:0", task_status=task_status)
            returned.set()

        address = await house.nursery.start(serve)
        client = await connect(address, house.nursery)
        call = await client.request()
        served = await house.backend.request()
        server.stop(grace_s=20)
        await client.expect_goaway()
        await client.expect_goaway()
        assert not returned.is_set()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        await returned.wait()
        await client.closed()
        assert server.open_connections == 0


@trio_test
async def test_the_grace_period_ends_calls_that_go_on(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        house.server.stop(grace_s=0.1)
        assert await served.expect_reset() == 8
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"the proxy is shutting down")
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "proxy")


@trio_test
async def test_a_second_stop_with_less_grace_shortens_the_first(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        house.server.stop(grace_s=3600)
        await client.expect_goaway()
        await client.expect_goaway()
        house.server.stop(grace_s=0)
        assert await served.expect_reset() == 8
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"the proxy is shutting down")
        await client.closed()


@trio_test
async def test_a_second_stop_with_more_grace_changes_nothing(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        house.server.stop(grace_s=0.1)
        house.server.stop(grace_s=3600)
        assert await served.expect_reset() == 8
        assert (await call.answer()).status == Status.UNAVAILABLE


@trio_test
async def test_the_grace_period_ends_calls_that_wait_for_their_director(engine: Engine) -> None:
    asked = trio.Event()

    async def director(_context: CallContext, _method: str) -> tuple[CallContext, PoolConn]:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request()
        await asked.wait()
        house.server.stop(grace_s=0.01)
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"the proxy is shutting down")
        assert (await house.record()).status == Status.UNAVAILABLE


@trio_test
async def test_a_stop_without_grace_closes_at_once_and_says_so(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client, idle = await house.client(), await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        house.server.stop()
        assert await served.expect_reset() == 8
        assert (await call.answer()).status == Status.UNAVAILABLE
        assert (await client.expect_goaway()).last_stream_id == call.id
        await idle.closed()


@pytest.mark.parametrize("when", ["before the stop", "during the stop"])
@trio_test
async def test_the_last_bytes_of_a_response_are_not_cut_off_by_the_stop(engine: Engine, when: str) -> None:
    # The whole response is out, as far as the proxy can tell: it waits in the kernel for a client that does not read.
    # The kernel would drop it if the client said anything to a socket that is closed.
    body = bytes(MIB)
    async with a_proxy(engine) as house:
        client = await house.client({INITIAL_WINDOW_SIZE: 2**30})
        await client.credit(None, 2**30)
        call = await client.request()
        served = await house.backend.request()
        if when == "during the stop":
            house.server.stop(grace_s=20)
            await client.expect_goaway()
            await client.expect_goaway()
        client.stop_reading()
        await served.respond(body)
        await until(lambda: house.server.open_calls == 0)
        if when == "before the stop":
            house.server.stop(grace_s=20)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.credit(None, 1)
        client.go_on_reading()
        answer = await call.answer()
        assert answer.status == Status.OK
        assert answer.body == message(body)
        await client.closed()


@trio_test
async def test_cancelling_serve_closes_everything(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        async with trio.open_nursery() as nursery:
            server = Server(
                unknown_service_handler=house.server._answering.unknown_service_handler,
                observer=house.observer,
            )
            address = await nursery.start(server.serve, "127.0.0.1:0")
            client = await connect(address, house.nursery)
            call = await client.open(request_fields())
            served = await house.backend.request()
            nursery.cancel_scope.cancel()
        assert await served.expect_reset() == 8
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"the proxy is shutting down")
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "proxy")
        assert server.open_connections == 0
        await client.closed()
        assert await _refuses_connections(address)


@trio_test
async def test_a_server_that_was_stopped_before_it_served_returns_at_once(engine: Engine) -> None:
    server = Server()
    server.stop()
    with trio.fail_after(5):
        await server.serve("127.0.0.1:0")


@trio_test
async def test_a_connection_that_has_said_nothing_does_not_hold_up_a_stop(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        host, _, port = house.address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        await until(lambda: house.server.open_connections == 1)
        house.server.stop()
        got = b""
        async with stream:
            while chunk := await stream.receive_some():
                got += chunk
        # The first frame of a server is SETTINGS, even now.
        assert got[3:4] == b"\4"
        assert got[9:][3:4] == b"\7"


@trio_test
async def test_a_connection_that_is_just_being_made_is_served_during_a_stop(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        host, _, port = house.address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        await until(lambda: house.server.open_connections == 1)
        house.server.stop(grace_s=20)
        await trio.testing.wait_all_tasks_blocked(0.01)
        client = RawPeer(stream, client_side=True)
        client.answers_pings = False
        await house.nursery.start(client.run)
        ping = await client.expect_ping()
        assert client.log[0].startswith("SETTINGS")
        assert (await client.expect_goaway()).last_stream_id == 2**31 - 1
        call = await client.request()
        await client.pong(ping)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK
        await client.pong(await client.expect_ping())
        await client.closed()


@trio_test
async def test_one_server_serves_on_several_addresses_and_stops_on_all(
    engine: Engine, tmp_path: Path
) -> None:
    async with a_proxy(engine) as house:
        path = f"unix:{tmp_path}/proxy.sock"
        assert await house.nursery.start(house.server.serve, path) == path
        unix = await start_client(await trio.open_unix_socket(path.removeprefix("unix:")), house.nursery)
        tcp = await house.client()
        for client in (unix, tcp):
            call = await client.request()
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
        assert (await house.record()).peer == "unix:"
        assert house.server.open_connections == 2
        house.server.stop(grace_s=20)
        for client in (unix, tcp):
            assert (await client.expect_goaway()).last_stream_id == 2**31 - 1
            await client.closed()
            assert [line for line in client.log if line.startswith("GOAWAY")] == ["GOAWAY 0"] * 3


# --- limits and addresses ------------------------------------------------------------------------------------------


@pytest.fixture
def still_clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


@trio_test
async def test_connections_beyond_the_limit_are_closed(engine: Engine, still_clock: MockClock) -> None:
    async with a_proxy(engine, max_connections=2) as house:
        clients = [await house.client(), await house.client()]
        host, _, port = house.address.rpartition(":")
        for _ in range(3):
            async with await trio.open_tcp_stream(host, int(port)) as third:
                assert await _reads_to_the_end(third) == b""
        assert [type(error) for error in house.observer.accepts_failed] == [ConnectionLimit] * 3
        assert str(house.observer.accepts_failed[0]) == (
            "2 connections are open, as many as may be: set by max_connections"
        )
        await clients.pop().aclose()
        await until(lambda: house.server.open_connections == 1)
        await house.client()


@trio_test
async def test_the_limit_counts_connections_in_their_tls_handshake(
    engine: Engine, certificate: tuple[Path, Path], still_clock: MockClock
) -> None:
    async with a_proxy(engine, max_connections=1) as house:
        address = await house.nursery.start(_serve_tls(house.server, certificate))
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as first:
            await until(lambda: house.server._accepted == 1)
            async with await trio.open_tcp_stream(host, int(port)) as second:
                assert await _reads_to_the_end(second) == b""
            await first.send_all(b"no TLS")
            await _reads_to_the_end(first)
        await until(lambda: house.server._accepted == 0)
        (error,) = house.observer.connections_failed
        assert "no TLS" in str(error)


@trio_test
async def test_a_tls_handshake_that_takes_long_makes_room(
    engine: Engine, certificate: tuple[Path, Path], still_clock: MockClock
) -> None:
    async with a_proxy(engine, max_connections=1) as house:
        address = await house.nursery.start(_serve_tls(house.server, certificate))
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as silent:
            await until(lambda: bool(house.server._handshaking))
            still_clock.jump(1.1)
            await house.client()
            assert await _reads_to_the_end(silent) == b""
        await until(lambda: house.server._accepted == 1)
        assert not house.observer.accepts_failed


async def _reads_to_the_end(stream: trio.SocketStream) -> bytes:
    got = b""
    try:
        while chunk := await stream.receive_some():
            got += chunk
    except trio.BrokenResourceError:
        pass
    return got


@trio_test
async def test_a_listening_socket_can_be_handed_over(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        listener = socket.create_server(("127.0.0.1", 0))
        address = await house.nursery.start(house.server.serve, listener)
        client = await connect(address, house.nursery)
        call = await client.request()
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK
        await client.aclose()
        house.server.stop(grace_s=1)
        await until(lambda: listener.fileno() == -1)


@trio_test
async def test_what_comes_to_an_address_can_have_settings_of_its_own(engine: Engine) -> None:
    async with a_proxy(engine, max_concurrent_streams=5) as house:
        settings = Http2Settings(engine=engine, max_concurrent_streams=3)
        serve = partial(house.server.serve, "127.0.0.1:0", settings=settings)
        address = await house.nursery.start(serve)
        for where, limit in ((address, 3), (house.address, 5)):
            client = await connect(where, house.nursery)
            await client.settings_came.wait()
            assert client.peer_settings[MAX_CONCURRENT_STREAMS] == limit
            await client.aclose()


@trio_test
async def test_an_address_that_is_taken_is_a_config_error(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen"):
        await Server().serve(f"127.0.0.1:{taken.getsockname()[1]}")


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run([*command.split(), *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is needed to make a certificate")
    return cert, key


def _server_tls(certificate: tuple[Path, Path], *, ask_for_one: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2"])
    if ask_for_one:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(certificate[0])
    return context


def _client_tls(certificate: tuple[Path, Path], *, show_one: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.set_alpn_protocols(["h2"])
    if show_one:
        context.load_cert_chain(*certificate)
    return context


def _serve_tls(
    server: Server, certificate: tuple[Path, Path], *, ask_for_one: bool = False
) -> Callable[..., Awaitable[None]]:
    """`server.serve` on a port of its own, for `nursery.start`."""
    context = _server_tls(certificate, ask_for_one=ask_for_one)
    return partial(server.serve, "127.0.0.1:0", ssl_context=context)


async def _tls_client(address: str, context: ssl.SSLContext, nursery: trio.Nursery) -> RawPeer:
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    return await start_client(tls, nursery)


@trio_test
async def test_calls_pass_over_tls_in_both_directions(engine: Engine, certificate: tuple[Path, Path]) -> None:
    seen: list[CallContext] = []

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        seen.append(context)
        if method == "/a.B/Inner":
            return context, await house.pool.get_conn(house.backend.address)
        # Once more through the proxy, over TLS.
        inner = context.with_metadata(context.metadata.with_value(":path", "/a.B/Inner"))
        return inner, await house.pool.get_conn(address, ssl_context=_client_context)

    _client_context = _client_tls(certificate, show_one=True)
    async with a_proxy(engine, director=director) as house:
        address = await house.nursery.start(_serve_tls(house.server, certificate, ask_for_one=True))
        client = await _tls_client(address, _client_tls(certificate), house.nursery)
        house.clients.append(client)
        body = bytes(range(256)) * 2000
        call = await client.request(body=body)
        served = await house.backend.request()
        assert await served.request_body() == message(body)
        await served.respond(body)
        answer = await call.answer()
        assert (answer.status, answer.body) == (Status.OK, message(body))
        outer, inner = seen
        assert not outer.tls_peer
        assert inner.tls_peer is not None
        assert inner.tls_peer["subject"] == ((("commonName", "localhost"),),)


@trio_test
async def test_over_tls_a_connection_that_ends_lets_its_last_words_be_read(
    engine: Engine, certificate: tuple[Path, Path]
) -> None:
    """The peer is in the middle of something else that it says: a socket closed with that unread would be reset."""
    async with a_proxy(engine) as house:
        address = await house.nursery.start(_serve_tls(house.server, certificate))
        host, _, port = address.rpartition(":")
        for _ in range(5):
            stream = await trio.open_tcp_stream(host, int(port))
            tls = trio.SSLStream(
                stream, _client_tls(certificate), server_hostname="localhost", https_compatible=True
            )
            await tls.send_all(
                PREFACE + wire.settings() + wire.raw(0x0, 0, 0, b"on no stream") + wire.ping() * 20_000
            )
            got = b""
            with contextlib.suppress(trio.BrokenResourceError):
                while chunk := await tls.receive_some():
                    got += chunk
            await tls.aclose()
            assert [wire.show(frame) for frame in wire.parse(got)][-1] == "GOAWAY 0 PROTOCOL_ERROR"
        await until(lambda: len(house.observer.connections_failed) == 5)


@pytest.mark.parametrize("how", ["speaks no TLS", "leaves without close_notify"])
@trio_test
async def test_what_goes_wrong_on_one_tls_connection_breaks_no_other(
    engine: Engine, certificate: tuple[Path, Path], how: str
) -> None:
    async with a_proxy(engine) as house:
        address = await house.nursery.start(_serve_tls(house.server, certificate))
        client = await _tls_client(address, _client_tls(certificate), house.nursery)
        house.clients.append(client)
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stranger:
            if how == "speaks no TLS":
                await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
            else:
                tls = trio.SSLStream(stranger, _client_tls(certificate), server_hostname="localhost")
                await tls.send_all(PREFACE + wire.settings())
                await until(lambda: len(house.server._connections) == 2)
                await stranger.send_eof()
            await _reads_to_the_end(stranger)
        for _ in range(2):
            call = await client.request()
            served = await house.backend.request()
            await served.respond()
            assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("stop", ["stop", "cancel"])
@trio_test
async def test_a_handshake_that_hangs_does_not_hold_up_a_stop(
    engine: Engine, certificate: tuple[Path, Path], stop: str
) -> None:
    async with a_proxy(engine) as house, trio.open_nursery() as nursery:
        address = await nursery.start(_serve_tls(house.server, certificate))
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as silent:
            await until(lambda: house.server._accepted == 1)
            if stop == "stop":
                house.server.stop()
            else:
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(5):
                assert await _reads_to_the_end(silent) == b""
        with trio.CancelScope(shield=True):
            await until(lambda: house.server._accepted == 0)


@trio_test
async def test_a_handshake_that_takes_too_long_is_given_up(
    engine: Engine, certificate: tuple[Path, Path]
) -> None:
    async with a_proxy(engine, handshake_timeout_s=0.1) as house:
        address = await house.nursery.start(_serve_tls(house.server, certificate))
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as silent:
            assert await _reads_to_the_end(silent) == b""
        await until(lambda: house.server._accepted == 0)
        (error,) = house.observer.connections_failed
        assert "not done in time" in str(error)


@trio_test
async def test_a_preface_that_takes_too_long_is_given_up(engine: Engine) -> None:
    async with a_proxy(engine, handshake_timeout_s=0.1) as house:
        host, _, port = house.address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as slow:
            await slow.send_all(PREFACE[:10])
            got = await _reads_to_the_end(slow)
            assert got[9 + 3 : 9 + 4] == b"\7"


@trio_test
async def test_a_connection_over_any_stream_is_served_like_one_that_was_accepted(engine: Engine) -> None:
    async def answer(call: Call) -> None:
        call.send_headers()
        call.stream.send_data(message(call.context.peer.encode()))
        call.end(Status.OK)

    server = Server(unknown_service_handler=answer, settings=Http2Settings(engine=engine))
    ours, theirs = trio.testing.memory_stream_pair()

    async def over_there(address: Address) -> trio.abc.Stream:
        assert str(address) == "far.away:1"
        return ours

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(server.serve_stream, theirs, peer="a tunnel"))
            async with Pool(connect=over_there) as pool, Client(pool.target("far.away:1")) as client:
                async with client.unary_stream("/p.S/Do", b"") as call:
                    assert await call.receive() == b"a tunnel"
                    assert await call.receive() is None
                assert call.status is Status.OK
                assert server.open_connections == 1
                server.stop()
        assert server.open_connections == 0
