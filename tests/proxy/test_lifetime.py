"""Callers' connections that are old, or unused: they are told, calls finish, and those that outlast the grace end."""

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import GoAway, request_fields
from tests.proxy.test_keepalive import seconds_pass

pytestmark = on_every_engine


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still unless the test has it jump."""
    return MockClock()


@trio_test
async def test_an_old_connection_takes_no_more_calls_and_lets_those_it_has_finish(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine, max_connection_age_s=10) as house:
        client = await house.client()
        call = await client.open(request_fields(), end=True)
        served = await house.backend.request()
        await seconds_pass(clock, 11.1)
        assert await client.expect_goaway() == GoAway(2**31 - 1, ErrorCode.NO_ERROR, b"")
        assert await client.expect_goaway() == GoAway(1, ErrorCode.NO_ERROR, b"")
        await seconds_pass(clock, 30)
        assert not client.ended.is_set()
        await served.respond(b"late")
        answer = await call.answer()
        assert (answer.status, answer.body[5:]) == (Status.OK, b"late")
        await client.closed()
        await until(lambda: house.server.open_connections == 0)
        assert not house.observer.connections_failed


@trio_test
async def test_a_call_that_outlasts_the_grace_of_an_old_connection_ends(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine, max_connection_age_s=10, max_connection_age_grace_s=5) as house:
        client = await house.client()
        call = await client.open(request_fields(), end=True)
        served = await house.backend.request()
        await seconds_pass(clock, 11.1)
        await seconds_pass(clock, 4.8)
        assert call.nothing_came()
        await seconds_pass(clock, 0.3)
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert b"max_connection_age_s" in (answer.message or b"")
        assert await served.expect_reset() == ErrorCode.CANCEL
        await client.closed()
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "proxy")


@trio_test
async def test_an_unused_connection_is_closed_and_one_with_a_call_is_not(
    engine: Engine, clock: MockClock
) -> None:
    async with a_proxy(engine, max_connection_idle_s=10) as house:
        unused, used = await house.client(), await house.client()
        await until(lambda: house.server.open_connections == 2)
        call = await used.open(request_fields(), end=True)
        served = await house.backend.request()
        await seconds_pass(clock, 10.1)
        await unused.closed()
        assert not used.ended.is_set()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        await trio.testing.wait_all_tasks_blocked(0.05)
        await seconds_pass(clock, 9)
        assert not used.ended.is_set()
        await seconds_pass(clock, 1.1)
        await used.closed()


@trio_test
async def test_the_stop_shortens_the_grace_of_an_old_connection(engine: Engine, clock: MockClock) -> None:
    async with a_proxy(engine, max_connection_age_s=10) as house:
        client = await house.client()
        call = await client.open(request_fields(), end=True)
        await house.backend.request()
        await seconds_pass(clock, 11.1)
        house.server.stop(grace_s=2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await seconds_pass(clock, 2.1)
        assert (await call.answer()).status == Status.UNAVAILABLE
        await client.closed()
