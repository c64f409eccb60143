"""A side that does not read stops the side that writes, and nobody else."""

import contextlib
import hashlib
import random
import socket
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.net.memory_guard import current_memory_guard
from tests.http2 import peer as wire
from tests.proxy.house import House, a_proxy, on_every_engine, streams_of, until
from tests.proxy.raw_peers import (
    INITIAL_WINDOW,
    INITIAL_WINDOW_SIZE,
    OK,
    PREFACE,
    RESPONSE,
    TRAILERS_ONLY,
    Answer,
    PeerStream,
    RawPeer,
    message,
    request_fields,
)

pytestmark = on_every_engine

MIB = 2**20
STREAM_WINDOW = 64 * 1024
OUTPUT = 32 * 1024
SMALL: dict[str, Any] = {"stream_window_bytes": STREAM_WINDOW, "max_output_bytes": OUTPUT}
CREDIT_STEP = STREAM_WINDOW // 2
SOCKETS = 6 * MIB  # what the kernel may hold between two peers on loopback, generously


async def settled(*peers: RawPeer) -> None:
    """All that the peers have sent has been dealt with, and all that came of it."""
    for _ in range(2):
        for peer in peers:
            await peer.ping()


@trio_test
async def test_a_caller_who_gives_no_credit_stops_the_backend(engine: Engine) -> None:
    async with a_proxy(engine, **SMALL) as house, trio.open_nursery() as writers:
        client = await house.client()
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        writers.start_soon(served.body, bytes(10 * MIB))
        await call.expect_headers()
        await call.read(INITIAL_WINDOW)
        await served.blocked.wait()
        await settled(client, served.peer)
        assert served.blocked.is_set()
        # What the caller has got, and one stream window beyond it: no more than that is held.
        assert served.sent_bytes <= INITIAL_WINDOW + STREAM_WINDOW
        assert served.sent_bytes >= STREAM_WINDOW
        await _siblings_go_on(house, client)
        await call.reset()
        writers.cancel_scope.cancel()


@trio_test
async def test_a_caller_who_reads_on_gets_everything(engine: Engine) -> None:
    body = random.Random(1).randbytes(2 * MIB)
    async with a_proxy(engine, **SMALL) as house, trio.open_nursery() as writers:
        client = await house.client()
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        writers.start_soon(served.body, body)
        await call.expect_headers()
        got = await call.read(INITIAL_WINDOW)
        await served.blocked.wait()
        await client.credit_everything()
        got += await call.read(len(body) - len(got))
        assert got == body
        await served.headers(OK, end=True)
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_an_upstream_that_gives_no_credit_stops_the_caller(engine: Engine) -> None:
    async with a_proxy(engine, **SMALL) as house, trio.open_nursery() as writers:
        house.backend.prepare = lambda peer: setattr(peer, "credits", False)
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        # The response has begun, so that nothing is kept for a retry.
        await served.headers(RESPONSE)
        await call.expect_headers()
        writers.start_soon(call.body, bytes(10 * MIB))
        await served.read(INITIAL_WINDOW)
        await call.blocked.wait()
        await settled(served.peer, client)
        assert call.blocked.is_set()
        assert STREAM_WINDOW <= call.sent_bytes <= INITIAL_WINDOW + STREAM_WINDOW
        await call.reset()
        assert await served.expect_reset() == 8
        writers.cancel_scope.cancel()


@trio_test
async def test_what_is_kept_for_a_retry_is_bounded_too(engine: Engine) -> None:
    async with a_proxy(engine, **SMALL) as house, trio.open_nursery() as writers:
        house.backend.prepare = lambda peer: setattr(peer, "credits", False)
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        writers.start_soon(call.body, bytes(10 * MIB))
        await served.read(INITIAL_WINDOW)
        await call.blocked.wait()
        await settled(served.peer, client)
        assert call.sent_bytes <= INITIAL_WINDOW + 2 * STREAM_WINDOW
        await call.reset()
        writers.cancel_scope.cancel()


@pytest.mark.parametrize("side", ["caller", "upstream"])
@trio_test
async def test_a_side_that_does_not_read_its_socket_stops_the_other(engine: Engine, side: str) -> None:
    # Its windows are wide open; only the kernel's buffers and the windows on the other side hold anything back.
    wide = {INITIAL_WINDOW_SIZE: 2**30}
    size = SOCKETS + MIB
    async with a_proxy(engine, **SMALL, backend=wide) as house, trio.open_nursery() as writers:
        client = await house.client(wide)
        other = await house.client()
        await client.credit(None, 2**30)
        call = await client.open(request_fields())
        served = await house.backend.request()
        await served.peer.credit(None, 2**30)
        await served.headers(RESPONSE)
        await call.expect_headers()
        reader, writer = (call, served) if side == "caller" else (served, call)
        reader.peer.stop_reading()
        writers.start_soon(writer.body, bytes(size))
        await writer.blocked.wait()
        assert writer.sent_bytes < size
        if side == "caller":
            await _siblings_go_on(house, other)
        reader.peer.go_on_reading()
        got = 0
        while got < MIB:
            got += len((await reader.expect_data()).data)
        await call.reset()
        writers.cancel_scope.cancel()


async def _siblings_go_on(house: House, client: RawPeer) -> None:
    """Calls without bodies to speak of pass, on the same connections, while a stream is stuck."""
    for _ in range(3):
        sibling = await client.request("/a.B/Sibling", body=None)
        served = await house.backend.request()
        assert served.request.get(b":path") == b"/a.B/Sibling"
        await served.headers([*RESPONSE, *OK], end=True)
        assert (await sibling.answer()).status == Status.OK


@trio_test
async def test_a_caller_who_never_reads_one_response_can_make_other_calls(engine: Engine) -> None:
    async with a_proxy(engine, **SMALL) as house, trio.open_nursery() as writers:
        client = await house.client()
        # The connection is wide; the one stream is not read.
        await client.credit(None, 16 * MIB)
        client.credits = False
        stuck = await client.request("/a.B/Stuck")
        served = await house.backend.request()
        await served.request_body()
        await served.headers(RESPONSE)
        writers.start_soon(served.body, bytes(MIB))
        await stuck.expect_headers()
        await stuck.read(INITIAL_WINDOW)
        await served.blocked.wait()
        for _ in range(3):
            call = await client.request("/a.B/Fine")
            fine = await house.backend.request()
            await fine.respond(bytes(30_000))
            assert (await call.answer()).body == message(bytes(30_000))
        await stuck.reset()
        assert await served.expect_reset() == 8
        writers.cancel_scope.cancel()


@trio_test
async def test_sixteen_mebibytes_pass_intact_each_way_at_once(engine: Engine) -> None:
    up, down = random.Random(2).randbytes(16 * MIB), random.Random(3).randbytes(16 * MIB)
    digests: dict[str, str] = {}

    async def collect(name: str, stream: PeerStream) -> None:
        digest, size = hashlib.sha256(), 0
        while size < 16 * MIB:
            data = (await stream.expect_data()).data
            digest.update(data)
            size += len(data)
        digests[name] = digest.hexdigest()

    wide = {INITIAL_WINDOW_SIZE: MIB}
    async with a_proxy(engine, backend=wide) as house:
        client = await house.client(wide)
        call = await client.open(request_fields())
        served = await house.backend.request()
        await client.credit(None, MIB)
        await served.peer.credit(None, MIB)
        await served.headers(RESPONSE)
        await call.expect_headers()
        async with trio.open_nursery() as transfers:
            transfers.start_soon(collect, "up", served)
            transfers.start_soon(collect, "down", call)
            transfers.start_soon(call.body, up)
            transfers.start_soon(served.body, down)
        assert digests == {"up": hashlib.sha256(up).hexdigest(), "down": hashlib.sha256(down).hexdigest()}
        await call.data(b"", end=True)
        assert (await served.expect_data()).end_stream
        await served.headers(OK, end=True)
        assert (await call.answer()).status == Status.OK
        record = await house.record()
        assert (record.request_bytes, record.response_bytes) == (16 * MIB, 16 * MIB)


@trio_test
async def test_windows_that_open_byte_by_byte_lose_nothing(engine: Engine) -> None:
    body = bytes(n % 256 for n in range(300))
    async with a_proxy(engine) as house:
        client = await house.client({INITIAL_WINDOW_SIZE: 0})
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(body)
        await served.headers(OK, end=True)
        await call.expect_headers()
        got = b""
        for size in (1, 2, 3, 5, 50, 0x7FFF, 1):
            await client.credit(call, size)
            await client.ping()
        answer: Answer = await call.answer()
        got += answer.body
        assert got == body
        assert answer.status == Status.OK


@trio_test
async def test_a_window_that_shrinks_below_zero_only_pauses(engine: Engine) -> None:
    body = bytes(100_000)
    async with a_proxy(engine) as house, trio.open_nursery() as writers:
        client = await house.client()
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        writers.start_soon(served.body, body)
        await call.expect_headers()
        await call.read(INITIAL_WINDOW)
        await client.change_settings({INITIAL_WINDOW_SIZE: 0})
        await client.ping()
        await client.credit(None, 2 * INITIAL_WINDOW)
        await client.credit(call, INITIAL_WINDOW)
        await client.ping()
        await client.change_settings({INITIAL_WINDOW_SIZE: INITIAL_WINDOW})
        await call.read(len(body) - INITIAL_WINDOW)
        await served.headers(OK, end=True)
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_caller_who_asks_and_never_reads_is_read_no_further_and_loses_its_connection(
    engine: Engine,
) -> None:
    def director(_context: object, _method: str) -> Any:
        raise RpcError(Status.UNIMPLEMENTED, "no " * 20_000)

    async with a_proxy(
        engine, director=director, send_timeout_s=0.5, max_concurrent_streams=1_000_000
    ) as house:
        host, _, port = house.address.rpartition(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await trio.to_thread.run_sync(deaf.connect, (host, int(port)))
            deaf.settimeout(0)
            padded = [*request_fields("/a.B/C"), (b"x-padding", b"x" * 1000)]
            request = wire.headers(1, padded, end_stream=True)
            sent, flood = 0, PREFACE + wire.settings()
            for number in range(20_000):
                flood += request[:5] + (1 + 2 * number).to_bytes(4, "big") + request[9:]
                if len(flood) > 50_000:
                    sent += await _send(deaf, flood)
                    flood = b""
                if house.observer.connections_failed:
                    break
            await until(lambda: bool(house.observer.connections_failed))
            (error,) = house.observer.connections_failed
            assert error.error_code == ErrorCode.ENHANCE_YOUR_CALM
            assert "has taken nothing of what waits for it for 0.5 s (send_timeout_s)" in error.message
            assert sent < 2 * SOCKETS  # of 24 MB
            await until(lambda: house.server.open_connections == 0)
        while house.observer.unread:
            await house.record()


@trio_test
async def test_calls_that_were_given_up_count_until_an_upstream_that_does_not_read_has_taken_them(
    engine: Engine,
) -> None:
    large = (b"x-large", bytes(50_000).replace(b"\0", b"x"))
    calls = 20
    async with a_proxy(engine, pool={"ms": calls, "max_waiting": 0, "size": 1}) as house:
        client = await house.client()
        await client.request()
        served = await house.backend.request()
        await served.respond()
        served.peer.stop_reading()
        (conn,) = house.pool._targets[house.backend.address, None, None].record.with_room
        upstream = conn.connection
        assert upstream is not None
        given_up = 0
        while (left := calls - streams_of(house.pool)) > 0:
            assert given_up < 2 * SOCKETS // len(large[1])
            batch = [await client.open(request_fields("/a.B/C", large), end=True) for _ in range(left)]
            given_up += left
            while upstream.session.streams_opened <= given_up:
                await trio.lowlevel.checkpoint()
            for call in batch:
                await call.reset()
            await client.ping()
        refused = await client.request()
        assert (await refused.answer()).status == Status.RESOURCE_EXHAUSTED
        served.peer.go_on_reading()
        await until(lambda: streams_of(house.pool) == 0)
        call = await client.request()
        while (served := await house.backend.request()).request.get(b"x-large"):
            pass  # those that were given up
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_call_is_over_when_its_caller_has_all_whatever_the_upstream_reads(engine: Engine) -> None:
    wide = {INITIAL_WINDOW_SIZE: 2**30}
    async with a_proxy(engine, **SMALL, backend=wide) as house, trio.open_nursery() as writers:
        client = await house.client()
        call = await client.open(request_fields("/a.B/C"))
        served = await house.backend.request()
        await served.peer.credit(None, 2**30)
        await settled(served.peer)
        served.peer.stop_reading()
        writers.start_soon(call.body, bytes(SOCKETS + MIB))
        await call.blocked.wait()
        await served.respond(b"enough")
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).status == Status.OK
        assert streams_of(house.pool) == 1  # for the upstream it goes on
        served.peer.go_on_reading()
        writers.cancel_scope.cancel()


async def _send(sock: socket.socket, data: bytes) -> int:
    """Send, and wait for whoever does not read; answer how much went before the connection was gone."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < len(data):
            try:
                sent += sock.send(data[sent:])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
    return sent


@trio_test
async def test_what_is_kept_for_a_second_try_counts_until_the_upstream_answers(engine: Engine) -> None:
    buffered = current_memory_guard().buffered
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request(body=message(bytes(20_000)))
        served = await house.backend.request()
        await settled(client, served.peer)
        assert 15_000 < buffered.bytes < 21_000
        await served.headers(TRAILERS_ONLY, end=True)
        await call.answer()
        assert buffered.bytes == 0


@trio_test
async def test_little_is_kept_for_a_second_try_where_much_waits(engine: Engine) -> None:
    buffered = current_memory_guard().buffered
    async with a_proxy(engine, max_buffered_bytes=2**20) as house:
        client = await house.client()
        first = await client.request(body=message(b"first"))
        served = await house.backend.request()
        buffered.bytes += 600_000
        second = await client.request(body=message(bytes(20_000)))
        other = await house.backend.request()
        await settled(client, other.peer)
        assert buffered.bytes == 600_000
        buffered.bytes -= 600_000
        for each in (served, other):
            await each.headers(TRAILERS_ONLY, end=True)
        await first.answer()
        await second.answer()
