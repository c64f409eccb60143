"""PyPy's own way to OpenSSL: whatever is there at once comes out whole, and buffers are used again."""

import contextlib
import random
import ssl

import pytest

from rawgrpc_proxy.net import pypy_tls

trustme = pytest.importorskip("trustme")
pytestmark = pytest.mark.skipif(not pypy_tls.IS_HERE, reason="of PyPy")


def linked() -> tuple[pypy_tls.SSLObject, ssl.MemoryBIO, pypy_tls.SSLObject, ssl.MemoryBIO]:
    """A client and what it says, a server and what that hears, their hands shaken."""
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("backend").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    server_context.sslobject_class = client_context.sslobject_class = pypy_tls.SSLObject
    says, hears, to_client, from_server = (ssl.MemoryBIO() for _ in range(4))
    client = client_context.wrap_bio(to_client, says, server_hostname="backend")
    server = server_context.wrap_bio(hears, from_server, server_side=True)
    for _ in range(3):
        for each in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                each.do_handshake()
            hears.write(pypy_tls.take(says))
            to_client.write(pypy_tls.take(from_server))
    assert isinstance(client, pypy_tls.SSLObject)
    assert isinstance(server, pypy_tls.SSLObject)
    return client, says, server, hears


def test_what_is_more_than_a_buffer_comes_out_whole() -> None:
    client, says, server, hears = linked()
    data = random.Random(5).randbytes(300_000)
    assert client.write(memoryview(data)) == len(data)
    hears.write(pypy_tls.take(says))
    assert server.read_all(hears) == data
    with pytest.raises(BlockingIOError):
        server.read_all(hears)


def test_a_part_of_a_record_is_kept_until_the_rest_is_there() -> None:
    client, says, server, hears = linked()
    client.write(b"one")
    client.write(b"two")
    sealed = pypy_tls.take(says)
    hears.write(sealed[:-1])
    assert server.read_all(hears) == b"one"
    with pytest.raises(BlockingIOError):
        server.read_all(hears)
    hears.write(sealed[-1:])
    assert server.read_all(hears) == b"two"


def test_one_buffer_is_enough_for_those_who_come_one_after_the_other() -> None:
    client, says, server, hears = linked()
    before = len(pypy_tls._buffers)
    for _ in range(9):
        client.write(b"hello")
        hears.write(pypy_tls.take(says))
        assert server.read_all(hears) == b"hello"
    assert len(pypy_tls._buffers) == before
