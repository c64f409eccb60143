"""`Mirror`: sends a copy of calls to a second upstream, the shadow, and compares the statuses. Nobody waits for it.

    the call's request ──► its upstream
                      └──► the shadow, whose response is read, credited, and thrown away

A copy is bounded in all it takes: so many at a time, so many bytes of each that the shadow has not taken yet, and so
many of all together. What would be beyond that ends the copy (CANCEL), never the call, which is not slowed down either:
its frames go to its upstream first, and a copy neither holds credit back nor is waited for. A copy needs a task only
while it waits for a connection.

What it does not do: move a copy on once that has a connection (`shadow_call.py`); be the reason for a call's end.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from types import TracebackType
from typing import Self

import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Endpoint
from rawgrpc_proxy.errors import ConfigError, ProxyError, RpcError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.limits.concurrency import Places
from rawgrpc_proxy.net.timers import Timer, Timers
from rawgrpc_proxy.proxy.shadow_call import ShadowCall
from rawgrpc_proxy.upstream.target import Target

MARK = (b"x-rawgrpc-mirror", b"1")
"""By this the shadow knows a copy. `:authority` stays as it is: servers choose by it what they serve, and check it."""
DROPS = ("calls", "bytes", "headers", "unreachable", "overflow", "late", "fault")
"""Why copies are given up: too many at a time; the shadow does not take them fast enough, or takes no headers of that
length; it has no connection; its limits are reached; it does not end in time; something here is at fault."""


class Mirror:
    """Copies a share of the calls that have it in their policy to a target or a cluster, as long as it is open.

    `max_calls` copies may be under way; `max_call_buffered_bytes` of one, and `max_buffered_bytes` of all, may wait for
    the shadow to take them. Use it as `async with Mirror(...) as mirror:`; leaving gives up what is under way.

    `sent` counts copies that the shadow got, `same` and `different` those that ended with the status of their call or
    another one, `given_up` those whose call did not end by a status of its upstream, and `dropped` others by why.
    """

    def __init__(
        self,
        where: Target | Cluster,
        *,
        share: float = 1.0,
        max_calls: int = 100,
        max_call_buffered_bytes: int = 1024 * 1024,
        max_buffered_bytes: int = 16 * 1024 * 1024,
        rng: Random | None = None,
    ) -> None:
        """Raise `ConfigError` for what cannot work."""
        if not 0 <= share <= 1:
            raise ConfigError(f"the share of calls that are copied is {share!r}; it must be between 0 and 1")
        if max_calls < 1:
            raise ConfigError(f"max_calls is {max_calls}; it must be 1 or more")
        self._where = where
        self._share = share
        self._max_calls = max_calls
        self._max_call_buffered_bytes = max_call_buffered_bytes
        self._max_buffered_bytes = max_buffered_bytes
        self._rng = rng or Random()  # noqa: S311  # no secret
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._timers: Timers | None = None
        self._copies: set[ShadowCall] = set()
        self.waiting_bytes = 0
        """What waits for the shadow to take it."""
        self.sent = self.same = self.different = self.given_up = 0
        self.dropped = dict.fromkeys(DROPS, 0)

    async def __aenter__(self) -> Self:
        if self._nursery is not None:
            raise ConfigError("the mirror is open already")
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._timers = Timers(self._nursery)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        assert self._manager is not None
        self._nursery.cancel_scope.cancel()
        self._nursery = self._timers = None
        for copy in list(self._copies):
            copy.give_up()
        # Without the block's own error, which goes on as it is, and not in a group for the sake of our tasks.
        await self._manager.__aexit__(None, None, None)

    @property
    def open_copies(self) -> int:
        """How many are under way."""
        return len(self._copies)

    def begin(
        self, context: CallContext, headers: Headers, end_stream: bool, deadline: float | None
    ) -> ShadowCall | None:
        """Begin to copy a call. Neither waits nor raises."""
        if self._nursery is None or (self._share < 1 and self._rng.random() >= self._share):
            return None
        if len(self._copies) >= self._max_calls:
            self.dropped["calls"] += 1
            return None
        copy = ShadowCall(self, [*headers, MARK], end_stream, deadline)
        self._copies.add(copy)
        try:
            self._send(copy, context, self._nursery)
        except RpcError:
            copy.drop("overflow")
        except Exception:  # noqa: BLE001  # a balancer of the user's; the call itself must not suffer
            copy.drop("fault")
        return None if copy.is_over else copy

    def _send(self, copy: ShadowCall, context: CallContext, nursery: trio.Nursery) -> None:
        where = self._where
        endpoint: Endpoint | None = None
        if isinstance(where, Cluster):
            if where.limits:
                copy.places = Places.of(where.limits)
            endpoint = where.pick(context)
            target = None if endpoint is None else endpoint.target
        else:
            target = where
        conn = None if target is None else target.take_now()
        if conn is not None:
            if conn.has_room:
                copy.open(conn)
                return
            conn.give_back()
        copy.waits_in = trio.CancelScope()
        nursery.start_soon(self._send_later, copy, copy.waits_in, context, endpoint)

    async def _send_later(
        self, copy: ShadowCall, scope: trio.CancelScope, context: CallContext, endpoint: Endpoint | None
    ) -> None:
        where = self._where
        with scope:
            try:
                if isinstance(where, Cluster):
                    conn = (await where.take(context, first=endpoint)).conn
                else:
                    conn = await where.take()
            except ProxyError:
                copy.drop("unreachable")
            except Exception:  # noqa: BLE001  # as in `begin`
                copy.drop("fault")
            else:
                copy.waits_in = None
                if copy.is_over or not conn.has_room:
                    conn.give_back()
                    copy.drop("unreachable")
                else:
                    copy.open(conn)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer | None:
        """Call back then, unless the mirror is closed."""
        return None if self._timers is None else self._timers.add(when, callback)

    def may_wait(self, size: int, of_copy: int) -> bool:
        """Whether `size` bytes more may wait, of a copy that would then have `of_copy`."""
        return (
            of_copy <= self._max_call_buffered_bytes and self.waiting_bytes + size <= self._max_buffered_bytes
        )

    def forget(self, copy: ShadowCall) -> None:
        """It is over."""
        self._copies.discard(copy)
