"""A director that does, one after the other, all that Python lets it do wrong: each costs its own call, and no other.

The caller of such a call gets INTERNAL without a word of the cause, the log gets the cause, and a call beside it, on
the same connection, goes through.
"""

import asyncio
import contextvars
import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import attrs
import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, Metadata, PoolConn, RpcError, Server, Status, transparent_handler
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.observe.call_log import CallLog
from tests.proxy.house import House, Recorder, a_proxy, on_every_engine
from tests.proxy.raw_peers import PeerStream, connect, request_fields

pytestmark = on_every_engine

Direction = tuple[CallContext, PoolConn]
Wrong = Callable[[CallContext, PoolConn], Any]
"""What a director does with a context and a connection: it answers something, or raises."""

ODD: Any = object()
"""What has no place where it is put."""


class Mute(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class TextIsNoText(Exception):
    def __str__(self) -> str:
        return self.args[0]  # type: ignore[no-any-return]


class NotEvenAnException(BaseException):
    pass


class ForgetsItsParent(RpcError):
    def __init__(self) -> None:
        pass


class StatusIsComputed(RpcError):
    def __init__(self) -> None:
        super().__init__(Status.ABORTED)

    @property
    def status(self) -> Status:
        raise NotEvenAnException

    @status.setter
    def status(self, value: Status) -> None:
        pass


class PartsAreNoGroups(BaseExceptionGroup[BaseException]):
    def derive(self, excs: Any, /) -> NoReturn:
        raise KeyError(excs)


class ClassIsUnknown:
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise KeyError

    def __repr__(self) -> str:
        raise Mute


class LengthIsUnknown(tuple[Any, ...]):
    __slots__ = ()

    def __len__(self) -> int:
        raise Mute

    def __iter__(self) -> Iterator[Any]:
        raise Mute

    def __eq__(self, other: object) -> bool:
        raise Mute

    __hash__ = None  # type: ignore[assignment]


class Awaited:
    """An awaitable with this `__await__`."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __await__(self) -> Any:
        return self._make()


def raising(make: Callable[[], BaseException]) -> Wrong:
    def wrong(_context: CallContext, _conn: PoolConn) -> NoReturn:
        raise make()

    return wrong


def refusing(**changed: Any) -> Wrong:
    """Raise an RpcError that was good when it was made."""

    def wrong(_context: CallContext, _conn: PoolConn) -> NoReturn:
        error = RpcError(Status.UNAVAILABLE, "secret")
        for name, value in changed.items():
            setattr(error, name, value)
        raise error

    return wrong


def _odd_syntax_error() -> SyntaxError:
    error = SyntaxError("secret")
    error.text = ODD
    error.lineno = 1
    error.add_note("note")
    error.__notes__ = ODD
    return error


def _too_deep() -> RecursionError:
    try:
        _too_deep()
    except RecursionError as error:
        return error
    raise AssertionError


def _a_circle() -> Exception:
    first, second = KeyError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _nonsense_yielded() -> Iterator[Any]:
    yield "no trap of trio's"


async def _answering(answer: Any) -> Any:
    return answer


def _given_back(conn: PoolConn) -> PoolConn:
    conn.close()
    return conn


RAISED: dict[str, Wrong] = {
    "an RpcError with an exception for a message": raising(lambda: RpcError(Status.ABORTED, ODD)),
    "an RpcError with a strange status": raising(lambda: RpcError(ODD)),
    "an RpcError that says OK": raising(lambda: RpcError(Status.OK)),
    "an RpcError with metadata of None": raising(
        lambda: RpcError(Status.ABORTED, trailing_metadata=[(ODD, "y")])
    ),
    "an RpcError with metadata of bytes": raising(
        lambda: RpcError(Status.ABORTED, trailing_metadata=[("x", b"y")])
    ),
    "an RpcError with metadata that is no pairs": raising(
        lambda: RpcError(Status.ABORTED, trailing_metadata=["xy"])  # type: ignore[list-item]
    ),
    "an RpcError with a status in its metadata": raising(
        lambda: RpcError(Status.ABORTED, trailing_metadata=[("grpc-status", "0")])
    ),
    "an RpcError with another message by now": refusing(message=ValueError("db down")),
    "an RpcError with a message of None by now": refusing(message=None),
    "an RpcError with the status OK by now": refusing(status=Status.OK),
    "an RpcError with a status that is none by now": refusing(status=99),
    "an RpcError with strange metadata by now": refusing(trailing_metadata=[(None, None)]),
    "an RpcError with metadata that is a number by now": refusing(trailing_metadata=5),
    "an RpcError with an origin that is none by now": refusing(origin=ODD),
    "an RpcError that was never made": raising(ForgetsItsParent),
    "an RpcError that raises when it is read": raising(StatusIsComputed),
    "an exception without a text": raising(Mute),
    "an exception with a text that is none": raising(lambda: TextIsNoText(5)),
    "an exception with a text that cannot be written": raising(lambda: KeyError("\ud800\n\x00" * 2000)),
    "a syntax error with strange attributes": raising(_odd_syntax_error),
    "a circle of causes": raising(_a_circle),
    "a recursion without an end": raising(_too_deep),
    "SystemExit": raising(lambda: SystemExit(3)),
    "GeneratorExit": raising(GeneratorExit),
    "asyncio's cancellation": raising(asyncio.CancelledError),
    "StopIteration": raising(lambda: StopIteration((1, 2))),
    "StopAsyncIteration": raising(StopAsyncIteration),
    "what is not even an Exception": raising(NotEvenAnException),
    "a group of what are no Exceptions": raising(
        lambda: BaseExceptionGroup("several", [SystemExit(), NotEvenAnException(), Mute()])
    ),
    "a group with an RpcError in it": raising(
        lambda: ExceptionGroup("one", [RpcError(Status.ABORTED, "secret")])
    ),
    "a group that cannot be parted": raising(lambda: PartsAreNoGroups("", [SystemExit(), KeyError()])),
}

ANSWERED: dict[str, Wrong] = {
    "nothing": lambda context, conn: None,
    "the parts the wrong way round": lambda context, conn: (conn, context),
    "a connection that has been given back": lambda context, conn: (context, _given_back(conn)),
    "a connection that nobody awaited": lambda context, conn: (context, _answering(conn)),
    "an object of no class": lambda context, conn: ClassIsUnknown(),
    "a tuple of no length": lambda context, conn: LengthIsUnknown((context, conn)),
    "a tuple of objects of no class": lambda context, conn: (ClassIsUnknown(), ClassIsUnknown()),
    "metadata that are none": lambda context, conn: (attrs.evolve(context, metadata=ODD), conn),
    "metadata of str": lambda context, conn: (
        context.with_metadata(Metadata([*context.metadata.raw, ODD])),
        conn,
    ),
    "metadata of str, with a name of bytes": lambda context, conn: (
        context.with_metadata(Metadata([*context.metadata.raw, (b"x", "y")])),  # type: ignore[list-item]
        conn,
    ),
    "metadata as a mapping": lambda context, conn: (context.with_metadata({"x": "y"}), conn),  # type: ignore[arg-type]
    "metadata that make no request": lambda context, conn: (
        context.with_metadata(Metadata.from_pairs({"x": "y"})),
        conn,
    ),
    "metadata with a line break": lambda context, conn: (
        context.with_metadata(Metadata([*context.metadata.raw, (b"x", b"y\r\nz: 1")])),
        conn,
    ),
    "metadata with upper case": lambda context, conn: (
        context.with_metadata(Metadata([*context.metadata.raw, (b"X-Y", b"z")])),
        conn,
    ),
    "metadata in disorder": lambda context, conn: (
        context.with_metadata(Metadata(context.metadata.raw[::-1])),
        conn,
    ),
    "a deadline that is no number": lambda context, conn: (attrs.evolve(context, deadline=ODD), conn),
    "a deadline that is NaN": lambda context, conn: (attrs.evolve(context, deadline=float("nan")), conn),
}

AWAITED: dict[str, Wrong] = {
    "an awaitable that raises": lambda context, conn: Awaited(lambda: 1 / 0),
    "an awaitable that exits": lambda context, conn: Awaited(sys.exit),
    "an awaitable that is none": lambda context, conn: Awaited(lambda: 5),
    "an awaitable that yields nonsense": lambda context, conn: Awaited(_nonsense_yielded),
    "asyncio's": lambda context, conn: asyncio.sleep(0),
    "an awaitable that answers nonsense": lambda context, conn: _answering(ODD),
    "an awaitable that answers an awaitable": lambda context, conn: _answering(Awaited(_nonsense_yielded)),
    "an awaitable that answers an object of no class": lambda context, conn: _answering(ClassIsUnknown()),
}

EVERYTHING = RAISED | ANSWERED | AWAITED


async def _cancels_itself(_context: CallContext, _conn: PoolConn) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.sleep_forever()


async def _fails_in_a_nursery(_context: CallContext, _conn: PoolConn) -> None:
    async def fails(error: BaseException) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, SystemExit())
        nursery.start_soon(fails, NotEvenAnException())
        await trio.sleep_forever()


async def _refuses_in_a_nursery(_context: CallContext, _conn: PoolConn) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise RpcError(Status.ABORTED, "secret")


async def _leaves_a_scope_open_that_is_cancelled(_context: CallContext, _conn: PoolConn) -> None:
    scope = trio.CancelScope()
    scope.__enter__()
    scope.cancel()
    await trio.sleep_forever()


async def _raises_an_old_cancellation(_context: CallContext, _conn: PoolConn) -> NoReturn:
    # As a cache of outcomes does, the first of which was cancelled.
    raise await _a_cancellation()


async def _changes_variables_and_raises(_context: CallContext, _conn: PoolConn) -> NoReturn:
    variable.set("changed")
    raise Mute


async def _a_cancellation() -> trio.Cancelled:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            kept = cancelled
            raise
    return kept


WAITING: dict[str, Callable[[CallContext, PoolConn], Awaitable[Any]]] = {
    "cancels itself": _cancels_itself,
    "fails in a nursery": _fails_in_a_nursery,
    "refuses in a nursery": _refuses_in_a_nursery,
    "leaves a scope open that is cancelled": _leaves_a_scope_open_that_is_cancelled,
    "raises an old cancellation": _raises_an_old_cancellation,
    "changes context variables and raises": _changes_variables_and_raises,
}

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="as it was")


class Directed:
    """Does what it is told, to a connection that it leases for each call; "/a.B/Fine" goes through."""

    def __init__(self) -> None:
        self.house: House | None = None
        self.wrong: Wrong = lambda context, conn: (context, conn)
        self.leased: list[PoolConn] = []

    def plain(self, context: CallContext, method: str) -> Any:
        assert variable.get() == "as it was"
        assert self.house is not None
        conn = self.house.pool.get_conn_nowait(self.house.backend.address)
        assert conn is not None, "a call before this one should have left a connection"
        return self._directed(context, method, conn)

    async def waiting(self, context: CallContext, method: str) -> Any:
        assert variable.get() == "as it was"
        assert self.house is not None
        conn = await self.house.pool.get_conn(self.house.backend.address)
        await trio.lowlevel.checkpoint()
        answer = self._directed(context, method, conn)
        return await answer if asyncio.iscoroutine(answer) or isinstance(answer, Awaited) else answer

    def _directed(self, context: CallContext, method: str, conn: PoolConn) -> Any:
        if method == "/a.B/Fine":
            return context, conn
        self.leased.append(conn)
        return self.wrong(context, conn)

    def give_back(self) -> None:
        """What the director leased and never answered is its own affair; it must not count against the test."""
        for conn in self.leased:
            if conn.streams > 0:
                conn.close()
        self.leased.clear()


async def _one_good_call(house: House, client: Any) -> None:
    call = await client.request("/a.B/Fine")
    await (await house.backend.request()).respond()
    assert (await call.answer()).status == Status.OK
    assert (await house.record()).status == Status.OK


async def _costs_its_own_call(house: House, client: Any, directed: Directed, name: str) -> None:
    answer = await (await client.request("/a.B/Wrong")).answer()
    assert (answer.status, answer.message) == (Status.INTERNAL, b"internal error in the proxy"), name
    record = await house.record()
    assert record.status == Status.INTERNAL
    assert record.detail, name
    (error,) = house.observer.failed
    written = io.StringIO()
    log = CallLog(file=written)
    log.call_failed(record, error)
    log.call_ended(record)
    assert type(error).__name__ in written.getvalue(), name
    house.observer.failed.clear()
    directed.give_back()
    assert house.backend.no_request_came(), name
    await _one_good_call(house, client)


@pytest.mark.parametrize("kind", ["plain", "waiting"])
@trio_test
async def test_whatever_a_director_does_wrong_costs_its_own_call_and_no_other(
    engine: Engine, kind: str
) -> None:
    directed = Directed()
    director = directed.waiting if kind == "waiting" else directed.plain
    async with a_proxy(engine, director=director) as house:
        directed.house = house
        (await house.pool.get_conn(house.backend.address)).close()
        client = await house.client()
        await _one_good_call(house, client)
        for name, wrong in EVERYTHING.items():
            directed.wrong = wrong
            await _costs_its_own_call(house, client, directed, name)


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("kind", ["plain", "waiting"])
@trio_test
async def test_whatever_a_director_does_wrong_with_its_task_costs_its_own_call_and_no_other(
    engine: Engine, kind: str, name: str
) -> None:
    directed = Directed()
    directed.wrong = WAITING[name]
    director = directed.waiting if kind == "waiting" else directed.plain
    async with a_proxy(engine, director=director) as house:
        directed.house = house
        (await house.pool.get_conn(house.backend.address)).close()
        client = await house.client()
        for _ in range(3):
            await _costs_its_own_call(house, client, directed, name)


@trio_test
async def test_a_director_that_leaves_a_cancel_scope_open_is_told_so_and_harms_nobody(engine: Engine) -> None:
    left_open, scopes = [], []

    async def pieces() -> AsyncIterator[int]:
        with trio.fail_after(60) as scope:
            scopes.append(scope)
            yield 1
            yield 2

    async def director(context: CallContext, method: str) -> Direction:
        if method == "/a.B/Open":
            left_open.append(pieces())
            async for _ in left_open[-1]:
                break
        return context, await house.pool.get_conn(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        client = await house.client()
        for _ in range(3):
            for path, complaints in (("/a.B/Open", 1), ("/a.B/Fine", 0)):
                call = await client.request(path)
                served = await house.backend.request()
                for scope in scopes:
                    scope.cancel()  # as it does by itself when its time is over
                await served.respond()
                assert (await call.answer()).status == Status.OK
                await house.record()
                assert len(house.observer.failed) == complaints
                house.observer.failed.clear()


@trio_test
async def test_a_plain_director_that_raises_an_old_cancellation_ends_its_own_call(engine: Engine) -> None:
    old = await _a_cancellation()
    directed = Directed()
    async with a_proxy(engine, director=directed.plain) as house:
        directed.house = house
        directed.wrong = raising(lambda: old)
        (await house.pool.get_conn(house.backend.address)).close()
        await _costs_its_own_call(house, await house.client(), directed, "an old cancellation")


@pytest.mark.parametrize("kind", ["plain", "waiting", "in a group"])
@trio_test
async def test_ctrl_c_in_a_director_gets_through_and_every_caller_hears_of_the_end(
    engine: Engine, kind: str
) -> None:
    def interrupt() -> NoReturn:
        if kind == "in a group":
            raise BaseExceptionGroup("", [KeyError(), BaseExceptionGroup("", [KeyboardInterrupt()])])
        raise KeyboardInterrupt

    def plain(_context: CallContext, _method: str) -> NoReturn:
        interrupt()

    async def waiting(_context: CallContext, _method: str) -> NoReturn:
        await trio.lowlevel.checkpoint()
        interrupt()

    observer = Recorder()
    server = Server(
        unknown_service_handler=transparent_handler(waiting if kind == "waiting" else plain),
        observer=observer,
    )
    async with trio.open_nursery() as peers:
        calls: list[PeerStream] = []

        async def three_calls_to(address: str) -> None:
            client = await connect(address, peers)
            calls.extend(client.new_stream() for _ in range(3))
            await client.send_bytes(
                b"".join(client.header_frames(call.id, request_fields(), end=True) for call in calls)
            )

        async def serve() -> None:
            async with trio.open_nursery() as nursery:
                await three_calls_to(await nursery.start(server.serve, "127.0.0.1:0"))

        with pytest.raises(BaseExceptionGroup) as caught:
            await serve()
        assert caught.value.subgroup(KeyboardInterrupt) is not None
        for call in calls:
            answer = await call.answer()
            assert (answer.status, answer.message) == (Status.UNAVAILABLE, b"the proxy is shutting down")
            assert (await observer.record()).status == Status.UNAVAILABLE
        peers.cancel_scope.cancel()
