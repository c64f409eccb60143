"""A real client gets from a recording what it got from the server."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import attrs
import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Client, RpcError, Server, Status
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.recording import RecordedLink
from rawgrpc_proxy.lab.serve_recording import Answers
from tests.lab.test_replaying import RESPONSE, a_link, data, headers, message

CLIENT, SERVER = Sender.CLIENT, Sender.SERVER


def request(path: str, stream: int) -> bytes:
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        ("content-type", "application/grpc"),
    ]
    return headers(fields, stream)


def a_call(
    stream: int, asked: Sequence[bytes], answer: bytes, status: int = 0
) -> list[tuple[float, Sender, bytes]]:
    return [
        (1.0, CLIENT, request("/p.S/Do", stream)),
        *((1.0, CLIENT, data(message(each), stream)) for each in asked),
        (1.0, CLIENT, data(b"", stream, end=True)),
        (2.0, SERVER, headers([*RESPONSE, ("x-first", "1")], stream)),
        (2.0, SERVER, data(message(answer), stream)),
        (
            2.0,
            SERVER,
            headers([("grpc-status", str(status)), ("grpc-message", "so%20it is")], stream, end=True),
        ),
    ]


LINK = a_link(
    *a_call(1, [b"a"], b"first"),
    *a_call(3, [b"b"], b"second"),
    *a_call(5, [b"a"], b"third"),
    *a_call(7, [b"c"], b"", status=9),
    # One that talks: each answer came behind a message.
    (3.0, CLIENT, request("/p.S/Talk", 9)),
    (3.0, CLIENT, data(message(b"1"), 9)),
    (3.0, SERVER, headers(RESPONSE, 9)),
    (3.0, SERVER, data(message(b"one"), 9)),
    (4.0, CLIENT, data(message(b"2"), 9, end=True)),
    (4.0, SERVER, data(message(b"two"), 9)),
    (4.0, SERVER, headers([("grpc-status", "0"), ("x-last", "z")], 9, end=True)),
    (5.0, CLIENT, request("/p.S/Reset", 11)),
    (5.0, CLIENT, data(message(b"r"), 11, end=True)),
    (5.0, SERVER, headers(RESPONSE, 11)),
    (5.0, SERVER, h2.rst_stream(11, 11)),
)


@contextlib.asynccontextmanager
async def a_client(link: RecordedLink, *, lenient: bool = False) -> AsyncIterator[tuple[Client, Answers]]:
    answers = Answers([link], lenient=lenient)
    server = Server(unknown_service_handler=answers.handle)
    async with trio.open_nursery() as nursery:
        address: str = await nursery.start(server.serve, "127.0.0.1:0")
        async with Client(address) as client:
            yield client, answers
        nursery.cancel_scope.cancel()


@trio_test
async def test_calls_are_matched_by_method_request_and_order() -> None:
    async with a_client(LINK) as (client, answers):
        call = client.unary_unary("/p.S/Do", b"b")
        assert await call == b"second"
        assert call.headers is not None
        assert call.headers["x-first"] == "1"
        assert await client.unary_unary("/p.S/Do", b"a") == b"first"
        assert await client.unary_unary("/p.S/Do", b"a") == b"third"
        with pytest.raises(RpcError, match="FAILED_PRECONDITION: so it is"):
            await client.unary_unary("/p.S/Do", b"c")
        assert answers.left == 2
        assert answers.refused == []


@trio_test
async def test_an_answer_that_came_behind_a_message_waits_for_it() -> None:
    async with a_client(LINK) as (client, _), client.stream_stream("/p.S/Talk") as talk:
        await talk.send(b"1")
        assert await talk.receive() == b"one"
        await talk.send(b"2")
        await talk.done_sending()
        assert await talk.receive() == b"two"
        assert await talk.receive() is None
        assert talk.status is Status.OK
        assert talk.trailers is not None
        assert talk.trailers["x-last"] == "z"


@trio_test
async def test_a_reset_is_played_as_one() -> None:
    async with a_client(LINK) as (client, _):
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):  # what ENHANCE_YOUR_CALM stands for
            await client.unary_unary("/p.S/Reset", b"r")


@trio_test
async def test_what_was_not_recorded_is_refused_and_says_why() -> None:
    async with a_client(LINK) as (client, answers):
        for method, asked, why in (
            ("/p.S/Other", b"a", "no call of this method was recorded"),
            ("/p.S/Do", b"z", "message 0 of the request is in no recorded call of this method"),
        ):
            with pytest.raises(RpcError, match=f"FAILED_PRECONDITION: not as recorded: {why}"):
                await client.unary_unary(method, asked)
        async with client.stream_stream("/p.S/Talk") as talk:
            await talk.send(b"1")
            assert await talk.receive() == b"one"
            await talk.done_sending()
            with pytest.raises(RpcError, match="the request ends after 1 messages"):
                await talk.receive()
        with pytest.raises(RpcError, match="all recorded calls of this method have been played"):
            await client.unary_unary("/p.S/Talk", b"1")
        assert len(answers.refused) == 4


@trio_test
async def test_lenient_answers_whatever_is_asked_and_again() -> None:
    async with a_client(attrs.evolve(LINK, entries=LINK.entries[:13]), lenient=True) as (client, _):
        answers = [await client.unary_unary("/p.S/Do", b"whatever") for _ in range(4)]
        assert answers == [b"first", b"second", b"second", b"second"]


@trio_test
async def test_calls_at_the_same_time_get_an_answer_each() -> None:
    async with a_client(LINK) as (client, _):
        got: list[bytes] = []

        async def ask() -> None:
            got.append(await client.unary_unary("/p.S/Do", b"a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert sorted(got) == [b"first", b"third"]


@trio_test
async def test_a_request_that_leaves_the_recorded_one_later_is_refused_there() -> None:
    async with a_client(LINK) as (client, _), client.stream_stream("/p.S/Talk") as talk:
        await talk.send(b"1")
        assert await talk.receive() == b"one"
        await talk.send(b"3")
        with pytest.raises(RpcError, match="message 1 of the request has other bytes"):
            await talk.receive()
    async with a_client(LINK) as (client, _), client.stream_stream("/p.S/Talk") as talk:
        await talk.send_all([b"1", b"2", b"3"])
        assert await talk.receive() == b"one"
        with pytest.raises(RpcError, match="the request goes on after 2 messages"):
            await talk.receive()


@trio_test
async def test_a_request_that_another_one_begins_with_gets_its_own_answer() -> None:
    link = a_link(*a_call(1, [b"a", b"b"], b"of two"), *a_call(3, [b"a"], b"of one"))
    async with a_client(link) as (client, _):
        assert await client.stream_unary("/p.S/Do", [b"a"]) == b"of one"
        assert await client.stream_unary("/p.S/Do", [b"a", b"b"]) == b"of two"
