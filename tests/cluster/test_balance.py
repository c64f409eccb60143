"""Which endpoint gets the next call: shares, what moves, bounds, and what is to be avoided. Pure."""

import itertools
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.cluster.balance import (
    Balancer,
    LeastRequest,
    PickFirst,
    RingHash,
    RoundRobin,
)
from rawgrpc_proxy.cluster.balance_settings import POLICIES, Balance
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.upstream.call_total import CallTotal


class Endpoint:
    """What a balancer knows of one."""

    def __init__(self, address: str, effective_weight: float = 1.0, calls: int = 0) -> None:
        self.address = address
        self.effective_weight = effective_weight
        self._calls = calls
        self.looks = 0
        """How often somebody has asked for its calls."""
        self.totals: list[CallTotal] = []

    @property
    def calls(self) -> int:
        self.looks += 1
        return self._calls

    @calls.setter
    def calls(self, calls: int) -> None:
        for total in self.totals:
            total.calls += calls - self._calls
        self._calls = calls

    def count_in(self, total: CallTotal) -> None:
        self.totals.append(total)
        total.calls += self._calls

    def count_out(self, total: CallTotal) -> None:
        self.totals.remove(total)
        total.calls -= self._calls


class Asked(list[Endpoint]):
    """Some of them, and how often somebody has asked whether one is among them."""

    asked = 0

    def __contains__(self, each: object) -> bool:
        self.asked += 1
        return super().__contains__(each)


def endpoints(*weights: float) -> list[Endpoint]:
    return [
        Endpoint(f"10.0.0.{number}:50051", effective_weight=weight) for number, weight in enumerate(weights)
    ]


def picks(balancer: Balancer[Endpoint], count: int) -> list[Endpoint]:
    """So many in a row, none of which takes any time."""
    picked = [balancer.pick() for _ in range(count)]
    assert None not in picked
    return [each for each in picked if each is not None]


def picks_that_stay(balancer: Balancer[Endpoint], count: int) -> None:
    """So many in a row, with calls that do not end."""
    for _ in range(count):
        each = balancer.pick()
        assert each is not None
        each.calls += 1


def keys(count: int) -> list[bytes]:
    return [b"user-%d" % number for number in range(count)]


def owners(balancer: Balancer[Endpoint], count: int = 10_000) -> dict[bytes, str]:
    """Whose each key is, while nobody has any calls."""
    found = {key: balancer.pick(key) for key in keys(count)}
    return {key: each.address for key, each in found.items() if each is not None}


seeds = st.integers(0, 2**32).map(random.Random)
some_weights = st.lists(st.integers(1, 20), min_size=1, max_size=8)
any_weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


# ----------------------------------------------------------------- what holds for all


@pytest.mark.parametrize("avoids_some", [False, True])
@pytest.mark.parametrize(
    "balance",
    [*POLICIES, Balance(policy="least_request", choices=5)],
    ids=lambda each: getattr(each, "choices", each),
)
def test_a_pick_among_a_thousand_looks_at_no_more_of_them_than_one_among_ten(
    balance: Balance | str, avoids_some: bool
) -> None:
    rng = random.Random(1)
    balance = Balance.parse(balance) if isinstance(balance, str) else balance
    for weights in ([1.0] * 1000, [1.0 + n % 3 for n in range(1000)]):
        there = endpoints(*weights)
        balancer = balance.make(rng)
        balancer.update(there)
        for key in keys(3000):
            picked = balancer.pick(key, there[:3] if avoids_some else ())
            assert picked is not None
            picked.calls += 1
        for each in there:
            each.looks = 0
        avoid = Asked(there[:3] if avoids_some else ())
        for key in keys(100):
            assert balancer.pick(key, avoid) is not None
        assert avoid.asked + sum(each.looks for each in there) <= 100 * 20


@given(kind=st.sampled_from(POLICIES), weights=any_weights, rng=seeds, data=st.data())
def test_what_is_to_be_avoided_is_not_picked_and_nothing_is_only_if_all_are(
    kind: str, weights: list[float], rng: random.Random, data: st.DataObject
) -> None:
    balancer: Balancer[Endpoint] = Balance.parse(kind).make(rng)
    there = endpoints(*weights)
    for each in there:
        each.calls = data.draw(st.integers(0, 5))
    balancer.update(there)
    for _ in range(10):
        avoid = data.draw(st.lists(st.sampled_from(there), max_size=len(there)))
        key = data.draw(st.none() | st.binary(max_size=4))
        picked = balancer.pick(key, avoid)
        assert picked not in avoid
        assert (picked is None) == (set(avoid) == set(there))


@given(kind=st.sampled_from(POLICIES), rng=seeds, data=st.data())
def test_only_those_of_the_last_update_are_picked(kind: str, rng: random.Random, data: st.DataObject) -> None:
    balancer: Balancer[Endpoint] = Balance.parse(kind).make(rng)
    assert balancer.pick() is None
    everybody = endpoints(1, 2, 3, 4, 5)
    for _ in range(5):
        there = data.draw(st.lists(st.sampled_from(everybody), unique_by=id))
        for each in there:
            each.effective_weight = data.draw(st.sampled_from([0.1, 1.0, 1.0, 1.0, 5.0]))
        balancer.update(there)
        for _ in range(6):
            picked = balancer.pick(b"key")
            assert picked in there if there else picked is None


# ---------------------------------------------------------------------- round robin


@given(weights=some_weights, rng=seeds, skipped=st.integers(0, 50))
def test_in_turn_a_full_cycle_gives_each_what_its_weight_says(
    weights: list[int], rng: random.Random, skipped: int
) -> None:
    balancer: RoundRobin[Endpoint] = RoundRobin(rng)
    there = endpoints(*weights)
    balancer.update(there)
    picks(balancer, skipped)
    shares = Counter(picks(balancer, sum(weights)))
    for each, weight in zip(there, weights, strict=True):
        assert abs(shares[each] - weight) <= 1


@given(weights=any_weights, rng=seeds)
def test_in_turn_any_part_of_a_cycle_is_near_the_weights(weights: list[float], rng: random.Random) -> None:
    balancer: RoundRobin[Endpoint] = RoundRobin(rng)
    there = endpoints(*weights)
    balancer.update(there)
    so_far: Counter[Endpoint] = Counter()
    for count in range(1, 200):
        so_far[picks(balancer, 1)[0]] += 1
        for each in there:
            share = each.effective_weight / sum(weights)
            assert abs(so_far[each] - share * count) <= 1 + share * len(there)


def test_the_heavy_one_is_not_picked_in_a_burst() -> None:
    balancer: RoundRobin[Endpoint] = RoundRobin(random.Random(1))
    heavy, *_ = there = endpoints(5, 1, 1, 1, 1, 1)
    balancer.update(there)
    row = [each is heavy for each in picks(balancer, 100)]
    longest = max(len(list(group)) for is_heavy, group in itertools.groupby(row) if is_heavy)
    assert longest <= 2


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4)])
def test_the_first_calls_of_many_workers_do_not_all_go_to_the_same_endpoint(
    weights: Sequence[float],
) -> None:
    there = endpoints(*weights)
    first: Counter[Endpoint] = Counter()
    for seed in range(1000):
        balancer: RoundRobin[Endpoint] = RoundRobin(random.Random(seed))
        balancer.update(there)
        first.update(picks(balancer, 1))
    for each in there:
        share = each.effective_weight / sum(weights)
        assert first[each] / 1000 == pytest.approx(share, abs=0.1)


@given(weights=some_weights, rng=seeds, data=st.data())
def test_updates_that_change_nothing_are_not_noticed(
    weights: list[int], rng: random.Random, data: st.DataObject
) -> None:
    balancer: RoundRobin[Endpoint] = RoundRobin(rng)
    there = endpoints(*weights)
    balancer.update(there)
    shares: Counter[Endpoint] = Counter()
    left = sum(weights)
    while left:
        row = data.draw(st.integers(1, left))
        shares.update(picks(balancer, row))
        balancer.update(data.draw(st.permutations(there)))
        left -= row
    for each, weight in zip(there, weights, strict=True):
        assert abs(shares[each] - weight) <= 1


@given(rng=seeds, extra=st.sampled_from([0.5, 1.0, 2.0]))
def test_one_that_joins_and_leaves_at_every_pick_takes_nobodys_turn(rng: random.Random, extra: float) -> None:
    balancer: RoundRobin[Endpoint] = RoundRobin(rng)
    there = endpoints(1, 1, 1, 1)
    guest = Endpoint("guest", effective_weight=extra)
    shares: Counter[Endpoint] = Counter()
    for number in range(400):
        balancer.update([guest, *there] if number % 2 else there)
        shares.update(picks(balancer, 1))
    at_home = [shares[each] for each in there]
    assert max(at_home) - min(at_home) <= 1 + 0.1 * sum(at_home) / len(at_home)
    assert shares[guest] <= 200 * 2 * extra / (extra + 4)


def test_one_that_was_avoided_for_long_gets_its_share_again_and_no_more() -> None:
    for weights in ((1, 1, 1), (1, 2, 3)):
        balancer: RoundRobin[Endpoint] = RoundRobin(random.Random(3))
        there = endpoints(*weights)
        balancer.update(there)
        for _ in range(1000):
            balancer.pick(avoid=there[:1])
        assert Counter(picks(balancer, sum(weights)))[there[0]] in {1, 2}


def test_a_call_that_avoids_one_endpoint_does_not_cost_that_its_turn() -> None:
    balancer: RoundRobin[Endpoint] = RoundRobin(random.Random(3))
    one, two, three = there = endpoints(1, 1, 1)
    balancer.update(there)
    while balancer.pick() is not three:
        pass
    following = picks(balancer, 3)
    assert balancer.pick(avoid=following[:1]) is following[1]
    assert balancer.pick() is following[0]
    assert {one, two, three} == set(following)


# -------------------------------------------------------------------- least request


def served(
    balancer: Balancer[Endpoint], there: list[Endpoint], takes: dict[str, int], calls: int
) -> Counter[str]:
    """So many calls, one after each tick, which last as many ticks as `takes` says; whose they were."""
    ends: dict[int, list[Endpoint]] = {}
    shares: Counter[str] = Counter()
    balancer.update(there)
    for now in range(calls):
        for each in ends.pop(now, []):
            each.calls -= 1
        picked = balancer.pick()
        assert picked is not None
        picked.calls += 1
        shares[picked.address] += 1
        ends.setdefault(now + takes[picked.address], []).append(picked)
    return shares


@given(rng=seeds, count=st.integers(2, 20))
def test_the_fastest_get_the_calls_and_a_slow_one_few(rng: random.Random, count: int) -> None:
    there = endpoints(*[1] * count)
    takes = {each.address: count for each in there}
    takes[there[0].address] = 20 * count
    shares = served(LeastRequest(rng=rng), there, takes, 200 * count)
    assert shares[there[0].address] < 0.5 * 200


@pytest.mark.parametrize("choices", [2, 3])
def test_without_load_the_shares_are_those_of_the_weights(choices: int) -> None:
    there = endpoints(1, 2, 5)
    balancer: LeastRequest[Endpoint] = LeastRequest(choices, random.Random(1))
    balancer.update(there)
    shares = Counter(picks(balancer, 20_000))
    for each in there:
        assert shares[each] / 20_000 == pytest.approx(each.effective_weight / 8, abs=0.015)


def test_under_load_open_calls_are_in_proportion_to_the_weights() -> None:
    there = endpoints(1, 2, 5)
    balancer: LeastRequest[Endpoint] = LeastRequest(rng=random.Random(1))
    balancer.update(there)
    picks_that_stay(balancer, 800)
    for each in there:
        assert each.calls == pytest.approx(100 * each.effective_weight, rel=0.1)


@given(rng=seeds, count=st.integers(1, 30))
def test_with_two_choices_the_busiest_has_hardly_more_than_the_idlest(rng: random.Random, count: int) -> None:
    there = endpoints(*[1] * count)
    balancer: LeastRequest[Endpoint] = LeastRequest(rng=rng)
    balancer.update(there)
    picks_that_stay(balancer, 20 * count)
    assert max(each.calls for each in there) - min(each.calls for each in there) <= 12


def test_of_two_endpoints_the_idle_one_is_always_found() -> None:
    busy, idle = there = endpoints(1, 1)
    busy.calls = 1
    balancer: LeastRequest[Endpoint] = LeastRequest(rng=random.Random(1))
    balancer.update(there)
    assert set(picks(balancer, 100)) == {idle}


# ------------------------------------------------------------------------ ring hash


@given(count=st.integers(2, 20), rng=seeds, data=st.data())
def test_when_one_of_n_leaves_or_joins_only_its_keys_move(
    count: int, rng: random.Random, data: st.DataObject
) -> None:
    there = endpoints(*[1] * count)
    leaving = data.draw(st.sampled_from(there))
    balancer: RingHash[Endpoint] = RingHash(rng=rng)
    balancer.update(there)
    before = owners(balancer, 2000)
    balancer.update([each for each in there if each is not leaving])
    after = owners(balancer, 2000)
    moved = [key for key in before if before[key] != after[key]]
    assert {before[key] for key in moved} <= {leaving.address}
    assert len(moved) / 2000 <= 1 / count + 0.1
    balancer.update(there)
    assert owners(balancer, 2000) == before


def test_other_endpoints_at_the_same_addresses_take_the_place_of_those_before() -> None:
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(endpoints(1, 1, 1))
    before = owners(balancer, 100)
    others = endpoints(1, 1, 1)
    balancer.update(others)
    assert owners(balancer, 100) == before
    assert balancer.pick(b"key") in others


def test_many_changes_between_two_calls_cost_one_ring() -> None:
    there = endpoints(*[1] * 300)
    balancer: RingHash[Endpoint] = RingHash()

    def took(changes: int) -> float:
        began = time.thread_time()
        for count in range(changes):
            balancer.update(there[count + 1 :])
        balancer.pick(b"key")
        return time.thread_time() - began

    took(1)
    assert took(100) < 20 * took(1)


def test_a_heavy_one_among_very_many_has_its_share() -> None:
    there = endpoints(100, *[1] * 1000)
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(there)
    shares = Counter(owners(balancer).values())
    assert shares[there[0].address] / 10_000 == pytest.approx(100 / 1100, rel=0.3)
    assert len(shares) > 900


def test_each_of_very_many_endpoints_has_keys_and_few_move_when_one_leaves() -> None:
    there = endpoints(*[1] * 1000)
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(there)
    before = owners(balancer, 50_000)
    assert len(set(before.values())) == 1000
    assert max(Counter(before.values()).values()) < 2.5 * 50_000 / 1000
    balancer.update(there[:-1])
    after = owners(balancer, 50_000)
    assert sum(before[key] != after[key] for key in before) < 50_000 / 25


def test_keys_are_shared_out_as_the_weights_say() -> None:
    there = endpoints(1, 2, 5)
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(there)
    shares = Counter(owners(balancer).values())
    for each in there:
        assert shares[each.address] / 10_000 == pytest.approx(each.effective_weight / 8, rel=0.25)


def test_a_weight_that_grows_takes_keys_from_others_and_moves_none_between_them() -> None:
    there = endpoints(1, 1, 1)
    balancer: RingHash[Endpoint] = RingHash()
    there[0].effective_weight = 0.1
    balancer.update(there)
    before = owners(balancer)
    for weight in (0.4, 0.7, 1.0):
        there[0].effective_weight = weight
        balancer.update(there)
        after = owners(balancer)
        assert {after[key] for key in after if after[key] != before[key]} == {there[0].address}
        before = after


def test_every_process_has_the_same_ring_whatever_the_order_of_the_endpoints() -> None:
    program = """
from rawgrpc_proxy.cluster.balance import RingHash
from tests.cluster.test_balance import Endpoint
ring = RingHash()
ring.update([Endpoint(f"10.0.0.{number}:50051") for number in reversed(range(5))])
print(*(ring.pick(b"user-%d" % number).address for number in range(200)))
"""
    rows = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(endpoints(1, 1, 1, 1, 1))
    assert rows == {" ".join(owners(balancer, 200).values())}


def test_keys_stay_where_they_are_from_one_release_to_the_next() -> None:
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(endpoints(1, 1, 1))
    there = [where.removesuffix(":50051")[-1] for where in owners(balancer, 16).values()]
    assert "".join(there) == "1020101122102010"


@given(
    weights=any_weights,
    bound=st.floats(1, 3),
    steps=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=100),
    rng=seeds,
)
def test_nobody_gets_a_call_beyond_its_bounded_share(
    weights: list[float], bound: float, steps: list[tuple[int, bool]], rng: random.Random
) -> None:
    there = endpoints(*weights)
    balancer: RingHash[Endpoint] = RingHash(bound, rng)
    balancer.update(there)
    calls: list[Endpoint] = []
    for key, one_ends in steps:
        picked = balancer.pick(b"%d" % key)
        assert picked is not None
        picked.calls += 1
        calls.append(picked)
        share = picked.effective_weight / sum(weights)
        assert picked.calls <= math.ceil(bound * len(calls) * share + 1e-9)
        if one_ends:
            calls.pop(rng.randrange(len(calls))).calls -= 1


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=8),
    rng=seeds,
    rounds=st.lists(st.tuples(st.integers(1, 255), st.integers(0, 30)), max_size=6),
)
def test_what_endpoints_have_when_they_come_and_go_counts_as_if_they_had_always_been_there(
    weights: list[float], rng: random.Random, rounds: list[tuple[int, int]]
) -> None:
    everyone = endpoints(*weights)
    balancer: RingHash[Endpoint] = RingHash(rng=rng)
    for mask, calls in rounds:
        there = [each for number, each in enumerate(everyone) if mask >> number & 1]
        balancer.update(there)
        for _ in range(calls):
            each = rng.choice(everyone)
            each.calls = max(0, each.calls + rng.choice((-1, 1, 2)))
        fresh: RingHash[Endpoint] = RingHash(rng=rng)
        fresh.update(there)
        for key in keys(20):
            assert balancer.pick(key, everyone[:1]) is fresh.pick(key, everyone[:1])
            assert balancer.pick(key) is fresh.pick(key)
        fresh.update([])
    balancer.update([])
    assert not any(each.totals for each in everyone), "who has no endpoints is told of no calls"


def test_a_key_comes_back_to_its_endpoint_once_that_has_room() -> None:
    there = endpoints(1, 1, 1)
    balancer: RingHash[Endpoint] = RingHash()
    balancer.update(there)
    home = balancer.pick(b"key")
    assert home is not None
    home.calls = 10
    elsewhere = balancer.pick(b"key")
    assert elsewhere is not home
    home.calls = 0
    assert balancer.pick(b"key") is home


def test_without_a_bound_a_key_never_leaves_its_endpoint() -> None:
    there = endpoints(1, 1, 1)
    balancer: RingHash[Endpoint] = RingHash(None)
    balancer.update(there)
    home = balancer.pick(b"key")
    assert home is not None
    home.calls = 1000
    assert balancer.pick(b"key") is home


def test_calls_without_a_key_go_anywhere() -> None:
    there = endpoints(1, 1, 1)
    balancer: RingHash[Endpoint] = RingHash(rng=random.Random(1))
    balancer.update(there)
    shares = Counter(picks(balancer, 3000))
    assert min(shares[each] for each in there) > 700


# ----------------------------------------------------------------------- pick first


def test_the_first_has_all_calls_until_it_is_gone_and_gets_none_back() -> None:
    one, two, three = endpoints(1, 1, 1)
    balancer: PickFirst[Endpoint] = PickFirst()
    balancer.update([one, two, three])
    assert set(picks(balancer, 5)) == {one}
    balancer.update([two, three])
    assert set(picks(balancer, 5)) == {two}
    balancer.update([one, two, three])
    assert set(picks(balancer, 5)) == {two}


def test_a_call_that_avoids_the_first_has_the_next_and_the_others_stay() -> None:
    one, two, three = endpoints(1, 1, 1)
    balancer: PickFirst[Endpoint] = PickFirst()
    balancer.update([one, two, three])
    assert balancer.pick(avoid=[one]) is two
    assert balancer.pick(avoid=[one, two]) is three
    assert balancer.pick() is one


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kind", "balancer"),
    [
        ("round_robin", RoundRobin),
        ("least_request", LeastRequest),
        ("ring_hash", RingHash),
        ("pick_first", PickFirst),
    ],
)
def test_a_balancer_is_made_by_its_name(kind: str, balancer: type) -> None:
    assert type(Balance.parse(kind).make()) is balancer


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda: Balance.parse("random"),
            "balance is 'random'; it must be one of round_robin, least_request",
        ),
        (lambda: Balance(policy="ring_hash", bounded_load=0.9), "bounded_load is 0.9; it must be 1 or more"),
        (lambda: Balance(policy="least_request", choices=1), "choices is 1; it must be between 2 and 100"),
        (
            lambda: Balance(header="x-user").make(),
            "header is for .ring_hash.; .round_robin. looks at no header",
        ),
        (lambda: Balance(policy="ring_hash", header="X-User"), "lower case, like x-user"),
    ],
)
def test_what_cannot_be_is_said(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wrong()
