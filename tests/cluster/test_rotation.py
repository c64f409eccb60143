"""Who is in rotation: those that are fit, all if too few are; with what share, and by which key."""

import gc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from rawgrpc_proxy import CallContext, Cluster, ConfigError, Metadata, Pool, PoolObserver
from rawgrpc_proxy.cluster.balance import RoundRobin
from rawgrpc_proxy.cluster.balance_settings import Balance
from rawgrpc_proxy.cluster.endpoint import Endpoint
from rawgrpc_proxy.cluster.slow_start import SlowStart
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.errors import PoolExhausted, UpstreamUnavailable
from tests.upstream.backend import Upstream, run

ADDRESSES = [f"127.0.0.1:{port}" for port in range(1, 5)]


def a_context(peer: str = "192.0.2.1:1234", **metadata: str) -> CallContext:
    pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    return CallContext(method="/a.B/C", metadata=Metadata.from_pairs(pairs), peer=peer)


def picked(cluster: Cluster, count: int = 100) -> Counter[str]:
    """Where so many calls would go, none of which takes any time."""
    endpoints = [cluster.pick(a_context()) for _ in range(count)]
    return Counter(each.address for each in endpoints if each is not None)


def with_a_cluster(test: Callable[[Cluster, MockClock], Awaitable[None]], **settings: Any) -> None:
    """Run `test` with a cluster of four endpoints, to which nobody connects; time passes only where it says so."""

    async def main() -> None:
        async with Cluster(ADDRESSES, pool=Pool(), name="orders", **settings) as cluster:
            await test(cluster, clock)

    clock = MockClock()
    trio.run(main, clock=clock)


# -------------------------------------------------------------------------- panic


@given(
    fit=st.lists(st.sampled_from(["fit", "sick", "ejected"]), min_size=4, max_size=4),
    threshold=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75, 1.0]),
)
def test_those_that_are_fit_get_the_calls_or_all_if_too_few_are(fit: list[str], threshold: float) -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        for endpoint, state in zip(cluster.endpoints, fit, strict=True):
            endpoint.healthy, endpoint.ejected = state != "sick", state == "ejected"
        cluster.refresh()
        panics = fit.count("fit") < threshold * 4
        assert cluster.panics == panics
        assert set(picked(cluster)) == {
            address for address, state in zip(ADDRESSES, fit, strict=True) if panics or state == "fit"
        }

    with_a_cluster(test, panic_threshold=threshold)


def test_panic_is_over_when_enough_are_fit_again() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        for endpoint in cluster.endpoints[:3]:
            endpoint.healthy = False
        cluster.refresh()
        assert set(picked(cluster)) == set(ADDRESSES)
        cluster.endpoints[0].healthy = True
        cluster.refresh()
        assert not cluster.panics
        assert set(picked(cluster)) == {ADDRESSES[0], ADDRESSES[3]}
        assert "too few are fit for calls: all get some" not in cluster.explain()

    with_a_cluster(test)


def test_endpoints_that_are_gone_count_no_more_for_what_is_enough() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        for endpoint in cluster.endpoints[:3]:
            endpoint.healthy = False
        cluster.refresh()
        assert set(picked(cluster)) == set(ADDRESSES)
        cluster.found([EndpointAddress(address) for address in ADDRESSES[2:]])
        assert not cluster.panics
        assert set(picked(cluster)) == {ADDRESSES[3]}

    with_a_cluster(test)


def test_without_any_endpoint_calls_fail_at_once_and_one_that_is_found_gets_them() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        cluster.found([])
        assert cluster.pick(a_context()) is None
        with pytest.raises(UpstreamUnavailable, match="<Cluster orders> has no endpoint"):
            await cluster.take(a_context())
        cluster.found([EndpointAddress(ADDRESSES[0])])
        assert set(picked(cluster)) == {ADDRESSES[0]}

    with_a_cluster(test)


def test_with_panic_off_and_nobody_fit_the_error_says_so() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        for endpoint in cluster.endpoints:
            endpoint.ejected = True
        cluster.refresh()
        with pytest.raises(UpstreamUnavailable, match="none of the 4 endpoints of <Cluster orders> is fit"):
            await cluster.take(a_context())

    with_a_cluster(test, panic_threshold=0)


# ---------------------------------------------------------------- what is found


def test_an_endpoint_with_another_weight_is_the_same_endpoint() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        before = cluster.endpoints
        cluster.found(
            [EndpointAddress(address, weight=3 if address == ADDRESSES[0] else 1) for address in ADDRESSES]
        )
        assert cluster.endpoints == before
        assert picked(cluster, 60) == {
            address: 30 if address == ADDRESSES[0] else 10 for address in ADDRESSES
        }
        cluster.found([EndpointAddress(address, priority=address == ADDRESSES[0]) for address in ADDRESSES])
        assert cluster.endpoints == before
        assert set(picked(cluster)) == set(ADDRESSES[1:])

    with_a_cluster(test)


def test_one_that_a_source_names_twice_is_one_endpoint_and_leaves_as_one() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        twice = [*(EndpointAddress(address) for address in ADDRESSES), EndpointAddress(ADDRESSES[0])]
        for _ in range(2):
            cluster.found(twice)
            assert [each.address for each in cluster.endpoints] == ADDRESSES
        target = cluster.endpoints[0].target
        cluster.found(twice[1:-1])
        assert target.on_trouble == []

    with_a_cluster(test)


def test_a_source_that_tells_what_is_no_address_changes_nothing() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        with pytest.raises(ConfigError, match="nowhere"):
            cluster.found([EndpointAddress("127.0.0.1:5"), EndpointAddress("nowhere")])
        assert [each.address for each in cluster.endpoints] == ADDRESSES
        assert set(picked(cluster)) == set(ADDRESSES)

    with_a_cluster(test)


def test_one_that_comes_back_while_it_has_calls_leaves_no_more() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        cluster.endpoints[0].target.calls += 1
        cluster.found([EndpointAddress(address) for address in ADDRESSES[1:]])
        assert [each.address for each in cluster.draining] == [ADDRESSES[0]]
        cluster.found([EndpointAddress(address) for address in ADDRESSES])
        assert cluster.draining == []

    with_a_cluster(test)


def test_those_that_are_gone_are_forgotten_though_nobody_asks_for_them() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        gone = [weakref.ref(endpoint.target) for endpoint in cluster.endpoints]
        cluster.found([EndpointAddress("127.0.0.1:5")])
        gc.collect()
        assert [target() for target in gone] == [None] * 4

    with_a_cluster(test)


# ------------------------------------------------------------------ what a call tries


class Counting(RoundRobin[Endpoint]):
    """In turn, and counted."""

    picked = 0

    def pick(self, key: bytes | None = None, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        self.picked += 1
        return super().pick(key, avoid)


def test_while_none_of_many_endpoints_can_be_connected_to_a_call_tries_one() -> None:
    balancer = Counting()

    async def main() -> None:
        async with (
            Pool(connect_wait_s=0) as pool,
            Cluster([f"127.0.0.{n}:1" for n in range(1, 31)], pool=pool, balancer=balancer) as cluster,
        ):
            with pytest.raises(UpstreamUnavailable, match="cannot connect"):
                await cluster.take(a_context())
            assert balancer.picked == 30
            with pytest.raises(UpstreamUnavailable, match="cannot connect"):
                await cluster.take(a_context())
            assert balancer.picked == 31

    trio.run(main)


def test_while_many_endpoints_have_no_room_a_call_tries_some() -> None:
    balancer = Counting()

    async def main() -> None:
        addresses = [f"127.0.0.{n}:1" for n in range(1, 101)]
        async with Cluster(addresses, pool=Pool(), balancer=balancer, max_pending=0) as cluster:
            with pytest.raises(PoolExhausted, match="max_pending"):
                await cluster.take(a_context())
            assert (balancer.picked, cluster.overflows) == (16, 1)

    trio.run(main)


class Faulty(RoundRobin[Endpoint]):
    """A user's own, with a fault."""

    def update(self, candidates: Sequence[Endpoint]) -> None:
        super().update(candidates)
        if any(each.target.trouble is not None for each in candidates):
            raise ValueError("a fault")


def test_a_balancer_that_raises_at_an_update_ends_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda raised: reported.append(raised.exc_value))

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            await nursery.start(upstream.serve)
            async with (
                Pool(connect_wait_s=0) as pool,
                Cluster([ADDRESSES[0]], pool=pool, balancer=Faulty()) as cluster,
            ):
                with pytest.raises(UpstreamUnavailable, match="cannot connect"):
                    await cluster.take(a_context())
                (await pool.get_conn(upstream.address)).close()
            nursery.cancel_scope.cancel()

    run(test)
    assert [str(error) for error in reported] == ["a fault"]


class DialCount(PoolObserver):
    """Counts dials."""

    dials = 0

    def dial_started(self, address: str) -> None:
        self.dials += 1


def test_an_endpoint_that_cannot_be_connected_to_is_dialled_no_more_once_it_is_gone() -> None:
    dials = DialCount()
    clock = MockClock()

    async def main() -> None:
        async with (
            Pool(connect_wait_s=0, observer=dials) as pool,
            Cluster([ADDRESSES[0]], pool=pool) as cluster,
        ):
            with pytest.raises(UpstreamUnavailable):
                await cluster.take(a_context())
            cluster.found([])
            before = dials.dials
            for _ in range(20):
                clock.jump(1)
                await wait_all_tasks_blocked(0.01)
            assert dials.dials == before
            assert pool.stats() == {}

    trio.run(main, clock=clock)


# --------------------------------------------------------------------- slow start


async def pass_time(clock: MockClock, seconds: float) -> None:
    for _ in range(10):
        clock.jump(seconds / 10)
        await wait_all_tasks_blocked()


@pytest.mark.parametrize("balance", ["round_robin", "least_request", "ring_hash"])
def test_the_share_of_one_that_joins_grows_with_the_time(balance: str) -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        at_first, last = cluster.endpoints[:3], ADDRESSES[3]
        cluster.found([each.found for each in at_first])
        await pass_time(clock, 100)
        cluster.found([*(each.found for each in at_first), EndpointAddress(last)])
        shares = []
        for _ in range(5):
            shares.append(shares_of(last))
            await pass_time(clock, 10)
        parts = [0.1, 0.25, 0.5, 0.75, 1.0]
        slack = 0.07 if balance == "ring_hash" else 0.03
        assert shares == pytest.approx([part / (3 + part) for part in parts], abs=slack)
        assert shares == sorted(shares)

    def shares_of(address: str) -> float:
        calls = [a_context(x_user=str(number)) for number in range(3000)]
        found = [cluster_of[0].pick(call) for call in calls]
        return sum(each is not None and each.address == address for each in found) / len(found)

    async def noted(cluster: Cluster, clock: MockClock) -> None:
        cluster_of.append(cluster)
        await test(cluster, clock)

    cluster_of: list[Cluster] = []
    with_a_cluster(
        noted,
        balance=Balance(policy="ring_hash", header="x-user") if balance == "ring_hash" else balance,
        slow_start=SlowStart(window_s=40),
    )


def test_the_endpoints_there_are_at_first_have_their_weights_at_once() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        assert set(picked(cluster).values()) == {25}
        assert [each.effective_weight for each in cluster.endpoints] == [1] * 4

    with_a_cluster(test, slow_start=SlowStart(window_s=60))


def test_one_that_was_sick_starts_again_and_others_are_not_disturbed() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        sick, *others = cluster.endpoints
        for healthy in (False, True):
            await pass_time(clock, 5)
            sick.healthy = healthy
            cluster.refresh()
        assert sick.effective_weight == 0.1
        assert f"{sick.address}: in rotation, with 10% of its weight (slow start)" in cluster.explain()
        await pass_time(clock, 30)
        assert sick.effective_weight == pytest.approx(0.5)
        await pass_time(clock, 40)
        assert sick.effective_weight == 1
        assert [each.effective_weight for each in others] == [1] * 3

    with_a_cluster(test, slow_start=SlowStart(window_s=60))


def test_nothing_runs_once_all_have_started() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        cluster.found([each.found for each in cluster.endpoints] + [EndpointAddress("127.0.0.1:5")])
        await pass_time(clock, 70)
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline > 10**6

    with_a_cluster(test, slow_start=SlowStart(window_s=60))


# ------------------------------------------------------------------------ min_idle


def test_connections_to_each_endpoint_are_ready_before_any_call_and_until_it_is_gone() -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstreams = [Upstream() for _ in range(3)]
            for upstream in upstreams:
                await nursery.start(upstream.serve)
            addresses = [upstream.address for upstream in upstreams]
            async with Pool() as pool:
                async with Cluster(addresses[:2], pool=pool, min_idle=2) as cluster:
                    for upstream in upstreams[:2]:
                        assert len(await upstream.connected(2)) == 2
                    cluster.found([EndpointAddress(address) for address in addresses[1:]])
                    assert len(await upstreams[2].connected(2)) == 2
                    await upstreams[0].until(lambda: not upstreams[0].live)
                    assert len(upstreams[0].connections) == 2
                targets = [pool.target(address) for address in addresses]
                assert [target.established + target.dialling for target in targets] == [0, 2, 2]
            nursery.cancel_scope.cancel()

    run(test)


def test_an_endpoint_that_leaves_one_of_two_clusters_is_kept_ready_for_the_other() -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            await nursery.start(upstream.serve)
            async with (
                Pool() as pool,
                Cluster([upstream.address], pool=pool, min_idle=2),
                Cluster([upstream.address], pool=pool, min_idle=1) as other,
            ):
                connections = await upstream.connected(2)
                await wait_all_tasks_blocked(0.01)
                other.found([])
                await wait_all_tasks_blocked(0.01)
                assert upstream.live == connections
                await connections[0].close()
                await upstream.until(lambda: len(upstream.connections) == 3)
            nursery.cancel_scope.cancel()

    run(test)


def test_no_more_can_be_ready_than_the_pool_keeps_and_the_pool_has_to_be_open() -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match="min_idle is 3; it must be between 0 and 2"):
            Cluster(ADDRESSES, pool=Pool(idle=2), min_idle=3)
        with pytest.raises(ConfigError, match="open its pool first"):
            async with Cluster(ADDRESSES, pool=Pool(), min_idle=1):
                pass

    trio.run(test)


# ------------------------------------------------------------------------ affinity


def test_calls_with_the_same_header_go_to_the_same_endpoint_and_others_by_their_caller() -> None:
    async def test(cluster: Cluster, clock: MockClock) -> None:
        def places(contexts: list[CallContext]) -> set[str]:
            return {each.address for each in map(cluster.pick, contexts) if each is not None}

        users = [a_context(f"192.0.2.{number}:{number}", x_user="ann") for number in range(1, 30)]
        assert len(places(users)) == 1
        assert len(places([a_context(x_user=str(number)) for number in range(50)])) == 4
        assert len(places([a_context(f"192.0.2.7:{port}") for port in range(1, 50)])) == 1
        assert len(places([a_context(f"192.0.2.{number}:7") for number in range(1, 50)])) == 4
        assert len(places([a_context("unix:") for number in range(50)])) == 4

    with_a_cluster(test, balance=Balance(policy="ring_hash", header="x-user"))


def test_a_policy_that_does_not_exist_is_said() -> None:
    with pytest.raises(ConfigError, match="balance is 'fair'; it must be one of round_robin"):
        Cluster(ADDRESSES, pool=Pool(), balance="fair")
