"""How the endpoints of clusters are, for those who ask."""

from trio.testing import trio_test

from rawgrpc_proxy.cluster.facts import cluster_facts
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from tests.cluster.town import a_town
from tests.proxy.house import on_every_engine

pytestmark = on_every_engine

NOWHERE = "127.0.0.1:1"


@trio_test
async def test_of_each_endpoint_is_told_whether_it_gets_calls_and_why_not(engine: Engine) -> None:
    async with a_town(engine, NOWHERE, count=4) as town:
        unreachable, well, ejected, unhealthy, unchecked = town.cluster.endpoints
        for _ in range(5):
            await town.served_by()  # so that all are known
        ejected.ejected, ejected.why_ejected = True, "5 calls in a row have failed"
        unhealthy.healthy, unhealthy.why_unhealthy = False, "it says NOT_SERVING"
        unchecked.healthy = None
        town.cluster.refresh()
        facts = {fact["address"]: fact for fact in cluster_facts({"orders": town.cluster})}
        assert [facts[each.address]["standing"] for each in (unreachable, well, ejected, unhealthy, unchecked)] == [
            "unreachable", "in_rotation", "ejected", "unhealthy", "unchecked"
        ]  # fmt: skip
        panic = "(too few are fit for calls: all get some)"
        explain = facts[ejected.address]["explain"].splitlines()
        assert explain == [f"ejected: 5 calls in a row have failed {panic}", "has room: 0 of 20 streams"]
        assert facts[unhealthy.address]["explain"].startswith("failed its health checks: it says NOT_SERVING")
        assert facts[unchecked.address]["explain"].startswith("waits for its first health check")


@trio_test
async def test_an_endpoint_that_leaves_is_told_of_as_long_as_it_has_calls(engine: Engine) -> None:
    async with a_town(engine, count=2) as town:
        call, served = await town.request()
        [gone] = [backend.address for backend in town.backends if served.peer in backend.peers]
        town.cluster.found([EndpointAddress(each.address) for each in town.backends if each.address != gone])
        standing = {fact["address"]: fact["standing"] for fact in cluster_facts({"orders": town.cluster})}
        assert standing[gone] == "draining"
        await served.respond()
        await call.answer()
        await town.house.record()
        assert gone not in [fact["address"] for fact in cluster_facts({"orders": town.cluster})]
