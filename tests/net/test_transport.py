"""Transports: bytes in, bytes out, whatever the link makes of them."""

import errno
import random
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock, trio_test

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.transport import (
    BULK_READ_BYTES,
    READ_BYTES,
    SocketTransport,
    StreamTransport,
    next_read_bytes,
)
from tests.net.links import one_read
from tests.upstream.backend import run


@pytest.fixture
def autojump_clock() -> MockClock:
    """Time that jumps ahead whenever everybody waits."""
    return MockClock(autojump_threshold=0)


@contextmanager
def linked(send_buffer: int | None = None) -> Iterator[tuple[SocketTransport, socket.socket]]:
    """A transport and the plain socket at its other end, which nobody reads."""
    ours, theirs = socket.socketpair()
    if send_buffer is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    theirs.settimeout(0)
    with ours, theirs:
        yield SocketTransport(ours, "peer"), theirs


@contextmanager
def linked_by_tcp() -> Iterator[tuple[SocketTransport, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with ours, theirs:
            yield SocketTransport(ours, "peer"), theirs


def drain(sock: socket.socket) -> bytes:
    """All that is there to be read now."""
    parts: list[bytes] = []
    while True:
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            return b"".join(parts)
        if not data:
            return b"".join(parts)
        parts.append(data)


def length(chunks: list[Data]) -> int:
    return sum(len(chunk) for chunk in chunks)


@pytest.mark.parametrize("size", [1, 7, 1000, 40_000])
def test_what_the_socket_does_not_take_is_answered_and_nothing_is_lost_or_doubled(size: int) -> None:
    whole = random.Random(size).randbytes(min(20_000 * size, 1_000_000))
    with linked(send_buffer=4096) as (transport, peer):
        chunks: list[Data] = [whole[start : start + size] for start in range(0, len(whole), size)]
        received = b""
        rest = transport.send_now(chunks)
        assert length(rest) > 0
        while rest:
            received += drain(peer)
            assert len(received) + length(rest) == len(whole)
            rest = transport.send_now(rest)
        assert received + drain(peer) == whole


def test_more_chunks_than_one_system_call_takes_go_out_all_the_same() -> None:
    chunks: list[Data] = [bytes([number % 256]) for number in range(5000)]
    with linked() as (transport, peer):
        assert transport.send_now(chunks) == []
        assert drain(peer) == b"".join(chunks)


@pytest.mark.parametrize("chunks", [[], [b""], [b"", b""], [b"", b"a", b"", b"b", b""]])
def test_empty_chunks_are_nothing(chunks: list[Data]) -> None:
    with linked() as (transport, peer):
        assert transport.send_now(chunks) == []
        assert drain(peer) == b"".join(chunks)


def test_views_are_chunks_too() -> None:
    with linked() as (transport, peer):
        assert transport.send_now([memoryview(b"one"), memoryview(b"..two")[2:]]) == []
        assert drain(peer) == b"onetwo"


def test_sending_all_waits_for_the_peer_to_read() -> None:
    async def test() -> None:
        whole = bytes(500_000)
        with linked(send_buffer=4096) as (transport, peer):
            received = 0
            async with trio.open_nursery() as nursery:
                sent = trio.Event()

                async def send() -> None:
                    await transport.send_all([whole[:200_000], whole[200_000:]], 5)
                    sent.set()

                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                assert not sent.is_set()
                while not sent.is_set():
                    received += len(drain(peer))
                    await trio.lowlevel.checkpoint()
            assert received + len(drain(peer)) == len(whole)

    run(test)


@trio_test
async def test_a_peer_that_takes_little_is_waited_for_and_one_that_takes_nothing_is_not(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_fd: int) -> None:
        await trio.sleep_forever()

    # As on Linux while less than a third of the buffer is free, for minutes if the peer is slow.
    monkeypatch.setattr(trio.lowlevel, "wait_writable", never)
    with linked(send_buffer=4096) as (transport, peer):
        async with trio.open_nursery() as nursery:

            async def read_slowly() -> None:
                while True:
                    await trio.sleep(20)
                    drain(peer)

            nursery.start_soon(read_slowly)
            await transport.send_all([bytes(100_000)], 30)
            nursery.cancel_scope.cancel()
        with pytest.raises(TimeoutError):
            await transport.send_all([bytes(100_000)], 30)


def test_reading_gives_what_has_come_and_then_the_end() -> None:
    async def test() -> None:
        with linked() as (transport, peer):
            peer.send(b"hello")
            assert await one_read(transport) == b"hello"
            peer.sendall(bytes(READ_BYTES))
            assert 0 < len(await one_read(transport)) <= READ_BYTES
            drain(transport._sock)
            peer.shutdown(socket.SHUT_WR)
            assert await one_read(transport) == b""

    run(test)


def test_a_reader_that_was_woken_for_nothing_waits_on() -> None:
    async def test() -> None:
        with linked() as (transport, peer), transport._sock.dup() as second:
            other = SocketTransport(second, "peer")
            received: list[bytes] = []

            async def read(link: SocketTransport) -> None:
                received.append(await one_read(link))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, transport)
                nursery.start_soon(read, other)
                await trio.testing.wait_all_tasks_blocked()
                peer.send(b"for one of them")
                while not received:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                assert received == [b"for one of them"]
                peer.send(b"for the other")

    run(test)


def test_a_reset_is_an_os_error() -> None:
    async def test() -> None:
        with linked_by_tcp() as (transport, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with pytest.raises(ConnectionResetError):
                await one_read(transport)
            with pytest.raises(OSError):  # noqa: PT012  # the kernel may take the first one
                while True:
                    transport.send_now([b"anybody there?"])

    run(test)


def test_ctrl_c_gets_through_to_code_that_a_read_leads_to() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    async def test() -> None:
        with linked() as (transport, peer):

            def endless(_data: bytes | None) -> Then:
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("it was put off")

            peer.send(b"x")
            with pytest.raises(KeyboardInterrupt):
                await transport.receive_each(endless)

    try:
        run(test)
    finally:
        signal.signal(signal.SIGINT, before)


def test_tcp_does_not_hold_small_frames_back() -> None:
    with linked_by_tcp() as (transport, _):
        assert transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_closed_transport_fails_with_os_errors_and_may_be_closed_again() -> None:
    async def test() -> None:
        with linked() as (transport, _):
            await transport.aclose()
            await transport.aclose()
            attempts: list[Callable[[], Awaitable[object]]] = [
                lambda: one_read(transport),
                lambda: transport.send_all([b"x"], 5),
            ]
            for attempt in attempts:
                with pytest.raises(OSError) as error:
                    await attempt()
                assert error.value.errno == errno.EBADF

    run(test)


def test_closing_wakes_whoever_reads_or_writes() -> None:
    async def test() -> None:
        with linked(send_buffer=4096) as (transport, _):
            failed = []

            async def fails(attempt: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(OSError, match="closed"):
                    await attempt()
                failed.append(attempt)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails, lambda: one_read(transport))
                nursery.start_soon(fails, lambda: transport.send_all([bytes(1_000_000)], 5))
                await trio.testing.wait_all_tasks_blocked()
                await transport.aclose()
            assert len(failed) == 2

    run(test)


def test_lingering_says_that_no_more_comes_and_throws_away_what_the_peer_still_sends() -> None:
    async def test() -> None:
        with linked() as (transport, peer), linked() as (reset, gone):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.linger)
                for _ in range(3):
                    peer.send(b"still talking")
                    await trio.testing.wait_all_tasks_blocked()
                assert peer.recv(1) == b""
                peer.shutdown(socket.SHUT_WR)
            gone.close()
            await reset.linger()  # nobody is there any more: that is no error
            await reset.aclose()
            await reset.linger()

    run(test)


# ------------------------------------------------------------------------------------------------- any trio stream


def test_any_stream_carries_bytes_both_ways_and_ends() -> None:
    async def test() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        transport = StreamTransport(ours, "peer")
        assert (transport.peer, transport.tls_peer) == ("peer", None)
        chunks: list[Data] = [b"one", memoryview(b"two"), b"three"]
        assert transport.send_now(chunks) == chunks  # it cannot write without waiting
        await transport.send_all(chunks, 5)
        assert await theirs.receive_some() == b"onetwothree"
        await theirs.send_all(b"four")
        assert await one_read(transport) == b"four"
        await theirs.send_eof()
        assert await one_read(transport) == b""

    run(test)


def test_a_stream_that_breaks_or_is_closed_fails_with_os_errors() -> None:
    async def test() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        transport = StreamTransport(ours, "peer")
        await theirs.aclose()
        with pytest.raises(OSError):
            await transport.send_all([b"x"], 5)
        await transport.aclose()
        await transport.aclose()
        with pytest.raises(OSError):
            await transport.send_all([b"x"], 5)
        with pytest.raises(OSError):
            await one_read(transport)

    run(test)


def test_the_cause_of_a_broken_stream_is_the_error_itself() -> None:
    async def test() -> None:
        with linked_by_tcp() as (link, peer):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(link._sock))
            transport = StreamTransport(stream, "peer")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with pytest.raises(ConnectionResetError):
                await one_read(transport)

    run(test)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system's TCP cannot be told")
def test_tcp_is_told_when_a_link_is_lost() -> None:
    async def test() -> None:
        with linked_by_tcp() as (link, _peer):
            ours = link._sock
            stream = StreamTransport(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), "peer")
            for transport, timeout_s in ((link, 60), (stream, 90)):
                transport.mind_lost_bytes(timeout_s)
                told = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
                assert told == 1000 * timeout_s

    run(test)


@pytest.mark.parametrize(
    ("asked", "got", "then"),
    [
        (READ_BYTES, 100, READ_BYTES),
        (READ_BYTES, READ_BYTES, 2 * READ_BYTES),
        (BULK_READ_BYTES - 1, BULK_READ_BYTES - 1, BULK_READ_BYTES),
        (BULK_READ_BYTES, BULK_READ_BYTES, BULK_READ_BYTES),
        (BULK_READ_BYTES, 100, READ_BYTES),
        (2 * READ_BYTES, 100, 2 * READ_BYTES),
    ],
)
def test_reads_are_as_large_as_what_they_bring(asked: int, got: int, then: int) -> None:
    assert next_read_bytes(asked, got) == then


def test_behind_its_own_end_a_link_still_reads() -> None:
    async def test() -> None:
        with linked_by_tcp() as (transport, peer):
            await transport.send_eof()
            assert peer.recv(10) == b""
            peer.sendall(b"more")
            assert await one_read(transport) == b"more"
            await transport.aclose()
            await transport.send_eof()  # that it is closed already is no error
        ours, theirs = trio.testing.memory_stream_pair()
        in_memory = StreamTransport(ours, "peer")
        await in_memory.send_eof()
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"more")
        assert await one_read(in_memory) == b"more"

    run(test)


def test_a_link_that_is_aborted_is_reset_for_its_peer() -> None:
    async def test() -> None:
        with linked_by_tcp() as (transport, peer):
            await transport.abort()
            with pytest.raises(ConnectionResetError):
                peer.recv(10)
            await transport.abort()
        with linked_by_tcp() as (transport, peer):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(transport._sock))
            await StreamTransport(stream, "peer").abort()
            with pytest.raises(ConnectionResetError):
                peer.recv(10)
        ours, theirs = trio.testing.memory_stream_pair()
        await StreamTransport(ours, "peer").abort()
        with pytest.raises(trio.BrokenResourceError):
            await theirs.send_all(b"x")

    run(test)
