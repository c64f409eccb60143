"""Pooled connections to upstreams: `Pool`, and `PoolConn`, which a call gets from it.

`pool_record.py` decides; this module dials, waits and closes. A pool owns the tasks of its connections, so it is a
context manager: leaving it ends them.

A call that cannot be served at once is a `_Caller`, in one of two places: in line, with nothing in hand, or among
those who share a dial, with a place on the connection to be. The invariants: as long as somebody stands in line there
is nothing to hand out, so whatever changes that calls `_serve`; a place is handed over, never left for whoever runs
first, so nobody gets ahead; a caller that is cancelled leaves nothing behind.
"""

import math
import random
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import attrs
import trio

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError, PoolExhausted, ProxyError, UpstreamUnavailable
from rawgrpc_proxy.grpc.metadata import Headers
from rawgrpc_proxy.http2.session import UNLIMITED
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.net.dial import dial
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.pool_record import Phase, PoolLimits, PoolRecord

_OPEN, _READY = ConnectionState.OPEN, Phase.READY  # looked up once, not for every call
_BACKOFF_FIRST_S = 1.0
_BACKOFF_FACTOR = 1.6
_BACKOFF_MAX_S = 120.0
_BACKOFF_JITTER = 0.2


class PoolConn:
    """A connection of a pool, shared by up to `ms` calls. Each `get_conn` must be matched by one `close`."""

    __slots__ = (
        "_connection",
        "_scope",
        "_sharing",
        "_target",
        "address",
        "created_at",
        "err",
        "peer_limit",
        "pool",
        "pooled",
        "streams",
    )

    def __init__(self, pool: "Pool", target: "_Target", created_at: float) -> None:
        self.pool = pool
        self.address = target.key[0]
        """The address it leads to, as it was given to `get_conn`."""
        self.streams = 1
        """Calls that hold the connection now."""
        self.pooled = False
        self.created_at = created_at
        """When the dial began; from when it succeeds on, that moment."""
        self.err: ProxyError | None = None
        """Why the connection failed or drains, if it does."""
        self.peer_limit: int = max(1, target.peer_limit)
        """The upstream's SETTINGS_MAX_CONCURRENT_STREAMS; before they have come, what it said last."""
        self._target = target
        self._connection: Connection | None = None
        self._scope = trio.CancelScope()
        self._sharing: list[_Caller] = []

    @property
    def has_room(self) -> bool:
        """Whether a stream may be opened on it now."""
        connection = self._connection
        return connection is not None and connection.state is _OPEN and connection.session.room

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the upstream says it takes, as RFC 9113 §6.5.2 counts it."""
        assert self._connection is not None  # no caller gets it before
        return self._connection.session.peer_max_header_list_bytes

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open a stream with these request headers, at once. The lease holds a place for it.

        Raises `UpstreamUnavailable` if the connection has failed, drains, or its peer allows no more by now.
        """
        connection = self._connection
        if connection is None or not connection.has_room:
            raise UpstreamUnavailable(
                f"the connection to {self.address} takes no calls: {self.err or 'full'}"
            )
        return connection.open_stream(headers, end_stream)

    async def again(self) -> "PoolConn":
        """Another lease on the same address with the same TLS: what a retry asks for. Waits and raises as `get_conn`.

        The call's stream here must be over. This lease has to be closed all the same, but while it waits its place is
        free for others: they may be the ones who stand in line before it.
        """
        target = self._target
        self.streams -= 1
        target.record.refresh(self)
        try:
            return await self.pool.get_conn(target.key[0], ssl_context=target.key[1])
        finally:
            self.streams += 1

    def close(self) -> None:
        """Give the connection back: `pool.release(address, conn, conn.err)`. Once for each `get_conn`."""
        self.pool.release(self.address, self, self.err)

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        if self._connection is None:
            return Phase.CONNECTING if self.err is None else Phase.CLOSED
        state = self._connection.state
        if state is _OPEN:
            return _READY
        return Phase.DRAINING if state is ConnectionState.DRAINING else Phase.CLOSED

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        else:
            self._scope.cancel()  # the dial: nobody wants it any more

    def __repr__(self) -> str:
        return f"<PoolConn {self.address} {self.phase.value}, {self.streams} streams>"


_Key = tuple[str, ssl.SSLContext | None]


@attrs.define(eq=False)
class _Caller:
    """A call in `get_conn` that has to wait."""

    conn: PoolConn | None = None
    """The connection it has a place on; None while it stands in line, and if it gets none."""
    problem: str = ""
    settled: trio.Event = attrs.field(factory=trio.Event)

    def fail(self, problem: str) -> None:
        self.conn, self.problem = None, problem
        self.settled.set()


class _Target:
    """One address with one TLS configuration: its connections, its line, its luck with dialling."""

    __slots__ = (
        "address",
        "connections",
        "dialling",
        "failures",
        "key",
        "last_error",
        "line",
        "peer_limit",
        "record",
        "retry_at",
    )

    def __init__(self, key: _Key, limits: PoolLimits) -> None:
        self.key = key
        self.address = Address.parse(key[0])
        self.record: PoolRecord[PoolConn] = PoolRecord(limits)
        self.line: deque[_Caller] = deque()
        self.connections = 0
        """All there are, pooled or not; `dialling` of them are not established yet."""
        self.dialling = 0
        self.failures = 0
        self.retry_at = -math.inf
        self.last_error = ""
        self.peer_limit: int = UNLIMITED

    def dialling_works(self) -> None:
        self.failures = 0
        self.retry_at = -math.inf

    @property
    def unused(self) -> bool:
        return not self.connections and not self.line and trio.current_time() >= self.retry_at


@attrs.frozen
class PoolStats:
    """Counts of one address: connections with room, busy ones, those without streams, and calls that stand in line."""

    with_room: int
    busy: int
    idle: int
    waiting: int


class Pool:
    """Connections to upstreams, capped at `ms` streams each.

    `size` connections are kept per address (0 or more), each for `ttl` seconds, `idle` of them without streams
    (below 0 counts as 0); `ms` streams per connection (below 1 counts as 1). As in the reference, a call beyond
    `size` × `ms` gets a connection of its own, closed when the call ends. With `max_waiting` the pool has a hard cap
    instead: that many calls stand in line, first come first served, as long as their deadline lets them. What drains
    or is past its ttl counts for `size` until its last call ends.

    Where this pool does better than the reference: callers share a dial in progress (a cold burst of N calls dials
    N / `ms` times, not N); the cap follows the peer's SETTINGS; connections are told apart by TLS configuration too;
    an error lets the other streams of a connection finish; ttl and death are noticed when they happen; `explain` says
    why a connection is passed over. After a failed dial, calls fail at once until the backoff (1 s × 1.6, at most
    120 s, ± 20 %) is over, then one dial tries for all. A peer that allows no streams at all counts as a failed dial.

    `dial_timeout_s` covers all up to the upstream's first SETTINGS: name, TCP, TLS, HTTP/2. The original has 1 s; a
    lost SYN is only sent again after that time.

    `max_connections` bounds the connections to all addresses together: beyond it calls stand in line, or without
    `max_waiting` are RESOURCE_EXHAUSTED. With a `loop_guard` no connection leads to the proxy itself.

    Use it as `async with Pool(...) as pool:`; leaving ends its connections.
    """

    def __init__(  # noqa: PLR0913  # the original's, and what it lacks
        self,
        size: int = 100,
        ttl: float = 60.0,
        idle: int = 50,
        ms: int = 20,
        *,
        max_waiting: int | None = None,
        max_connections: int | None = None,
        dial_timeout_s: float = 3.0,
        loop_guard: LoopGuard | None = None,
        settings: Http2Settings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for a `size`, `ttl`, `max_waiting` or `dial_timeout_s` that cannot work."""
        if not (size >= 0 and ttl >= 0 and dial_timeout_s > 0 and (max_waiting is None or max_waiting >= 0)):
            raise ConfigError("a pool needs size >= 0, ttl >= 0, max_waiting >= 0 and dial_timeout_s > 0")
        if size == 0 and max_waiting is not None:
            raise ConfigError(
                "a pool with max_waiting has a hard cap: a size of 0 would never let a call through"
            )
        self._limits = PoolLimits(size=size, ttl_s=ttl, idle=max(idle, 0), ms=max(ms, 1))
        self._max_waiting = max_waiting
        self._max_connections = max_connections
        self._connections = 0
        self._loop_guard = loop_guard
        self._dial_timeout_s = dial_timeout_s
        self._settings = settings or Http2Settings()
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._targets: dict[_Key, _Target] = {}
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._now: Callable[[], float] = trio.current_time
        """Once open: the clock itself, to which `trio.current_time` is a long way."""

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            raise ConfigError("the pool is open already; each place that needs a pool of its own makes one")
        self._now = trio.lowlevel.current_clock().current_time
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        assert self._nursery_manager is not None
        nursery, self._nursery = self._nursery, None
        for target in self._targets.values():
            _fail_line(target, "the pool is closed")
        nursery.cancel_scope.cancel()
        try:
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our tasks.
            await self._nursery_manager.__aexit__(None, None, None)
        finally:
            self._nursery_manager = None

    # ------------------------------------------------------------------ leases

    async def get_conn(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> PoolConn:
        """A connection to `address` (`HOST:PORT` or `unix:PATH`) with a place for one stream. Close it when done.

        Answers without waiting if there is one; otherwise waits for a dial, or in line. Cancellation gives the place
        back. Raises `UpstreamUnavailable` if the upstream cannot be reached, `PoolExhausted` if the line is full,
        `ConfigError` if `address` is none or the pool is not open. `ssl_context` should offer `h2` by ALPN.
        """
        conn = self.get_conn_nowait(address, ssl_context=ssl_context)
        if conn is not None:
            return conn
        if self._nursery is None:
            raise ConfigError("the pool is not open: use it inside `async with Pool(...) as pool:`")
        key = (address, ssl_context)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = _Target(key, self._limits)
        conn = None if target.line else self._pick(target)
        if conn is not None and conn.phase is Phase.READY:
            return conn
        caller = _Caller()
        if conn is not None:
            _place(caller, conn)
        else:
            self._stand_in_line(target, caller)
        try:
            await caller.settled.wait()
        except BaseException:
            self._leave(target, caller)
            raise
        if caller.conn is None:
            raise UpstreamUnavailable(caller.problem)
        return caller.conn

    def get_conn_nowait(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> PoolConn | None:
        """What `get_conn` mostly comes to: the newest connection with room. None: `await get_conn(...)`.

        For directors that are no coroutines, and so cost less: answer at once where this answers, else an awaitable.
        """
        target = self._targets.get((address, ssl_context))
        if target is None or target.line or self._nursery is None:
            return None
        return target.record.pick_at_once(self._now())

    def release(self, address: str, conn: PoolConn, err: BaseException | None) -> None:
        """Take `conn` back from one call. With an error, it takes no new calls and is closed once it has none.

        Raises `ValueError` for a connection that is not of this pool and address, or has been given back already.
        """
        if conn.pool is not self or address != conn.address:
            raise ValueError(f"{conn!r} is no connection of this pool to {address!r}")
        if err is not None and conn.phase is Phase.READY and conn._connection is not None:
            conn._connection.state = ConnectionState.DRAINING
        self._give_back(conn, failed=err is not None)

    def explain(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> list[str]:
        """Say of each connection to `address`, newest first, why the next call would or would not get it."""
        target = self._targets.get((address, ssl_context))
        if target is None:
            return [f"there is no connection to {address}"]
        now, record = trio.current_time(), target.record
        lines = []
        for conn in [*reversed(record.with_room), *reversed(record.busy)]:
            objection = record.objection(conn, now)
            verdict = "has room" if objection is None else objection.value
            lines.append(f"{verdict}: {conn.streams} of {record.limit_of(conn)} streams")
        if now < target.retry_at:
            lines.append(f"dialling pauses for {target.retry_at - now:.1f} s: {target.last_error}")
        if target.line:
            lines.append(f"calls that stand in line: {len(target.line)}")
        return lines or [f"there is no connection to {address}"]

    def stats(self) -> dict[str, PoolStats]:
        """Counts for each address, whatever the TLS configuration."""
        sums: dict[str, PoolStats] = {}
        for (address, _), target in self._targets.items():
            record, so_far = target.record, sums.get(address, PoolStats(0, 0, 0, 0))
            sums[address] = PoolStats(
                with_room=so_far.with_room + len(record.with_room),
                busy=so_far.busy + len(record.busy),
                idle=so_far.idle + record.idle,
                waiting=so_far.waiting + len(target.line),
            )
        return sums

    def _give_back(self, conn: PoolConn, *, failed: bool = False) -> None:
        target = conn._target
        if target.record.release(conn, self._now(), failed=failed):
            conn._end()
        if target.line:
            self._serve(target)

    def _leave(self, target: _Target, caller: _Caller) -> None:
        """A caller is cancelled, wherever it waits, or in the very moment in which it has got a connection."""
        conn = caller.conn
        if conn is not None:
            if caller in conn._sharing:
                conn._sharing.remove(caller)
            self._give_back(conn)
        elif caller in target.line:
            target.line.remove(caller)

    # ---------------------------------------------------------------- the line

    def _stand_in_line(self, target: _Target, caller: _Caller) -> None:
        line = target.line
        line.append(caller)
        self._serve(target)
        if self._is_full and len(line) > (self._max_waiting or 0):
            line.pop()
            raise PoolExhausted(
                f"all {self._connections} connections to upstreams are in use, as many as may be (max_connections; "
                "the command's follows from the limit on open files)"
            )
        if self._max_waiting is not None and len(line) > self._max_waiting:
            line.pop()
            raise PoolExhausted(
                f"none of the {target.record.count} connections to {target.address} has room, and {len(line)} calls "
                "wait already"
            )

    @property
    def _is_full(self) -> bool:
        return self._max_connections is not None and self._connections >= self._max_connections

    def _serve(self, target: _Target) -> None:
        """Give those who stand in line what there is, first come first served."""
        line, hard_cap = target.line, self._max_waiting is not None
        while line:
            conn = self._pick(target) or self._dial(target)
            if conn is not None:
                _place(line.popleft(), conn)
                continue
            pause = target.retry_at - trio.current_time()
            if pause > 0 and not (hard_cap and target.record.count):
                _fail_line(target, f"{target.last_error} (next try in {pause:.1f} s)")
            return

    def _pick(self, target: _Target) -> PoolConn | None:
        picked = target.record.pick(self._now())
        for conn in picked.close:
            conn._end()
        return picked.connection

    # ----------------------------------------------------------------- dialling

    def _dial(self, target: _Target) -> PoolConn | None:
        """Begin to dial, if that may be done now. The connection has one stream already, its first caller's."""
        now, record = trio.current_time(), target.record
        if self._is_full or (self._max_waiting is not None and not record.may_grow):
            return None
        if self._nursery is None or now < target.retry_at or (target.failures and target.dialling):
            return None
        conn = PoolConn(self, target, now)
        if record.may_grow:
            record.add(conn)
        target.connections += 1
        self._connections += 1
        target.dialling += 1
        self._nursery.start_soon(self._run, conn)
        return conn

    async def _run(self, conn: PoolConn) -> None:
        """Dial, then run the connection to its end."""
        target, until = conn._target, trio.current_time() + self._dial_timeout_s
        try:
            with conn._scope:
                transport = await dial(
                    target.address,
                    ssl_context=target.key[1],
                    timeout_s=self._dial_timeout_s,
                    loop_guard=self._loop_guard,
                )
                connection = Connection(
                    transport,
                    self._settings,
                    client_side=True,
                    on_change=lambda: self._connection_changed(conn),
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._look_after, conn, connection, until)
                    await connection.run()
                    nursery.cancel_scope.cancel()
        except UpstreamUnavailable as error:
            self._dial_failed(conn, error.message)
        finally:
            if conn.phase is Phase.CONNECTING:
                self._dial_ended(conn, "the pool is closed")
            target.connections -= 1
            self._connections -= 1
            if not target.failures:
                self._forget_if_unused(target)
            if self._max_connections is not None:
                for other in list(self._targets.values()):
                    self._serve(other)  # there is room for one of theirs now

    async def _look_after(self, conn: PoolConn, connection: Connection, until: float) -> None:
        """See a connection through its handshake, and to its ttl."""
        target = conn._target
        with trio.move_on_at(until) as handshake:
            # The first SETTINGS tell how many streams the peer allows, and that it speaks HTTP/2 at all.
            await connection.ready.wait()
        if connection.state is not ConnectionState.OPEN:
            self._dial_failed(conn, f"{target.address}: {connection.error}")
            connection.close()
        elif handshake.cancelled_caught:
            self._dial_failed(
                conn, f"{target.address} sent no HTTP/2 SETTINGS within {self._dial_timeout_s:g} s"
            )
            connection.close()
        else:
            self._dial_succeeded(conn, connection)
            # "Past its ttl" is strict.
            await trio.sleep_until(math.nextafter(target.record.expires_at(conn), math.inf))
            if not conn.streams:
                target.record.remove(conn)
                conn._end()

    def _dial_succeeded(self, conn: PoolConn, connection: Connection) -> None:
        """Those who share the dial get the connection, as many as the peer allows; the others are first in line."""
        target, now = conn._target, trio.current_time()
        conn.peer_limit = target.peer_limit = connection.session.peer_max_concurrent_streams
        if conn.peer_limit:
            target.dialling_works()
        else:
            self._back_off(conn, f"{target.address} allows no streams at present")
        conn._connection, conn.created_at = connection, now
        target.dialling -= 1
        sharing, conn._sharing = conn._sharing, []
        limit = target.record.limit_of(conn)
        for caller in sharing[:limit]:
            caller.settled.set()
        for caller in reversed(sharing[limit:]):
            caller.conn = None
            target.line.appendleft(caller)
            if target.record.release(conn, now, failed=False):
                conn._end()
        self._serve(target)

    def _dial_failed(self, conn: PoolConn, problem: str) -> None:
        self._back_off(conn, problem)
        self._dial_ended(conn, problem)

    def _dial_ended(self, conn: PoolConn, problem: str) -> None:
        """A dial has come to nothing, and all who share it hear of it."""
        target = conn._target
        target.dialling -= 1
        target.record.remove(conn)
        conn.err = UpstreamUnavailable(problem)
        sharing, conn._sharing = conn._sharing, []
        for caller in sharing:
            conn.streams -= 1
            caller.fail(problem)
        self._serve(target)

    def _back_off(self, conn: PoolConn, problem: str) -> None:
        target = conn._target
        target.last_error = problem
        if conn.created_at < target.retry_at or self._nursery is None:
            return  # it was under way when another one failed: one outage counts once
        pause = min(_BACKOFF_FIRST_S * _BACKOFF_FACTOR**target.failures, _BACKOFF_MAX_S)
        target.failures += 1
        target.retry_at = trio.current_time() + pause * self._rng.uniform(
            1 - _BACKOFF_JITTER, 1 + _BACKOFF_JITTER
        )
        self._nursery.start_soon(self._after_backoff, target, target.retry_at)

    async def _after_backoff(self, target: _Target, retry_at: float) -> None:
        """Let those in line try again, and forget an upstream that nobody asks for."""
        await trio.sleep_until(retry_at)
        self._serve(target)
        await trio.sleep(_BACKOFF_MAX_S)
        self._forget_if_unused(target)

    def _forget_if_unused(self, target: _Target) -> None:
        if target.unused and self._targets.get(target.key) is target:
            del self._targets[target.key]

    # -------------------------------------------------------------- connections

    def _connection_changed(self, conn: PoolConn) -> None:
        """SETTINGS, GOAWAY, a closed stream, or the end."""
        connection, target = conn._connection, conn._target
        if connection is None:
            return  # `_look_after` will see
        if connection.state is _OPEN:
            limit = connection.session.peer_max_concurrent_streams
            if limit == conn.peer_limit:
                return
            conn.peer_limit = target.peer_limit = limit
            if limit:
                target.dialling_works()
            target.record.refresh(conn)
        else:
            conn.err = conn.err or connection.error
            if connection.state is ConnectionState.CLOSED:
                target.record.remove(conn)
        self._serve(target)


def _place(caller: _Caller, conn: PoolConn) -> None:
    """The caller's lease is on `conn`, which it gets now or once it is dialled."""
    caller.conn = conn
    if conn.phase is Phase.CONNECTING:
        conn._sharing.append(caller)
    else:
        caller.settled.set()


def _fail_line(target: _Target, problem: str) -> None:
    while target.line:
        target.line.popleft().fail(problem)
