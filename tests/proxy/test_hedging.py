"""A call is sent several times while it has no answer, and its caller sees the first good one, whole and once."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    Cluster,
    HedgingPolicy,
    Metadata,
    OutlierDetection,
    RetryThrottling,
    Status,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.net.failures import reset_error
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.directors import Wrapped
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.policies import OK, RESPONSE, Several, fail_at_once, fail_late, several, with_policy
from tests.proxy.raw_peers import MAX_HEADER_LIST_SIZE, Backend, PeerStream, message, request_fields

pytestmark = on_every_engine

REFUSED_STREAM, CANCEL = 7, 8
PUSHBACK = b"grpc-retry-pushback-ms"
LONG_S = 1000.0
"""No test waits for so long: hedges come by what happens, not by the time."""


def hedge(**more: Any) -> CallPolicy:
    """Two attempts at once."""
    return CallPolicy(hedging=HedgingPolicy(**{"hedging_delay_s": 0.0, **more}))


@pytest.fixture(name="clock")
def time_that_stands_still() -> MockClock:
    """A clock that goes on only when a test says so."""
    return MockClock()


async def given_back(town: Several) -> None:
    """Wait until no call has a place anywhere."""
    await until(lambda: not any(endpoint.calls for endpoint in town.cluster.endpoints))
    await trio.testing.wait_all_tasks_blocked(0.01)


async def two(town: Several) -> tuple[PeerStream, PeerStream]:
    """The two attempts at a call, each at its own backend."""
    (first, one), (second, other) = await town.request(), await town.request()
    assert first is not second
    return one, other


@pytest.mark.parametrize("leases", [False, True])
@trio_test
async def test_the_first_good_answer_is_the_callers_and_the_other_attempt_is_reset(
    engine: Engine, leases: bool
) -> None:
    async with several(engine, hedge(), leases=leases) as town:
        call = await (await town.house.client()).request(body=b"hello")
        one, other = await two(town)
        assert await one.request_body() == await other.request_body() == message(b"hello")
        await other.respond(b"fast")
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
        assert (answer.status, answer.body) == (Status.OK, message(b"fast"))
        assert await one.expect_reset() == CANCEL
        record = await town.house.record()
        assert (record.status, record.request_bytes, record.request_messages) == (Status.OK, 10, 1)
        assert (record.response_bytes, record.response_messages) == (9, 1)
        assert record.repeats is not None
        assert record.repeats.hedges == 1
        await given_back(town)
        assert town.house.observer.unread == 0


@trio_test
async def test_the_next_attempt_is_sent_when_nothing_has_come_for_the_delay(
    engine: Engine, clock: MockClock
) -> None:
    async with several(engine, hedge(hedging_delay_s=2.0, max_attempts=3), count=3) as town:
        call = await (await town.house.client()).request()
        _, first = await town.request()
        assert first.request.get(b"grpc-previous-rpc-attempts") is None
        await first.headers(RESPONSE)  # is no answer yet
        await first.peer.ping()
        clock.jump(1.9)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert town.no_request_came
        clock.jump(0.2)
        _, second = await town.request()
        assert second.request.get(b"grpc-previous-rpc-attempts") == b"1"
        clock.jump(2.1)
        _, third = await town.request()
        clock.jump(10)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert town.no_request_came
        await second.respond()
        assert (await call.answer()).status == Status.OK
        for loser in (first, third):
            await loser.request_body()
            assert await loser.expect_reset() == CANCEL
        await given_back(town)


@trio_test
async def test_a_call_that_is_answered_in_time_is_sent_once(engine: Engine) -> None:
    async with several(engine, hedge(hedging_delay_s=LONG_S)) as town:
        call = await (await town.house.client()).request()
        _, served = await town.request()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert town.no_request_came
        assert (await town.house.record()).repeats is None


@pytest.mark.parametrize("how", ["late", "at once", "lost"])
@trio_test
async def test_a_status_that_is_not_fatal_brings_the_next_attempt_at_once(engine: Engine, how: str) -> None:
    async with several(engine, hedge(hedging_delay_s=LONG_S)) as town:
        call = await (await town.house.client()).request(body=b"hello")
        _, first = await town.request()
        await first.request_body()
        if how == "lost":
            await first.peer.aclose()
        else:
            await (fail_late if how == "late" else fail_at_once)(first)
        _, second = await town.request()
        assert await second.request_body() == message(b"hello")
        await second.respond(b"good")
        answer = await call.answer()
        assert (answer.status, answer.body) == (Status.OK, message(b"good"))
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]


@trio_test
async def test_a_fatal_status_is_the_calls_and_ends_the_other_attempts(engine: Engine) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).request()
        one, other = await two(town)
        await one.headers([*RESPONSE, (b"grpc-status", b"3"), (b"x-why", b"1")], end=True)
        answer = await call.answer()
        assert (answer.status, answer.get(b"x-why")) == (Status.INVALID_ARGUMENT, b"1")
        await other.request_body()
        assert await other.expect_reset() == CANCEL
        assert (await town.house.record()).origin == "upstream"
        await given_back(town)


@trio_test
async def test_the_last_failure_is_the_callers_when_all_attempts_have_failed(engine: Engine) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).request()
        one, other = await two(town)
        await fail_late(one, (b"x-one", b"1"))
        await one.peer.ping()
        await fail_late(other, (b"x-other", b"1"))
        answer = await call.answer()
        assert (answer.status, answer.get(b"x-other")) == (Status.UNAVAILABLE, b"1")
        assert town.no_request_came
        await given_back(town)


@trio_test
async def test_when_all_connections_are_lost_the_caller_is_told_so_once(engine: Engine) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).request()
        one, other = await two(town)
        await one.peer.aclose()
        await other.peer.aclose()
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.UNAVAILABLE
        await town.house.record()
        await given_back(town)
        assert town.house.observer.unread == 0


@trio_test
async def test_one_failure_leaves_the_other_attempt_its_chance(engine: Engine) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).request()
        one, other = await two(town)
        await fail_late(one)
        await one.peer.ping()
        await other.respond(b"good")
        assert (await call.answer()).body == message(b"good")


@pytest.mark.parametrize("value", [b"-1", b"2000000000"])
@trio_test
async def test_an_upstream_may_forbid_further_attempts(engine: Engine, value: bytes) -> None:
    async with several(engine, hedge(hedging_delay_s=LONG_S)) as town:
        call = await (await town.house.client()).request()
        _, served = await town.request()
        await fail_late(served, (PUSHBACK, value))
        assert (await call.answer()).status == Status.UNAVAILABLE
        assert town.no_request_came


@trio_test
async def test_an_upstream_may_say_when_the_next_attempt_is_to_come(engine: Engine, clock: MockClock) -> None:
    async with several(engine, hedge(hedging_delay_s=1.0)) as town:
        call = await (await town.house.client()).open(request_fields())
        await call.data(message(b"one"))
        _, served = await town.request()
        await fail_at_once(served, (PUSHBACK, b"5000"))
        await given_back(town)
        await call.data(message(b"two"), end=True)
        clock.jump(4.9)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert town.no_request_came
        clock.jump(0.2)
        _, second = await town.request()
        assert await second.request_body() == message(b"one") + message(b"two")
        await second.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_request_goes_to_all_attempts_and_what_came_before_to_later_ones(
    engine: Engine, clock: MockClock
) -> None:
    async with several(engine, hedge(hedging_delay_s=2.0)) as town:
        client = await town.house.client()
        call = await client.open(request_fields())
        await call.data(message(b"one"))
        _, first = await town.request()
        assert await first.read(8) == message(b"one")
        clock.jump(2.1)
        _, second = await town.request()
        assert await second.read(8) == message(b"one")
        await call.data(message(b"two"))
        await call.headers([(b"x-end", b"1")], end=True)
        for served in (first, second):
            assert await served.read(8) == message(b"two")
            assert (await served.expect_headers()).get(b"x-end") == b"1"
        await second.respond(b"good")
        assert (await call.answer()).body == message(b"good")
        assert (await town.house.record()).request_bytes == 16


@pytest.mark.parametrize("by_headers", [True, False])
@trio_test
async def test_an_empty_request_ends_for_each_attempt_where_it_did(engine: Engine, by_headers: bool) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).open(request_fields(), end=by_headers)
        if not by_headers:
            await call.data(b"", end=True)
        expected = ["HEADERS END_STREAM"] if by_headers else ["HEADERS", "DATA END_STREAM"]
        one, other = await two(town)
        for served in (one, other):
            assert await served.request_frames() == expected
        await one.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_request_too_long_to_be_kept_goes_on_with_one_attempt_alone(engine: Engine) -> None:
    body = message(bytes(n % 251 for n in range(500_000)))
    async with several(engine, hedge(max_replay_bytes=10_000)) as town:
        call = await (await town.house.client()).open(request_fields())
        await call.data(body[:5000])
        one, other = await two(town)
        for served in (one, other):
            assert await served.read(5000) == body[:5000]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call.body, body[5000:])

            bodies: dict[PeerStream, bytes] = {}

            async def read(served: PeerStream) -> None:
                seen = b""
                while len(seen) < len(body) - 5000:
                    event = await served.next()
                    if not hasattr(event, "data"):
                        return
                    seen += event.data
                bodies[served] = seen

            nursery.start_soon(read, one)
            nursery.start_soon(read, other)
        [(winner, seen)] = bodies.items()
        assert seen == body[5000:]
        await call.data(b"", end=True)
        await winner.request_body()
        await winner.respond(b"good")
        assert (await call.answer()).body == message(b"good")
        assert (await town.house.record()).request_bytes == len(body)
        await given_back(town)


@trio_test
async def test_a_caller_who_gives_up_ends_all_attempts(engine: Engine) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).request()
        attempts = await two(town)
        for served in attempts:
            await served.request_body()
        await call.reset()
        for served in attempts:
            assert await served.expect_reset() == CANCEL
        record = await town.house.record()
        assert (record.status, record.origin) == (Status.CANCELLED, "downstream")
        await given_back(town)


@trio_test
async def test_the_deadline_ends_all_attempts(engine: Engine, clock: MockClock) -> None:
    async with several(engine, hedge()) as town:
        call = await (await town.house.client()).request("/a.B/C", (b"grpc-timeout", b"5S"))
        attempts = await two(town)
        for served in attempts:
            await served.request_body()
        clock.jump(5.1)
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.DEADLINE_EXCEEDED, b"Deadline Exceeded")
        for served in attempts:
            assert await served.expect_reset() == CANCEL
        await town.house.record()
        await given_back(town)


@trio_test
async def test_the_deadline_holds_for_a_response_that_has_begun(engine: Engine, clock: MockClock) -> None:
    async with several(engine, hedge(hedging_delay_s=LONG_S)) as town:
        call = await (await town.house.client()).request("/a.B/C", (b"grpc-timeout", b"5S"))
        _, served = await town.request()
        await served.headers(RESPONSE)
        await served.body(message(b"one"))
        await call.expect_headers()
        await call.read(8)
        clock.jump(5.1)
        assert (await call.answer()).status == Status.DEADLINE_EXCEEDED
        await served.request_body()
        assert await served.expect_reset() == CANCEL


@trio_test
async def test_a_call_that_was_refused_is_replaced_without_being_counted(engine: Engine) -> None:
    async with several(engine, hedge(hedging_delay_s=LONG_S, max_attempts=2), count=3) as town:
        call = await (await town.house.client()).request()
        _, first = await town.request()
        await first.reset(REFUSED_STREAM)
        _, second = await town.request()
        await fail_late(second)
        _, third = await town.request()
        await third.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_where_too_much_fails_nothing_is_hedged(engine: Engine) -> None:
    throttle = RetryThrottling(max_tokens=2, token_ratio=1.0)
    throttle.failed()
    async with several(engine, hedge(), throttle=throttle) as town:
        client = await town.house.client()
        call = await client.request()
        _, served = await town.request()
        assert town.no_request_came
        await served.respond()
        await call.answer()
        record = await town.house.record()
        assert record.repeats is not None
        assert (record.repeats.hedges, record.repeats.is_throttled) == (0, True)
        assert throttle.tokens == 2
        call = await client.request()
        one, _ = await two(town)
        await one.respond()
        await call.answer()
        await town.house.record()


@trio_test
async def test_each_attempt_that_fails_takes_a_token(engine: Engine) -> None:
    throttle = RetryThrottling(max_tokens=10)
    async with several(engine, hedge(), throttle=throttle) as town:
        call = await (await town.house.client()).request()
        one, other = await two(town)
        await fail_late(one)
        await fail_late(other)
        assert (await call.answer()).status == Status.UNAVAILABLE
        await town.house.record()
        assert throttle.tokens == 8


@trio_test
async def test_an_attempt_that_gets_no_stream_costs_the_other_one_nothing(engine: Engine) -> None:
    async with several(engine, hedge()) as town:
        town.backends[1].settings = {MAX_HEADER_LIST_SIZE: 500}
        call = await (await town.house.client()).request("/a.B/C", (b"x-long", b"x" * 500))
        backend, served = await town.request()
        assert backend is town.backends[0]
        await trio.testing.wait_all_tasks_blocked(0.01)
        await served.respond(b"good")
        assert (await call.answer()).body == message(b"good")
        await given_back(town)


@trio_test
async def test_when_no_attempt_gets_a_place_the_call_ends_with_the_reason(engine: Engine) -> None:
    async with several(engine, hedge(), pool={"size": 1, "ms": 1, "max_waiting": 0}) as town:
        client = await town.house.client()
        blocked = await client.request("/a.B/Blocks")
        blocking, _ = await two(town)
        assert (await (await client.request()).answer()).status == Status.RESOURCE_EXHAUSTED
        await blocking.respond()
        assert (await blocked.answer()).status == Status.OK
        await given_back(town)


@trio_test
async def test_without_a_cluster_the_attempts_go_to_the_one_address(engine: Engine) -> None:
    async with with_policy(engine, hedge()) as house:
        call = await (await house.client()).request()
        one, other = await house.backend.request(), await house.backend.request()
        await other.respond(b"good")
        assert (await call.answer()).body == message(b"good")
        await one.request_body()
        assert await one.expect_reset() == CANCEL


@trio_test
async def test_a_handler_of_a_users_own_gets_hedged_calls_too(engine: Engine) -> None:
    wrapped = Wrapped()

    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(hedge()), house.pool.target(house.backend.address)

    async with a_proxy(engine, configure=lambda server, _: wrapped.configure(server, director)) as house:
        call = await (await house.client()).request()
        one, _ = await house.backend.request(), await house.backend.request()
        await one.respond()
        assert (await call.answer()).status == Status.OK
        await house.record()
    assert wrapped.ends == ["well"]


@trio_test
async def test_metadata_that_make_no_request_end_the_call_with_all_its_attempts(engine: Engine) -> None:

    def director(context: CallContext, _method: str) -> Direction:
        bad = context.with_metadata(Metadata([(b"x", b"y")]))
        return bad.with_policy(hedge()), house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        call = await (await house.client()).request()
        assert (await call.answer()).status == Status.INTERNAL
        await house.record()
        [error] = house.observer.failed
        assert "make no request" in str(error)


@trio_test
async def test_an_attempt_that_gets_its_place_when_another_one_counts_already_changes_nothing(
    engine: Engine,
) -> None:
    """The place and the answer come in one turn: the call is decided before the attempt runs that has waited."""

    def director(context: CallContext, method: str) -> Direction:
        if method == "/a.B/Blocks":
            return context, house.pool.target(backends[1].address)
        return context.with_policy(hedge()), cluster

    pool = {"size": 1, "ms": 1, "max_waiting": 1}
    async with a_proxy(engine, director=director, pool=pool) as house, trio.open_nursery() as nursery:
        backends = [house.backend, Backend()]
        await nursery.start(backends[1].run)
        async with Cluster([each.address for each in backends], pool=house.pool) as cluster:
            client = await house.client()
            blocking = await client.request("/a.B/Blocks")
            blocks = await backends[1].request()
            await blocks.headers(RESPONSE)
            call = await client.request()
            attempt = await backends[0].request()
            await attempt.headers(RESPONSE)
            await until(lambda: sum(each.calls for each in cluster.endpoints) == 3)
            await trio.testing.wait_all_tasks_blocked(0.01)
            place_is_free = blocks.peer.header_frames(blocks.id, OK, end=True)
            blocks.peer.send_at_once(place_is_free)
            attempt.peer.send_at_once(attempt.peer.data_frame(attempt.id, message(b"good")))
            await attempt.headers(OK, end=True)
            assert (await call.answer()).body == message(b"good")
            assert (await blocking.answer()).status == Status.OK
            upstreams = {(await house.record()).upstream for _ in range(2)}
            assert upstreams == {each.address for each in backends}
        nursery.cancel_scope.cancel()


@trio_test
async def test_an_endpoint_is_not_blamed_for_an_attempt_that_was_ended_here(engine: Engine) -> None:
    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(hedge()), cluster

    outlier = OutlierDetection(consecutive_failures=1, failures=("RESOURCE_EXHAUSTED",))
    async with (
        a_proxy(engine, director=director) as house,
        Cluster([house.backend.address], pool=house.pool, outlier=outlier) as cluster,
    ):
        call = await (await house.client()).request()
        await house.backend.request()
        await house.backend.request()
        [endpoint] = cluster.endpoints
        [conn] = endpoint.target.record.with_room
        assert conn.connection is not None
        stream = next(iter(conn.connection.streams.values()))
        # As when too much waits in the process, and the stream has stalled.
        stream.reset(CANCEL)
        stream.sink.failed(reset_error(ErrorCode.ENHANCE_YOUR_CALM, Side.LOCAL, "it has stalled"))
        assert (await call.answer()).status == Status.RESOURCE_EXHAUSTED
        assert not endpoint.ejected
