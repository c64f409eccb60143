"""A call that has failed is sent once more by its policy, as long as nothing of a response has reached its caller."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    ConfigError,
    HedgingPolicy,
    ResponseChanges,
    RetryPolicy,
    RetryThrottling,
    Status,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.timeout import parse_timeout
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.directors import Wrapped
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.policies import RESPONSE, UNAVAILABLE, fail_at_once, fail_late, several, with_policy
from tests.proxy.raw_peers import OK, PeerStream, message, request_fields
from tests.proxy.test_extras import Curious

pytestmark = on_every_engine

REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 7, 8, 11
PUSHBACK = b"grpc-retry-pushback-ms"


def retry(**more: Any) -> CallPolicy:
    """Retries almost without a pause."""
    return CallPolicy(retry=RetryPolicy(**{"initial_backoff_s": 0.001, **more}))


@pytest.fixture(name="clock")
def time_that_stands_still() -> MockClock:
    """A clock that goes on only when a test says so."""
    return MockClock()


async def pausing(house: House) -> None:
    """Wait until the call waits for its next attempt, without a place."""
    await until(lambda: house.pool.target(house.backend.address).calls == 0)
    await trio.testing.wait_all_tasks_blocked(0.01)


async def reset(served: PeerStream) -> None:
    await served.reset(ENHANCE_YOUR_CALM)


async def drop(served: PeerStream) -> None:
    await served.peer.aclose()


async def http_error(served: PeerStream) -> None:
    await served.headers([(b":status", b"503"), (b"content-type", b"text/html")])


@pytest.mark.parametrize("fail", [fail_late, fail_at_once, reset, drop, http_error])
@trio_test
async def test_a_call_that_has_failed_is_sent_again_and_its_caller_sees_one_clean_response(
    engine: Engine, fail: Callable[[PeerStream], Awaitable[None]]
) -> None:
    policy = retry(retryable_status_codes=[Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED])
    async with with_policy(engine, policy) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-n", b"1"), body=b"hello")
        first = await house.backend.request()
        await first.request_body()
        await fail(first)
        second = await house.backend.request()
        assert await second.request_body() == message(b"hello")
        assert second.request.get(b"x-n") == b"1"
        await second.respond(b"at last")
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
        assert (answer.status, answer.body) == (Status.OK, message(b"at last"))
        record = await house.record()
        assert (record.status, record.request_messages, record.request_bytes) == (Status.OK, 1, 10)
        assert record.repeats is not None
        assert record.repeats.retries == 1
        assert house.observer.unread == 0


@trio_test
async def test_a_call_without_a_policy_is_not_sent_again(engine: Engine) -> None:
    async with with_policy(engine, CallPolicy()) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request())
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "HEADERS END_STREAM"]
        assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"not now")
        assert house.backend.no_request_came()


@trio_test
async def test_the_last_attempt_is_the_callers_with_all_that_the_upstream_said(engine: Engine) -> None:
    async with with_policy(engine, retry(max_attempts=3)) as house:
        call = await (await house.client()).request()
        for number in (1, 2, 3):
            served = await house.backend.request()
            await fail_late(served, (b"x-try", b"%d" % number))
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "HEADERS END_STREAM"]
        assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"not now")
        assert answer.get(b"x-try") == b"3"
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "upstream")
        assert record.repeats is not None
        assert (record.repeats.retries, record.repeats.is_exhausted) == (2, True)
        assert house.backend.no_request_came()


@pytest.mark.parametrize("late", [True, False])
@trio_test
async def test_another_status_is_the_callers_at_once(engine: Engine, late: bool) -> None:
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).request()
        served = await house.backend.request()
        if late:
            await served.headers(RESPONSE)
        await served.headers([*([] if late else RESPONSE), (b"grpc-status", b"3")], end=True)
        assert (await call.answer()).status == Status.INVALID_ARGUMENT
        assert house.backend.no_request_came()
        assert (await house.record()).repeats is None


@trio_test
async def test_once_a_message_has_come_the_call_has_its_upstream(engine: Engine) -> None:
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).request()
        served = await house.backend.request()
        await served.respond(b"one", UNAVAILABLE)
        answer = await call.answer()
        assert (answer.status, answer.body) == (Status.UNAVAILABLE, message(b"one"))
        assert house.backend.no_request_came()


@trio_test
async def test_headers_are_held_until_the_first_message_and_then_go_out_before_it(engine: Engine) -> None:
    async with with_policy(engine, retry(), recorder=Curious()) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers([*RESPONSE, (b"x-first", b"1")])
        await served.data(b"")
        await served.peer.ping()
        await client.ping()
        assert call.nothing_came()
        await served.body(message(b"now"))
        assert (await call.expect_headers()).get(b"x-first") == b"1"
        assert await call.read(8) == message(b"now")
        await served.headers(OK, end=True)
        await call.answer()
        extras = (await house.record()).extras
        assert extras is not None
        assert extras.first_byte_at is not None
        assert extras.attempts == 1


@trio_test
async def test_headers_too_long_to_be_held_go_out_at_once(engine: Engine) -> None:
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).request()
        served = await house.backend.request()
        await served.headers([*RESPONSE, (b"x-long", b"x" * 8192)])
        await call.expect_headers()
        await served.headers(UNAVAILABLE, end=True)
        assert (await call.answer()).status == Status.UNAVAILABLE
        assert house.backend.no_request_came()


@trio_test
async def test_a_caller_that_goes_on_with_its_request_gets_the_headers_at_once(engine: Engine) -> None:
    """It may be waiting for them before it says more."""
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).open(request_fields())
        await call.data(message(b"one"))
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await call.expect_headers()
        await call.data(message(b"two"), end=True)
        assert await served.request_body() == message(b"one") + message(b"two")
        await served.headers(UNAVAILABLE, end=True)
        assert (await call.answer()).status == Status.UNAVAILABLE
        assert house.backend.no_request_came()


@trio_test
async def test_a_request_that_has_not_ended_is_sent_again_and_goes_on(engine: Engine) -> None:
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).open(request_fields())
        await call.data(message(b"one"))
        first = await house.backend.request()
        assert await first.read(8) == message(b"one")
        await fail_at_once(first)
        assert await first.expect_reset() == CANCEL
        second = await house.backend.request()
        assert await second.read(8) == message(b"one")
        await call.data(message(b"two"), end=True)
        assert await second.request_body() == message(b"two")
        await second.respond()
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).request_bytes == 16


@pytest.mark.parametrize("fail", [fail_late, fail_at_once, drop])
@trio_test
async def test_a_request_longer_than_what_is_kept_is_not_sent_again(
    engine: Engine, fail: Callable[[PeerStream], Awaitable[None]]
) -> None:
    async with with_policy(engine, retry(max_replay_bytes=10_000)) as house:
        call = await (await house.client()).open(request_fields())
        first = await house.backend.request()
        await call.body(message(bytes(10_000)), end=True)
        assert len(await first.request_body()) == 10_005
        await fail(first)
        assert (await call.answer()).status == Status.UNAVAILABLE
        assert house.backend.no_request_came()


@trio_test
async def test_a_policy_may_keep_more_than_calls_without_one_have_kept(engine: Engine) -> None:
    body = message(bytes(200_000))
    async with with_policy(engine, retry(max_replay_bytes=300_000)) as house:
        call = await (await house.client()).open(request_fields())
        first = await house.backend.request()
        await call.body(body, end=True)
        assert await first.request_body() == body
        await fail_late(first)
        second = await house.backend.request()
        assert await second.request_body() == body
        await second.respond()
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).request_bytes == len(body)


@trio_test
async def test_the_upstream_is_told_how_many_attempts_there_were(engine: Engine) -> None:
    async with with_policy(engine, retry()) as house:
        client = await house.client()
        for before, said in ((None, [None, b"1", b"2"]), (b"2", [b"2", b"3", b"4"])):
            extra = [] if before is None else [(b"grpc-previous-rpc-attempts", before)]
            call = await client.request("/a.B/C", *extra)
            for number in said:
                served = await house.backend.request()
                assert served.request.get(b"grpc-previous-rpc-attempts") == number
                await fail_late(served)
            await call.answer()


@trio_test
async def test_a_call_that_was_not_processed_is_first_sent_again_without_being_counted(
    engine: Engine,
) -> None:
    async with with_policy(engine, retry(max_attempts=2)) as house:
        call = await (await house.client()).request()
        await (await house.backend.request()).reset(REFUSED_STREAM)
        second = await house.backend.request()
        assert second.request.get(b"grpc-previous-rpc-attempts") is None
        await second.reset(REFUSED_STREAM)
        third = await house.backend.request()
        assert third.request.get(b"grpc-previous-rpc-attempts") == b"1"
        await third.respond()
        assert (await call.answer()).status == Status.OK


# ------------------------------------------------------------------------------------ pauses


@trio_test
async def test_the_next_attempt_comes_after_its_pause_and_holds_no_place_meanwhile(
    engine: Engine, clock: MockClock
) -> None:
    policy = retry(initial_backoff_s=4.0, max_backoff_s=4.0, jitter=0.0)
    async with with_policy(engine, policy) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request())
        await pausing(house)
        clock.jump(3.9)
        await trio.testing.wait_all_tasks_blocked()
        assert house.backend.no_request_came()
        clock.jump(0.2)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_call_in_a_pause_says_what_it_waits_for(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, retry(initial_backoff_s=4.0, max_backoff_s=4.0)) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request())
        await pausing(house)
        [opened] = house.server.open_call_facts(10)["calls"]
        assert opened["waits_for"].startswith("its next attempt")
        clock.jump(5)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_an_upstream_may_say_how_long_to_wait(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request(), (PUSHBACK, b"5000"))
        await pausing(house)
        clock.jump(4.9)
        await trio.testing.wait_all_tasks_blocked()
        assert house.backend.no_request_came()
        clock.jump(0.2)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("value", [b"-1", b"soon", b"2000000000"])
@trio_test
async def test_an_upstream_may_forbid_another_attempt(engine: Engine, value: bytes) -> None:
    async with with_policy(engine, retry()) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request(), (PUSHBACK, value))
        answer = await call.answer()
        assert (answer.status, answer.get(PUSHBACK)) == (Status.UNAVAILABLE, value)
        assert house.backend.no_request_came()


@trio_test
async def test_a_caller_who_gives_up_in_a_pause_ends_the_call(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, retry(initial_backoff_s=60.0, max_backoff_s=60.0)) as house:
        client = await house.client()
        call = await client.request()
        await fail_late(await house.backend.request())
        await pausing(house)
        await call.reset()
        record = await house.record()
        assert (record.status, record.origin) == (Status.CANCELLED, "downstream")
        assert house.backend.no_request_came()


@trio_test
async def test_a_pause_that_the_deadline_would_end_is_not_begun(engine: Engine) -> None:
    """What the upstream said tells more than DEADLINE_EXCEEDED."""
    async with with_policy(engine, retry(initial_backoff_s=60.0, max_backoff_s=60.0)) as house:
        call = await (await house.client()).request("/a.B/C", (b"grpc-timeout", b"20S"))
        await fail_late(await house.backend.request())
        assert (await call.answer()).status == Status.UNAVAILABLE


@trio_test
async def test_the_deadline_is_that_of_all_attempts(engine: Engine, clock: MockClock) -> None:
    policy = retry(initial_backoff_s=4.0, max_backoff_s=4.0, jitter=0.0)
    async with with_policy(engine, policy) as house:
        call = await (await house.client()).request("/a.B/C", (b"grpc-timeout", b"9S"))
        await fail_late(await house.backend.request())
        await pausing(house)
        clock.jump(4.1)
        second = await house.backend.request()
        left_s = parse_timeout(second.request.get(b"grpc-timeout") or b"")
        assert left_s is not None
        assert 4.8 < left_s <= 4.9
        clock.jump(5)
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.DEADLINE_EXCEEDED, b"Deadline Exceeded")
        await second.request_body()
        assert await second.expect_reset() == CANCEL


@trio_test
async def test_a_server_that_ends_ends_the_pause_too(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, retry(initial_backoff_s=60.0, max_backoff_s=60.0)) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request())
        await pausing(house)
        house.server.stop(grace_s=1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.jump(2)
        answer = await call.answer()
        assert answer.lost or answer.status == Status.UNAVAILABLE


# ------------------------------------------------------------------------- the time of an attempt


@trio_test
async def test_an_attempt_that_takes_too_long_is_followed_by_another_one(
    engine: Engine, clock: MockClock
) -> None:
    async with with_policy(engine, retry(per_attempt_timeout_s=2.0, max_backoff_s=0.001)) as house:
        call = await (await house.client()).request()
        first = await house.backend.request()
        await first.request_body()
        await first.headers(RESPONSE)
        await first.peer.ping()
        clock.jump(2.1)
        assert await first.expect_reset() == CANCEL
        clock.jump(0.1)
        second = await house.backend.request()
        await second.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_the_last_attempt_has_no_more_time_than_the_others(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, retry(max_attempts=2, per_attempt_timeout_s=2.0)) as house:
        call = await (await house.client()).request()
        for _ in range(2):
            served = await house.backend.request()
            await served.request_body()
            clock.jump(2.1)
            assert await served.expect_reset() == CANCEL
            clock.jump(0.1)
        answer = await call.answer()
        assert answer.status == Status.DEADLINE_EXCEEDED
        assert b"within 2 s" in (answer.message or b"")
        assert (await house.record()).cause == "per_attempt_timeout"


@trio_test
async def test_a_response_that_has_begun_may_take_its_time(engine: Engine, clock: MockClock) -> None:
    async with with_policy(engine, retry(per_attempt_timeout_s=2.0)) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(message(b"one"))
        await call.expect_headers()
        await call.read(8)
        clock.jump(5)
        await client.ping()
        await served.headers(OK, end=True)
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_handler_of_a_users_own_gets_calls_with_a_policy_too(
    engine: Engine, clock: MockClock
) -> None:
    wrapped = Wrapped()
    policy = retry(per_attempt_timeout_s=2.0, max_backoff_s=0.001)

    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policy), house.pool.target(house.backend.address)

    async with a_proxy(engine, configure=lambda server, _: wrapped.configure(server, director)) as house:
        call = await (await house.client()).request()
        first = await house.backend.request()
        await first.request_body()
        clock.jump(2.1)
        assert await first.expect_reset() == CANCEL
        clock.jump(0.1)
        second = await house.backend.request()
        await fail_late(second)
        await pausing(house)
        clock.jump(0.1)
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK
        await house.record()
    assert wrapped.ends == ["well"]


# ----------------------------------------------------------------------------------- clusters


@pytest.mark.parametrize("leases", [False, True])
@trio_test
async def test_the_next_attempt_goes_to_another_endpoint(engine: Engine, leases: bool) -> None:
    async with several(engine, retry(), count=3, leases=leases) as town:
        call = await (await town.house.client()).request()
        seen = set()
        for _ in range(2):
            backend, served = await town.request()
            seen.add(backend.address)
            await fail_late(served)
        backend, served = await town.request()
        seen.add(backend.address)
        assert len(seen) == 3
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert (await town.house.record()).upstream == backend.address


@trio_test
async def test_each_attempt_is_told_to_its_endpoint(engine: Engine) -> None:
    heard: list[tuple[str, Status]] = []
    async with several(engine, retry()) as town:
        for endpoint in town.cluster.endpoints:
            address = endpoint.address
            endpoint.hear_ended = lambda status, _, address=address: heard.append((address, status))
        call = await (await town.house.client()).request()
        first, served = await town.request()
        await fail_late(served)
        second, served = await town.request()
        await served.respond()
        await call.answer()
        await town.house.record()
    assert heard == [(first.address, Status.UNAVAILABLE), (second.address, Status.OK)]


@trio_test
async def test_where_too_much_fails_nothing_is_sent_again(engine: Engine) -> None:
    throttle = RetryThrottling(max_tokens=4, token_ratio=0.5)
    async with several(engine, retry(max_attempts=5), throttle=throttle) as town:
        client = await town.house.client()
        call = await client.request()
        await fail_late((await town.request())[1])
        assert throttle.tokens in {3, 4}
        await fail_late((await town.request())[1])
        answer = await call.answer()
        assert (answer.status, throttle.tokens) == (Status.UNAVAILABLE, 2)
        record = await town.house.record()
        assert record.repeats is not None
        assert (record.repeats.retries, record.repeats.is_throttled) == (1, True)
        call = await client.request()
        await (await town.request())[1].respond()
        await call.answer()
        await town.house.record()
        assert throttle.tokens == 2.5
        assert town.no_request_came


@trio_test
async def test_an_endpoint_that_cannot_be_reached_counts_as_an_attempt(engine: Engine) -> None:
    policy = retry(max_attempts=2)

    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policy), house.pool.target("127.0.0.1:1")

    async with a_proxy(engine, director=director, pool={"connect_wait_s": 0.0}) as house:
        call = await (await house.client()).request()
        assert (await call.answer()).status == Status.UNAVAILABLE
        record = await house.record()
        assert record.repeats is not None
        assert (record.repeats.retries, record.repeats.is_exhausted) == (1, True)


# -------------------------------------------------------------------------------- what changes


@trio_test
async def test_changes_to_the_response_are_made_to_the_one_that_counts(engine: Engine) -> None:
    changes = ResponseChanges(remove=["x-secret"], set_values={"x-by": "us"})

    def director(context: CallContext, _method: str) -> Direction:
        changed = context.with_policy(retry()).with_response_changes(changes)
        return changed, house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        call = await (await house.client()).request()
        await fail_late(await house.backend.request())
        second = await house.backend.request()
        await second.headers([*RESPONSE, (b"x-secret", b"1")])
        await second.body(message(b"x"))
        await second.headers([*OK, (b"x-secret", b"2")], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert (answer.headers.get(b"x-by"), answer.headers.get(b"x-secret")) == (b"us", None)
        assert (answer.status, answer.get(b"x-secret")) == (Status.OK, None)


@trio_test
async def test_held_headers_that_are_too_long_for_the_caller_end_the_call(engine: Engine) -> None:
    async with with_policy(engine, retry()) as house:
        client = await house.client({0x6: 500})
        call = await client.request()
        served = await house.backend.request()
        await served.headers([*RESPONSE, (b"x-long", b"x" * 1000)])
        await served.body(message(b"x"))
        assert (await call.answer()).status == Status.RESOURCE_EXHAUSTED
        await served.request_body()
        assert await served.expect_reset() == CANCEL
        assert (await house.record()).status == Status.RESOURCE_EXHAUSTED


def test_a_policy_has_retries_or_hedging(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="not both"):
        CallPolicy(retry=RetryPolicy(), hedging=HedgingPolicy(hedging_delay_s=0.1))
