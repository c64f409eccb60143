"""Pooled connections to upstreams: `Pool`, and `PoolConn`, which a call gets from it.

`pool_record.py` decides; this module dials, waits and closes. A pool owns the tasks of its connections, so it is a
context manager: leaving it ends them.
"""

import math
import random
import ssl
from collections import deque
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import attrs
import trio

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError, PoolExhausted, ProxyError, UpstreamUnavailable
from rawgrpc_proxy.grpc.metadata import Headers
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.net.dial import dial
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.pool_record import Phase, PoolLimits, PoolRecord

_BACKOFF_FIRST_S = 1.0
_BACKOFF_FACTOR = 1.6
_BACKOFF_MAX_S = 120.0
_BACKOFF_JITTER = 0.2


class PoolConn:
    """A connection of a pool, shared by up to `ms` calls. Each `get_conn` must be matched by one `close`."""

    __slots__ = ("_connection", "_key", "created_at", "dialled", "err", "pool", "pooled", "streams")

    def __init__(self, pool: "Pool", key: "_Key", created_at: float) -> None:
        self.pool = pool
        self.streams = 1
        """Calls that hold the connection now."""
        self.pooled = False
        self.created_at = created_at
        self.err: ProxyError | None = None
        """Why the connection failed or drains, if it does."""
        self.dialled = trio.Event()
        self._key = key
        self._connection: Connection | None = None

    @property
    def address(self) -> str:
        """The address it leads to, as it was given to `get_conn`."""
        return self._key[0]

    @property
    def has_room(self) -> bool:
        """May a stream be opened on it now?"""
        return self._connection is not None and self._connection.has_room

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the upstream says it takes, as RFC 9113 §6.5.2 counts it."""
        return self._established.session.peer_max_header_list_bytes

    def open_stream(self, headers: Headers, *, end_stream: bool = False) -> Stream:
        """Open a stream with these request headers, at once. The lease holds a place for it.

        Raises `UpstreamUnavailable` if the connection has failed, drains, or its peer allows no more by now.
        """
        connection = self._established
        if not connection.has_room:
            raise UpstreamUnavailable(
                f"the connection to {self.address} takes no calls: {connection.error or 'full'}"
            )
        return connection.open_stream(headers, end_stream=end_stream)

    async def again(self) -> "PoolConn":
        """Another lease on the same address with the same TLS: what a retry asks for. Waits and raises as `get_conn`."""
        return await self.pool.get_conn(self.address, ssl_context=self._key[1])

    def close(self) -> None:
        """Give the connection back: `pool.release(address, conn, conn.err)`. Once for each `get_conn`."""
        self.pool.release(self.address, self, self.err)

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        if self._connection is None:
            return Phase.CONNECTING if self.err is None else Phase.CLOSED
        match self._connection.state:
            case ConnectionState.OPEN:
                return Phase.READY
            case ConnectionState.DRAINING:
                return Phase.DRAINING
            case ConnectionState.CLOSED:
                return Phase.CLOSED

    @property
    def peer_limit(self) -> int:
        """The upstream's SETTINGS_MAX_CONCURRENT_STREAMS."""
        return self._established.session.peer_max_concurrent_streams

    @property
    def _established(self) -> Connection:
        if self._connection is None:
            raise UpstreamUnavailable(f"the connection to {self.address} is not established")
        return self._connection

    def __repr__(self) -> str:
        return f"<PoolConn {self.address} {self.phase.value}, {self.streams} streams>"


_Key = tuple[str, ssl.SSLContext | None]


class _Target:
    """One address with one TLS configuration: its connections, its queue, its luck with dialling."""

    __slots__ = ("address", "failures", "last_error", "record", "retry_at", "waiting")

    def __init__(self, address: Address, limits: PoolLimits) -> None:
        self.address = address
        self.record: PoolRecord[PoolConn] = PoolRecord(limits)
        self.waiting: deque[trio.Event] = deque()
        self.failures = 0
        self.retry_at = -math.inf
        self.last_error = ""


@attrs.frozen
class PoolStats:
    """Counts of one address: connections with room, busy ones, those without streams, and calls that wait."""

    with_room: int
    busy: int
    idle: int
    waiting: int


class Pool:
    """Connections to upstreams, capped at `ms` streams each.

    `size` connections are kept per address (0 or more), each for `ttl` seconds, `idle` of them without streams
    (below 0 counts as 0); `ms` streams per connection (below 1 counts as 1). As in the reference, a call beyond
    `size` × `ms` gets a connection of its own, closed when the call ends. With `max_waiting` the pool has a hard cap
    instead: that many calls wait in line, first come first served, as long as their deadline lets them.

    Where this pool does better than the reference: callers share a dial in progress (a cold burst of N calls dials
    N / `ms` times, not N); the cap follows the peer's SETTINGS; connections are told apart by TLS configuration too;
    an error lets the other streams of a connection finish; ttl and death are noticed when they happen; after a
    failed dial, calls fail at once until the backoff (1 s × 1.6, at most 120 s, ± 20 %) is over.

    Use it as `async with Pool(...) as pool:`; leaving ends its connections.
    """

    def __init__(
        self,
        size: int = 100,
        ttl: float = 60.0,
        idle: int = 50,
        ms: int = 20,
        *,
        max_waiting: int | None = None,
        dial_timeout_s: float = 3.0,
        settings: Http2Settings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for a `size`, `ttl`, `max_waiting` or `dial_timeout_s` that cannot work."""
        if (
            size < 0
            or math.isnan(ttl)
            or ttl < 0
            or dial_timeout_s <= 0
            or (max_waiting is not None and max_waiting < 0)
        ):
            raise ConfigError("a pool needs size >= 0, ttl >= 0, max_waiting >= 0 and dial_timeout_s > 0")
        if size == 0 and max_waiting is not None:
            raise ConfigError(
                "a pool with max_waiting has a hard cap: a size of 0 would never let a call through"
            )
        self._limits = PoolLimits(size=size, ttl_s=ttl, idle=max(idle, 0), ms=max(ms, 1))
        self._max_waiting = max_waiting
        self._dial_timeout_s = dial_timeout_s
        self._settings = settings or Http2Settings()
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._targets: dict[_Key, _Target] = {}
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        manager = trio.open_nursery()
        self._nursery = await manager.__aenter__()
        self._nursery_manager = manager
        self._nursery.start_soon(self._close_expired)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery is not None
        assert self._nursery_manager is not None
        self._nursery.cancel_scope.cancel()
        manager, self._nursery_manager, self._nursery = self._nursery_manager, None, None
        return await manager.__aexit__(kind, error, trace)

    async def get_conn(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> PoolConn:
        """A connection to `address` (`HOST:PORT` or `unix:PATH`) with a place for one stream. Close it when done.

        Answers without waiting if there is one; otherwise waits for a dial, or in line. Cancellation gives the place
        back. Raises `UpstreamUnavailable` if the upstream cannot be reached, `PoolExhausted` if the line is full.
        """
        target = self._target(address, ssl_context)
        conn = target.record.pick(trio.current_time())
        for dead in conn.close:
            self._end(dead)
        found = conn.connection
        if found is not None and not target.waiting and found.phase is Phase.READY:
            return found
        if found is not None and target.waiting:
            # Whoever stands in line already comes first.
            self._give_back(target, found)
            found = None
        return await self._get_conn_slowly(target, (address, ssl_context), found)

    async def _get_conn_slowly(self, target: _Target, key: _Key, conn: PoolConn | None) -> PoolConn:
        while True:
            if conn is None:
                conn = await self._dial_or_wait(target, key)
            if conn is None:
                picked = target.record.pick(trio.current_time())
                for dead in picked.close:
                    self._end(dead)
                conn = picked.connection
                continue
            try:
                await conn.dialled.wait()
            except BaseException:
                self._give_back(target, conn)
                raise
            if conn.err is not None and conn.phase is Phase.CLOSED:
                error = conn.err
                self._give_back(target, conn)
                raise UpstreamUnavailable(error.message)
            if conn.phase is Phase.READY and conn.streams <= target.record.limit_of(conn):
                return conn
            # The peer allows fewer streams than we hoped for, or went away at once: look again.
            self._give_back(target, conn)
            conn = None
            await trio.lowlevel.checkpoint()

    async def _dial_or_wait(self, target: _Target, key: _Key) -> PoolConn | None:
        """Start a dial and answer its connection, or wait for a place in line and answer None."""
        if target.record.may_grow or self._max_waiting is None:
            now = trio.current_time()
            if now < target.retry_at:
                raise UpstreamUnavailable(f"{target.last_error} (next try in {target.retry_at - now:.1f} s)")
            if self._nursery is None:
                raise ConfigError("the pool is not open: use it as `async with Pool(...) as pool:`")
            conn = PoolConn(self, key, now)
            if target.record.may_grow:
                target.record.add(conn)
            self._nursery.start_soon(self._run, target, conn)
            return conn
        if len(target.waiting) >= self._max_waiting:
            raise PoolExhausted(
                f"all {target.record.count} connections to {target.address} are busy and {len(target.waiting)} calls "
                "wait already"
            )
        turn = trio.Event()
        target.waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            target.waiting.remove(turn)
            if turn.is_set():
                self._call_next(target)
            raise
        target.waiting.remove(turn)
        return None

    def release(self, address: str, conn: PoolConn, err: BaseException | None) -> None:
        """Take `conn` back from one call. With an error, it takes no new calls and is closed once it has none."""
        if address != conn.address:
            raise ValueError(f"{conn!r} does not lead to {address!r}")
        target = self._targets[conn._key]
        if (
            err is not None
            and conn._connection is not None
            and conn._connection.state is ConnectionState.OPEN
        ):
            conn._connection.state = ConnectionState.DRAINING
        self._give_back(target, conn, failed=err is not None)

    def explain(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> list[str]:
        """Say of each connection to `address`, newest first, why the next call would or would not get it."""
        target = self._targets.get((address, ssl_context))
        if target is None:
            return [f"there is no connection to {address} yet"]
        now, record = trio.current_time(), target.record
        lines = []
        for conn in [*reversed(record.with_room), *record.busy]:
            if conn.phase is not Phase.READY:
                reason = conn.phase.value
            elif record.expired(conn, now):
                reason = "past its ttl"
            elif conn.streams >= record.limit_of(conn):
                reason = f"busy: {conn.streams} streams of {record.limit_of(conn)}"
            else:
                reason = f"has room: {conn.streams} streams of {record.limit_of(conn)}"
            lines.append(reason)
        if now < target.retry_at:
            lines.append(f"dialling pauses for {target.retry_at - now:.1f} s: {target.last_error}")
        return lines

    def stats(self) -> dict[str, PoolStats]:
        """Counts for each address."""
        return {
            key[0]: PoolStats(
                len(target.record.with_room), len(target.record.busy), target.record.idle, len(target.waiting)
            )
            for key, target in self._targets.items()
        }

    def _target(self, address: str, ssl_context: ssl.SSLContext | None) -> _Target:
        key = (address, ssl_context)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = _Target(Address.parse(address), self._limits)
        return target

    def _give_back(self, target: _Target, conn: PoolConn, *, failed: bool = False) -> None:
        if target.record.release(conn, trio.current_time(), failed=failed):
            self._end(conn)
        self._call_next(target)

    def _end(self, conn: PoolConn) -> None:
        if conn._connection is not None:
            conn._connection.close()

    def _call_next(self, target: _Target) -> None:
        if target.waiting:
            record = target.record
            if record.may_grow or any(
                conn.phase is Phase.READY and conn.streams < record.limit_of(conn)
                for conn in record.with_room
            ):
                # It stays in line until it has run, so that nobody who comes meanwhile gets ahead of it.
                for turn in target.waiting:
                    if not turn.is_set():
                        turn.set()
                        break

    async def _run(self, target: _Target, conn: PoolConn) -> None:
        """Dial, then run the connection to its end."""
        try:
            transport = await dial(target.address, ssl_context=conn._key[1], timeout_s=self._dial_timeout_s)
        except UpstreamUnavailable as error:
            self._dial_failed(target, conn, error)
            return

        def on_change() -> None:
            self._connection_changed(target, conn, connection)

        connection = Connection(transport, self._settings, client_side=True, on_change=on_change)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            # The first SETTINGS tell how many streams the peer allows, and that it speaks HTTP/2 at all.
            await connection.ready.wait()
            if connection.state is ConnectionState.CLOSED:
                self._dial_failed(target, conn, UpstreamUnavailable(f"{target.address}: {connection.error}"))
                return
            target.failures = 0
            conn._connection = connection
            conn.dialled.set()
            target.record.refresh(conn)
            self._call_next(target)

    def _dial_failed(self, target: _Target, conn: PoolConn, error: UpstreamUnavailable) -> None:
        target.failures += 1
        pause = min(_BACKOFF_FIRST_S * _BACKOFF_FACTOR ** (target.failures - 1), _BACKOFF_MAX_S)
        target.retry_at = trio.current_time() + pause * self._rng.uniform(
            1 - _BACKOFF_JITTER, 1 + _BACKOFF_JITTER
        )
        target.last_error = error.message
        conn.err = error
        conn.dialled.set()
        target.record.remove(conn)
        self._call_next(target)

    def _connection_changed(self, target: _Target, conn: PoolConn, connection: Connection) -> None:
        if conn._connection is None:
            return
        if connection.state is ConnectionState.OPEN:
            target.record.refresh(conn)
        else:
            conn.err = conn.err or connection.error
            if connection.state is ConnectionState.CLOSED:
                target.record.remove(conn)
            elif conn.streams == 0:
                target.record.remove(conn)
                connection.close()
        self._call_next(target)

    async def _close_expired(self) -> None:
        """Close connections without streams as their ttl passes."""
        while True:
            now = trio.current_time()
            for target in self._targets.values():
                for conn in list(target.record.with_room):
                    if conn.streams == 0 and target.record.expired(conn, now):
                        target.record.remove(conn)
                        self._end(conn)
            await trio.sleep(max(0.05, min(self._limits.ttl_s / 8, 1.0)))
