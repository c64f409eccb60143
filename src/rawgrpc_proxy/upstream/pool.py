"""`Pool`: the connections to upstreams, by their addresses. What belongs to one address is in its `Target`.

A pool owns the tasks of its connections, so it is a context manager: leaving it ends them.
"""

import random
import weakref
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import attrs
import trio

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError, ConnectionGone, ProxyError
from rawgrpc_proxy.net.dial import Connect
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.tapped import Tap, Wrap
from rawgrpc_proxy.net.timers import Timers
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.tell import hearing
from rawgrpc_proxy.upstream.choice import Phase, PoolLimits
from rawgrpc_proxy.upstream.lease import PoolConn
from rawgrpc_proxy.upstream.state import Key, PoolState
from rawgrpc_proxy.upstream.target import Target


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
    for `connect_wait_s` seconds at the most (0: not at all), and then fail with the cause. A peer that allows no
    streams at all counts as a failed dial. Where this process lacks something, like file descriptors, the upstream is
    not blamed: the calls wait just so, the error says what is missing, and the next call dials.

    `dial_timeout_s` covers all up to the upstream's first SETTINGS: name, TCP, TLS, HTTP/2. The original has 1 s; a
    lost SYN is only sent again after that time. Of a name with several addresses another one is tried when the first
    fails, or has not said anything in a third of the time. `observer` hears of failed dials and connections.

    `max_connections` bounds the connections to all addresses together. Beyond it those without calls make room for
    others; where there are none, calls stand in line, or without `max_waiting` are RESOURCE_EXHAUSTED. With a
    `loop_guard` no connection leads to the proxy itself. `tap` sees all bytes of the connections that it asks for,
    `wrap` puts something between them and the upstreams. `connect` makes connections in a way of its own, in memory for
    one: it gets the address (`net.address.Address`), and answers a trio stream, or raises `OSError`; there is no TLS
    on it.

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
        connect_wait_s: float = 1.0,
        loop_guard: LoopGuard | None = None,
        settings: Http2Settings | None = None,
        observer: PoolObserver | None = None,
        tap: Tap | None = None,
        connect: Connect | None = None,
        wrap: Wrap | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for numbers that cannot work."""
        if not (
            size >= 0
            and ttl >= 0
            and dial_timeout_s > 0
            and connect_wait_s >= 0
            and (max_waiting is None or max_waiting >= 0)
        ):
            raise ConfigError(
                "a pool needs size >= 0, ttl >= 0, max_waiting >= 0, connect_wait_s >= 0 and dial_timeout_s > 0"
            )
        if max_connections is not None and max_connections < 1:
            raise ConfigError("a pool needs max_connections >= 1, or None")
        if size == 0 and max_waiting is not None:
            raise ConfigError(
                "a pool with max_waiting has a hard cap: a size of 0 would never let a call through"
            )
        self._state: PoolState[Target] = PoolState(
            limits=PoolLimits(size=size, ttl_s=ttl, idle=max(idle, 0), ms=max(ms, 1)),
            max_waiting=max_waiting,
            max_connections=max_connections,
            dial_timeout_s=dial_timeout_s,
            connect_wait_s=connect_wait_s,
            loop_guard=loop_guard,
            settings=settings or Http2Settings(),
            observer=observer,
            tap=tap,
            connect=connect,
            wrap=wrap,
            rng=rng or random.Random(),  # noqa: S311  # jitter, not a secret
        )
        self._targets: weakref.WeakValueDictionary[Key, Target] = weakref.WeakValueDictionary()
        """One for each key, as long as anybody holds it; `_state.in_use` holds those that are in use."""
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            raise ConfigError("the pool is open already; each place that needs a pool of its own makes one")
        state = self._state
        state.now = trio.lowlevel.current_clock().current_time
        state.hear_placed = hearing(state.observer, "call_placed")
        state.token = trio.lowlevel.current_trio_token()
        self._nursery_manager = trio.open_nursery()
        state.nursery = await self._nursery_manager.__aenter__()
        state.timers = Timers(state.nursery)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        nursery, state.nursery = state.nursery, None
        assert nursery is not None
        assert self._nursery_manager is not None
        for target in state.in_use.values():
            target.serve()
        nursery.cancel_scope.cancel()
        try:
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our tasks.
            await self._nursery_manager.__aexit__(None, None, None)
        finally:
            self._nursery_manager = None
            for target in state.in_use.values():
                target.forget_trouble()
            state.in_use.clear()

    @property
    def most_ready(self) -> int:
        """How many connections to one address can be kept ready (`target.keep_ready`): what it keeps without calls."""
        return min(self._state.limits.idle, self._state.limits.size)

    @property
    def observer(self) -> PoolObserver | None:
        """Who hears of its connections."""
        return self._state.observer

    @property
    def is_open(self) -> bool:
        """Whether it may be used: inside its `async with`."""
        return self._state.nursery is not None

    # ------------------------------------------------------------------ leases

    async def get_conn(
        self, address: str, *, ssl_context: TlsContext | None = None, server_name: str | None = None
    ) -> PoolConn:
        """A connection to `address` (`HOST:PORT` or `unix:PATH`) with a place for one stream. Close it when done.

        Answers without waiting if there is one; otherwise waits for a dial, or in line. Cancellation gives the place
        back. Raises `UpstreamUnavailable` if the upstream cannot be reached, `PoolExhausted` if the line is full,
        `ConfigError` if `address` is none or the pool is not open. `ssl_context` should offer `h2` by ALPN.
        `server_name` as for `target`.
        """
        target = self.target(address, ssl_context=ssl_context, server_name=server_name)
        return PoolConn(self, await target.take())

    def get_conn_nowait(
        self, address: str, *, ssl_context: TlsContext | None = None, server_name: str | None = None
    ) -> PoolConn | None:
        """What `get_conn` mostly comes to: the newest connection with room. None: `await get_conn(...)`.

        For code that is no coroutine. A director does better to answer a `target`.
        """
        target = self._state.in_use.get(_key(address, ssl_context, server_name))
        conn = None if target is None else target.take_now()
        return None if conn is None else PoolConn(self, conn)

    def target(
        self, address: str, *, ssl_context: TlsContext | None = None, server_name: str | None = None
    ) -> Target:
        """What a director answers for the proxy to take a place on a connection to `address` itself.

        With TLS the certificate has to be for the context's own `server_name` (`upstream_context`), else for the
        `server_name` given here, which an address that was found by DNS has from the name, else for the host.

        Costs a look into a dictionary; may be kept, and made before the pool is open. Raises `ConfigError` if
        `address` is none.
        """
        key = _key(address, ssl_context, server_name)
        target = self._state.in_use.get(key) or self._targets.get(key)
        if target is None:
            target = self._targets[key] = Target(key, self._state)
        return target

    def release(self, address: str, conn: PoolConn, err: BaseException | None) -> None:
        """Take `conn` back from one call. With an error, it takes no new calls and is closed once it has none.

        Raises `ValueError` for a connection that is not of this pool and address, or has been given back already.
        """
        if conn.pool is not self or address != conn.address:
            raise ValueError(f"{conn!r} is no connection of this pool to {address!r}")
        shared = conn.hand_over()
        if err is not None and shared.phase is Phase.READY:
            shared.drain(
                err
                if isinstance(err, ProxyError)
                else ConnectionGone(f"given back with {type(err).__name__}")
            )
        shared.owner.give_back(shared, failed=err is not None)

    def explain(
        self, address: str, *, ssl_context: TlsContext | None = None, server_name: str | None = None
    ) -> list[str]:
        """Say of each connection to `address`, newest first, why the next call would or would not get it."""
        target = self._state.in_use.get(_key(address, ssl_context, server_name))
        return (target and target.explain()) or [f"there is no connection to {address}"]

    def stats(self) -> dict[str, PoolStats]:
        """Counts for each address, whatever the TLS configuration."""
        sums: dict[str, PoolStats] = {}
        for (address, _, _), target in self._state.in_use.items():
            record, so_far = target.record, sums.get(address, PoolStats(0, 0, 0, 0))
            sums[address] = PoolStats(
                with_room=so_far.with_room + len(record.with_room),
                busy=so_far.busy + len(record.busy),
                idle=so_far.idle + record.idle,
                waiting=so_far.waiting + target.waiting,
            )
        return sums


def _key(address: str, ssl_context: TlsContext | None, server_name: str | None) -> Key:
    # Without TLS there is no name to check, and connections need not be told apart by it.
    return address, ssl_context, None if ssl_context is None else server_name
