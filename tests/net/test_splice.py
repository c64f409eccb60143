"""A splice between two connections in memory: what passes, and what is left when one side goes.

The whole of it is tested through the proxy, in tests/proxy; here are the turns that cannot be arranged from outside.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2.header_blocks import HeaderList
from rawgrpc_proxy.net.splice import Splice
from tests.net.test_connection import Link, a_link
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, RESPONSE, TRAILERS_ONLY, Headers, PeerStream, request_fields

pytestmark = on_every_engine


@asynccontextmanager
async def two_links(engine: Engine) -> AsyncIterator[tuple[Link, Link]]:
    async with a_link(engine) as downstream, a_link(engine, client_side=True) as upstream:
        yield downstream, upstream


async def a_call(downstream: Link) -> tuple[PeerStream, Splice]:
    call = await downstream.peer.open(request_fields())
    await downstream.peer.ping()
    return call, Splice(downstream.requests[-1])


async def joined(splice: Splice, upstream: Link) -> PeerStream:
    stream = upstream.connection.open_stream(request_fields(), end_stream=splice.request_is_empty)
    splice.join(stream)
    await trio.testing.wait_all_tasks_blocked()
    return upstream.peer.streams[stream.id]


def _has_failed(splice: Splice) -> bool:
    return splice.upstream_error is not None


@trio_test
async def test_joining_a_call_whose_caller_has_gone_cancels_the_upstream(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice = await a_call(downstream)
        await call.reset()
        await downstream.peer.ping()
        served = await joined(splice, upstream)
        assert await served.expect_reset() == ErrorCode.CANCEL
        await splice.wait_for_response()
        assert splice.downstream_error is splice.downstream.inbox.error
        await splice.wait_for_delivery()


@trio_test
async def test_after_a_safe_failure_the_request_waits_in_the_inbox_for_the_second_upstream(
    engine: Engine,
) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice = await a_call(downstream)
        first = await joined(splice, upstream)
        await call.data(b"one")
        assert await first.read(3) == b"one"
        await first.reset(ErrorCode.REFUSED_STREAM)
        await splice.wait_for_response()
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
        await splice.wait_for_response()
        await splice.wait_for_delivery()
        assert (await call.answer()).status == 0
        assert (splice.request_bytes, splice.upstream_error, splice.downstream_error) == (6, None, None)


@trio_test
async def test_a_cancelled_wait_leaves_both_streams_as_they_are(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice = await a_call(downstream)
        served = await joined(splice, upstream)
        with trio.move_on_after(0):
            await splice.wait_for_response()
        await call.data(b"x", end=True)
        assert await served.read(1) == b"x"
        await served.headers(RESPONSE)
        await served.headers(OK, end=True)
        await splice.wait_for_response()
        with trio.move_on_after(0):
            await splice.wait_for_delivery()
        assert (await call.answer()).status == 0


@trio_test
async def test_an_abandoned_splice_hears_nothing_more_from_upstream(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        _, splice = await a_call(downstream)
        served = await joined(splice, upstream)
        splice.abandon(ErrorCode.CANCEL)
        assert await served.expect_reset() == ErrorCode.CANCEL
        await served.headers(RESPONSE)
        await upstream.peer.goaway(0)
        await trio.testing.wait_all_tasks_blocked()
        assert splice.response_headers is None
        assert splice.upstream_error is None


@trio_test
async def test_a_splice_that_was_never_joined_can_be_abandoned(engine: Engine) -> None:
    async with two_links(engine) as (downstream, _):
        _, splice = await a_call(downstream)
        splice.abandon(ErrorCode.CANCEL)
        assert splice.upstream is None


@trio_test
async def test_both_connections_lost_in_one_turn_fail_the_call_once(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        call, splice = await a_call(downstream)
        await joined(splice, upstream)
        downstream.connection.close()
        upstream.connection.close()
        await splice.wait_for_response()
        await splice.wait_for_delivery()
        assert splice.downstream_error is not None or splice.upstream_error is not None
        assert (await call.answer()).lost


@trio_test
async def test_a_downstream_peer_sends_no_response(engine: Engine) -> None:
    async with two_links(engine) as (downstream, upstream):
        _, splice = await a_call(downstream)
        await joined(splice, upstream)
        with pytest.raises(AssertionError, match="sends no response"):
            splice.downstream.sink.response(HeaderList(RESPONSE), end_stream=False)
