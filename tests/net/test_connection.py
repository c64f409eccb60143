"""A connection over in-memory streams: handshake, drain, and every way to end."""

import contextlib
import errno
import math
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MemorySendStream, MockClock, memory_stream_pair, trio_test

from rawgrpc_proxy import Http2Settings
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConnectionGone, PeerAbuse, ProxyStopping, RpcError
from rawgrpc_proxy.http2 import frames
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.net.poller import Then, current_poller
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.transport import SocketTransport, StreamTransport
from tests.http2 import peer as wire
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, PREFACE, RESPONSE, TRAILERS_ONLY, Headers, RawPeer, request_fields

pytestmark = on_every_engine


@pytest.fixture
def pseudo_time() -> MockClock:
    """Time that jumps ahead whenever everybody waits."""
    return MockClock(autojump_threshold=0)


@dataclass
class Link:
    """A connection of ours, its peer, and what our side has heard."""

    connection: Connection
    peer: RawPeer
    ours: MemorySendStream
    nursery: trio.Nursery
    requests: list[Stream] = field(default_factory=list)
    refused: list[StreamReset] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def a_link(
    engine: Engine, *, client_side: bool = False, silent: bool = False, **http2: Any
) -> AsyncIterator[Link]:
    """A running connection; unless `silent`, its peer runs too and the SETTINGS of both are there."""
    near, far = memory_stream_pair()
    requests: list[Stream] = []
    refused: list[StreamReset] = []
    connection = Connection(
        StreamTransport(near, "in memory"),
        Http2Settings(engine=engine, **http2),
        client_side=client_side,
        on_request=requests.append,
        on_refused=refused.append,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            link = Link(
                connection,
                RawPeer(far, client_side=not client_side),
                near.send_stream,
                nursery,
                requests,
                refused,
            )

            async def run() -> None:
                await connection.run()
                link.ended.set()

            nursery.start_soon(run)
            if not silent:
                await nursery.start(link.peer.run)
                await connection.ready.wait()
                await link.peer.settings_came.wait()
            yield link
            connection.close()
            await link.ended.wait()
            await link.peer.aclose()
    assert connection.state is ConnectionState.CLOSED
    assert connection.streams == {}
    assert not connection.has_room


# --- handshake -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_side", [True, False])
@trio_test
async def test_settings_that_do_not_come_within_ten_seconds_end_the_connection(
    engine: Engine, client_side: bool, pseudo_time: MockClock
) -> None:
    started = trio.current_time()
    async with a_link(engine, client_side=client_side, silent=True) as link:
        await link.ended.wait()
        assert trio.current_time() - started == pytest.approx(10)
        assert str(link.connection.error) == "no HTTP/2 SETTINGS within 10 s"
        assert link.connection.ready.is_set()


@trio_test
async def test_a_header_block_that_does_not_end_ends_the_connection(
    engine: Engine, pseudo_time: MockClock
) -> None:
    """However busily it goes on: until it ends, nothing else can come on this connection."""
    async with a_link(engine) as link:
        await link.peer.ping()
        await link.peer.send_bytes(frames.frame_header(frames.HEADERS, 0, 1, 0))
        for _ in range(4):
            await trio.sleep(2)
            await link.peer.send_bytes(frames.frame_header(frames.CONTINUATION, 0, 1, 0))
        assert not link.ended.is_set()
        await trio.sleep(3)
        assert isinstance(link.connection.error, PeerAbuse)
        assert "a header block did not end within 10 s" in str(link.connection.error)


@trio_test
async def test_a_header_block_that_ends_in_time_leaves_no_limit_behind(
    engine: Engine, pseudo_time: MockClock
) -> None:
    async with a_link(engine) as link:
        block = link.peer.header_frames(1, request_fields())[9:]
        await link.peer.send_bytes(frames.frame_header(frames.HEADERS, 0, 1, len(block)) + block)
        await trio.sleep(9)
        await link.peer.send_bytes(frames.frame_header(frames.CONTINUATION, frames.END_HEADERS, 1, 0))
        await trio.sleep(30)
        await link.peer.ping()
        assert len(link.requests) == 1


@trio_test
async def test_a_connection_may_be_idle_once_the_settings_are_there(
    engine: Engine, pseudo_time: MockClock
) -> None:
    async with a_link(engine) as link:
        await trio.sleep(50)
        assert link.connection.state is ConnectionState.OPEN
        await link.peer.ping()


# --- a peer that does not read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_side", [True, False])
@trio_test
async def test_a_peer_that_asks_and_does_not_read_is_read_no_further_until_it_does(
    engine: Engine, client_side: bool
) -> None:
    async with a_link(engine, client_side=client_side, max_owed_bytes=1024) as link:
        pump, gate = link.ours.send_all_hook, trio.Event()

        async def wait() -> None:
            await gate.wait()
            assert pump is not None
            await pump()

        link.ours.send_all_hook = wait
        for _ in range(200):
            await link.peer.change_settings({})  # whose acknowledgement has 9 bytes
            await trio.testing.wait_all_tasks_blocked()
        paused = link.connection.reading_pauses
        assert paused
        assert 1024 < link.connection.session.output.owed_bytes <= 1024 + 9
        gate.set()
        await link.peer.ping()
        assert not link.connection.reading_pauses
        assert link.peer.log.count("SETTINGS 0 ACK") == 201


@trio_test
async def test_what_was_read_before_a_pause_is_acted_on_after_it(engine: Engine) -> None:
    async with a_link(engine, max_owed_bytes=1024) as link:
        pump, gate = link.ours.send_all_hook, trio.Event()

        async def wait() -> None:
            await gate.wait()
            assert pump is not None
            await pump()

        link.ours.send_all_hook = wait
        await link.peer.send_bytes(wire.settings() * 500)  # in one read, and answered with 9 bytes each
        await trio.testing.wait_all_tasks_blocked()
        paused = link.connection.reading_pauses
        assert paused
        gate.set()
        await link.peer.ping()
        assert link.peer.log.count("SETTINGS 0 ACK") == 501


@pytest.mark.parametrize("client_side", [True, False])
@trio_test
async def test_a_peer_that_takes_nothing_for_thirty_seconds_loses_its_connection(
    engine: Engine, client_side: bool, pseudo_time: MockClock
) -> None:
    async with a_link(engine, client_side=client_side) as link:
        link.ours.send_all_hook = trio.sleep_forever
        await link.peer.change_settings({})
        started = trio.current_time()
        await link.ended.wait()
        assert trio.current_time() - started == pytest.approx(30, abs=2)
        assert link.connection.error is not None
        assert link.connection.error.error_code == ErrorCode.ENHANCE_YOUR_CALM
        assert "for 30 s (send_timeout_s)" in link.connection.error.message


@trio_test
async def test_a_link_that_the_system_gives_up_is_lost_and_no_abuse(engine: Engine) -> None:
    """ETIMEDOUT (TCP_USER_TIMEOUT) is a `TimeoutError`, as is our own for a peer that takes nothing."""
    async with a_link(engine) as link:

        async def dead() -> NoReturn:
            raise trio.BrokenResourceError from OSError(errno.ETIMEDOUT, "Connection timed out")

        link.ours.send_all_hook = dead
        await link.peer.change_settings({})
        await link.ended.wait()
        assert isinstance(link.connection.error, ConnectionGone)
        assert str(link.connection.error) == "Connection timed out"


# --- output between the turns ---------------------------------------------------------------------------------------


@trio_test
async def test_what_is_said_after_a_command_that_came_to_nothing_is_written(engine: Engine) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields())
        await stream.reset()
        await link.peer.ping()
        await trio.testing.wait_all_tasks_blocked()
        link.requests[0].send_data(b"too late")
        await trio.testing.wait_all_tasks_blocked()
        link.peer.answers_pings = False
        link.connection.session.ping(b"anything")
        link.connection.touch()
        assert await link.peer.expect_ping() == b"anything"


# --- drain ---------------------------------------------------------------------------------------------------------


@trio_test
async def test_a_peer_that_does_not_answer_the_ping_is_waited_for_five_seconds(
    engine: Engine, pseudo_time: MockClock
) -> None:
    async with a_link(engine) as link:
        link.peer.answers_pings = False
        started = trio.current_time()
        await link.connection.drain(60)
        assert trio.current_time() - started == pytest.approx(5)
        await link.ended.wait()
        assert (await link.peer.expect_goaway()).last_stream_id == 2**31 - 1
        assert (await link.peer.expect_goaway()).last_stream_id == 0


@trio_test
async def test_streams_have_the_grace_period_and_no_more(engine: Engine, pseudo_time: MockClock) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields())
        await link.peer.ping()
        started = trio.current_time()
        await link.connection.drain(30)
        assert trio.current_time() - started == pytest.approx(30)
        assert (await stream.answer()).lost
        (request,) = link.requests
        assert isinstance(request.inbox.error, RpcError)
        assert "shutting down" in request.inbox.error.message


@trio_test
async def test_a_peer_that_says_nothing_at_all_is_waited_for_five_seconds(
    engine: Engine, pseudo_time: MockClock
) -> None:
    async with a_link(engine, silent=True) as link:
        started = trio.current_time()
        await link.connection.drain(60)
        assert trio.current_time() - started == pytest.approx(5)


@trio_test
async def test_a_peer_that_closes_when_it_sees_goaway_ends_the_drain(engine: Engine) -> None:
    async with a_link(engine) as link:
        link.peer.answers_pings = False
        link.nursery.start_soon(link.connection.drain, 60)
        await link.peer.expect_goaway()
        await link.peer.aclose()
        await link.ended.wait()
        await link.connection.drain(60)


@trio_test
async def test_a_peer_that_answers_no_ping_keeps_no_drain_for_ever(
    engine: Engine, pseudo_time: MockClock
) -> None:
    async with a_link(engine) as link:
        link.peer.answers_pings = False
        call = await link.peer.open(request_fields(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        begin = trio.current_time()
        link.nursery.start_soon(link.connection.drain, math.inf, ProxyStopping("too old", why="age"))
        await trio.sleep(10)
        link.requests[0].send_headers(TRAILERS_ONLY, end_stream=True)
        await call.answer()
        await link.ended.wait()
        assert trio.current_time() - begin == pytest.approx(40)
        assert link.connection.error is not None
        assert link.connection.error.why == "age"


@trio_test
async def test_a_second_drain_with_less_grace_shortens_the_first(engine: Engine) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields())
        link.nursery.start_soon(link.connection.drain, math.inf)
        await link.peer.expect_goaway()
        await link.connection.drain(0)
        assert (await stream.answer()).lost
        await link.ended.wait()


@trio_test
async def test_a_second_drain_with_more_grace_changes_nothing(engine: Engine) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields())
        link.nursery.start_soon(link.connection.drain, 60)
        await link.peer.expect_goaway()
        await link.connection.drain(70)
        await link.peer.expect_goaway()
        link.requests[0].send_headers(TRAILERS_ONLY, end_stream=True)
        await stream.data(b"", end=True)
        assert (await stream.answer()).status == 0
        await link.ended.wait()
        assert [line for line in link.peer.log if "GOAWAY" in line] == ["GOAWAY 0"] * 3


@trio_test
async def test_a_drain_that_is_cancelled_closes_at_once(engine: Engine) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields())
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.connection.drain(60)
        assert (await stream.answer()).lost
        await link.ended.wait()


# --- the end -------------------------------------------------------------------------------------------------------


@trio_test
async def test_nobody_opens_a_stream_on_a_connection_that_is_being_closed(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        assert link.connection.has_room
        link.connection.close()
        assert not link.connection.has_room


@trio_test
async def test_a_call_that_never_left_is_safe_to_retry_and_one_that_did_is_not(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        blocked = trio.Event()

        async def block() -> None:
            blocked.set()
            await trio.sleep_forever()

        link.ours.send_all_hook = block
        gone = link.connection.open_stream(request_fields())
        await blocked.wait()
        kept = link.connection.open_stream(request_fields())
        await link.peer.aclose()
        await link.ended.wait()
        assert gone.inbox.error is not None
        assert kept.inbox.error is not None
        assert not gone.inbox.error.retry_safe
        assert kept.inbox.error.retry_safe
        assert "before the call was sent" in kept.inbox.error.message


@trio_test
async def test_a_link_that_breaks_while_we_write_ends_the_connection(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:

        async def broken() -> None:
            raise trio.BrokenResourceError("cable cut")

        link.ours.send_all_hook = broken
        stream = link.connection.open_stream(request_fields())
        await link.ended.wait()
        assert stream.inbox.error is not None
        assert "cable cut" in stream.inbox.error.message


@trio_test
async def test_a_link_that_breaks_while_we_read_ends_the_connection(engine: Engine) -> None:
    near, _far = memory_stream_pair()

    async def broken() -> None:
        raise trio.BrokenResourceError from OSError(110, "Connection timed out")

    near.receive_stream.receive_some_hook = broken
    transport = StreamTransport(near, "in memory")
    connection = Connection(transport, Http2Settings(engine=engine), client_side=True)
    await connection.run()
    assert str(connection.error) == "Connection timed out"


@trio_test
async def test_a_socket_that_takes_no_more_ends_the_connection(engine: Engine) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(SocketTransport(ours, "pair"), Http2Settings(engine=engine), client_side=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        peer = RawPeer(stream, client_side=True)
        await nursery.start(peer.run)
        await peer.settings_came.wait()
        ours.shutdown(socket.SHUT_WR)
        await peer.closed()
        await connection.ready.wait()
    assert connection.state is ConnectionState.CLOSED


@dataclass
class Sizes:
    """A sink that notes how many DATA frames have come."""

    frames: int = 0
    ended: bool = False

    def response(self, headers: object, end_stream: bool) -> None:
        raise AssertionError

    def trailers(self, headers: object) -> None:
        raise AssertionError

    def failed(self, error: RpcError) -> None:
        """The connection has ended."""

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        self.frames += 1
        self.ended = end_stream

    def closed(self) -> None:
        """As it should be."""


A_THOUSAND_FRAMES = wire.data(1, b"small") * 1000 + wire.data(1, b"last", end_stream=True)


@trio_test
async def test_what_one_read_brings_is_acted_on_in_parts(engine: Engine) -> None:
    async with a_link(engine) as link:
        await link.peer.send_bytes(wire.headers(1))
        await trio.testing.wait_all_tasks_blocked()
        link.requests[0].sink = sink = Sizes()
        await link.peer.send_bytes(A_THOUSAND_FRAMES)
        parts = set()
        while not sink.ended:
            parts.add(sink.frames)
            await trio.lowlevel.checkpoint()
    assert sink.frames == 1001
    assert max(later - earlier for earlier, later in pairwise(sorted(parts))) <= 128  # tasks run in any order


@trio_test
async def test_a_connection_that_brings_much_lets_others_go_first_and_is_heard_to_its_end(
    engine: Engine,
) -> None:
    """On sockets, whose reads come in rounds; the peer has gone before half of what it has sent is acted on."""
    requests: list[Stream] = []
    seen: list[int] = []
    busy = Sizes()

    class Small(Sizes):
        def data(self, data: Data, credit: int, end_stream: bool) -> None:
            seen.append(busy.frames)

    with ExitStack() as stack, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            peers = []
            for sink in (busy, Small()):
                ours, theirs = socket.socketpair()
                peers.append(stack.enter_context(theirs))
                connection = Connection(
                    SocketTransport(ours, "pair"),
                    Http2Settings(engine=engine),
                    client_side=False,
                    on_request=requests.append,
                )
                nursery.start_soon(connection.run)
                theirs.sendall(PREFACE + wire.settings() + wire.headers(1))
                await trio.testing.wait_all_tasks_blocked()
                requests[-1].sink = sink
            peers[0].sendall(A_THOUSAND_FRAMES)
            peers[1].sendall(wire.data(1, b"small"))
            for peer in peers:
                peer.shutdown(socket.SHUT_WR)
    assert busy.frames == 1001
    assert seen[0] <= 64


@dataclass
class TouchesWhenPaid:
    """Has the connection written to at once, as one whose own answer comes of the credit."""

    account = None

    connection: Connection

    def credit(self, _size: int) -> None:
        self.connection.touch()


@trio_test
async def test_a_peer_that_reads_at_last_is_heard_again_whoever_writes_the_rest(engine: Engine) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(0)
    requests: list[Stream] = []
    connection = Connection(
        SocketTransport(ours, "pair"),
        Http2Settings(engine=engine, max_owed_bytes=1024),
        client_side=False,
        on_request=requests.append,
    )

    def pauses() -> bool:
        return connection.reading_pauses

    with theirs, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            wide = wire.settings({wire.INITIAL_WINDOW_SIZE: 2**30}) + wire.window_update(0, 2**30)
            theirs.send(PREFACE + wide + wire.headers(1))
            while not requests:
                await trio.lowlevel.checkpoint()
            requests[0].send_headers(RESPONSE)
            # More than the socket takes, and the writer waits with the end of it.
            source, piece = TouchesWhenPaid(connection), bytes(4096)
            for _ in range(20):
                requests[0].send_data(piece, source=source, credit=len(piece))
            while not pauses():
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(wire.ping() * 100)
            while pauses():
                with contextlib.suppress(BlockingIOError):
                    theirs.recv(2**20)
                await trio.lowlevel.checkpoint()
            connection.close()
    assert connection.state is ConnectionState.CLOSED


@trio_test
async def test_what_is_written_in_the_readers_turn_may_find_the_socket_closed(engine: Engine) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(SocketTransport(ours, "pair"), Http2Settings(engine=engine), client_side=False)
    theirs.settimeout(5)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            ours.shutdown(socket.SHUT_WR)
            theirs.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0")
    assert str(connection.error) == "Broken pipe"
    theirs.close()


@trio_test
async def test_a_rule_broken_behind_the_last_answer_is_named(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        peer = link.peer
        answer = peer.header_frames(stream.id, TRAILERS_ONLY, end=True)
        await peer.send_bytes(answer + b"\0\0\1\0\0\0\0\0\x63\0")  # DATA on stream 99, which nobody opened
        await link.ended.wait()
        assert link.connection.error is not None
        assert link.connection.error.error_code == ErrorCode.PROTOCOL_ERROR


@trio_test
async def test_a_fault_of_ours_in_a_write_ends_the_connection_and_is_raised_by_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(SocketTransport(ours, "pair"), Http2Settings(engine=engine), client_side=False)

    def fault(_session: Session) -> NoReturn:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr(Session, "take_output", fault)
    with trio.fail_after(5), pytest.raises(ExceptionGroup) as raised:  # noqa: PT012
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            theirs.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0")
    assert raised.group_contains(AssertionError, match="of ours")
    assert connection.error is not None
    assert connection.error.error_code == ErrorCode.INTERNAL_ERROR
    theirs.close()


@trio_test
@pytest.mark.parametrize("end", ["the file ends", "reset", "not HTTP/2"])
async def test_a_connection_that_has_ended_has_no_room_for_a_call_of_the_same_moment(
    engine: Engine, end: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(5):
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        call, caller = socket.socketpair()
        rooms: list[bool] = []

        def a_call_comes() -> Then:
            rooms.append(connection.has_room)
            return Then.WAIT if call.recv(1) and len(rooms) < 2 else Then.STOP

        connection = Connection(SocketTransport(ours, "tcp"), Http2Settings(engine=engine), client_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            theirs.send(b"\0\0\0\4\0\0\0\0\0")
            await connection.ready.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(current_poller().watch, call.fileno(), a_call_comes)
            caller.send(b"1")
            await trio.testing.wait_all_tasks_blocked()
            if end == "not HTTP/2":
                theirs.send(b"HTTP/1.1 400 ")
            else:
                if end == "the file ends":
                    theirs.recv(1 << 16)  # with bytes unread it would be a reset
                theirs.close()
            caller.send(b"2")
        assert rooms == [True, False]
        for sock in (call, caller, theirs):
            sock.close()


@trio_test
async def test_a_goaway_with_an_error_lets_the_streams_below_it_finish(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link:
        stream = link.connection.open_stream(request_fields(), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        await link.peer.goaway(stream.id, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
        await link.peer.ping()
        assert link.connection.state is ConnectionState.DRAINING
        assert "too_many_pings" in str(link.connection.error)
        await link.peer.streams[stream.id].headers(TRAILERS_ONLY, end=True)
        await link.ended.wait()
        assert stream.inbox.error is None


@trio_test
async def test_a_client_that_says_goaway_is_served_on(engine: Engine) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields(), end=True)
        await link.peer.goaway(0)
        await link.peer.ping()
        link.requests[0].send_headers(RESPONSE)
        link.requests[0].send_headers(OK, end_stream=True)
        assert await stream.next() == Headers(RESPONSE, end_stream=False)
        assert (await stream.next()) == Headers(OK, end_stream=True)


@trio_test
async def test_a_fault_in_one_connection_does_not_stop_the_others_from_writing(engine: Engine) -> None:
    async with a_link(engine) as other:
        with pytest.raises(ExceptionGroup) as caught:
            await _a_link_with_a_fault(engine)
        assert caught.group_contains(AttributeError)
        call = await other.peer.open(request_fields(), end=True)
        await other.peer.ping()
        other.requests[0].send_headers(TRAILERS_ONLY, end_stream=True)
        assert (await call.answer()).status == 0


async def _a_link_with_a_fault(engine: Engine) -> None:
    async with a_link(engine) as link:
        stream = await link.peer.open(request_fields())
        await link.peer.ping()
        link.requests[0].sink = None  # type: ignore[assignment]
        await stream.data(b"x")
        await trio.sleep_forever()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system's TCP cannot be told")
@pytest.mark.parametrize(("send_timeout_s", "tcp_s"), [(0.5, 30), (120.0, 120)])
@trio_test
async def test_tcp_gives_up_a_peer_that_takes_nothing_no_sooner_than_the_connection(
    engine: Engine, send_timeout_s: float, tcp_s: int
) -> None:
    settings = Http2Settings(engine=engine, send_timeout_s=send_timeout_s)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with ours, theirs:
            Connection(SocketTransport(ours, "tcp"), settings, client_side=True)
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * tcp_s


@trio_test
async def test_many_calls_are_told_of_the_end_some_at_a_time(engine: Engine) -> None:
    """So that the calls of others do not wait for all of them."""
    seen = set[int]()
    async with a_link(engine) as link:
        for _ in range(640):
            await link.peer.open(request_fields(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        link.connection.close()
        while not link.ended.is_set():
            seen.add(sum(stream.inbox.error is not None for stream in link.requests))
            await trio.lowlevel.checkpoint()
        assert all(stream.inbox.error is not None for stream in link.requests)
    assert len(seen) > 4  # of eleven: two parts may come between two looks
