"""`RouteTable`: from a method to an address by patterns, and the director that goes by it.

For those whose routes are known when the program starts, like the command line; whatever has to look at metadata, at
the peer or at the time is a director of its own. Not done here: balancing over several addresses, rewriting, reloading.
The invariant: the first pattern in order that matches decides; a method that none matches goes nowhere.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Self

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.errors import ConfigError, NoRoute
from rawgrpc_proxy.grpc.path import path_problem, shortened
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.proxy.director import Direction, StreamDirector
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

_CATCH_ALL = "/*"
_REMEMBERED_METHODS = 1024
_REMEMBERED_CHARACTERS = 256
"""Of a method; longer ones are looked up each time, for they are mostly made up."""


class RouteTable:
    """Routes in the order in which they are tried.

    Each is a pattern and an address (`HOST:PORT` or `unix:PATH`). A pattern is one method (`/pkg.Service/Method`), all
    that is below a prefix, as the methods of one service (`/pkg.Service/*`, `/api/*`), or every method (`/*`). Paths
    are compared as they come, segment by segment: nothing is decoded, and upper and lower case differ. `default` is
    where methods go that no pattern matches; without it they are UNIMPLEMENTED.
    """

    def __init__(self, routes: Iterable[tuple[str, str]] = (), *, default: str | None = None) -> None:
        """Raise `ConfigError` for a pattern or an address that is none, and for a table without any route."""
        self._places: dict[str, tuple[int, str]] = {}
        self._depth = 0
        """Slashes of the longest prefix that is not every method's."""
        for place, (pattern, address) in enumerate(routes):
            if pattern != _CATCH_ALL and not _is_pattern(pattern):
                raise ConfigError(
                    f"{pattern!r} is no pattern; write '/pkg.Service/*', '/pkg.Service/Method', '/prefix/*' or '/*'"
                )
            if pattern.endswith(_CATCH_ALL):
                self._depth = max(self._depth, pattern.count("/") - 1)
            Address.parse(address)
            self._places.setdefault(pattern, (place, address))
        if default is not None:
            Address.parse(default)
            self._places.setdefault(_CATCH_ALL, (len(self._places), default))
        if not self._places:
            raise ConfigError("there is no route at all; give at least one, or a default")

    @classmethod
    def parse(cls, texts: Iterable[str], *, default: str | None = None) -> Self:
        """Read routes as they are written on the command line: `/pkg.Service/*=HOST:PORT`. Raises `ConfigError`."""
        routes = []
        for text in texts:
            pattern, equals, address = text.partition("=")
            if not equals:
                raise ConfigError(f"{text!r} is no route; write '/pkg.Service/*=HOST:PORT'")
            routes.append((pattern, address))
        return cls(routes, default=default)

    def find(self, method: str) -> str | None:
        """The address for this method (`/pkg.Service/Method`); None if there is no route for it."""
        places = self._places
        matching = [places[p] for p in (method, _CATCH_ALL) if p in places]
        # As many look-ups as the longest prefix has segments, however many routes there are, and however long a path.
        end = 0
        for _ in range(self._depth):
            end = method.find("/", end + 1)
            if end < 0:
                break
            place = places.get(f"{method[:end]}{_CATCH_ALL}")
            if place is not None:
                matching.append(place)
        return min(matching)[1] if matching else None

    def director(self, pool: Pool) -> StreamDirector:
        """A director whose targets are of `pool`, and that refuses with UNIMPLEMENTED what has no route."""

        def target_of(method: str) -> Target | None:
            address = self.find(method)
            return None if address is None else pool.target(address)

        # Routes stay as they are, and so do the answers; not all are kept, for a caller can make up methods.
        remembered = lru_cache(maxsize=_REMEMBERED_METHODS)(target_of)

        def direct(context: CallContext, method: str) -> Direction:
            target = remembered(method) if len(method) <= _REMEMBERED_CHARACTERS else target_of(method)
            if target is None:
                raise NoRoute(f"no route for {shortened(method)}")
            return context, target

        return direct


def _is_pattern(text: str) -> bool:
    """Whether it is a method, or a prefix and `/*`. A service alone is mostly one whose `/*` was forgotten."""
    return (
        text.count("/") > 1
        and "*" not in text.removesuffix(_CATCH_ALL)
        and path_problem(text.encode()) is None
    )
