"""What each preset does, in raw frames, and what our own client makes of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.command.demo import ECHO_SERVICE
from rawgrpc_proxy.command.lab.one_upstream import Links, OneUpstream
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.lab.faults.actions import Delay
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.injector import Faults
from rawgrpc_proxy.lab.faults.places import AtTrailers, BeforeHeaders, Part, Place
from rawgrpc_proxy.lab.faults.presets import PRESETS
from rawgrpc_proxy.lab.faults.pump import with_faults
from tests.command.echo import an_echo
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import TRAILERS_ONLY, GoAway, RawPeer, message

UNARY = f"/{ECHO_SERVICE}/Unary"
HELLO = b"\x0a\x05hello"


def faults_of(name: str) -> Faults:
    return Faults(PRESETS[name].faults, seed=1)


@asynccontextmanager
async def a_raw_house(name: str, engine: Engine) -> AsyncIterator[tuple[House, RawPeer]]:
    """A proxy with this preset between raw peers, and a client of it."""
    async with a_proxy(engine, wrap=with_faults(faults_of(name))) as house:
        yield house, await house.client()


# ------------------------------------------------------------------ gRPC's negative tests, frame by frame


@on_every_engine
@trio_test
async def test_goaway_comes_after_the_first_call_and_the_next_is_for_another_connection(
    engine: Engine,
) -> None:
    async with a_raw_house("goaway", engine) as (house, client):
        call = await client.request(body=b"hello")
        await (await house.backend.request()).respond(b"hello")
        assert await client.expect_goaway() == GoAway(last_stream_id=call.id, code=0, debug=b"")
        answer = await call.answer()
        assert (answer.status, answer.body) == (0, message(b"hello"))
        again = await house.client()
        call = await again.request(body=b"hello")
        await (await house.backend.request()).respond(b"hello")
        assert (await call.answer()).status == 0
        await again.ping()
        assert not [line for line in again.log if line.startswith("GOAWAY")]


@on_every_engine
@trio_test
async def test_rst_after_header_leaves_the_headers_alone(engine: Engine) -> None:
    async with a_raw_house("rst_after_header", engine) as (house, client):
        call = await client.request(body=b"hello")
        served = await house.backend.request()
        await served.respond(b"hello")
        answer = await call.answer()
        assert (answer.frames, answer.reset, answer.status) == (["HEADERS", "RST_STREAM"], 0, None)


@on_every_engine
@trio_test
async def test_rst_during_data_cuts_a_message_in_two(engine: Engine) -> None:
    async with a_raw_house("rst_during_data", engine) as (house, client):
        call = await client.request(body=b"hello")
        await (await house.backend.request()).respond(b"hello")
        answer = await call.answer()
        assert (answer.frames, answer.reset) == (["HEADERS", "DATA", "RST_STREAM"], 0)
        assert answer.body == message(b"hello")[:3]


@on_every_engine
@trio_test
async def test_rst_after_data_comes_in_the_place_of_the_trailers(engine: Engine) -> None:
    async with a_raw_house("rst_after_data", engine) as (house, client):
        call = await client.request(body=b"hello")
        await (await house.backend.request()).respond(b"hello")
        answer = await call.answer()
        assert (answer.frames, answer.reset) == (["HEADERS", "DATA", "RST_STREAM"], 0)
        assert answer.body == message(b"hello")


@on_every_engine
@trio_test
async def test_pings_come_around_headers_and_data(engine: Engine) -> None:
    async with a_raw_house("ping", engine) as (house, client):
        call = await client.request(body=b"hello")
        served = await house.backend.request()
        await served.respond(b"hello")
        assert (await call.answer()).status == 0
        wanted = {"PING", "HEADERS", "DATA"}
        assert [line.split()[0] for line in client.log if line.split()[0] in wanted] == [
            "PING",
            "HEADERS",
            "PING",
            "PING",
            "DATA",
            "PING",
            "HEADERS",
        ]


@on_every_engine
@trio_test
async def test_max_streams_allows_one_call_at_a_time(engine: Engine) -> None:
    async with a_raw_house("max_streams", engine) as (house, client):
        await client.ping()
        assert client.peer_settings[0x3] == 1
        call = await client.request(body=b"hello")
        await (await house.backend.request()).respond(b"hello")
        assert (await call.answer()).status == 0


@on_every_engine
@trio_test
async def test_data_frames_are_padded_and_their_credit_is_given_back(engine: Engine) -> None:
    async with a_raw_house("data_frame_padding", engine) as (house, client):
        body = bytes(300_000)
        call = await client.request(body=b"hello")
        served = await house.backend.request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.respond, body)
            answer = await call.answer()
        assert (answer.status, answer.body) == (0, message(body))
        data = [line for line in client.log if line.startswith("DATA")]
        assert len(data) > 10
        assert all("PADDED" in line for line in data)


@on_every_engine
@trio_test
async def test_lb_502_is_a_page_of_html_and_the_backend_hears_nothing(engine: Engine) -> None:
    async with a_raw_house("lb-502", engine) as (_, client):
        call = await client.request(body=b"hello")
        answer = await call.answer()
        assert (answer.http_status, answer.status) == (b"502", None)
        assert answer.headers is not None
        assert answer.headers.get(b"content-type") == b"text/html"
        assert b"502 Bad Gateway" in answer.body


@on_every_engine
@trio_test
async def test_an_overloaded_server_says_when_to_come_back(engine: Engine) -> None:
    async with a_raw_house("overloaded", engine) as (_, client):
        await client.ping()
        assert client.peer_settings[0x3] == 4
        refused = None
        while refused is None:
            call = await client.request(body=b"hello")
            with trio.move_on_after(1):
                refused = await call.answer()
        assert (refused.status, refused.message) == (8, b"overloaded")
        assert refused.get(b"grpc-retry-pushback-ms") == b"500"


@pytest.mark.parametrize("where", [BeforeHeaders(of=Part.RESPONSE), AtTrailers(), BeforeHeaders()])
@on_every_engine
@trio_test
async def test_an_answer_of_nothing_but_trailers_stays_one_when_it_is_late(
    engine: Engine, where: Place
) -> None:
    faults = Faults([Fault(where=where, do=Delay(seconds=0.01))])
    async with a_proxy(engine, wrap=with_faults(faults)) as house:
        client = await house.client()
        call = await client.request(body=b"hello")
        await (await house.backend.request()).headers(TRAILERS_ONLY, end=True)
        answer = await call.answer()
        assert (answer.status, answer.frames) == (0, ["HEADERS END_STREAM"])
        assert faults.counts["fault-1"].struck == 1


# ------------------------------------------------------------------ what a client makes of it


@asynccontextmanager
async def a_client(name: str, engine: Engine) -> AsyncIterator[tuple[Client, Faults]]:
    """A client of a proxy with this preset before an echo."""
    faults = faults_of(name)
    async with an_echo() as upstream:
        links = Links(
            listen="127.0.0.1:0",
            upstream=upstream,
            listener_tls=None,
            upstream_tls=None,
            settings=Http2Settings(engine=engine),
        )
        house = OneUpstream(links, wrap=with_faults(faults))
        async with house.pool, trio.open_nursery() as nursery:
            async with Client(await nursery.start(house.serve)) as client:
                yield client, faults
            nursery.cancel_scope.cancel()


async def outcome(client: Client, timeout_s: float | None = None) -> str:
    try:
        assert await client.unary_unary(UNARY, HELLO, timeout=timeout_s) == HELLO
    except RpcError as error:
        return error.status.name
    return "OK"


async def outcomes(client: Client, calls: int) -> list[str]:
    """One after the other."""
    return [await outcome(client) for _ in range(calls)]


async def at_once(client: Client, calls: int) -> list[str]:
    found: list[str] = []

    async def one() -> None:
        found.append(await outcome(client))

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(one)
    return found


EXPECTED = {
    "goaway": ["OK"] * 10,
    "rst_after_header": ["INTERNAL"] * 10,
    "rst_during_data": ["INTERNAL"] * 10,
    "rst_after_data": ["INTERNAL"] * 10,
    "ping": ["OK"] * 10,
    "max_streams": ["OK"] * 10,
    "data_frame_padding": ["OK"] * 10,
    "lb-502": ["UNAVAILABLE"] * 10,
    "deploy": ["OK"] * 4 + ["UNAVAILABLE"] * 3 + ["OK"] * 3,
}


@pytest.mark.parametrize("name", EXPECTED)
@on_every_engine
@trio_test
async def test_a_client_gets_what_the_documents_say(name: str, engine: Engine) -> None:
    async with a_client(name, engine) as (client, _):
        assert await outcomes(client, 10) == EXPECTED[name]


@on_every_engine
@trio_test
async def test_ten_calls_at_once_wait_for_each_other_where_one_is_allowed(engine: Engine) -> None:
    async with a_client("max_streams", engine) as (client, _):
        assert await at_once(client, 10) == ["OK"] * 10


@on_every_engine
@trio_test
async def test_some_calls_of_a_flaky_backend_fail_and_the_same_ones_each_time(engine: Engine) -> None:
    runs = []
    for _ in range(2):
        async with a_client("flaky-backend", engine) as (client, faults):
            runs.append(await at_once(client, 40))
            counts = faults.counts
            assert runs[-1].count("UNAVAILABLE") == counts["flaky-unavailable"].struck > 0
            assert runs[-1].count("INTERNAL") == counts["flaky-reset"].struck > 0
            assert counts["flaky-late"].struck > 0
    assert sorted(runs[0]) == sorted(runs[1])


@on_every_engine
@trio_test
async def test_a_slow_network_takes_its_time(engine: Engine) -> None:
    async with a_client("slow-network", engine) as (client, _):
        assert await outcome(client) == "OK"
        began = trio.current_time()
        assert await outcome(client) == "OK"
        assert trio.current_time() - began >= 0.16


@on_every_engine
@trio_test
async def test_a_dead_link_is_there_but_says_nothing(engine: Engine) -> None:
    async with a_client("dead-link", engine) as (client, faults):
        assert await outcomes(client, 2) == ["OK", "OK"]
        assert await outcome(client, 1) == "DEADLINE_EXCEEDED"
        assert await outcome(client, 1) == "DEADLINE_EXCEEDED"
        assert faults.counts["dead-link"].struck == 1


@on_every_engine
@trio_test
async def test_some_calls_to_an_overloaded_server_are_refused(engine: Engine) -> None:
    async with a_client("overloaded", engine) as (client, faults):
        found = await at_once(client, 12)
        assert set(found) == {"OK", "RESOURCE_EXHAUSTED"}
        assert found.count("RESOURCE_EXHAUSTED") == faults.counts["overloaded-refused"].struck


def test_all_presets_are_tested_with_a_client() -> None:
    assert {*EXPECTED, "flaky-backend", "slow-network", "dead-link", "overloaded"} == set(PRESETS)
