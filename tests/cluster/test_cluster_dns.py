"""A cluster whose addresses DNS knows: they come and go, and no call notices."""

import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import dns.rcode
import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import CallContext, Cluster, Http2Settings, Pool, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.dns_resolver import DnsResolver
from rawgrpc_proxy.discovery.dns_source import DnsSource
from rawgrpc_proxy.net.tls_files import upstream_context
from rawgrpc_proxy.proxy.director import Direction
from tests.discovery.dns_server import DnsServer, dns_server
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import Backend, PeerStream
from tests.upstream.backend import REQUEST, Upstream

pytestmark = [
    on_every_engine,
    pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address"),
]

NAME = "orders.internal"


@pytest.fixture(name="clock")
def time_that_stands_still() -> MockClock:
    """A clock that goes on only when a test says so."""
    return MockClock()


async def time_passes_until(condition: Callable[[], bool], clock: MockClock) -> None:
    """In steps, each with all that comes of it on the sockets."""
    while not condition():
        clock.jump(0.25)
        await trio.testing.wait_all_tasks_blocked(0.01)


@dataclass
class Town:
    """A proxy before a cluster whose name a DNS server knows, and three backends on one port that it may be."""

    house: House
    cluster: Cluster
    server: DnsServer
    backends: list[Backend]

    def name_means(self, *numbers: int) -> None:
        if numbers:
            self.server.set(NAME, "A", *(f"127.0.0.{number}" for number in numbers))

    def cluster_is(self, *numbers: int) -> bool:
        addresses = {self.backends[number - 1].address for number in numbers}
        return {endpoint.address for endpoint in self.cluster.endpoints} == addresses

    async def until_cluster_is(self, *numbers: int) -> None:
        await until(lambda: self.cluster_is(*numbers))


async def hung_up(backend: Backend) -> None:
    """Wait until the proxy has no connection to it any more."""
    for peer in backend.peers:
        await peer.ended.wait()


async def answer_all(backend: Backend, held: list[PeerStream], hold: bool = False) -> None:
    """Answer each call at once; with `hold` the first one is for the test to answer."""
    while True:
        stream = await backend.request()
        if hold and not held:
            held.append(stream)
        else:
            await stream.respond()


@asynccontextmanager
async def a_town(engine: Engine, *numbers: int, **options: Any) -> AsyncIterator[Town]:
    cluster: Cluster | None = None

    def director(context: CallContext, method: str) -> Direction:
        assert cluster is not None
        return context, cluster

    async with (
        dns_server() as server,
        a_proxy(engine, director=director, **options) as house,
        trio.open_nursery() as nursery,
    ):
        backends = [Backend()]
        await nursery.start(backends[0].run)
        port = int(backends[0].address.rpartition(":")[2])
        for number in (2, 3):
            backends.append(Backend(host=f"127.0.0.{number}", port=port))
            await nursery.start(backends[-1].run)
        await house.client()
        server.ttl_s = 0
        source = DnsSource(
            f"{NAME}:{port}",
            min_ttl_s=0.2,
            resolver=DnsResolver([server.address], hosts_file="/nonexistent"),
        )
        cluster = Cluster(source, pool=house.pool, name="orders")
        town = Town(house, cluster, server, backends)
        town.name_means(*numbers)
        async with cluster:
            yield town
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_name_of_two_then_three_then_one_address_is_followed_and_no_call_fails(
    engine: Engine,
) -> None:
    """A call that is open on an address when it goes comes to its end there; then the connection is closed."""
    async with a_town(engine, 1, 2) as town, trio.open_nursery() as nursery:
        held: list[PeerStream] = []
        served: Counter[str] = Counter()
        one, two, three = (backend.address for backend in town.backends)

        async def call() -> None:
            stream = await town.house.clients[0].request(body=b"hello")
            assert (await stream.answer()).status == Status.OK
            served[(await town.house.record()).upstream or ""] += 1

        async def call_until(condition: Callable[[], bool]) -> None:
            """Call, one at a time by each of four, until it is so."""

            async def call_on() -> None:
                while not condition():
                    await call()

            async with trio.open_nursery() as callers:
                for _ in range(4):
                    callers.start_soon(call_on)

        nursery.start_soon(answer_all, town.backends[0], [])
        nursery.start_soon(answer_all, town.backends[1], held, True)
        nursery.start_soon(answer_all, town.backends[2], [])
        slow: list[PeerStream] = []
        while not held:  # the first call that goes to the second backend is not answered yet
            slow.append(await town.house.clients[0].request(body=b"hello"))
            await until(lambda: bool(held) or town.house.observer.unread > 0)
            if not held:
                assert (await slow.pop().answer()).status == Status.OK
                await town.house.record()

        await call_until(lambda: served[one] > 5 and served[two] > 5)
        assert set(served) == {one, two}
        town.name_means(3, 2, 1)
        await call_until(lambda: served[three] > 5)
        assert town.cluster_is(1, 2, 3)

        town.name_means(3)
        await call_until(lambda: town.cluster_is(3))
        before = served.copy()
        await call_until(lambda: served[three] > before[three] + 15)
        assert (served[one], served[two]) == (before[one], before[two])
        assert [endpoint.address for endpoint in town.cluster.draining] == [two]
        await hung_up(town.backends[0])
        await held[0].respond()
        assert (await slow[0].answer()).status == Status.OK
        await town.house.record()
        assert not town.cluster.draining
        await hung_up(town.backends[1])
        nursery.cancel_scope.cancel()


@trio_test
async def test_while_the_name_cannot_be_looked_up_calls_go_where_they_went(engine: Engine) -> None:
    async with a_town(engine, 1) as town:
        await town.until_cluster_is(1)
        town.server.rcode = dns.rcode.SERVFAIL
        await until(lambda: town.cluster.source.problem is not None)
        call = await town.house.clients[0].request(body=b"hello")
        await (await town.backends[0].request()).respond()
        assert (await call.answer()).status == Status.OK
        assert "SERVFAIL" in town.cluster.explain()[-1]
        await town.house.record()


@trio_test
async def test_an_address_that_moves_is_looked_up_again_when_dials_fail_and_the_call_goes_there(
    engine: Engine, clock: MockClock
) -> None:
    """However long the ttl."""
    async with a_town(engine, 1, pool={"connect_wait_s": 2.0}) as town:
        town.server.ttl_s = 300
        await town.until_cluster_is(1)
        await town.backends[0].stop_listening()
        town.name_means(2)
        call = await town.house.clients[0].request(body=b"hello")
        await time_passes_until(lambda: not town.backends[1].no_request_came(), clock)
        await (await town.backends[1].request()).respond()
        assert (await call.answer()).status == Status.OK
        await town.house.record()
        assert town.cluster_is(2)


@trio_test
async def test_a_name_that_cannot_be_looked_up_from_the_start_fails_calls_with_the_cause(
    engine: Engine, clock: MockClock
) -> None:
    async with a_town(engine) as town:
        call = await town.house.clients[0].request(body=b"hello")
        await time_passes_until(lambda: town.house.observer.unread > 0, clock)
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert b"there is no such name (NXDOMAIN)" in (answer.message or b"")
        await town.house.record()


@trio_test
async def test_the_cluster_explains_that_not_all_addresses_are_used(engine: Engine) -> None:
    async with dns_server() as server, Pool(settings=Http2Settings(engine=engine)) as pool:
        server.set(NAME, "A", "127.0.0.1", "127.0.0.2", "127.0.0.3")
        source = DnsSource(f"{NAME}:1", resolver=DnsResolver([server.address]), max_addresses=2)
        async with Cluster(source, pool=pool) as cluster:
            await until(lambda: bool(cluster.endpoints))
            assert cluster.explain()[-1] == (
                "about its addresses: it has 3 ipv4 addresses, of which 2 are used (max_addresses)"
            )


@trio_test
async def test_certificates_are_checked_against_the_name(engine: Engine) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.set_alpn_protocols(["h2"])
    authority.issue_cert(NAME).configure_cert(server_tls)
    client_tls = upstream_context()
    authority.configure_trust(client_tls)
    async with trio.open_nursery() as nursery, dns_server() as server:
        upstream = Upstream(tls=server_tls)
        await nursery.start(upstream.serve)
        server.set(NAME, "A", "127.0.0.1")
        source = DnsSource(
            f"{NAME}:{upstream.address.rpartition(':')[2]}", resolver=DnsResolver([server.address])
        )
        async with Pool() as pool, Cluster(source, pool=pool, ssl_context=client_tls) as cluster:
            await until(lambda: bool(cluster.endpoints))
            conn = await cluster.endpoints[0].target.take()
            conn.open_stream(REQUEST)
            await upstream.until(lambda: bool(upstream.connections[0].open))
        nursery.cancel_scope.cancel()
