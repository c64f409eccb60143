"""What the upstream is asked: the headers of a call as its director has left them, with the time that is left."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, Direction, Metadata, Status
from rawgrpc_proxy.config import Engine
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import Headers

pytestmark = on_every_engine

Change = Callable[[CallContext], CallContext]


async def asked(engine: Engine, change: Change, *fields: tuple[bytes, bytes]) -> Headers:
    """What an upstream hears of a call that a director has changed so."""

    async def director(context: CallContext, method: str) -> Direction:
        return change(context), house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        call = await (await house.client()).request("/a.B/C", *fields)
        served = await house.backend.request()
        await served.respond()
        assert (await call.answer()).status == Status.OK
        return served.request


async def refused(engine: Engine, change: Change) -> House:
    """The same where the upstream is to hear nothing."""

    async def director(context: CallContext, method: str) -> Direction:
        return change(context), house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        answer = await (await (await house.client()).request("/a.B/C")).answer()
        assert answer.status == Status.INTERNAL
        assert answer.message == b"internal error in the proxy"
        assert house.backend.no_request_came()
        return house


@trio_test
async def test_without_a_deadline_there_is_no_timeout(engine: Engine) -> None:
    assert (await asked(engine, lambda context: context)).get_all(b"grpc-timeout") == []


@trio_test
async def test_a_timeout_stands_where_the_protocol_puts_it(engine: Engine) -> None:
    headers = await asked(engine, lambda context: context.with_timeout(50))
    names = [name for name, _ in headers.fields]
    assert names[names.index(b"te") + 1] == b"grpc-timeout"
    assert len(headers.get_all(b"grpc-timeout")) == 1


@trio_test
async def test_a_deadline_that_the_director_takes_away_is_not_told(engine: Engine) -> None:
    without = await asked(engine, lambda context: context.with_deadline(None), (b"grpc-timeout", b"9S"))
    assert without.get_all(b"grpc-timeout") == []


@trio_test
async def test_what_a_director_adds_and_takes_from_the_metadata_is_what_goes_out(engine: Engine) -> None:
    headers = await asked(
        engine,
        lambda context: context.with_metadata(context.metadata.with_added("x-new", "1").without("x-old")),
        (b"x-old", b"0"),
        (b"x-kept", b"2"),
    )
    assert headers.get(b"x-new") == b"1"
    assert headers.get(b"x-kept") == b"2"
    assert headers.get(b"x-old") is None


def _without_a_path(context: CallContext) -> CallContext:
    return context.with_metadata(Metadata([field for field in context.metadata.raw if field[0] != b":path"]))


def _in_capitals(context: CallContext) -> CallContext:
    return context.with_metadata(Metadata([*context.metadata.raw, (b"X-Capital", b"1")]))


def _no_metadata(context: CallContext) -> CallContext:
    odd: Any = {}
    return attrs.evolve(context, metadata=odd)


@pytest.mark.parametrize("change", [_without_a_path, _in_capitals, _no_metadata])
@trio_test
async def test_metadata_that_make_no_request_never_reach_the_upstream(engine: Engine, change: Change) -> None:
    with trio.fail_after(10):
        await refused(engine, change)
