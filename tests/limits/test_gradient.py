"""The limit that follows how long calls take, against an upstream that is modelled: calls beyond its capacity queue."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.limits.gradient import Gradient

STEP_S = 0.005


class Upstream:
    """Serves so many calls at a time, each in `service_s`; callers always want `wanted` calls open, if they may."""

    def __init__(
        self, gradient: Gradient, *, capacity: int, service_s: float = 0.02, wanted: int = 250
    ) -> None:
        self.gradient = gradient
        self.capacity = capacity
        self.service_s = service_s
        self.wanted = wanted
        self.now = 0.0
        self.open: list[tuple[float, float]] = []
        """When each call began, and how long it still has to be served."""
        self.fewest = self.most = 0

    def run(self, seconds: float) -> None:
        self.fewest = self.most = self.gradient.limit
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            while len(self.open) < min(self.gradient.limit, self.wanted):
                self.open.append((self.now, self.service_s))
                self.gradient.began(len(self.open))
            served, queued = self.open[: self.capacity], self.open[self.capacity :]
            self.open = []
            for began_at, left in served:
                if left <= STEP_S:
                    self.gradient.ended(began_at, self.now)
                else:
                    self.open.append((began_at, left - STEP_S))
            self.open += queued
            self.fewest = min(self.fewest, self.gradient.limit)
            self.most = max(self.most, self.gradient.limit)


def gradient(minimum: int = 1, maximum: int = 1000) -> Gradient:
    return Gradient(minimum, maximum, Random(1))


@pytest.mark.parametrize("capacity", [10, 60, 100])
def test_the_limit_comes_to_what_the_upstream_serves_at_a_time_and_stays_there(capacity: int) -> None:
    upstream = Upstream(gradient(), capacity=capacity)
    upstream.run(20)
    upstream.run(20)
    assert capacity <= upstream.gradient.limit <= 2.2 * capacity
    assert upstream.most <= 2.2 * capacity


def test_an_upstream_that_loses_half_of_its_capacity_gets_fewer_calls_within_seconds() -> None:
    upstream = Upstream(gradient(), capacity=100)
    upstream.run(20)
    assert upstream.gradient.limit >= 100
    upstream.capacity = 30
    upstream.run(5)
    assert upstream.gradient.limit <= 70
    upstream.capacity = 100
    upstream.run(20)
    assert upstream.gradient.limit >= 100


def test_an_upstream_that_is_slower_from_now_on_is_limited_only_until_it_is_measured_anew() -> None:
    upstream = Upstream(gradient(), capacity=100, service_s=0.02)
    upstream.run(20)
    upstream.service_s = 0.1
    upstream.run(10)
    assert upstream.gradient.limit < 50
    upstream.run(90)
    assert upstream.gradient.limit >= 100


def test_an_overload_that_lasts_is_not_taken_for_the_way_things_are() -> None:
    upstream = Upstream(gradient(), capacity=50)
    upstream.run(120)
    assert upstream.gradient.limit <= 2.2 * 50


def test_few_calls_do_not_raise_the_limit_and_are_measured_at_no_cost() -> None:
    upstream = Upstream(gradient(), capacity=100, wanted=5)
    upstream.run(100)
    assert (upstream.fewest, upstream.most) == (20, 20)


def test_calls_that_mostly_end_by_their_deadline_lower_the_limit() -> None:
    learned = gradient()
    for number in range(200):
        learned.began(20)
        learned.expired(number * 0.02 - 1, number * 0.02)
    assert learned.limit <= 10


@settings(max_examples=50)
@given(
    bounds=st.tuples(st.integers(1, 50), st.integers(0, 50)),
    calls=st.lists(
        st.tuples(st.floats(0, 0.5), st.floats(0, 2), st.booleans(), st.integers(0, 200)), max_size=400
    ),
)
def test_the_limit_stays_within_its_bounds(
    bounds: tuple[int, int], calls: list[tuple[float, float, bool, int]]
) -> None:
    minimum, maximum = bounds[0], sum(bounds)
    learned, now = gradient(minimum, maximum), 0.0
    for step, took_s, well, others in calls:
        now += step
        learned.began(others)
        (learned.ended if well else learned.expired)(now - took_s, now)
        assert minimum <= learned.limit <= maximum


@pytest.mark.parametrize("bounds", [(0, 5), (6, 5)])
def test_bounds_that_are_none_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="min <= max"):
        gradient(*bounds)
