"""A call that provably was not processed is sent once more; any other is not."""

import itertools
import math
from collections.abc import Awaitable
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.timeout import parse_timeout
from rawgrpc_proxy.lab.faults.injector import Faults
from rawgrpc_proxy.lab.faults.pump import with_faults
from rawgrpc_proxy.net import poller
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.proxy.splice import REPLAY_BYTES
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import OK, RESPONSE, Headers, PeerStream, RawPeer, message, request_fields

pytestmark = on_every_engine

REFUSED_STREAM, CANCEL = 7, 8


@trio_test
async def test_a_refused_call_is_retried_once(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-n", b"1"), body=b"hello")
        first = await house.backend.request()
        await first.request_body()
        await first.reset(REFUSED_STREAM)
        second = await house.backend.request()
        assert second.peer is not first.peer
        assert second.request.fields == first.request.fields
        assert await second.request_body() == message(b"hello")
        await second.respond(b"at last")
        answer = await call.answer()
        assert answer.body == message(b"at last")
        assert answer.status == Status.OK
        record = await house.record()
        assert (record.status, record.request_messages, record.request_bytes) == (Status.OK, 1, 10)
        assert house.observer.unread == 0


@trio_test
async def test_a_call_that_is_sent_once_more_is_told_the_time_that_is_left_then(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"50S"))
        first = await house.backend.request()
        told = parse_timeout(first.request.get(b"grpc-timeout") or b"")
        await trio.sleep(0.05)  # time is what it is about
        await first.reset(REFUSED_STREAM)
        second = await house.backend.request()
        assert parse_timeout(second.request.get(b"grpc-timeout") or b"") <= told - 0.05
        await second.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_where_there_can_be_no_other_connection_a_refused_call_is_retried_on_the_same(
    engine: Engine,
) -> None:
    async with a_proxy(engine, pool={"size": 1, "max_waiting": 5}) as house:
        client = await house.client()
        call = await client.request()
        first = await house.backend.request()
        await first.reset(REFUSED_STREAM)
        second = await house.backend.request()
        assert second.peer is first.peer
        await second.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_call_refused_twice_is_unavailable(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        for _ in range(2):
            await (await house.backend.request()).reset(REFUSED_STREAM)
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.UNAVAILABLE
        assert house.backend.no_request_came()
        assert (await house.record()).status == Status.UNAVAILABLE


@trio_test
async def test_goaway_lets_older_streams_finish_and_newer_ones_are_retried_elsewhere(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        older = await client.open(request_fields("/a.B/Older"))
        older_served = await house.backend.request()
        newer = await client.request("/a.B/Newer")
        newer_served = await house.backend.request()
        await older_served.peer.goaway(older_served.id)

        retried = await house.backend.request()
        assert retried.peer is not older_served.peer
        assert retried.request.fields == newer_served.request.fields
        await retried.respond(b"newer")
        assert (await newer.answer()).body == message(b"newer")

        await older.data(message(b"more"), end=True)
        assert await older_served.request_body() == message(b"more")
        await older_served.respond(b"older")
        assert (await older.answer()).body == message(b"older")
        # With its last stream done, the old connection goes.
        await older_served.peer.closed()

        third = await client.request("/a.B/Third")
        third_served = await house.backend.request()
        assert third_served.peer is retried.peer
        await third_served.respond()
        assert (await third.answer()).status == Status.OK


@trio_test
async def test_two_goaways_end_a_connection_gracefully(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.peer.goaway(2**31 - 1)
        await served.peer.ping()
        other = await client.request()
        other_served = await house.backend.request()
        assert other_served.peer is not served.peer
        await served.peer.goaway(served.id)
        await served.respond(b"one")
        await other_served.respond(b"two")
        assert (await call.answer()).body == message(b"one")
        assert (await other.answer()).body == message(b"two")
        await served.peer.closed()


@trio_test
async def test_goaway_on_an_idle_connection_closes_it(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.respond()
        await call.answer()
        await served.peer.goaway(served.id)
        await served.peer.closed()
        call = await client.request()
        again = await house.backend.request()
        assert again.peer is not served.peer
        await again.respond()
        assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("size", [0, 1, REPLAY_BYTES - 5])
@trio_test
async def test_the_request_is_replayed_exactly(engine: Engine, size: int) -> None:
    body = message(bytes(n % 251 for n in range(size)))
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        first = await house.backend.request()
        await call.body(body, end=True)
        assert await first.request_body() == body
        await first.reset(REFUSED_STREAM)
        second = await house.backend.request()
        assert await second.request_body() == body
        await second.respond(b"x")
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).request_bytes == len(body)


@pytest.mark.parametrize("by_headers", [True, False])
@trio_test
async def test_an_empty_request_is_replayed_with_its_end_where_it_was(
    engine: Engine, by_headers: bool
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields(), end=by_headers)
        if not by_headers:
            await call.data(b"", end=True)
        first = await house.backend.request()
        frames = ["HEADERS END_STREAM"] if by_headers else ["HEADERS", "DATA END_STREAM"]
        assert await first.request_frames() == frames
        await first.reset(REFUSED_STREAM)
        second = await house.backend.request()
        assert await second.request_frames() == frames
        await second.respond()
        assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("when", ["before", "between", "after"])
@trio_test
async def test_request_trailers_are_replayed(engine: Engine, when: str) -> None:
    async with a_proxy(engine, backend={3: 1}, pool={"size": 1, "max_waiting": 10}) as house:
        client = await house.client()
        call = client.new_stream()
        trailers = [(b"x-end", b"1")]
        frames = client.header_frames(call.id, request_fields())
        if when == "before":
            frames += client.header_frames(call.id, trailers, end=True)
        await client.send_bytes(frames)
        first = await house.backend.request()
        if when == "before":
            await first.next()
        if when == "between":
            # The connection goes, and the next is not there before the trailers are.
            house.backend.prepare = lambda peer: None
            await first.peer.goaway(0)
            await call.headers(trailers, end=True)
        else:
            await first.reset(REFUSED_STREAM)
        second = await house.backend.request()
        if when == "after":
            await call.headers(trailers, end=True)
        assert await second.next() == Headers(trailers, end_stream=True)
        await second.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_request_that_grows_past_the_replay_buffer_while_it_waits_for_its_retry_arrives_whole(
    engine: Engine,
) -> None:
    part = bytes(range(256)) * 160  # 40 KiB: one fits into what is kept for a retry, two do not
    async with a_proxy(engine) as house:
        gate = trio.Event()
        client = await house.client()
        call = await client.open(request_fields())
        first = await house.backend.request()
        await call.body(part)
        await first.read(len(part))

        async def late(stream: trio.SocketStream) -> None:
            await gate.wait()
            peer = RawPeer(stream, client_side=False, on_request=house.backend._requests_in.send_nowait)
            await peer.run()

        house.backend.raw_script = late
        await first.peer.goaway(0)
        await first.peer.closed()
        await call.body(part, end=True)
        await client.ping()
        gate.set()
        second = await house.backend.request()
        assert await second.request_body() == part + part
        await second.respond()
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).request_bytes == 2 * len(part)


@trio_test
async def test_a_caller_who_gives_up_while_the_retry_waits_is_not_retried(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        dialled, gate = trio.Event(), trio.Event()

        async def late(stream: trio.SocketStream) -> None:
            dialled.set()
            await gate.wait()
            peer = RawPeer(stream, client_side=False, on_request=house.backend._requests_in.send_nowait)
            await peer.run()

        client = await house.client()
        call = await client.open(request_fields())
        first = await house.backend.request()
        house.backend.raw_script = late
        await first.peer.goaway(0)
        await dialled.wait()
        await call.reset(CANCEL)
        record = await house.record()
        assert (record.status, record.origin) == (Status.CANCELLED, "downstream")
        gate.set()
        other = await client.request("/a.B/Other")
        served = await house.backend.request()
        assert served.request.get(b":path") == b"/a.B/Other"
        await served.respond()
        assert (await other.answer()).status == Status.OK


@trio_test
async def test_a_retry_that_is_given_up_gives_back_its_place_where_it_was_refused(engine: Engine) -> None:
    async with a_proxy(engine, pool={"ms": 1}) as house:
        dialled = trio.Event()

        async def says_nothing(_stream: trio.SocketStream) -> None:
            dialled.set()
            await trio.sleep_forever()

        client = await house.client()
        call = await client.request()
        first = await house.backend.request()
        house.backend.raw_script = says_nothing
        await first.reset(REFUSED_STREAM)
        await dialled.wait()
        await call.reset(CANCEL)
        assert (await house.record()).status == Status.CANCELLED
        other = await client.request()
        served = await house.backend.request()
        assert served.peer is first.peer
        await served.respond()
        assert (await other.answer()).status == Status.OK


@trio_test
async def test_a_retry_that_finds_no_upstream_is_unavailable(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        first = await house.backend.request()
        await house.backend.stop_listening()
        await first.peer.goaway(0)
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert answer.message is not None
        assert b"Connection refused" in answer.message
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "proxy")


@trio_test
async def test_nothing_is_retried_after_the_response_headers(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.reset(REFUSED_STREAM)
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "HEADERS END_STREAM"]
        assert answer.status == Status.UNAVAILABLE
        await house.record()
        assert house.backend.no_request_came()


@trio_test
async def test_nothing_is_retried_past_the_replay_buffer(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await call.body(bytes(REPLAY_BYTES + 1))
        await served.read(REPLAY_BYTES + 1)
        await served.reset(REFUSED_STREAM)
        assert (await call.answer()).status == Status.UNAVAILABLE
        await house.record()
        assert house.backend.no_request_came()


@trio_test
async def test_a_call_cut_off_by_goaway_after_its_headers_is_unavailable(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await call.expect_headers()
        await served.peer.goaway(0)
        assert (await call.answer()).status == Status.UNAVAILABLE


@trio_test
async def test_a_burst_of_calls_survives_connections_that_end_gracefully(engine: Engine) -> None:
    done = 0

    async def one_call(client: RawPeer) -> None:
        nonlocal done
        for _ in range(10):
            answer = await (await client.request()).answer()
            assert answer.status == Status.OK, answer
            done += 1

    async with a_proxy(engine) as house, trio.open_nursery() as backends:

        async def serve() -> None:
            for count in itertools.count():
                served = await house.backend._requests.receive()
                if count % 40 == 3:
                    await served.peer.goaway(served.id)
                if served.id <= served.peer.last_taken_id:
                    backends.start_soon(served.respond)

        backends.start_soon(serve)
        client = await house.client()
        async with trio.open_nursery() as calls:
            for _ in range(10):
                calls.start_soon(one_call, client)
        await until(lambda: house.server.open_calls == 0)
        backends.cancel_scope.cancel()
    assert done == 100


@trio_test
@pytest.mark.parametrize(
    ("ends", "pool"),
    [
        ("before", {}),
        ("after", {}),
        ("by a broken rule, before", {}),
        ("before", {"wrap": with_faults(Faults())}),
        ("after", {"wrap": with_faults(Faults())}),
    ],
    ids=["before", "after", "broken-rule", "before-with-faults", "after-with-faults"],
)
async def test_calls_of_the_moment_in_which_the_upstream_ends_go_elsewhere(
    engine: Engine, ends: str, pool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "_ROUND_S", math.inf)  # on a busy machine, too, it is one round
    houses: list[House] = []

    def plain(context: CallContext, _method: str) -> Direction | Awaitable[Direction]:
        (house,) = houses
        conn = house.pool.get_conn_nowait(house.backend.address)
        return (context, conn) if conn is not None else wait(house, context)

    async def wait(house: House, context: CallContext) -> Direction:
        return context, await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=plain, pool=pool) as house, trio.open_nursery() as backends:
        houses.append(house)
        backends.start_soon(house.backend.answer_all, PeerStream.respond)
        clients = [await house.client() for _ in range(8)]
        for _ in range(5):
            # A connection that is used, or a call would have to wait for one, and be safe.
            assert (await (await clients[0].request()).answer()).status == Status.OK
            await trio.testing.wait_all_tasks_blocked()
            calls = [client.new_stream() for client in clients]
            # What follows happens while the proxy does nothing, so it reads all of it in one round.
            upstream = house.backend.peers[-1]
            if ends == "before":
                upstream.end_at_once()
            elif ends == "by a broken rule, before":
                upstream.send_at_once(b"\0\0\1\0\0\0\0\0\x63\0")  # DATA on stream 99, which nobody opened
            for client, call in zip(clients, calls, strict=True):
                client.send_at_once(client.header_frames(call.id, request_fields(), end=True))
            if ends == "after":
                upstream.end_at_once()
            assert [(await call.answer()).status for call in calls] == [Status.OK] * len(calls)
        backends.cancel_scope.cancel()


@trio_test
async def test_headers_of_a_retried_response_come_from_the_second_upstream_only(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).reset(REFUSED_STREAM)
        second = await house.backend.request()
        await second.headers([*RESPONSE, (b"x-from", b"second")])
        await second.headers(OK, end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.get_all(b"x-from") == [b"second"]
