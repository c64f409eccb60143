"""What can be set of a route: which calls it takes, where they go, and what is changed on the way."""

import math
from collections.abc import Mapping

import attrs

from rawgrpc_proxy.command.settings.problems import Problems
from rawgrpc_proxy.command.settings.retries import HedgingSettings, RetrySettings
from rawgrpc_proxy.command.settings.traffic import (
    ConcurrencySettings,
    MirrorSettings,
    RateLimitSettings,
    SplitSettings,
)
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.response_changes import ResponseChanges
from rawgrpc_proxy.proxy.patterns import check_pattern
from rawgrpc_proxy.proxy.rate_limit import header_name
from rawgrpc_proxy.validators import at_least, held_to


def _check_fields(fields: Mapping[str, str]) -> None:
    for key, text in fields.items():
        Metadata().with_value(key, text)


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        Metadata().without(name)


def _check_key(key: str | None) -> None:
    if key is not None:
        header_name(key)


def _check_response_changes(changes: "MetadataChanges") -> None:
    ResponseChanges(remove=changes.remove, set_values=changes.set)


@attrs.frozen(kw_only=True)
class MetadataChanges:
    """What is changed in the metadata of a call: first removed, then set."""

    set: Mapping[str, str] = attrs.field(factory=dict, validator=held_to(_check_fields))
    """Keys and their one value each."""

    remove: tuple[str, ...] = attrs.field(factory=tuple, validator=held_to(_check_names))
    """Keys that go no further."""


@attrs.frozen(kw_only=True)
class RouteSettings:
    """Which calls go to which cluster. The first route that matches decides; what none matches is UNIMPLEMENTED."""

    match: str = attrs.field(default="/*", validator=held_to(check_pattern))
    """A service (`/pkg.Service/*`), a method (`/pkg.Service/Method`), a prefix (`/api/*`), or every method (`/*`)."""

    authority: str | None = attrs.field(default=None)
    """The `:authority` that the call must have; letters may be small or large, a port counts."""

    metadata: Mapping[str, str] = attrs.field(factory=dict, validator=held_to(_check_fields))
    """Metadata that the call must have: of each key, one value that is just this."""

    cluster: str | None = attrs.field(default=None)
    """The name of the cluster; or there is a `split`."""

    split: tuple[SplitSettings, ...] = attrs.field(factory=tuple)
    """Several clusters that share the calls, by weight: `[{ cluster = "a", weight = 90 }, { cluster = "b", weight = 10
    }]`."""

    sticky: str | None = attrs.field(default=None, validator=held_to(_check_key))
    """With `split`, a key of metadata, like "x-user": calls with the same value go to the same cluster, in whichever
    worker and after a restart, too, and a hundredth more weight for one of two moves a hundredth of the values. Calls
    without it are split by chance."""

    rate_limit: RateLimitSettings | None = attrs.field(default=None)
    """Without it calls are not counted in time."""

    concurrency: ConcurrencySettings | None = attrs.field(default=None)
    """Without it there may be as many calls as the cluster takes."""

    mirror: MirrorSettings | None = attrs.field(default=None)
    """Without it no call is copied."""

    max_timeout_s: float | None = attrs.field(default=None, validator=at_least(0.001))
    """The longest deadline: calls with a later one, or none, get this."""

    default_timeout_s: float | None = attrs.field(default=None, validator=at_least(0.001))
    """The deadline of calls that have none."""

    idle_timeout_s: float | None = attrs.field(default=None, validator=at_least(0.001))
    """A call of which nothing has passed for so long, neither of the request nor of the response, ends (UNAVAILABLE,
    flag `SI`, and RST_STREAM for the upstream); it may take a quarter longer. PING does not count: this is for streams
    whose peers are there and say nothing. By default they may do so for ever."""

    retry: RetrySettings | None = attrs.field(default=None)
    """When calls that have failed are sent again. By default only those are that provably were not processed."""

    hedging: HedgingSettings | None = attrs.field(default=None)
    """When copies of calls are sent that have no answer yet. A route has `retry` or `hedging`."""

    request_metadata: MetadataChanges = attrs.field(factory=MetadataChanges)
    """Changes to what the cluster gets. A caller cannot undo them in the trailers of its request."""

    response_metadata: MetadataChanges = attrs.field(
        factory=MetadataChanges, validator=held_to(_check_response_changes)
    )
    """Changes to what the caller gets of the cluster's responses: `remove` from headers and trailers, `set` in the
    headers, or in the one list of a response without any (Trailers-Only). Errors of the proxy's own stay as they are,
    and so does what a response says itself: `:status`, `content-type`, `grpc-status`, `grpc-message` and their like."""

    def problems(self) -> Problems:
        """What does not fit together."""
        if self.cluster is None and not self.split:
            yield "cluster", 'is missing; write it, or split = [{ cluster = "…", weight = 1 }, …]'
        if self.cluster is not None and self.split:
            yield "split", "is there, and cluster, too: calls go to one, or are split"
        if self.split and not any(part.weight for part in self.split):
            yield "split", "has but weights of 0: calls would go nowhere"
        if self.sticky is not None and not self.split:
            yield "sticky", "goes with split"
        if (self.max_timeout_s or math.inf) < (self.default_timeout_s or 0):
            yield "default_timeout", "is longer than max_timeout"
        if self.retry is not None and self.hedging is not None:
            yield "hedging", "is set beside retry; a route has one of them: hedging retries what fails, too"
