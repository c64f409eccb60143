"""The proxy under test, between raw peers, in one trio run: `async with a_proxy(engine) as house:`.

Leaving the block closes the clients and checks that nothing is left behind: no call, no lease, no task, no file
descriptor.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy import (
    CallContext,
    CallRecord,
    Codec,
    Http2Settings,
    Pool,
    PoolConn,
    Server,
    ServerObserver,
    StreamDirector,
    transparent_handler,
)
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import ENGINES, Engine
from rawgrpc_proxy.errors import ConnectionFailed
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.net.poller import current_poller
from rawgrpc_proxy.net.tapped import Tap, Wrap
from rawgrpc_proxy.observe.tracing import Tracing
from tests.proxy.raw_peers import PATIENCE_S, Backend, RawPeer, connect

A_TEST_S = 60.0

on_every_engine = pytest.mark.parametrize("engine", ENGINES)


class Recorder(ServerObserver):
    """A `ServerObserver` that keeps what it hears, and lets a test wait for the record of a call."""

    def __init__(self) -> None:
        self._records_in, self._records = trio.open_memory_channel[CallRecord](100_000)
        self.failed: list[BaseException] = []
        self.refused: list[StreamReset] = []
        self.connections_failed: list[ConnectionFailed] = []
        self.accepts_failed: list[OSError] = []
        self.limits_reached: list[tuple[str, str]] = []

    def call_ended(self, record: CallRecord) -> None:
        self._records_in.send_nowait(record)

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        self.failed.append(error)

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        self.refused.append(reset)

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        self.connections_failed.append(error)

    def accept_failed(self, error: OSError) -> None:
        self.accepts_failed.append(error)

    def limit_reached(self, peer: str, limit: str, detail: str) -> None:
        self.limits_reached.append((limit, detail))

    async def record(self) -> CallRecord:
        """The record of the next call that ends."""
        with trio.fail_after(PATIENCE_S):
            return await self._records.receive()

    @property
    def unread(self) -> int:
        return self._records.statistics().current_buffer_used


@dataclass
class House:
    """All that a test plays with."""

    server: Server
    pool: Pool
    backend: Backend
    observer: Recorder
    nursery: trio.Nursery
    address: str = ""
    clients: list[RawPeer] = field(default_factory=list)

    async def client(self, settings: dict[int, int] | None = None) -> RawPeer:
        """A new client, connected to the proxy."""
        client = await connect(self.address, self.nursery, settings=settings)
        self.clients.append(client)
        return client

    async def record(self) -> CallRecord:
        """The record of the next call that ends."""
        return await self.observer.record()


@asynccontextmanager
async def a_proxy(
    engine: Engine,
    *,
    director: StreamDirector | None = None,
    configure: Callable[[Server, StreamDirector], None] = lambda _server, _director: None,
    unknown: bool = True,
    codec: Codec | None = None,
    pool: dict[str, Any] | None = None,
    backend: dict[int, int] | None = None,
    max_connections: int | None = None,
    recorder: Recorder | None = None,
    tracing: Tracing | None = None,
    status_origin_trailer: str | None = None,
    tap: Tap | None = None,
    wrap: Wrap | None = None,
    **http2: Any,
) -> AsyncIterator[House]:
    """A backend (with these SETTINGS), a proxy before it, and a check that nothing is left.

    The director leads to the backend unless another is given; `configure` gets the server and that director;
    without `unknown` there is no handler for what is not registered. `http2` is what the Http2Settings are.
    """
    baseline = Baseline()
    settings = Http2Settings(engine=engine, **http2)
    with trio.fail_after(A_TEST_S):
        async with trio.open_nursery() as nursery:
            async with Pool(**{"settings": settings, **(pool or {})}) as upstreams:
                peer = Backend(backend)
                await nursery.start(peer.run)
                observer = recorder or Recorder()

                async def to_backend(context: CallContext, method: str) -> tuple[CallContext, PoolConn]:
                    return context, await upstreams.get_conn(peer.address)

                made = Server(
                    unknown_service_handler=transparent_handler(director or to_backend) if unknown else None,
                    codec=codec,
                    settings=settings,
                    observer=observer,
                    max_connections=max_connections,
                    tracing=tracing,
                    status_origin_trailer=status_origin_trailer,
                    tap=tap,
                    wrap=wrap,
                )
                configure(made, to_backend)
                house = House(made, upstreams, peer, observer, nursery)
                house.address = await nursery.start(made.serve, "127.0.0.1:0")
                yield house
                for client in house.clients:
                    await client.aclose()
                await assert_nothing_left(made, upstreams)
                made.stop()
            nursery.cancel_scope.cancel()
    assert not [e for e in observer.connections_failed if e.error_code == ErrorCode.INTERNAL_ERROR]
    baseline.assert_restored()


class Baseline:
    """Tasks and file descriptors of the process at one moment."""

    def __init__(self) -> None:
        current_poller()  # has a task and a file for as long as the run
        self.tasks = trio.lowlevel.current_statistics().tasks_living
        self.files = _open_files()

    def assert_restored(self) -> None:
        assert trio.lowlevel.current_statistics().tasks_living == self.tasks
        assert _open_files() == self.files


async def assert_nothing_left(server: Server, pool: Pool) -> None:
    """No call is open on the server, and every stream of the pool has been given back, exactly once."""
    await until(lambda: server.open_calls == 0, "calls are open")
    await until(lambda: streams_of(pool) == 0, f"leases are held: {pool.stats()}")
    for stats in pool.stats().values():
        assert stats.waiting == 0, pool.stats()
        assert stats.busy == 0, pool.stats()
    assert all(target.calls == 0 for target in pool._targets.values()), "places are counted that nobody has"


def streams_of(pool: Pool) -> int:
    """Leases that are out, on pooled connections."""
    return sum(
        abs(conn.streams)
        for target in pool._targets.values()
        for conn in (*target.record.with_room, *target.record.busy, *target.record.leaving)
    )


async def until(condition: Callable[[], bool], otherwise: str = "it never came to be") -> None:
    """Wait, for a moment at the most, until all tasks have settled into this condition."""
    with trio.move_on_after(PATIENCE_S):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert condition(), otherwise


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list((folder if folder.is_dir() else Path("/dev/fd")).iterdir()))
