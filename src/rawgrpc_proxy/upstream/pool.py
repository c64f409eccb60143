"""Pooled connections to upstreams: `Pool`, the `PoolConn` that a call leases from it, and the `Target` of a director.

`pool_record.py` decides; this module dials, waits and closes. A pool owns the tasks of its connections, so it is a
context manager: leaving it ends them.

A call that cannot be served at once is a `_Caller`, in one of two places: in line, with nothing in hand, or among
those who share a dial, with a place on the connection to be. The invariants: as long as somebody stands in line there
is nothing to hand out, so whatever changes that calls `_serve`; a place is handed over, never left for whoever runs
first, so nobody gets ahead; a caller that is cancelled leaves nothing behind; whatever goes wrong with one connection
stays with it and its calls.

    a target's dials:   fine ──a dial fails──► in trouble: one dial at a time, after pauses ──one succeeds──► fine
                                                   └──nobody has asked for a while──► fine
"""

import contextlib
import math
import random
import ssl
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Self

import attrs
import trio

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionGone,
    PoolExhausted,
    ProxyError,
    ProxyFault,
    RpcError,
    Side,
    UpstreamUnavailable,
)
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.session import UNLIMITED
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.net.dial import dial
from rawgrpc_proxy.net.keepalive import Keepalive, pinged_too_often
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.timers import Deadlines
from rawgrpc_proxy.net.transport import Transport
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.tell import tell
from rawgrpc_proxy.upstream.record import Phase, PoolLimits, PoolRecord

_OPEN, _READY = ConnectionState.OPEN, Phase.READY  # looked up once, not for every call
_LAST_STREAM_ID = 2**31 - 1  # RFC 9113 §5.1.1

# The first dial after one that failed comes at once: a backend that restarts resets what waits in its queue. Later ones
# begin so long after the one before. With the jitter never more than 4 s, so that the first success comes within 5 s
# of the backend's return, however long it was away.
_RETRY_AT_ONCE_S = 0.04
_PAUSE_FIRST_S = 0.25
_PAUSE_FACTOR = 2.0
_PAUSE_MAX_S = 3.3
_PAUSE_JITTER = 0.2
_PAUSE_OWN_FAULT_S = 0.1
"""Between dials that fail for want of something here, like file descriptors."""
_DEMAND_S = 30.0
"""So long after the last call that found no connection, an upstream is still dialled."""


class PooledConnection:
    """A connection to an upstream, shared by up to `ms` calls, which hold a place each."""

    __slots__ = (
        "_connection",
        "_cut_off",
        "_scope",
        "_sharing",
        "_target",
        "created_at",
        "err",
        "in_doubt",
        "peer_limit",
        "pool",
        "pooled",
        "streams",
    )

    def __init__(self, target: "Target", created_at: float, streams: int) -> None:
        self.pool = target.pool
        self.streams = streams
        """Calls that hold a place now."""
        self.pooled = False
        self.created_at = created_at
        """When the dial began; from when it succeeds on, that moment."""
        self.err: ProxyError | None = None
        """Why the connection failed or drains, if it does."""
        self.peer_limit: int = max(1, target.peer_limit)
        """The upstream's SETTINGS_MAX_CONCURRENT_STREAMS; before they have come, what it said last."""
        self.in_doubt = False
        """The upstream owes the answer to a PING: until it comes there are no new calls here."""
        self._target = target
        self._connection: Connection | None = None
        self._scope = trio.CancelScope()
        self._sharing: list[_Caller] = []
        self._cut_off = False
        """Calls held it still when it had ended."""

    @property
    def address(self) -> str:
        """The address it leads to, as it was given to the pool."""
        return self._target.address

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
        """Open a stream with these request headers, at once, in a place that the caller holds.

        Raises `UpstreamUnavailable` if the connection has failed, drains, or its peer allows no more by now.
        """
        connection = self._connection
        if connection is None or not connection.has_room:
            raise UpstreamUnavailable(
                f"the connection to {self.address} takes no calls: {self.err or 'full'}"
            )
        stream = connection.open_stream(headers, end_stream)
        if stream.id >= _LAST_STREAM_ID:
            self.drain(ConnectionGone("its stream ids are used up"))
        return stream

    def drain(self, error: ProxyError) -> None:
        """Take no more calls, and close with the last one."""
        self.err = self.err or error
        if self._connection is not None and self._connection.state is _OPEN:
            self._connection.state = ConnectionState.DRAINING
            self.pool._retire(self)

    async def again(self) -> "PooledConnection":
        """A place on another connection of the target: what a retry asks for. Waits and raises as `get_conn`.

        It is on this one only if no other has room and none may be dialled. The call's stream here must be over. Its
        place here has to be given back all the same, but while it waits that is free for others: they may be the ones
        who stand in line before it.
        """
        target = self._target
        self.streams -= 1
        target.record.refresh(self)
        try:
            return await self.pool._take(target, other_than=self)
        finally:
            self.streams += 1

    def give_back(self) -> None:
        """Give one place back."""
        self.pool._give_back(self, failed=self.err is not None)

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
            self._cut_off = self._connection.state is ConnectionState.CLOSED
            self._connection.close()
        else:
            self._scope.cancel()  # the dial: nobody wants it any more

    def __repr__(self) -> str:
        return f"<connection to {self.address} {self.phase.value}, {self.streams} streams>"


class PoolConn:
    """A lease: a place for one stream on a connection that other calls share. Close it when the call is over.

    A director answers it, and the proxy closes it when the call ends. One that is dropped without either is given back
    with a `ResourceWarning`, as soon as the garbage collector finds it.
    """

    __slots__ = ("_held", "shared")

    def __init__(self, shared: PooledConnection) -> None:
        self.shared = shared
        """The connection. Two leases with the same one share it."""
        self._held = True

    @property
    def pool(self) -> "Pool":
        """Where it comes from."""
        return self.shared.pool

    @property
    def address(self) -> str:
        """The address it leads to, as it was given to `get_conn`."""
        return self.shared.address

    @property
    def streams(self) -> int:
        """Calls that hold the connection now."""
        return self.shared.streams

    @property
    def pooled(self) -> bool:
        """Whether the connection is kept when its calls are over, unless there are too many."""
        return self.shared.pooled

    @property
    def peer_limit(self) -> int:
        """The upstream's SETTINGS_MAX_CONCURRENT_STREAMS."""
        return self.shared.peer_limit

    @property
    def err(self) -> ProxyError | None:
        """Why the connection failed or drains, if it does. Once set, the connection is closed with its last call."""
        return self.shared.err

    @err.setter
    def err(self, error: ProxyError | None) -> None:
        self.shared.err = error

    @property
    def phase(self) -> Phase:
        """Where the connection is in its life."""
        return self.shared.phase

    @property
    def has_room(self) -> bool:
        """Whether a stream may be opened on it now."""
        return self.shared.has_room

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the upstream says it takes, as RFC 9113 §6.5.2 counts it."""
        return self.shared.peer_max_header_list_bytes

    @property
    def _connection(self) -> Connection | None:
        return self.shared._connection

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open a stream with these request headers, at once. The lease holds a place for it.

        Raises `UpstreamUnavailable` if the connection has failed, drains, or its peer allows no more by now.
        """
        return self.shared.open_stream(headers, end_stream)

    async def again(self) -> "PoolConn":
        """A lease on another connection to the same address with the same TLS, for a call that was refused here.

        Waits and raises as `get_conn`. On the same connection only if nothing else can be had. This lease has to be
        closed all the same.
        """
        return PoolConn(await self.shared.again())

    def close(self) -> None:
        """Give the connection back: `pool.release(address, conn, conn.err)`. Once for each `get_conn`."""
        self.pool.release(self.address, self, self.err)

    def hand_over(self) -> PooledConnection:
        """Let somebody else give the place back. Raises `ValueError` if it has been given back or handed over."""
        if not self._held:
            raise ValueError(
                f"{self!r} was given back, or answered by a director, more often than it was taken"
            )
        self._held = False
        return self.shared

    def __del__(self) -> None:
        if self._held and self.pool._nursery is not None:
            self._held = False
            warnings.warn(
                f"a lease on a connection to {self.address} was dropped: close what get_conn answers, or let the "
                "director answer it, or answer pool.target(address), which holds nothing",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self.pool._give_back_soon(self.shared)

    def __repr__(self) -> str:
        return f"<PoolConn {self.address} {self.phase.value}, {self.streams} streams>"


_Key = tuple[str, ssl.SSLContext | None]


@attrs.define(eq=False)
class _Caller:
    """A call that has to wait for its place."""

    since: float
    conn: PooledConnection | None = None
    """The connection it has a place on; None while it stands in line, and if it gets none."""
    problem: RpcError | None = None
    settled: trio.Event = attrs.field(factory=trio.Event)

    def fail(self, problem: RpcError) -> None:
        self.conn, self.problem = None, problem
        self.settled.set()


class Target:
    """Where a call shall go: an address of a pool, and its TLS configuration. `pool.target` makes it.

    A director that answers one leaves it to the proxy to take a place on a connection: nothing is held before, so
    nothing can be lost on the way.
    """

    # One address with one TLS configuration: its connections, its line, its luck with dialling. A target that is in
    # use is in its pool's `_targets`; there is one for each key as long as anybody holds it.
    __slots__ = (
        "__weakref__",
        "address",
        "asked_at",
        "connections",
        "dialling",
        "failures",
        "keepalive_s",
        "key",
        "line",
        "parsed",
        "peer_limit",
        "pool",
        "record",
        "retry_at",
        "ssl_context",
        "trouble",
    )

    def __init__(self, pool: "Pool", key: _Key, limits: PoolLimits) -> None:
        self.pool = pool
        self.key = key
        self.address, self.ssl_context = key
        self.parsed = Address.parse(self.address)
        self.record: PoolRecord[PooledConnection] = PoolRecord(limits)
        self.line: deque[_Caller] = deque()
        self.connections = 0
        """All there are, pooled or not; `dialling` of them are not established yet."""
        self.dialling = 0
        self.trouble: RpcError | None = None
        """Why the last dial failed, until one succeeds or nobody asks any more."""
        self.failures = 0
        self.retry_at = -math.inf
        """In trouble: from when on the next dial may begin."""
        self.asked_at = -math.inf
        """When a call last found no connection with room."""
        self.peer_limit: int = UNLIMITED
        self.keepalive_s = pool._settings.upstream_keepalive_s
        """Twice as long each time that the upstream has complained of `too_many_pings`."""

    def take_now(self) -> PooledConnection | None:
        """A place on the newest connection with room. None: `await take()`."""
        if self.line or self.pool._nursery is None:
            return None
        return self.record.pick_at_once(self.pool._now())

    async def take(self) -> PooledConnection:
        """A place on a connection, dialled if need be. Waits and raises as `Pool.get_conn`."""
        return self.take_now() or await self.pool._take(self)

    def dialling_works(self) -> None:
        """A dial has succeeded, or is about to be tried with as much hope as the first one."""
        self.trouble = None
        self.failures = 0
        self.retry_at = -math.inf

    @property
    def unused(self) -> bool:
        """Whether there is nothing to remember."""
        return not self.connections and not self.line and self.trouble is None

    def __repr__(self) -> str:
        return f"<Target {self.address}{'' if self.ssl_context is None else ' with TLS'}>"


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
    instead: that many calls stand in line, first come first served, as long as their deadline lets them.

    Where this pool does better than the reference: callers share a dial in progress (a cold burst of N calls dials
    N / `ms` times, not N); the cap follows the peer's SETTINGS; connections are told apart by TLS configuration too;
    an error lets the other streams of a connection finish; ttl and death are noticed when they happen; `explain` says
    why a connection is passed over. What drains or is past its ttl, and still carries calls, counts for `size` no more
    (there it does, so that a few long calls fill the pool): there may be more than `size` connections by those.

    After a failed dial the next one comes at once (within 50 ms), and then one at a time, with pauses that grow to 4 s,
    in the background as long as calls ask for the address or did in the last 30 s. Meanwhile calls wait for it, each
    for `connect_wait` seconds at the most (0: not at all), and then fail with the cause. A peer that allows no streams
    at all counts as a failed dial. Where this process lacks something, like file descriptors, the upstream is not
    blamed: the calls wait just so, the error says what is missing, and the next call dials.

    `dial_timeout_s` covers all up to the upstream's first SETTINGS: name, TCP, TLS, HTTP/2. The original has 1 s; a
    lost SYN is only sent again after that time. Of a name with several addresses another one is tried when the first
    fails, or has not said anything in a third of the time. `observer` hears of failed dials and connections.

    `max_connections` bounds the connections to all addresses together. Beyond it those without calls make room for
    others; where there are none, calls stand in line, or without `max_waiting` are RESOURCE_EXHAUSTED. With a
    `loop_guard` no connection leads to the proxy itself.

    Use it as `async with Pool(...) as pool:`; leaving ends its connections.
    """

    def __init__(  # noqa: PLR0913  # all that one may want of a pool, each with a default
        self,
        size: int = 100,
        ttl: float = 60.0,
        idle: int = 50,
        ms: int = 20,
        *,
        max_waiting: int | None = None,
        max_connections: int | None = None,
        dial_timeout_s: float = 3.0,
        connect_wait: float = 1.0,
        loop_guard: LoopGuard | None = None,
        settings: Http2Settings | None = None,
        observer: PoolObserver | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for numbers that cannot work."""
        if not (
            size >= 0
            and ttl >= 0
            and dial_timeout_s > 0
            and connect_wait >= 0
            and (max_waiting is None or max_waiting >= 0)
        ):
            raise ConfigError(
                "a pool needs size >= 0, ttl >= 0, max_waiting >= 0, connect_wait >= 0 and dial_timeout_s > 0"
            )
        if max_connections is not None and max_connections < 1:
            raise ConfigError("a pool needs max_connections >= 1, or None")
        if size == 0 and max_waiting is not None:
            raise ConfigError(
                "a pool with max_waiting has a hard cap: a size of 0 would never let a call through"
            )
        self._limits = PoolLimits(size=size, ttl_s=ttl, idle=max(idle, 0), ms=max(ms, 1))
        self._max_waiting = max_waiting
        self._max_connections = max_connections
        self._connections = 0
        self._making_room: set[PooledConnection] = set()
        """Of them those that end without need, since others want their place."""
        self._loop_guard = loop_guard
        self._dial_timeout_s = dial_timeout_s
        self._connect_wait_s = connect_wait
        self._settings = settings or Http2Settings()
        self._observer = observer
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._timers: Deadlines | None = None
        self._targets: dict[_Key, Target] = {}
        """Those with connections, or with calls that want one."""
        self._known_targets: weakref.WeakValueDictionary[_Key, Target] = weakref.WeakValueDictionary()
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._trio: trio.lowlevel.TrioToken | None = None
        self._now: Callable[[], float] = trio.current_time
        """Once open: the clock itself, to which `trio.current_time` is a long way."""

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            raise ConfigError("the pool is open already; each place that needs a pool of its own makes one")
        self._now = trio.lowlevel.current_clock().current_time
        self._trio = trio.lowlevel.current_trio_token()
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        self._timers = Deadlines(self._nursery)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        assert self._nursery_manager is not None
        nursery, self._nursery = self._nursery, None
        for target in self._targets.values():
            self._serve(target)
        nursery.cancel_scope.cancel()
        try:
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our tasks.
            await self._nursery_manager.__aexit__(None, None, None)
        finally:
            self._nursery_manager = None
            for target in self._targets.values():
                target.dialling_works()
            self._targets.clear()

    # ------------------------------------------------------------------ leases

    async def get_conn(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> PoolConn:
        """A connection to `address` (`HOST:PORT` or `unix:PATH`) with a place for one stream. Close it when done.

        Answers without waiting if there is one; otherwise waits for a dial, or in line. Cancellation gives the place
        back. Raises `UpstreamUnavailable` if the upstream cannot be reached, `PoolExhausted` if the line is full,
        `ConfigError` if `address` is none or the pool is not open. `ssl_context` should offer `h2` by ALPN.
        """
        return PoolConn(await self.target(address, ssl_context=ssl_context).take())

    def get_conn_nowait(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> PoolConn | None:
        """What `get_conn` mostly comes to: the newest connection with room. None: `await get_conn(...)`.

        For code that is no coroutine. A director does better to answer a `target`.
        """
        target = self._targets.get((address, ssl_context))
        conn = None if target is None else target.take_now()
        return None if conn is None else PoolConn(conn)

    def target(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> Target:
        """What a director answers for the proxy to take a place on a connection to `address` itself.

        Costs a look into a dictionary; may be kept, and made before the pool is open. Raises `ConfigError` if
        `address` is none.
        """
        key = (address, ssl_context)
        target = self._targets.get(key) or self._known_targets.get(key)
        if target is None:
            target = self._known_targets[key] = Target(self, key, self._limits)
        return target

    def release(self, address: str, conn: PoolConn, err: BaseException | None) -> None:
        """Take `conn` back from one call. With an error, it takes no new calls and is closed once it has none.

        Raises `ValueError` for a connection that is not of this pool and address, or has been given back already.
        """
        if conn.pool is not self or address != conn.address:
            raise ValueError(f"{conn!r} is no connection of this pool to {address!r}")
        shared = conn.hand_over()
        if err is not None and shared.phase is _READY:
            shared.drain(
                err
                if isinstance(err, ProxyError)
                else ConnectionGone(f"given back with {type(err).__name__}")
            )
        self._give_back(shared, failed=err is not None)

    def explain(self, address: str, *, ssl_context: ssl.SSLContext | None = None) -> list[str]:
        """Say of each connection to `address`, newest first, why the next call would or would not get it."""
        target = self._targets.get((address, ssl_context))
        if target is None:
            return [f"there is no connection to {address}"]
        now, record = trio.current_time(), target.record
        lines = []
        for conn in [*reversed(record.with_room), *reversed(record.busy), *reversed(record.leaving)]:
            objection = record.objection(conn, now)
            verdict = "has room" if objection is None else objection.value
            lines.append(f"{verdict}: {conn.streams} of {record.limit_of(conn)} streams")
        if now < target.retry_at:
            lines.append(f"dialling pauses for {target.retry_at - now:.2f} s: {target.trouble}")
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

    async def _take(self, target: Target, other_than: PooledConnection | None = None) -> PooledConnection:
        """A place on a connection, but on `other_than` only if nothing else can be had."""
        if self._nursery is None:
            raise ConfigError("the pool is not open: use it inside `async with Pool(...) as pool:`")
        self._targets.setdefault(target.key, target)
        target.asked_at = now = self._now()
        conn = None
        if not target.line:
            conn = self._pick(target, other_than)
            if conn is None and other_than is not None:
                conn = self._dial(target) or self._pick(target)
        if conn is not None and conn.phase is _READY:
            return conn
        caller = _Caller(now)
        if conn is not None:
            _place(caller, conn)
        else:
            self._stand_in_line(target, caller)
        try:
            with trio.move_on_at(caller.since + self._connect_wait_s):
                await caller.settled.wait()
            if not caller.settled.is_set():
                if caller in target.line and self._nothing_else_to_be_had(target):
                    caller.fail(self._problem(target))
                    target.line.remove(caller)
                await caller.settled.wait()
        except BaseException:
            self._leave(target, caller)
            raise
        if caller.conn is None:
            assert caller.problem is not None
            raise caller.problem
        return caller.conn

    def _give_back(self, conn: PooledConnection, *, failed: bool = False) -> None:
        target = conn._target
        if target.line and conn.streams and not (failed or conn.pooled) and self._is_fit(conn):
            # It would be closed, while somebody stands in line.
            _place(target.line.popleft(), conn)
            return
        if target.record.release(conn, self._now(), failed=failed):
            conn._end()
        if target.line:
            self._serve(target)

    def _is_fit(self, conn: PooledConnection) -> bool:
        """Whether the place of a call on it may be another's next."""
        record = conn._target.record
        return (
            conn.phase is _READY
            and conn.streams <= record.limit_of(conn)
            and self._now() <= record.expires_at(conn)
        )

    def _give_back_soon(self, conn: PooledConnection) -> None:
        """From the garbage collector: in any thread, and in the middle of anything."""
        if self._trio is not None:
            with contextlib.suppress(trio.RunFinishedError, OSError):  # OSError: it is just finishing
                self._trio.run_sync_soon(conn.give_back)

    def _leave(self, target: Target, caller: _Caller) -> None:
        """A caller is cancelled, wherever it waits, or in the very moment in which it has got a connection."""
        conn = caller.conn
        if conn is not None:
            if caller in conn._sharing:
                conn._sharing.remove(caller)
            self._give_back(conn)
        elif caller in target.line:
            target.line.remove(caller)

    # ---------------------------------------------------------------- the line

    def _stand_in_line(self, target: Target, caller: _Caller) -> None:
        line = target.line
        line.append(caller)
        self._serve(target)
        refusal = self._refusal(target)
        if refusal is not None:
            self._refuse(target, refusal)

    def _refusal(self, target: Target) -> str | None:
        """Why the last of those in line may not wait there, if so."""
        record, others = target.record, len(target.line) - 1
        if self._max_waiting is None:
            return None  # `_serve` has seen to it
        if self._is_full and others >= self._max_waiting:
            return self._all_in_use()
        to_come = 0 if target.trouble is None else (self._limits.size - record.count) * self._limits.ms
        if others >= self._max_waiting + max(to_come, 0):
            count = record.count
            return f"none of the {count} connections to {target.parsed} has room, and {others} calls wait already"
        return None

    def _refuse(self, target: Target, refusal: str) -> None:
        """There is one too many in line. A connection in doubt is better than none."""
        conn = target.record.pick_in_doubt()
        if conn is not None:
            _place(target.line.popleft(), conn)
        else:
            target.line.pop().fail(PoolExhausted(refusal))

    @property
    def _is_full(self) -> bool:
        return self._max_connections is not None and self._connections >= self._max_connections

    def _all_in_use(self) -> str:
        return (
            f"all {self._connections} connections to upstreams are in use, as many as may be (max_connections; "
            "the command's follows from the limit on open files)"
        )

    def _make_room(self, target: Target) -> int:
        """End connections that nobody uses, for those in line; answer how many calls will find room by that."""
        ms = self._limits.ms
        while len(target.line) > ms * len(self._making_room):
            unused = next(filter(None, (other.record.unused for other in self._targets.values())), None)
            if unused is None:
                break
            self._making_room.add(unused)
            unused._target.record.remove(unused)
            unused._end()
        return ms * len(self._making_room)

    def _serve(self, target: Target) -> None:
        """Give those who stand in line what there is, first come first served."""
        line = target.line
        while line:
            conn = self._pick(target) or self._dial(target)
            if conn is None:
                break
            _place(line.popleft(), conn)
        if not line:
            return
        if self._nursery is None:
            while line:
                line.popleft().fail(UpstreamUnavailable("the pool is closed"))
        elif target.trouble is not None:
            if trio.current_time() >= target.retry_at:
                self._probe(target)
            if self._nothing_else_to_be_had(target):
                overdue = trio.current_time() - self._connect_wait_s
                while line and line[0].since <= overdue:
                    line.popleft().fail(self._problem(target))
        elif self._is_full and (self._max_waiting is None or target.record.may_grow):
            room = self._make_room(target)
            while self._max_waiting is None and len(line) > room:
                self._refuse(target, self._all_in_use())

    def _nothing_else_to_be_had(self, target: Target) -> bool:
        """Whether those in line have but the next dial to wait for."""
        return target.trouble is not None and not (self._max_waiting is not None and target.record.count)

    def _problem(self, target: Target) -> RpcError:
        """The error of a call that has waited for a dial long enough. Each call's own: what is raised is changed."""
        trouble = target.trouble
        assert trouble is not None
        pause = target.retry_at - trio.current_time()
        message = f"{trouble.message} (next try in {pause:.1f} s)" if pause > 0 else trouble.message
        if isinstance(trouble, UpstreamUnavailable):
            return UpstreamUnavailable(message, side=trouble.side)
        return RpcError(trouble.status, message, side=trouble.side, origin="proxy")

    def _pick(self, target: Target, other_than: PooledConnection | None = None) -> PooledConnection | None:
        picked = target.record.pick(self._now(), other_than)
        for conn in picked.close:
            conn._end()
        return picked.connection

    def _retire(self, conn: PooledConnection) -> None:
        """It takes no more calls; others may want a new one for it."""
        target = conn._target
        if target.record.retire(conn):
            conn._end()
        self._serve(target)

    # ----------------------------------------------------------------- dialling

    def _dial(self, target: Target) -> PooledConnection | None:
        """Begin to dial, if that may be done now. The connection has one stream already, its first caller's."""
        record = target.record
        if self._nursery is None or target.trouble is not None:
            return None
        if self._is_full or (self._max_waiting is not None and not record.may_grow):
            return None
        conn = PooledConnection(target, trio.current_time(), streams=1)
        if record.may_grow:
            record.add(conn)
        self._start(conn)
        return conn

    def _probe(self, target: Target) -> None:
        """Begin the next dial to an upstream in trouble, for whoever stands in line when it is done."""
        if target.dialling or self._is_full or (self._max_waiting is not None and not target.record.may_grow):
            return
        self._start(PooledConnection(target, trio.current_time(), streams=0))

    def _start(self, conn: PooledConnection) -> None:
        assert self._nursery is not None
        conn._target.connections += 1
        conn._target.dialling += 1
        self._connections += 1
        self._nursery.start_soon(self._run, conn)

    async def _run(self, conn: PooledConnection) -> None:
        """Dial, then see the connection to its end."""
        target = conn._target
        try:
            with conn._scope:
                async with trio.open_nursery() as nursery:
                    connection = await self._connect(conn, nursery)
                    self._dial_succeeded(conn, connection)
                    # "Past its ttl" is strict.
                    await trio.sleep_until(math.nextafter(target.record.expires_at(conn), math.inf))
                    self._retire(conn)
        except BaseException as raised:  # noqa: BLE001  # of this connection alone; what is not ours goes on
            others = self._failed(conn, raised)
            if others is not None:
                raise others from None
        finally:
            if conn.phase is Phase.CONNECTING:
                self._dial_ended(conn, UpstreamUnavailable("the pool is closed"))
            target.connections -= 1
            self._connections -= 1
            self._making_room.discard(conn)
            self._forget_if_unused(target)
            if self._max_connections is not None and self._connections + 1 >= self._max_connections:
                for other in list(self._targets.values()):
                    self._serve(other)  # there is room for one of theirs now

    async def _connect(self, conn: PooledConnection, nursery: trio.Nursery) -> Connection:
        """Dial, and greet whoever answers. What is tried on the way lives in `nursery`, and is closed."""
        tried: list[Connection] = []
        chosen: Connection | None = None

        async def greet(transport: Transport) -> Connection:
            connection = Connection(
                transport,
                self._settings,
                client_side=True,
                on_limit=partial(tell, self._observer, "limit_reached", conn.address),
                on_change=lambda: self._changed(conn, connection),
            )
            tried.append(connection)
            nursery.start_soon(self._run_connection, conn, connection)
            # The first SETTINGS tell how many streams the peer allows, and that it speaks HTTP/2 at all.
            await connection.ready.wait()
            self._check_open(conn, connection)
            return connection

        try:
            chosen = await dial(
                conn._target.parsed,
                ssl_context=conn._target.ssl_context,
                timeout_s=self._dial_timeout_s,
                greet=greet,
                loop_guard=self._loop_guard,
            )
            self._check_open(conn, chosen)
        finally:
            for connection in tried:
                if connection is not chosen:
                    connection.close()
        return chosen

    def _check_open(self, conn: PooledConnection, connection: Connection) -> None:
        if isinstance(connection.error, ProxyFault):
            raise connection.error
        if connection.state is not _OPEN:
            raise UpstreamUnavailable(f"{conn._target.parsed}: {connection.error}")

    async def _run_connection(self, conn: PooledConnection, connection: Connection) -> None:
        """Run it to its end, whatever that is, and let the observer hear if it was none in good order."""
        assert self._timers is not None
        target = conn._target
        interval_s = target.keepalive_s
        keepalive = Keepalive(
            connection,
            self._timers.add,
            interval_s=interval_s,
            timeout_s=self._settings.keepalive_timeout_s,
        )
        try:
            await connection.run()
        except BaseException as raised:  # noqa: BLE001  # as in `_run`
            faults, others = _ours(raised)
            if faults is not None:
                connection.error = ProxyFault(faults, side=Side.UPSTREAM)
            if others is not None:
                raise others from None
        finally:
            keepalive.stop()
        error = connection.error
        if error is not None and pinged_too_often(error):
            # Of what this one had: others may have been told so at the same time.
            target.keepalive_s = max(target.keepalive_s, 2 * interval_s)
        if conn._connection is connection:
            assert error is not None
            orderly = isinstance(error, ConnectionGone) and not error.error_code
            if not orderly or conn._cut_off or conn.streams:
                tell(self._observer, "upstream_failed", conn.address, error)
            conn._scope.cancel()

    def _failed(self, conn: PooledConnection, raised: BaseException) -> BaseException | None:
        """Take what was raised by a dial, or by a connection; answer what is none of this connection's faults."""
        fault, others = _ours(raised)
        if fault is not None:
            error = fault if isinstance(fault, ProxyError) else ProxyFault(fault, side=Side.LOCAL)
            if conn.phase is Phase.CONNECTING:
                self._dial_failed(conn, error)
            else:
                tell(self._observer, "upstream_failed", conn.address, error)
        return others

    def _dial_succeeded(self, conn: PooledConnection, connection: Connection) -> None:
        """Those who share the dial get the connection, as many as the peer allows; the others are first in line."""
        target, record, now = conn._target, conn._target.record, trio.current_time()
        conn.peer_limit = target.peer_limit = connection.session.peer_max_concurrent_streams
        if conn.peer_limit:
            target.dialling_works()
        else:
            trouble = UpstreamUnavailable(f"{target.parsed} allows no streams at present")
            self._back_off(conn, trouble)
            tell(self._observer, "upstream_failed", conn.address, trouble)
        conn._connection, conn.created_at = connection, now
        target.dialling -= 1
        sharing, conn._sharing = conn._sharing, []
        limit = record.limit_of(conn)
        for caller in sharing[:limit]:
            caller.settled.set()
        for caller in reversed(sharing[limit:]):
            caller.conn = None
            target.line.appendleft(caller)
            if record.release(conn, now, failed=False):
                conn._end()
        if not sharing and not conn.pooled and limit:
            # A probe. Beyond `size` it is one caller's own, as any other.
            if record.may_grow:
                record.add(conn)
            elif target.line:
                conn.streams += 1
                _place(target.line.popleft(), conn)
        self._serve(target)
        if not conn.streams and not (conn.pooled and record.idle <= self._limits.idle):
            record.remove(conn)
            conn._end()

    def _dial_failed(self, conn: PooledConnection, error: ProxyError) -> None:
        if isinstance(error, RpcError):
            self._back_off(conn, error)
        else:
            self._back_off(conn, RpcError(Status.INTERNAL, error.message, side=error.side, origin="proxy"))
        self._dial_ended(conn, error)
        tell(self._observer, "upstream_failed", conn.address, error)

    def _dial_ended(self, conn: PooledConnection, error: ProxyError) -> None:
        """A dial has come to nothing; those who share it are first in line for the next one."""
        target = conn._target
        target.dialling -= 1
        target.record.remove(conn)
        conn.err = error
        sharing, conn._sharing = conn._sharing, []
        for caller in reversed(sharing):
            conn.streams -= 1
            caller.conn = None
            target.line.appendleft(caller)
        self._serve(target)
        if self._nursery is None or target.trouble is None or target.dialling:
            return
        if trio.current_time() >= target.retry_at:
            # Given up, and it was under way when the pause was over: nobody else would dial.
            self._nursery.start_soon(self._dial_again, target, target.retry_at)

    def _back_off(self, conn: PooledConnection, trouble: RpcError) -> None:
        """A dial has failed: see that the next one comes, in time."""
        target, now = conn._target, trio.current_time()
        target.trouble = trouble
        if self._nursery is None or conn.created_at < target.retry_at > now:
            return  # it was under way when another one failed: one outage counts once
        if trouble.side is Side.LOCAL:
            target.retry_at = now + _PAUSE_OWN_FAULT_S
        else:
            spread = self._rng.uniform(1 - _PAUSE_JITTER, 1 + _PAUSE_JITTER)
            pause = 0.0
            if target.failures:
                pause = min(_PAUSE_FIRST_S * _PAUSE_FACTOR ** min(target.failures - 1, 10), _PAUSE_MAX_S)
            # From when it began: one that has waited for an answer has been a pause already.
            target.retry_at = max(conn.created_at + pause * spread, now + _RETRY_AT_ONCE_S * spread)
            target.failures += 1
        self._nursery.start_soon(self._dial_again, target, target.retry_at)

    async def _dial_again(self, target: Target, retry_at: float) -> None:
        """Dial when the pause is over, if somebody waits for it, or may come."""
        await trio.sleep_until(retry_at)
        trouble = target.trouble
        if trouble is None or target.retry_at != retry_at:
            return
        lately = trouble.side is not Side.LOCAL and trio.current_time() <= target.asked_at + _DEMAND_S
        if target.line or lately:
            self._probe(target)
        if not target.dialling:
            target.dialling_works()  # for all that is known; the next call will find out
            self._serve(target)
            self._forget_if_unused(target)

    def _forget_if_unused(self, target: Target) -> None:
        if target.unused:
            self._targets.pop(target.key, None)

    # -------------------------------------------------------------- connections

    def _changed(self, conn: PooledConnection, connection: Connection) -> None:
        """SETTINGS, GOAWAY, a closed stream, a PING or its answer, or the end."""
        target = conn._target
        if conn._connection is not connection:
            return  # while it is dialled, `_connect` looks
        if connection.state is _OPEN:
            limit = connection.session.peer_max_concurrent_streams
            if limit == conn.peer_limit and connection.in_doubt == conn.in_doubt:
                return
            conn.in_doubt = connection.in_doubt
            if limit != conn.peer_limit:
                conn.peer_limit = target.peer_limit = limit
                if limit:
                    target.dialling_works()
            target.record.refresh(conn)
        else:
            conn.err = conn.err or connection.error
            if connection.state is ConnectionState.CLOSED:
                target.record.remove(conn)
            elif conn.pooled:
                target.record.retire(conn)
        self._serve(target)


def _place(caller: _Caller, conn: PooledConnection) -> None:
    """The caller's place is on `conn`, which it gets now or once it is dialled."""
    caller.conn = conn
    if conn.phase is Phase.CONNECTING:
        conn._sharing.append(caller)
    else:
        caller.settled.set()


def _ours(raised: BaseException) -> tuple[Exception | None, BaseException | None]:
    """What of this was a fault of one connection, and what was not: cancellation, Ctrl-C."""
    if isinstance(raised, Exception):
        fault: Exception | None = raised
        others: BaseException | None = None
    elif isinstance(raised, BaseExceptionGroup):
        fault, others = raised.split(Exception)
    else:
        return None, raised
    while isinstance(fault, ExceptionGroup) and len(fault.exceptions) == 1:
        fault = fault.exceptions[0]
    return fault, others
