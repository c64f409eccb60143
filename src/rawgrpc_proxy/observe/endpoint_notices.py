"""What the log says of endpoints that get no calls any more, and of those that get some again; and of look-ups.

What it does not do: write lines (`call_log.py`).
"""

import time
from collections.abc import Sequence

from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.repeats import Repeats
from rawgrpc_proxy.observe.words import cut, word

_LOOK_UPS_INTERVAL_S = 60.0
_REMEMBERED_NAMES = 256
_MOST_ADDRESSES = 20


class EndpointNotices(PoolObserver):
    """Puts these events into words; each is seldom, and told each time, but for look-ups that fail again and again."""

    def __init__(self) -> None:
        self._look_ups = Repeats(interval_s=_LOOK_UPS_INTERVAL_S, most=_REMEMBERED_NAMES)

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

    def addresses_changed(self, name: str, addresses: Sequence[str]) -> None:
        """Write which addresses a name of a cluster has now."""
        some = [*addresses[:_MOST_ADDRESSES], *(["…"] if len(addresses) > _MOST_ADDRESSES else [])]
        text = f"{word(name)} is now {', '.join(some)}"
        self.notice("addresses_changed", text, name=name, addresses=some, count=len(addresses))

    def look_up_noted(self, name: str, note: str) -> None:
        """Write what of an answer is in doubt, or left out."""
        self.notice("look_up_noted", f"the look-up of {word(name)}: {note}", name=name, reason=note)

    def look_up_failed(self, name: str, duration_s: float, problem: str) -> None:
        """Write, once a minute at the most, why a name of a cluster cannot be looked up."""
        left_out = self._look_ups.left_out(name, "", time.monotonic())
        if left_out is None:
            return
        text = f"the look-up of {word(name)} has failed, and its addresses stay as they were: {problem}"
        if left_out:
            text += f" ({left_out} more of these since the last line)"
        self.notice("look_up_failed", text, name=name, reason=problem, left_out=left_out)


def _named(cluster: str, address: str) -> str:
    return f"upstream {word(address)}" + (f" of {word(cluster)}" if cluster else "")
