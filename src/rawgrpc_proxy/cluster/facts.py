"""How the endpoints of clusters are, for those who ask. Nothing is kept for it."""

from collections.abc import Mapping

from rawgrpc_proxy.cluster.cluster import PANIC, Cluster
from rawgrpc_proxy.observe.report import EndpointReport
from rawgrpc_proxy.upstream.endpoints import endpoint_fact


def cluster_facts(clusters: Mapping[str, Cluster]) -> list[EndpointReport]:
    """How each endpoint is: what `endpoint_fact` says, and how it stands in its cluster. For the clusters' thread."""
    facts = []
    for name, cluster in clusters.items():
        for endpoint in (*cluster.endpoints, *cluster.draining):
            fact = endpoint_fact(name, endpoint.target)
            fact["standing"] = endpoint.standing
            panic = f" ({PANIC})" if cluster.panics and not endpoint.draining else ""
            fact["explain"] = "\n".join(filter(None, (f"{endpoint.explain()}{panic}", fact["explain"])))
            facts.append(fact)
    return facts
