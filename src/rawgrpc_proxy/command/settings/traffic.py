"""What can be set of a route's traffic: how it is split, how much there may be, and where copies go.

Figures are for the whole proxy: each worker has its share of them (`assembly.py`).
"""

from typing import Any

import attrs

from rawgrpc_proxy.command.settings.problems import Problems
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.proxy.rate_limit import MAX_KEYS, check_per, parse_rate
from rawgrpc_proxy.validators import at_least, between, held_to


def _some_calls(_instance: object, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
    if value is not None and not 1 <= value < float("inf"):
        raise ConfigError(f"{attribute.name} is {value!r}; it must be 1 or more, or no call gets through")


@attrs.frozen(kw_only=True)
class SplitSettings:
    """A part of a route's calls, and the cluster that gets it."""

    cluster: str = attrs.field()
    """The name of the cluster."""

    weight: float = attrs.field(validator=between(0, 1e9))
    """Its share is this over the sum of the weights; 0: nothing."""


@attrs.frozen(kw_only=True)
class RateLimitSettings:
    """How many calls there may be in a time.

    The others are RESOURCE_EXHAUSTED, flag `RL`, with `grpc-retry-pushback-ms`.
    """

    rate: str = attrs.field(validator=held_to(parse_rate))
    """"100/s", "30/m" or "5/h": what a token bucket gets. Workers share it: with four each lets a quarter through, so a
    caller with a single connection, which is on one worker, gets a quarter."""

    burst: float | None = attrs.field(default=None, validator=_some_calls)
    """How many calls may come at once: what the bucket holds, shared in the same way. By default what comes in a
    second, and at least one in each worker."""

    per: str = attrs.field(default="route", validator=held_to(check_per))
    """Whose calls have a bucket in common: all of the "route"; those of a "peer" (an IPv4 address, a /64 of IPv6, all
    who come to Unix sockets); or those with the same value under a key, like "x-user"; calls without it are one."""

    max_keys: int = attrs.field(default=MAX_KEYS, validator=at_least(1))
    """Peers or values that have a bucket of their own, in each worker: some 300 bytes each. While there are more at the
    same time, the others share a thousand buckets by chance, so that nobody can use up memory by making up values."""


@attrs.frozen(kw_only=True)
class ConcurrencySettings:
    """How many calls may be under way.

    The others are RESOURCE_EXHAUSTED at once, flag `UO`, with `grpc-retry-pushback-ms`.
    """

    max: int | None = attrs.field(default=None, validator=at_least(1))
    """The limit; with `adaptive` its upper bound, by default 1000. Workers share it, rounded up."""

    adaptive: bool = attrs.field(default=False)
    """Find the limit by how long unary calls take: it falls when they begin to queue. For a route whose methods take
    more or less the same time; streams belong into another one."""

    min: int | None = attrs.field(default=None, validator=at_least(1))
    """With `adaptive`: its lower bound, by default 4. Workers share it, rounded up."""

    def problems(self) -> Problems:
        """What does not fit together."""
        if not self.adaptive and self.max is None:
            yield "max", "is missing; write it, or adaptive = true"
        if not self.adaptive and self.min is not None:
            yield "min", "goes with adaptive = true"
        if self.adaptive and self.minimum > self.maximum:
            yield "min", f"of {self.minimum} is more than max, {self.maximum}"

    @property
    def minimum(self) -> int:
        """The lower bound of an adaptive limit."""
        return 4 if self.min is None else self.min

    @property
    def maximum(self) -> int:
        """Its upper bound."""
        return 1000 if self.max is None else self.max


@attrs.frozen(kw_only=True)
class MirrorSettings:
    """A cluster that gets copies of calls. Its responses are thrown away; their statuses are compared, and counted."""

    cluster: str = attrs.field()
    """The name of the cluster, the shadow. A copy is marked with `x-rawgrpc-mirror: 1`."""

    share: float = attrs.field(default=1.0, validator=between(0, 1))
    """Of the calls the share that is copied, by chance: 0.1 is every tenth."""

    max_calls: int = attrs.field(default=100, validator=at_least(1))
    """Copies under way, in each worker; other calls are not copied."""

    max_call_buffered_bytes: int = attrs.field(default=1024 * 1024, validator=at_least(1))
    """What may wait of one copy for the shadow to take it. Beyond that the copy is given up (CANCEL), for nothing waits
    for a shadow."""

    max_buffered_bytes: int = attrs.field(default=16 * 1024 * 1024, validator=at_least(1))
    """The same for all of them together, in each worker."""

    def problems(self) -> Problems:
        """What does not fit together."""
        if self.max_call_buffered_bytes > self.max_buffered_bytes:
            yield (
                "max_call_buffered",
                f"is more than max_buffered, {self.max_buffered_bytes}; raise that, too",
            )
