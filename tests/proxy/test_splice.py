"""A splice between two connections in memory: what passes, and what is left when one side goes.

The whole of it is tested through the proxy, in tests/proxy; here are the turns that cannot be arranged from outside.
"""

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.proxy.splice import Splice
from tests.net.test_connection import Link, a_link
from tests.proxy.house import on_every_engine, until
from tests.proxy.raw_peers import OK, RESPONSE, TRAILERS_ONLY, Headers, PeerStream, request_fields

pytestmark = on_every_engine


@asynccontextmanager
async def two_links(engine: Engine) -> AsyncIterator[tuple[Link, Link]]:
    async with a_link(engine) as downstream, a_link(engine, client_side=True) as upstream:
        yield downstream, upstream


class Changes:
    """Counts what a splice tells, and lets a test wait."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def a_call(downstream: Link) -> tuple[PeerStream, Splice, Changes]:
    call = await downstream.peer.open(request_fields())
    await downstream.peer.ping()
    changes = Changes()
    return call, Splice(downstream.requests[-1], changes, counts_messages=True), changes


async def joined(splice: Splice, upstream: Link) -> PeerStream:
    stream = upstream.connection.open_stream(request_fields(), end_stream=splice.downstream.ended_by_headers)
    splice.join(stream)
    await trio.testing.wait_all_tasks_blocked()
    return upstream.peer.streams[stream.id]


def _has_failed(splice: Splice) -> bool:
    return splice.upstream_error is not None


@trio_test
async def test_joining_a_call_whose_caller_has_gone_cancels_the_upstream(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice, changes = await a_call(downstream)
        await call.reset()
        await downstream.peer.ping()
        served = await joined(splice, upstream)
        assert await served.expect_reset() == ErrorCode.CANCEL
        assert splice.downstream_error is splice.downstream.inbox.error
        assert changes.count >= 1


@trio_test
async def test_after_a_safe_failure_the_request_waits_in_the_inbox_for_the_second_upstream(
    engine: Engine,
) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice, changes = await a_call(downstream)
        first = await joined(splice, upstream)
        await call.data(b"one")
        assert await first.read(3) == b"one"
        await first.reset(ErrorCode.REFUSED_STREAM)
        await until(lambda: changes.count > 0)
        assert _has_failed(splice)
        assert splice.downstream.sink is splice.downstream.inbox
        await call.data(b"two")
        await call.headers([(b"x-end", b"1")], end=True)
        await downstream.peer.ping()
        second = await joined(splice, upstream)
        assert not _has_failed(splice)
        assert await second.read(6) == b"onetwo"
        assert await second.next() == Headers([(b"x-end", b"1")], end_stream=True)
        # The first upstream is forgotten, whatever becomes of it.
        await second.headers(TRAILERS_ONLY, end=True)
        assert (await call.answer()).status == 0
        await until(lambda: splice.upstream_closed and splice.downstream_closed)
        assert (splice.request_bytes, splice.upstream_error, splice.downstream_error) == (6, None, None)


@pytest.mark.parametrize("body", [b"", b"one"])
@pytest.mark.parametrize(
    "ended", ["before the first", "with the first", "before the second", "with the second"]
)
@trio_test
async def test_a_request_that_ends_with_empty_data_does_so_at_each_upstream(
    engine: Engine, ended: str, body: bytes
) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice, changes = await a_call(downstream)

        async def says(when: str) -> None:
            if body and when == "before the first":
                await call.data(body)
            if when == ended:
                await call.data(b"", end=True)
            await downstream.peer.ping()

        await says("before the first")
        first = await joined(splice, upstream)
        await says("with the first")
        await first.reset(ErrorCode.REFUSED_STREAM)
        await until(lambda: changes.count > 0)
        await says("before the second")
        second = await joined(splice, upstream)
        await says("with the second")
        for served in (first, second):
            assert not served.request.end_stream
            if served is second or ended.endswith("first"):
                got = await served.answer()
                assert (got.body, got.frames[-1]) == (body, "DATA END_STREAM")
        await second.headers(TRAILERS_ONLY, end=True)
        assert (await call.answer()).status == 0


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy does not tell the size of an object")
@trio_test
async def test_a_request_of_tiny_frames_takes_as_much_memory_as_it_has_bytes(engine: Engine) -> None:
    """While it waits for an upstream, and while it is kept for another one."""
    frames = 1000
    async with two_links(engine) as (downstream, upstream):
        call, splice, _ = await a_call(downstream)
        tiny = downstream.peer.data_frame(call.id, b"xy")
        await downstream.peer.send_bytes(tiny * frames)
        await downstream.peer.ping()
        assert size_of(splice.downstream.inbox._chunks) < 2 * 2 * frames
        served = await joined(splice, upstream)
        await downstream.peer.send_bytes(tiny * frames)
        await downstream.peer.ping()
        assert size_of(splice.replay) < 2 * 4 * frames
        assert await served.read(4 * frames) == b"xy" * 2 * frames


def size_of(held: object) -> int:
    """The bytes of memory that this takes, with all that it alone holds; its type is everybody's."""
    parts = [part for part in gc.get_referents(held) if not isinstance(part, type)]
    return sys.getsizeof(held) + sum(map(size_of, parts))


@trio_test
async def test_it_tells_of_the_end_of_each_stream_until_it_is_ended(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice, changes = await a_call(downstream)
        served = await joined(splice, upstream)
        await call.data(b"x", end=True)
        assert await served.read(1) == b"x"
        assert changes.count == 0
        await served.headers(RESPONSE)
        await served.headers(OK, end=True)
        assert (await call.answer()).status == 0
        await until(lambda: changes.count == 2)
        assert splice.upstream_closed
        assert splice.downstream_closed
        call, splice, changes = await a_call(downstream)
        served = await joined(splice, upstream)
        splice.end()
        assert await served.expect_reset() == ErrorCode.CANCEL
        await call.reset()
        await downstream.peer.ping()
        assert changes.count == 0


@trio_test
async def test_an_abandoned_splice_hears_nothing_more_from_upstream(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        _, splice, _ = await a_call(downstream)
        served = await joined(splice, upstream)
        splice.abandon(ErrorCode.CANCEL)
        assert await served.expect_reset() == ErrorCode.CANCEL
        await served.headers(RESPONSE)
        await upstream.peer.goaway(0)
        await trio.testing.wait_all_tasks_blocked()
        assert splice.http_status is None
        assert splice.upstream_error is None


@trio_test
async def test_a_splice_that_was_never_joined_can_be_abandoned(engine: Engine) -> None:
    async with two_links(engine) as (downstream, _):
        _, splice, _ = await a_call(downstream)
        splice.abandon(ErrorCode.CANCEL)
        assert splice.upstream is None


@trio_test
async def test_both_connections_lost_in_one_turn_fail_the_call_once(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice, changes = await a_call(downstream)
        await joined(splice, upstream)
        downstream.connection.close()
        upstream.connection.close()
        await until(lambda: splice.downstream_closed and splice.upstream_closed)
        assert changes.count >= 2
        assert splice.downstream_error is not None or splice.upstream_error is not None
        assert (await call.answer()).lost


@trio_test
async def test_a_downstream_peer_sends_no_response(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        _, splice, _ = await a_call(downstream)
        await joined(splice, upstream)
        with pytest.raises(AssertionError, match="sends no response"):
            splice.downstream.sink.response(HeaderList(RESPONSE), end_stream=False)
