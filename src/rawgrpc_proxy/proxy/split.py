"""A split of a route's calls by weight, with or without stickiness. Pure: chance is an argument.

With a key the choice follows from the key and the weights alone: it is the same in every worker, and after a restart.
The weights are laid behind each other as intervals, and the key's hash is a point on them. So when of two parts one
gets a hundredth more, a hundredth of the keys changes sides, and no other does.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from random import Random
from typing import Generic, TypeVar

from rawgrpc_proxy.errors import ConfigError

T = TypeVar("T")

_PERSON = b"rawgrpc split"
"""So that the point is independent of what else is chosen by a hash of the same key."""
_POINTS = 1 << 64


def check_weights(weights: Sequence[float]) -> None:
    """Raises `ConfigError` if nothing can be shared out by these."""
    if not all(0 <= weight < math.inf for weight in weights):
        raise ConfigError("a weight is a number, 0 or more")
    if not sum(weights):
        raise ConfigError("the weights are all 0: calls would go nowhere")


class Split(Generic[T]):
    """Things of which each gets a share by its weight; one with weight 0 gets nothing."""

    __slots__ = ("_bounds", "_last", "_things")

    def __init__(self, parts: Sequence[tuple[T, float]]) -> None:
        """Raises `ConfigError` for weights that are none."""
        check_weights([weight for _, weight in parts])
        parts = [part for part in parts if part[1]]
        self._things = [thing for thing, _ in parts]
        self._bounds = list(accumulate(weight for _, weight in parts))
        self._last = len(parts) - 1

    def choose(self, key: bytes | None, rng: Random) -> T:
        """The part of this key; without one, by chance."""
        if key is None:
            share = rng.random()
        else:
            digest = blake2b(key, digest_size=8, person=_PERSON).digest()
            share = int.from_bytes(digest, "big") / _POINTS
        # A share can be rounded up to 1.
        return self._things[min(bisect_right(self._bounds, share * self._bounds[-1]), self._last)]
