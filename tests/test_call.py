"""What a handler sees of a call: its context, and the response."""

from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    Call,
    CallContext,
    Handler,
    Metadata,
    Server,
    Status,
    StreamDirector,
)
from rawgrpc_proxy.config import Engine
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import Answer

pytestmark = on_every_engine


def test_what_is_no_deadline_is_refused_where_it_was_written(engine: Engine) -> None:
    context = CallContext(method="/a.B/C", metadata=Metadata(), peer="127.0.0.1:9", deadline=5.0)
    odd: list[Any] = ["5", object(), 1j]
    for deadline in odd:
        with pytest.raises(TypeError, match="a deadline is a number of seconds"):
            context.with_deadline(deadline)
        with pytest.raises(TypeError, match="a deadline is a number of seconds"):
            context.with_timeout(deadline)
    with pytest.raises(ValueError, match="not NaN"):
        context.with_deadline(float("nan"))
    with pytest.raises(ValueError, match="not NaN"):
        context.with_timeout(float("nan"))
    assert context.with_timeout(float("inf")) is context
    with pytest.raises(TypeError, match="the metadata of a call are a Metadata, not dict"):
        context.with_metadata({})  # type: ignore[arg-type]


async def answer_of(engine: Engine, handler: Handler) -> Answer:
    """What a caller gets of a handler's call."""

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_handler("/a.B/C", handler)

    async with a_proxy(engine, configure=configure) as house:
        return await (await (await house.client()).request(body=b"x")).answer()


@trio_test
async def test_headers_go_out_once_and_the_first_ones_count(engine: Engine) -> None:
    async def handler(call: Call) -> None:
        call.send_headers([(b"x-first", b"1")])
        call.send_headers([(b"x-second", b"2")])
        call.end(Status.OK)

    answer = await answer_of(engine, handler)
    assert answer.headers is not None
    assert answer.headers.get(b"x-first") == b"1"
    assert answer.headers.get(b"x-second") is None
    assert answer.status == Status.OK


@trio_test
async def test_a_call_ends_once_and_its_first_end_counts(engine: Engine) -> None:
    async def handler(call: Call) -> None:
        before = call.ended
        call.end(Status.ABORTED, "so it is", [(b"x-why", b"because")])
        assert (before, call.ended) == (False, True)
        call.end(Status.OK)
        call.send_headers([(b"x-late", b"1")])

    answer = await answer_of(engine, handler)
    assert (answer.status, answer.message) == (Status.ABORTED, b"so it is")
    assert answer.get(b"x-why") == b"because"
    assert answer.get(b"x-late") is None


@pytest.mark.parametrize(
    "metadata",
    [[(b"X-Capital", b"1")], [(b"connection", b"close")], [(b":status", b"200")], [(b"x", b"a\nb")]],
)
@trio_test
async def test_what_cannot_be_sent_raises_and_the_call_can_still_be_answered(
    engine: Engine, metadata: list[tuple[bytes, bytes]]
) -> None:
    async def handler(call: Call) -> None:
        with pytest.raises(ValueError, match="cannot be sent"):
            call.send_headers(metadata)
        with pytest.raises(ValueError, match="cannot be sent"):
            call.end(Status.OK, metadata=metadata)
        assert not call.ended
        call.end(Status.DATA_LOSS)

    assert (await answer_of(engine, handler)).status == Status.DATA_LOSS


@trio_test
async def test_a_context_can_be_changed_and_stays_as_it_was(engine: Engine) -> None:
    context = CallContext(method="/a.B/C", metadata=Metadata([(b"x", b"1")]), peer="127.0.0.1:9")
    changed = context.with_metadata(context.metadata.with_value("x", "2")).with_deadline(7.0)
    assert (changed.metadata["x"], changed.deadline) == ("2", 7.0)
    assert (context.metadata["x"], context.deadline) == ("1", None)
    assert changed.with_deadline(None).deadline is None
    assert changed.with_deadline(float("inf")).deadline is None


@trio_test
async def test_a_timeout_never_makes_a_deadline_later(engine: Engine) -> None:
    now = trio.current_time()
    context = CallContext(method="/a.B/C", metadata=Metadata(), peer="127.0.0.1:9", deadline=now + 5)
    assert context.with_timeout(1000).deadline == now + 5
    sooner = context.with_timeout(1).deadline
    assert sooner is not None
    assert now + 1 <= sooner < now + 5
