"""`RouteTable`: from a method to an address by patterns, and the director that goes by it.

For those whose routes are known when the program starts, like the command line; whatever has to look at metadata, at
the peer or at the time is a director of its own. Not done here: balancing over several addresses, rewriting, reloading.
The invariant: the first pattern in order that matches decides; a method that none matches goes nowhere.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Generic, Self, TypeVar

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.errors import ConfigError, NoRoute
from rawgrpc_proxy.grpc.path import path_problem, shortened
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.proxy.director import Direction, StreamDirector
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

_CATCH_ALL = "/*"
REMEMBERED_METHODS = 1024
REMEMBERED_CHARACTERS = 256
"""Of a method; longer ones are looked up each time, for they are mostly made up."""

T = TypeVar("T")


class PatternTable(Generic[T]):
    """Things by the patterns of methods, in the order in which they are tried."""

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        """Raise `ConfigError` for a pattern that is none."""
        self._entries: dict[str, list[tuple[int, T]]] = {}
        self._depth = 0
        """Slashes of the longest prefix that is not every method's."""
        for place, (pattern, thing) in enumerate(entries):
            check_pattern(pattern)
            if pattern.endswith(_CATCH_ALL):
                self._depth = max(self._depth, pattern.count("/") - 1)
            self._entries.setdefault(pattern, []).append((place, thing))

    def find_all(self, method: str) -> list[T]:
        """What there is for this method, in order."""
        entries = self._entries
        matching = [*entries.get(method, ()), *entries.get(_CATCH_ALL, ())]
        # As many look-ups as the longest prefix has segments, however many there are, and however long a path.
        end = 0
        for _ in range(self._depth):
            end = method.find("/", end + 1)
            if end < 0:
                break
            matching += entries.get(f"{method[:end]}{_CATCH_ALL}", ())
        return [thing for _, thing in sorted(matching, key=_place)]


def _place(entry: tuple[int, object]) -> int:
    return entry[0]


class RouteTable:
    """Routes in the order in which they are tried.

    Each is a pattern and an address (`HOST:PORT` or `unix:PATH`). A pattern is one method (`/pkg.Service/Method`), all
    that is below a prefix, as the methods of one service (`/pkg.Service/*`, `/api/*`), or every method (`/*`). Paths
    are compared as they come, segment by segment: nothing is decoded, and upper and lower case differ. `default` is
    where methods go that no pattern matches; without it they are UNIMPLEMENTED.
    """

    def __init__(self, routes: Iterable[tuple[str, str]] = (), *, default: str | None = None) -> None:
        """Raise `ConfigError` for a pattern or an address that is none, and for a table without any route."""
        entries = [*routes, *([] if default is None else [(_CATCH_ALL, default)])]
        self._table = PatternTable(entries)
        for _, address in entries:
            Address.parse(address)
        if not entries:
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

        def target_of(method: str) -> Target | None:
            address = self.find(method)
            return None if address is None else pool.target(address)

        # Routes stay as they are, and so do the answers; not all are kept, for a caller can make up methods.
        remembered = lru_cache(maxsize=REMEMBERED_METHODS)(target_of)

        def direct(context: CallContext, method: str) -> Direction:
            target = remembered(method) if len(method) <= REMEMBERED_CHARACTERS else target_of(method)
            if target is None:
                raise NoRoute(f"no route for {shortened(method)}")
            return context, target

        return direct


def check_pattern(text: str) -> None:
    """Raise `ConfigError` for what is no method, nor a prefix and `/*`.

    A service alone is none: mostly its `/*` was forgotten.
    """
    if text != _CATCH_ALL and not (
        text.count("/") > 1
        and "*" not in text.removesuffix(_CATCH_ALL)
        and path_problem(text.encode()) is None
    ):
        raise ConfigError(
            f"{text!r} is no pattern; write '/pkg.Service/*', '/pkg.Service/Method', '/prefix/*' or '/*'"
        )
