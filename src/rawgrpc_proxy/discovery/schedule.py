"""`Schedule`: when the next look-up is due. Pure: no clock, no I/O; times are arguments.

    an answer ──its ttl, within bounds──► the next look-up; sooner, but not within a second, if something asks for it
    a failure ──a pause that grows──────► the next look-up; at its time, whoever asks

The lower bound on a ttl keeps names that change often from being asked for without end: many answer with a ttl of 0,
which is "do not keep this". The upper one is how long a change that was not planned goes unnoticed. The pauses after a
failure end within 5 s, so that a resolver that is back is of use again by then; nobody may ask for more, since a
resolver that fails is often one that has too much to do.
"""

import random

import attrs

DEFAULT_MIN_TTL_S = 1.0
"""A name's change is followed within its ttl and a second, at the cost of one look-up a second."""
DEFAULT_MAX_TTL_S = 300.0
"""Who plans a change lowers the ttl before; who does not has it noticed within five minutes, or as a dial fails."""
UNKNOWN_TTL_S = 30.0
"""For what has none: the system's resolver, the hosts file."""
_SOON_S = 1.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 4.0
_JITTER = 0.2
_MOST_DOUBLINGS = 10


@attrs.define(eq=False, kw_only=True)
class Schedule:
    """The look-ups of one name."""

    min_ttl_s: float = DEFAULT_MIN_TTL_S
    max_ttl_s: float = DEFAULT_MAX_TTL_S
    rng: random.Random
    _failures: int = attrs.field(default=0, init=False)

    def answered(self, began: float, now: float, ttl_s: float | None) -> tuple[float, float]:
        """When to look up again at the latest, and when at the earliest."""
        self._failures = 0
        ttl_s = UNKNOWN_TTL_S if ttl_s is None else ttl_s
        due = now + max(self.min_ttl_s, min(ttl_s, self.max_ttl_s))
        return due, min(began + _SOON_S, due)

    def failed(self, now: float) -> tuple[float, float]:
        """The same after a failure."""
        pause = min(_FIRST_PAUSE_S * 2 ** min(self._failures, _MOST_DOUBLINGS), _LONGEST_PAUSE_S)
        self._failures += 1
        due = now + pause * self.rng.uniform(1 - _JITTER, 1 + _JITTER)
        return due, due
