"""TLS streams that share a thread, and with it OpenSSL's queue of errors."""

import ssl

import pytest
import trio
import trio.testing

from rawgrpc_proxy.net.tls import tls_stream
from tests.upstream.backend import run

trustme = pytest.importorskip("trustme")


class Certificates:
    """A certificate for "backend", and both sides' configuration."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("backend").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)

    async def linked(self) -> tuple[trio.SSLStream[trio.abc.Stream], trio.SSLStream[trio.abc.Stream]]:
        ours, theirs = trio.testing.memory_stream_pair()
        client: trio.SSLStream[trio.abc.Stream] = tls_stream(ours, self.client, server_hostname="backend")
        server: trio.SSLStream[trio.abc.Stream] = tls_stream(theirs, self.server, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            await client.do_handshake()
        return client, server


async def check_can_wait(reader: trio.abc.Stream, writer: trio.abc.Stream) -> None:
    """Read before there is anything to be read."""
    got: list[bytes] = []

    async def read() -> None:
        got.append(bytes(await reader.receive_some(100)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await writer.send_all(b"hello")
    assert got == [b"hello"]


def test_an_error_of_someone_elses_tls_is_not_taken_for_ones_own() -> None:
    async def test() -> None:
        certificates = Certificates()
        client, server = await certificates.linked()
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
        client, server = await certificates.linked()
        gone, left_alone = await certificates.linked()
        await trio.aclose_forcefully(gone)
        assert await left_alone.receive_some(100) == b""
        await check_can_wait(server, client)

    run(test)
