"""A peer that has gone without a word, on either side of the proxy: it is asked, and given up."""

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import RESPONSE, RawPeer, request_fields

pytestmark = on_every_engine


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


async def seconds_pass(clock: MockClock, seconds: float) -> None:
    """So much time, and all that comes of it on the sockets."""
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.05)


def pings(peer: RawPeer) -> int:
    return peer.log.count("PING 0")


@trio_test
async def test_an_upstream_that_is_silent_for_forty_seconds_loses_its_calls(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        served.peer.answers_pings = False
        await seconds_pass(clock, 19.9)
        assert pings(served.peer) == 0
        await seconds_pass(clock, 0.2)
        assert pings(served.peer) == 1
        await seconds_pass(clock, 20.1)
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert b"no sign of life for 40 s" in (answer.message or b"")
        await house.record()
        assert served.peer.ended.is_set()


@trio_test
async def test_a_caller_that_is_silent_is_freed_and_its_calls_are_cancelled(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine, downstream_keepalive_s=20) as house:
        client = await house.client()
        await client.open(request_fields())
        served = await house.backend.request()
        client.answers_pings = False
        await seconds_pass(clock, 20.1)
        assert pings(client) == 1
        await seconds_pass(clock, 20.1)
        await until(client.ended.is_set)
        assert await served.expect_reset() == ErrorCode.CANCEL
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "downstream")


@trio_test
async def test_an_upstream_that_complains_of_too_many_pings_is_asked_half_as_often(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await served.peer.goaway(served.id, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
        await served.headers(RESPONSE)
        await call.expect_headers()
        await served.reset()
        await served.peer.closed()

        await client.open(request_fields())
        served = await house.backend.request()
        served.peer.answers_pings = False
        await seconds_pass(clock, 39.9)
        assert pings(served.peer) == 0
        await seconds_pass(clock, 0.2)
        assert pings(served.peer) == 1
