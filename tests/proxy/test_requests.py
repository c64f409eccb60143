"""What the upstream gets of a request."""

import gc
import types
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Call, CallContext, Metadata, PoolConn, Server, Status, Target, transparent_handler
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.timeout import parse_timeout
from rawgrpc_proxy.http2.headers import FixedHeaders, HeaderList
from rawgrpc_proxy.net import poller
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.server.request import Asked
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    INITIAL_WINDOW_SIZE,
    MAX_HEADER_LIST_SIZE,
    OK,
    RESPONSE,
    TRAILERS_ONLY,
    Data,
    Field,
    Headers,
    PeerStream,
    message,
    request_fields,
)

pytestmark = on_every_engine


@trio_test
async def test_headers_go_out_before_the_first_message(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        assert not served.request.end_stream
        await call.data(message(b"later"), end=True)
        assert await served.request_body() == message(b"later")
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_message_larger_than_the_windows_arrives_whole(engine: Engine) -> None:
    body = bytes(range(256)) * 4096
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request(body=body)
        served = await house.backend.request()
        assert await served.request_body() == message(body)
        await served.respond(body)
        assert (await call.answer()).body == message(body)


@trio_test
async def test_a_system_without_epoll_is_served_as_well(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "select", types.SimpleNamespace())
    body = bytes(range(256)) * 4096
    async with a_proxy(engine) as house:
        assert isinstance(poller.current_poller(), poller.TaskPoller)
        call = await (await house.client()).request(body=body)
        served = await house.backend.request()
        assert await served.request_body() == message(body)
        await served.respond(body)
        assert (await call.answer()).body == message(body)


@trio_test
async def test_the_end_of_the_request_is_passed_on_as_it_came(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()

        on_headers = await client.request(body=None)
        served = await house.backend.request()
        assert served.request.end_stream
        await served.respond()
        await on_headers.answer()

        on_data = await client.open(request_fields())
        served = await house.backend.request()
        await on_data.data(message(b"x"), end=True)
        event = await served.expect_data()
        assert (event.data, event.end_stream) == (message(b"x"), True)
        await served.respond()
        await on_data.answer()

        on_empty_data = await client.open(request_fields())
        served = await house.backend.request()
        await on_empty_data.data(message(b"x"))
        assert not (await served.expect_data()).end_stream
        await on_empty_data.data(b"", end=True)
        event = await served.expect_data()
        assert (event.data, event.end_stream) == (b"", True)
        await served.respond()
        await on_empty_data.answer()


ENDINGS: dict[str, list[str]] = {
    "by headers": ["HEADERS END_STREAM"],
    "by empty data": ["HEADERS", "DATA END_STREAM"],
    "by data": ["HEADERS", "DATA END_STREAM"],
    "by trailers": ["HEADERS", "HEADERS END_STREAM"],
    "by trailers after data": ["HEADERS", "DATA", "HEADERS END_STREAM"],
}
"""How a request may end, and the frames that say so."""


def a_whole_request(call: PeerStream, ending: str) -> bytes:
    """All frames of a request, to be sent in one write."""
    peer = call.peer
    frames = peer.header_frames(call.id, request_fields(), end=ending == "by headers")
    if "data" in ending:
        body = b"" if ending == "by empty data" else message(b"x")
        frames += peer.data_frame(call.id, body, end="trailers" not in ending)
    if "trailers" in ending:
        frames += peer.header_frames(call.id, [(b"x-end", b"1")], end=True)
    return frames


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("director", ["plain", "slow", "wrapped", "one of many"])
@trio_test
async def test_a_request_that_came_before_its_upstream_stream_ends_there_as_it_ended_here(
    engine: Engine, director: str, ending: str
) -> None:
    """There are servers that hang when a request whose end came in a DATA frame ends on HEADERS."""
    decide = trio.Event()

    def plain(context: CallContext, _method: str) -> Direction:
        return context, house.pool.target(house.backend.address)

    async def slow(context: CallContext, _method: str) -> Direction:
        await decide.wait()
        return context, await house.pool.get_conn(house.backend.address)

    async def around(call: Call) -> None:
        await decide.wait()
        await transparent_handler(plain)(call)

    def configure(server: Server, _director: object) -> None:
        if director == "wrapped":
            server.add_handler("/a.B/C", around)

    async with a_proxy(engine, director=slow if director == "slow" else plain, configure=configure) as house:
        client = await house.client()
        calls = [client.new_stream() for _ in range(40 if director == "one of many" else 1)]
        await client.send_bytes(b"".join(a_whole_request(call, ending) for call in calls))
        await client.ping()
        decide.set()
        for _ in calls:
            served = await house.backend.request()
            assert await served.request_frames() == ENDINGS[ending]
            await served.respond()
        for call in calls:
            assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("ending", ["by empty data", "by headers"])
@trio_test
async def test_the_end_of_an_empty_request_needs_no_window(engine: Engine, ending: str) -> None:
    async with a_proxy(engine, backend={INITIAL_WINDOW_SIZE: 0}) as house:
        client = await house.client()
        call = client.new_stream()
        await client.send_bytes(a_whole_request(call, ending))
        served = await house.backend.request()
        assert await served.request_frames() == ENDINGS[ending]
        await served.respond()
        assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("at_once", [True, False])
@trio_test
async def test_request_trailers_are_passed_on(engine: Engine, at_once: bool) -> None:
    trailers = [(b"x-checksum", b"123"), (b"x-checksum", b" 456 ")]
    async with a_proxy(engine) as house:
        client = await house.client()
        call = client.new_stream()
        if at_once:
            data = (
                len(message(b"x")).to_bytes(3, "big") + b"\0\0" + call.id.to_bytes(4, "big") + message(b"x")
            )
            await client.send_bytes(
                client.header_frames(call.id, request_fields())
                + data
                + client.header_frames(call.id, trailers, end=True)
            )
            served = await house.backend.request()
        else:
            await call.headers(request_fields())
            served = await house.backend.request()
            await call.data(message(b"x"))
            await call.headers(trailers, end=True)
        assert await served.read(6) == message(b"x")
        assert await served.next() == Headers(
            [(b"x-checksum", b"123"), (b"x-checksum", b"456")], end_stream=True
        )
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_request_trailers_without_a_body_are_passed_on(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = client.new_stream()
        await client.send_bytes(
            client.header_frames(call.id, request_fields())
            + client.header_frames(call.id, [(b"x-end", b"1")], end=True)
        )
        served = await house.backend.request()
        assert not served.request.end_stream
        assert await served.next() == Headers([(b"x-end", b"1")], end_stream=True)
        await served.respond()
        await call.answer()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("left", [[], [(b"x-checksum", b"123")]])
@trio_test
async def test_what_a_director_has_set_or_removed_cannot_come_back_in_the_trailers(
    engine: Engine, at_once: bool, left: list[Field]
) -> None:
    def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
        metadata = context.metadata.without("x-role").with_value("x-user", "u").with_added("x-checksum", "0")
        return context.with_metadata(metadata), houses[0].pool.target(houses[0].backend.address)

    houses: list[House] = []
    trailers = [(b"x-role", b"admin"), *left, (b"x-user", b"root")]
    async with a_proxy(engine, director=director) as house:
        houses.append(house)
        client = await house.client()
        call = client.new_stream()
        if at_once:
            await client.send_bytes(
                client.header_frames(call.id, request_fields())
                + client.header_frames(call.id, trailers, end=True)
            )
            served = await house.backend.request()
        else:
            await call.headers(request_fields())
            served = await house.backend.request()
            await call.headers(trailers, end=True)
        assert served.request.get_all(b"x-user") == [b"u"]
        assert await served.next() == (Headers(left, end_stream=True) if left else Data(b"", end_stream=True))
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_binary_metadata_and_compressed_messages_pass_bit_for_bit(engine: Engine) -> None:
    extra: list[Field] = [
        (b"a-bin", b"AAEC/w=="),
        (b"b-bin", b"AAEC/w"),
        (b"c-bin", b"this is not base64!"),
        (b"d-bin", b"AA,BB"),
        (b"grpc-encoding", b"snappy"),
        (b"grpc-accept-encoding", b"snappy,gzip"),
        (b"grpc-strange", b"\xff\xfe"),
        (b"user-agent", b"raw/1.0"),
    ]
    body = message(bytes(range(256)), flag=1) + message(b"plain")
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/C", *extra))
        await call.body(body, end=True)
        served = await house.backend.request()
        assert [f for f in served.request.fields if f in extra] == extra
        assert await served.request_body() == body
        await served.headers([*RESPONSE, *extra])
        await served.body(body)
        await served.headers([(b"grpc-status", b"0"), (b"grpc-message", b"%zz%e2%82"), *extra], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.fields == [*RESPONSE, *extra]
        assert answer.body == body
        assert answer.trailers is not None
        assert answer.trailers.fields[1:] == [(b"grpc-message", b"%zz%e2%82"), *extra]


@trio_test
async def test_the_order_of_headers_and_duplicates_are_kept(engine: Engine) -> None:
    extra = [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), (b"x-empty", b""), (b"x-b", b"1")]
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", *extra, body=None)
        served = await house.backend.request()
        pseudo = [name for name, _ in served.request.fields if name.startswith(b":")]
        assert pseudo == [b":method", b":scheme", b":path", b":authority"]
        assert [name for name, _ in served.request.fields[:4]] == pseudo
        assert [field for field in served.request.fields if field[0].startswith(b"x-")] == extra
        await served.headers([*RESPONSE, *extra])
        await served.headers([*OK, *extra], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.fields == [*RESPONSE, *extra]
        assert answer.trailers is not None
        assert answer.trailers.fields == [*OK, *extra]


@trio_test
async def test_nine_hundred_small_entries_of_metadata_pass_both_ways(engine: Engine) -> None:
    entries: list[Field] = [(b"x-%d" % number, b"%d" % number) for number in range(900)]
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", *entries)
        served = await house.backend.request()
        assert [field for field in served.request.fields if field in entries] == entries
        await served.headers([*RESPONSE, *entries])
        await served.headers([*OK, *entries], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.fields == [*RESPONSE, *entries]
        assert answer.trailers is not None
        assert answer.trailers.fields == [*OK, *entries]


@pytest.mark.parametrize("te", [[], [(b"te", b"trailers")], [(b"te", b"trailers"), (b"te", b"trailers")]])
@trio_test
async def test_te_trailers_is_sent_upstream_exactly_once(engine: Engine, te: list[Field]) -> None:
    fields = [field for field in request_fields() if field[0] != b"te"] + te
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(fields, end=True)
        served = await house.backend.request()
        assert served.request.get_all(b"te") == [b"trailers"]
        await served.headers(TRAILERS_ONLY, end=True)
        await call.answer()


@trio_test
async def test_edge_blanks_of_values_are_trimmed_and_harm_nobody(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        sibling = await client.open(request_fields("/a.B/Sibling"))
        sibling_served = await house.backend.request()

        call = await client.request("/a.B/C", (b"x-a", b"  two words\t"), (b"x-b", b" "), body=None)
        served = await house.backend.request()
        assert served.request.get(b"x-a") == b"two words"
        assert served.request.get(b"x-b") == b""
        await served.headers([*RESPONSE, (b"x-c", b" c")])
        await served.headers([*OK, (b"grpc-message", b"said so ")], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.get(b"x-c") == b"c"
        assert answer.message == b"said so%20"

        await sibling.data(message(b"fine"), end=True)
        assert await sibling_served.request_body() == message(b"fine")
        await sibling_served.respond()
        assert (await sibling.answer()).status == Status.OK


@trio_test
async def test_the_upstream_gets_the_time_that_is_left(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"9S"), body=None)
        served = await house.backend.request()
        (timeout,) = served.request.get_all(b"grpc-timeout")
        assert 5 < parse_timeout(timeout) < 9
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_the_deadline_cancels_the_upstream_and_tells_the_caller(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
        served = await house.backend.request()
        await served.request_body()
        assert await served.expect_reset() == 8
        answer = await call.answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert (answer.status, answer.message) == (Status.DEADLINE_EXCEEDED, b"Deadline Exceeded")
        record = await house.record()
        assert (record.status, record.origin) == (Status.DEADLINE_EXCEEDED, "proxy")


@trio_test
async def test_a_deadline_in_mid_response_ends_it_with_trailers(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/C", (b"grpc-timeout", b"1S")))
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.data(message(b"one"))
        answer = await call.answer()
        assert answer.frames == ["HEADERS", "DATA", "HEADERS END_STREAM"]
        assert answer.status == Status.DEADLINE_EXCEEDED
        # The request had not ended: it is not wanted any more.
        assert await call.expect_reset() == 0
        assert await served.expect_reset() == 8


@trio_test
async def test_a_deadline_ends_a_stream_on_which_messages_pass_both_ways_all_the_time(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields("/a.B/C", (b"grpc-timeout", b"1S")))
        served = await house.backend.request()
        await served.headers(RESPONSE)
        async with trio.open_nursery() as nursery:

            async def talk(stream: PeerStream) -> None:
                while True:
                    await stream.data(message(b"more"))
                    await trio.sleep(0.01)

            nursery.start_soon(talk, call)
            nursery.start_soon(talk, served)
            answer = await call.answer()
            nursery.cancel_scope.cancel()
        assert answer.status == Status.DEADLINE_EXCEEDED
        record = await house.record()
        assert (record.status, record.cause) == (Status.DEADLINE_EXCEEDED, "deadline")
        assert 0.9 < record.duration_s < 30
        assert min(record.request_messages, record.response_messages) > 1


@trio_test
async def test_a_timeout_of_nothing_never_reaches_the_upstream(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/C", (b"grpc-timeout", b"0n"))).answer()
        assert answer.status == Status.DEADLINE_EXCEEDED
        assert house.backend.no_request_came()


@pytest.mark.parametrize(
    "value",
    [b"", b"1", b"S", b"1s", b"-1S", b"123456789S", b"9223372036854775807n", b"1.5S", b"1 S", b"\xff"],
)
@trio_test
async def test_a_timeout_that_cannot_be_read_is_passed_on_as_it_came(engine: Engine, value: bytes) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", value))
        served = await house.backend.request()
        assert served.request.get_all(b"grpc-timeout") == [value]
        await served.respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_blanks_around_a_timeout_are_not_part_of_it(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b" 9S\t"), body=None)
        served = await house.backend.request()
        (timeout,) = served.request.get_all(b"grpc-timeout")
        assert 5 < parse_timeout(timeout) < 9
        await served.respond()
        assert (await call.answer()).status == Status.OK


PATHS = [
    b"/a",
    b"/api/pkg.Service/Method",
    b"/a/b/c/M",
    b"/Echo%20Service/M",
    b"/a:b@c/!$&'()*+,;=",
    b"/%C3%A4/a%2fb%3F",
    b"/.well-known/...",
    b'/a~b_c-d/M|<>"[]^`{}',
]


@pytest.mark.parametrize("path", PATHS)
@trio_test
async def test_a_path_goes_to_the_director_and_to_the_upstream_as_it_came(
    engine: Engine, path: bytes
) -> None:
    asked = []

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        asked.append(method)
        assert context.method == context.metadata[":path"] == method
        return context, await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request(path.decode())
        served = await house.backend.request()
        assert served.request.get(b":path") == path
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert asked == [path.decode()]


@pytest.mark.parametrize("path", ["/api/a.B/Own", "/a.B/Own/More", "/A.B/Own", "/a.B/%4Fwn"])
@trio_test
async def test_a_method_of_our_own_answers_to_its_whole_path_and_no_other(engine: Engine, path: str) -> None:
    async def own(call: Call) -> None:
        call.end(Status.OK, "our own")

    def configure(server: Server, _director: object) -> None:
        server.add_handler("/a.B/Own", own)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        assert (await (await client.request("/a.B/Own")).answer()).message == b"our own"
        call = await client.request(path)
        await (await house.backend.request()).respond()
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.OK, None)


@trio_test
async def test_headers_too_long_for_the_upstream_are_not_sent_there(engine: Engine) -> None:
    async with a_proxy(engine, backend={MAX_HEADER_LIST_SIZE: 1000}) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-long", b"x" * 1000))
        answer = await call.answer()
        assert answer.status == Status.RESOURCE_EXHAUSTED
        assert answer.message is not None
        assert b"takes 1000" in answer.message
        assert house.backend.no_request_came()
        short = await client.request("/a.B/C", (b"x-short", b"x" * 100))
        await (await house.backend.request()).respond()
        assert (await short.answer()).status == Status.OK


@trio_test
async def test_a_header_list_of_several_frames_passes(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-long", b"y" * 50_000), body=None)
        served = await house.backend.request()
        assert served.request.get(b"x-long") == b"y" * 50_000
        await served.headers([*TRAILERS_ONLY, (b"x-long", b"z" * 50_000)], end=True)
        assert (await call.answer()).get(b"x-long") == b"z" * 50_000


@trio_test
async def test_a_director_that_puts_text_among_the_bytes_errs_for_one_call_only(engine: Engine) -> None:
    """The next callers on the upstream's connection are who they are."""
    mistake = False

    async def director(context: CallContext, _method: str) -> tuple[CallContext, PoolConn]:
        conn = await house.pool.get_conn(house.backend.address)
        if mistake:
            raw: Any = [*context.metadata.raw, ("x-hops", b"3")]
            try:
                return context.with_metadata(Metadata(raw)), conn
            except TypeError:
                conn.close()
                raise
        return context, conn

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        good, bad = False, True
        for user, mistake in (  # the director reads it
            (b"alice", good),
            (b"alice", good),
            (b"bob", good),
            (b"bob", bad),
            (b"alice", good),
            (b"bob", good),
        ):
            call = await client.request("/a.B/C", (b"x-user", user))
            if mistake:
                assert (await call.answer()).status == Status.INTERNAL
            else:
                served = await house.backend.request()
                assert served.request.get(b"x-user") == user
                await served.respond()
                assert (await call.answer()).status == Status.OK
        assert [type(error) for error in house.observer.failed] == [TypeError]


@trio_test
async def test_what_a_caller_has_told_goes_with_its_connection(engine: Engine) -> None:
    """The upstream's connection goes on, and so does the process: neither keeps it."""
    async with a_proxy(engine) as house:
        client = await house.client()
        for name in (b"authorization", b"x-api-key"):
            for _ in range(4):
                call = await client.request("/a.B/C", (name, b"the-secret-of-alice"))
                await (await house.backend.request()).respond()
                assert (await call.answer()).status == Status.OK
        assert kept_with(b"the-secret-of-alice"), "while the connection lives"

        await client.aclose()
        await until(lambda: house.server.open_connections == 0)

        assert not kept_with(b"the-secret-of-alice")


@trio_test
async def test_long_texts_that_are_worked_out_of_a_header_list_are_not_kept_with_it(engine: Engine) -> None:
    """Connections keep lists, and count what they take, but not what such texts do."""
    path, text = b"/a/../" + b"b" * 200, b"t" * 200
    async with a_proxy(engine) as house:
        client = await house.client()
        for _ in range(2):
            refused = await client.request(path.decode())
            assert (await refused.answer()).status == Status.UNIMPLEMENTED
            call = await client.request()
            served = await house.backend.request()
            await served.headers([*RESPONSE, (b"grpc-status", b"9"), (b"grpc-message", text)], end=True)
            assert (await call.answer()).message == text
        for value, short in ((path, Asked), (text, tuple)):
            lists = [headers for headers in kept_with(value) if isinstance(headers, HeaderList)]
            assert lists
            kept = [answer for headers in lists for answer in headers._worked_out.values()]
            assert [answer for answer in kept if isinstance(answer, short)]
            texts = [part for answer in kept for part in gc.get_referents(answer) if isinstance(part, str)]
            assert {len(part) for part in texts} <= {len(path)}, "but the method's name"


def kept_with(value: bytes) -> list[object]:
    """The header lists in this process that have a field of this value."""
    gc.collect()
    return [
        headers
        for headers in gc.get_objects()
        # Not isinstance: it asks the proxies of weakref, too, which raise when what they stand for is gone.
        if issubclass(type(headers), FixedHeaders) and any(field[1] == value for field in headers)
    ]
