"""What is written, and what is not taken for written."""

import errno
import gc
import socket
import sys
from typing import NoReturn

import pytest
import trio
from trio.testing import trio_test, wait_all_tasks_blocked

from rawgrpc_proxy import Http2Settings
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net.connection import Connection, make_session
from rawgrpc_proxy.net.transport import SocketTransport
from rawgrpc_proxy.net.turn import current_turn
from rawgrpc_proxy.net.writer import Writer
from tests.proxy.raw_peers import PREFACE


class ResetTransport(SocketTransport):
    """A socket that the peer has reset."""

    def send_now(self, chunks: list[Data]) -> NoReturn:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@trio_test
async def test_what_a_broken_socket_has_not_taken_is_not_taken_for_written() -> None:
    ours, theirs = socket.socketpair()
    written: list[str] = []
    failures: list[BaseException] = []
    session = make_session(Http2Settings(), client_side=True)
    writer = Writer(
        session,
        ResetTransport(ours, "pair"),
        send_timeout_s=5,
        on_written=lambda: written.append("written"),
        on_failed=failures.append,
    )
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await wait_all_tasks_blocked()
            session.start()
            writer.touch()  # wakes the task, and before it runs a turn writes
            current_turn().flush()
            told = len(written)
            await wait_all_tasks_blocked()
            writer.end()
            nursery.cancel_scope.cancel()
    assert [type(failure) for failure in failures] == [ConnectionResetError]
    assert len(written) == told
    assert writer.cut_short
    ours.close()
    theirs.close()


@trio_test
async def test_a_write_that_finds_the_peer_gone_before_its_first_word_says_what_may_be_missing() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ResetTransport(ours, "pair"), Http2Settings(), client_side=True)
    with trio.fail_after(30):
        await connection.run()
    assert "before its first SETTINGS; it speaks TLS, perhaps" in str(connection.error)
    theirs.close()


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy has no reference counts")
@trio_test
async def test_connections_that_have_ended_are_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            ours, theirs = socket.socketpair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    Connection(SocketTransport(ours, "pair"), Http2Settings(), client_side=False).run
                )
                theirs.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0")
                await wait_all_tasks_blocked()
                theirs.close()
        left = [thing for thing in gc.get_objects() if type(thing) is Connection]
    finally:
        gc.enable()
    assert not left
