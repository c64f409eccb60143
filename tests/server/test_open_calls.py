"""What a server tells of its open calls: how far they are, how long they have been quiet, and what they wait for."""

import sys
from collections.abc import Callable, Generator, Sequence
from functools import partial

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    Cluster,
    Health,
    HedgingPolicy,
    Server,
    Status,
    StreamDirector,
    Target,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.observe.report import OpenCall, OpenCallsReport
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.services.own_health import own_health
from rawgrpc_proxy.upstream.endpoints import endpoint_fact, upstream_connection_facts
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import INITIAL_WINDOW_SIZE, RESPONSE, message, request_fields

pytestmark = on_every_engine
WINDOW = 1000
"""What the peers of these tests let others send them."""


def finished(steps: Generator[None, None, OpenCallsReport]) -> OpenCallsReport:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            facts: OpenCallsReport = end.value
            return facts


def the_call(house: House) -> OpenCall:
    [call] = house.server.open_call_facts()["calls"]
    return call


async def waits_for(house: House, words: str) -> OpenCall:
    """The one open call, once it waits for this."""
    await until(
        lambda: house.server.open_call_facts()["open"] == 1 and words in the_call(house)["waits_for"], words
    )
    return the_call(house)


@trio_test
async def test_a_call_waits_for_the_one_whose_turn_it_is(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        assert house.server.open_call_facts() == {
            "open": 0,
            "methods": {},
            "upstream_methods": {},
            "calls": [],
        }
        call = await client.open(request_fields())
        served = await house.backend.request()
        await waits_for(house, "the caller to go on with its request, or the upstream to answer")

        await call.data(message(b"hello"), end=True)
        assert await served.request_body() == message(b"hello")
        told = await waits_for(house, "the upstream, which is silent")
        assert (told["method"], told["upstream"]) == ("/a.B/C", house.backend.address)
        assert told["peer"].startswith("127.0.0.1:")
        assert (told["request_messages"], told["request_bytes"]) == (1, 10)
        assert (told["response_messages"], told["response_bytes"]) == (0, 0)

        await served.headers(RESPONSE)
        await served.data(message(b"hi"))
        await call.expect_headers()
        await call.expect_data()
        told = await waits_for(house, "has begun its response and does not go on")
        assert (told["response_messages"], told["response_bytes"]) == (1, 7)
        facts = house.server.open_call_facts()
        assert facts["methods"] == facts["upstream_methods"] == {"/a.B/C": 1}
        await served.headers([(b"grpc-status", b"0")], end=True)
        await call.answer()
        await until(lambda: house.server.open_call_facts()["open"] == 0)


@trio_test
async def test_a_caller_that_does_not_read_is_named_with_what_waits_for_it(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client({INITIAL_WINDOW_SIZE: WINDOW})
        client.credits = False
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.data(message(b"x" * 5000))
        told = await waits_for(house, "the caller, which does not read: its window for the call is empty")
        assert f"{5005 - WINDOW} bytes wait" in told["waits_for"]
        await call.reset()
        await until(lambda: house.server.open_call_facts()["open"] == 0)


@trio_test
async def test_an_upstream_that_does_not_read_is_named(engine: Engine) -> None:
    async with a_proxy(engine, backend={INITIAL_WINDOW_SIZE: WINDOW}) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        served.peer.credits = False
        await call.data(message(b"x" * 5000))
        await waits_for(house, "the upstream, which does not read: its window for the call is empty")
        await call.reset()
        await until(lambda: house.server.open_call_facts()["open"] == 0)


@trio_test
async def test_a_call_without_an_upstream_yet_waits_for_the_director_and_then_for_a_connection(
    engine: Engine,
) -> None:
    decided = trio.Event()
    nowhere = trio.socket.socket()
    await nowhere.bind(("127.0.0.1", 0))
    nowhere.listen()
    address = f"127.0.0.1:{nowhere.getsockname()[1]}"

    async def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
        await decided.wait()
        return context, house.pool.target(address)

    with nowhere:
        async with a_proxy(engine, director=director) as house:
            client = await house.client()
            call = await client.request()
            told = await waits_for(house, "the director")
            assert told["upstream"] is None
            assert house.server.open_call_facts()["upstream_methods"] == {}
            decided.set()
            told = await waits_for(house, f"a connection to {address}")
            assert told["upstream"] == address
            target = house.pool.target(address)
            endpoint = endpoint_fact("orders", target)
            assert (endpoint["state"], endpoint["dialling"], endpoint["waiting"]) == ("connecting", 1, 1)
            await call.reset()
            await until(lambda: house.server.open_call_facts()["open"] == 0)


@pytest.mark.parametrize("asked", ["plain", "async", "hedged"])
@trio_test
async def test_a_call_that_waits_for_an_endpoint_of_its_cluster_does_not_blame_the_director(
    engine: Engine, asked: str
) -> None:
    policy = CallPolicy(hedging=HedgingPolicy(hedging_delay_s=1000.0)) if asked == "hedged" else None

    def plain(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policy), cluster

    async def asynchronous(context: CallContext, method: str) -> Direction:
        return plain(context, method)

    async with (
        a_proxy(engine, director=asynchronous if asked == "async" else plain) as house,
        Cluster(Unknown(), pool=house.pool) as cluster,
    ):
        call = await (await house.client()).request()
        told = await waits_for(house, "an endpoint of its cluster")
        assert told["upstream"] is None
        cluster.found([EndpointAddress(house.backend.address)])
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


class Unknown:
    """A source that has not found anything."""

    problem = note = None

    async def watch(self, tell: Callable[[Sequence[EndpointAddress]], None]) -> None:
        await trio.sleep_forever()

    def look_up_soon(self) -> None:
        pass


@trio_test
async def test_a_method_that_is_served_here_is_what_its_call_waits_for(engine: Engine) -> None:
    def configure(server: Server, _director: StreamDirector) -> None:
        for path, method in Health().methods().items():
            server.add_method(path, method)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        watch = await client.request("/grpc.health.v1.Health/Watch", body=b"")
        await watch.expect_headers()
        told = await waits_for(house, "the handler that serves it")
        assert told["method"] == "/grpc.health.v1.Health/Watch"
        await watch.reset()


@trio_test
async def test_a_call_that_a_listener_of_its_own_answers_waits_for_no_director(engine: Engine) -> None:
    def nowhere(_context: CallContext, _method: str) -> tuple[CallContext, Target]:
        raise AssertionError("the proxy answers this itself")

    async with a_proxy(engine) as house:
        serve = partial(house.server.serve, "127.0.0.1:0", handlers=own_health([""], nowhere))
        house.address = await house.nursery.start(serve)
        client = await house.client()
        watch = await client.request("/grpc.health.v1.Health/Watch", body=b"")
        await watch.expect_headers()
        await waits_for(house, "the handler that serves it")
        await watch.reset()


@trio_test
async def test_the_longest_quiet_calls_come_first_and_no_more_than_asked_for(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        calls = [await client.open(request_fields(f"/a.B/{name}")) for name in ("First", "Second", "Third")]
        served = [await house.backend.request() for _ in calls]
        for call in calls:
            await call.data(message(b"x"))
        for each in served:
            await each.expect_data()
        assert house.server.open_call_facts()["open"] == 3
        await trio.sleep(0.2)  # quiet is what they have to be, and for longer than the last one
        await calls[1].data(message(b"more"))
        # They may come to the backend in another order.
        [second] = [each for each in served if each.request.get_all(b":path") == [b"/a.B/Second"]]
        await second.expect_data()
        facts = house.server.open_call_facts(limit=2)
        assert facts["open"] == 3
        assert {call["method"] for call in facts["calls"]} == {"/a.B/First", "/a.B/Third"}
        assert all(call["quiet_s"] >= 0.19 for call in facts["calls"])
        [last] = [call for call in house.server.open_call_facts()["calls"] if call["method"] == "/a.B/Second"]
        assert last["quiet_s"] < last["age_s"]
        for call in calls:
            await call.reset()


@trio_test
async def test_connections_tell_their_bytes_and_calls_where_the_system_counts_them(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        await client.request(body=b"x" * 3000)
        served = await house.backend.request()
        await served.request_body()
        [down] = house.server.open_connection_facts()
        assert (down["side"], down["calls"], down["tls"], down["draining"]) == ("downstream", 1, None, False)
        [up] = upstream_connection_facts([house.pool.target(house.backend.address)])
        assert (up["side"], up["peer"], up["calls"]) == ("upstream", house.backend.address, 1)
        if sys.platform == "linux":
            assert 3000 < (down["bytes_in"] or 0) < 4000
            assert 3000 < (up["bytes_out"] or 0) < 4000
            assert 0 < (up["bytes_in"] or 0) < 1000
        assert house.server.open_connection_facts(limit=0) == []
        endpoint = endpoint_fact("orders", house.pool.target(house.backend.address))
        assert (endpoint["state"], endpoint["connections"], endpoint["calls"], endpoint["streams"]) == (
            "ready",
            1,
            1,
            1,
        )
        await served.respond()


@trio_test
async def test_an_endpoint_that_cannot_be_reached_is_in_backoff_and_says_why(engine: Engine) -> None:
    address = "127.0.0.1:1"

    async def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
        return context, house.pool.target(address)

    async with a_proxy(engine, director=director, pool={"connect_wait_s": 0}) as house:
        target = house.pool.target(address)
        assert endpoint_fact("orders", target)["state"] == "idle"
        client = await house.client()
        await (await client.request()).answer()
        endpoint = endpoint_fact("orders", target)
        assert endpoint["state"] in {"backoff", "connecting"}
        assert "refused" in (endpoint["last_error"] or "")


@trio_test
async def test_many_calls_are_looked_at_in_steps_between_which_some_may_end(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        calls = [await client.open(request_fields()) for _ in range(90)]
        calls += [await other.open(request_fields()) for other in [await house.client()] for _ in range(90)]
        calls += [await other.open(request_fields()) for other in [await house.client()] for _ in range(90)]
        await until(lambda: house.server.open_call_facts()["open"] == len(calls), "all are open")
        steps = house.server.open_call_steps()
        next(steps)  # some have not been looked at
        for call in calls:
            await call.reset()
        await until(lambda: house.server.open_call_facts()["open"] == 0, "all are over")
        facts = finished(steps)
        assert 0 < facts["open"] < len(calls)
        assert len(facts["calls"]) == 100
