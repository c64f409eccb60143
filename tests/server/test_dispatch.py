"""Requests to handlers, and what becomes of their errors: how the calls of a read begin, and each one's end."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
import trio
from hyperframe.frame import RstStreamFrame
from trio.testing import trio_test

from rawgrpc_proxy import (
    Call,
    CallContext,
    CallRecord,
    ConfigError,
    Http2Settings,
    PoolConn,
    RpcError,
    Server,
    ServerObserver,
    Status,
    StreamDirector,
    register_service,
    transparent_handler,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.proxy.directors import a_proxy_with_plain_director
from tests.proxy.house import Recorder, a_proxy, on_every_engine
from tests.proxy.raw_peers import RawPeer, connect, request_fields

pytestmark = on_every_engine


@pytest.mark.parametrize("waiting", [1, 2, 3])
@trio_test
async def test_a_call_goes_out_while_those_that_came_with_it_wait(engine: Engine, waiting: int) -> None:
    go_on = trio.Event()

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        if method == "/a.B/Slow":
            await go_on.wait()
        return context, await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        first = await client.request("/a.B/Fast")  # so that there is a connection to the backend
        await (await house.backend.request()).respond()
        assert (await first.answer()).status == Status.OK
        calls, frames = [], b""
        for path in ("/a.B/Fast", *["/a.B/Slow"] * waiting):
            calls.append(client.new_stream())
            frames += client.header_frames(calls[-1].id, request_fields(path), end=True)
        await client.send_bytes(frames)
        await (await house.backend.request()).respond()
        assert (await calls[0].answer()).status == Status.OK
        go_on.set()
        for _ in calls[1:]:
            await (await house.backend.request()).respond()
        for call in calls[1:]:
            assert (await call.answer()).status == Status.OK


@trio_test
async def test_an_observer_that_raises_is_reported_and_nobody_elses_trouble(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(what.exc_value))
    full = OSError("the disk is full")
    hear = Recorder.call_ended

    def raising(recorder: Recorder, record: CallRecord) -> None:
        hear(recorder, record)
        raise full

    monkeypatch.setattr(Recorder, "call_ended", raising)
    async with a_proxy(engine) as house:
        client = await house.client()
        for _ in range(2):
            call = await client.request()
            await (await house.backend.request()).respond()
            assert (await call.answer()).status == Status.OK
            await house.record()
        assert reported == [full, full]


class HearsTogether(ServerObserver):
    """Hears of the ends of calls together."""

    def __init__(self) -> None:
        self.ended: list[list[str]] = []
        self.interrupts = False

    def calls_ended(self, records: Sequence[CallRecord]) -> None:
        self.ended.append([record.method for record in records])
        if self.interrupts:
            raise KeyboardInterrupt


@asynccontextmanager
async def a_server_that_refuses(engine: Engine, observer: HearsTogether) -> AsyncIterator[RawPeer]:
    """A client of one."""

    def director(context: CallContext, method: str) -> NoReturn:
        raise RpcError(Status.NOT_FOUND, "there is nothing here")

    server = Server(
        unknown_service_handler=transparent_handler(director),
        observer=observer,
        settings=Http2Settings(engine=engine),
    )
    async with trio.open_nursery() as nursery:
        where = await nursery.start(server.serve, "127.0.0.1:0")
        yield await connect(where, nursery)
        nursery.cancel_scope.cancel()


@trio_test
async def test_calls_that_end_together_are_told_together_and_before_their_callers_know(
    engine: Engine,
) -> None:
    observer = HearsTogether()
    async with a_server_that_refuses(engine, observer) as client:
        methods = ["/a.B/One", "/a.B/Two", "/a.B/Three"]
        calls = [client.new_stream() for _ in methods]
        frames = [
            client.header_frames(call.id, request_fields(method), end=True)
            for call, method in zip(calls, methods, strict=True)
        ]
        await client.send_bytes(b"".join(frames))
        assert (await calls[0].answer()).status == Status.NOT_FOUND
        assert observer.ended == [methods]


async def interrupted(engine: Engine, observer: HearsTogether) -> None:
    async with a_server_that_refuses(engine, observer) as client:
        await client.request()
        await trio.sleep_forever()


@trio_test
async def test_an_observer_that_is_interrupted_ends_the_server_and_not_the_reader_of_all(
    engine: Engine,
) -> None:
    observer = HearsTogether()
    observer.interrupts = True
    with pytest.raises(BaseExceptionGroup) as caught:
        await interrupted(engine, observer)
    assert caught.value.subgroup(KeyboardInterrupt) is not None
    observer.interrupts = False
    async with a_server_that_refuses(engine, observer) as client:
        assert (await (await client.request()).answer()).status == Status.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "status"),
    [("Refused", Status.PERMISSION_DENIED), ("Fault", Status.INTERNAL), ("Nonsense", Status.INTERNAL)],
)
@trio_test
async def test_what_a_plain_director_raises_is_its_own_calls_end(
    engine: Engine, method: str, status: Status
) -> None:
    async with a_proxy_with_plain_director(engine) as (house, _):
        client = await house.client()
        frames, calls = b"", []
        for name in (method, "C"):
            calls.append(client.new_stream())
            frames += client.header_frames(calls[-1].id, request_fields(f"/a.B/{name}"), end=True)
        await client.send_bytes(frames)
        assert (await calls[0].answer()).status == status
        await (await house.backend.request()).respond()
        assert (await calls[1].answer()).status == Status.OK
        assert {(await house.record()).status for _ in calls} == {status, Status.OK}
        assert len(house.observer.failed) == (status == Status.INTERNAL)


@trio_test
async def test_a_call_that_comes_and_goes_in_one_read_is_not_asked_about(engine: Engine) -> None:
    async with a_proxy_with_plain_director(engine) as (house, director):
        client = await house.client()
        call = await client.request("/a.B/First")
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK
        gone = client.new_stream()
        reset = RstStreamFrame(gone.id, error_code=ErrorCode.CANCEL)
        await client.send_bytes(client.header_frames(gone.id, request_fields()) + reset.serialize())
        assert {(await house.record()).status for _ in range(2)} == {Status.OK, Status.CANCELLED}
        assert director.asked == ["/a.B/First"]
        assert house.backend.no_request_came()


@trio_test
async def test_more_calls_than_begin_in_one_turn_begin_in_the_next_ones(engine: Engine) -> None:
    async with a_proxy_with_plain_director(engine) as (house, director):
        client = await house.client()
        first = await client.request("/a.B/First")
        await (await house.backend.request()).respond()
        assert (await first.answer()).status == Status.OK
        frames, calls = b"", []
        for number in range(100):
            calls.append(client.new_stream())
            frames += client.header_frames(calls[-1].id, request_fields(f"/a.B/{number}"), end=True)
        await client.send_bytes(frames)
        for _ in calls:
            await (await house.backend.request()).respond()
        for call in calls:
            assert (await call.answer()).status == Status.OK
        assert len(director.asked) == 101


@trio_test
async def test_a_handler_of_ones_own_ends_its_call_once(engine: Engine) -> None:
    async def handler(call: Call) -> None:
        call.send_headers([(b"x-own", b"1")])
        call.send_headers([(b"x-late", b"1")])
        call.end(Status.OK, "fine", [(b"x-end", b"1")])
        call.end(Status.INTERNAL)

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_handler("/a.B/Own", handler)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/Own")).answer()
        assert answer.headers is not None
        assert answer.headers.fields[2:] == [(b"x-own", b"1")]
        assert answer.trailers is not None
        assert answer.trailers.fields == [
            (b"grpc-status", b"0"),
            (b"grpc-message", b"fine"),
            (b"x-end", b"1"),
        ]


@pytest.mark.parametrize("path", ["", "a/b", "/a b/c", "//b", "/a/", "/a/../b", "/a/b?c"])
def test_a_handler_needs_a_grpc_method(engine: Engine, path: str) -> None:
    async def handler(call: object) -> None:
        pass

    with pytest.raises(ConfigError, match="is no gRPC method"):
        Server().add_handler(path, handler)


def test_a_method_has_one_handler(engine: Engine) -> None:
    def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
        raise AssertionError

    server = Server(unknown_service_handler=transparent_handler(director))
    register_service(server, director, "a.B", "C", "D")
    with pytest.raises(ConfigError, match="has a handler already"):
        register_service(server, director, "a.B", "D")
