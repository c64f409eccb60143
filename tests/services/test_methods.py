"""Methods that the proxy serves itself."""

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    RpcError,
    ServedCall,
    Server,
    Status,
    StreamDirector,
    codec,
    codec_with_parent,
    identity_codec,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.net.memory_guard import current_memory_guard
from rawgrpc_proxy.services import methods
from rawgrpc_proxy.services.methods import MethodKind
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    INITIAL_WINDOW,
    MAX_HEADER_LIST_SIZE,
    Answer,
    Field,
    RawPeer,
    message,
    request_fields,
)

pytestmark = on_every_engine

RAW = codec_with_parent(identity_codec())
MAX_BYTES = 1000


async def _upper(request: bytes, call: ServedCall) -> bytes:
    return request.upper()


async def _count(request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
    for n in range(int(request)):
        yield b"%d" % n


async def _join(requests: AsyncIterator[bytes], call: ServedCall) -> bytes:
    return b"+".join([request async for request in requests])


async def _echo(requests: AsyncIterator[bytes], call: ServedCall) -> AsyncIterator[bytes]:
    async for request in requests:
        yield b"<" + request + b">"


def serving(**methods: MethodKind) -> Any:
    def configure(server: Server, director: StreamDirector) -> None:
        for name, method in methods.items():
            server.add_method(f"/a.B/{name}", method)

    return configure


ALL = serving(
    Upper=unary_unary(_upper, bytes, max_message_bytes=MAX_BYTES),
    Count=unary_stream(_count, bytes),
    Join=stream_unary(_join, bytes),
    Echo=stream_stream(_echo, bytes),
)


async def ask(client: RawPeer, method: str, *messages: bytes, fields: tuple[Field, ...] = ()) -> Answer:
    call = await client.open(request_fields(f"/a.B/{method}", *fields))
    await call.body(b"".join(messages), end=True)
    return await call.answer()


@trio_test
async def test_the_four_shapes_are_served(engine: Engine) -> None:
    async with a_proxy(engine, configure=ALL, codec=RAW) as house:
        client = await house.client()
        upper = await ask(client, "Upper", message(b"abc"))
        assert (upper.body, upper.status) == (message(b"ABC"), Status.OK)
        assert upper.headers is not None
        assert upper.headers.get(b"content-type") == b"application/grpc"
        assert upper.headers.get(b"grpc-accept-encoding") == b"identity,deflate,gzip"
        count = await ask(client, "Count", message(b"3"))
        assert count.body == message(b"0") + message(b"1") + message(b"2")
        join = await ask(client, "Join", message(b"a"), message(b"b"), message(b"c"))
        assert join.body == message(b"a+b+c")
        echo = await ask(client, "Echo", message(b"a"), message(b""))
        assert echo.body == message(b"<a>") + message(b"<>")
        for requests, responses in ((1, 1), (1, 3), (3, 1), (2, 2)):
            record = await house.record()
            assert (record.status, record.origin) == (Status.OK, "served")
            assert (record.request_messages, record.response_messages) == (requests, responses)
        assert house.backend.peers == []


@trio_test
async def test_a_stream_is_answered_message_by_message(engine: Engine) -> None:
    async with a_proxy(engine, configure=ALL, codec=RAW) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/Echo"))
        for n in range(5):
            await call.data(message(b"%d" % n))
            if n == 0:
                await call.expect_headers()
            assert await call.read(8) == message(b"<%d>" % n)
        await call.data(b"", end=True)
        assert (await call.answer()).frames == ["HEADERS END_STREAM"]


@trio_test
async def test_an_empty_stream_is_answered_with_headers_and_trailers(engine: Engine) -> None:
    async with a_proxy(engine, configure=ALL, codec=RAW) as house:
        client = await house.client()
        assert (await ask(client, "Count", message(b"0"))).frames == ["HEADERS", "HEADERS END_STREAM"]


@pytest.mark.parametrize(("encoding", "squeeze"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
@trio_test
async def test_compressed_requests_are_understood(engine: Engine, encoding: bytes, squeeze: Any) -> None:
    async with a_proxy(engine, configure=ALL, codec=RAW) as house:
        client = await house.client()
        fields = ((b"grpc-encoding", encoding),)
        longest = b"x" * MAX_BYTES
        for payload in (b"abc", b"", longest):
            answer = await ask(client, "Upper", message(squeeze(payload), flag=1), fields=fields)
            assert answer.body == message(payload.upper())
        # A message that is not compressed may come in such a stream too.
        assert (await ask(client, "Upper", message(b"abc"), fields=fields)).body == message(b"ABC")

        bomb = await ask(client, "Upper", message(squeeze(longest + b"x"), flag=1), fields=fields)
        assert bomb.status == Status.RESOURCE_EXHAUSTED
        bomb = await ask(client, "Upper", message(squeeze(bytes(500_000)), flag=1), fields=fields)
        assert bomb.status == Status.RESOURCE_EXHAUSTED
        short = await ask(client, "Upper", message(squeeze(longest)[:-3], flag=1), fields=fields)
        assert (short.status, short.message) == (Status.INTERNAL, b"a compressed message is cut short")
        broken = await ask(client, "Upper", message(b"not compressed", flag=1), fields=fields)
        assert broken.status == Status.INTERNAL


@trio_test
async def test_a_compression_that_is_not_understood_is_unimplemented(engine: Engine) -> None:
    async with a_proxy(engine, configure=ALL, codec=RAW) as house:
        client = await house.client()
        fields = ((b"grpc-encoding", b"snappy"),)
        assert (
            await ask(client, "Upper", message(b"x", flag=1), fields=fields)
        ).status == Status.UNIMPLEMENTED
        assert (await ask(client, "Upper", message(b"x", flag=1))).status == Status.INTERNAL


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", Status.INTERNAL),
        (message(b"one") + message(b"two"), Status.INTERNAL),
        (message(b"one")[:-1], Status.INTERNAL),
        (b"\0\0", Status.INTERNAL),
        (b"\2\0\0\0\0", Status.INTERNAL),
        (message(b"x" * (MAX_BYTES + 1)), Status.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
    ],
)
@trio_test
async def test_a_request_that_is_not_one_message_is_an_error(
    engine: Engine, body: bytes, status: Status
) -> None:
    async with a_proxy(engine, configure=ALL, codec=RAW) as house:
        client = await house.client()
        answer = await ask(client, "Upper", body)
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == status
        record = await house.record()
        assert record.status == status


@trio_test
async def test_metadata_goes_both_ways(engine: Engine) -> None:
    async def method(request: bytes, call: ServedCall) -> bytes:
        assert call.context.metadata["x-in"] == "1"
        call.send_initial_metadata([("x-first", "2"), ("y-bin", b"\xff\x00")])
        call.send_initial_metadata([("x-late", "no")])
        call.trailing_metadata.append(("x-last", "3"))
        return request

    async with a_proxy(engine, configure=serving(Meta=unary_unary(method, bytes)), codec=RAW) as house:
        client = await house.client()
        answer = await ask(client, "Meta", message(b""), fields=((b"x-in", b"1"),))
        assert answer.headers is not None
        assert answer.headers.fields[3:] == [(b"x-first", b"2"), (b"y-bin", b"/wA")]
        assert answer.trailers is not None
        assert answer.trailers.fields == [(b"grpc-status", b"0"), (b"x-last", b"3")]


@trio_test
async def test_initial_metadata_that_are_longer_than_the_caller_takes_end_the_call(engine: Engine) -> None:
    async def long(request: bytes, call: ServedCall) -> bytes:
        call.send_initial_metadata([("x-long", "x" * 2000)])
        return request

    async with a_proxy(engine, configure=serving(Long=unary_unary(long, bytes)), codec=RAW) as house:
        client = await house.client(settings={MAX_HEADER_LIST_SIZE: 1000})
        answer = await ask(client, "Long", message(b"x"))
        assert answer.status == Status.RESOURCE_EXHAUSTED
        assert b"the caller takes 1000" in (answer.message or b"")
        await house.record()


@trio_test
async def test_an_error_of_the_function_is_the_status_and_keeps_its_trailing_metadata(engine: Engine) -> None:
    error = RpcError(Status.NOT_FOUND, "no ä", trailing_metadata=[("x-a", "1")])

    async def method(request: bytes, call: ServedCall) -> bytes:
        call.trailing_metadata.append(("x-b", "2"))
        raise error

    async def stream(request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        yield b"one"
        raise RpcError(Status.ABORTED, "enough")

    methods = serving(Fail=unary_unary(method, bytes), Break=unary_stream(stream, bytes))
    async with a_proxy(engine, configure=methods, codec=RAW) as house:
        client = await house.client()
        for _ in range(2):
            answer = await ask(client, "Fail", message(b""))
            assert answer.frames == ["HEADERS END_STREAM"]
            assert answer.headers is not None
            assert answer.headers.fields[2:] == [
                (b"grpc-status", b"5"),
                (b"grpc-message", b"no %C3%A4"),
                (b"x-a", b"1"),
                (b"x-b", b"2"),
            ]
            record = await house.record()
            assert (record.status, record.origin, record.detail) == (Status.NOT_FOUND, "served", "no ä")
        answer = await ask(client, "Break", message(b""))
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
        assert (answer.status, answer.message) == (Status.ABORTED, b"enough")


@trio_test
async def test_what_goes_wrong_in_the_function_is_internal(engine: Engine) -> None:
    async def raises(request: bytes, call: ServedCall) -> bytes:
        raise KeyError("secret")

    async def wrong_type(request: bytes, call: ServedCall) -> Any:
        return 1

    async def bad_trailer(request: bytes, call: ServedCall) -> bytes:
        call.trailing_metadata.append(("No Key", "x"))
        return b""

    methods = serving(
        Raises=unary_unary(raises, bytes),
        Type=unary_unary(wrong_type, bytes),
        Trailer=unary_unary(bad_trailer, bytes),
    )
    async with a_proxy(engine, configure=methods, codec=RAW) as house:
        client = await house.client()
        for name in ("Raises", "Type", "Trailer"):
            answer = await ask(client, name, message(b""))
            assert answer.status == Status.INTERNAL
            assert answer.message == b"internal error in the proxy"
        assert [type(error) for error in house.observer.failed] == [KeyError, TypeError, ValueError]


@trio_test
async def test_an_early_answer_stops_the_request(engine: Engine) -> None:
    async def first(requests: AsyncIterator[bytes], call: ServedCall) -> bytes:
        return await anext(requests)

    async with a_proxy(engine, configure=serving(First=stream_unary(first, bytes)), codec=RAW) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/First"))
        await call.data(message(b"one"))
        answer = await call.answer()
        assert answer.body == message(b"one")
        assert await call.expect_reset() == 0


@pytest.mark.parametrize("how", ["reset", "disconnect", "deadline"])
@trio_test
async def test_a_generator_is_closed_when_its_call_ends_first(engine: Engine, how: str) -> None:
    closed = trio.Event()

    async def endless(request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(10_000)
        finally:
            closed.set()

    async with a_proxy(engine, configure=serving(Endless=unary_stream(endless, bytes)), codec=RAW) as house:
        client = await house.client()
        client.credits = False
        timeout = [(b"grpc-timeout", b"1S")] if how == "deadline" else []
        call = await client.request("/a.B/Endless", *timeout)
        await call.expect_headers()
        await call.read(INITIAL_WINDOW)
        if how == "reset":
            await call.reset()
        elif how == "disconnect":
            await client.aclose()
        await closed.wait()
        record = await house.record()
        assert record.status != Status.OK
        # It was held back: what it made is what fits into the window, and a little more.
        assert record.response_bytes < INITIAL_WINDOW + 200_000
        if how == "deadline":
            await client.credit_everything()
            assert (await call.answer()).status == Status.DEADLINE_EXCEEDED


@trio_test
async def test_a_slow_reader_gets_a_large_answer_whole(engine: Engine) -> None:
    async def large(request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(100_000)

    async with a_proxy(engine, configure=serving(Large=unary_stream(large, bytes)), codec=RAW) as house:
        client = await house.client()
        client.credits = False
        call = await client.request("/a.B/Large")
        await call.expect_headers()
        got = await call.read(INITIAL_WINDOW)
        await client.credit_everything()
        answer = await call.answer()
        assert got + answer.body == message(bytes(100_000)) * 5
        assert answer.status == Status.OK


@trio_test
async def test_a_plain_iterator_is_as_good_as_a_generator(engine: Engine) -> None:
    class Three(AsyncIterator[bytes]):
        left = 3

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return b"%d" % self.left

    def method(request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        return Three()

    async with a_proxy(engine, configure=serving(Three=unary_stream(method, bytes)), codec=RAW) as house:
        client = await house.client()
        assert (await ask(client, "Three", message(b""))).body == b"".join(map(message, (b"2", b"1", b"0")))


@trio_test
async def test_messages_of_protobuf_are_decoded_and_encoded(engine: Engine) -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")

    async def double(request: Any, call: ServedCall) -> Any:
        return wrappers.Int32Value(value=2 * request.value)

    methods = serving(Double=unary_unary(double, wrappers.Int32Value))
    async with a_proxy(engine, configure=methods, codec=codec()) as house:
        client = await house.client()
        answer = await ask(client, "Double", message(wrappers.Int32Value(value=21).SerializeToString()))
        assert wrappers.Int32Value.FromString(answer.body[5:]).value == 42
        broken = await ask(client, "Double", message(b"\xff"))
        assert broken.status == Status.INTERNAL
        await _and_proxied_ones_pass(house, client)


async def _and_proxied_ones_pass(house: House, client: RawPeer) -> None:
    call = await client.request("/a.B/Elsewhere", body=b"\xff not protobuf")
    served = await house.backend.request()
    assert await served.request_body() == message(b"\xff not protobuf")
    await served.respond(b"\xff")
    assert (await call.answer()).body == message(b"\xff")


@pytest.mark.parametrize("sent", [b"", message(b"half")[:7]])
@trio_test
async def test_a_request_that_is_not_completed_does_not_wait_for_ever(
    engine: Engine, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "_STALLED_S", 0.05)
    async with a_proxy(engine, codec=RAW, configure=ALL) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/Upper"))
        await call.data(sent)
        answer = await call.answer()
        trailers = answer.trailers or answer.headers
        assert trailers is not None
        assert trailers.get(b"grpc-status") == b"%d" % Status.DEADLINE_EXCEEDED


@trio_test
async def test_a_part_of_a_message_counts_until_its_call_is_over(engine: Engine) -> None:
    buffered = current_memory_guard().buffered
    async with a_proxy(engine, codec=RAW, configure=ALL) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/Join"))
        await call.data(message(bytes(50_000))[:12_000])
        await until(lambda: 12_000 <= buffered.bytes < 13_000, "what was read is not counted")
        await call.reset(8)
        await until(lambda: buffered.bytes == 0, "what is gone is counted")


@trio_test
async def test_all_parts_of_a_message_that_has_begun_count(engine: Engine) -> None:
    buffered = current_memory_guard().buffered
    async with a_proxy(engine, codec=RAW, configure=ALL) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/Join"))
        body = message(bytes(50_000)) + message(b"x" * 20_000)[:10_000]

        async def counted(size: int) -> None:
            await until(lambda: buffered.bytes == size, "not all that was read is counted")

        for start in range(0, 48_000, 12_000):
            await call.data(body[start : start + 12_000])
            await client.ping()
            await counted(start + 12_000)
        await call.data(body[48_000:])
        await until(lambda: buffered.bytes < 12_000, "a message that was taken is counted")
        assert buffered.bytes >= 9_000
        await call.reset(8)
        await until(lambda: buffered.bytes == 0, "what is gone is counted")
