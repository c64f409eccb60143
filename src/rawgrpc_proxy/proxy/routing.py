"""Routes with conditions, changes and deadlines, and the director that goes by them: what the settings file can say.

`patterns.py` finds the routes of a method. The first route that takes a call decides. Of a method's routes only those
with conditions look at the call, and only those with changes make a new context, so a plain route costs a look-up.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from random import Random

import attrs
import trio

from rawgrpc_proxy.call import CallContext, ObservedContext
from rawgrpc_proxy.call_policy import CallPolicy
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.errors import NoRoute
from rawgrpc_proxy.grpc.path import shortened
from rawgrpc_proxy.grpc.response_changes import ResponseChanges
from rawgrpc_proxy.proxy.director import Direction, StreamDirector
from rawgrpc_proxy.proxy.patterns import PatternTable
from rawgrpc_proxy.proxy.rate_limit import RateLimiter, first_value, header_name
from rawgrpc_proxy.proxy.split import Split
from rawgrpc_proxy.upstream.target import Target

_REMEMBERED_METHODS = 1024
_REMEMBERED_CHARACTERS = 256
"""Of a method; longer ones are looked up each time, for they are mostly made up."""


@attrs.frozen
class Part:
    """Where a part of a route's calls goes: a cluster, by its name, and its share by weight."""

    name: str
    where: Target | Cluster
    weight: float


class SplitByWeight:
    """Where a route's calls go that are split: each part gets its share, of chance or of the values of a header.

    `sticky` is the key of that header: calls with the same value go to the same part, in every process; those without
    it are split by chance. Raises `ConfigError` for weights and keys that are none.
    """

    def __init__(
        self, parts: Sequence[Part], *, sticky: str | None = None, rng: Random | None = None
    ) -> None:
        self._split = Split([(part, part.weight) for part in parts])
        self._sticky = None if sticky is None else header_name(sticky)
        self._rng = rng or Random()  # noqa: S311  # no secret

    def choose(self, context: CallContext) -> Part:
        """The part that gets the call."""
        key = None if self._sticky is None else first_value(context, self._sticky)
        return self._split.choose(key, self._rng)


class Route:
    """Where calls go whose method matches a pattern, if they meet its conditions.

    `where` gets them, all or split. `authority` and `metadata` are conditions: the `:authority`, small or large letters
    alike, and for each key the one value that the call must have. `max_timeout_s` bounds every deadline,
    `default_timeout_s` is that of calls without one. `remove` and `set_values` change the metadata for the upstream, in
    this order, and `response_changes` what the caller gets. `names` are the route's own and its cluster's, for the call
    log. `rate_limiter` lets calls through, or refuses them, and `policy` is what more is done with them.
    """

    __slots__ = (
        "_authority",
        "_changes",
        "_default_timeout_s",
        "_is_conditional",
        "_max_timeout_s",
        "_metadata",
        "_names",
        "_policy",
        "_rate_limiter",
        "_remove",
        "_response_changes",
        "_set_values",
        "_split",
        "_where",
        "pattern",
    )

    def __init__(  # noqa: PLR0913  # all by keyword, and each optional
        self,
        pattern: str,
        where: Target | Cluster | SplitByWeight,
        *,
        authority: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_timeout_s: float | None = None,
        default_timeout_s: float | None = None,
        remove: Iterable[str] = (),
        set_values: Mapping[str, str] | None = None,
        names: tuple[str, str | None] | None = None,
        response_changes: ResponseChanges | None = None,
        rate_limiter: RateLimiter | None = None,
        policy: CallPolicy | None = None,
    ) -> None:
        self.pattern = pattern
        self._names = names
        self._split = where if isinstance(where, SplitByWeight) else None
        self._where = None if isinstance(where, SplitByWeight) else where
        self._rate_limiter = rate_limiter
        self._authority = None if authority is None else authority.lower()
        self._metadata = dict(metadata or {})
        self._is_conditional = authority is not None or bool(metadata)
        self._max_timeout_s = max_timeout_s
        self._default_timeout_s = default_timeout_s
        self._remove = tuple(remove)
        self._set_values = dict(set_values or {})
        self._response_changes = response_changes
        self._policy = policy
        self._changes = bool(
            self._remove
            or self._set_values
            or max_timeout_s
            or default_timeout_s
            or response_changes
            or policy
        )

    def direction(self, context: CallContext) -> Direction | None:
        """Where the call goes, and with what; None if this route does not take it.

        Raises `RateLimited` if it does, but lets no more calls through.
        """
        if self._is_conditional and not self._takes(context):
            return None
        if self._names is not None and isinstance(context, ObservedContext):
            context.extras.route, context.extras.cluster = self._names
        if self._rate_limiter is not None:
            self._rate_limiter.check(context, trio.current_time())
        where = self._where
        if where is None:
            where = self._part(context)
        return (self._changed(context) if self._changes else context), where

    def _part(self, context: CallContext) -> Target | Cluster:
        assert self._split is not None
        part = self._split.choose(context)
        if self._names is not None and isinstance(context, ObservedContext):
            context.extras.cluster = part.name
        return part.where

    def _takes(self, context: CallContext) -> bool:
        metadata = context.metadata
        if self._authority is not None and str(metadata.get(":authority", "")).lower() != self._authority:
            return False
        try:
            return all(metadata.get_all(key) == [value] for key, value in self._metadata.items())
        except ValueError:  # a binary value that is no base64
            return False

    def _changed(self, context: CallContext) -> CallContext:
        if self._default_timeout_s is not None and context.deadline is None:
            context = context.with_timeout(self._default_timeout_s)
        if self._max_timeout_s is not None:
            context = context.with_timeout(self._max_timeout_s)
        if self._remove or self._set_values:
            metadata = context.metadata
            for key in self._remove:
                metadata = metadata.without(key)
            for key, value in self._set_values.items():
                metadata = metadata.with_value(key, value)
            context = context.with_metadata(metadata)
        if self._response_changes is not None:
            context = context.with_response_changes(self._response_changes)
        if self._policy is not None:
            context = context.with_policy(self._policy)
        return context


def routes_of_reflection(where: Target | Cluster) -> list[Route]:
    """Routes for the calls of server reflection, of both of its versions."""
    return [Route(f"/grpc.reflection.{version}.ServerReflection/*", where) for version in ("v1", "v1alpha")]


def director_of(routes: Iterable[Route]) -> StreamDirector:
    """A director that goes by these routes, and refuses with UNIMPLEMENTED what none of them takes.

    Raises `ConfigError` for a pattern that is none.
    """
    table = PatternTable((route.pattern, route) for route in routes)
    # Routes stay as they are, and so does what matches; not all is kept, for a caller can make up methods.
    remembered = lru_cache(maxsize=_REMEMBERED_METHODS)(table.find_all)

    def direct(context: CallContext, method: str) -> Direction:
        for route in remembered(method) if len(method) <= _REMEMBERED_CHARACTERS else table.find_all(method):
            direction = route.direction(context)
            if direction is not None:
                return direction
        raise NoRoute(f"no route for {shortened(method)}")

    return direct
