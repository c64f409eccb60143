"""`RouteTable`: from a method to an address by patterns, and the director that goes by it.

For those whose routes are known when the program starts, like the command line; whatever has to look at metadata, at
the peer or at the time is a director of its own. Not done here: balancing over several addresses, rewriting, reloading.
The invariant: the first pattern in order that matches decides; a method that none matches goes nowhere.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Self

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.director import Direction, StreamDirector
from rawgrpc_proxy.errors import ConfigError, NoRoute
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.pool import Pool, Target

_CATCH_ALL = "/*"
_REMEMBERED_METHODS = 1024
_PATTERN = re.compile(r"/\*|/[\w.-]+/(?:\*|[\w.-]+)", re.ASCII)


class RouteTable:
    """Routes in the order in which they are tried.

    Each is a pattern and an address (`HOST:PORT` or `unix:PATH`). A pattern is one method (`/pkg.Service/Method`), all
    methods of one service (`/pkg.Service/*`), or every method (`/*`). `default` is where methods go that no pattern
    matches; without it they are UNIMPLEMENTED.
    """

    def __init__(self, routes: Iterable[tuple[str, str]] = (), *, default: str | None = None) -> None:
        """Raise `ConfigError` for a pattern or an address that is none, and for a table without any route."""
        self._places: dict[str, tuple[int, str]] = {}
        for place, (pattern, address) in enumerate(routes):
            if not _PATTERN.fullmatch(pattern):
                raise ConfigError(
                    f"{pattern!r} is no pattern; write '/pkg.Service/*', '/pkg.Service/Method' or '/*'"
                )
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
        service = method[: method.rfind("/")]
        # A method can match three patterns at most, so this costs the same however many routes there are.
        matching = [places[p] for p in (method, f"{service}/*", _CATCH_ALL) if p in places]
        return min(matching)[1] if matching else None

    def director(self, pool: Pool) -> StreamDirector:
        """A director whose targets are of `pool`, and that refuses with UNIMPLEMENTED what has no route."""

        @lru_cache(maxsize=_REMEMBERED_METHODS)  # not all are kept, for a caller can make up methods
        def target_of(method: str) -> Target | None:
            address = self.find(method)
            return None if address is None else pool.target(address)

        def direct(context: CallContext, method: str) -> Direction:
            target = target_of(method)
            if target is None:
                raise NoRoute(f"no route for {method}")
            return context, target

        return direct
