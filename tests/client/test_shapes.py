"""Calls of the four shapes, with a server of ours."""

import gzip
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    Client,
    Metadata,
    RpcError,
    ServedCall,
    Status,
    codec,
    stream_unary,
    unary_stream,
    unary_unary,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.timeout import parse_timeout
from tests.client.world import (
    BIDI,
    CLIENT_STREAM,
    SERVER_STREAM,
    UNARY,
    a_client,
    a_client_of_ours,
    raw_server,
)
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import OK, RESPONSE, message

pytestmark = on_every_engine


@trio_test
async def test_a_unary_call_is_awaited_and_tells_of_its_metadata_afterwards(engine: Engine) -> None:
    async def greet(request: bytes, call: ServedCall) -> bytes:
        seen = call.context.metadata
        call.send_initial_metadata([("x-first", "1")])
        call.trailing_metadata += [("x-last-bin", b"\x00\xff"), ("x-seen", str(seen["x-user"]))]
        return request + bytes(seen["x-token-bin"])  # type: ignore[arg-type]

    server = raw_server()
    server.add_method("/a.B/Greet", unary_unary(greet, bytes))
    metadata: dict[str, str | bytes] = {"x-user": "bob", "x-token-bin": b"\x01"}
    async with a_client_of_ours(engine, server) as client:
        call = client.unary_unary("/a.B/Greet", b"hello", metadata=metadata)
        assert [call.status, call.headers, call.trailers] == [None] * 3
        assert await call == b"hello\x01"
        assert call.status is Status.OK
        assert call.headers is not None
        assert call.headers["x-first"] == "1"
        assert call.trailers is not None
        assert call.trailers["x-last-bin"] == b"\x00\xff"
        assert call.trailers["x-seen"] == "bob"


@trio_test
async def test_what_a_call_asks_for_is_what_a_grpc_server_expects(engine: Engine) -> None:
    async with a_client(engine, metadata={"x-all": "1"}, user_agent="tests/1") as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.unary, "/a.B/C", b"x", metadata={"x-one": "2"}, timeout=3600))
            served = await world.backend.request()
            assert await served.request_frames() == ["HEADERS", "DATA END_STREAM"]
            await served.respond(b"y")
        fields = served.request.fields
        [timeout] = [value for name, value in fields if name == b"grpc-timeout"]
        assert 3590 < parse_timeout(timeout) <= 3600
        assert fields == [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/a.B/C"),
            (b":authority", world.backend.address.encode()),
            (b"te", b"trailers"),
            (b"grpc-timeout", timeout),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"tests/1"),
            (b"grpc-accept-encoding", b"identity,deflate,gzip"),
            (b"x-all", b"1"),
            (b"x-one", b"2"),
        ]


@trio_test
async def test_a_response_stream_is_iterated_in_a_block(engine: Engine) -> None:
    async with a_client_of_ours(engine) as client, client.unary_stream(SERVER_STREAM, b"x") as call:
        headers = await call.receive_headers()
        assert headers["content-type"] == "application/grpc"
        statuses = [call.status]
        assert [reply async for reply in call] == [b"x", b"x", b"x"]
        assert [*statuses, call.status] == [None, Status.OK]
        assert await call.receive() is None


@trio_test
async def test_a_request_stream_is_given_or_sent_message_by_message(engine: Engine) -> None:
    async def three() -> AsyncIterator[bytes]:
        for n in range(3):
            await trio.lowlevel.checkpoint()
            yield b"%d" % n

    async with a_client_of_ours(engine) as client:
        assert await client.stream_unary(CLIENT_STREAM, [b"a", b"b"]) == b"ab"
        assert await client.stream_unary(CLIENT_STREAM, three()) == b"012"
        assert await client.stream_unary(CLIENT_STREAM, []) == b""
        async with client.stream_unary(CLIENT_STREAM) as call:
            await call.send(b"c")
            await call.send(b"d")
            assert await call.reply() == b"cd"


@trio_test
async def test_both_streams_are_a_conversation(engine: Engine) -> None:
    async with a_client_of_ours(engine) as client:
        async with client.stream_stream(BIDI) as call:
            for n in range(5):
                await call.send(b"%d" % n)
                assert await call.receive() == b"%d" % n
            await call.done_sending()
            await call.done_sending()
            assert await call.receive() is None
            assert call.status is Status.OK
            with pytest.raises(trio.ClosedResourceError, match="done_sending"):
                await call.send(b"more")
        async with client.stream_stream(BIDI, [b"1", b"2"]) as call:
            assert [reply async for reply in call] == [b"1", b"2"]
        async with client.stream_stream(BIDI) as call, trio.open_nursery() as nursery:
            nursery.start_soon(call.send_all, [b"%d" % n for n in range(1000)])
            assert [reply async for reply in call] == [b"%d" % n for n in range(1000)]


@trio_test
async def test_messages_may_be_of_protobuf(engine: Engine) -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    text = wrappers.StringValue

    async with a_client_of_ours(engine, codec=codec()) as client:
        reply = await client.unary_unary(UNARY, text(value="x"), text)
        assert reply.value == "x"
        async with client.stream_stream(BIDI, [text(value="a"), text(value="b")], text) as call:
            assert [reply.value async for reply in call] == ["a", "b"]
        assert await client.unary_unary(UNARY, b"raw passes") == b"raw passes"
        with pytest.raises(RpcError, match="INTERNAL: cannot decode a message of type StringValue"):
            await client.unary_unary(UNARY, b"\xff", text)
        with pytest.raises(TypeError, match="not str"):
            client.unary_unary(UNARY, "text", text)


@trio_test
async def test_a_failed_call_has_status_message_and_trailing_metadata(engine: Engine) -> None:
    async def refuse(request: bytes, call: ServedCall) -> bytes:
        raise RpcError(
            Status.NOT_FOUND, "no such thing: ü", trailing_metadata=[("x-why", "1"), ("x-d-bin", b"\x80")]
        )

    server = raw_server()
    server.add_method("/a.B/C", unary_unary(refuse, bytes))
    async with a_client_of_ours(engine, server) as client:
        call = client.unary_unary("/a.B/C", b"")
        with pytest.raises(RpcError, match="NOT_FOUND: no such thing: ü") as caught:
            await call
        assert caught.value.trailing_metadata == (("x-why", "1"), ("x-d-bin", b"\x80"))
        assert caught.value.origin == "upstream"
        assert call.status is Status.NOT_FOUND
        assert call.status_message == "no such thing: ü"
        with pytest.raises(RpcError, match="UNIMPLEMENTED"):
            await client.unary_unary("/a.B/Nope", b"")


@trio_test
async def test_messages_before_a_bad_status_are_received_and_then_it_is_raised(engine: Engine) -> None:
    async def fail_late(request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"
        raise RpcError(Status.DATA_LOSS, "late")

    server = raw_server()
    server.add_method("/a.B/C", unary_stream(fail_late, bytes))
    async with a_client_of_ours(engine, server) as client, client.unary_stream("/a.B/C", b"") as call:
        assert await call.receive() == b"1"
        assert await call.receive() == b"2"
        with pytest.raises(RpcError, match="DATA_LOSS: late"):
            await anext(call)
        with pytest.raises(RpcError, match="DATA_LOSS: late"):
            await call.receive()


@trio_test
async def test_compressed_messages_are_understood(engine: Engine) -> None:
    async with a_client(engine, max_message_bytes=1000) as world:
        for payload, encoding, expected in (
            (gzip.compress(b"x" * 900), b"gzip", None),
            (gzip.compress(b"x" * 1001), b"gzip", r"RESOURCE_EXHAUSTED: .* longer than 1000 bytes"),
            (b"what?", b"gzip", "INTERNAL: a compressed message is broken"),
            (b"what?", b"br", "UNIMPLEMENTED: .*'br'"),
            (b"what?", b"identity", "INTERNAL: .* nothing says how"),
        ):
            served = None
            async with world.client.unary_stream("/a.B/C", b"") as call:
                served = await world.backend.request()
                await served.headers([*RESPONSE, (b"grpc-encoding", encoding)])
                await served.data(message(payload, 1))
                await served.headers(OK, end=True)
                if expected is None:
                    assert [reply async for reply in call] == [b"x" * 900]
                else:
                    with pytest.raises(RpcError, match=expected):
                        await call.receive()


@trio_test
async def test_more_than_a_hundred_calls_at_once_share_connections(engine: Engine) -> None:
    async with a_client_of_ours(engine) as client:
        done = []

        async def calls(n: int) -> None:
            assert await client.unary_unary(UNARY, b"%d" % n) == b"%d" % n
            async with client.stream_stream(BIDI) as call:
                await call.send(b"%d" % n)
                assert await call.receive() == b"%d" % n
                await call.done_sending()
                assert await call.receive() is None
            done.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(120):
                nursery.start_soon(calls, n)
        assert len(done) == 120
        assert client._pool is not None
        [stats] = client._pool.stats().values()
        assert stats.with_room + stats.busy <= 120 / 20


@trio_test
async def test_a_client_shares_the_pool_of_a_target(engine: Engine) -> None:
    async with a_client(engine) as world:
        async with (
            Client(world.pool.target(world.backend.address), authority="name.example") as other,
            trio.open_nursery() as nursery,
        ):

            async def call() -> None:
                assert await other.unary_unary("/a.B/C", b"") == b"y"

            nursery.start_soon(call)
            served = await world.backend.request()
            assert served.request.get(b":authority") == b"name.example"
            await served.respond(b"y")
        assert len(world.backend.peers) == 1


@trio_test
async def test_calls_may_have_metadata_of_a_served_call(engine: Engine) -> None:
    async def count(requests: AsyncIterator[bytes], call: ServedCall) -> bytes:
        return b"%d" % len([request async for request in requests])

    server = raw_server()
    server.add_method("/a.B/Count", stream_unary(count, bytes))
    async with a_client_of_ours(engine, server) as client:
        given = Metadata.from_pairs({"x-a": "1"})
        assert await client.stream_unary("/a.B/Count", [b""] * 7, metadata=list(given)) == b"7"
