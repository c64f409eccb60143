"""What the routes of `serve` are made of: where their calls go, what limits them, and who gets copies.

The figures of limits are for the whole proxy, and workers know nothing of each other; so each has its share.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from rawgrpc_proxy.call_policy import CallPolicy
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.command.settings.model import ServeSettings
from rawgrpc_proxy.command.settings.routes import MetadataChanges, RouteSettings
from rawgrpc_proxy.command.settings.traffic import ConcurrencySettings, MirrorSettings, RateLimitSettings
from rawgrpc_proxy.grpc.response_changes import ResponseChanges
from rawgrpc_proxy.limits.concurrency import AdaptiveLimit, ConcurrencyLimit
from rawgrpc_proxy.observe.report import TrafficReport
from rawgrpc_proxy.proxy.mirror import Mirror
from rawgrpc_proxy.proxy.rate_limit import RateLimit, RateLimiter
from rawgrpc_proxy.proxy.routing import Part, Route, SplitByWeight, routes_of_reflection


@attrs.frozen(kw_only=True)
class MadeRoute:
    """A route, and what holds and copies its calls. The mirror has to be opened."""

    name: str
    route: Route
    rate_limiter: RateLimiter | None = None
    concurrency: ConcurrencyLimit | None = None
    mirror: Mirror | None = None


def traffic_report(routes: Iterable[MadeRoute], clusters: Mapping[str, Cluster]) -> TrafficReport:
    """What was refused and copied, and how many calls are under way where that is limited."""
    routes = list(routes)
    refused: dict[str, dict[str, int]] = {}
    for made in routes:
        if made.rate_limiter is not None:
            refused.setdefault(made.name, {})["rate_limit"] = made.rate_limiter.refused
        if made.concurrency is not None:
            refused.setdefault(made.name, {})["concurrency"] = made.concurrency.refused
    limited = [(made.name, made.concurrency) for made in routes if made.concurrency is not None]
    mirrors = [(made.name, made.mirror) for made in routes if made.mirror is not None]
    return {
        "refused_by_routes": refused,
        "refused_by_clusters": {
            name: _refused_by(cluster)
            for name, cluster in clusters.items()
            if cluster.limits or cluster.max_pending is not None
        },
        "under_way": {name: limit.open_calls for name, limit in limited},
        "concurrency": {name: limit.limit for name, limit in limited},
        "mirrored": {name: mirror.sent for name, mirror in mirrors},
        "mirror_statuses": {
            name: {"same": mirror.same, "different": mirror.different, "given_up": mirror.given_up}
            for name, mirror in mirrors
        },
        "mirror_dropped": {name: dict(mirror.dropped) for name, mirror in mirrors},
    }


def _refused_by(cluster: Cluster) -> dict[str, int]:
    refused = {limit.name: limit.refused for limit in cluster.limits if isinstance(limit, ConcurrencyLimit)}
    if cluster.max_pending is not None:
        refused["max_pending"] = cluster.overflows
    return refused


def made_routes(serve: ServeSettings, clusters: Mapping[str, Cluster], workers: int) -> list[MadeRoute]:
    """The routes, those of reflection first. Raises `ConfigError`."""
    return list(_made(serve, clusters, workers))


def _made(serve: ServeSettings, clusters: Mapping[str, Cluster], workers: int) -> Iterator[MadeRoute]:
    if serve.reflection is not None:
        for route in routes_of_reflection(clusters[serve.reflection]):
            yield MadeRoute(name="reflection", route=route)
    for place, settings in enumerate(serve.routes):
        name = _name_of(serve.routes, place)
        limiter = _rate_limiter(settings.rate_limit, workers)
        concurrency = _concurrency(settings.concurrency, workers)
        mirror = _mirror(settings.mirror, clusters)
        route = Route(
            settings.match,
            _where(settings, clusters),
            authority=settings.authority,
            metadata=settings.metadata,
            max_timeout_s=settings.max_timeout_s,
            default_timeout_s=settings.default_timeout_s,
            remove=settings.request_metadata.remove,
            set_values=settings.request_metadata.set,
            names=(name, settings.cluster),
            response_changes=_response_changes(settings.response_metadata),
            rate_limiter=limiter,
            policy=_policy(settings, concurrency, mirror),
        )
        yield MadeRoute(name=name, route=route, rate_limiter=limiter, concurrency=concurrency, mirror=mirror)


def share_of(total: int, workers: int) -> int:
    """One worker's share of what all of them may have, rounded up: at least one."""
    return -(-total // workers)


def _where(settings: RouteSettings, clusters: Mapping[str, Cluster]) -> Cluster | SplitByWeight:
    if settings.cluster is not None:
        return clusters[settings.cluster]
    parts = [Part(part.cluster, clusters[part.cluster], part.weight) for part in settings.split]
    return SplitByWeight(parts, sticky=settings.sticky)


def _rate_limiter(settings: RateLimitSettings | None, workers: int) -> RateLimiter | None:
    if settings is None:
        return None
    limit = RateLimit.of(settings.rate, burst=settings.burst, per=settings.per, max_keys=settings.max_keys)
    return RateLimiter(limit.shared_by(workers))


def _concurrency(settings: ConcurrencySettings | None, workers: int) -> ConcurrencyLimit | None:
    if settings is None:
        return None
    maximum = share_of(settings.maximum, workers)
    if settings.adaptive:
        return AdaptiveLimit(share_of(settings.minimum, workers), maximum)
    return ConcurrencyLimit(maximum)


def _mirror(settings: MirrorSettings | None, clusters: Mapping[str, Cluster]) -> Mirror | None:
    if settings is None:
        return None
    return Mirror(
        clusters[settings.cluster],
        share=settings.share,
        max_calls=settings.max_calls,
        max_call_buffered_bytes=settings.max_call_buffered_bytes,
        max_buffered_bytes=settings.max_buffered_bytes,
    )


def _policy(
    settings: RouteSettings, concurrency: ConcurrencyLimit | None, mirror: Mirror | None
) -> CallPolicy | None:
    policy = CallPolicy(
        limits=() if concurrency is None else (concurrency,),
        mirror=mirror,
        idle_timeout_s=settings.idle_timeout_s,
        retry=None if settings.retry is None else settings.retry.policy,
        hedging=None if settings.hedging is None else settings.hedging.policy,
    )
    return None if policy == CallPolicy() else policy


def _name_of(routes: Sequence[RouteSettings], place: int) -> str:
    """What to call a route in the log: what it matches, with its place where others match the same."""
    match = routes[place].match
    return match if sum(route.match == match for route in routes) == 1 else f"{match}[{place}]"


def _response_changes(changes: MetadataChanges) -> ResponseChanges | None:
    if not changes.remove and not changes.set:
        return None
    return ResponseChanges(remove=changes.remove, set_values=changes.set)
