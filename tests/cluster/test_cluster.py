"""A cluster chooses an endpoint for each call, and goes by what is found and by what works."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, Cluster, ConfigError, Pool, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.proxy.director import Direction
from tests.cluster.town import a_town
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import message

pytestmark = on_every_engine

REFUSED_STREAM = 7
NOWHERE = "127.0.0.1:1"


@trio_test
async def test_calls_go_to_the_endpoints_in_turn(engine: Engine) -> None:
    async with a_town(engine) as town:
        places = [await town.served_by() for _ in range(6)]
        assert places[:3] == places[3:]
        assert sorted(places[:3]) == sorted(backend.address for backend in town.backends)


@trio_test
async def test_an_endpoint_that_cannot_be_connected_to_fails_no_call(engine: Engine) -> None:
    async with a_town(engine, NOWHERE, count=2) as town:
        with trio.fail_after(town.house.pool._state.connect_wait_s * 5):  # nobody waits for the next dial
            places = [await town.served_by() for _ in range(8)]
        assert set(places) == {backend.address for backend in town.backends}
        assert any(line.startswith(f"{NOWHERE}: cannot be connected to") for line in town.cluster.explain())


@trio_test
async def test_without_any_endpoint_that_works_the_call_is_unavailable(engine: Engine) -> None:
    async with a_town(engine, NOWHERE, "127.0.0.1:2", count=0) as town:
        answer = await (await town.house.clients[0].request()).answer()
        assert answer.status == Status.UNAVAILABLE
        assert b"cannot connect to 127.0.0.1:" in (answer.message or b"")
        await town.house.record()


@trio_test
async def test_a_refused_call_goes_to_another_endpoint(engine: Engine) -> None:
    async with a_town(engine, count=2) as town:
        call, first = await town.request()
        await first.reset(REFUSED_STREAM)
        [other] = [backend for backend in town.backends if first.peer not in backend.peers]
        second = await other.request()
        assert await second.request_body() == message(b"hello")
        await second.respond(b"at last")
        assert (await call.answer()).body == message(b"at last")
        assert (await town.house.record()).upstream == other.address


@trio_test
async def test_an_endpoint_that_is_found_no_more_finishes_its_calls_and_gets_no_new_ones(
    engine: Engine,
) -> None:
    async with a_town(engine, count=2) as town:
        call, served = await town.request()
        [gone] = [backend for backend in town.backends if served.peer in backend.peers]
        [stays] = [backend for backend in town.backends if backend is not gone]
        town.cluster.found([EndpointAddress(stays.address)])
        assert [await town.served_by() for _ in range(3)] == [stays.address] * 3
        assert f"{gone.address}: leaves, with 1 calls" in town.cluster.explain()
        await served.respond(b"late")
        assert (await call.answer()).body == message(b"late")
        await served.peer.ended.wait()  # its connection ends with its last call
        await town.house.record()


@trio_test
async def test_endpoints_of_a_lower_priority_get_calls_only_if_none_of_a_higher_works(engine: Engine) -> None:
    async with a_town(engine, count=2) as town:
        first, spare = (backend.address for backend in town.backends)
        town.cluster.found([EndpointAddress(first, priority=1), EndpointAddress(spare, priority=2)])
        assert {await town.served_by() for _ in range(4)} == {first}
        town.cluster.found([EndpointAddress(NOWHERE, priority=1), EndpointAddress(spare, priority=2)])
        assert {await town.served_by() for _ in range(4)} == {spare}


@trio_test
async def test_unfit_endpoints_get_no_calls_until_too_few_are_left(engine: Engine) -> None:
    async with a_town(engine, count=3) as town:
        one, two, three = town.cluster.endpoints
        one.healthy = False
        town.cluster.refresh()
        assert {await town.served_by() for _ in range(4)} == {two.address, three.address}
        two.ejected = True
        town.cluster.refresh()
        assert {await town.served_by() for _ in range(3)} == {one.address, two.address, three.address}
        assert town.cluster.explain()[-1] == "too few are fit for calls: all get some"


@trio_test
async def test_an_endpoint_hears_how_its_calls_ended_but_for_those_given_up(engine: Engine) -> None:
    async with a_town(engine, count=1) as town:
        [endpoint] = town.cluster.endpoints
        heard: list[Status] = []
        endpoint.hear_ended = lambda status, _: heard.append(status)
        await town.served_by()
        call, served = await town.request()
        await served.respond(trailers=[(b"grpc-status", b"14")])
        await call.answer()
        call, served = await town.request()
        await served.reset(2)
        await call.answer()
        call, served = await town.request()
        await call.reset()
        await until(lambda: endpoint.calls == 0)
        assert heard == [Status.OK, Status.UNAVAILABLE, Status.INTERNAL]


@trio_test
async def test_a_director_may_lease_a_connection_itself(engine: Engine) -> None:
    async with a_town(engine, count=2, leases=True) as town:
        heard: list[Status] = []
        for endpoint in town.cluster.endpoints:
            endpoint.hear_ended = lambda status, _: heard.append(status)
        places = [await town.served_by() for _ in range(4)]
        assert set(places) == {backend.address for backend in town.backends}
        assert heard == [Status.OK] * 4


@trio_test
async def test_a_cluster_that_is_not_open_fails_its_calls_and_says_why(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        cluster = Cluster([house.backend.address], pool=house.pool, name="orders")
        made = house.server

        def director(context: CallContext, method: str) -> Direction:
            return context, cluster

        async with a_proxy(engine, director=director) as other:
            assert made is not other.server
            answer = await (await other.client()).request()
            assert (await answer.answer()).status == Status.INTERNAL
            [error] = other.observer.failed
            assert "<Cluster orders> is not open" in str(error)


def test_what_makes_no_cluster_is_said(engine: Engine) -> None:
    pool = Pool()
    with pytest.raises(ConfigError, match="at least one endpoint"):
        Cluster([], pool=pool)
    with pytest.raises(ConfigError, match="is there twice"):
        Cluster(["a:1", "a:1"], pool=pool)
    with pytest.raises(ConfigError, match=r"write \['a:1'\]"):
        Cluster("a:1", pool=pool)
    with pytest.raises(ConfigError, match="panic_threshold is 2"):
        Cluster(["a:1"], pool=pool, panic_threshold=2)
