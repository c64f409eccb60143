"""Endpoints whose calls go badly get no calls for a while, and then do again."""

from collections.abc import Collection
from typing import Any

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import Cluster, ConfigError, Pool, PoolObserver, Status
from rawgrpc_proxy.cluster.outlier_settings import FailurePercentage, OutlierDetection, SuccessRate
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from tests.cluster.town import Town, a_town
from tests.proxy.house import on_every_engine, until
from tests.proxy.raw_peers import Backend

pytestmark = on_every_engine

UNAVAILABLE, NOT_FOUND, DEADLINE_EXCEEDED = b"14", b"5", b"4"
REFUSED_STREAM, INTERNAL_ERROR = 7, 2


@pytest.fixture
def still_clock() -> MockClock:
    """Time passes only where a test says so."""
    return MockClock()


class Ear(PoolObserver):
    """Hears who is ejected, and who returns."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def endpoint_ejected(self, cluster: str, address: str, algorithm: str, why: str, for_s: float) -> None:
        self.heard.append((cluster, address, algorithm, why, for_s))

    def endpoint_returned(self, cluster: str, address: str) -> None:
        self.heard.append((cluster, address))


async def a_call(
    town: Town, bad: Collection[Backend] = (), *, status: bytes = UNAVAILABLE, reset: int | None = None
) -> Backend:
    """A call to its end, which the bad ones have end with this status, or by a reset; who has got it."""
    call, served = await town.request()
    backend = next(backend for backend in town.backends if served.peer in backend.peers)
    if backend not in bad:
        await served.respond()
    elif reset is not None:
        await served.reset(reset)
    else:
        await served.respond(trailers=[(b"grpc-status", status)])
    await call.answer()
    await town.house.record()
    return backend


async def pass_time(clock: MockClock, seconds: float, *, step_s: float = 10.0) -> None:
    """Let so much time pass, with everything done that is due at each step."""
    for _ in range(round(seconds / step_s)):
        clock.jump(step_s)
        await trio.testing.wait_all_tasks_blocked(0.01)


@trio_test
async def test_who_fails_five_calls_in_a_row_gets_none_for_30_s_and_then_some_again(
    engine: Engine, still_clock: MockClock
) -> None:
    ear = Ear()
    async with a_town(engine, outlier=OutlierDetection(), pool={"observer": ear}) as town:
        bad = town.backends[0]
        got = [await a_call(town, [bad]) for _ in range(30)]
        assert got.count(bad) == 5
        [(cluster, address, algorithm, why, for_s)] = ear.heard
        assert (cluster, address, algorithm, for_s) == ("orders", bad.address, "consecutive_failures", 30.0)
        assert why == "5 calls in a row have failed"
        assert f"{bad.address}: ejected: {why} (for 30 s, until the next sweep)" in town.cluster.explain()
        await pass_time(still_clock, 20.0)
        assert bad not in [await a_call(town) for _ in range(6)]
        await pass_time(still_clock, 10.0)
        assert ear.heard[1:] == [("orders", bad.address)]
        assert [await a_call(town) for _ in range(9)].count(bad) == 3
        assert f"{bad.address}: in rotation" in town.cluster.explain()


@trio_test
async def test_who_fails_every_second_call_is_found_at_the_sweep_by_the_settings_for_small_clusters(
    engine: Engine, still_clock: MockClock
) -> None:
    percentage = FailurePercentage(threshold=40, minimum_hosts=3, request_volume=10)
    async with a_town(engine, outlier=OutlierDetection(failure_percentage=percentage)) as town:
        bad = town.backends[0]
        for turn in range(30):
            await a_call(town, [bad] if turn < 15 else [])
            await a_call(town)
        await pass_time(still_clock, 10.0)
        assert not town.cluster.endpoints[0].ejected, "in the first interval it has failed too few"
        for _ in range(15):
            for fails in (True, False):
                for _ in town.backends:
                    await a_call(town, [bad] if fails else [])
        await pass_time(still_clock, 10.0)
        assert (
            town.cluster.endpoints[0].why_ejected
            == "50.0 % of its calls have failed (for 30 s, until the next sweep)"
        )
        assert bad not in [await a_call(town) for _ in range(6)]


async def fail_in_a_row(town: Town, times: int) -> None:
    """Let so many calls to the only backend fail."""
    for _ in range(times):
        await a_call(town, town.backends)


@trio_test
async def test_calls_that_their_callers_give_up_are_neither_good_nor_bad(engine: Engine) -> None:
    async with a_town(engine, outlier=OutlierDetection(), count=1) as town:
        [endpoint] = town.cluster.endpoints
        for _ in range(6):
            call, _ = await town.request()
            await call.reset()
            await town.house.record()
        assert not endpoint.ejected
        await fail_in_a_row(town, 4)
        call, _ = await town.request()
        await call.reset()
        await town.house.record()
        await fail_in_a_row(town, 1)
        assert endpoint.ejected


@trio_test
async def test_what_servers_say_in_the_course_of_business_is_no_failure(engine: Engine) -> None:
    async with a_town(engine, outlier=OutlierDetection(), count=1) as town:
        await fail_in_a_row(town, 4)
        for _ in range(10):
            await a_call(town, town.backends, status=NOT_FOUND)
        await fail_in_a_row(town, 4)
        assert not town.cluster.endpoints[0].ejected


@trio_test
async def test_resets_are_failures_and_what_counts_can_be_set(engine: Engine) -> None:
    async with a_town(engine, outlier=OutlierDetection(), count=1) as town:
        for _ in range(5):
            await a_call(town, town.backends, reset=INTERNAL_ERROR)
        assert town.cluster.endpoints[0].ejected
    async with a_town(engine, outlier=OutlierDetection(failures=("NOT_FOUND",)), count=1) as town:
        await fail_in_a_row(town, 6)
        assert not town.cluster.endpoints[0].ejected
        for _ in range(5):
            await a_call(town, town.backends, status=NOT_FOUND)
        assert town.cluster.endpoints[0].ejected


@pytest.mark.parametrize("least_deadline_s", [0.0, 60.0])
@trio_test
async def test_a_deadline_that_passes_is_a_failure_unless_it_was_too_short_to_mean_anything(
    engine: Engine, least_deadline_s: float, still_clock: MockClock
) -> None:
    outlier = OutlierDetection(least_deadline_s=least_deadline_s)
    async with a_town(engine, outlier=outlier, count=1) as town:
        for _ in range(5):
            call = await town.house.clients[0].request("/a.B/C", (b"grpc-timeout", b"1S"))
            await town.backends[0].request()
            still_clock.jump(1.5)
            assert (await call.answer()).status == Status.DEADLINE_EXCEEDED
            await town.house.record()
        assert town.cluster.endpoints[0].ejected == (least_deadline_s == 0.0)


@trio_test
async def test_a_server_that_leaves_in_good_order_is_not_blamed_for_the_calls_it_did_not_process(
    engine: Engine,
) -> None:
    async with a_town(engine, outlier=OutlierDetection(), count=1) as town:
        [backend] = town.backends
        calls = [await town.house.clients[0].request(body=b"x") for _ in range(8)]
        served = [await backend.request() for _ in calls]
        await served[0].peer.goaway(0)
        again = [await backend.request() for _ in calls]
        for stream in again:
            await stream.respond()
        for call in calls:
            assert (await call.answer()).status == Status.OK
        assert not town.cluster.endpoints[0].ejected


@trio_test
async def test_an_ejected_endpoint_that_leaves_and_comes_back_starts_anew(engine: Engine) -> None:
    ear = Ear()
    async with a_town(engine, outlier=OutlierDetection(), pool={"observer": ear}, count=2) as town:
        bad, good = town.backends
        call, late = await town.request()
        for _ in range(12):
            await a_call(town, [bad])
        assert town.cluster.endpoints[0].ejected
        town.cluster.found([EndpointAddress(good.address)])
        await late.respond(trailers=[(b"grpc-status", UNAVAILABLE)])
        await call.answer()
        town.cluster.found([EndpointAddress(bad.address), EndpointAddress(good.address)])
        assert bad in [await a_call(town) for _ in range(4)]
        assert len(ear.heard) == 1
        for _ in range(12):
            await a_call(town, [good])
        assert [address for _, address, *_ in ear.heard] == [bad.address, good.address], (
            "one may be ejected again"
        )


@trio_test
async def test_without_outlier_detection_nobody_is_told_of_each_call(engine: Engine) -> None:
    async with a_town(engine) as town:
        assert all(endpoint.hear_ended is None for endpoint in town.cluster.endpoints)
        await until(lambda: not town.cluster.panics)


def test_settings_that_would_find_nobody_are_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="minimum_hosts of 3 would never find an outlier"):
        Cluster(["a:1"], pool=Pool(), outlier=OutlierDetection(success_rate=SuccessRate(minimum_hosts=3)))
    nothing = OutlierDetection(success_rate=None, failure_percentage=None, consecutive_failures=None)
    with pytest.raises(ConfigError, match="nothing would be looked at"):
        Cluster(["a:1"], pool=Pool(), outlier=nothing)
    with pytest.raises(ConfigError, match="has 'OK'; what may be a failure: UNKNOWN, "):
        OutlierDetection(failures=("OK",))
