"""How upstreams are, for those who ask. Nothing is kept for it."""

from collections.abc import Iterable

from rawgrpc_proxy.net.connection_facts import connection_fact
from rawgrpc_proxy.observe.report import EndpointReport, OpenConnection
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target


def upstream_connection_facts(targets: Iterable[Target], limit: int = 1000) -> list[OpenConnection]:
    """Of at most `limit` connections to these targets how they are; each once. For the thread of the pool."""
    facts: list[OpenConnection] = []
    for target in dict.fromkeys(targets):
        for conn in _established(target):
            if len(facts) >= limit:
                return facts
            assert conn.connection is not None
            facts.append(connection_fact("upstream", target.address, conn.connection))
    return facts


def _established(target: Target) -> list[PooledConnection]:
    """Its connections but for those beyond `size`, which each belong to one call."""
    record = target.record
    return [
        conn for conn in (*record.with_room, *record.busy, *record.leaving) if conn.connection is not None
    ]


def endpoint_fact(cluster: str, target: Target) -> EndpointReport:
    """How one target is, of whichever cluster it is; that gives it calls, as far as is known here.

    `statuses` and `ejections` are left empty, `Metrics` knows them. For the thread of the pool.
    """
    pooled = _established(target)
    beyond = max(0, target.established - len(pooled))
    sharing = sum(len(conn.waiting) for conn in target.record.with_room)
    return {
        "cluster": cluster,
        "address": target.address,
        "connections": target.established,
        "calls": sum(conn.streams for conn in pooled) + beyond,
        "waiting": target.waiting + sharing,
        "dialling": target.dialling,
        "streams": sum(conn.connection.session.streams_opened for conn in pooled if conn.connection) + beyond,
        "state": _state(target),
        "standing": "in_rotation",
        "statuses": {},
        "ejections": {},
        "last_error": None if target.trouble is None else str(target.trouble),
        "explain": "\n".join(target.explain()),
    }


def _state(target: Target) -> str:
    if target.established:
        return "ready"
    if target.dialling:
        return "connecting"
    return "idle" if target.trouble is None else "backoff"
