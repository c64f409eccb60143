"""What a director may do, and what becomes of a call whose director misbehaves."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import (
    Call,
    CallContext,
    PoolConn,
    RpcError,
    Server,
    Status,
    StreamDirector,
    Target,
    transparent_handler,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.grpc.timeout import parse_timeout
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import TRAILERS_ONLY, connect, message, request_fields

pytestmark = on_every_engine

Direction = tuple[CallContext, PoolConn]


@pytest.fixture(name="clock")
def time_that_stands_still() -> MockClock:
    """A clock that moves when it is told to."""
    return MockClock()


@trio_test
async def test_the_rich_example_of_the_reference_can_be_written_line_for_line(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        if method.startswith("/com.example.internal."):
            raise RpcError(Status.UNIMPLEMENTED, "Unknown method")
        authority = context.metadata.get(":authority")
        if authority == "staging.api.example.com":
            return context, await house.pool.get_conn(addresses["api-service.staging.svc.local"])
        if authority == "api.example.com":
            return context, await house.pool.get_conn(addresses["api-service.prod.svc.local"])
        raise RpcError(Status.UNIMPLEMENTED, "Unknown method")

    async with a_proxy(engine, director=director) as house:
        addresses = dict.fromkeys(
            ["api-service.staging.svc.local", "api-service.prod.svc.local"], house.backend.address
        )
        client = await house.client()
        fields = request_fields("/a.B/C")
        for authority in (b"staging.api.example.com", b"api.example.com"):
            here = [(name, authority if name == b":authority" else value) for name, value in fields]
            call = await client.open(here, end=True)
            served = await house.backend.request()
            assert served.request.get(b":authority") == authority
            await served.headers(TRAILERS_ONLY, end=True)
            assert (await call.answer()).status == Status.OK
        elsewhere = await (await client.request("/a.B/C")).answer()
        internal = await (await client.request("/com.example.internal.X/Y")).answer()
        assert elsewhere.status == internal.status == Status.UNIMPLEMENTED
        assert internal.message == b"Unknown method"


@pytest.mark.parametrize("plain", [True, False])
@trio_test
async def test_a_director_may_answer_a_target_on_a_connection_of_which_the_proxy_takes_a_place_itself(
    engine: Engine, plain: bool
) -> None:
    def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
        return context, house.pool.target(house.backend.address)

    async def async_director(context: CallContext, method: str) -> tuple[CallContext, Target]:
        return director(context, method)

    async with a_proxy(engine, director=director if plain else async_director) as house:
        client = await house.client()
        for _ in range(2):
            call = await client.request()
            served = await house.backend.request()
            assert house.pool.stats()[house.backend.address].idle == 0
            await served.respond(b"x")
            assert (await call.answer()).body == message(b"x")
            record = await house.record()
            assert (record.status, record.upstream) == (Status.OK, house.backend.address)
        assert len(house.backend.peers) == 1


@pytest.mark.parametrize("answers", ["a connection", "a target"])
@trio_test
async def test_a_director_that_is_cancelled_between_its_lease_and_its_answer_loses_no_place(
    engine: Engine, answers: str
) -> None:
    asked = trio.Event()

    async def director(context: CallContext, method: str) -> tuple[CallContext, PoolConn | Target]:
        where: PoolConn | Target = house.pool.target(house.backend.address)
        if answers == "a connection":
            where = await house.pool.get_conn(house.backend.address)
        if method == "/a.B/Slow":
            asked.set()
            await trio.sleep_forever()
        return context, where

    async with a_proxy(engine, director=director, pool={"size": 1, "ms": 2, "max_waiting": 5}) as house:
        client = await house.client()
        for _ in range(5):
            call = await client.request("/a.B/Slow")
            await asked.wait()
            asked = trio.Event()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                await call.reset()
                await house.record()
                gc.collect()
        call = await client.request("/a.B/Fine")
        await (await house.backend.request()).respond()
        assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_connection_is_for_one_call(engine: Engine) -> None:
    answered: list[PoolConn] = []

    async def director(context: CallContext, method: str) -> Direction:
        if not answered:
            answered.append(await house.pool.get_conn(house.backend.address))
        return context, answered[0]

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        first = await client.request()
        served = await house.backend.request()
        assert (await (await client.request()).answer()).status == Status.INTERNAL
        assert "answered for another call" in (await house.record()).detail
        await served.respond()
        assert (await first.answer()).status == Status.OK


@trio_test
async def test_the_context_tells_what_is_known_of_the_call(engine: Engine) -> None:
    seen: list[CallContext] = []

    async def director(context: CallContext, method: str) -> Direction:
        assert method == context.method
        seen.append(context)
        raise RpcError(Status.UNAUTHENTICATED)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request(
            "/a.B/C", (b"x-a", b"1"), (b"x-a", b"2"), (b"b-bin", b"AAE"), (b"grpc-timeout", b"5S")
        )
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.UNAUTHENTICATED, None)
        (context,) = seen
        assert context.method == "/a.B/C"
        assert context.metadata.get_all("x-a") == ["1", "2"]
        assert context.metadata["b-bin"] == b"\0\1"
        assert context.metadata[":authority"] == "backend.example"
        assert context.peer.startswith("127.0.0.1:")
        assert context.deadline is not None
        assert 0 < context.deadline - trio.current_time() <= 5
        assert context.tls_peer is None


@trio_test
async def test_each_call_is_asked_in_its_own_callers_name_though_all_ask_for_the_same(engine: Engine) -> None:
    seen: list[CallContext] = []

    async def director(context: CallContext, method: str) -> Direction:
        seen.append(context)
        raise RpcError(Status.UNAUTHENTICATED)

    async with a_proxy(engine, director=director) as house:
        clients = [await house.client(), await house.client()]
        for client in (*clients, *clients):
            await (await client.request("/a.B/C")).answer()
        call = await clients[0].request("/a.B/C", (b"grpc-timeout", b"5S"))
        await call.answer()
        await (await clients[0].request("/a.B/D")).answer()
        one, other, again, _, hurried, last = seen
        assert one == again
        assert one.peer != other.peer
        assert hurried.deadline is not None
        assert last == attrs.evolve(one, method="/a.B/D", metadata=last.metadata)


@trio_test
async def test_a_plain_function_may_direct(engine: Engine) -> None:
    leases: list[PoolConn] = []

    def director(context: CallContext, method: str) -> Direction:
        return context, leases.pop()

    async with a_proxy(engine, director=director) as house:
        leases.append(await house.pool.get_conn(house.backend.address))
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).respond(b"x")
        assert (await call.answer()).body == message(b"x")


@trio_test
async def test_a_director_changes_what_the_upstream_gets(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        metadata = (
            context.metadata.with_value(":authority", "other.example")
            .with_value(":path", "/x.Y/Z")
            .with_value("x-token", "secret")
            .without("x-old")
            .with_added("grpc-internal-bin", b"\xff")
        )
        return context.with_metadata(metadata), await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-old", b"1"))
        served = await house.backend.request()
        assert served.request.get(b":authority") == b"other.example"
        assert served.request.get(b":path") == b"/x.Y/Z"
        assert served.request.get(b"x-token") == b"secret"
        assert served.request.get(b"x-old") is None
        assert served.request.get(b"grpc-internal-bin") == b"/w"
        await served.respond()
        assert (await call.answer()).status == Status.OK
        assert (await house.record()).method == "/a.B/C"


def _group() -> Exception:
    return ExceptionGroup("several", [RpcError(Status.NOT_FOUND, "hidden"), KeyError("secret")])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZeroDivisionError("secret"),
        lambda: KeyError("secret"),
        lambda: StopAsyncIteration("secret"),
        lambda: TimeoutError("secret"),
        lambda: trio.TooSlowError("secret"),
        lambda: OSError(24, "secret"),
        lambda: RecursionError("secret"),
        _group,
    ],
)
@trio_test
async def test_an_exception_becomes_internal_and_its_text_stays_here(
    engine: Engine, make: Callable[[], Exception]
) -> None:
    def director(context: CallContext, method: str) -> Direction:
        raise make()

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        answer = await (await client.request()).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.INTERNAL
        assert answer.message == b"internal error in the proxy"
        record = await house.record()
        assert type(make()).__name__ in record.detail
        assert [type(error) for error in house.observer.failed] == [type(make())]


@trio_test
async def test_an_error_with_trailing_metadata_that_cannot_be_sent_is_internal(engine: Engine) -> None:
    bad: list[list[tuple[str, Any]]] = [
        [("Not A Key", "x")],
        [("x", "line\nbreak")],
        [("x-bin", "text")],
        [("x", b"bytes")],
        [(":status", "200")],
    ]

    async def director(context: CallContext, method: str) -> Direction:
        raise RpcError(Status.NOT_FOUND, "secret", trailing_metadata=bad[0])

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        while bad:
            answer = await (await client.request()).answer()
            assert answer.status == Status.INTERNAL
            assert answer.message == b"internal error in the proxy"
            bad.pop(0)
        assert len(house.observer.failed) == 5


@trio_test
async def test_an_answer_that_is_no_direction_is_internal_and_gives_the_connection_back(
    engine: Engine,
) -> None:
    answers: list[Callable[[CallContext, PoolConn], Any]] = [
        lambda context, conn: None,
        lambda context, conn: conn,
        lambda context, conn: (conn, context),
        lambda context, conn: [context, conn],
        lambda context, conn: (context, conn, "more"),
        lambda context, conn: (None, conn),
        lambda context, conn: (context, house.backend.address),
        lambda context, conn: "127.0.0.1:1",
    ]
    unused: list[PoolConn] = []

    async def director(context: CallContext, method: str) -> Any:
        conn = await house.pool.get_conn(house.backend.address)
        answer = answers[0](context, conn)
        if conn is not answer and not (isinstance(answer, tuple | list) and conn in answer):
            unused.append(conn)
        return answer

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        while answers:
            answer = await (await client.request()).answer()
            assert answer.status == Status.INTERNAL
            assert answer.message == b"internal error in the proxy"
            assert "it must return (context, conn)" in (await house.record()).detail
            answers.pop(0)
        for conn in unused:
            conn.close()
        assert house.backend.no_request_came()


@trio_test
async def test_a_caller_who_cancels_cancels_a_slow_director(engine: Engine) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def director(context: CallContext, method: str) -> Direction:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request()
        await started.wait()
        await call.reset()
        await cancelled.wait()
        record = await house.record()
        assert (record.status, record.origin) == (Status.CANCELLED, "downstream")
        assert house.backend.peers == []


@trio_test
async def test_the_deadline_cancels_a_slow_director(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        await trio.sleep_forever()
        raise AssertionError

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/C", (b"grpc-timeout", b"30m"))).answer()
        assert answer.status == Status.DEADLINE_EXCEEDED
        assert (await house.record()).status == Status.DEADLINE_EXCEEDED


@pytest.mark.parametrize("how", ["reset", "disconnect", "cancel"])
@trio_test
async def test_a_director_that_fails_when_it_is_cancelled_ends_nothing_but_its_call(
    engine: Engine, how: str
) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        if method == "/a.B/Fine":
            return context, await house.pool.get_conn(house.backend.address)

        async def fails_late() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("cleaning up went wrong")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_late)
            started.set()
            await trio.sleep_forever()
        raise AssertionError

    started = trio.Event()
    async with a_proxy(engine, director=director) as house, trio.open_nursery() as nursery:
        address = await nursery.start(house.server.serve, "127.0.0.1:0")
        client = await connect(address, house.nursery)
        call = await client.request()
        await started.wait()
        match how:
            case "reset":
                await call.reset()
            case "disconnect":
                await client.aclose()
            case _:
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await house.record()
            await _still_works(house)
            await client.aclose()
        nursery.cancel_scope.cancel()


async def _still_works(house: House) -> None:
    client = await house.client()
    call = await client.request("/a.B/Fine")
    await (await house.backend.request()).respond()
    assert (await call.answer()).status == Status.OK


@trio_test
async def test_a_caller_who_goes_in_the_moment_in_which_the_director_decides_never_reaches_the_upstream(
    engine: Engine,
) -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def director(context: CallContext, method: str) -> Direction:
        conn = await house.pool.get_conn(house.backend.address)
        asked.set()
        with trio.CancelScope(shield=True):
            await go_on.wait()
        return context, conn

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request()
        await asked.wait()
        await call.reset()
        await client.ping()
        go_on.set()
        assert (await house.record()).status == Status.CANCELLED
        (peer,) = house.backend.peers
        await peer.ping()
        assert house.backend.no_request_came()


@trio_test
async def test_a_deadline_changed_by_the_director_is_what_the_upstream_is_told(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        assert context.deadline is not None
        shorter = attrs.evolve(context, deadline=context.deadline - 3)
        return shorter, await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"5S"))
        served = await house.backend.request()
        timeout = served.request.get(b"grpc-timeout")
        assert timeout is not None
        assert timeout.endswith(b"u")
        assert int(timeout[:-1]) < 2_000_000
        await served.respond()
        await call.answer()


async def _timeout_told(house: House, *fields: tuple[bytes, bytes]) -> float:
    """The time that the upstream of a call with these fields is told, in seconds; the call is answered."""
    client = await house.client()
    call = await client.request("/a.B/C", (b"x-first", b"1"), *fields)
    served = await house.backend.request()
    names = [name for name, _ in served.request.fields]
    assert names.count(b"grpc-timeout") == 1
    if not fields:
        assert (
            names.index(b"grpc-timeout") == names.index(b"te") + 1
        )  # before all that is not the call's definition
        assert names.index(b"grpc-timeout") < names.index(b"content-type")
    else:
        assert names.index(b"grpc-timeout") > names.index(b"x-first")  # where the caller had it
    await served.respond()
    assert (await call.answer()).status == Status.OK
    timeout = served.request.get(b"grpc-timeout")
    assert timeout is not None
    return parse_timeout(timeout)


def _with_timeout(seconds: float) -> Callable[[CallContext], CallContext]:
    return lambda context: context.with_timeout(seconds)


@pytest.mark.parametrize("plain", [True, False])
@trio_test
async def test_a_directors_deadline_is_told_upstream_whatever_the_caller_has_said(
    engine: Engine, plain: bool
) -> None:
    change: Callable[[CallContext], CallContext]

    def plain_director(context: CallContext, method: str) -> Any:
        conn = house.pool.get_conn_nowait(house.backend.address)
        assert conn is not None
        return change(context), conn

    async def director(context: CallContext, method: str) -> Direction:
        return change(context), await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=plain_director if plain else director) as house:
        (await house.pool.get_conn(house.backend.address)).close()
        nine = (b"grpc-timeout", b"9S")
        change = _with_timeout(100)
        assert 90 < await _timeout_told(house) < 100
        assert 5 < await _timeout_told(house, nine) < 9  # the sooner of both
        assert 90 < await _timeout_told(house, (b"grpc-timeout", b"1000000000n")) < 100
        change = _with_timeout(5)
        assert 3 < await _timeout_told(house, nine) < 5
        change = lambda context: context.with_deadline(trio.current_time() + 100)  # noqa: E731
        assert 90 < await _timeout_told(house, nine) < 100  # the director decides
        change = lambda context: attrs.evolve(  # noqa: E731
            context, deadline=trio.current_time() + 100, metadata=context.metadata.without("grpc-timeout")
        )
        assert 90 < await _timeout_told(house) < 100
        change = lambda context: context.with_metadata(context.metadata.with_value("grpc-timeout", "5S"))  # noqa: E731
        assert (
            5 < await _timeout_told(house, nine) < 9
        )  # a deadline counts, and not what is written beside it


@pytest.mark.parametrize("how", ["with_deadline(None)", "an infinite one", "with_metadata"])
@trio_test
async def test_a_director_may_take_the_deadline_away(engine: Engine, how: str, clock: MockClock) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        conn = await house.pool.get_conn(house.backend.address)
        match how:
            case "with_deadline(None)":
                return context.with_deadline(None), conn
            case "an infinite one":
                return context.with_deadline(float("inf")), conn
            case _:
                metadata = context.metadata.with_value("grpc-timeout", "5S")
                return attrs.evolve(context, deadline=None, metadata=metadata), conn

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"grpc-timeout", b"1S"))
        served = await house.backend.request()
        assert served.request.get(b"grpc-timeout") is None
        clock.jump(2)  # the caller's deadline passes, and nothing happens
        await client.ping()
        await served.respond(b"late")
        assert (await call.answer()).body == message(b"late")


@pytest.mark.parametrize("asked", [None, b"50S", b"123456789S"])
@pytest.mark.parametrize("kind", ["plain", "waiting", "in a handler of one's own"])
@trio_test
async def test_a_directors_deadline_ends_the_call(engine: Engine, kind: str, asked: bytes | None) -> None:
    def plain_director(context: CallContext, method: str) -> Any:
        conn = house.pool.get_conn_nowait(house.backend.address)
        assert conn is not None
        return context.with_timeout(0.05), conn

    async def director(context: CallContext, method: str) -> Direction:
        return context.with_timeout(0.05), await house.pool.get_conn(house.backend.address)

    def configure(server: Server, _director: StreamDirector) -> None:
        if kind == "in a handler of one's own":
            forward = transparent_handler(director)

            async def handler(call: Call) -> None:
                await forward(call)

            server.add_handler("/a.B/C", handler)

    chosen = plain_director if kind == "plain" else director
    async with a_proxy(engine, director=chosen, configure=configure) as house:
        (await house.pool.get_conn(house.backend.address)).close()
        client = await house.client()
        call = await client.request("/a.B/C", *([] if asked is None else [(b"grpc-timeout", asked)]))
        served = await house.backend.request()
        await served.request_body()
        assert await served.expect_reset() == 8
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.DEADLINE_EXCEEDED, b"Deadline Exceeded")
        assert (await house.record()).status == Status.DEADLINE_EXCEEDED


@trio_test
async def test_a_directors_deadline_that_has_passed_never_reaches_the_upstream(engine: Engine) -> None:
    async def director(context: CallContext, method: str) -> Direction:
        return context.with_deadline(-1), await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        assert (await (await client.request()).answer()).status == Status.DEADLINE_EXCEEDED
        assert house.backend.no_request_came()
