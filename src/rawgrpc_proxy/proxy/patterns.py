"""Patterns of methods, and what is found by them: what every table of routes stands on.

A pattern is a method, a prefix and `/*`, or `/*`. Nothing here knows where calls go. The invariant: what is found is in
the order in which it was given, and the time for it does not depend on how many patterns there are.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.path import path_problem

CATCH_ALL = "/*"
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
            if pattern.endswith(CATCH_ALL):
                self._depth = max(self._depth, pattern.count("/") - 1)
            self._entries.setdefault(pattern, []).append((place, thing))

    def find_all(self, method: str) -> list[T]:
        """What there is for this method, in order."""
        entries = self._entries
        matching = [*entries.get(method, ()), *entries.get(CATCH_ALL, ())]
        # As many look-ups as the longest prefix has segments, however many there are, and however long a path.
        end = 0
        for _ in range(self._depth):
            end = method.find("/", end + 1)
            if end < 0:
                break
            matching += entries.get(f"{method[:end]}{CATCH_ALL}", ())
        return [thing for _, thing in sorted(matching, key=_place)]


def _place(entry: tuple[int, object]) -> int:
    return entry[0]


def check_pattern(text: str) -> None:
    """Raise `ConfigError` for what is no method, nor a prefix and `/*`.

    A service alone is none: mostly its `/*` was forgotten.
    """
    if text != CATCH_ALL and not (
        text.count("/") > 1
        and "*" not in text.removesuffix(CATCH_ALL)
        and path_problem(text.encode()) is None
    ):
        raise ConfigError(
            f"{text!r} is no pattern; write '/pkg.Service/*', '/pkg.Service/Method', '/prefix/*' or '/*'"
        )
