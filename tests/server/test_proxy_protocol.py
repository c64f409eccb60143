"""PROXY headers on listeners: whom a load balancer names is the caller, and nobody else can say who he is."""

import io
import ipaddress
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import CallContext, CallLog, ConfigError, Http2Settings, PoolConn, Server, Status
from rawgrpc_proxy.errors import NotHttp2
from tests.proxy.house import House, a_proxy, until
from tests.proxy.raw_peers import PATIENCE_S, PREFACE, RawPeer, message, start_client

trustme = pytest.importorskip("trustme")

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BINARY = (
    SIGNATURE
    + struct.pack(">BBH", 0x21, 0x21, 36 + 259)
    + ipaddress.ip_address("2001:db8::7").packed
    + ipaddress.ip_address("2001:db8::1").packed
    + struct.pack(">HH", 56324, 443)
    + struct.pack(">BH", 0xEA, 256)
    + bytes(256)
)
LOCAL = SIGNATURE + struct.pack(">BBH", 0x20, 0, 0)
HERE = ["127.0.0.0/8", "unix"]
ELSEWHERE = ["10.0.0.0/8", "2001:db8::/32"]


class HeaderFirst(trio.abc.Stream):
    """A stream that sends a header together with the first bytes."""

    def __init__(self, stream: trio.SocketStream, header: bytes) -> None:
        self._stream = stream
        self._header = header

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        header, self._header = self._header, b""
        await self._stream.send_all(header + data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of its clients."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    for context in (server, client):
        context.set_alpn_protocols(["h2"])
    return server, client


async def serving(
    house: House, names: list[str], address: str = "127.0.0.1:0", context: ssl.SSLContext | None = None
) -> str:
    """Serve on an address of its own, and answer which."""
    serve: Callable[..., Awaitable[None]] = partial(
        house.server.serve, address, ssl_context=context, proxy_protocol=names
    )
    where: str = await house.nursery.start(serve)
    return where


async def dial(address: str) -> trio.SocketStream:
    if address.startswith("unix:"):
        return await trio.open_unix_socket(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def client_of(
    house: House, address: str, header: bytes, context: ssl.SSLContext | None = None
) -> RawPeer:
    stream: trio.abc.Stream = HeaderFirst(await dial(address), header)
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    client = await start_client(stream, house.nursery)
    house.clients.append(client)
    return client


async def caller_of(house: House, client: RawPeer) -> str:
    """Make a call, and answer who has made it, as the log has it."""
    call = await client.request(body=b"hello")
    served = await house.backend.request()
    assert await served.request_body() == message(b"hello")
    await served.respond(b"hello")
    assert (await call.answer()).status == Status.OK
    return (await house.record()).peer


async def rest_of(stream: trio.SocketStream) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    try:
        with trio.fail_after(PATIENCE_S):
            while chunk := await stream.receive_some():
                got += chunk
    except trio.BrokenResourceError:
        pass
    return got


async def complaint(house: House) -> NotHttp2:
    await until(lambda: house.server._accepted == 0)
    (error,) = house.observer.connections_failed
    assert isinstance(error, NotHttp2)
    return error


@pytest.mark.parametrize(("header", "peer"), [(LINE, "192.0.2.7:56324"), (BINARY, "[2001:db8::7]:56324")])
@pytest.mark.parametrize("secure", [False, True])
@trio_test
async def test_whom_a_load_balancer_names_is_the_caller(
    header: bytes, peer: str, secure: bool, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with a_proxy("relay") as house:
        address = await serving(house, HERE, context=tls[0] if secure else None)
        client = await client_of(house, address, header, tls[1] if secure else None)
        assert await caller_of(house, client) == peer
        assert await caller_of(house, client) == peer
        assert not house.server._handshaking


@trio_test
async def test_the_director_sees_whom_a_load_balancer_names(tmp_path: Path) -> None:
    seen: list[str] = []

    async def director(context: CallContext, _method: str) -> tuple[CallContext, PoolConn]:
        seen.append(context.peer)
        return context, await house.pool.get_conn(house.backend.address)

    async with a_proxy("relay", director=director) as house:
        address = await serving(house, ["unix"], f"unix:{tmp_path}/proxy.sock")
        await caller_of(house, await client_of(house, address, LINE))
    assert seen == ["192.0.2.7:56324"]


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
@trio_test
async def test_a_load_balancer_that_names_nobody_is_the_caller_itself(header: bytes) -> None:
    async with a_proxy("relay") as house:
        client = await client_of(house, await serving(house, HERE), header)
        assert (await caller_of(house, client)).startswith("127.0.0.1:")


@trio_test
async def test_a_load_balancer_that_comes_by_ipv4_to_a_listener_for_both_families_is_known() -> None:
    async with a_proxy("relay") as house:
        listener = socket.socket(socket.AF_INET6)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(("::ffff:127.0.0.1", 0))
        except OSError:
            listener.close()
            pytest.skip("there is no IPv6 here")
        listener.listen()
        await house.nursery.start(partial(house.server.serve, listener, proxy_protocol=HERE))
        client = await client_of(house, f"127.0.0.1:{listener.getsockname()[1]}", LINE)
        assert await caller_of(house, client) == "192.0.2.7:56324"


@trio_test
async def test_a_load_balancer_that_sends_no_header_is_hung_up_on_before_a_word_is_said() -> None:
    async with a_proxy("relay") as house:
        async with await dial(await serving(house, HERE)) as stream:
            await stream.send_all(PREFACE)
            assert await rest_of(stream) == b""
        assert "no PROXY header, but HTTP/2" in str(await complaint(house))


@trio_test
async def test_tls_comes_behind_the_header_and_not_before_it(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with a_proxy("relay") as house:
        stream = await dial(await serving(house, HERE, context=tls[0]))
        secure = trio.SSLStream(stream, tls[1], server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError):
            await secure.do_handshake()
        await trio.aclose_forcefully(secure)
        assert "no PROXY header, but TLS" in str(await complaint(house))


@trio_test
async def test_who_is_not_named_is_served_as_he_comes() -> None:
    async with a_proxy("relay") as house:
        for names in (ELSEWHERE, ["unix"], []):
            client = await client_of(house, await serving(house, names), b"")
            assert (await caller_of(house, client)).startswith("127.0.0.1:")


@pytest.mark.parametrize("header", [LINE, BINARY])
@trio_test
async def test_who_is_not_named_is_not_believed(header: bytes) -> None:
    async with a_proxy("relay") as house:
        async with await dial(await serving(house, ELSEWHERE)) as stream:
            await stream.send_all(header + PREFACE)
            assert await rest_of(stream) == b""
        said = str(await complaint(house))
        assert "a PROXY protocol header" in said
        assert "proxy_protocol" in said


@pytest.mark.parametrize("header", [LINE, BINARY])
@trio_test
async def test_who_is_not_named_is_not_believed_over_tls(
    header: bytes, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with a_proxy("relay") as house:
        async with await dial(await serving(house, ELSEWHERE, context=tls[0])) as stream:
            await stream.send_all(header + bytes(100))
            await rest_of(stream)
        await until(lambda: house.server._accepted == 0)
        (error,) = house.observer.connections_failed
        assert "no TLS" in str(error)
        assert "proxy_protocol does not name it" in str(error)


@trio_test
async def test_a_second_header_is_not_believed() -> None:
    async with a_proxy("relay") as house:
        async with await dial(await serving(house, HERE)) as stream:
            await stream.send_all(LINE + LINE.replace(b".7", b".8") + PREFACE)
            assert await rest_of(stream) == b""
        assert "a PROXY protocol header" in str(await complaint(house))


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (b"PROXY TCP4 " + b"1" * 100_000, "its line does not end within 107 bytes"),
        (SIGNATURE + b"\x21\x11\xff\xff", "it says that it has 65551 bytes; 4096 are taken"),
        (SIGNATURE + b"\x20\x00\xff\xff", "it says that it has 65551 bytes; 4096 are taken"),
    ],
)
@trio_test
async def test_headers_without_end_are_refused_as_soon_as_that_is_known(attack: bytes, says: str) -> None:
    async with a_proxy("relay") as house:
        async with await dial(await serving(house, HERE)) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                # It may have been closed before all has gone.
                with trio.CancelScope() as scope:
                    try:
                        await stream.send_all(attack)
                    except trio.BrokenResourceError:
                        scope.cancel()

            nursery.start_soon(send)
            assert await rest_of(stream) == b""
        assert says in str(await complaint(house))


@pytest.mark.parametrize("header", [LINE, BINARY])
@trio_test
async def test_a_header_that_trickles_is_given_up_in_time_and_holds_up_nobody(header: bytes) -> None:
    async with a_proxy("relay", handshake_timeout_s=1.0) as house:
        address = await serving(house, HERE)
        async with await dial(address) as stream, trio.open_nursery() as nursery:

            async def trickle() -> None:
                try:
                    for byte in header[:-1]:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.02)
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(trickle)
            await until(lambda: house.server._accepted == 1)
            assert house.server.open_connections == 0
            assert await rest_of(stream) == b""
            nursery.cancel_scope.cancel()
        assert "no PROXY header within 1 s (handshake_timeout_s)" in str(await complaint(house))
        client = await client_of(house, address, LINE)
        assert await caller_of(house, client) == "192.0.2.7:56324"


@pytest.fixture
def still_clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


@trio_test
async def test_connections_without_their_header_count_for_the_limit(still_clock: MockClock) -> None:
    async with a_proxy("relay", max_connections=1) as house:
        address = await serving(house, HERE)
        async with await dial(address) as first:
            await until(lambda: house.server._accepted == 1)
            async with await dial(address) as second:
                assert await rest_of(second) == b""
            assert len(house.observer.accepts_failed) == 1
            await first.send_all(b"PROXY ")
        await complaint(house)


@trio_test
async def test_who_does_not_say_whom_it_connects_for_makes_room_for_another_one(
    still_clock: MockClock,
) -> None:
    async with a_proxy("relay", max_connections=1) as house:
        address = await serving(house, HERE)
        async with await dial(address) as silent:
            await until(lambda: house.server._accepted == 1)
            still_clock.jump(1.1)
            client = await client_of(house, address, LINE)
            assert await caller_of(house, client) == "192.0.2.7:56324"
            assert await rest_of(silent) == b""
            await client.aclose()
        assert "no PROXY header before its place was needed (max_connections)" in str(await complaint(house))


@trio_test
async def test_who_only_tries_whether_somebody_listens_is_no_line_of_the_log() -> None:
    async with a_proxy("relay") as house:
        address = await serving(house, HERE)
        for _ in range(3):
            await (await dial(address)).aclose()
        client = await client_of(house, address, LINE)
        await caller_of(house, client)
        await client.aclose()
        await until(lambda: house.server._accepted == 0)
        assert house.observer.connections_failed == []


@pytest.mark.parametrize("stop", ["stop", "cancel"])
@trio_test
async def test_a_header_that_is_waited_for_does_not_hold_up_a_stop_and_is_nobodys_fault(stop: str) -> None:
    async with a_proxy("relay") as house, trio.open_nursery() as nursery:
        address: str = await nursery.start(partial(house.server.serve, "127.0.0.1:0", proxy_protocol=HERE))
        async with await dial(address) as silent:
            await silent.send_all(LINE[:10])
            await until(lambda: house.server._accepted == 1)
            if stop == "stop":
                house.server.stop()
            else:
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                assert await rest_of(silent) == b""
                await until(lambda: house.server._accepted == 0)
        assert house.observer.connections_failed == []


@trio_test
async def test_the_log_has_one_line_a_minute_for_a_load_balancer_without_headers() -> None:
    log = io.StringIO()
    server = Server(settings=Http2Settings(), observer=CallLog("text", log))
    async with trio.open_nursery() as nursery:
        address: str = await nursery.start(partial(server.serve, "127.0.0.1:0", proxy_protocol=HERE))
        for _ in range(3):
            async with await dial(address) as stream:
                await stream.send_all(PREFACE)
                await rest_of(stream)
        await until(lambda: server._accepted == 0)
        server.stop()
    (line,) = log.getvalue().splitlines()
    assert "connection closed: no PROXY header, but HTTP/2, from a peer that proxy_protocol says" in line


@trio_test
async def test_what_is_no_network_is_said_before_anything_listens(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with pytest.raises(ConfigError, match="'lb' is no network"):
        await Server().serve(f"unix:{path}", proxy_protocol=["lb"])
    assert not path.exists()
