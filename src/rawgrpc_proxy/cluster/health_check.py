"""Active health checks: each endpoint is asked again and again how it is, for as long as it is one.

    check ──passed, failed──► thresholds ──changed──► `tell`
      ▲                            ▲
      └──interval──┘      Watch ──told by the endpoint itself

A check goes over a connection that calls use, where that has a place for it; where calls have all there is, over one
of its own. What it does not do: keep calls away from an endpoint that is not well (`Cluster` does). The invariants: a
check is over after `timeout_s`, whatever it waits for, and says something of the endpoint, however many calls that has;
one that fails since something is lacking here changes nothing.
"""

import random
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.client.calls import UnaryStreamCall
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.cluster.endpoint import Endpoint
from rawgrpc_proxy.cluster.health_settings import HealthCheck
from rawgrpc_proxy.cluster.thresholds import Thresholds
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import (
    ConfigError,
    DeadlineExceeded,
    PoolExhausted,
    ProxyError,
    RpcError,
    Side,
    UpstreamUnavailable,
)
from rawgrpc_proxy.grpc.health import SERVICE, ServingStatus, read_status, request_for
from rawgrpc_proxy.net.dial import dial
from rawgrpc_proxy.net.transport import Transport
from rawgrpc_proxy.observe.describe import describe
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.tell import tell
from rawgrpc_proxy.upstream.choice import Phase
from rawgrpc_proxy.upstream.own_connection import OwnConnection
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target
from rawgrpc_proxy.version import version

_CHECK, _WATCH = f"/{SERVICE}/Check", f"/{SERVICE}/Watch"
_LONGEST_RESPONSE_BYTES = 4096
_JITTER = 0.1
_LOOK_S = 1.0
"""How often a Watch looks whether its connection takes calls still: one that drains shall not have to wait for it."""
_MOST_CHANGES, _FLAPS_S = 10, 10.0
"""A Watch that tells of so many changes in that time is left for an interval: each is work for the whole cluster."""

Tell = Callable[[str | None], None]
"""Hears how the endpoint is when that is first known, and when it changes: why it is not well, or None."""


class HealthChecks:
    """The checks of all endpoints of a cluster, each in a task of its own."""

    def __init__(
        self,
        settings: HealthCheck,
        *,
        name: str,
        refresh: Callable[[], None],
        observer: PoolObserver | None,
        rng: random.Random,
    ) -> None:
        """`name` is the cluster's, for the observer. Raises `ConfigError` for settings that do not fit together."""
        for field, problem in settings.problems():
            raise ConfigError(f"{field} {problem}")
        self._settings = settings
        self._name = name
        self._refresh = refresh
        self._observer = observer
        self._rng = rng
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[Endpoint, trio.CancelScope] = {}

    def open(self, nursery: trio.Nursery) -> None:
        """Have the checks run there."""
        self._nursery = nursery

    def join(self, endpoint: Endpoint) -> None:
        """Check it from now on; until the first check is back it is not well."""
        assert self._nursery is not None
        endpoint.healthy = None
        scope = self._scopes[endpoint] = trio.CancelScope()
        self._nursery.start_soon(self._run, endpoint, scope)

    def leave(self, endpoint: Endpoint) -> None:
        """Check it no more."""
        self._scopes.pop(endpoint).cancel()

    async def _run(self, endpoint: Endpoint, scope: trio.CancelScope) -> None:
        with scope:
            await HealthChecker(
                self._settings,
                endpoint.target,
                authority=endpoint.found.server_name,
                tell=partial(self._changed, endpoint),
                rng=self._rng,
            ).run()

    def _changed(self, endpoint: Endpoint, why: str | None) -> None:
        was = endpoint.healthy
        endpoint.healthy = why is None
        endpoint.why_unhealthy = why
        self._refresh()
        if why is not None:
            tell(self._observer, "endpoint_unhealthy", self._name, endpoint.address, why)
        elif was is not None:
            tell(self._observer, "endpoint_healthy", self._name, endpoint.address)


class HealthChecker:
    """The checks of one endpoint, whose connections are those of `target`."""

    def __init__(
        self, settings: HealthCheck, target: Target, *, authority: str | None, tell: Tell, rng: random.Random
    ) -> None:
        """`authority` is what checks say as such; by default the address."""
        self._settings = settings
        self._target = target
        self._authority = authority
        self._tell = tell
        self._rng = rng
        self._request = request_for(settings.service)
        self._state = Thresholds(healthy=settings.healthy_threshold, unhealthy=settings.unhealthy_threshold)
        self._may_watch = settings.kind == "watch"
        """Whether the endpoint has a Watch, as far as is known."""

    async def run(self) -> None:
        """Check until it is cancelled, at once for the first time. Raises nothing."""
        places = _Places(self._target)
        client = Client(
            places,
            authority=self._authority,
            user_agent=f"rawgrpc-proxy-health/{version()}",
            max_message_bytes=_LONGEST_RESPONSE_BYTES,
        )
        async with client:
            while True:
                began = trio.current_time()
                places.forget()
                try:
                    await self._ask(client, places)
                except Exception as error:  # noqa: BLE001  # the endpoint's, or a fault of one check: the next one follows
                    self._failed(error, places)
                interval_s = self._settings.interval_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
                await trio.sleep_until(began + interval_s)

    async def _ask(self, client: Client, places: "_Places") -> None:
        """One check, or one Watch to its end. Raises what it fails with."""
        if self._settings.kind == "tcp":
            await self._connect()
        elif self._may_watch:
            await self._watch(client, places)
        else:
            await self._check(client)

    async def _check(self, client: Client) -> None:
        try:
            response = await client.unary_unary(_CHECK, self._request, timeout=self._settings.timeout_s)
        except RpcError as error:
            if error.status is Status.NOT_FOUND and error.side is Side.UPSTREAM:
                self._expect_serving(ServingStatus.SERVICE_UNKNOWN)
            if not _has_no_such_method(error):
                raise
        else:
            self._expect_serving(read_status(response))
        self._passed()

    async def _watch(self, client: Client, places: "_Places") -> None:
        """Hear from the endpoint how it is, until the stream ends or its connection takes no more calls."""
        known = flaps = False
        changed_at: deque[float] = deque(maxlen=_MOST_CHANGES)
        try:
            async with AsyncExitStack() as stack:
                with trio.fail_after(self._settings.timeout_s):
                    call = await stack.enter_async_context(client.unary_stream(_WATCH, self._request))
                    response = await call.receive()
                while response is not None:
                    known = True
                    if self._told(read_status(response)):
                        changed_at.append(trio.current_time())
                        flaps = len(changed_at) == _MOST_CHANGES and changed_at[-1] < changed_at[0] + _FLAPS_S
                    if flaps:
                        break
                    response = await _next_of(call, places)
            if not known:
                raise RpcError(Status.UNAVAILABLE, "its Watch has ended without a word", side=Side.UPSTREAM)
        except RpcError as error:
            if _has_no_such_method(error):
                self._may_watch = False
                await self._check(client)
            elif not known:
                raise
        except trio.TooSlowError:
            raise DeadlineExceeded(f"no answer within {self._settings.timeout_s:g} s") from None
        if flaps:
            await trio.sleep(self._settings.interval_s)

    async def _connect(self) -> None:
        async def hang_up(transport: Transport) -> None:
            await transport.aclose()

        await dial(self._target.parsed, ssl_context=None, timeout_s=self._settings.timeout_s, greet=hang_up)
        self._passed()

    # ------------------------------------------------------------------- what it says

    def _passed(self) -> None:
        if self._state.checked(passed=True):
            self._tell(None)

    def _failed(self, error: Exception, places: "_Places") -> None:
        self._may_watch = self._settings.kind == "watch"  # who comes back may be another program
        if not self._says_nothing(error, places) and self._state.checked(passed=False):
            self._tell(_why(error))

    def _says_nothing(self, error: Exception, places: "_Places") -> bool:
        """Whether the check has failed for want of something here, or has only waited behind calls.

        The latter where there was a dial to share, and no place left when that was done: the next one does not wait.
        """
        if isinstance(error, DeadlineExceeded) and places.conn is None and self._settings.kind != "tcp":
            is_dialled = places.has_own or self._target.dialling or self._target.trouble is not None
            return not is_dialled
        return isinstance(error, PoolExhausted) or (
            isinstance(error, UpstreamUnavailable) and error.side is Side.LOCAL
        )

    def _told(self, status: ServingStatus) -> bool:
        """Whether that is something new."""
        healthy = status is ServingStatus.SERVING
        if not self._state.told(healthy=healthy):
            return False
        self._tell(None if healthy else self._not_serving(status))
        return True

    def _expect_serving(self, status: ServingStatus) -> None:
        if status is not ServingStatus.SERVING:
            raise RpcError(Status.UNAVAILABLE, self._not_serving(status), side=Side.UPSTREAM) from None

    def _not_serving(self, status: ServingStatus) -> str:
        of = f" of {self._settings.service!r}" if self._settings.service else ""
        return f"it says {status.name}{of}"


class _Places:
    """The target's places, for checks: they do not wait behind calls, but have a connection of their own then.

    As Envoy's have it always. To go where calls go is worth more, as long as that can be had: it is their connections
    whose end is found out, and there are no more of them.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.conn: PooledConnection | None = None
        """Where the last check has got its place."""
        self.has_own = False
        """Whether it has a connection of its own, or dials one."""

    def forget(self) -> None:
        """The next check begins."""
        self.conn, self.has_own = None, False

    async def take_place(self, _context: CallContext) -> PooledConnection:
        target = self._target
        conn = target.take_now() or target.take_beyond_ms()
        if conn is None and target.would_wait:
            self.has_own = True
            conn = await OwnConnection(target).take()
        self.conn = conn or await target.take(is_patient=False)
        return self.conn

    @property
    def is_good(self) -> bool:
        """Whether the connection of the last check takes calls still."""
        conn = self.conn
        return (
            conn is not None
            and conn.phase is Phase.READY
            and trio.current_time() <= conn.owner.expires_at(conn)
        )


async def _next_of(call: UnaryStreamCall[bytes], places: _Places) -> bytes | None:
    """The next message; None at the end, or if the connection takes no more calls."""
    while places.is_good:
        with trio.move_on_after(_LOOK_S):
            return await call.receive()
    return None


def _has_no_such_method(error: RpcError) -> bool:
    return error.status is Status.UNIMPLEMENTED and error.side is Side.UPSTREAM


def _why(error: Exception) -> str:
    return error.message if isinstance(error, ProxyError) else describe(error)
