"""What the tests of the reference package assert of a proxied call, and at least as much."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallContext,
    PoolConn,
    RpcError,
    Server,
    Status,
    StreamDirector,
    codec,
    codec_with_parent,
    identity_codec,
    register_service,
    unary_unary,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.services.methods import ServedCall
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import (
    OK,
    RESPONSE,
    Data,
    PeerStream,
    RawPeer,
    message,
    request_fields,
    start_client,
)

pytestmark = on_every_engine

TIMES = 50
ROUNDS = 20


@trio_test
async def test_a_unary_call_reaches_the_backend_with_its_metadata_fifty_times(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for n in range(TIMES):
            call = await client.request("/a.B/C", (b"x-user", b"ann%d" % n), body=b"hello")
            served = await house.backend.request()
            assert served.request.get(b":path") == b"/a.B/C"
            assert served.request.get(b"x-user") == b"ann%d" % n
            assert await served.request_body() == message(b"hello")
            await served.headers([*RESPONSE, (b"x-from", b"backend")])
            await served.body(message(b"bye"))
            await served.headers([*OK, (b"x-end", b"now")], end=True)
            answer = await call.answer()
            assert answer.headers is not None
            assert answer.headers.get(b"x-from") == b"backend"
            assert answer.body == message(b"bye")
            assert answer.status == Status.OK
            assert answer.get(b"x-end") == b"now"
            record = await house.record()
            assert (record.status, record.origin, record.method) == (Status.OK, "upstream", "/a.B/C")
            assert (record.request_messages, record.response_messages) == (1, 1)
            assert (record.request_bytes, record.response_bytes) == (10, 8)
            assert record.upstream == house.backend.address
        assert house.observer.unread == 0
        assert len(house.backend.peers) == 1


@trio_test
async def test_a_registered_service_gets_its_header_and_exactly_one_trailer(engine: Engine) -> None:
    async with a_proxy(engine, configure=_register_known, unknown=False) as house:
        client = await house.client()
        call = await client.request("/a.B/Known")
        served = await house.backend.request()
        await served.headers([*RESPONSE, (b"x-server", b"here")])
        await served.body(message(b"reply"))
        await served.headers([*OK, (b"x-last", b"one")], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.get_all(b"x-server") == [b"here"]
        assert answer.trailers is not None
        assert answer.trailers.fields == [*OK, (b"x-last", b"one")]
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]


@trio_test
async def test_a_method_that_was_not_registered_is_unimplemented(engine: Engine) -> None:
    async with a_proxy(engine, configure=_register_known, unknown=False) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/Other")).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.UNIMPLEMENTED
        assert answer.message == b"unknown method /a.B/Other"
        assert house.backend.no_request_came()
        assert (await house.record()).status == Status.UNIMPLEMENTED


@trio_test
async def test_a_method_that_was_not_registered_goes_to_the_unknown_service_handler(engine: Engine) -> None:
    async def not_here(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        raise RpcError(Status.UNAVAILABLE, "the registered one")

    def configure(server: Server, director: StreamDirector) -> None:
        register_service(server, not_here, "a.B", "Known")

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        known = await (await client.request("/a.B/Known")).answer()
        assert (known.status, known.message) == (Status.UNAVAILABLE, b"the registered one")
        other = await client.request("/a.B/Other")
        await (await house.backend.request()).respond(b"from the backend")
        assert (await other.answer()).body == message(b"from the backend")


@trio_test
async def test_an_application_error_arrives_with_its_code_and_message(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(
            [*RESPONSE, (b"grpc-status", b"9"), (b"grpc-message", b"Userspace error.")], end=True
        )
        answer = await call.answer()
        assert answer.status == Status.FAILED_PRECONDITION
        assert answer.message == b"Userspace error."
        record = await house.record()
        assert (record.status, record.detail, record.origin) == (
            Status.FAILED_PRECONDITION,
            "Userspace error.",
            "upstream",
        )


@trio_test
async def test_a_directors_error_arrives_as_it_was_raised(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        raise RpcError(
            Status.PERMISSION_DENIED,
            "testing rejection",
            trailing_metadata=[("x-why", "test"), ("y-bin", b"\0")],
        )

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        answer = await (await client.request()).answer()
        assert answer.headers is not None
        assert answer.headers.fields == [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"7"),
            (b"grpc-message", b"testing rejection"),
            (b"x-why", b"test"),
            (b"y-bin", b"AA"),
        ]
        assert answer.frames == ["HEADERS END_STREAM"]
        assert house.backend.no_request_came()
        record = await house.record()
        assert (record.status, record.origin) == (Status.PERMISSION_DENIED, "director")


@trio_test
async def test_twenty_ping_pongs_in_lockstep_fifty_times(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for _ in range(TIMES):
            call = await client.open(request_fields("/a.B/PingPong"))
            served = await house.backend.request()
            await _ping_pong(call, served)
        assert house.observer.unread == TIMES


async def _ping_pong(call: PeerStream, served: PeerStream) -> None:
    for n in range(ROUNDS):
        ping, pong = message(b"ping %d" % n), message(b"pong %d" % n)
        await call.data(ping)
        assert await served.read(len(ping)) == ping
        if n == 0:
            await served.headers([*RESPONSE, (b"x-first", b"yes")])
        await served.data(pong)
        if n == 0:
            assert (await call.expect_headers()).get(b"x-first") == b"yes"
        assert await call.read(len(pong)) == pong
    await call.data(b"", end=True)
    assert (await served.expect_data()).end_stream
    await served.headers([*OK, (b"x-last", b"one")], end=True)
    end = await call.expect_headers()
    assert end.fields == [*OK, (b"x-last", b"one")]
    assert end.end_stream


@trio_test
async def test_five_streams_in_lockstep_at_a_time_keep_their_order(engine: Engine) -> None:
    async def echo(served: PeerStream) -> None:
        await served.headers(RESPONSE)
        while not (event := await served.expect_data()).end_stream:
            await served.body(event.data)
        await served.headers(OK, end=True)

    async def talk(client: RawPeer, name: bytes) -> None:
        call = await client.open(request_fields("/a.B/Chat", (b"x-name", name)))
        await call.expect_headers()
        for n in range(ROUNDS):
            line = message(b"%b %d" % (name, n))
            await call.body(line)
            assert await call.read(len(line)) == line
        await call.data(b"", end=True)
        assert (await call.answer()).frames == ["HEADERS END_STREAM"]

    async with a_proxy(engine) as house, trio.open_nursery() as echoes:
        echoes.start_soon(house.backend.answer_all, echo)
        client = await house.client()
        async with trio.open_nursery() as talks:
            for n in range(5):
                talks.start_soon(talk, client, b"stream %d" % n)
        echoes.cancel_scope.cancel()


class StreamTunnel(trio.abc.Stream):
    """A byte stream inside a gRPC stream: what one side sends as messages the other reads as bytes."""

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream
        self._partial = b""
        self._unread = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.body(message(bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while not self._unread:
            event = await self._stream.next()
            if not isinstance(event, Data) or event.end_stream:
                return b""
            self._partial += event.data
            while len(self._partial) >= 5:
                end = 5 + int.from_bytes(self._partial[1:5], "big")
                if len(self._partial) < end:
                    break
                self._unread += self._partial[5:end]
                self._partial = self._partial[end:]
        data, self._unread = self._unread, b""
        return data

    async def aclose(self) -> None:
        pass


@trio_test
async def test_grpc_runs_in_a_tunnel_through_a_stream(engine: Engine) -> None:
    async with a_proxy(engine) as house, trio.open_nursery() as tunnels:
        client = await house.client()
        outer = await client.open(request_fields("/a.Tunnel/Open"))
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await outer.expect_headers()

        async def answer(stream: PeerStream) -> None:
            body = await stream.request_body()
            await stream.headers(RESPONSE)
            await stream.body(body)
            await stream.headers(OK, end=True)

        inner_server = RawPeer(
            StreamTunnel(served),
            client_side=False,
            on_request=lambda stream: tunnels.start_soon(answer, stream),
        )
        tunnels.start_soon(inner_server.run)
        inner = await start_client(StreamTunnel(outer), tunnels)
        for n in range(3):
            call = await inner.request("/inner.B/C", body=b"in the tunnel %d" % n)
            reply = await call.answer()
            assert (reply.status, reply.body) == (Status.OK, message(b"in the tunnel %d" % n))
        await outer.data(b"", end=True)
        await inner_server.closed()
        await served.headers(OK, end=True)
        await inner.closed()
        tunnels.cancel_scope.cancel()


@trio_test
async def test_methods_are_served_beside_proxied_ones_on_one_port(engine: Engine) -> None:
    async def hello(request: bytes, call: ServedCall) -> bytes:
        return b"served " + request

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_method("/a.B/Hello", unary_unary(hello, bytes))

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        served_here = await client.request("/a.B/Hello", body=b"ann")
        proxied = await client.request("/a.B/World", body=b"bob")
        await (await house.backend.request()).respond(b"proxied bob")
        assert (await served_here.answer()).body == message(b"served ann")
        assert (await proxied.answer()).body == message(b"proxied bob")
        origins = {(await house.record()).origin, (await house.record()).origin}
        assert origins == {"served", "upstream"}


def test_the_default_codec_is_protobufs_and_lets_raw_bytes_pass(engine: Engine) -> None:
    pytest.importorskip("google.protobuf")
    assert codec().name == "proxy>proto"
    assert codec().unmarshal(codec().marshal(b"\x08\x01"), bytes) == b"\x08\x01"
    assert codec_with_parent(identity_codec()).name == "proxy>bytes"


def _register_known(server: Server, director: StreamDirector) -> None:
    register_service(server, director, "a.B", "Known")
