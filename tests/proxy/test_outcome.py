"""What came of a call: the error its caller is told, and what its record says."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallRecord,
    Status,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side, StreamReset
from rawgrpc_proxy.proxy.outcome import settled
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import PeerStream

pytestmark = on_every_engine


@trio_test
async def test_only_a_cancel_after_the_deadline_counts_as_the_deadline(engine: Engine) -> None:
    now = trio.current_time()
    cancel = StreamReset(Status.CANCELLED, ErrorCode.CANCEL, side=Side.UPSTREAM)
    refused = StreamReset(Status.UNAVAILABLE, ErrorCode.REFUSED_STREAM, side=Side.UPSTREAM)
    assert settled(cancel, now).status == Status.DEADLINE_EXCEEDED
    assert settled(cancel, now + 10) is cancel
    assert settled(cancel, None) is cancel
    assert settled(refused, now) is refused


Script = Callable[[PeerStream], Awaitable[None]]


async def record_of(engine: Engine, script: Script) -> CallRecord:
    """The record of a call that its upstream treats so."""
    async with a_proxy(engine) as house:
        call = await (await house.client()).request(body=b"1234")
        served = await house.backend.request()
        await served.request_body()
        await script(served)
        await call.answer()
        return await house.record()


@trio_test
async def test_a_record_tells_the_status_that_the_upstream_gave_and_how_much_passed(engine: Engine) -> None:
    record = await record_of(
        engine,
        lambda served: served.respond(b"123", [(b"grpc-status", b"9"), (b"grpc-message", b"not%20now")]),
    )
    assert (record.status, record.origin) == (Status.FAILED_PRECONDITION, "upstream")
    assert record.detail == "not now"
    assert (record.request_bytes, record.response_bytes) == (9, 8)
    assert (record.request_messages, record.response_messages) == (1, 1)


@trio_test
async def test_a_message_of_any_length_is_in_the_record(engine: Engine) -> None:
    text = b"x" * 1000
    record = await record_of(
        engine, lambda served: served.respond(b"", [(b"grpc-status", b"5"), (b"grpc-message", text)])
    )
    assert record.detail == text.decode()


@pytest.mark.parametrize(
    ("http_status", "status"),
    [(b"404", Status.UNIMPLEMENTED), (b"503", Status.UNAVAILABLE), (b"401", Status.UNAUTHENTICATED)],
)
@trio_test
async def test_a_response_without_a_grpc_status_is_recorded_by_its_http_status(
    engine: Engine, http_status: bytes, status: Status
) -> None:
    record = await record_of(engine, lambda served: served.headers([(b":status", http_status)], end=True))
    assert (record.status, record.origin, record.cause) == (status, "http", f"HTTP {http_status.decode()}")
    assert record.detail == "the upstream sent no grpc-status"


@trio_test
async def test_a_reset_is_recorded_as_what_it_means_for_the_call(engine: Engine) -> None:
    record = await record_of(engine, lambda served: served.reset(ErrorCode.ENHANCE_YOUR_CALM))
    assert record.status == Status.RESOURCE_EXHAUSTED
    assert record.response_bytes == 0
