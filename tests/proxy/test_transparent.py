"""The transparent handler: awaited by handlers of a user's own, and with directors that are plain functions."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    Call,
    RpcError,
    Server,
    Status,
    StreamDirector,
    transparent_handler,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from tests.proxy.directors import Wrapped, a_proxy_with_plain_director
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    message,
)

pytestmark = on_every_engine


@trio_test
async def test_a_handler_around_the_proxys_goes_on_when_the_call_is_over(engine: Engine) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        call = await client.request(body=b"x")
        served = await house.backend.request()
        await served.request_body()
        assert not wrapped.ends
        await served.respond(b"y")
        assert (await call.answer()).body == message(b"y")
        assert (await house.record()).status == Status.OK
        assert wrapped.ends == ["well"]


@trio_test
async def test_a_handler_around_the_proxys_hears_why_a_call_failed(engine: Engine) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).reset(ErrorCode.INTERNAL_ERROR)
        assert (await call.answer()).status == Status.INTERNAL
        (error,) = wrapped.ends
        assert isinstance(error, RpcError)
        assert (error.status, error.side) == (Status.INTERNAL, Side.UPSTREAM)
        assert (await house.record()).status == Status.INTERNAL


@trio_test
async def test_a_handler_around_the_proxys_does_not_notice_a_second_try(engine: Engine) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        call = await client.request(body=b"x")
        await (await house.backend.request()).reset(ErrorCode.REFUSED_STREAM)
        served = await house.backend.request()
        assert await served.request_body() == message(b"x")
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).status == Status.OK
        assert wrapped.ends == ["well"]


@pytest.mark.parametrize("when", ["the caller gives up", "the deadline passes"])
@trio_test
async def test_a_handler_around_the_proxys_is_told_and_the_upstream_too_when(
    engine: Engine, when: str
) -> None:
    wrapped = Wrapped()
    async with a_proxy(engine, configure=wrapped.configure, unknown=False) as house:
        client = await house.client()
        fields = ((b"grpc-timeout", b"1S"),) if when == "the deadline passes" else ()
        call = await client.request("/a.B/C", *fields)
        served = await house.backend.request()
        await served.request_body()
        if not fields:
            await call.reset()
        assert await served.expect_reset() == ErrorCode.CANCEL
        record = await house.record()
        assert record.status == (Status.DEADLINE_EXCEEDED if fields else Status.CANCELLED)
        assert isinstance(wrapped.ends[0], trio.Cancelled if fields else RpcError)


@trio_test
async def test_a_handler_that_goes_on_after_its_call_failed_hears_that_the_caller_has_gone(
    engine: Engine,
) -> None:
    ends = list[str]()

    def configure(server: Server, director: StreamDirector) -> None:
        forward = transparent_handler(director)

        async def handler(call: Call) -> None:
            try:
                await forward(call)
            except RpcError:
                ends.append("failed")
                try:
                    await trio.sleep_forever()
                finally:
                    ends.append("over")

        server.add_handler("/a.B/C", handler)

    async with a_proxy(engine, configure=configure, unknown=False) as house:
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).reset(ErrorCode.INTERNAL_ERROR)
        await until(lambda: ends == ["failed"])
        await call.reset()
        assert (await house.record()).status == Status.CANCELLED
        assert ends == ["failed", "over"]


@trio_test
async def test_a_plain_director_may_wait_for_the_first_connection_and_need_not_for_the_next(
    engine: Engine,
) -> None:
    async with a_proxy_with_plain_director(engine) as (house, _):
        client = await house.client()
        for number in range(3):
            call = await client.request(body=b"x" * number)
            served = await house.backend.request()
            assert await served.request_body() == message(b"x" * number)
            await served.respond(b"y")
            assert (await call.answer()).body == message(b"y")
            assert (await house.record()).status == Status.OK
        assert len(house.backend.peers) == 1
