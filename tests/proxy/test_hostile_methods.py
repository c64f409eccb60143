"""Handlers, methods and codecs that do all that Python lets them do wrong: each costs its own call, and no other."""

import gzip
import io
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import (
    Call,
    RpcError,
    ServedCall,
    Server,
    Status,
    StreamDirector,
    codec_with_parent,
    identity_codec,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.services.methods import MethodKind
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import message, request_fields

pytestmark = on_every_engine

ODD: Any = object()


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


# --- handlers ------------------------------------------------------------------------------------------------------


async def _returns_at_once(call: Call) -> None:
    pass


def _is_not_async(call: Call) -> None:
    pass


async def _exits(call: Call) -> None:
    raise SystemExit


async def _exits_with_headers_out(call: Call) -> None:
    call.send_headers()
    await trio.lowlevel.checkpoint()
    raise SystemExit


async def _sends_headers_of_str(call: Call) -> None:
    call.send_headers([("x", "y")])  # type: ignore[list-item]


async def _sends_headers_with_line_breaks(call: Call) -> None:
    call.send_headers([(b"x", b"y\r\nz")])


async def _sends_a_pseudo_header(call: Call) -> None:
    call.send_headers([(b":status", b"200")])


async def _sends_a_header_of_http_1(call: Call) -> None:
    call.send_headers([(b"connection", b"close")])


async def _ends_with_an_upper_case_trailer(call: Call) -> None:
    call.end(Status.OK, metadata=[(b"X-Upper", b"1")])


async def _ends_with_a_status_that_is_none(call: Call) -> None:
    call.end(ODD)


async def _ends_with_a_message_that_is_none(call: Call) -> None:
    call.end(Status.ABORTED, Mute())  # type: ignore[arg-type]


async def _ends_with_trailers_of_str(call: Call) -> None:
    call.end(Status.OK, metadata=[("x", "y")])  # type: ignore[list-item]


HANDLERS: list[Callable[[Call], Any]] = [
    _returns_at_once,
    _is_not_async,
    _exits,
    _exits_with_headers_out,
    _sends_headers_of_str,
    _sends_headers_with_line_breaks,
    _sends_a_pseudo_header,
    _sends_a_header_of_http_1,
    _ends_with_an_upper_case_trailer,
    _ends_with_a_status_that_is_none,
    _ends_with_a_message_that_is_none,
    _ends_with_trailers_of_str,
]


# --- methods -------------------------------------------------------------------------------------------------------


async def _answers_nothing(request: bytes, call: ServedCall) -> Any:
    return None


def _answers_at_once(request: bytes, call: ServedCall) -> Any:
    return b"not awaited"


async def _yields_one(request: bytes, call: ServedCall) -> AsyncIterator[Any]:
    yield b"one"


async def _yields_nothing(request: Any, call: ServedCall) -> AsyncIterator[Any]:
    yield None


async def _says_something_and_then_nothing(request: Any, call: ServedCall) -> AsyncIterator[Any]:
    yield b"one"
    yield None


async def _cannot_be_closed(request: Any, call: ServedCall) -> AsyncIterator[Any]:
    try:
        yield ODD
    finally:
        yield b"one more"


async def _fails_when_closed(request: Any, call: ServedCall) -> AsyncIterator[Any]:
    try:
        yield ODD
    finally:
        raise Mute


async def _raises(request: Any, call: ServedCall) -> NoReturn:
    raise Mute


async def _exits_from_a_method(request: Any, call: ServedCall) -> NoReturn:
    raise SystemExit


async def _sends_strange_metadata(request: Any, call: ServedCall) -> bytes:
    call.send_initial_metadata([(ODD, ODD)])
    return b""


async def _sends_a_status_as_metadata(request: Any, call: ServedCall) -> bytes:
    call.trailing_metadata.append(("grpc-status", "0"))
    return b""


async def _ends_with_strange_metadata(request: Any, call: ServedCall) -> bytes:
    call.trailing_metadata.append(ODD)
    return b""


async def _fails_with_strange_metadata(request: Any, call: ServedCall) -> NoReturn:
    call.trailing_metadata = ODD
    raise RpcError(Status.ABORTED, "secret")


async def _fails_with_strange_text(request: Any, call: ServedCall) -> NoReturn:
    error = RpcError(Status.ABORTED, "secret")
    error.message = ODD
    raise error


METHODS: list[MethodKind] = [
    unary_unary(_answers_nothing, bytes),
    unary_unary(_answers_at_once, bytes),
    unary_unary(_yields_one, bytes),  # type: ignore[arg-type]
    stream_unary(_yields_one, bytes),  # type: ignore[arg-type]
    unary_stream(_answers_nothing, bytes),  # type: ignore[arg-type]
    unary_stream(_answers_at_once, bytes),
    unary_stream(_yields_nothing, bytes),
    unary_stream(_says_something_and_then_nothing, bytes),
    stream_stream(_cannot_be_closed, bytes),
    stream_stream(_fails_when_closed, bytes),
    unary_unary(_raises, bytes),
    unary_unary(_exits_from_a_method, bytes),
    unary_unary(_sends_strange_metadata, bytes),
    unary_unary(_sends_a_status_as_metadata, bytes),
    unary_unary(_ends_with_strange_metadata, bytes),
    unary_unary(_fails_with_strange_metadata, bytes),
    unary_unary(_fails_with_strange_text, bytes),
]


class Codec:
    """A codec that does what it is told with messages of type `int`."""

    name = "odd"

    def __init__(self) -> None:
        self.marshalled: Callable[[], Any] = lambda: b""
        self.unmarshalled: Callable[[], Any] = lambda: 5

    def marshal(self, value: object) -> Any:
        return self.marshalled()

    def unmarshal(self, data: bytes, into: type[Any]) -> Any:
        return self.unmarshalled()


def _raise(error: BaseException) -> NoReturn:
    raise error


async def _costs_its_own_call(house: House, client: Any, path: str) -> None:
    answer = await (await client.request(path)).answer()
    assert (answer.status, answer.message) == (Status.INTERNAL, b"internal error in the proxy"), path
    record = await house.record()
    assert record.status == Status.INTERNAL
    assert record.detail
    (error,) = house.observer.failed
    house.observer.failed.clear()
    written = io.StringIO()
    CallLog(file=written).call_failed(record, error)
    assert type(error).__name__ in written.getvalue()
    fine = await client.request("/a.B/Fine")
    await (await house.backend.request()).respond()
    assert (await fine.answer()).status == Status.OK
    await house.record()


@trio_test
async def test_whatever_a_handler_does_wrong_costs_its_own_call_and_no_other(engine: Engine) -> None:
    def configure(server: Server, director: StreamDirector) -> None:
        for n, handler in enumerate(HANDLERS):
            server.add_handler(f"/a.B/Handler{n}", handler)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        for n in range(len(HANDLERS)):
            await _costs_its_own_call(house, client, f"/a.B/Handler{n}")


@trio_test
async def test_whatever_a_method_does_wrong_costs_its_own_call_and_no_other(engine: Engine) -> None:
    def configure(server: Server, director: StreamDirector) -> None:
        for n, method in enumerate(METHODS):
            server.add_method(f"/a.B/Method{n}", method)

    async with a_proxy(engine, configure=configure, codec=codec_with_parent(identity_codec())) as house:
        client = await house.client()
        for n in range(len(METHODS)):
            await _costs_its_own_call(house, client, f"/a.B/Method{n}")


@trio_test
async def test_whatever_a_codec_does_wrong_costs_its_own_call_and_no_other(engine: Engine) -> None:
    codec = Codec()

    async def answer(request: int, call: ServedCall) -> int:
        return request

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_method("/a.B/Codec", unary_unary(answer, int))

    async with a_proxy(engine, configure=configure, codec=codec) as house:
        client = await house.client()
        odd: list[Callable[[], Any]] = [
            lambda: None,
            lambda: "text",
            lambda: [1, 2],
            lambda: memoryview(bytes(8)).cast("I"),
            lambda: _raise(Mute()),
            lambda: _raise(SystemExit()),
        ]
        for codec.marshalled in odd:
            await _costs_its_own_call(house, client, "/a.B/Codec")
        for error in (Mute(), SystemExit(), GeneratorExit()):
            codec.unmarshalled = lambda error=error: _raise(error)  # type: ignore[misc]
            await _costs_its_own_call(house, client, "/a.B/Codec")


@trio_test
async def test_a_handler_that_keeps_quiet_about_a_caller_who_has_gone_is_no_fault(engine: Engine) -> None:
    async def handler(call: Call) -> None:
        with trio.CancelScope(shield=True):
            await go_on.wait()

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_handler("/a.B/C", handler)

    go_on = trio.Event()
    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        call = await client.request("/a.B/C")
        await client.ping()
        await call.reset()
        await client.ping()
        go_on.set()
        record = await house.record()
        assert (record.status, record.origin) == (Status.CANCELLED, "downstream")
        assert house.observer.failed == []


@trio_test
async def test_headers_cannot_follow_the_end_of_a_response(engine: Engine) -> None:
    async def handler(call: Call) -> None:
        call.end(Status.NOT_FOUND, "gone")
        call.send_headers([(b"x", b"y")])

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_handler("/a.B/C", handler)

    async with a_proxy(engine, configure=configure) as house:
        client = await house.client()
        answer = await (await client.request("/a.B/C")).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.NOT_FOUND


@pytest.mark.parametrize(
    ("sent", "count", "a_turn"),
    [
        (message(b""), 20_000, 256),
        (message(gzip.compress(bytes(128 * 1024)), flag=1), 200, 2),  # 256 KiB a turn, when decompressed
    ],
)
@trio_test
async def test_a_window_full_of_messages_lets_others_run_while_it_is_read(
    engine: Engine, sent: bytes, count: int, a_turn: int
) -> None:
    turns: list[int] = []
    read = 0

    async def read_all(requests: AsyncIterator[bytes], call: ServedCall) -> bytes:
        nonlocal read
        async for _ in requests:
            read += 1
        return b"%d" % read

    def configure(server: Server, director: StreamDirector) -> None:
        server.add_method("/a.B/Count", stream_unary(read_all, bytes))

    async def looks_on() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(read)

    raw = codec_with_parent(identity_codec())
    async with a_proxy(engine, configure=configure, codec=raw) as house, trio.open_nursery() as nursery:
        client = await house.client()
        nursery.start_soon(looks_on)
        call = await client.open(request_fields("/a.B/Count", (b"grpc-encoding", b"gzip")))
        await call.body(sent * count, end=True)
        assert (await call.answer()).body == message(b"%d" % count)
        nursery.cancel_scope.cancel()
    # Trio may put two turns of one task beside each other.
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 2 * a_turn
