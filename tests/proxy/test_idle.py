"""A call of which nothing passes for too long, where that is forbidden: when it ends, and how."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import (
    Call,
    CallContext,
    CallPolicy,
    ConfigError,
    HedgingPolicy,
    RetryPolicy,
    Server,
    Status,
    StreamDirector,
    transparent_handler,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.proxy.forwarding import Forwarding
from rawgrpc_proxy.proxy.idle import IdleWatch
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import INITIAL_WINDOW_SIZE, OK, RESPONSE, PeerStream, message, request_fields

IDLE_S = 8.0


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


async def seconds_pass(clock: MockClock, seconds: float) -> None:
    """So much time, in steps, and all that comes of it on the sockets."""
    while seconds > 0:
        clock.jump(min(seconds, 0.5))
        seconds -= 0.5
        await trio.testing.wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def an_impatient_proxy(
    engine: Engine,
    *,
    by_a_handler: bool = False,
    retry: RetryPolicy | None = None,
    hedging: HedgingPolicy | None = None,
    backend: dict[int, int] | None = None,
) -> AsyncIterator[House]:
    policy = CallPolicy(idle_timeout_s=IDLE_S, retry=retry, hedging=hedging)
    houses: list[House] = []

    def director(context: CallContext, _method: str) -> Direction:
        [house] = houses
        return context.with_policy(policy), house.pool.target(house.backend.address)

    def wrapped(server: Server, _director: StreamDirector) -> None:
        forward = transparent_handler(director)

        async def handler(call: Call) -> None:
            await forward(call)

        server.add_handler("/a.B/C", handler)

    async with a_proxy(
        engine,
        director=director,
        configure=wrapped if by_a_handler else lambda _server, _director: None,
        backend=backend,
        downstream_keepalive_s=math.inf,
        upstream_keepalive_s=math.inf,
    ) as house:
        houses.append(house)
        await house.client()
        yield house


async def begun(house: House) -> tuple[PeerStream, PeerStream]:
    call = await house.clients[0].open(request_fields())
    return call, await house.backend.request()


@on_every_engine
@pytest.mark.parametrize("by_a_handler", [False, True])
@pytest.mark.parametrize("headers", [False, True])
@trio_test
async def test_a_call_that_is_idle_for_too_long_ends_on_both_sides_and_says_why(
    engine: Engine, by_a_handler: bool, headers: bool, clock: MockClock
) -> None:
    async with an_impatient_proxy(engine, by_a_handler=by_a_handler) as house:
        call, served = await begun(house)
        if headers:
            await served.headers(RESPONSE)
            await call.expect_headers()
        await seconds_pass(clock, 7.6)
        assert house.server.open_calls == 1
        await seconds_pass(clock, 2.8)
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert answer.message == b"nothing of the call has passed for 8 s, either way (idle_timeout)"
        assert await served.expect_reset() == ErrorCode.CANCEL
        record = await house.record()
        assert (record.status, record.origin, record.cause) == (Status.UNAVAILABLE, "proxy", "idle_timeout")


@on_every_engine
@trio_test
async def test_whatever_passes_either_way_is_a_reason_to_go_on(engine: Engine, clock: MockClock) -> None:
    async with an_impatient_proxy(engine) as house:
        call, served = await begun(house)
        await seconds_pass(clock, 7.2)
        await call.data(b"x")
        await served.expect_data()
        await seconds_pass(clock, 7.2)
        await served.headers(RESPONSE)
        await call.expect_headers()
        await seconds_pass(clock, 7.2)
        await served.data(message(b"one"))
        await call.expect_data()
        await seconds_pass(clock, 7.2)
        await call.data(b"", end=True)
        await served.expect_data()
        await seconds_pass(clock, 7.2)
        await served.headers(OK, end=True)
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).status == Status.OK


@on_every_engine
@trio_test
async def test_ping_and_other_calls_of_the_connection_do_not_keep_a_call(
    engine: Engine, clock: MockClock
) -> None:
    async with an_impatient_proxy(engine) as house:
        call, served = await begun(house)
        for _ in range(2):
            await seconds_pass(clock, 3.2)
            await served.peer.ping()
            other = await house.clients[0].request("/a.B/Other")
            await (await house.backend.request()).respond()
            assert (await other.answer()).status == Status.OK
            assert (await house.record()).status == Status.OK
        await seconds_pass(clock, 4)
        assert (await call.answer()).status == Status.UNAVAILABLE
        await house.record()


@on_every_engine
@trio_test
async def test_a_caller_who_does_not_read_is_idle_and_one_who_reads_slowly_is_not(
    engine: Engine, clock: MockClock
) -> None:
    async with an_impatient_proxy(engine) as house:
        client = await house.client(settings={INITIAL_WINDOW_SIZE: 1000})
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(message(bytes(3000)))
        await served.headers(OK, end=True)
        await call.expect_headers()
        for _ in range(2):
            await call.read(1000)
            await seconds_pass(clock, 7.2)
            await client.credit(call, 1000)
        await call.read(1000)
        await seconds_pass(clock, 10.4)
        assert (await house.record()).cause == "idle_timeout"


@on_every_engine
@trio_test
async def test_a_call_that_may_be_sent_again_may_not_be_idle_either(engine: Engine, clock: MockClock) -> None:
    async with an_impatient_proxy(engine, retry=RetryPolicy()) as house:
        call, served = await begun(house)
        await seconds_pass(clock, 7.6)
        assert house.server.open_calls == 1
        await seconds_pass(clock, 2.8)
        assert (await call.answer()).status == Status.UNAVAILABLE
        assert await served.expect_reset() == ErrorCode.CANCEL
        assert (await house.record()).cause == "idle_timeout"


@on_every_engine
@pytest.mark.parametrize("by_a_handler", [False, True])
@trio_test
async def test_a_hedged_call_may_not_be_idle_while_none_of_its_attempts_has_an_answer(
    engine: Engine, by_a_handler: bool, clock: MockClock
) -> None:
    """The time begins anew when an attempt is sent, for then the request has passed once more."""
    hedging = HedgingPolicy(hedging_delay_s=4.0)
    async with an_impatient_proxy(engine, by_a_handler=by_a_handler, hedging=hedging) as house:
        call, one = await begun(house)
        await seconds_pass(clock, 4.2)
        other = await house.backend.request()
        await seconds_pass(clock, 7.4)
        assert house.server.open_calls == 1
        await seconds_pass(clock, 2.8)
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert answer.message == b"nothing of the call has passed for 8 s, either way (idle_timeout)"
        assert await one.expect_reset() == await other.expect_reset() == ErrorCode.CANCEL
        assert (await house.record()).cause == "idle_timeout"


@on_every_engine
@trio_test
async def test_what_passes_of_a_hedged_call_keeps_it_before_and_after_an_attempt_counts(
    engine: Engine, clock: MockClock
) -> None:
    async with an_impatient_proxy(engine, hedging=HedgingPolicy(hedging_delay_s=0.0)) as house:
        call, one = await begun(house)
        other = await house.backend.request()
        for _ in range(2):
            await seconds_pass(clock, 7.2)
            await call.data(b"x")
            await one.expect_data()
            await other.expect_data()
        await seconds_pass(clock, 7.2)
        await other.headers(RESPONSE)
        await call.expect_headers()
        await seconds_pass(clock, 7.2)
        assert house.server.open_calls == 1
        await seconds_pass(clock, 3.2)
        assert (await house.record()).cause == "idle_timeout"


@on_every_engine
@trio_test
async def test_a_copy_that_is_read_slowly_keeps_a_hedged_call(engine: Engine, clock: MockClock) -> None:
    """Beside one that is not read at all."""
    small = {INITIAL_WINDOW_SIZE: 1000}
    async with an_impatient_proxy(engine, hedging=HedgingPolicy(hedging_delay_s=0.0), backend=small) as house:
        call, one = await begun(house)
        other = await house.backend.request()
        one.peer.credits = False
        await call.body(message(bytes(2995)), end=True)
        await one.read(1000)
        for _ in range(2):
            await other.read(1000)
            await seconds_pass(clock, 7.2)
            await other.peer.credit(other, 1000)
        await other.read(1000)
        await seconds_pass(clock, 7.2)
        assert house.server.open_calls == 1
        await seconds_pass(clock, 3.2)
        assert (await house.record()).cause == "idle_timeout"


@on_every_engine
@trio_test
async def test_no_call_is_watched_when_it_is_over(engine: Engine, clock: MockClock) -> None:
    async with an_impatient_proxy(engine) as house:
        for _ in range(3):
            call = await house.clients[0].request()
            await (await house.backend.request()).respond()
            await call.answer()
            await house.record()
        [calls] = house.server._calls
        waiting = [timer._callback for _, _, timer in calls._timers._heap if timer.waits]
        assert not [each for each in waiting if isinstance(getattr(each, "__self__", None), Forwarding)]
        await seconds_pass(clock, 24)
        assert house.observer.unread == 0


def test_a_call_ends_after_its_timeout_and_no_later_than_a_quarter_of_it_more() -> None:
    moved = 0
    watch = IdleWatch(lambda: moved, 100.0)
    when: float | None = watch.begin(1000.0)
    assert when == 1025.0
    moved = 1  # just after the first look
    assert watch.look(1025.0) == 1050.0
    assert [watch.look(now) for now in (1050.0, 1075.0, 1100.0)] == [1075.0, 1100.0, 1125.0]
    assert watch.look(1125.0) is None


@given(
    moves=st.lists(st.floats(0, 1000), max_size=20).map(sorted),
    late=st.lists(st.floats(0, 3), min_size=1, max_size=5),
)
def test_whenever_something_passes_a_call_ends_between_one_timeout_and_a_quarter_more(
    moves: list[float], late: list[float]
) -> None:
    timeout_s, now = 10.0, 0.0
    watch = IdleWatch(lambda: sum(move <= now for move in moves), timeout_s)
    when: float | None = watch.begin(now)
    looks = 0
    while when is not None:
        assert when > now
        now = when + late[looks % len(late)]  # timers may be late
        looks += 1
        when = watch.look(now)
    ends = [0.0, *moves]
    last = max(move for move in ends if move <= now)
    assert now - last >= timeout_s
    assert now - last <= 1.25 * timeout_s + 2 * max(late) + 1e-6


def test_a_policy_has_no_idle_timeout_of_no_time() -> None:
    with pytest.raises(ConfigError, match=r"idle_timeout_s is 0; it must be 0\.001 or more"):
        CallPolicy(idle_timeout_s=0)
    assert CallPolicy().idle_timeout_s is None


@on_every_engine
@pytest.mark.parametrize(
    "policy",
    [{"retry": RetryPolicy()}, {"hedging": HedgingPolicy(hedging_delay_s=4.0)}],
    ids=["retry", "hedging"],
)
@trio_test
async def test_an_upstream_cannot_have_a_call_pause_for_longer_than_it_may_be_idle(
    engine: Engine, policy: dict[str, Any], clock: MockClock
) -> None:
    async with an_impatient_proxy(engine, **policy) as house:
        call, served = await begun(house)
        pushback = (b"grpc-retry-pushback-ms", b"30000")
        await served.headers([*RESPONSE, (b"grpc-status", b"14"), pushback], end=True)
        answer = await call.answer()
        assert (answer.status, answer.get(pushback[0])) == (Status.UNAVAILABLE, pushback[1])
        await house.record()
