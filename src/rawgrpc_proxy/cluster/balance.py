"""Which endpoint of a cluster gets the next call.

Pure: no trio, no clock; chance is an argument. A balancer is told the endpoints that may be used, with their weights,
whenever these change (`update`), and answers one of them for each call (`pick`). How many calls an endpoint has it
looks up there. Weights are read in `update` only.

    round_robin    in turn; with weights each is due after 1 / weight, and the one that is due first gets the call
    least_request  some by chance (two), and of these the one with the fewest calls for its weight
    ring_hash      the same key, the same endpoint: consistent hashing with bounded loads
    pick_first     the first, until it is gone

Many workers, each with a balancer of its own, share the endpoints: none begins with the first of the list because it
is the first, and an update is no new beginning.
"""

import bisect
import hashlib
import heapq
import itertools
import math
import random
import struct
from collections import deque
from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

from rawgrpc_proxy.upstream.call_total import CallTotal

_POINTS = 256
"""On the ring, for the heaviest candidate: shares are within some 6 % (one deviation) of what they should be."""
_MOST_POINTS = 32 * 1024
"""On the whole ring, which calls wait for some 10 ms: of more than 128 candidates each has fewer (at 1000: 18 %)."""
_DRAWS = 8
"""So often chance may choose one that is to be avoided, until it is asked about the others alone."""
_PLACE_BITS = 32
_PLACE = (1 << _PLACE_BITS) - 1
_EXACT = 1e-6
"""A sum of weights that is so small a part of what it was taken from is summed up anew."""
_DIGEST = struct.Struct("<8Q")


class Candidate(Protocol):
    """An endpoint, as a balancer knows it. Two are the same if they are the same object."""

    @property
    def address(self) -> str:
        """Where it is, and so where on the ring: the same in each worker and after each restart."""

    @property
    def effective_weight(self) -> float:
        """How many calls it shall get, relative to others; more than 0."""

    @property
    def calls(self) -> int:
        """Those it has now, in flight or waiting."""


class CountedCandidate(Candidate, Protocol):
    """One whose calls can be had together with those of others, without adding them up for each pick."""

    def count_in(self, total: CallTotal) -> None:
        """Its calls are among these until `count_out`."""

    def count_out(self, total: CallTotal) -> None:
        """Its calls are not among these any more."""


C = TypeVar("C", bound=Candidate)
Counted = TypeVar("Counted", bound=CountedCandidate)


class Balancer(Protocol[C]):
    """Decides between candidates."""

    def update(self, candidates: Sequence[C]) -> None:
        """These may be used from now on, with these weights."""

    def pick(self, key: bytes | None = None, avoid: Collection[C] = ()) -> C | None:
        """The one for the next call, but none of `avoid`; None if there is none.

        `key` is what calls that belong together have in common, for the balancer that looks at it.
        """


class RoundRobin(Generic[C]):
    """In turn, as often as the weights say.

    With equal weights a queue. Else each is due after 1 / weight of a time that runs with the picks, so that in each
    unit of it a candidate is picked `weight` times, spread evenly. Those avoided stay due. What stays through an update
    is due as it was; what joins comes in by chance.
    """

    __slots__ = ("_due", "_now", "_queue", "_random")

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = _own(rng).random
        self._queue: deque[C] = deque()
        """The candidates, if their weights are equal, the next one first."""
        self._due: list[tuple[float, int, float, C]] = []
        """Else a heap of when each is due, a number that nobody else has, 1 / weight, and the candidate."""
        self._now = 0.0
        """When the last one picked was due."""

    def update(self, candidates: Sequence[C]) -> None:
        """These may be used from now on, with these weights."""
        waits = self._waits()
        turns = [(waits.get(each, self._random()), each.effective_weight, each) for each in candidates]
        turns.sort(key=lambda turn: turn[0])
        self._queue.clear()
        self._due, self._now = [], 0.0
        if len({weight for _, weight, _ in turns}) <= 1:
            self._queue.extend(each for _, _, each in turns)
            return
        self._due = [
            (wait / weight, number, 1 / weight, each) for number, (wait, weight, each) in enumerate(turns)
        ]
        heapq.heapify(self._due)

    def _waits(self) -> dict[C, float]:
        """What part of its own interval each still has to wait for its turn."""
        count = len(self._queue)
        waits = {each: place / count for place, each in enumerate(self._queue)}
        waits |= {each: max(0.0, due - self._now) / interval for due, _, interval, each in self._due}
        return waits

    def pick(self, key: bytes | None = None, avoid: Collection[C] = ()) -> C | None:  # noqa: ARG002  # the protocol's
        """The one whose turn it is."""
        queue = self._queue
        if queue and not avoid:
            picked = queue[0]
            queue.rotate(-1)
            return picked
        return self._pick_due(avoid) if self._due else self._pick_other(avoid)

    def _pick_other(self, avoid: Collection[C]) -> C | None:
        queue = self._queue
        for place, picked in enumerate(queue):
            if picked not in avoid:
                del queue[place]
                queue.append(picked)
                return picked
        return None

    def _pick_due(self, avoid: Collection[C]) -> C | None:
        heap = self._due
        avoided = []
        while heap and heap[0][3] in avoid:
            avoided.append(heapq.heappop(heap))
        picked = None
        if heap:
            due, number, interval, picked = heap[0]
            # One that was avoided for long does not make up for all it has missed.
            self._now = max(due, self._now)
            heapq.heapreplace(heap, (self._now + interval, number, interval, picked))
        for turn in avoided:
            heapq.heappush(heap, turn)
        return picked


class LeastRequest(Generic[C]):
    """Of some candidates chosen by chance the one with the fewest calls: a slow one has more of them, and gets fewer.

    With weights, chance follows the weights, and calls count in proportion to them. Of those that are equal the one
    chosen first is it: without load the shares are those of the weights.
    """

    __slots__ = ("_candidates", "_choices", "_equal", "_random", "_sums", "_weights")

    def __init__(self, choices: int = 2, rng: random.Random | None = None) -> None:
        self._choices = choices
        self._random = _own(rng).random
        self._candidates: list[C] = []
        self._weights: list[float] = []
        self._sums: list[float] = []
        """Of the weights: each with all before it."""
        self._equal = True

    def update(self, candidates: Sequence[C]) -> None:
        """These may be used from now on, with these weights."""
        self._candidates = list(candidates)
        self._weights = [each.effective_weight for each in candidates]
        self._sums = list(itertools.accumulate(self._weights))
        self._equal = len(set(self._weights)) <= 1

    def pick(self, key: bytes | None = None, avoid: Collection[C] = ()) -> C | None:  # noqa: ARG002  # the protocol's
        """The one with the fewest calls of those that chance has chosen."""
        candidates = self._candidates
        if avoid or self._choices != 2 or not self._equal:  # noqa: PLR2004
            return self._pick_any(avoid)
        count = len(candidates)
        if not count:
            return None
        random = self._random
        place = int(random() * count)
        first = candidates[place]
        second = candidates[place - 1 - int(random() * (count - 1))]  # another one, if there is one
        return second if second.calls < first.calls else first

    def _pick_any(self, avoid: Collection[C]) -> C | None:
        """The same for any weights and number of choices. The same one may be chosen twice."""
        candidates, weights, sums = self._candidates, self._weights, self._sums
        if not candidates:
            return None
        last = len(candidates) - 1
        best, fewest = None, math.inf
        for _ in range(self._choices):
            place = min(bisect.bisect_right(sums, self._random() * sums[-1]), last)
            if avoid and candidates[place] in avoid:
                other = self._choose_other(avoid)
                if other is None:
                    return None
                place = other
            calls = candidates[place].calls / weights[place]
            if calls < fewest:
                best, fewest = candidates[place], calls
        return best

    def _choose_other(self, avoid: Collection[C]) -> int | None:
        """Where one is that chance has chosen, but none of those to avoid. None: there are no others."""
        candidates, sums = self._candidates, self._sums
        last = len(candidates) - 1
        for _ in range(_DRAWS):
            place = min(bisect.bisect_right(sums, self._random() * sums[-1]), last)
            if candidates[place] not in avoid:
                return place
        # Those to avoid have most of the weight. The chances of the others are the same by this longer way.
        left = [place for place, each in enumerate(candidates) if each not in avoid]
        if not left:
            return None
        sums = list(itertools.accumulate(self._weights[place] for place in left))
        return left[min(bisect.bisect_right(sums, self._random() * sums[-1]), len(left) - 1)]


class RingHash(Generic[Counted]):
    """The same key, the same candidate, in each worker and after each restart: consistent hashing.

    Each candidate has points on a ring, as many as its weight says; a key is that one's whose point comes next. When
    one of n joins or leaves, about one key in n moves. Bounded loads (Mirrokni, Thorup, Zadimoghaddam): no candidate
    gets a call while it has more than `bounded_load` times its share of all calls that are open; the next one on the
    ring that has room gets it. Calls without a key go anywhere. A pick costs the same among three and among a thousand.
    """

    __slots__ = (
        "_bound",
        "_candidates",
        "_known",
        "_open",
        "_places",
        "_random_bits",
        "_ring",
        "_total",
        "_weights",
    )

    def __init__(self, bounded_load: float | None = 1.25, rng: random.Random | None = None) -> None:
        self._bound = bounded_load
        self._random_bits = _own(rng).getrandbits
        self._candidates: list[Counted] = []
        """In the order of their addresses: where two have the same point, it is always the same one's."""
        self._places: dict[Counted, int] = {}
        """Where each is in there."""
        self._open = CallTotal()
        """The calls that they have; kept only where there is a bound."""
        self._weights: list[float] = []
        self._ring: list[int] | None = []
        """The points in order, each followed by its owner's place in `_candidates`. None: to be made by the next pick,
        since one change seldom comes alone."""
        self._known: dict[str, list[int]] = {}
        """The points of each candidate by its address, so that a change of one is not work for all."""
        self._total = 0.0

    def update(self, candidates: Sequence[Counted]) -> None:
        """These may be used from now on, with these weights."""
        there = sorted(candidates, key=lambda each: each.address)
        weights = [each.effective_weight for each in there]
        if weights != self._weights or [each.address for each in there] != [
            each.address for each in self._candidates
        ]:
            self._ring = None
        if self._bound is not None:
            was, now = set(self._candidates), set(there)
            for each in was - now:
                each.count_out(self._open)
            for each in now - was:
                each.count_in(self._open)
        self._candidates, self._weights, self._total = there, weights, sum(weights)
        self._places = {each: place for place, each in enumerate(there)}

    def _make_ring(self) -> list[int]:
        weights = self._weights
        heaviest = max(weights, default=1.0)
        # By their weights: a heavy one among many has as many as it would alone, or it could not have its share.
        most = min(_POINTS, max(1, int(_MOST_POINTS * heaviest / (self._total or 1.0))))
        known, self._known = self._known, {}
        ring: list[int] = []
        for place, candidate in enumerate(self._candidates):
            address = candidate.address
            count = max(1, round(most * weights[place] / heaviest))
            if len(points := known.get(address, [])) < count:
                points = _points_of(address, count)
            self._known[address] = points
            ring += [point + place for point in points[:count]]
        ring.sort()
        self._ring = ring
        return ring

    def pick(self, key: bytes | None = None, avoid: Collection[Counted] = ()) -> Counted | None:
        """The one that has the key, or the next one on the ring that has room."""
        ring = self._make_ring() if self._ring is None else self._ring
        if not ring:
            return None
        at = self._random_bits(64) if key is None else _hash(key)
        point = bisect.bisect_left(ring, at << _PLACE_BITS) % len(ring)
        if avoid:
            return self._next(ring, point, avoid)
        owner = ring[point] & _PLACE
        picked = self._candidates[owner]
        bound = self._bound
        if bound is None or not picked.calls:  # one without calls has room for one, whatever the others have
            return picked
        if picked.calls < math.ceil(bound * (1 + self._open.calls) / self._total * self._weights[owner]):
            return picked
        return self._next(ring, point, ())

    def _next(self, ring: list[int], first: int, avoid: Collection[Counted]) -> Counted | None:
        """The first one that has room, from this point on."""
        candidates, weights = self._candidates, self._weights
        avoided = {self._places[each] for each in avoid if each in self._places}
        if len(avoided) == len(candidates):
            return None
        share = math.inf
        if self._bound is not None:
            calls = 1 + self._open.calls - sum(candidates[each].calls for each in avoided)
            rest = self._total - sum(weights[each] for each in avoided)
            if rest < self._total * _EXACT:  # next to nothing is left by rounding
                rest = sum(weight for place, weight in enumerate(weights) if place not in avoided)
            share = self._bound * calls / rest
        count = len(ring)
        for point in range(first, first + count):
            owner = ring[point % count] & _PLACE
            if owner in avoided:
                continue
            if share == math.inf or candidates[owner].calls < math.ceil(share * weights[owner]):
                return candidates[owner]
        return None


class PickFirst(Generic[C]):
    """The first in order, for as long as it is there, whatever joins before it.

    One that is only avoided stays the one; a call that avoids it gets the next in order.
    """

    __slots__ = ("_candidates", "_current")

    def __init__(self) -> None:
        self._candidates: list[C] = []
        self._current: C | None = None

    def update(self, candidates: Sequence[C]) -> None:
        """These may be used from now on."""
        self._candidates = list(candidates)
        if self._current not in self._candidates:
            self._current = self._candidates[0] if self._candidates else None

    def pick(self, key: bytes | None = None, avoid: Collection[C] = ()) -> C | None:  # noqa: ARG002  # the protocol's
        """The one that has had all calls so far."""
        if not avoid or self._current not in avoid:
            return self._current
        return next((each for each in self._candidates if each not in avoid), None)


def _own(rng: random.Random | None) -> random.Random:
    return rng or random.Random()  # noqa: S311  # shares, not secrets


def _hash(key: bytes) -> int:
    """Where a key is on the ring; the same in every process, whatever its PYTHONHASHSEED."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _points_of(address: str, count: int) -> list[int]:
    """At least so many, each with room for a place behind it."""
    points: list[int] = []
    for number in range(-(-count // 8)):
        points += _DIGEST.unpack(hashlib.blake2b(f"{number} {address}".encode()).digest())
    return [point << _PLACE_BITS for point in points]
