"""`OtlpExporter`: sends the spans of a `Tracing` to a collector, by OTLP over gRPC, through a `Pool` like any other.

    spans ──512 of them, or 5 s──► Export ──OK──► the next
                                     └──the collector's trouble──► once more after a pause, five times at most

What it does not do: let anybody wait. It is a task of its own; while the collector is away, slow or silent, spans wait
in the queue of `Tracing` and are dropped there when it is full. The invariant: each span is counted once, as exported
or as dropped.

Owns: OTLP/gRPC (OpenTelemetry Protocol 1), "Failures".
"""

import math
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import attrs
import trio

from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError, ProxyError, RpcError
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.observe.describe import describe
from rawgrpc_proxy.observe.otlp import METHOD, partial_success_in, request_head, request_of
from rawgrpc_proxy.observe.tracing import BATCH, Tracing
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.version import version

_MOST_ATTEMPTS = 5
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_JITTER = 0.2
_LONGEST_RESPONSE_BYTES = 64 * 1024
_CONNECTION_S = 600.0
"""Then another one is made: behind the address there may be several collectors."""
_SILENCE_S = 60.0
"""So long nothing more is told of objections, of which a collector may have one to each batch."""
_TRY_AGAIN = frozenset(
    (
        Status.CANCELLED,
        Status.DEADLINE_EXCEEDED,
        Status.RESOURCE_EXHAUSTED,
        Status.ABORTED,
        Status.OUT_OF_RANGE,
        Status.UNAVAILABLE,
        Status.DATA_LOSS,
    )
)
"""Statuses after which the same batch may do better. RetryInfo is not looked at."""


@attrs.frozen(kw_only=True)
class ExportTimes:
    """How an exporter spends its time, in seconds."""

    every_s: float = 5.0
    """How long a span waits for others, at most, while the collector answers."""
    timeout_s: float = 10.0
    """How long an export may take, with its dial."""
    flush_s: float = 3.0
    """How long the end waits for what is left; a second try then has no time."""


class OtlpExporter:
    """Exports the spans of `tracing` to the collector at `address`: `async with OtlpExporter(tracing, address):`.

    `address` is `HOST:PORT` or `unix:PATH`. `resource` are attributes of this process, beside `service.name`; `tell`
    hears, in words, when exports begin to fail and when they work again. Leaving the block exports what is left, for
    `times.flush_s` at the most, and whatever happens to the block: so leave it when the server has stopped.
    """

    def __init__(
        self,
        tracing: Tracing,
        address: str,
        *,
        ssl_context: TlsContext | None = None,
        service_name: str = "rawgrpc-proxy",
        resource: Mapping[str, str] | None = None,
        times: ExportTimes | None = None,
        loop_guard: LoopGuard | None = None,
        settings: Http2Settings | None = None,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Raise `ConfigError` if `address` is none."""
        self._tracing = tracing
        self._address = address
        self._head = request_head({"service.name": service_name, **(resource or {})}, version())
        self._times = times or ExportTimes()
        self._tell = tell
        self._pool = Pool(
            size=1,
            ttl=_CONNECTION_S,
            connect_wait_s=0.0,  # there is a pause of our own, and the cause is wanted
            loop_guard=loop_guard,
            settings=settings,
        )
        self._client = Client(
            self._pool.target(address, ssl_context=ssl_context),
            user_agent=f"rawgrpc-proxy/{version()}",
            timeout=self._times.timeout_s,
            max_message_bytes=_LONGEST_RESPONSE_BYTES,
        )
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._rng = random.Random()  # noqa: S311  # jitter
        self._news = trio.Event()
        self._ends = trio.Event()
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._in_trouble = False
        self._silent_until = 0.0
        self._lost = 0

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            raise ConfigError("an exporter is for one block; make another one")
        await self._pool.__aenter__()
        await self._client.__aenter__()
        self._nursery_manager = trio.open_nursery()
        nursery = await self._nursery_manager.__aenter__()
        self._tracing.on_batch = self._wake
        nursery.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery_manager is not None
        try:
            await self._flush()
        finally:
            # Without the block's own error: it goes on as it is, and not in a group for the sake of our task.
            await self._nursery_manager.__aexit__(None, None, None)
            await self._client.__aexit__(None, None, None)
            await self._pool.__aexit__(None, None, None)

    def give_up(self) -> None:
        """What is left is lost, and counted: leaving the block waits for nothing."""
        self._times = attrs.evolve(self._times, flush_s=0.0)

    async def _run(self) -> None:
        """Export until it ends, and what is left then."""
        tracing = self._tracing
        batch: list[bytes] = []
        try:
            with self._scope:
                while tracing.waiting or not self._ends.is_set():
                    if not self._ends.is_set():
                        await self._wait_for_a_batch()
                    # All that is there by now; what comes meanwhile has time until the next round.
                    for _ in range(math.ceil(tracing.waiting / BATCH)):
                        batch = tracing.take_batch()
                        await self._export(batch)
                        batch = []
        finally:
            tracing.on_batch = None
            self._lose(len(batch))
            self._done.set()

    async def _flush(self) -> None:
        """Have what is left exported, and return when it is or time is up. Not to be cancelled."""
        self._ends.set()
        self._wake()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self._times.flush_s):
                await self._done.wait()
            self._scope.cancel()
            await self._done.wait()
        while left := self._tracing.take_batch():
            self._lose(len(left))
        if self._lost:
            self._tell(f"tracing: {self._lost} spans are lost: {self._address} did not take them in time")

    async def _wait_for_a_batch(self) -> None:
        self._news = trio.Event()
        if self._tracing.waiting < BATCH:
            with trio.move_on_after(self._times.every_s):
                await self._news.wait()

    def _wake(self) -> None:
        self._news.set()

    def _lose(self, number: int) -> None:
        """So many spans are dropped, and it is the end that has no time for them."""
        self._tracing.dropped += number
        self._lost += number

    async def _export(self, batch: list[bytes]) -> None:
        """Send a batch, more than once if need be. Raises nothing: a collector is no reason to end."""
        if not batch:
            return
        body = request_of(self._head, batch)
        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            try:
                response = await self._client.unary_unary(METHOD, body)
            except Exception as error:  # noqa: BLE001  # the collector's, or a fault of ours: the calls go on
                self._failed(error)
                if not _may_do_better(error) or attempt == _MOST_ATTEMPTS or self._ends.is_set():
                    break
                with trio.move_on_after(pause_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)):
                    await self._ends.wait()
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._taken(batch, response)
                return
        if self._ends.is_set():
            self._lose(len(batch))
        else:
            self._tracing.dropped += len(batch)

    def _taken(self, batch: list[bytes], response: bytes) -> None:
        tracing = self._tracing
        objection = partial_success_in(response)
        rejected = 0 if objection is None else min(max(objection.rejected, 0), len(batch))
        tracing.dropped += rejected
        tracing.exported += len(batch) - rejected
        if self._in_trouble:
            self._in_trouble = False
            self._tell(
                f"tracing: {self._address} takes spans again; {tracing.dropped} were dropped since the start"
            )
        if objection is not None and trio.current_time() >= self._silent_until:
            self._silent_until = trio.current_time() + _SILENCE_S
            self._tell(f"tracing: {self._address} has not taken {rejected} spans: {objection.message!r}")

    def _failed(self, error: Exception) -> None:
        """Tell of the first failure; those that follow are the same trouble."""
        if not self._in_trouble:
            self._in_trouble = True
            cause = str(error) if isinstance(error, ProxyError) else describe(error)
            self._tell(
                f"tracing: {self._address} takes no spans: {cause}; up to {self._tracing.max_queued_spans} wait, and "
                "others are dropped, until it does"
            )


def _may_do_better(error: Exception) -> bool:
    """Whether the same batch may be taken if it is sent again."""
    if not isinstance(error, RpcError) or error.status not in _TRY_AGAIN:
        return False
    # What is too long for us is no answer of a collector.
    return not (error.status is Status.RESOURCE_EXHAUSTED and error.origin == "proxy")
