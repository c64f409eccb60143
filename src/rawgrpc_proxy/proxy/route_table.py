"""`RouteTable`: from a method to an address by patterns, and the director that goes by it.

For programs whose routes are known when they start, and are patterns alone; whatever has to look at metadata, at
the peer or at the time is a director of its own. Not done here: balancing over several addresses, rewriting, reloading.
The invariant: the first pattern in order that matches decides; a method that none matches goes nowhere.
"""

from collections.abc import Iterable
from typing import Self

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.proxy.director import StreamDirector
from rawgrpc_proxy.proxy.patterns import CATCH_ALL, PatternTable
from rawgrpc_proxy.proxy.routing import Route, director_of
from rawgrpc_proxy.upstream.pool import Pool


class RouteTable:
    """Routes in the order in which they are tried.

    Each is a pattern and an address (`HOST:PORT` or `unix:PATH`). A pattern is one method (`/pkg.Service/Method`), all
    that is below a prefix, as the methods of one service (`/pkg.Service/*`, `/api/*`), or every method (`/*`). Paths
    are compared as they come, segment by segment: nothing is decoded, and upper and lower case differ. `default` is
    where methods go that no pattern matches; without it they are UNIMPLEMENTED.
    """

    def __init__(self, routes: Iterable[tuple[str, str]] = (), *, default: str | None = None) -> None:
        """Raise `ConfigError` for a pattern or an address that is none, and for a table without any route."""
        self._entries = [*routes, *([] if default is None else [(CATCH_ALL, default)])]
        self._table = PatternTable(self._entries)
        for _, address in self._entries:
            Address.parse(address)
        if not self._entries:
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
        found = self._table.find_all(method)
        return found[0] if found else None

    def director(self, pool: Pool) -> StreamDirector:
        """A director whose targets are of `pool`, and that refuses with UNIMPLEMENTED what has no route."""
        return director_of(
            Route(pattern, pool.target(address), names=(pattern, address))
            for pattern, address in self._entries
        )
