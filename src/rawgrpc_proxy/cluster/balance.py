"""Which of several endpoints a call gets. Pure: no clock, no I/O, chance is an argument."""

from collections.abc import Collection, Sequence
from random import Random
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a balancer has to know of an endpoint."""

    @property
    def effective_weight(self) -> float:
        """Its share of the calls, beside the others'; above 0."""

    @property
    def calls(self) -> int:
        """Calls that it has now, those that wait for a place included."""


C = TypeVar("C", bound=Candidate)


class Balancer(Protocol[C]):
    """Decides who is next."""

    def update(self, candidates: Sequence[C]) -> None:
        """Those that may be chosen, or their weights, have changed."""

    def pick(self, key: bytes | None = None, avoid: Collection[C] = ()) -> C | None:
        """One of them; None if there is none, or all are to be avoided."""


class RoundRobin(Balancer[C]):
    """Each in turn."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._candidates: list[C] = []
        self._next = 0

    def update(self, candidates: Sequence[C]) -> None:
        """Begin anywhere, so that many processes do not all begin with the same."""
        self._candidates = list(candidates)
        self._next = self._rng.randrange(len(candidates)) if candidates else 0

    def pick(self, key: bytes | None = None, avoid: Collection[C] = ()) -> C | None:  # noqa: ARG002  # not by key
        """The next one."""
        candidates = self._candidates
        for _ in candidates:
            place = self._next
            self._next = place + 1 if place + 1 < len(candidates) else 0
            if candidates[place] not in avoid:
                return candidates[place]
        return None
