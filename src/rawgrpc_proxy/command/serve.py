"""A worker of `rawgrpc-proxy serve`: a server, pools and a log made of the settings, from the start to the end.

    settings ──► checked ──► serving ──SIGTERM──► draining, for the grace ──► stopped
                                                  └──a second one──► stopped at once

Its supervisor has opened the listeners and forked it (`generations.py`, `supervisor.py`). Only the log's thread writes
to standard error.
"""

import contextlib
import gc
import itertools
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TextIO

import attrs
import trio

from rawgrpc_proxy.command.channel import beat, hear_supervisor, tell_ready
from rawgrpc_proxy.command.cores import cores
from rawgrpc_proxy.command.settings import (
    ClusterTls,
    ListenerTls,
    PoolSettings,
    RouteSettings,
    ServeSettings,
)
from rawgrpc_proxy.command.settings_file import Settings, join
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.descriptors import DescriptorPlan
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.memory_limit import default_max_buffered_bytes
from rawgrpc_proxy.net.accept_share import AcceptShare, set_accept_share
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import bound_address
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.tls_files import ContextOfFiles, listener_context, upstream_context
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import unbuffered
from rawgrpc_proxy.proxy.hops import limit_hops
from rawgrpc_proxy.proxy.routing import Route, director_of, routes_of_reflection
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.own_health import answer_health
from rawgrpc_proxy.upstream.pool import Pool

_CRASHED = 1
_PARENT_WAITS_S = 0.1
"""For its log, before it looks after its workers again."""
_COLLECT_AFTER = (20_000, 20, 20)
"""Objects more than before, young collections, middle ones (by default 700, 10, 10). Garbage stays within a few MiB."""


@attrs.frozen(kw_only=True)
class Process:
    """What one process of `serve` runs, checked; nothing is open yet."""

    settings: Settings
    server: Server
    pools: Sequence[Pool]
    listener_tls: Sequence[TlsContext | None]
    """Of each listener."""
    loop_guard: LoopGuard
    log: CallLog

    def say(self, event: str, text: str, **facts: object) -> None:
        """Tell the operator, in the format of the log."""
        self.log.notice(event, text, **facts)


@attrs.frozen(kw_only=True)
class Inherited:
    """What a worker has from its supervisor."""

    listeners: Sequence[Sequence[socket.socket]]
    """The sockets of each listener: a name may be several addresses."""
    share: AcceptShare | None
    """Of the connections that come to the listeners; None if there is no other worker."""
    channel: socket.socket
    """To the supervisor."""
    beat_s: float | None
    """How often it wants to hear that this process lives; None for never."""
    worker: int = 1


class _Notes(CallLog):
    """What the operator is told where calls are not logged."""

    def _format(self, event: str, text: str, **_facts: object) -> str:  # noqa: ARG002  # as in the log
        return f"rawgrpc-proxy:{self._worker_text} {text.removeprefix('- ')}\n"


def workers_of(settings: ServeSettings) -> int:
    """How many there are to be."""
    return cores() if settings.workers == "auto" else settings.workers


def calm_garbage_collector() -> None:
    """Have CPython look for circles of objects less often.

    A call leaves none, and by default every thirtieth one has the collector look at all young objects, and now and then
    at older ones: with a thousand connections that took a fifth of the time. What was made before the start it need
    never look at.
    """
    if sys.implementation.name == "cpython":
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)


def process_of(settings: Settings, log: CallLog) -> Process:
    """What a worker with these settings runs. Raises `ConfigError`."""
    serve = settings.serve
    http2 = serve.http2
    if "http2.max_buffered" not in settings.sources:
        http2 = attrs.evolve(http2, max_buffered_bytes=default_max_buffered_bytes(workers_of(serve)))
    listener_tls, cluster_tls = tls_contexts(serve, lambda text: log.notice("tls", text, message=text))
    loop_guard = LoopGuard(lambda problem: log.notice("loop", problem, message=problem))
    kinds = {cluster.pool for cluster in serve.clusters.values()}
    upstream = DescriptorPlan.of_this_process().upstream
    pools = {
        kind: _pool(
            kind, max_connections=max(1, upstream // len(kinds)), guard=loop_guard, http2=http2, log=log
        )
        for kind in kinds
    }
    director = director_of(_routes(serve, pools, cluster_tls))
    if serve.hop_limit is not None:
        director = limit_hops(director, serve.hop_limit)
    server = Server(
        unknown_service_handler=transparent_handler(director),
        settings=http2,
        observer=None if serve.log_format == "none" else log,
        max_connections=serve.max_connections,
    )
    answer_health(server, serve.health, director)
    return Process(
        settings=settings,
        server=server,
        pools=list(pools.values()),
        listener_tls=listener_tls,
        loop_guard=loop_guard,
        log=log,
    )


def _pool(
    kind: PoolSettings, *, max_connections: int, guard: LoopGuard, http2: Http2Settings, log: CallLog
) -> Pool:
    return Pool(
        kind.size,
        kind.ttl_s,
        kind.idle,
        kind.ms,
        max_waiting=kind.max_waiting,
        max_connections=max_connections,
        dial_timeout_s=kind.dial_timeout_s,
        connect_wait=kind.connect_wait_s,
        loop_guard=guard,
        settings=http2,
        observer=log,
    )


def _routes(
    serve: ServeSettings,
    pools: Mapping[PoolSettings, Pool],
    cluster_tls: Mapping[str, TlsContext | None],
) -> list[Route]:
    targets = {
        name: [
            pools[cluster.pool].target(address, ssl_context=cluster_tls[name])
            for address in cluster.addresses
        ]
        for name, cluster in serve.clusters.items()
    }
    reflection = [] if serve.reflection is None else routes_of_reflection(targets[serve.reflection])
    return reflection + [
        Route(
            route.match,
            targets[route.cluster],
            authority=route.authority,
            metadata=route.metadata,
            max_timeout_s=route.max_timeout_s,
            default_timeout_s=route.default_timeout_s,
            remove=route.request_metadata.remove,
            set_values=route.request_metadata.set,
            names=(_name_of(serve.routes, place), route.cluster),
        )
        for place, route in enumerate(serve.routes)
    ]


def _name_of(routes: Sequence[RouteSettings], place: int) -> str:
    """What to call a route in the log: what it matches, with its place where others match the same."""
    match = routes[place].match
    return match if sum(route.match == match for route in routes) == 1 else f"{match}[{place}]"


def tls_contexts(
    serve: ServeSettings, tell: Callable[[str], None]
) -> tuple[list[TlsContext | None], dict[str, TlsContext | None]]:
    """The TLS of each listener, and of each cluster by its name. Raises `ConfigError` for what is wrong with a file.

    `tell` hears when files that have changed are read again, or cannot be.
    """
    listeners = [_listener_tls(listener.tls, tell) for listener in serve.listeners]
    clusters = {
        name: _cluster_tls(cluster.tls or ClusterTls(), tell) if cluster.speaks_tls else None
        for name, cluster in serve.clusters.items()
    }
    return listeners, clusters


def _listener_tls(tls: ListenerTls | None, tell: Callable[[str], None]) -> TlsContext | None:
    if tls is None:
        return None
    must = tls.client_certificate == "require"
    make = partial(listener_context, tls.certificate, tls.key, client_ca=tls.client_ca, client_must=must)
    return ContextOfFiles(make, filter(None, (tls.certificate, tls.key, tls.client_ca)), tell)


def _cluster_tls(tls: ClusterTls, tell: Callable[[str], None]) -> TlsContext:
    make = partial(
        upstream_context, ca=tls.ca, server_name=tls.server_name, certificate=tls.certificate, key=tls.key
    )
    return ContextOfFiles(make, filter(None, (tls.certificate, tls.key, tls.ca)), tell)


def log_for(settings: ServeSettings, *, worker: int | None = None) -> CallLog:
    """The log that the settings ask for, on standard error; what the operator has to know is written in any case."""
    file = unbuffered(sys.stderr)
    if settings.log_format == "none":
        notes = _Notes(file=file, worker=worker)
        notes.level = "none"
        return notes
    log = settings.log
    return CallLog(
        settings.log_format,
        file,
        worker=worker,
        fields=log.fields,
        only_errors=log.only_errors,
        sample=log.sample,
        slow_s=log.slow_s,
        start_after_s=log.start_after_s,
    )


def run_process(log: CallLog, make: Callable[[], Process], inherited: Inherited) -> int:
    """Serve until SIGTERM comes, and answer the exit code.

    From here on only the log's thread writes to standard error, for which nobody waits for longer than a second.
    """
    log.collect()
    try:
        with heard_by(log):
            trio.run(_run, make(), inherited)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the log
        log.fault("crashed", "- the proxy crashed:", error)
        return _CRASHED
    finally:
        log.flush()
    return 0


@contextlib.contextmanager
def heard_by(log: CallLog) -> Iterator[None]:
    """Have the log write what Python itself would write to standard error."""

    def unraisable(fact: Any) -> None:
        log.fault("unraisable", f"- {fact.err_msg or 'Exception ignored'}", fact.exc_value or fact.exc_type())

    def warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001  # the signature is Python's
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        log.notice("warning", text, message=text)

    before = sys.unraisablehook, warnings.showwarning
    sys.unraisablehook, warnings.showwarning = unraisable, warning
    try:
        yield
    finally:
        sys.unraisablehook, warnings.showwarning = before


def objection_to_loops(settings: Settings, listeners: Sequence[Sequence[socket.socket]]) -> None:
    """Raises `ConfigError` if an upstream is one of these listeners."""
    guard = LoopGuard()
    for sock in itertools.chain.from_iterable(listeners):
        guard.listens_on(bound_address(sock))
    for name, cluster in settings.serve.clusters.items():
        for place, address in enumerate(cluster.addresses):
            problem = guard.objection(Address.parse(address))
            if problem is not None:
                path = f"{join('clusters', name)}.endpoints[{place}]"
                raise ConfigError(f"{settings.name_of(path)}: {problem}")


async def _run(process: Process, inherited: Inherited) -> None:
    # Signals first: one that comes while we start must not be lost, nor end us with a traceback.
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        for sock in itertools.chain.from_iterable(inherited.listeners):
            process.loop_guard.listens_on(bound_address(sock))
        if inherited.share is not None:
            set_accept_share(inherited.share)
        async with contextlib.AsyncExitStack() as stack:
            for pool in process.pools:
                await stack.enter_async_context(pool)
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(process.log.run)
            nursery.start_soon(_hear_supervisor, process, inherited.channel)

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                async with trio.open_nursery() as serving:
                    told = [listener.proxy_protocol for listener in process.settings.serve.listeners]
                    for sockets, tls, proxies in zip(
                        inherited.listeners, process.listener_tls, told, strict=True
                    ):
                        await serving.start(
                            partial(process.server.serve, sockets, ssl_context=tls, proxy_protocol=proxies)
                        )
                    task_status.started()
                nursery.cancel_scope.cancel()

            await nursery.start(serve)
            tell_ready(inherited.channel)
            if inherited.beat_s is not None:
                nursery.start_soon(beat, inherited.channel, inherited.beat_s)
            await _stop_on_signal(process, signals)
            nursery.cancel_scope.cancel()
        process.say("stopped", "stopped")


async def _stop_on_signal(process: Process, signals: AsyncIterator[int]) -> None:
    """Begin to stop at the first signal, and return at the second. The end of the server cancels it."""
    await anext(signals)
    calls = process.server.open_calls
    grace_s = process.settings.serve.grace_s
    process.server.stop(grace_s=grace_s)
    process.say(
        "draining",
        f"draining, {_calls(calls)} still running, for up to {grace_s:g} s",
        calls=calls,
        grace_s=grace_s,
    )
    await anext(signals)
    calls = process.server.open_calls
    process.say("aborting", f"ending at once, {_calls(calls)} cut off", calls=calls)


async def _hear_supervisor(process: Process, channel: socket.socket) -> None:
    await hear_supervisor(channel)
    process.say("orphaned", "the parent of the workers is gone: draining")
    process.server.stop(grace_s=process.settings.serve.grace_s)


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"
