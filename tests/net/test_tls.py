"""TLS on sockets: whatever the sizes nothing is lost or doubled, and one connection's errors are not another's."""

import contextlib
import datetime as dt
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.tls import TlsTransport, tls_problem
from rawgrpc_proxy.peer_identity import identity_of
from tests.certificates import issued_by
from tests.net.links import one_read
from tests.upstream.backend import run

trustme = pytest.importorskip("trustme")


class Certificates:
    """A certificate for "backend", and both sides' configuration."""

    def __init__(self) -> None:
        self.authority = authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("backend").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)

    @contextlib.asynccontextmanager
    async def linked(self, *, small: bool = False) -> AsyncIterator[tuple[TlsTransport, TlsTransport]]:
        """Client and server, their hands shaken; on sockets that hold little, if `small`."""
        ours, theirs = socket.socketpair()
        if small:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = TlsTransport(ours, "server", self.client, server_hostname="backend")
        server = TlsTransport(theirs, "client", self.server, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handshake)
            await client.handshake()
        try:
            yield client, server
        finally:
            await client.aclose()
            await server.aclose()


def test_a_certificate_that_cannot_be_read_names_nobody_and_fails_no_handshake(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        certificates = Certificates()
        odd = tmp_path / "odd.pem"
        # One URI, of bytes that are no UTF-8: Python decodes all names, or none.
        odd.write_bytes(
            issued_by(certificates.authority, [("2.5.4.3", "cart")], names_der=b"0\6\x86\4a:\xff\xfe")
        )
        certificates.client.load_cert_chain(odd)
        certificates.server.verify_mode = ssl.CERT_REQUIRED
        certificates.authority.configure_trust(certificates.server)
        async with certificates.linked() as (_, server):
            assert server.tls_peer == {}
            assert identity_of(server.tls_peer) is None

    run(test)


async def read_all(transport: TlsTransport, got: bytearray, stop_at: int | None = None) -> None:
    """Until the end, or until so many bytes have come."""

    def take(data: bytes | None) -> Then:
        got.extend(data or b"")
        return Then.STOP if len(got) == stop_at else Then.WAIT

    with trio.fail_after(30):
        await transport.receive_each(take)


@pytest.mark.parametrize("small", [False, True])
def test_what_is_written_arrives_whatever_the_sizes_and_the_socket_takes(small: bool) -> None:
    async def test() -> None:
        rng = random.Random(7)
        chunks: list[Data] = [
            rng.randbytes(rng.choice([0, 1, 9, 100, 16_384, 16_385, 65_536, 65_537, 200_000]))
            for _ in range(60)
        ]
        expected = b"".join(chunks)
        async with Certificates().linked(small=small) as (client, server):
            for writer, reader in ((client, server), (server, client)):
                got = bytearray()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read_all, reader, got, len(expected))
                    at = 0
                    while at < len(chunks):
                        some = chunks[at : at + rng.randint(1, 9)]
                        at += len(some)
                        if rest := writer.send_now(some):
                            await writer.send_all(rest, 30)
                assert got == expected

    run(test)


def test_a_flush_of_many_frames_is_one_record() -> None:
    async def test() -> None:
        async with Certificates().linked() as (client, server):
            assert server.send_now([bytes(9)] * 1000) == []
            raw = client._sock.recv(100_000)
            records = 0
            while raw:
                size = 5 + int.from_bytes(raw[3:5])
                records += raw[:1] == b"\x17" and size > 9000
                raw = raw[size:]
            assert records == 1

    run(test)


def test_what_a_socket_does_not_take_goes_back_to_the_writer_and_nothing_else_is_encrypted() -> None:
    async def test() -> None:
        async with Certificates().linked(small=True) as (client, server):
            chunks: list[Data] = [bytes(50_000)] * 20
            rest = client.send_now(chunks)
            assert 15 < len(rest) <= 20
            assert client.send_now(rest) is rest  # it still takes nothing
            got = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, server, got, 1_000_000)
                await client.send_all(rest, 30)
            assert got == bytes(1_000_000)

    run(test)


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    async def test() -> None:
        async with Certificates().linked(small=True) as (client, _server):
            with pytest.raises(TimeoutError):
                await client.send_all([bytes(1_000_000)], 0.05)

    run(test)


def test_what_came_with_the_end_of_the_handshake_is_not_forgotten() -> None:
    async def test() -> None:
        certificates = Certificates()
        ours, theirs = socket.socketpair()
        client = TlsTransport(ours, "server", certificates.client, server_hostname="backend")
        server = TlsTransport(theirs, "client", certificates.server, server_side=True)
        # The client's last flight and its first bytes in one piece.
        unsaid = [b"first"]
        for _ in range(4):
            for mine, its_peer in ((client, server), (server, client)):
                with contextlib.suppress(ssl.SSLWantReadError):
                    mine._tls.do_handshake()
                    if mine is client and unsaid:
                        mine._tls.write(unsaid.pop())
                its_peer._incoming.write(mine._outgoing.read())
        got = bytearray()
        await read_all(server, got, 5)
        assert got == b"first"
        await client.aclose()
        await server.aclose()

    run(test)


def test_the_last_bytes_and_close_notify_reach_the_peer() -> None:
    async def test() -> None:
        async with Certificates().linked() as (client, server):
            got = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, client, got)
                assert server.send_now([b"goodbye"]) == []
                nursery.start_soon(server.linger)
                await trio.testing.wait_all_tasks_blocked()
                assert client._tls.read(1) == b""  # it would want more, without close_notify
                await client.aclose()
            assert got == b"goodbye"

    run(test)


def test_behind_close_notify_a_link_still_reads() -> None:
    async def test() -> None:
        async with Certificates().linked() as (client, server):
            await client.send_eof()
            assert await one_read(server) == b""
            assert server.send_now([b"more"]) == []
            assert await one_read(client) == b"more"

    run(test)


def test_a_certificate_that_was_shown_is_known_and_a_failed_handshake_is_told_to_the_peer() -> None:
    async def test() -> None:
        certificates = Certificates()
        async with certificates.linked() as (client, server):
            assert client.tls_peer is not None
            assert client.tls_peer["subjectAltName"] == (("DNS", "backend"),)
            assert server.tls_peer is None
        ours, theirs = socket.socketpair()
        client = TlsTransport(ours, "server", ssl.create_default_context(), server_hostname="backend")
        server = TlsTransport(theirs, "client", certificates.server, server_side=True)
        failures: list[BaseException] = []

        async def shake(transport: TlsTransport) -> None:
            try:
                await transport.handshake()
                await read_all(transport, bytearray())
            except OSError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, client)
            await shake(server)
        assert "CERTIFICATE_VERIFY_FAILED" in str(failures[0])
        assert "UNKNOWN_CA" in str(failures[1]).upper().replace(" ", "_")
        await client.aclose()
        await server.aclose()

    run(test)


@pytest.mark.parametrize(
    ("name", "days_left", "known", "says"),
    [
        ("backend", 1, False, "authority of the peer's certificate is not trusted here.*ca for upstreams"),
        ("backend", -1, True, "the peer's certificate has expired: it needs a new one"),
        ("elsewhere", 1, True, "the peer's certificate is for another name.*server_name"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said_in_words_that_tell_who_has_to_act(
    name: str, days_left: int, known: bool, says: str
) -> None:
    async def test() -> None:
        certificates = Certificates()
        now = dt.datetime.now(dt.UTC)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme_pair = certificates.authority.issue_cert(
            name, not_before=now - dt.timedelta(days=9), not_after=now + dt.timedelta(days=days_left)
        )
        trustme_pair.configure_cert(server)
        context = certificates.client if known else ssl.create_default_context()
        ours, theirs = socket.socketpair()
        client = TlsTransport(ours, "server", context, server_hostname="backend")
        backend = TlsTransport(theirs, "client", server, server_side=True)

        async def shake() -> None:
            with contextlib.suppress(OSError):
                await backend.handshake()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake)
            with pytest.raises(ssl.SSLError) as raised:
                await client.handshake()
        assert re.search(says, tls_problem(raised.value))
        assert "CERTIFICATE_VERIFY_FAILED" in tls_problem(raised.value)  # OpenSSL's own words stay
        await client.aclose()
        await backend.aclose()

    run(test)


async def check_can_wait(reader: TlsTransport, writer: TlsTransport) -> None:
    """Read before there is anything to be read."""
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, reader, got, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert writer.send_now([b"hello"]) == []
    assert got == b"hello"


def test_an_error_of_someone_elses_tls_is_not_taken_for_ones_own() -> None:
    async def test() -> None:
        async with Certificates().linked() as (client, server):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            incoming.write(b"this is no TLS record")
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            with pytest.raises(ssl.SSLError):
                context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
            await check_can_wait(server, client)

    run(test)


def test_an_end_without_close_notify_is_an_end_and_no_one_elses_error() -> None:
    async def test() -> None:
        certificates = Certificates()
        async with (
            certificates.linked() as (client, server),
            certificates.linked() as (left_alone, gone),
        ):
            await gone.aclose()
            got = bytearray()
            await read_all(left_alone, got)
            assert got == b""
            await check_can_wait(server, client)

    run(test)


def test_bytes_that_are_no_tls_are_an_os_error() -> None:
    async def test() -> None:
        async with Certificates().linked() as (client, server):
            client._sock.send(b"this is no TLS record")
            with pytest.raises(OSError):
                await read_all(server, bytearray())

    run(test)


def test_bytes_that_are_no_tls_are_the_same_error_right_behind_others() -> None:
    async def test() -> None:
        errors = []
        frames: list[list[Data]] = [[], [b"hello"]]
        for before in frames:
            async with Certificates().linked() as (client, server):
                assert client.send_now(before) == []
                client._sock.send(b"this is no TLS record")
                with pytest.raises(ssl.SSLError) as raised:
                    await read_all(server, bytearray())
                errors.append(raised.value.args)
        assert errors[0] == errors[1]
        async with Certificates().linked() as (client, server):
            await check_can_wait(server, client)

    run(test)


def test_close_notify_right_behind_the_last_bytes_keeps_none_of_them() -> None:
    async def test() -> None:
        async with Certificates().linked() as (client, server):
            got = bytearray()
            assert client.send_now([b"goodbye"]) == []
            await client.send_eof()
            await read_all(server, got)
            assert got == b"goodbye"

    run(test)


def test_what_is_written_behind_close_notify_is_an_error_of_this_connection_alone() -> None:
    async def test() -> None:
        async with (
            Certificates().linked() as (client, _server),
            Certificates().linked() as (other_client, other_server),
        ):
            await client.send_eof()
            with pytest.raises(ssl.SSLError, match=r"(?i)shutdown"):
                client.send_now([b"more"])
            await check_can_wait(other_server, other_client)

    run(test)


def test_a_context_may_have_an_sslobject_class_of_its_own() -> None:
    class Counting(ssl.SSLObject):
        reads = 0

        def read(self, *args: Any) -> Any:
            Counting.reads += 1
            return super().read(*args)

    async def test() -> None:
        certificates = Certificates()
        certificates.server.sslobject_class = Counting
        async with certificates.linked() as (client, server):
            got = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, server, got, 300_000)
                if rest := client.send_now([bytes(300_000)]):
                    await client.send_all(rest, 30)
            assert got == bytes(300_000)
            assert Counting.reads
            await check_can_wait(client, server)

    run(test)
