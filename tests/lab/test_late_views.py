"""Who looks at a connection that is open already sees what comes as if he had been there from the start."""

import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import attrs
import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallPolicy, RetryPolicy, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.http2.position import Position
from rawgrpc_proxy.lab.events import (
    Event,
    FrameSeen,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    MessageSeen,
    Sender,
    StreamBegun,
    StreamEnded,
    Unreadable,
)
from rawgrpc_proxy.lab.late_views import LateViews
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.late_taps import LateTap, Watchable, current_late_taps
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.methods import stream_stream
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.policies import UNAVAILABLE, with_policy
from tests.proxy.raw_peers import OK, RESPONSE, Field, PeerStream, message, request_fields

DOWN, UP = Side.DOWNSTREAM, Side.UPSTREAM
CLIENT, SERVER = Sender.CLIENT, Sender.SERVER
Direction = tuple[Side, Sender]
E = TypeVar("E", bound=Event)


@contextmanager
def looking_on(tap: LateTap) -> Iterator[None]:
    """Attach it for a block."""
    for _ in current_late_taps().attach(tap):
        pass
    try:
        yield
    finally:
        current_late_taps().detach(tap)


class Told(list[Event]):
    """What a view has told, frames with copies of what they had."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, FrameSeen):
            event = attrs.evolve(event, payload=bytes(event.payload))
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self if isinstance(event, kind)]

    def said(self, side: Side, sender: Sender) -> list[object]:
        """What this end of the connections of a side has said, in order, as far as it was there to be seen."""
        said: list[object] = []
        for event in self:
            if event.link.side is not side or getattr(event, "sender", None) is not sender:
                continue
            match event:
                case FrameSeen():
                    said.append((event.type, event.flags, event.stream_id, event.payload))
                case HeadersSeen(block_bytes=size) if size:
                    said.append((event.stream_id, event.kind, list(event.headers)))
        return said

    def messages_of(self, side: Side, sender: Sender) -> dict[int, list[object]]:
        """The same of messages, by stream."""
        streams: dict[int, list[object]] = {}
        for event in self:
            if isinstance(event, MessageSeen) and (event.link.side, event.sender) == (side, sender):
                about = event.index, event.flag, event.length, event.payload, event.stream.method
                streams.setdefault(event.stream.id, []).append(about)
        return streams

    def messages(self, side: Side = DOWN) -> list[tuple[Sender, int, bytes | None]]:
        return [
            (event.sender, event.index, event.payload)
            for event in self
            if isinstance(event, MessageSeen) and event.link.side is side
        ]


DIRECTIONS: Sequence[Direction] = [(side, sender) for side in (DOWN, UP) for sender in (CLIENT, SERVER)]


async def begun(house: House, *extra: Field) -> tuple[PeerStream, PeerStream]:
    """A call of which one message has passed in each direction."""
    client = house.clients[0] if house.clients else await house.client()
    call = await client.open(request_fields("/a.B/Chat", *extra))
    await call.data(message(b"one"))
    served = await house.backend.request()
    await served.headers(RESPONSE)
    await served.data(message(b"eins"))
    await call.expect_headers()
    assert await call.read(9) == message(b"eins")
    return call, served


@on_every_engine
@trio_test
async def test_a_connection_with_many_calls_is_joined_in_steps_and_a_call_that_goes_on_is_told_first(
    engine: Engine,
) -> None:
    count, told = 200, Told()
    async with a_proxy(engine, pool={"ms": 1000}, max_concurrent_streams=1000) as house:
        calls = [await begun(house) for _ in range(count)]
        views = LateViews(told, payload_bytes=100)
        steps = current_late_taps().attach(views)
        next(steps)
        at_once = len(told.of(StreamBegun))
        assert at_once <= 50
        last, served = calls[-1]
        assert last.id not in {event.stream.id for event in told.of(StreamBegun)}
        await last.data(message(b"two"))
        assert await served.read(16) == message(b"one") + message(b"two")
        await until(lambda: bool(told.messages(DOWN)))
        await served.headers(OK, end=True)
        await last.data(b"", end=True)
        assert (await last.answer()).status == Status.OK
        for _ in steps:
            step = len(told.of(StreamBegun)) - at_once
            assert step <= 51
            at_once += step
        current_late_taps().detach(views)
        for call, _ in calls[:-1]:
            await call.reset(8)
    mine = [event for event in told if event.link.side is DOWN and _stream_of(event) == last.id]
    assert [type(event) for event in mine[:2]] == [StreamBegun, HeadersSeen]
    assert sum(isinstance(event, StreamEnded) for event in mine) == 1
    assert told.messages(DOWN) == [(CLIENT, 1, b"two")]
    begun_there = [event.stream.id for event in told.of(StreamBegun) if event.link.side is DOWN]
    assert sorted(begun_there) == sorted(call.id for call, _ in calls)
    assert len([event for event in told.of(StreamBegun) if event.link.side is UP]) == count - 1


def _stream_of(event: Event) -> int | None:
    """Which it is of; frames come before what they mean, but a call that was open comes before its frames."""
    stream = getattr(event, "stream", None)
    return getattr(event, "stream_id", None) if stream is None else int(stream.id)


@on_every_engine
@trio_test
async def test_the_end_of_a_connection_that_is_half_joined_tells_of_all_its_calls(engine: Engine) -> None:
    told = Told()
    async with a_proxy(engine, pool={"ms": 1000}, max_concurrent_streams=1000) as house:
        calls = [await begun(house) for _ in range(100)]
        views = LateViews(told, sides=[DOWN])
        steps = current_late_taps().attach(views)
        next(steps)
        assert len(told.of(StreamBegun)) < 100
        await house.clients[0].aclose()
        await until(lambda: len(told.of(LinkClosed)) == 1)
        assert {event.stream.id for event in told.of(StreamEnded)} == {call.id for call, _ in calls}
        assert len(told.of(StreamBegun)) == 100
        for _ in steps:
            pass
        current_late_taps().detach(views)


@on_every_engine
@trio_test
async def test_messages_of_a_call_that_is_open_go_on_with_their_numbers(engine: Engine) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        call, served = await begun(house, (b"x-user", b"alice"))
        with looking_on(LateViews(told, payload_bytes=100)):
            await call.data(message(b"two"))
            assert await served.read(16) == message(b"one") + message(b"two")
            await served.data(message(b"zwei"))
            assert await call.read(9) == message(b"zwei")
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
            await call.data(b"", end=True)
            await until(lambda: len(told.of(StreamEnded)) == 2)
    assert told.messages(DOWN) == told.messages(UP) == [(CLIENT, 1, b"two"), (SERVER, 1, b"zwei")]
    requests = [event for event in told.of(HeadersSeen) if not event.block_bytes]
    assert [event.link.side for event in requests] == [DOWN, UP]
    for request in requests:
        assert request.stream is not None
        assert (request.stream.joined, request.stream.method) == (True, "/a.B/Chat")
        assert (b"x-user", b"alice") in request.headers
    for ended in told.of(StreamEnded):
        assert ended.stream.grpc_status == 0
        assert (ended.stream.request.messages, ended.stream.response.messages) == (2, 2)
        assert (ended.stream.request.data_bytes, ended.stream.response.data_bytes) == (16, 18)
    assert not told.of(Unreadable)
    assert not told.of(LinkClosed)  # whoever has gone is told nothing more


@on_every_engine
@trio_test
async def test_of_a_message_that_passes_just_then_nothing_is_told_but_of_the_next(engine: Engine) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        call, served = await begun(house)
        whole = message(b"x" * 1000)
        await call.data(whole[:100])
        assert await served.read(108) == message(b"one") + whole[:100]
        with looking_on(LateViews(told, payload_bytes=100)):
            await call.data(whole[100:] + message(b"next")[:2])
            await call.data(message(b"next")[2:], end=True)
            await served.request_body()
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
    assert told.messages(DOWN) == told.messages(UP) == [(CLIENT, 2, b"next")]


@on_every_engine
@pytest.mark.parametrize("seed", range(4))
@trio_test
async def test_what_is_told_is_what_one_has_seen_who_was_there_from_the_start(
    engine: Engine, seed: int
) -> None:
    """Header tables, frames that are cut anywhere, windows that are full: whenever it begins."""
    rng = random.Random(seed)
    first, lates = Told(), [Told() for _ in range(6)]
    tap = Views(first, payload_bytes=1 << 20)
    begins: list[dict[Direction, int]] = []
    whole: list[dict[Direction, dict[int, list[object]]]] = []
    async with a_proxy(engine, tap=tap, pool={"tap": tap}, max_output_bytes=20_000) as house:
        client = await house.client()
        calls: list[tuple[PeerStream, PeerStream]] = []
        unread: dict[PeerStream, int] = {}
        users = [(b"x-user", b"%03d" % number * rng.randrange(1, 30)) for number in range(12)]
        taps = current_late_taps()
        for late in lates:
            for _ in range(rng.randrange(1, 12)):
                if not calls or rng.random() < 0.5:
                    fields = rng.sample(users, rng.randrange(4))
                    call = await client.open(request_fields(rng.choice(["/a.B/C", "/a.B/D"]), *fields))
                    served = await house.backend.request()
                    await served.headers([*RESPONSE, *rng.sample(users, rng.randrange(3))])
                    await call.expect_headers()
                    calls.append((call, served))
                    continue
                call, served = rng.choice(calls)
                sender, receiver = (call, served) if rng.random() < 0.5 else (served, call)
                data = message(rng.randbytes(rng.choice([0, 5, 300, 30_000])))
                cut = rng.randrange(len(data))
                await sender.body(data[:cut])
                unread[receiver] = unread.get(receiver, 0) + cut
                if rng.random() < 0.5:  # else they are wherever they are just then
                    await receiver.read(unread.pop(receiver))
                await sender.body(data[cut:])
                unread[receiver] = unread.get(receiver, 0) + len(data) - cut
            begins.append({direction: len(first.said(*direction)) for direction in DIRECTIONS})
            whole.append({direction: first.messages_of(*direction) for direction in DIRECTIONS})
            for _ in taps.attach(LateViews(late, payload_bytes=1 << 20)):
                pass
        for call, served in calls:
            await call.data(b"", end=True)
            await served.headers([*OK, rng.choice(users)], end=True)
        await until(
            lambda: sum(isinstance(each, StreamEnded) for each in first) == 2 * len(calls), "calls are open"
        )
    skipped = 0
    for begin, before, late in zip(begins, whole, lates, strict=True):
        assert not late.of(Unreadable)
        for direction in DIRECTIONS:
            seen, all_of_it = late.said(*direction), first.said(*direction)
            # What was in the output just then is told to the one, and not to the other.
            skipped += len(all_of_it) - begin[direction] - len(seen)
            assert seen == all_of_it[len(all_of_it) - len(seen) :], direction
            late_messages = late.messages_of(*direction)
            for stream, every in first.messages_of(*direction).items():
                messages = late_messages.get(stream, [])
                assert messages == every[len(every) - len(messages) :]
                if direction in ((DOWN, CLIENT), (UP, SERVER)):  # else some may have waited to be written
                    assert len(every) - len(messages) <= len(before[direction].get(stream, [])) + 1
    assert 0 <= skipped < 40


@on_every_engine
@pytest.mark.parametrize("cut", [1, 3, 4, 5, 8])
@trio_test
async def test_it_may_begin_in_the_middle_of_a_prefix(engine: Engine, cut: int) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        call, served = await begun(house)
        whole = message(b"passes")
        await call.data(whole[:cut])
        assert await served.read(8 + cut) == message(b"one") + whole[:cut]
        with looking_on(LateViews(told, payload_bytes=100)):
            await call.data(whole[cut:] + message(b"next"), end=True)
            await served.request_body()
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
    assert told.messages(DOWN) == told.messages(UP) == [(CLIENT, 2, b"next")]


@on_every_engine
@pytest.mark.parametrize("cut", [1, 8, 9, 12])
@trio_test
async def test_it_may_begin_in_the_middle_of_a_frame(engine: Engine, cut: int) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        call, served = await begun(house)
        client = house.clients[0]
        frame = client.data_frame(call.id, message(b"two"))
        read = await read_by(house, lambda: client.send_bytes(frame[:cut]))
        assert read == cut
        with looking_on(LateViews(told, payload_bytes=100)):
            await client.send_bytes(frame[cut:])
            assert await served.read(16) == message(b"one") + message(b"two")
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
            await call.data(b"", end=True)
    assert told.messages(DOWN) == [(CLIENT, 1, b"two")]


async def read_by(house: House, act: Callable[[], Awaitable[None]]) -> int:
    """Do this; answer how much of it the proxy has read by then, and kept."""
    await act()
    connection = await a_connection(house.server)
    await until(lambda: bool(connection.session.position().unread))
    return len(connection.session.position().unread)


@on_every_engine
@trio_test
async def test_it_may_begin_in_the_middle_of_a_header_block(engine: Engine) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        client = await house.client()
        await client.request()
        await (await house.backend.request()).respond()
        frame = client.header_frames(3, request_fields("/a.B/Cut", (b"x-user", b"alice")), end=True)
        payload = frame[9:]
        client.new_stream()
        call = client.streams[3]
        await client.send_bytes(len(payload[:20]).to_bytes(3) + b"\x01\x01" + (3).to_bytes(4) + payload[:20])
        connection = await a_connection(house.server)
        await until(lambda: connection.session.position().block is not None)
        with looking_on(LateViews(told, sides=[DOWN])):
            await client.send_bytes(
                len(payload[20:]).to_bytes(3) + b"\x09\x04" + (3).to_bytes(4) + payload[20:]
            )
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
    [begun_then] = told.of(StreamBegun)
    assert (begun_then.stream.method, begun_then.stream.request.closed) == ("/a.B/Cut", True)
    [request, *_] = told.of(HeadersSeen)
    assert (b"x-user", b"alice") in request.headers


@on_every_engine
@trio_test
async def test_messages_that_wait_for_a_window_are_counted_and_not_told(engine: Engine) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        client = await house.client()
        client.credits = False
        call = await client.open(request_fields(), end=True)
        served = await house.backend.request()
        await served.headers(RESPONSE)
        connection = await a_connection(house.server)
        sent = 0
        while not any(stream.waiting_bytes for stream in connection.session.position().streams):
            await served.body(message(bytes(9995)))
            sent += 1
            await trio.testing.wait_all_tasks_blocked(0.005)
        with looking_on(LateViews(told, payload_bytes=100, sides=[DOWN])):
            await client.credit_everything()
            client.credits = True
            await served.body(message(b"the last"))
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
            await until(lambda: bool(told.of(StreamEnded)))
    assert told.messages() == [(SERVER, sent, b"the last")]
    [ended] = told.of(StreamEnded)
    assert ended.stream.response.data_bytes == sent * 10_000 + 13


@on_every_engine
@trio_test
async def test_what_comes_late_on_a_stream_that_is_over_begins_no_call(engine: Engine) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        await (await house.backend.request()).reset()
        await call.answer()
        await until(lambda: house.server.open_calls == 0)
        with looking_on(LateViews(told, sides=[DOWN])):
            await call.headers([(b"x-late", b"1")], end=True)  # has crossed the reset
            await client.ping()
    assert not told.of(StreamBegun)
    assert [event.stream for event in told.of(HeadersSeen)] == [None]


@on_every_engine
@trio_test
async def test_what_waits_for_a_full_socket_is_left_out_and_what_comes_behind_it_is_not(
    engine: Engine,
) -> None:
    first, late = Told(), Told()
    async with a_proxy(engine, tap=Views(first, payload_bytes=100)) as house:
        client = await house.client({4: 1 << 24})
        await client.credit(None, 1 << 24)
        call = await client.open(request_fields(), end=True)
        served = await house.backend.request()
        await served.headers(RESPONSE)
        client.stop_reading()
        sent = 0
        connection = await a_connection(house.server)
        while not connection.socket_is_full:
            await served.body(message(b"%09d" % sent + bytes(40_000)))
            sent += 1
            await trio.testing.wait_all_tasks_blocked(0.005)
        await served.body(message(b"last but one"))
        await trio.testing.wait_all_tasks_blocked(0.005)
        with looking_on(LateViews(late, payload_bytes=100)):
            client.go_on_reading()
            await served.body(message(b"the last"))
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
            await until(lambda: bool(late.of(StreamEnded)))
    assert not late.of(Unreadable)
    said = late.said(DOWN, SERVER)
    assert said == first.said(DOWN, SERVER)[-len(said) :]
    assert late.messages()[-1:] == [(SERVER, sent + 1, b"the last")]


async def a_connection(server: Server) -> Connection:
    await until(lambda: bool(server._connections))
    [connection] = server._connections
    return connection


@on_every_engine
@trio_test
async def test_connections_that_come_and_go_while_one_looks_are_told_from_their_first_frame(
    engine: Engine,
) -> None:
    told = Told()
    async with a_proxy(engine) as house:
        with looking_on(LateViews(told)):
            client = await house.client()
            call = await client.request()
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
            await client.aclose()
            await until(lambda: len(told.of(LinkClosed)) == 1)
    opened = told.of(LinkOpened)
    assert [(event.link.side, event.joined) for event in opened] == [
        (DOWN, False),
        (UP, False),
    ]
    begun = [event.stream for event in told.of(StreamBegun)]
    assert [stream.joined for stream in begun] == [False, False]
    down, up = [event.link.number for event in opened]
    assert down != up
    assert [stream.call for stream in begun] == [f"{down}.1"] * 2


@on_every_engine
@trio_test
async def test_all_attempts_of_a_call_are_told_as_that_call(engine: Engine) -> None:
    told = Told()
    policy = CallPolicy(retry=RetryPolicy(initial_backoff_s=0.001))
    async with with_policy(engine, policy) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        with looking_on(LateViews(told)):  # of the first attempt it has seen no more than the end
            await served.headers([*RESPONSE, *UNAVAILABLE], end=True)
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
            await until(lambda: len(told.of(StreamEnded)) == 3)
    attempts = [event.stream for event in told.of(StreamBegun)]
    [down] = {event.link.number for event in told if event.link.side is DOWN}
    assert [(stream.id, stream.call, stream.joined) for stream in attempts] == [
        (1, f"{down}.1", True),
        (1, f"{down}.1", True),
        (3, f"{down}.1", False),
    ]


@on_every_engine
@trio_test
async def test_where_a_call_is_not_passed_on_its_messages_are_said_to_be_unknown(engine: Engine) -> None:
    async def echo(requests: AsyncIterator[bytes], _call: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    def configure(server: Server, _director: object) -> None:
        server.add_method("/own.S/Echo", stream_stream(echo, bytes))

    told = Told()
    async with a_proxy(engine, configure=configure, codec=identity_codec()) as house:
        client = await house.client()
        call = await client.open(request_fields("/own.S/Echo"))
        await call.data(message(b"x"))
        await call.expect_headers()
        with looking_on(LateViews(told, payload_bytes=10)):
            await call.data(message(b"y"), end=True)
            assert (await call.answer()).status == Status.OK
            await until(lambda: len(told.of(StreamEnded)) == 1)
    assert told.messages() == []
    unknown = told.of(Unreadable)
    assert [(event.sender, event.what, event.stream_id) for event in unknown] == [
        (CLIENT, "messages", 1),
        (SERVER, "messages", 1),
    ]


@on_every_engine
@trio_test
async def test_a_late_tap_that_raises_is_reported_once_and_the_call_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: reported.append(str(raised.exc_value)))

    def broken(event: Event) -> None:
        if isinstance(event, MessageSeen):
            raise OSError("the disk is full")

    told = Told()
    async with a_proxy(engine) as house:
        call, served = await begun(house)
        with looking_on(LateViews(broken, sides=[DOWN])), looking_on(LateViews(told, payload_bytes=9)):
            for text in (b"two", b"three"):
                await call.data(message(text))
                await served.read(len(text) + 5 + (8 if text == b"two" else 0))
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
            await call.data(b"", end=True)
    assert reported == ["the disk is full"]
    assert told.messages() == [(CLIENT, 1, b"two"), (CLIENT, 2, b"three")]


def seen(connection: Connection) -> bool:
    onlookers = {connection._onlooker, connection._writer.onlooker}
    assert len(onlookers) == 1
    return onlookers != {None}


@on_every_engine
@trio_test
async def test_when_nobody_looks_any_more_connections_tell_nobody(engine: Engine) -> None:
    class Nobody:
        def join(self, link: Link, connection: Watchable, position: Position | None) -> LinkTap | None:
            return None

    async with a_proxy(engine) as house:
        call, served = await begun(house)
        connection = await a_connection(house.server)
        with looking_on(Nobody()):
            assert not seen(connection)
        one, two = LateViews(Told()), LateViews(Told())
        with looking_on(one):
            with looking_on(two):
                pass
            assert seen(connection)
        assert not seen(connection)
        await served.headers(OK, end=True)
        await call.answer()
        await call.data(b"", end=True)
