"""What the log says of endpoints that get no calls any more, and of those that get some again.

What it does not do: write lines (`call_log.py`).
"""

from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.words import cut, word


class EndpointNotices(PoolObserver):
    """Puts these events into words; each is seldom, and told each time."""

    def notice(self, event: str, text: str, **facts: object) -> None:
        """Write it: `text` for people, `event` and `facts` for machines."""
        raise NotImplementedError

    def endpoint_ejected(self, cluster: str, address: str, algorithm: str, why: str, for_s: float) -> None:
        """Write who gets no calls, why, and for how long."""
        text = f"{_named(cluster, address)} is ejected for {for_s:g} s: {why}"
        facts = {"cluster": cluster, "upstream": address, "algorithm": algorithm, "for_s": for_s}
        self.notice("endpoint_ejected", text, **facts, reason=why)

    def endpoint_returned(self, cluster: str, address: str) -> None:
        """Write that its time is over."""
        text = f"{_named(cluster, address)} is ejected no more"
        self.notice("endpoint_returned", text, cluster=cluster, upstream=address)

    def endpoint_unhealthy(self, cluster: str, address: str, why: str) -> None:
        """Write who is not well, and why."""
        why = cut(why)
        text = f"{_named(cluster, address)} is unhealthy: {why}"
        self.notice("endpoint_unhealthy", text, cluster=cluster, upstream=address, reason=why)

    def endpoint_healthy(self, cluster: str, address: str) -> None:
        """Write that it is well again."""
        text = f"{_named(cluster, address)} is healthy again"
        self.notice("endpoint_healthy", text, cluster=cluster, upstream=address)


def _named(cluster: str, address: str) -> str:
    return f"upstream {word(address)}" + (f" of {word(cluster)}" if cluster else "")
