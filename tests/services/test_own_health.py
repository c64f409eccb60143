"""Health of the proxy's own services, beside that of backends on the same port."""

import zlib
from collections.abc import Callable

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Server, Status, StreamDirector
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.health import SERVICE, request_for
from rawgrpc_proxy.services import own_health
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import message, request_fields

CHECK, WATCH = f"/{SERVICE}/Check", f"/{SERVICE}/Watch"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
GZIP = (b"grpc-encoding", b"gzip")


def answers_for(*names: str) -> Callable[[Server, StreamDirector], None]:
    def configure(server: Server, director: StreamDirector) -> None:
        for path, handler in own_health.own_health(names, director).items():
            server.add_handler(path, handler)

    return configure


def gzipped(payload: bytes) -> bytes:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return message(packer.compress(payload) + packer.flush(), flag=1)


@on_every_engine
@trio_test
async def test_its_own_services_are_answered_here_and_all_others_by_the_backend(engine: Engine) -> None:
    async with a_proxy(engine, configure=answers_for("edge")) as house:
        client = await house.client()
        own = await (await client.request(CHECK, body=request_for("edge"))).answer()
        assert (own.body, own.status) == (message(SERVING), Status.OK)
        assert (await house.record()).origin == "served"
        for name in ("", "edg", "edge2", "a.B"):
            call = await client.request(CHECK, body=request_for(name))
            served = await house.backend.request()
            assert await served.request_body() == message(request_for(name))
            await served.respond(NOT_SERVING)
            assert (await call.answer()).body == message(NOT_SERVING)
            assert (await house.record()).origin == "upstream"


@on_every_engine
@trio_test
async def test_the_empty_name_is_the_proxy_s_where_it_is_asked_to_answer_it(engine: Engine) -> None:
    async with a_proxy(engine, configure=answers_for("", "edge")) as house:
        client = await house.client()
        for body in (b"", request_for("edge")):
            assert (await (await client.request(CHECK, body=body)).answer()).body == message(SERVING)


# What asks for none of the names is not the proxy's to judge, though one of the names is empty.
ODD = {
    "nothing at all": b"",
    "half a prefix": b"\0\0",
    "half a message": message(request_for("edge"))[:-1],
    "no HealthCheckRequest": message(b"\x08\x01"),
    "longer than a name can be": message(bytes(5000)),
    "compressed, and broken": message(b"no gzip", flag=1),
    "compressed, and too long": gzipped(bytes(5000)),
}


@on_every_engine
@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@trio_test
async def test_what_does_not_clearly_ask_for_one_of_the_names_goes_to_the_backend_as_it_came(
    engine: Engine, body: bytes
) -> None:
    async with a_proxy(engine, configure=answers_for("edge", "")) as house:
        client = await house.client()
        call = await client.open(request_fields(CHECK, GZIP))
        await call.data(body, end=True)
        served = await house.backend.request()
        assert await served.request_body() == body
        await served.respond(NOT_SERVING)
        assert (await call.answer()).body == message(NOT_SERVING)


@on_every_engine
@trio_test
async def test_a_request_that_comes_in_single_bytes_or_compressed_is_read_all_the_same(
    engine: Engine,
) -> None:
    async with a_proxy(engine, configure=answers_for("edge")) as house:
        client = await house.client()
        for name, answerer in (("edge", None), ("a.B", house.backend)):
            for body in (message(request_for(name)), gzipped(request_for(name))):
                call = await client.open(request_fields(CHECK, GZIP))
                for place in range(len(body)):
                    await (
                        client.ping()
                    )  # what was sent before has been dealt with, so this is a read of its own
                    await call.data(body[place : place + 1], end=place == len(body) - 1)
                if answerer is not None:
                    served = await answerer.request()
                    assert await served.request_body() == body
                    await served.respond(SERVING)
                assert (await call.answer()).body == message(SERVING)


@on_every_engine
@trio_test
async def test_those_who_watch_the_proxy_hear_of_its_stop_and_those_who_watch_a_backend_go_on(
    engine: Engine,
) -> None:
    async with a_proxy(engine, configure=answers_for("edge")) as house:
        client = await house.client()
        ours = await client.request(WATCH, body=request_for("edge"))
        await ours.expect_headers()
        assert await ours.read(7) == message(SERVING)
        theirs = await client.request(WATCH, body=request_for("a.B"))
        served = await house.backend.request()
        house.server.stop(grace_s=3600)
        answer = await ours.answer()
        assert (answer.body, answer.status) == (message(NOT_SERVING), Status.UNAVAILABLE)
        await served.respond(SERVING)
        assert (await theirs.answer()).body == message(SERVING)
        await client.closed()


@on_every_engine
@trio_test
async def test_a_caller_that_gives_up_before_it_has_asked_leaves_nothing_behind(engine: Engine) -> None:
    async with a_proxy(engine, configure=answers_for("edge")) as house:
        client = await house.client()
        call = await client.open(request_fields(CHECK))
        await client.ping()
        await call.reset()
        assert (await house.record()).status == Status.CANCELLED
        late = await client.open(request_fields(CHECK, (b"grpc-timeout", b"50m")))
        assert (await late.answer()).status == Status.DEADLINE_EXCEEDED


@on_every_engine
@trio_test
async def test_a_request_that_does_not_come_is_waited_for_by_the_backend_in_the_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_health, "_STALLED_S", 0.05)
    async with a_proxy(engine, configure=answers_for("edge")) as house:
        client = await house.client()
        body = message(request_for("edge"))
        call = await client.open(request_fields(CHECK))
        await call.data(body[:3])
        served = await house.backend.request()
        await call.data(body[3:], end=True)
        assert await served.request_body() == body
        await served.respond(SERVING)
        assert (await call.answer()).body == message(SERVING)


@on_every_engine
@trio_test
async def test_of_a_message_that_is_too_long_for_a_name_no_more_than_its_length_is_waited_for(
    engine: Engine,
) -> None:
    async with a_proxy(engine, configure=answers_for("edge")) as house:
        client = await house.client()
        body = message(bytes(2**20))
        call = await client.open(request_fields(CHECK))
        await call.data(body[:5])
        served = await house.backend.request()
        await call.body(body[5:], end=True)
        assert await served.request_body() == body
        await served.respond(SERVING)
        assert (await call.answer()).body == message(SERVING)


@on_every_engine
@trio_test
async def test_without_names_all_is_the_backend_s(engine: Engine) -> None:
    async with a_proxy(engine, configure=answers_for()) as house:
        client = await house.client()
        call = await client.request(CHECK, body=request_for("rawgrpc_proxy"))
        await (await house.backend.request()).respond(SERVING)
        assert (await call.answer()).body == message(SERVING)
