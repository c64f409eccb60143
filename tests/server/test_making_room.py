"""Who makes room when all places are taken: the choice alone, and the house with all its doors."""

import contextlib
import itertools

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConnectionLimit
from rawgrpc_proxy.net.connection import ConnectionState
from rawgrpc_proxy.server.making_room import AT_ONCE, FIRST_MOMENT_S, PAUSE_S, MakingRoom
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import GoAway, connected, request_fields
from tests.proxy.test_keepalive import seconds_pass

NOW = 1000.0


@attrs.define(eq=False)
class Occupant:
    """A connection, as far as it matters here."""

    opened_at: float = 0.0
    streams: dict[int, object] = attrs.field(factory=dict)
    state: ConnectionState = ConnectionState.OPEN


def all_of(*occupants: Occupant) -> dict[Occupant, None]:
    """In the order in which they came."""
    return dict.fromkeys(occupants)


BUSY: dict[int, object] = {1: "a call"}


def test_the_youngest_without_a_call_goes() -> None:
    oldest, older, busy = Occupant(1), Occupant(2), Occupant(3, BUSY)
    assert MakingRoom().choose(all_of(oldest, older, busy), {}, NOW) is older


def test_nobody_goes_who_has_a_call_or_goes_already_or_has_just_come() -> None:
    draining = Occupant(2, state=ConnectionState.DRAINING)
    newcomer = Occupant(NOW - FIRST_MOMENT_S + 0.01)
    connections = all_of(Occupant(1, BUSY), draining, newcomer)
    assert MakingRoom().choose(connections, {}, NOW) is None
    assert MakingRoom().choose(connections, {}, NOW + 0.02) is newcomer


def test_who_does_not_come_through_the_handshake_goes_first() -> None:
    room, idle = MakingRoom(), Occupant(1)
    handshakes = {"slow": NOW - 2, "slower than it seems": NOW - 1.5, "new": NOW - 0.5}
    assert room.choose(all_of(idle), handshakes, NOW) == "slow"
    assert room.choose(all_of(idle), handshakes, NOW) == "slower than it seems"
    assert room.choose(all_of(idle), handshakes, NOW) is idle
    assert room.leaving == 3
    room.gone("slow")
    room.gone(idle)
    assert room.leaving == 1


def test_a_place_is_not_free_while_a_call_has_crossed_goaway() -> None:
    room, idle = MakingRoom(), Occupant()
    room.choose(all_of(idle), {}, NOW)
    assert room.leaving == 1
    idle.streams[3] = "a call"
    assert room.leaving == 0


def test_few_leave_at_a_time_and_in_a_second() -> None:
    room, connections = MakingRoom(), all_of(*(Occupant(number / 100) for number in range(1000)))

    def one_goes(now: float) -> bool:
        leaver = room.choose(connections, {}, now)
        if leaver is not None:
            assert isinstance(leaver, Occupant)
            leaver.state = ConnectionState.DRAINING
        return leaver is not None

    first = list(itertools.takewhile(lambda _: one_goes(NOW), itertools.count()))
    assert len(first) == AT_ONCE
    assert not one_goes(NOW + 100)
    room = MakingRoom()
    gone = 0
    for step in range(1000):  # ten seconds, a try each hundredth
        gone += one_goes(NOW + step / 100)
        for each in connections:
            room.gone(each)
    assert gone == pytest.approx(AT_ONCE + 10 / PAUSE_S, abs=2)


def test_nobody_is_looked_for_again_at_once_where_nobody_was_found() -> None:
    class Counting(dict[int, object]):
        looks = 0

        def __bool__(self) -> bool:
            Counting.looks += 1
            return True

    room = MakingRoom()
    for number in range(1000):  # in a tenth of a second
        assert room.choose(all_of(Occupant(streams=Counting())), {}, NOW + number / 10_000) is None
    assert Counting.looks == 1


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3), st.sampled_from(ConnectionState))),
    st.lists(st.floats(0, 3)),
    st.lists(st.floats(0, 1), max_size=40),
)
def test_one_with_a_call_is_never_chosen_and_nobody_twice(
    occupants: list[tuple[int, float, ConnectionState]], handshakes: list[float], pauses: list[float]
) -> None:
    room = MakingRoom()
    connections = all_of(
        *(Occupant(opened, dict.fromkeys(range(calls)), state) for calls, opened, state in occupants)
    )
    begun = {f"handshake {number}": began for number, began in enumerate(sorted(handshakes))}
    now, chosen = 0.0, []
    for pause in pauses:
        now += pause
        leaver = room.choose(connections, begun, now)
        if isinstance(leaver, Occupant):
            assert not leaver.streams
            leaver.state = ConnectionState.DRAINING
        chosen += [leaver] if leaver is not None else []
    assert len(set(map(id, chosen))) == len(chosen) == room.leaving <= AT_ONCE


# --- the house ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


async def turned_away(house: House) -> None:
    """One more connects, and is closed without a word."""
    stream = await connected(house.address)
    with contextlib.suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""
    await stream.aclose()


@on_every_engine
@trio_test
async def test_the_youngest_idle_caller_makes_room_and_hears_goaway(engine: Engine, clock: MockClock) -> None:
    async with a_proxy(engine, max_connections=3) as house:
        old, idle, busy = [await house.client() for _ in range(3)]
        call = await busy.open(request_fields(), end=True)
        served = await house.backend.request()
        await seconds_pass(clock, 1.1)
        new = await house.client()
        assert await idle.expect_goaway() == GoAway(2**31 - 1, ErrorCode.NO_ERROR, b"")
        await idle.closed()
        await until(lambda: house.server.open_connections == 3)
        assert not any(peer.ended.is_set() for peer in (old, busy, new))
        [(limit, detail)] = house.observer.limits_reached
        assert limit == "max_connections"
        assert "all 3 places are taken" in detail
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert not house.observer.connections_failed
        assert not house.observer.accepts_failed


@on_every_engine
@trio_test
async def test_where_all_have_calls_the_next_one_is_turned_away(engine: Engine, clock: MockClock) -> None:
    async with a_proxy(engine, max_connections=2) as house:
        calls = [await (await house.client()).open(request_fields(), end=True) for _ in range(2)]
        served = [await house.backend.request() for _ in calls]
        await seconds_pass(clock, 2)
        for _ in range(3):
            await turned_away(house)
        assert [type(error) for error in house.observer.accepts_failed] == [ConnectionLimit] * 3
        for stream in served:
            await stream.respond()
        assert [(await call.answer()).status for call in calls] == [Status.OK] * 2


@on_every_engine
@trio_test
async def test_a_call_that_crosses_goaway_is_let_finish(engine: Engine, clock: MockClock) -> None:
    async with a_proxy(engine, max_connections=1) as house:
        idle = await house.client()
        idle.answers_pings = False
        await seconds_pass(clock, 1.1)
        await house.client()
        await idle.expect_goaway()
        call = await idle.open(request_fields(), end=True)
        served = await house.backend.request()
        await seconds_pass(clock, 10)
        await turned_away(house)  # the one that leaves has its place still
        await served.respond()
        assert (await call.answer()).status == Status.OK


@on_every_engine
@trio_test
async def test_a_flood_pushes_out_itself(engine: Engine, clock: MockClock) -> None:
    async with a_proxy(engine, max_connections=10) as house:
        old = [await house.client() for _ in range(5)]
        call = await old[0].open(request_fields(), end=True)
        served = await house.backend.request()
        flood = []
        for _ in range(6):
            flood += [await connected(house.address) for _ in range(10)]
            await seconds_pass(clock, 1.1)
            assert house.server.open_connections <= 10 + AT_ONCE
        assert not any(peer.ended.is_set() for peer in old)
        reasons = {why for _, why in house.observer.limits_reached}
        assert len(house.observer.limits_reached) > 10
        assert len(house.observer.accepts_failed) > 10
        assert len(reasons) == 1
        for stream in flood:
            await stream.aclose()
        await served.respond()
        assert (await call.answer()).status == Status.OK
