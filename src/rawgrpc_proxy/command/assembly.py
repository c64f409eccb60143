"""What a worker of `rawgrpc-proxy serve` is made of, by the settings: server, pools, routes, TLS, and what it tells.

What it does not do: open, listen or run anything but the files with certificates. The invariant: what can be wrong with
settings is found here, or when they are read, so that whoever has got a `Process` can run it.
"""

import itertools
import socket
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import trio

from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.facts import cluster_facts
from rawgrpc_proxy.command.cores import cores
from rawgrpc_proxy.command.link import Answers
from rawgrpc_proxy.command.route_assembly import made_routes, share_of, traffic_report
from rawgrpc_proxy.command.settings.clusters import PoolSettings
from rawgrpc_proxy.command.settings.file import Settings
from rawgrpc_proxy.command.settings.model import (
    AdminSettings,
    ListenerSettings,
    ServeSettings,
    TracingSettings,
)
from rawgrpc_proxy.command.tls_assembly import collector_tls, tls_contexts
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.config_words import join
from rawgrpc_proxy.descriptors import DescriptorPlan
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.memory_limit import default_max_buffered_bytes
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import bound_address
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.tapped import Wrap
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.tls_files import ContextOfFiles
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.metrics import STUCK, Metrics, Sources
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.report import OpenCallsReport, WorkerReport
from rawgrpc_proxy.observe.tell import Observers
from rawgrpc_proxy.observe.tracing import Tracing
from rawgrpc_proxy.proxy.director import StreamDirector
from rawgrpc_proxy.proxy.forwarded import tell_forwarded
from rawgrpc_proxy.proxy.hops import limit_hops
from rawgrpc_proxy.proxy.identity import tell_identity
from rawgrpc_proxy.proxy.mirror import Mirror
from rawgrpc_proxy.proxy.otlp_exporter import OtlpExporter
from rawgrpc_proxy.proxy.routing import director_of
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.endpoints import upstream_connection_facts
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target


@attrs.frozen(kw_only=True)
class Process:
    """What one process of `serve` runs, checked; nothing is open yet."""

    settings: Settings
    server: Server
    pools: Sequence[Pool]
    clusters: Sequence[Cluster]
    """Their connections are those of the pools."""
    mirrors: Sequence[Mirror]
    """These send to the clusters."""
    listener_tls: Sequence[TlsContext | None]
    """Of each listener."""
    directors: Sequence[StreamDirector]
    """For the calls of each listener."""
    listener_http2: Sequence[Http2Settings]
    """How the connections of each listener behave."""
    loop_guard: LoopGuard
    log: CallLog
    answers: Answers
    """What the admin process may ask; nothing if there is none."""
    exporter: OtlpExporter | None
    """Of spans, if there are any."""

    def say(self, event: str, text: str, **facts: object) -> None:
        """Tell the operator, in the format of the log."""
        self.log.notice(event, text, **facts)


def workers_of(settings: ServeSettings) -> int:
    """How many there are to be."""
    return cores() if settings.workers == "auto" else settings.workers


def process_of(settings: Settings, log: CallLog, *, worker: int = 1) -> Process:
    """What this worker runs with these settings. Raises `ConfigError`."""
    serve = settings.serve
    listener_tls, cluster_tls = tls_contexts(serve, lambda text: log.notice("tls", text, message=text))
    loop_guard = LoopGuard(lambda problem: log.notice("loop", problem, message=problem))
    wrap, about_faults = _faults(serve)
    told_of_calls = None if serve.log.format == "none" else log
    metrics = None if serve.admin is None else Metrics(_exact_methods(serve), worker=worker)
    pools, clusters = _upstreams(
        settings,
        cluster_tls,
        guard=loop_guard,
        observer=log if metrics is None else Observers(log, metrics),
        wrap=wrap,
    )
    routes = made_routes(serve, clusters, workers_of(serve))
    director = director_of(made.route for made in routes)
    if serve.hop_limit is not None:
        director = limit_hops(director, serve.hop_limit)
    tracing = _tracing(serve.tracing)
    server = Server(
        settings=_http2(settings, "", serve.http2),
        observer=told_of_calls if metrics is None else Observers(told_of_calls, metrics),
        max_connections=serve.max_connections,
        tracing=tracing,
        status_origin_trailer=serve.status_origin_trailer,
        wrap=wrap,
    )
    contexts = [each for each in (*listener_tls, *cluster_tls.values()) if isinstance(each, ContextOfFiles)]
    if metrics is not None:
        metrics.sources = Sources(
            open_calls=server.open_call_facts,
            endpoints=partial(cluster_facts, clusters),
            tasks=lambda: trio.lowlevel.current_statistics().tasks_living,
            dropped_lines=lambda: log.dropped_lines,
            spans=lambda: (0, 0) if tracing is None else (tracing.exported, tracing.dropped),
            traffic=partial(traffic_report, routes, clusters),
            tls_reload_failures=lambda: sum(context.failures for context in contexts),
            state=lambda: "draining" if server.stopping else "serving",
        )
    return Process(
        settings=settings,
        server=server,
        pools=pools,
        clusters=list(clusters.values()),
        mirrors=[made.mirror for made in routes if made.mirror is not None],
        listener_tls=listener_tls,
        directors=[_listener_director(listener, director) for listener in serve.listeners],
        listener_http2=[
            _http2(settings, f"listeners[{place}]", listener.http2)
            for place, listener in enumerate(serve.listeners)
        ],
        loop_guard=loop_guard,
        log=log,
        answers=_answers_for(serve.admin, metrics, server, clusters, log, about_faults),
        exporter=_exporter(serve.tracing, tracing, loop_guard, log),
    )


def _faults(serve: ServeSettings) -> tuple[Wrap | None, Answers]:
    """What is between connections and their peers to break them on purpose, and what may be asked and told of it."""
    if serve.faults is None and (serve.admin is None or not serve.admin.faults):
        return None, {"faults": lambda _: []}
    from rawgrpc_proxy.command.lab.worker_faults import answers_about, faults_of_settings  # noqa: PLC0415  # for few
    from rawgrpc_proxy.lab.faults.pump import with_faults  # noqa: PLC0415

    faults = faults_of_settings(serve)
    return with_faults(faults), answers_about(faults)


def _upstreams(
    settings: Settings,
    cluster_tls: Mapping[str, TlsContext | None],
    *,
    guard: LoopGuard,
    observer: PoolObserver,
    wrap: Wrap | None,
) -> tuple[list[Pool], dict[str, Cluster]]:
    """Pools, one for each kind of settings that clusters have, and the clusters.

    A cluster with a `max_connections` is of a kind of its own: its connections are all that its pool has.
    """
    clusters, workers = settings.serve.clusters, workers_of(settings.serve)
    kind_of = {
        name: (
            cluster.pool,
            _http2(settings, join("clusters", name), cluster.http2),
            None if cluster.max_connections is None else (name, share_of(cluster.max_connections, workers)),
        )
        for name, cluster in clusters.items()
    }
    kinds = set(kind_of.values())
    most = max(1, DescriptorPlan.of_this_process().upstream // len(kinds))
    pools = {
        (pool, http2, own): _pool(
            pool,
            http2,
            max_connections=most if own is None else min(most, own[1]),
            guard=guard,
            observer=observer,
            wrap=wrap,
        )
        for pool, http2, own in kinds
    }
    made = {
        name: Cluster(
            cluster.source(observer),
            pool=pools[kind_of[name]],
            name=name,
            ssl_context=cluster_tls[name],
            health=cluster.health,
            outlier=cluster.outlier,
            balance=cluster.balance,
            slow_start=cluster.slow_start,
            min_idle=cluster.pool.min_idle,
            panic_threshold=cluster.panic_threshold,
            max_requests=None if cluster.max_requests is None else share_of(cluster.max_requests, workers),
            max_pending=None if cluster.max_pending is None else share_of(cluster.max_pending, workers),
            retry_throttling=None
            if cluster.retry_throttling is None
            else cluster.retry_throttling.throttling,
        )
        for name, cluster in clusters.items()
    }
    return list(pools.values()), made


def _targets(clusters: Mapping[str, Cluster]) -> list[Target]:
    """Those that the clusters have at present."""
    return [
        endpoint.target
        for cluster in clusters.values()
        for endpoint in (*cluster.endpoints, *cluster.draining)
    ]


def _tracing(settings: TracingSettings | None) -> Tracing | None:
    if settings is None:
        return None
    return Tracing(sample=settings.sample, max_queued_spans=settings.max_queued_spans)


def _exporter(
    settings: TracingSettings | None, tracing: Tracing | None, guard: LoopGuard, log: CallLog
) -> OtlpExporter | None:
    if settings is None or tracing is None:
        return None
    return OtlpExporter(
        tracing,
        settings.address,
        ssl_context=collector_tls(settings, lambda text: log.notice("tls", text, message=text)),
        service_name=settings.service_name,
        resource=settings.resource,
        loop_guard=guard,
        tell=lambda text: log.notice("tracing", text, message=text),
    )


def _answers_for(
    admin: AdminSettings | None,
    metrics: Metrics | None,
    server: Server,
    clusters: Mapping[str, Cluster],
    log: CallLog,
    about_faults: Answers,
) -> Answers:
    """What the admin process may ask; nothing if there is none."""
    if metrics is None or admin is None:
        return {}
    answers = {**_answers(metrics, server, clusters, log), **about_faults}
    if not admin.tap:
        return answers
    from rawgrpc_proxy.command.lab.worker_taps import WorkerTaps  # noqa: PLC0415  # the laboratory: only for who wants it

    return {**answers, **WorkerTaps(metrics.worker).answers}


def _answers(metrics: Metrics, server: Server, clusters: Mapping[str, Cluster], log: CallLog) -> Answers:
    """What the admin process may ask."""

    def numbered(facts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{"worker": metrics.worker, **fact} for fact in facts]

    async def report(_: object) -> WorkerReport:
        return metrics.report(await _in_steps(server.open_call_steps(STUCK)))

    async def calls(limit: int) -> list[dict[str, Any]]:
        return numbered((await _in_steps(server.open_call_steps(limit)))["calls"])

    async def connections(_: object) -> list[dict[str, Any]]:
        downstream = server.open_connection_facts()
        await trio.lowlevel.checkpoint()
        return numbered([*downstream, *upstream_connection_facts(_targets(clusters))])

    return {
        "report": report,
        "calls": calls,
        "connections": connections,
        "log": lambda level: setattr(log, "level", level),
    }


async def _in_steps(steps: Generator[None, None, OpenCallsReport]) -> OpenCallsReport:
    """What a generator returns; calls go on between its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            facts: OpenCallsReport = end.value
            return facts
        await trio.lowlevel.checkpoint()


def _exact_methods(serve: ServeSettings) -> list[str]:
    """The methods that routes name."""
    return [route.match for route in serve.routes if not route.match.endswith("*")]


def _listener_director(listener: ListenerSettings, director: StreamDirector) -> StreamDirector:
    if listener.forwarded != "none":
        director = tell_forwarded(director, listener.forwarded, trusted_proxies=listener.trusted_proxies)
    if listener.identity_header is not None:
        director = tell_identity(director, listener.identity_header)
    return director


def _http2(settings: Settings, path: str, http2: Http2Settings) -> Http2Settings:
    """Those of the table at this path. The workers share the memory that may be used, where nobody says how much."""
    if join(join(path, "http2"), "max_buffered") in settings.sources:
        return http2
    return attrs.evolve(http2, max_buffered_bytes=default_max_buffered_bytes(workers_of(settings.serve)))


def _pool(
    kind: PoolSettings,
    http2: Http2Settings,
    *,
    max_connections: int,
    guard: LoopGuard,
    observer: PoolObserver,
    wrap: Wrap | None,
) -> Pool:
    return Pool(
        kind.size,
        kind.ttl_s,
        kind.idle,
        kind.ms,
        max_waiting=kind.max_waiting,
        max_connections=max_connections,
        dial_timeout_s=kind.dial_timeout_s,
        connect_wait_s=kind.connect_wait_s,
        loop_guard=guard,
        settings=http2,
        observer=observer,
        wrap=wrap,
    )


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
    if settings.serve.tracing is not None:
        problem = guard.objection(Address.parse(settings.serve.tracing.address))
        if problem is not None:
            raise ConfigError(f"{settings.name_of('tracing.otlp')}: {problem}")
