"""grpc.health.v1.Health, served by the proxy itself."""

from trio.testing import trio_test

from rawgrpc_proxy import Health, Server, ServingStatus, Status, StreamDirector
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.health import SERVICE, request_for
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import message


@on_every_engine
@trio_test
async def test_check_tells_the_state_of_a_service(engine: Engine) -> None:
    health = Health()
    health.set("a.B", ServingStatus.NOT_SERVING)
    health.set("a.C", ServingStatus.UNKNOWN)

    def configure(server: Server, director: StreamDirector) -> None:
        for path, method in health.methods().items():
            server.add_method(path, method)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        for service, answer in (("", b"\x08\x01"), ("a.B", b"\x08\x02"), ("a.C", b"")):
            call = await client.request(f"/{SERVICE}/Check", body=request_for(service))
            assert (await call.answer()).body == message(answer)
        unknown = await (await client.request(f"/{SERVICE}/Check", body=request_for("x"))).answer()
        assert (unknown.status, unknown.message) == (Status.NOT_FOUND, b"there is no service 'x' here")
        broken = await (await client.request(f"/{SERVICE}/Check", body=b"\xff")).answer()
        assert broken.status == Status.INTERNAL
        long = await (await client.request(f"/{SERVICE}/Check", body=bytes(5000))).answer()
        assert long.status == Status.RESOURCE_EXHAUSTED


@on_every_engine
@trio_test
async def test_watch_tells_every_change(engine: Engine) -> None:
    health = Health()

    def configure(server: Server, director: StreamDirector) -> None:
        for path, method in health.methods().items():
            server.add_method(path, method)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        call = await client.request(f"/{SERVICE}/Watch", body=request_for("a.B"))
        await call.expect_headers()
        assert await call.read(7) == message(b"\x08\x03")
        health.set("other", ServingStatus.SERVING)
        health.set("a.B", ServingStatus.SERVING)
        assert await call.read(7) == message(b"\x08\x01")
        health.set("a.B", ServingStatus.SERVING)
        health.set("a.B", ServingStatus.NOT_SERVING)
        assert await call.read(7) == message(b"\x08\x02")
        await call.reset()
        assert (await house.record()).status == Status.CANCELLED


@on_every_engine
@trio_test
async def test_at_the_stop_those_who_watch_are_told_and_do_not_use_up_the_time_of_others(
    engine: Engine,
) -> None:
    health = Health()

    def configure(server: Server, director: StreamDirector) -> None:
        for path, method in health.methods().items():
            server.add_method(path, method)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        watches = [await client.request(f"/{SERVICE}/Watch", body=request_for(name)) for name in ("", "x")]
        for watch, state in zip(watches, (b"\x08\x01", b"\x08\x03"), strict=True):
            await watch.expect_headers()
            assert await watch.read(7) == message(state)
        call = await client.request("/a.B/C")
        served = await house.backend.request()
        house.server.stop(grace_s=3600)
        known, unknown = [await watch.answer() for watch in watches]
        assert known.body == message(b"\x08\x02")
        assert unknown.body == b""
        for answer in (known, unknown):
            assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"the server is shutting down")
        await served.respond()
        assert (await call.answer()).status == Status.OK
        await client.closed()
        assert house.server.open_connections == 0


@on_every_engine
@trio_test
async def test_who_asks_during_the_stop_is_told(engine: Engine) -> None:
    health = Health()

    def configure(server: Server, director: StreamDirector) -> None:
        for path, method in health.methods().items():
            server.add_method(path, method)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        call = await client.request("/a.B/C")
        served = await house.backend.request()
        client.answers_pings = False
        house.server.stop(grace_s=3600)
        watch = await (await client.request(f"/{SERVICE}/Watch")).answer()
        assert (watch.body, watch.status) == (message(b"\x08\x02"), Status.UNAVAILABLE)
        check = await (await client.request(f"/{SERVICE}/Check")).answer()
        assert (check.body, check.status) == (message(b"\x08\x02"), Status.OK)
        await served.respond()
        await call.answer()
        await client.pong(await client.expect_ping())
        await client.aclose()
