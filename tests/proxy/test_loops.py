"""Two proxies that lead to each other: what ends a call that goes round."""

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import CallPolicy, HedgingPolicy, Pool, Server, Status, transparent_handler
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.net.listen import bound_address
from rawgrpc_proxy.proxy.route_table import RouteTable
from tests.net.test_listen import LOOPBACK, open_listener
from tests.proxy.house import A_TEST_S, House, a_proxy, on_every_engine
from tests.proxy.policies import with_policy
from tests.proxy.raw_peers import PeerStream, RawPeer, request_fields
from tests.upstream.backend import REQUEST

pytestmark = on_every_engine


@trio_test
async def test_a_cancel_overtakes_a_call_that_goes_round_between_two_proxies(engine: Engine) -> None:
    settings = Http2Settings(engine=engine)
    with trio.fail_after(A_TEST_S):
        async with (
            trio.open_nursery() as nursery,
            Pool(ms=100, settings=settings) as to_one,
            Pool(ms=100, settings=settings) as to_two,
            Pool(settings=settings) as client,
        ):
            with open_listener(LOOPBACK) as at_one, open_listener(LOOPBACK) as at_two:
                one, two = str(bound_address(at_one)), str(bound_address(at_two))
                first, second = _leading_to(two, to_two, settings), _leading_to(one, to_one, settings)
                await nursery.start(first.serve, at_one.dup())
                await nursery.start(second.serve, at_two.dup())
            conn = await client.get_conn(one)
            stream = conn.open_stream(REQUEST)
            while first.open_calls < 300:  # noqa: ASYNC110  # no event tells of it, and all tasks are never blocked
                await trio.sleep(0.002)
            stream.reset(ErrorCode.CANCEL)
            while first.open_calls + second.open_calls:  # noqa: ASYNC110
                await trio.sleep(0.002)
            conn.close()
            nursery.cancel_scope.cancel()


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


async def comes_at_once(house: House, call: PeerStream) -> bool:
    """Whether the call reaches the backend while time stands still."""
    await call.peer.ping()
    await trio.testing.wait_all_tasks_blocked(0.01)
    return not house.backend.no_request_came()


async def served(house: House, clock: MockClock) -> PeerStream:
    """The next call at the backend, after the pause if there is one."""
    if house.backend.no_request_came():
        await trio.testing.wait_all_tasks_blocked(0.001)
        clock.jump(0.002)
    return await house.backend.request()


async def give_up(house: House, clock: MockClock, client: RawPeer, calls: int) -> None:
    """Make calls that are given up before they are answered."""
    for _ in range(calls):
        call = await client.open(request_fields())
        await client.ping()
        given_up = await served(house, clock)
        await call.reset()
        assert await given_up.expect_reset() == ErrorCode.CANCEL
        await house.record()


@trio_test
async def test_a_caller_who_gives_up_every_call_delays_nobody_elses(engine: Engine, clock: MockClock) -> None:
    async with a_proxy(engine) as house:
        impatient, patient = await house.client(), await house.client()
        await give_up(house, clock, impatient, 150)
        call = await impatient.request()
        assert not await comes_at_once(house, call)
        await (await served(house, clock)).respond()
        assert (await call.answer()).status == Status.OK
        call = await patient.request()
        assert await comes_at_once(house, call)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_whoever_gives_up_hedged_calls_is_held_up_too(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, CallPolicy(hedging=HedgingPolicy(hedging_delay_s=1000.0))) as house:
        client = await house.client()
        await give_up(house, clock, client, 150)
        call = await client.request()
        assert not await comes_at_once(house, call)
        await (await served(house, clock)).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_callers_are_held_up_only_while_more_give_up_than_are_answered(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        await give_up(house, clock, client, 150)
        for _ in range(9):
            call = await client.request()
            assert not await comes_at_once(house, call)
            await (await served(house, clock)).respond()
            assert (await call.answer()).status == Status.OK
            await house.record()
        call = await client.request()
        assert await comes_at_once(house, call)
        await (await served(house, clock)).respond()
        assert (await call.answer()).status == Status.OK


def _leading_to(address: str, pool: Pool, settings: Http2Settings) -> Server:
    director = RouteTable(default=address).director(pool)
    return Server(unknown_service_handler=transparent_handler(director), settings=settings)
