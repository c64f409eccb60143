"""A fault of the proxy's own ends the connection that has met it, and nothing else; peers learn that there was one."""

from typing import Any, NoReturn

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ProxyFault, RpcError
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.stream import Sink, Stream
from rawgrpc_proxy.observe.describe import traceback_of
from rawgrpc_proxy.proxy.splice import _RequestPipe
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import RESPONSE, TRAILERS_ONLY, PeerStream, message, request_fields

pytestmark = on_every_engine

SECRET = "postgres://admin:hunter2@10.0.0.9/db"


class FaultySink:
    """A stream's sink with a fault in it, which shows when DATA comes."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        self._sink.response(headers, end_stream)

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        raise ZeroDivisionError(SECRET)

    def trailers(self, headers: HeaderList) -> None:
        self._sink.trailers(headers)

    def failed(self, error: RpcError) -> None:
        self._sink.failed(error)

    def closed(self) -> None:
        self._sink.closed()


def _downstream(house: House) -> Connection:
    """The connection of the only client there is."""
    (connection,) = house.server._connections
    return connection


def _fault() -> NoReturn:
    raise ZeroDivisionError(SECRET)


async def _a_call(house: House) -> tuple[PeerStream, PeerStream, Stream]:
    """A call that has begun on a client of its own: for the caller, for the backend, and for the proxy."""
    call = await (await house.client()).open(request_fields())
    served = await house.backend.request()
    await served.headers(RESPONSE)
    await call.expect_headers()
    return call, served, _downstream(house).streams[call.id]


async def _goes_on(house: House, call: PeerStream, served: PeerStream) -> None:
    """The neighbour's call does."""
    await call.data(message(b"fine"), end=True)
    assert await served.request_body() == message(b"fine")
    await served.headers(TRAILERS_ONLY, end=True)
    assert (await call.answer()).status == Status.OK


@pytest.mark.parametrize("where", ["reads", "writes"])
@trio_test
async def test_a_fault_on_a_callers_connection_ends_that_connection_alone(engine: Engine, where: str) -> None:
    async with a_proxy(engine) as house:
        call, served, stream = await _a_call(house)
        neighbour = await (await house.client()).open(request_fields())
        neighbour_served = await house.backend.request()
        if where == "reads":
            stream.sink = FaultySink(stream.sink)
            await call.data(b"x")
            goaway = await call.peer.expect_goaway()
            assert (goaway.code, goaway.debug) == (ErrorCode.INTERNAL_ERROR, b"internal error in the proxy")
        else:
            # It is there still when the connection says goodbye.
            link: Any = stream.connection
            link._transport.send_now = lambda _chunks: _fault()
            await call.peer.change_settings({})  # wants an acknowledgement
        assert await served.expect_reset() == ErrorCode.CANCEL
        await call.peer.closed()
        assert (await house.record()).status == Status.INTERNAL
        await until(lambda: bool(house.observer.connections_failed))
        (error,) = house.observer.connections_failed
        house.observer.connections_failed.clear()
        assert isinstance(error, ProxyFault)
        assert SECRET in traceback_of(error)
        await _goes_on(house, neighbour, neighbour_served)


@trio_test
async def test_a_fault_on_an_upstreams_connection_ends_its_calls_with_internal_and_no_others(
    engine: Engine,
) -> None:
    async with a_proxy(engine, pool={"ms": 1}) as house:
        call, served, stream = await _a_call(house)
        neighbour = await call.peer.open(request_fields())
        neighbour_served = await house.backend.request()
        assert neighbour_served.peer is not served.peer
        assert isinstance(stream.sink, _RequestPipe)
        upstream = stream.sink._splice.upstream
        assert upstream is not None
        upstream.sink = FaultySink(upstream.sink)
        await served.data(message(b"x"))
        goaway = await served.peer.expect_goaway()
        assert (goaway.code, goaway.debug) == (ErrorCode.INTERNAL_ERROR, b"internal error in the proxy")
        await served.peer.closed()
        answer = await call.answer()
        assert (answer.status, answer.message) == (Status.INTERNAL, b"internal error in the proxy")
        await house.record()
        await _goes_on(house, neighbour, neighbour_served)
