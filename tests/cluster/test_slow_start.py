"""How the weight of an endpoint grows once it has joined."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.cluster.slow_start import SlowStart
from rawgrpc_proxy.errors import ConfigError


@given(
    window_s=st.floats(0.1, 3600),
    aggression=st.floats(0.1, 10),
    min_weight=st.floats(0.001, 1),
    ages=st.lists(st.floats(-1, 2), min_size=2),
)
def test_the_weight_only_grows_from_the_least_to_the_whole(
    window_s: float, aggression: float, min_weight: float, ages: list[float]
) -> None:
    start = SlowStart(window_s=window_s, aggression=aggression, min_weight=min_weight)
    assert start.part(0) == min_weight
    assert start.part(window_s) == 1
    parts = [start.part(age * window_s) for age in sorted(ages)]
    assert all(sooner <= later for sooner, later in itertools.pairwise(parts))
    assert all(min_weight <= part <= 1 for part in parts)


def test_it_grows_with_the_time_or_faster_or_more_slowly() -> None:
    assert SlowStart(window_s=60).part(30) == pytest.approx(0.5)
    assert SlowStart(window_s=60, aggression=2).part(15) == pytest.approx(0.5)
    assert SlowStart(window_s=60, aggression=0.5).part(30) == pytest.approx(0.25)


@pytest.mark.parametrize("window_s", [0.1, 10, 60, 3600])
def test_weights_are_worked_out_often_enough_to_be_smooth_and_seldom_enough_to_be_cheap(
    window_s: float,
) -> None:
    assert 0.1 <= SlowStart(window_s=window_s).tick_s <= max(0.1, window_s / 30)


@pytest.mark.parametrize(
    "settings", [{"window_s": 0}, {"aggression": 0}, {"min_weight": 0}, {"min_weight": 1.5}]
)
def test_numbers_that_cannot_work_are_said(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must be between"):
        SlowStart(**{"window_s": 10.0, **settings})
