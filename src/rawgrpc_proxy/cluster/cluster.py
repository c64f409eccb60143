"""`Cluster`: endpoints that are as good as each other, and which of them a call gets.

    source ──finds──► endpoints ──fit ones──► rotation ──balancer──► one for each call

An endpoint is fit unless it drains, is ejected, or failed its health checks. If too few are fit, it is the checks that
are doubted, and all are in rotation (panic). Of those in rotation whoever cannot be connected to gets calls only if
there is nobody else. What it does not do: dial (`upstream/target.py`), look addresses up (`discovery/`).

The invariant: the rotation follows from the endpoints' states; whatever changes one of them calls `refresh`.
"""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.call_policy import CallLimit
from rawgrpc_proxy.cluster.affinity import affinity
from rawgrpc_proxy.cluster.balance import Balancer
from rawgrpc_proxy.cluster.balance_settings import Balance
from rawgrpc_proxy.cluster.client_place import ClientPlace
from rawgrpc_proxy.cluster.ejection import Ejector
from rawgrpc_proxy.cluster.endpoint import Endpoint, Place
from rawgrpc_proxy.cluster.health_check import HealthChecks
from rawgrpc_proxy.cluster.health_settings import HealthCheck
from rawgrpc_proxy.cluster.lease import ClusterConn
from rawgrpc_proxy.cluster.outlier_settings import OutlierDetection
from rawgrpc_proxy.cluster.slow_start import SlowStart
from rawgrpc_proxy.cluster.slow_starter import SlowStarter
from rawgrpc_proxy.cluster.watcher import Watcher
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.source import Source, StaticSource
from rawgrpc_proxy.errors import ConfigError, PoolExhausted, RpcError, Side, UpstreamUnavailable
from rawgrpc_proxy.grpc.retry_policy import RetryThrottling
from rawgrpc_proxy.limits.concurrency import ConcurrencyLimit, Places
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.observe.tell import report
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.pooled import PooledConnection

PANIC = "too few are fit for calls: all get some"
_MOST_TRIED = 16
"""Of endpoints that have no room: if none of so many has, the call is refused."""
_FIRST_LOOK_UP_S = 3.0
"""How long calls wait for the first addresses: no longer than for a backend that is down."""


class Cluster:
    """Endpoints that are as good as each other: what a director answers, for the proxy to choose one of them.

    `endpoints` are addresses (`HOST:PORT` or `unix:PATH`), or a source of them. The connections are those of `pool`,
    which has to be open as long as the cluster is; its limits are for each endpoint. `name` is for people. No more
    than `max_requests` calls are under way at a time, and no more than `max_pending` wait for a connection; and each
    call needs a place of each of the `limits`. That holds calls that are passed on, or made by a `Client`, unless their
    director has leased a connection.

    `balance` says which endpoint a call gets: "round_robin", "least_request", "ring_hash", "pick_first", or a
    `Balance`. A `balancer` of one's own does that instead, and `key_of` answers what it goes by if it sends like calls
    to the same endpoint. With `slow_start` an endpoint that joins, or comes back, gets its share little by little. Of
    each endpoint `min_idle` connections are ready before calls need them.

    With `health` endpoints are asked how they are, and with `outlier` those whose calls go badly have a rest. When
    fewer than `panic_threshold` of the endpoints (0 to 1) are fit for calls, all get some; 0 turns that off. The pool's
    observer hears of it.

    `retry_throttling` stops retries and hedging by policy while too many attempts fail.

    Use it as `async with Cluster(...) as cluster:`; leaving ends what it does in the background, and no call.
    """

    def __init__(  # noqa: PLR0913  # all that one may want of a cluster, each with a default
        self,
        endpoints: Iterable[str | EndpointAddress] | Source,
        *,
        pool: Pool,
        name: str = "",
        ssl_context: TlsContext | None = None,
        balance: Balance | str = "round_robin",
        balancer: Balancer[Endpoint] | None = None,
        key_of: Callable[[CallContext], bytes | None] | None = None,
        slow_start: SlowStart | None = None,
        min_idle: int = 0,
        health: HealthCheck | None = None,
        outlier: OutlierDetection | None = None,
        panic_threshold: float = 0.5,
        limits: Iterable[CallLimit] = (),
        max_requests: int | None = None,
        max_pending: int | None = None,
        rng: random.Random | None = None,
        retry_throttling: RetryThrottling | None = None,
    ) -> None:
        """Raise `ConfigError` for what cannot work."""
        if max_pending is not None and max_pending < 0:
            raise ConfigError(f"max_pending is {max_pending}; it must be 0 or more")
        if isinstance(endpoints, str):
            raise ConfigError(f"the endpoints of a cluster are a list: write [{endpoints!r}]")
        if not 0 <= panic_threshold <= 1:
            raise ConfigError(f"panic_threshold is {panic_threshold!r}; it must be between 0 and 1")
        self.name = name
        self.endpoints: list[Endpoint] = []
        """Those its source names now."""
        self._draining: list[Endpoint] = []
        self._rotation: list[Endpoint] = []
        """Those that the balancer has."""
        self.limits = (*limits, *_at_once(max_requests))
        """Of each of these a call needs a place, be it let in by whatever route."""
        self.pending = 0
        """Calls that wait for a connection; counted only where there is a `max_pending`."""
        self.overflows = 0
        """Calls that were refused since as many waited."""
        self.max_pending = max_pending
        self.retry_throttling = retry_throttling
        self.panics = False
        """Whether so few are fit that all are in rotation."""
        self.source: Source = StaticSource(endpoints) if isinstance(endpoints, Iterable) else endpoints
        if not 0 <= min_idle <= pool.most_ready:
            raise ConfigError(
                f"min_idle is {min_idle}; it must be between 0 and {pool.most_ready}, which is what the pool keeps"
            )
        self._min_idle = min_idle
        self._pool = pool
        self._ssl_context = ssl_context
        rng = rng or random.Random()  # noqa: S311  # no secret
        if isinstance(balance, str):
            balance = Balance.parse(balance)
        self._balancer: Balancer[Endpoint] = balance.make(rng) if balancer is None else balancer
        self._key_of = key_of
        if balancer is None and balance.policy == "ring_hash":
            self._key_of = affinity(balance.header)
        self._panic_threshold = panic_threshold
        self._watchers: list[Watcher] = []
        if outlier is not None:
            self._watchers.append(
                Ejector(outlier, name=name, refresh=self.refresh, observer=pool.observer, rng=rng)
            )
        self._slow_starter = None if slow_start is None else SlowStarter(slow_start, self.refresh)
        if self._slow_starter is not None:
            self._watchers.append(self._slow_starter)
        if health is not None:
            self._watchers.append(
                HealthChecks(health, name=name, refresh=self._checked, observer=pool.observer, rng=rng)
            )
        self._nursery: trio.Nursery | None = None
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._looked_up = trio.Event()
        """Set when the source has told of endpoints, and one has passed its first check if there are any checks."""

    async def __aenter__(self) -> Self:
        if self._nursery is not None:
            raise ConfigError(f"{self!r} is open already")
        if self._min_idle and not self._pool.is_open:
            raise ConfigError(f"{self!r} keeps connections ready: open its pool first")
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        for watcher in self._watchers:
            watcher.open(self._nursery)
        if isinstance(self.source, StaticSource):
            self.found(self.source.found)
        else:
            self._nursery.start_soon(self.source.watch, self.found)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        assert self._nursery_manager is not None
        self._nursery.cancel_scope.cancel()
        self._nursery = None
        for endpoint in self.endpoints:
            endpoint.target.on_trouble.remove(self._trouble_changed)
            if self._min_idle:
                endpoint.target.keep_ready(0, wanted_by=self)
            for watcher in self._watchers:
                watcher.leave(endpoint)
        self.endpoints = []
        self.refresh()
        # Without the block's own error, which goes on as it is, and not in a group for the sake of our tasks.
        await self._nursery_manager.__aexit__(None, None, None)

    # ------------------------------------------------------------- a place for a call

    def pick(self, context: CallContext, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """The endpoint for this call. None: there is none but those to avoid; `await take(...)` says why."""
        key = None if self._key_of is None else self._key_of(context)
        return self._balancer.pick(key, avoid)

    async def take(
        self, context: CallContext, avoid: Collection[Endpoint] = (), *, first: Endpoint | None = None
    ) -> Place:
        """A place on a connection to one of the endpoints, but those to avoid. Another one is tried if one fails.

        `first` has been picked for the call already. Waits for the first addresses, and as `Pool.get_conn`, whose
        errors it raises: those of the last endpoint tried.
        """
        if not self._looked_up.is_set() or self._nursery is None:
            await self._first_look_up()
        tried = list(avoid)
        problem: RpcError | None = None
        while (endpoint := first or self.pick(context, tried)) is not None:
            first = None
            tried.append(endpoint)
            is_patient = self._all_are_in_trouble or not self._has_others(tried)
            try:
                return Place(endpoint, await self._take_at(endpoint, is_patient=is_patient))
            except (UpstreamUnavailable, PoolExhausted) as error:
                if error.side is Side.LOCAL and isinstance(error, UpstreamUnavailable):
                    raise  # what is lacking here would be lacking there
                problem = error
            # To go on would be work for as many as there are, in each call, just when nothing works, or all is full.
            if is_patient and self._all_are_in_trouble:
                break
            if isinstance(problem, PoolExhausted) and len(tried) >= _MOST_TRIED:
                break
        self.overflows += isinstance(problem, _TooManyWait)
        raise problem or UpstreamUnavailable(self._nobody())

    async def _take_at(self, endpoint: Endpoint, *, is_patient: bool) -> PooledConnection:
        target = endpoint.target
        if self.max_pending is None:
            return await target.take(is_patient=is_patient)
        if (conn := target.take_now()) is not None:
            return conn
        if self.pending >= self.max_pending:
            raise _TooManyWait(
                f"{self.pending} calls wait for connections to {self!r}, as many as may (max_pending)",
                cause="max_pending",
            )
        self.pending += 1
        try:
            return await target.take(is_patient=is_patient)
        finally:
            self.pending -= 1

    async def take_place(self, context: CallContext) -> ClientPlace:
        """`take`, for a call that a `Client` makes. Raises `RpcError` if one of the limits is full."""
        limits = Places.of(self.limits) if self.limits else None
        try:
            return ClientPlace(await self.take(context), context, limits)
        except BaseException:
            if limits is not None:
                limits.leave(None)
            raise

    async def take_another(self, context: CallContext, endpoint: Endpoint) -> Place | None:
        """As `take`, for a call that was not processed there. None: no other endpoint can be had."""
        if not self._has_others((endpoint,)):
            return None
        try:
            return await self.take(context, (endpoint,))
        except (UpstreamUnavailable, PoolExhausted):
            return None

    async def take_untried(self, context: CallContext, tried: list[Endpoint]) -> Place:
        """As `take`, at an endpoint that has not been tried; at any, if all have been.

        What is picked is added to `tried` before anything is waited for.
        """
        avoid = tried.copy() if self._has_others(tried) else []
        endpoint = self.pick(context, avoid)
        if endpoint is not None:
            tried.append(endpoint)
        return await self.take(context, avoid, first=endpoint)

    @property
    def _all_are_in_trouble(self) -> bool:
        """Whether none can be connected to: otherwise the rotation has nobody in trouble."""
        return bool(self._rotation) and self._rotation[0].target.trouble is not None

    def _has_others(self, tried: Collection[Endpoint]) -> bool:
        return any(each not in tried for each in self._rotation)

    async def get_conn(self, context: CallContext) -> ClusterConn:
        """A lease on a connection to one of the endpoints; as `Pool.get_conn`.

        A director does better to answer the cluster itself: nothing is held then before the call's stream is opened,
        and the call has a place of each of the `limits`, which a lease has not.
        """
        return ClusterConn(self._pool, await self.take(context))

    async def _first_look_up(self) -> None:
        if self._nursery is None:
            raise ConfigError(f"{self!r} is not open: use it inside `async with Cluster(...) as cluster:`")
        with trio.move_on_after(_FIRST_LOOK_UP_S):
            await self._looked_up.wait()
        if self.endpoints and not self._looked_up.is_set():
            self._looked_up.set()  # the checks say nothing
            self.refresh()

    def _nobody(self) -> str:
        """Why no endpoint could be tried."""
        if self.endpoints:
            return f"none of the {len(self.endpoints)} endpoints of {self!r} is fit for calls"
        why = "" if self.source.problem is None else f": {self.source.problem}"
        return f"{self!r} has no endpoint{why}"

    # ---------------------------------------------------------------------- endpoints

    def found(self, found: Sequence[EndpointAddress]) -> None:
        """These are the endpoints from now on: what is new joins, and what is gone drains.

        One that has but another weight or priority stays the same endpoint: its checks and its share go on. Raises
        `ConfigError`, with nothing changed, if one of them is no address.
        """
        for each in found:
            Address.parse(each.address)
        kept = {(each.address, each.found.server_name): each for each in self.endpoints}
        self.endpoints = []
        for each in {(each.address, each.server_name): each for each in found}.values():
            endpoint = kept.pop((each.address, each.server_name), None)
            if endpoint is None:
                endpoint = self._join(each)
            else:
                endpoint.found_again(each)
            self.endpoints.append(endpoint)
        for endpoint in kept.values():
            self._leave(endpoint)
        self._forget_drained()
        self._checked()

    @property
    def draining(self) -> list[Endpoint]:
        """Those that its source has named once, as long as they have calls."""
        self._forget_drained()
        return self._draining

    def _forget_drained(self) -> None:
        """Whether anybody asks for them or not: names may change without end."""
        there = {endpoint.target for endpoint in self.endpoints}  # one that came back has its calls again
        self._draining = [each for each in self._draining if each.calls and each.target not in there]

    def refresh(self) -> None:
        """Whom calls go to, after whatever has changed."""
        fit = [each for each in self.endpoints if each.healthy and not each.ejected]
        enough = self._panic_threshold * len(self.endpoints)
        self.panics = len(fit) < enough and self._looked_up.is_set()
        if self._slow_starter is not None:
            self._slow_starter.weigh([each for each in fit if each.target.trouble is None])
        rotation = self.endpoints if self.panics else fit
        reachable = [each for each in rotation if each.target.trouble is None] or rotation
        first = min((each.found.priority for each in reachable), default=0)
        self._rotation = [each for each in reachable if each.found.priority == first]
        try:
            self._balancer.update(self._rotation)
        except Exception as error:  # noqa: BLE001  # a user's own: whoever is at work here has others' calls in hand
            report(error, self._balancer)

    def _join(self, found: EndpointAddress) -> Endpoint:
        target = self._pool.target(
            found.address, ssl_context=self._ssl_context, server_name=found.server_name
        )
        target.on_trouble.append(self._trouble_changed)
        if self._min_idle and self._pool.is_open:
            target.keep_ready(self._min_idle, wanted_by=self)
        endpoint = Endpoint(self, target, found)
        for watcher in self._watchers:
            watcher.join(endpoint)
        return endpoint

    def _leave(self, endpoint: Endpoint) -> None:
        endpoint.draining = True
        endpoint.target.on_trouble.remove(self._trouble_changed)
        for watcher in self._watchers:
            watcher.leave(endpoint)
        self._draining.append(endpoint)
        if all(each.target is not endpoint.target for each in self.endpoints):
            if self._min_idle:
                endpoint.target.keep_ready(0, wanted_by=self)
            if not endpoint.target.on_trouble:  # else it is another cluster's, too
                endpoint.target.let_go()

    def _checked(self) -> None:
        """What is known of the endpoints has changed: calls wait until one is well, or all are known not to be."""
        if any(each.healthy for each in self.endpoints) or all(
            each.healthy is not None for each in self.endpoints
        ):
            self._looked_up.set()
        self.refresh()

    def _trouble_changed(self) -> None:
        try:
            self.source.look_up_soon()
        except Exception as error:  # noqa: BLE001  # as in `refresh`
            report(error, self.source)
        self.refresh()

    def explain(self) -> list[str]:
        """Say of each endpoint whether it gets calls, and if not, why."""
        endpoints = (*self.endpoints, *self.draining)
        lines = [f"{endpoint.address}: {endpoint.explain()}" for endpoint in endpoints]
        if self.panics:
            lines.append(PANIC)
        if self.source.problem is not None:
            lines.append(f"the last look-up failed: {self.source.problem}")
        if self.source.note is not None:
            lines.append(f"about its addresses: {self.source.note}")
        return lines

    def __repr__(self) -> str:
        return f"<Cluster {self.name or ', '.join(each.address for each in self.endpoints)}>"


def _at_once(max_requests: int | None) -> list[CallLimit]:
    return [] if max_requests is None else [ConcurrencyLimit(max_requests, name="max_requests")]


class _TooManyWait(PoolExhausted):
    """As many calls wait for connections as the cluster lets wait."""
