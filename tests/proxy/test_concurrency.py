"""Limits on how many calls are under way: who is refused, and that each place comes back however its call ends."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    AdaptiveLimit,
    CallContext,
    CallPolicy,
    ConcurrencyLimit,
    ConfigError,
    RetryPolicy,
    Status,
)
from rawgrpc_proxy.call_policy import CallLimit
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import RESPONSE, PeerStream, message

REFUSED_STREAM, CANCEL = 7, 8


class Watched:
    """A limit of a user's own: lets all in, and keeps what it is told."""

    def __init__(self) -> None:
        self.inside = 0
        self.statuses: list[Status | None] = []
        self.times: list[float] = []

    def enter(self) -> None:
        self.inside += 1

    def leave(self, began_at: float, now: float, status: Status | None) -> None:
        self.inside -= 1
        self.statuses.append(status)
        self.times.append(now - began_at)


@asynccontextmanager
async def a_limited_proxy(
    engine: Engine,
    limits: Sequence[CallLimit],
    *,
    pool: dict[str, int] | None = None,
    retry: RetryPolicy | None = None,
) -> AsyncIterator[House]:
    policy = CallPolicy(limits=limits, retry=retry)
    houses: list[House] = []

    def director(context: CallContext, _method: str) -> Direction:
        [house] = houses
        return context.with_policy(policy), house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director, pool=pool) as house:
        houses.append(house)
        await house.client()
        yield house


async def served(house: House, *extra: tuple[bytes, bytes]) -> tuple[PeerStream, PeerStream]:
    call = await house.clients[0].request("/a.B/C", *extra)
    return call, await house.backend.request()


@on_every_engine
@trio_test
async def test_a_call_too_many_is_refused_at_once_and_told_when_to_come_again(engine: Engine) -> None:
    limit = ConcurrencyLimit(2)
    async with a_limited_proxy(engine, [limit]) as house:
        first, first_served = await served(house)
        await served(house)
        answer = await (await house.clients[0].request()).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.RESOURCE_EXHAUSTED
        assert answer.message is not None
        assert b"2 calls are under way, as many as may be now (concurrency)" in answer.message
        assert answer.get(b"grpc-retry-pushback-ms") == b"100"
        assert house.backend.no_request_came()
        assert (await house.record()).origin == "proxy"
        await first_served.respond()
        assert (await first.answer()).status == Status.OK
        await house.record()
        await served(house)
        assert (limit.open_calls, limit.refused) == (2, 1)
    assert limit.open_calls == 0


End = Callable[[House, PeerStream, PeerStream], Awaitable[None]]


async def ends_well(_house: House, call: PeerStream, at_backend: PeerStream) -> None:
    await at_backend.respond()
    await call.answer()


async def is_cancelled(_house: House, call: PeerStream, _at_backend: PeerStream) -> None:
    await call.reset(CANCEL)


async def is_reset_in_its_response(_house: House, call: PeerStream, at_backend: PeerStream) -> None:
    await at_backend.headers(RESPONSE)
    await at_backend.reset(CANCEL)
    await call.answer()


async def loses_its_caller(house: House, _call: PeerStream, _at_backend: PeerStream) -> None:
    await house.clients[0].aclose()


async def loses_its_upstream(_house: House, call: PeerStream, at_backend: PeerStream) -> None:
    await at_backend.peer.aclose()
    await call.answer()


async def is_refused_twice(house: House, call: PeerStream, at_backend: PeerStream) -> None:
    await at_backend.reset(REFUSED_STREAM)
    await (await house.backend.request()).reset(REFUSED_STREAM)
    await call.answer()


async def is_cancelled_while_it_is_sent_again(house: House, call: PeerStream, at_backend: PeerStream) -> None:
    dialled = trio.Event()

    async def says_nothing(_stream: trio.SocketStream) -> None:
        dialled.set()
        await trio.sleep_forever()

    house.backend.raw_script = says_nothing
    await at_backend.reset(REFUSED_STREAM)
    await dialled.wait()
    await call.reset(CANCEL)


@on_every_engine
@pytest.mark.parametrize(
    "end",
    [
        ends_well,
        is_cancelled,
        is_reset_in_its_response,
        loses_its_caller,
        loses_its_upstream,
        is_refused_twice,
        is_cancelled_while_it_is_sent_again,
    ],
)
@trio_test
async def test_a_call_gives_back_its_place_once_when_it(engine: Engine, end: End) -> None:
    limit = Watched()
    async with a_limited_proxy(engine, [limit]) as house:
        call, at_backend = await served(house)
        assert limit.inside == 1
        await end(house, call, at_backend)
        await house.record()
        assert limit.inside == 0
    assert limit.inside == 0


@on_every_engine
@trio_test
async def test_the_wait_for_a_connection_counts_and_who_gives_up_meanwhile_leaves(engine: Engine) -> None:
    limit = ConcurrencyLimit(1)
    async with a_limited_proxy(engine, [limit]) as house:
        dialled = trio.Event()

        async def says_nothing(_stream: trio.SocketStream) -> None:
            dialled.set()
            await trio.sleep_forever()

        house.backend.raw_script = says_nothing
        call = await house.clients[0].request()
        await dialled.wait()
        assert limit.open_calls == 1
        assert (await (await house.clients[0].request()).answer()).status == Status.RESOURCE_EXHAUSTED
        await call.reset(CANCEL)
        for _ in range(2):
            await house.record()
        assert limit.open_calls == 0


@on_every_engine
@trio_test
async def test_who_is_refused_by_one_limit_takes_no_place_of_the_others(engine: Engine) -> None:
    wide, narrow = ConcurrencyLimit(5), ConcurrencyLimit(1)
    async with a_limited_proxy(engine, [wide, narrow]) as house:
        await served(house)
        for _ in range(3):
            assert (await (await house.clients[0].request()).answer()).status == Status.RESOURCE_EXHAUSTED
        assert (wide.open_calls, narrow.open_calls, narrow.refused) == (1, 1, 3)


@on_every_engine
@trio_test
async def test_a_limit_that_raises_when_a_call_leaves_is_reported_and_all_else_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty(Watched):
        def leave(self, began_at: float, now: float, status: Status | None) -> None:
            raise ValueError("a fault")

    reported: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda raised: reported.append(str(raised.exc_value)))
    last = ConcurrencyLimit(5)
    async with a_limited_proxy(engine, [Faulty(), last]) as house:
        other, other_served = await served(house)
        call, upstream = await served(house)
        await upstream.respond()
        assert (await call.answer()).status == Status.OK
        await other_served.respond()
        assert (await other.answer()).status == Status.OK
        assert last.open_calls == 0
        assert house.server.open_calls == 0
    assert set(reported) == {"a fault"}


@on_every_engine
@trio_test
async def test_time_is_told_by_unary_calls_that_end_well_and_by_deadlines(engine: Engine) -> None:
    limit = Watched()
    async with a_limited_proxy(engine, [limit]) as house:
        client = house.clients[0]
        call, at_backend = await served(house)
        await at_backend.respond(b"one")
        assert (await call.answer()).status == Status.OK
        # A stream: two messages for one.
        call, at_backend = await served(house)
        await at_backend.headers(RESPONSE)
        await at_backend.data(message(b"one"))
        await at_backend.data(message(b"two"))
        await at_backend.headers([(b"grpc-status", b"0")], end=True)
        assert (await call.answer()).status == Status.OK
        call, at_backend = await served(house)
        await at_backend.headers([*RESPONSE, (b"grpc-status", b"5")], end=True)
        assert (await call.answer()).status == Status.NOT_FOUND
        call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
        assert (await call.answer()).status == Status.DEADLINE_EXCEEDED
        for _ in range(4):
            await house.record()
        # The first one waited for a connection, and came back for its place.
        assert limit.statuses[-4:] == [Status.OK, None, None, Status.DEADLINE_EXCEEDED]
        assert limit.times[-1] > 0.5  # the deadline counts from when the request was read, a moment before


@on_every_engine
@trio_test
async def test_no_time_is_told_by_a_call_that_was_sent_again(engine: Engine) -> None:
    limit = Watched()
    retry = RetryPolicy(initial_backoff_s=0.001)
    async with a_limited_proxy(engine, [limit], retry=retry) as house:
        call, at_backend = await served(house)
        await at_backend.headers([*RESPONSE, (b"grpc-status", b"14")], end=True)
        await (await house.backend.request()).respond(b"at last")
        assert (await call.answer()).status == Status.OK
        await house.record()
        assert limit.statuses[-1] is None


@on_every_engine
@trio_test
async def test_an_adaptive_limit_follows_what_the_upstream_does(engine: Engine) -> None:
    limit = AdaptiveLimit(1, 5)
    async with a_limited_proxy(engine, [limit]) as house:
        for _ in range(5):
            await served(house)
        assert limit.open_calls == limit.limit == 5
        assert (await (await house.clients[0].request()).answer()).status == Status.RESOURCE_EXHAUSTED
    assert limit.open_calls == 0


def test_a_limit_that_lets_nobody_through_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        ConcurrencyLimit(0)
