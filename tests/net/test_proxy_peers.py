"""How it is read off a socket whom a load balancer connects for: not a byte more."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy.errors import NotHttp2
from rawgrpc_proxy.net.proxy_peers import read_source

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
BINARY = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\7\xc6\x33\x64\1\xdc\4\1\xbb"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


@contextmanager
def linked(*, by_tcp: bool = False) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The load balancer's socket, and ours."""
    if by_tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    else:
        theirs, ours = socket.socketpair()
    with theirs, ours:
        yield theirs, ours


@pytest.mark.parametrize("by_tcp", [False, True])
@pytest.mark.parametrize("header", [LINE, BINARY, LOCAL])
@pytest.mark.parametrize("piece", [1, 7, 15, 1000])
@trio_test
async def test_the_source_is_read_and_what_is_behind_it_stays(
    by_tcp: bool, header: bytes, piece: int
) -> None:
    wire = header + b"behind"
    sources: list[str | None] = []
    with linked(by_tcp=by_tcp) as (theirs, ours):

        async def read() -> None:
            sources.append(await read_source(ours, "peer"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for start in range(0, len(wire), piece):
                theirs.send(wire[start : start + piece])
                await trio.testing.wait_all_tasks_blocked()
        assert sources == ["peer" if header is LOCAL else "192.0.2.7:56324"]
        ours.settimeout(10)
        assert _all(ours, 6) == b"behind"


def _all(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += sock.recv(100)
    return got


@trio_test
async def test_half_a_header_is_waited_on_and_not_looked_at_again_and_again() -> None:
    looks = 0

    class Counting(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal looks
            looks += 1

    with linked() as (theirs, ours):
        theirs.send(LINE[:20])
        with trio.move_on_after(0.5):
            trio.lowlevel.add_instrument(Counting())
            await read_source(ours, "peer")
        assert looks < 10


@pytest.mark.parametrize("reset", [False, True])
@trio_test
async def test_one_who_only_tries_whether_somebody_listens_has_done_nothing_wrong(reset: bool) -> None:
    with linked(by_tcp=True) as (theirs, ours):
        _leave(theirs, reset=reset)
        assert await read_source(ours, "peer") is None


@pytest.mark.parametrize("reset", [False, True])
@trio_test
async def test_a_header_that_breaks_off_is_the_load_balancers_fault(reset: bool) -> None:
    with linked(by_tcp=True) as (theirs, ours):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(NotHttp2, match="breaks off: the load balancer has left"):
                    await read_source(ours, "peer")

            theirs.send(LINE[:20])
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            _leave(theirs, reset=reset)


def _leave(sock: socket.socket, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
