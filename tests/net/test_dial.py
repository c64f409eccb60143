"""Dialling: every way to get a link, and every way not to get one, with its cause and nothing left open."""

import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import Side, UpstreamUnavailable
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.dial import dial
from rawgrpc_proxy.net.tls import TlsTransport
from rawgrpc_proxy.net.tls_files import upstream_context
from rawgrpc_proxy.net.transport import SocketTransport, Transport
from tests.net.links import one_read
from tests.upstream.backend import deaf_port, run

PATIENCE_S = 10.0


async def dialled(address: str | Address, tls: ssl.SSLContext | None = None) -> Transport:
    where = Address.parse(address) if isinstance(address, str) else address
    return await dial(where, ssl_context=tls, timeout_s=PATIENCE_S, greet=at_once)


async def at_once(transport: Transport) -> Transport:
    """Whoever answers will do."""
    return transport


@asynccontextmanager
async def listener(
    serve: Callable[[trio.SocketStream], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """The port of something that listens."""

    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            await serve(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, serve_one, 0, host=host)
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.abc.Stream) -> None:
    await stream.send_all(await stream.receive_some())


async def close_at_once(stream: trio.abc.Stream) -> None:
    pass


class Names(trio.abc.HostnameResolver):
    """Resolves every name to these addresses, or fails like this."""

    def __init__(self, *answers: str, error: Exception | None = None) -> None:
        self._answers, self._error = answers, error

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if self._error is not None:
            raise self._error
        if not self._answers:
            await trio.sleep_forever()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (answer, int(port))) for answer in self._answers]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


async def check_echo(transport: Transport) -> None:
    await transport.send_all([b"hello"], 5)
    assert await one_read(transport) == b"hello"
    await transport.aclose()


def hung_up(server: socket.socket) -> bool:
    """Whether the next connection to `server` is closed by its other side."""
    server.settimeout(PATIENCE_S)
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(PATIENCE_S)
        return accepted.recv(1) == b""


# -------------------------------------------------------------------------------------------------------- success


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp_is_a_plain_socket(host: str) -> None:
    async def test() -> None:
        async with listener(echo, host) as port:
            address = Address(host=host, port=port)
            transport = await dialled(address)
            assert isinstance(transport, SocketTransport)
            assert transport.peer == str(address)
            await check_echo(transport)

    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    run(test)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_unix_socket_is_a_plain_socket(tmp_path: Path) -> None:
    async def test() -> None:
        path = str(tmp_path / "upstream")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            transport = await dialled(f"unix:{path}")
            assert isinstance(transport, SocketTransport)
            assert transport.peer == f"unix:{path}"
            accepted, _ = server.accept()
            with accepted:
                await transport.send_all([b"hello"], 5)
                assert accepted.recv(100) == b"hello"
            await transport.aclose()

    run(test)


def test_if_one_address_of_a_name_does_not_answer_another_one_is_taken() -> None:
    async def test() -> None:
        trio.socket.set_custom_hostname_resolver(Names("127.0.0.2", "127.0.0.1"))
        async with listener(echo) as port:
            await check_echo(await dialled(f"backend:{port}"))

    run(test)


class BothFamilies(Names):
    """Knows the same port of all machines: some by IPv6, one by IPv4, which it names last."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        return [
            (
                socket.AF_INET6 if ":" in answer else socket.AF_INET,
                socket.SOCK_STREAM,
                0,
                "",
                (answer, int(port), 0, 0) if ":" in answer else (answer, int(port)),
            )
            for answer in self._answers
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="others answer where a queue is full")
def test_addresses_that_swallow_what_is_sent_hold_a_dial_up_for_a_quarter_second() -> None:
    """RFC 8305: the next address is tried while the first has not answered, and the other family comes second."""

    async def test() -> None:
        with socket.socket(socket.AF_INET6) as silent, contextlib.ExitStack() as filling:
            silent.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            silent.bind(("::1", 0))
            silent.listen(0)
            port = silent.getsockname()[1]
            for _ in range(4):  # the queue is full: from now on Linux drops each SYN
                filler = filling.enter_context(socket.socket(socket.AF_INET6))
                filler.setblocking(False)
                filler.connect_ex(("::1", port))
            trio.socket.set_custom_hostname_resolver(BothFamilies(*["::1"] * 12, "127.0.0.1"))
            with socket.create_server(("127.0.0.1", port)):
                began = trio.current_time()
                transport = await dialled(f"backend:{port}")
                await transport.aclose()
                # In turn the last of 13 would be tried after 3 s.
                assert trio.current_time() - began < 2

    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    run(test)


@asynccontextmanager
async def two_peers(
    *serve: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[int]:
    """The port on which these peers listen, each on a loopback address of its own: "backend" is their name."""
    listening: list[trio.SocketListener] = []
    port = 0
    for number in range(len(serve)):
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            await sock.bind((f"127.0.0.{number + 1}", port))
        except OSError:
            pytest.skip("this machine has one loopback address")
        sock.listen()
        port = sock.getsockname()[1]
        listening.append(trio.SocketListener(sock))
    trio.socket.set_custom_hostname_resolver(Names(*(f"127.0.0.{n + 1}" for n in range(len(serve)))))
    async with trio.open_nursery() as nursery:
        for listener, peer in zip(listening, serve, strict=True):
            nursery.start_soon(trio.serve_listeners, peer, [listener])
        yield port
        nursery.cancel_scope.cancel()


async def say_nothing(stream: trio.SocketStream) -> None:
    async with stream:
        await trio.sleep_forever()


async def hello(transport: Transport) -> Transport:
    """Whoever says something will do."""
    try:
        await transport.send_all([b"hello"], 5)
        if not await one_read(transport):
            raise UpstreamUnavailable("it hung up")
    except BaseException:
        await transport.aclose()
        raise
    return transport


@pytest.mark.parametrize("first", [say_nothing, close_at_once])
def test_if_one_address_of_a_name_accepts_and_says_nothing_another_one_is_taken(
    first: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    async def test() -> None:
        async with two_peers(first, echo, echo) as port:
            transport = await dial(
                Address.parse(f"backend:{port}"), ssl_context=None, timeout_s=0.6, greet=hello
            )
            await transport.aclose()

    run(test)


def test_if_one_address_of_a_name_fails_in_tls_or_says_nothing_there_another_one_is_taken() -> None:
    async def test() -> None:
        certificates = Certificates(client=["h2"], server=["h2"])
        for first in (echo, close_at_once, say_nothing):
            async with two_peers(first, certificates.echo) as port:
                certificates.client.check_hostname = False
                transport = await dial(
                    Address.parse(f"backend:{port}"),
                    ssl_context=certificates.client,
                    timeout_s=1.5,
                    greet=at_once,
                )
                await check_echo(transport)

    run(test)


def test_a_peer_that_is_only_slow_is_not_given_up_for_another_one() -> None:
    async def test() -> None:
        rival = trio.Event()

        async def slow(stream: trio.SocketStream) -> None:
            await rival.wait()
            await echo(stream)

        async def silent_rival(stream: trio.SocketStream) -> None:
            rival.set()
            await say_nothing(stream)

        async with two_peers(slow, silent_rival) as port:
            transport = await dial(
                Address.parse(f"backend:{port}"), ssl_context=None, timeout_s=0.6, greet=hello
            )
            await transport.aclose()

    run(test)


def test_where_all_addresses_of_a_name_fail_after_they_accepted_the_first_cause_is_told() -> None:
    async def test() -> None:
        async with two_peers(close_at_once, say_nothing) as port:
            with pytest.raises(UpstreamUnavailable, match="it hung up"):
                await dial(Address.parse(f"backend:{port}"), ssl_context=None, timeout_s=0.3, greet=hello)
        async with two_peers(say_nothing, say_nothing) as port:
            with pytest.raises(UpstreamUnavailable, match=r"no HTTP/2 SETTINGS within 0\.3 s"):
                await dial(Address.parse(f"backend:{port}"), ssl_context=None, timeout_s=0.3, greet=hello)

    run(test)


# -------------------------------------------------------------------------------------------------------- failure


def test_a_port_on_which_nobody_listens_refuses() -> None:
    async def test() -> None:
        with deaf_port() as address:
            with pytest.raises(UpstreamUnavailable) as error:
                await dialled(address)
            assert error.value.message == f"cannot connect to {address}: Connection refused"
            assert error.value.status is Status.UNAVAILABLE

    run(test)


def test_where_every_address_of_a_name_fails_the_first_cause_is_told() -> None:
    async def test() -> None:
        trio.socket.set_custom_hostname_resolver(Names("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        with deaf_port() as address:
            port = address.rpartition(":")[2]
            with pytest.raises(
                UpstreamUnavailable, match=f"cannot connect to backend:{port}: Connection refused"
            ):
                await dialled(f"backend:{port}")

    run(test)


class OnePort(trio.abc.SocketFactory):
    """Makes sockets as on a machine of which all ports but one are in use."""

    def __init__(self, port: int) -> None:
        self._port = port

    def socket(self, *args: Any) -> trio.socket.SocketType:
        sock = socket.socket(*args)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", self._port))
        return trio.socket.from_stdlib_socket(sock)


@pytest.mark.skipif(sys.platform != "linux", reason="others refuse to bind the port a second time")
def test_a_machine_without_a_free_port_is_no_fault_of_the_upstreams() -> None:
    async def test() -> None:
        with deaf_port() as free:
            async with listener(say_nothing) as port:
                trio.socket.set_custom_socket_factory(OnePort(int(free.rpartition(":")[2])))
                first = await dialled(f"127.0.0.1:{port}")
                with pytest.raises(UpstreamUnavailable, match="has no free port to connect from") as error:
                    await dialled(f"127.0.0.1:{port}")
                assert error.value.side is Side.LOCAL
                # Where another address of the name has refused, that is the upstream's answer.
                trio.socket.set_custom_hostname_resolver(Names("127.0.0.1", "127.0.0.2"))
                with pytest.raises(UpstreamUnavailable, match="Connection refused") as error:
                    await dialled(f"backend:{port}")
                assert error.value.side is Side.UPSTREAM
                await first.aclose()

    run(test)


def test_a_name_that_nobody_knows_is_told_as_such() -> None:
    async def test() -> None:
        trio.socket.set_custom_hostname_resolver(
            Names(error=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        )
        with pytest.raises(UpstreamUnavailable, match=r"cannot be resolved \(Name or service not known\)"):
            await dialled("backend:80")

    run(test)


@pytest.mark.parametrize("name", ["a..b", ".backend", "x" * 64 + ".example", "\u2100" * 64 + "\x80"])
def test_a_name_that_cannot_be_one_is_told_as_such(name: str) -> None:
    async def test() -> None:
        with pytest.raises(UpstreamUnavailable, match="no host can have this name"):
            await dialled(Address(host=name, port=80))

    run(test)


def test_a_unix_socket_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(UpstreamUnavailable, match="No such file or directory"):
            await dialled(f"unix:{tmp_path}/nobody")
        with pytest.raises(UpstreamUnavailable, match="AF_UNIX path too long"):
            await dialled("unix:" + "x" * 200)

    run(test)


def test_whoever_does_not_answer_is_given_up_in_time() -> None:
    async def test() -> None:
        trio.socket.set_custom_hostname_resolver(Names())
        with pytest.raises(UpstreamUnavailable, match="backend:80 did not answer within 3 s"):
            await dial(Address.parse("backend:80"), ssl_context=None, timeout_s=3, greet=at_once)
        assert trio.current_time() - started == 3

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    trio.run(test, clock=clock)


# ------------------------------------------------------------------------------------------------------------ TLS


class Certificates:
    """A certificate for 127.0.0.1, and both sides' configuration."""

    def __init__(self, *, client: list[str] | None = None, server: list[str] | None = None) -> None:
        trustme = pytest.importorskip("trustme")
        self._authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert("127.0.0.1").configure_cert(self.server)
        self.client = ssl.create_default_context()
        self._authority.configure_trust(self.client)
        if client is not None:
            self.client.set_alpn_protocols(client)
        if server is not None:
            self.server.set_alpn_protocols(server)

    async def echo(self, stream: trio.SocketStream) -> None:
        """Echo over TLS, or give up as the peer does."""
        try:
            async with trio.SSLStream(stream, self.server, server_side=True, https_compatible=True) as tls:
                await echo(tls)
        except trio.BrokenResourceError:
            pass


def test_tls_is_done_before_the_link_is_handed_over() -> None:
    async def test() -> None:
        certificates = Certificates(client=["h2"], server=["h2"])
        async with listener(certificates.echo) as port:
            transport = await dialled(f"127.0.0.1:{port}", certificates.client)
            assert isinstance(transport, TlsTransport)
            assert transport.tls_peer is not None
            assert transport.tls_peer["subjectAltName"] == (("IP Address", "127.0.0.1"),)
            await check_echo(transport)

    run(test)


def test_a_peer_that_settles_for_another_protocol_is_no_upstream() -> None:
    async def test() -> None:
        certificates = Certificates(client=["h2", "http/1.1"], server=["http/1.1"])
        async with listener(certificates.echo) as port:
            with pytest.raises(UpstreamUnavailable, match=r"the peer chose 'http/1\.1' by ALPN, not 'h2'"):
                await dialled(f"127.0.0.1:{port}", certificates.client)

    run(test)


@pytest.mark.parametrize(("client", "server"), [(["h2"], None), (None, ["h2"]), (None, None)])
def test_a_peer_that_chooses_no_protocol_is_no_upstream(
    client: list[str] | None, server: list[str] | None
) -> None:
    """RFC 9113 section 3.3: HTTP/2 over TLS is chosen by ALPN. The message says what is missing, on either side."""

    async def test() -> None:
        certificates = Certificates(client=client, server=server)
        async with listener(certificates.echo) as port:
            with pytest.raises(
                UpstreamUnavailable, match=r"did not choose 'h2' by ALPN: .*set_alpn_protocols"
            ):
                await dialled(f"127.0.0.1:{port}", certificates.client)

    run(test)


def test_a_certificate_of_an_unknown_authority_is_told_as_such() -> None:
    async def test() -> None:
        certificates = Certificates()
        async with listener(certificates.echo) as port:
            with pytest.raises(
                UpstreamUnavailable, match=r"no TLS with 127\.0\.0\.1.*certificate verify failed"
            ):
                await dialled(f"127.0.0.1:{port}", ssl.create_default_context())

    run(test)


@pytest.mark.parametrize("serve", [echo, close_at_once])
def test_a_peer_that_speaks_no_tls_is_told_as_such(
    serve: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    async def test() -> None:
        async with listener(serve) as port:
            with pytest.raises(UpstreamUnavailable, match="no TLS with"):
                await dialled(f"127.0.0.1:{port}", ssl.create_default_context())

    run(test)


def test_tls_on_a_unix_socket_has_no_name_to_check_and_must_say_so(tmp_path: Path) -> None:
    async def test() -> None:
        certificates = Certificates(client=["h2"], server=["h2"])
        async with trio.open_nursery() as nursery:
            path = str(tmp_path / "upstream")
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.bind(path)
            sock.listen()
            nursery.start_soon(trio.serve_listeners, certificates.echo, [trio.SocketListener(sock)])
            with pytest.raises(UpstreamUnavailable, match="no name to check; set check_hostname = False"):
                await dialled(f"unix:{path}", certificates.client)
            certificates.client.check_hostname = False
            await check_echo(await dialled(f"unix:{path}", certificates.client))
            nursery.cancel_scope.cancel()

    run(test)


def test_the_certificate_of_an_address_that_dns_has_found_is_checked_against_the_name() -> None:
    """And the name is what is asked for by SNI. What settings say counts before it; without either the host does."""

    async def test() -> None:
        trustme = pytest.importorskip("trustme")
        authority, asked = trustme.CA(), []
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("orders.internal").configure_cert(server)
        server.set_alpn_protocols(["h2"])
        server.sni_callback = lambda _sock, name, _context: asked.append(name)

        async def serve(stream: trio.SocketStream) -> None:
            tls = trio.SSLStream(stream, server, server_side=True, https_compatible=True)
            try:
                await echo(tls)
            except trio.BrokenResourceError:
                await tls.aclose()

        def context(server_name: str | None) -> ssl.SSLContext:
            client = upstream_context(server_name=server_name)
            authority.configure_trust(client)
            return client

        async def dialled_for(name: str | None, tls: ssl.SSLContext) -> None:
            await check_echo(
                await dial(address, ssl_context=tls, server_name=name, timeout_s=PATIENCE_S, greet=at_once)
            )

        async with listener(serve) as port:
            address = Address.parse(f"127.0.0.1:{port}")
            await dialled_for("orders.internal", context(None))
            await dialled_for("wrong.internal", context("orders.internal"))
            assert asked == ["orders.internal"] * 2
            for name in ("wrong.internal", None):
                with pytest.raises(UpstreamUnavailable, match="certificate is for another name"):
                    await dialled_for(name, context(None))
            with pytest.raises(UpstreamUnavailable, match="certificate is for another name"):
                await dialled_for("orders.internal", context("wrong.internal"))

    run(test)


def test_tls_configured_for_the_other_side_is_refused_and_leaves_nothing_open() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(UpstreamUnavailable, match=r"no TLS with .*PROTOCOL_TLS_SERVER"):
                await dialled(f"127.0.0.1:{port}", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            assert hung_up(server)

    run(test)


def test_cancelled_in_the_middle_of_tls_it_leaves_nothing_open() -> None:
    async def test() -> None:
        hello, gone = trio.Event(), trio.Event()

        async def serve(stream: trio.SocketStream) -> None:
            while await stream.receive_some():
                hello.set()
            gone.set()

        async with listener(serve) as port, trio.open_nursery() as nursery:
            nursery.start_soon(dialled, f"127.0.0.1:{port}", ssl.create_default_context())
            await hello.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await gone.wait()

    run(test)


def test_whoever_connects_in_a_way_of_their_own_is_told_what_went_wrong_there() -> None:
    async def over_there(_address: Address) -> trio.abc.Stream:
        raise OSError("the tunnel is closed")

    async def main() -> None:
        where = Address.parse("far.away:1")
        with pytest.raises(UpstreamUnavailable, match=r"cannot connect to far\.away:1: the tunnel is closed"):
            await dial(where, ssl_context=None, timeout_s=PATIENCE_S, greet=at_once, connect=over_there)
        with pytest.raises(UpstreamUnavailable, match="TLS is for connections that the pool makes itself"):
            await dial(
                where, ssl_context=upstream_context(), timeout_s=PATIENCE_S, greet=at_once, connect=over_there
            )

    trio.run(main)
