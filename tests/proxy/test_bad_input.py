"""Whatever a peer sends, its caller gets a clear error, the call one record, and nobody else notices."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    PREFACE,
    RESPONSE,
    Field,
    PeerStream,
    RawPeer,
    message,
    request_fields,
)

pytestmark = on_every_engine

NO_ERROR, PROTOCOL_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 8, 11


def changed(name: bytes, value: bytes | None) -> list[Field]:
    """The fields of a good request, with one of them changed, or left out."""
    fields = [(key, value if key == name else old) for key, old in request_fields()]
    return [(key, new) for key, new in fields if new is not None]


async def one_good_call(house: House, client: RawPeer) -> None:
    call = await client.request("/a.B/Good", body=b"x")
    served = await house.backend.request()
    assert served.request.get(b":path") == b"/a.B/Good"
    await served.respond(b"fine")
    assert (await call.answer()).body == message(b"fine")
    assert (await house.record()).status == Status.OK


async def raw_exchange(house: House, data: bytes) -> bytes:
    """Send these bytes and read until the proxy closes."""
    stream = await trio.open_tcp_stream(*_host_and_port(house.address))
    async with stream:
        got = b""
        try:
            await stream.send_all(data)
            while chunk := await stream.receive_some():
                got += chunk
        except trio.BrokenResourceError:
            pass
        return got


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@trio_test
async def test_a_client_that_speaks_http_1_is_told_so_in_its_own_words(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        for line in (
            b"GET /",
            b"POST /a.B/C",
            b"CONNECT 10.0.0.7:50051",
            b"M-SEARCH *",
            b"VERSION-CONTROL /x",
        ):
            got = await raw_exchange(house, line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 505 "), got
            assert b"content-length: %d\r\n" % len(body) in head
            assert b"HTTP/2" in body
        await one_good_call(house, await house.client())
        assert [int(error.error_code) for error in house.observer.connections_failed] == [0xD] * 5


@pytest.mark.parametrize(
    ("begins", "named"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 50051\r\n", "a PROXY protocol header"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), "a PROXY protocol header"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "a TLS handshake"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH greeting"),
        (b"hello\r\n", "no HTTP/2 preface"),
    ],
)
@trio_test
async def test_whoever_begins_with_something_else_gets_no_settings_and_the_log_the_cause(
    engine: Engine, begins: bytes, named: str
) -> None:
    """Also with a good gRPC client behind it, which would take SETTINGS for a living server."""
    async with a_proxy(engine) as house:
        got = await raw_exchange(house, begins + PREFACE + b"\0\0\0\4\0\0\0\0\0")

        assert got == b""
        await until(lambda: bool(house.observer.connections_failed))
        (error,) = house.observer.connections_failed
        assert str(error).startswith(named)


@trio_test
async def test_the_answer_in_http_1_reaches_a_client_that_is_still_sending_its_body(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        got = await raw_exchange(house, b"POST /a.B/C HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(1 << 20))
        assert got.startswith(b"HTTP/1.1 505 "), got


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # a TLS ClientHello
        b"\0" * 1000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        PREFACE[:-1] + b"!",
        PREFACE + b"\0\0\0\0\0\0\0\0\1",  # DATA before SETTINGS
        PREFACE + b"\xff" * 100,
    ],
)
@trio_test
async def test_garbage_ends_its_own_connection_only(engine: Engine, garbage: bytes) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        got = await raw_exchange(house, garbage)
        assert b"HTTP/1.1" not in got
        await one_good_call(house, client)
        assert len(house.observer.connections_failed) == 1
        assert house.observer.unread == 0


REFUSED = [
    (changed(b":method", b"GET"), b"405", Status.INTERNAL),
    (changed(b":method", b"post"), b"405", Status.INTERNAL),
    (changed(b"content-type", None), b"415", Status.INTERNAL),
    (changed(b"content-type", b"application/json"), b"415", Status.INTERNAL),
    (changed(b"content-type", b"application/grpc-web"), b"415", Status.INTERNAL),
    (changed(b"content-type", b"application/grpcx"), b"415", Status.INTERNAL),
    (changed(b":scheme", b"ftp"), b"400", Status.INTERNAL),
    (changed(b":path", b"a.B/C"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"//a"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/../b"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/../b"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/.."), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/./b"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"*"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a//b"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/b?c=d"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/b#c"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/%2e%2e"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/b%"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a/%00"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a\\b/c"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/a b/c"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"/\xc3\xa4/c"), b"200", Status.UNIMPLEMENTED),
    (changed(b":path", b"http://host/a/b"), b"200", Status.UNIMPLEMENTED),
]


@trio_test
async def test_what_is_no_grpc_request_is_answered_here(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for fields, http_status, status in REFUSED:
            for end in (True, False):
                call = await client.open(fields, end=end)
                answer = await call.answer()
                assert answer.frames == ["HEADERS END_STREAM"], fields
                assert (answer.http_status, answer.status) == (http_status, status), fields
                assert answer.headers is not None
                assert answer.headers.get(b"content-type") == b"application/grpc"
                if not end:
                    assert await call.expect_reset() == NO_ERROR
                assert (await house.record()).status == status
        assert house.backend.peers == []
        await one_good_call(house, client)


@pytest.mark.parametrize(
    "content_type", [b"application/grpc+proto", b"application/grpc+json", b"application/grpc;x=y"]
)
@trio_test
async def test_every_subtype_of_grpc_passes(engine: Engine, content_type: bytes) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(changed(b"content-type", content_type), end=True)
        served = await house.backend.request()
        assert served.request.get(b"content-type") == content_type
        await served.headers(
            [(b":status", b"200"), (b"content-type", content_type), (b"grpc-status", b"0")], end=True
        )
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.get(b"content-type") == content_type


MALFORMED = [
    ("an upper-case name", [*request_fields(), (b"X-Upper", b"1")]),
    ("a NUL in a value", [*request_fields(), (b"x-a", b"a\0b")]),
    ("a line break in a value", [*request_fields(), (b"x-a", b"a\r\nb")]),
    ("a space in a name", [*request_fields(), (b"x a", b"1")]),
    ("connection", [*request_fields(), (b"connection", b"keep-alive")]),
    ("transfer-encoding", [*request_fields(), (b"transfer-encoding", b"chunked")]),
    ("te: gzip", [*request_fields(), (b"te", b"gzip")]),
    ("no :path", changed(b":path", None)),
    ("no :method", changed(b":method", None)),
    ("two :path", [(b":path", b"/x.Y/Z"), *request_fields()]),
    (":status", [(b":status", b"200"), *request_fields()]),
    ("a pseudo-field that comes late", [*request_fields(), (b":authority", b"x")]),
    ("a content-length that is none", [*request_fields(), (b"content-length", b"x")]),
    ("two content-lengths", [*request_fields(), (b"content-length", b"1"), (b"content-length", b"2")]),
    *(
        (f"the authority {authority!r}", changed(b":authority", authority))
        for authority in (
            b"", b"host/path", b"a b", b"a,b", b"a?b", b"a#b", b"a:99999999", b"[::1", b"\xc3\xa4", b"user@host"
        )
    ),
    ("neither authority nor host", changed(b":authority", None)),
    ("another host than authority", [*request_fields(), (b"host", b"other.example")]),
    ("two hosts", [*changed(b":authority", None), (b"host", b"a"), (b"host", b"a")]),
    ("two content-types", [*request_fields(), (b"content-type", b"application/grpc")]),
    ("two timeouts", [*request_fields(), (b"grpc-timeout", b"1S"), (b"grpc-timeout", b"1S")]),
    ("an empty :path", changed(b":path", b"")),
    ("a :scheme that is none", changed(b":scheme", b"ht tp")),
]  # fmt: skip


@trio_test
async def test_a_malformed_request_is_reset_and_its_siblings_go_on(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        sibling = await client.open(request_fields("/a.B/Sibling"))
        sibling_served = await house.backend.request()
        for name, fields in MALFORMED:
            call = await client.open(fields)
            assert await call.expect_reset() == PROTOCOL_ERROR, name
        assert len(house.observer.refused) == len(MALFORMED)
        assert house.observer.unread == 0
        assert house.backend.no_request_came()
        await sibling.data(b"", end=True)
        await sibling_served.respond(b"fine")
        assert (await sibling.answer()).body == message(b"fine")
        await house.record()
        await one_good_call(house, client)


@pytest.mark.parametrize("name", [b"content-length", b"host"])
@trio_test
async def test_trailers_of_a_request_that_say_how_to_read_it_end_that_call(
    engine: Engine, name: bytes
) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await call.headers([(name, b"0")], end=True)
        assert await call.expect_reset() == PROTOCOL_ERROR
        assert await served.expect_reset() == CANCEL
        await house.record()
        await one_good_call(house, client)


@pytest.mark.parametrize("status", [b"000", b"101", b"999", b"600", b"2", b""])
@trio_test
async def test_a_status_that_is_none_costs_its_call_alone(engine: Engine, status: bytes) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        sibling = await client.request("/a.B/Sibling")
        sibling_served = await house.backend.request()
        call = await client.request()
        served = await house.backend.request()
        await served.request_body()
        await served.headers([(b":status", status), (b"content-type", b"application/grpc")])
        assert (await call.answer()).status == Status.INTERNAL
        assert await served.expect_reset() == PROTOCOL_ERROR
        await sibling_served.respond(b"fine")
        assert (await sibling.answer()).body == message(b"fine")


@trio_test
async def test_a_body_that_is_not_its_content_length_resets_both_sides(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for sent in (b"12345678", b"12"):
            call = await client.open([*request_fields(), (b"content-length", b"5")])
            served = await house.backend.request()
            await call.data(sent, end=True)
            assert await call.expect_reset() == PROTOCOL_ERROR
            assert await served.expect_reset() == 8
            await house.record()
        await one_good_call(house, client)


@pytest.mark.parametrize("how", ["long", "many"])
@trio_test
async def test_oversized_headers_are_refused_with_a_status(engine: Engine, how: str) -> None:
    extra = [(b"x-long", b"x" * 2500)] if how == "long" else [(b"x-%d" % n, b"") for n in range(30)]
    async with a_proxy(engine, max_header_list_bytes=2000, max_header_fields=30) as house:
        client = await house.client()
        call = await client.open([*request_fields(), *extra])
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert (answer.http_status, answer.status) == (b"431", Status.RESOURCE_EXHAUSTED)
        limit = b"max_header_list_bytes is 2000" if how == "long" else b"36 fields; max_header_fields is 30"
        assert limit in (answer.message or b"")
        assert await call.expect_reset() == NO_ERROR
        assert (await house.record()).status == Status.RESOURCE_EXHAUSTED
        assert house.backend.peers == []
        await one_good_call(house, client)


@trio_test
async def test_oversized_trailers_of_a_request_end_that_call_alone(engine: Engine) -> None:
    """They say nothing of how the call went, so nothing of them would be worth to be kept."""
    async with a_proxy(engine, max_header_list_bytes=2000) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await call.headers([(b"x-long", b"x" * 3000)], end=True)
        assert await call.expect_reset() == ENHANCE_YOUR_CALM
        assert await served.expect_reset() == CANCEL
        record = await house.record()
        assert record.status == Status.RESOURCE_EXHAUSTED
        assert "max_header_list_bytes is 2000" in record.detail
        await one_good_call(house, client)


@trio_test
async def test_one_stream_too_many_is_refused_retry_safe(engine: Engine) -> None:
    async with a_proxy(engine, max_concurrent_streams=2) as house:
        client = await house.client()
        assert client.peer_settings[3] == 2
        calls, served_calls = [], []
        for _ in range(2):
            calls.append(await client.open(request_fields()))
            served_calls.append(await house.backend.request())
        one_more = await client.open(request_fields())
        assert await one_more.expect_reset() == 7
        for call, served in zip(calls, served_calls, strict=True):
            await call.data(b"", end=True)
            await served.respond()
            assert (await call.answer()).status == Status.OK
            await house.record()
        await one_good_call(house, client)


@trio_test
async def test_a_backend_that_is_down_is_unavailable(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        await house.backend.stop_listening()
        client = await house.client()
        calls = [await client.request() for _ in range(3)]
        for call in calls:
            answer = await call.answer()
            assert answer.frames == ["HEADERS END_STREAM"]
            assert answer.status == Status.UNAVAILABLE
            assert answer.message is not None
            assert b"Connection refused" in answer.message
            assert (await house.record()).status == Status.UNAVAILABLE


async def _speaks_http_1(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")


async def _speaks_nonsense(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\xff" * 64)
    await stream.receive_some()


async def _hangs_up(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def _speaks_tls(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"\x15\x03\x03\0\x02\x02\x2f")


async def _is_a_database(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\x4a\0\0\0\x0a8.0.36\0" + bytes(60))
    await stream.receive_some()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (_speaks_http_1, b": answered with HTTP/1.1, not HTTP/2"),
        (_speaks_tls, b": speaks TLS, and is dialled in plaintext"),
        (_is_a_database, b": does not speak HTTP/2: it begins with 4a 00 00 00 0a"),
        (_speaks_nonsense, b": does not speak HTTP/2: it begins with ff ff"),
        (_hangs_up, b""),
    ],
)
@trio_test
async def test_a_backend_that_speaks_no_http_2_is_unavailable(
    engine: Engine, script: object, said: bytes
) -> None:
    async with a_proxy(engine) as house:
        house.backend.raw_script = script  # type: ignore[assignment]
        client = await house.client()
        answer = await (await client.request()).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.UNAVAILABLE
        assert answer.message is not None
        assert answer.message.startswith(house.backend.address.encode() + said)
        record = await house.record()
        assert (record.status, record.origin) == (Status.UNAVAILABLE, "proxy")
        assert house.observer.unread == 0


@trio_test
async def test_a_backend_that_breaks_the_protocol_in_mid_call_ends_the_calls_on_that_connection_only(
    engine: Engine,
) -> None:
    async with a_proxy(engine, pool={"ms": 2}) as house:
        client = await house.client()
        calls: list[PeerStream] = []
        served: list[PeerStream] = []
        for _ in range(3):
            calls.append(await client.open(request_fields()))
            served.append(await house.backend.request())
        assert served[0].peer is served[1].peer is not served[2].peer
        await served[0].headers(RESPONSE)
        await calls[0].expect_headers()
        await served[0].peer.send_bytes(b"\0\0\1\6\0\0\0\0\0x")  # a PING of one byte
        goaway = await served[0].peer.expect_goaway()
        assert goaway.code == 6
        await served[0].peer.closed()
        for call in calls[:2]:
            assert (await call.answer()).status == Status.UNAVAILABLE
            await house.record()
        await calls[2].data(b"", end=True)
        await served[2].respond(b"fine")
        assert (await calls[2].answer()).body == message(b"fine")
        await house.record()
        await one_good_call(house, client)


@trio_test
async def test_a_client_that_breaks_the_protocol_is_told_and_its_calls_are_cancelled(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client, other = await house.client(), await house.client()
        await client.open(request_fields())
        served = await house.backend.request()
        await client.send_bytes(b"\0\0\1\6\0\0\0\0\0x")
        goaway = await client.expect_goaway()
        assert (goaway.last_stream_id, goaway.code) == (1, 6)
        await client.closed()
        assert await served.expect_reset() == 8
        assert (await house.record()).status == Status.UNAVAILABLE
        (error,) = house.observer.connections_failed
        assert error.error_code == 6
        await one_good_call(house, other)


@trio_test
async def test_both_sides_lost_in_one_turn_end_the_call_once(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        other = await house.client()
        for _ in range(20):
            client = await house.client()
            await client.open(request_fields())
            served = await house.backend.request()
            await served.headers(RESPONSE)
            await served.peer.aclose()
            await client.aclose()
            assert (await house.record()).status in {Status.UNAVAILABLE, Status.CANCELLED}
        assert house.observer.unread == 0
        await one_good_call(house, other)


@trio_test
async def test_both_sides_reset_in_one_turn_end_the_call_once(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for code in (0, 2, 7, 8) * 5:
            call = await client.open(request_fields())
            served = await house.backend.request()
            async with trio.open_nursery() as both:
                both.start_soon(served.reset, code)
                both.start_soon(call.reset)
            record = await house.record()
            assert record.status != Status.OK
        assert house.observer.unread == 0
        # A refused call may have been on its way to a retry; whatever came of it is over.
        while not house.backend.no_request_came():
            await house.backend.request()
        await one_good_call(house, client)
