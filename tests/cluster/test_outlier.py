"""Outlier detection by gRFC A50, and by failures in a row: pure, with times as arguments."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.cluster.outlier import Ejection, OutlierDetector, OutlierStats
from rawgrpc_proxy.cluster.outlier_settings import FailurePercentage, OutlierDetection, SuccessRate

ONLY_IN_A_ROW = OutlierDetection(success_rate=None, failure_percentage=None)
ONLY_SUCCESS_RATE = OutlierDetection(failure_percentage=None, consecutive_failures=None)
ONLY_FAILURE_PERCENTAGE = OutlierDetection(success_rate=None, consecutive_failures=None)


def a_detector(settings: OutlierDetection, endpoints: int) -> tuple[OutlierDetector, list[OutlierStats]]:
    """A detector for so many endpoints, without any calls yet."""
    detector = OutlierDetector(settings, random.Random(1))
    return detector, [detector.add() for _ in range(endpoints)]


def calls(detector: OutlierDetector, stats: OutlierStats, *, good: int, bad: int = 0) -> list[Ejection]:
    """Let so many calls fail at time 0, and then so many end well."""
    ejections = [detector.failed(stats, 0.0) for _ in range(bad)]
    if good:
        stats.successes += good
        stats.in_a_row = 0
    return [ejection for ejection in ejections if ejection is not None]


# ---------------------------------------------------------------- success rate


def test_of_five_the_one_that_fails_half_its_calls_is_ejected_by_success_rate() -> None:
    detector, (*good, bad) = a_detector(ONLY_SUCCESS_RATE, 5)
    for stats in good:
        calls(detector, stats, good=100)
    calls(detector, bad, good=50, bad=50)
    (ejection,) = detector.sweep(10.0).ejected
    assert ejection.stats is bad
    assert ejection.algorithm == "success_rate"
    assert ejection.for_s == 30.0


@pytest.mark.parametrize("missing", ["a host", "volume of the bad one", "volume of a good one"])
def test_success_rate_rests_where_a50_says_so(missing: str) -> None:
    detector, (*good, bad) = a_detector(ONLY_SUCCESS_RATE, 4 if missing == "a host" else 5)
    for stats in good:
        calls(detector, stats, good=99 if missing == "volume of a good one" else 100)
    calls(detector, bad, good=40 if missing == "volume of the bad one" else 50, bad=50)
    assert not detector.sweep(10.0).ejected


def test_one_within_the_standard_deviations_is_no_outlier() -> None:
    detector, all_of_them = a_detector(ONLY_SUCCESS_RATE, 6)
    for stats in all_of_them[:3]:
        calls(detector, stats, good=100)
    for stats in all_of_them[3:]:
        calls(detector, stats, good=50, bad=50)
    assert not detector.sweep(10.0).ejected


@given(
    good=st.integers(0, 1000),
    bad=st.integers(0, 1000),
    endpoints=st.integers(1, 40),
    factors=st.lists(st.integers(1, 7), min_size=40, max_size=40),
    stdev_factor=st.integers(0, 3000),
)
def test_equal_endpoints_are_never_ejected_by_success_rate(
    good: int, bad: int, endpoints: int, factors: Sequence[int], stdev_factor: int
) -> None:
    rate = SuccessRate(minimum_hosts=1, request_volume=1, stdev_factor=stdev_factor)
    settings = OutlierDetection(
        success_rate=rate, failure_percentage=None, consecutive_failures=None, max_ejection_percent=100
    )
    detector, all_of_them = a_detector(settings, endpoints)
    for stats, factor in zip(all_of_them, factors, strict=False):
        calls(detector, stats, good=good * factor, bad=bad * factor)
    assert not detector.sweep(10.0).ejected


def test_a_minimum_of_hosts_that_never_finds_anything_is_refused_with_the_reason() -> None:
    (problem,) = SuccessRate(minimum_hosts=3).problems()
    assert problem[0] == "minimum_hosts"
    assert "1.41 standard deviations" in problem[1]
    assert not list(SuccessRate().problems())
    assert not list(SuccessRate(minimum_hosts=3, stdev_factor=1300).problems())


@given(rates=st.lists(st.integers(0, 100), min_size=2, max_size=8), stdev_factor=st.integers(0, 3000))
def test_what_is_refused_would_indeed_never_find_anything(rates: list[int], stdev_factor: int) -> None:
    rate = SuccessRate(minimum_hosts=len(rates), request_volume=1, stdev_factor=stdev_factor)
    settings = OutlierDetection(success_rate=rate, failure_percentage=None, consecutive_failures=None)
    detector, all_of_them = a_detector(settings, len(rates))
    for stats, good in zip(all_of_them, rates, strict=True):
        calls(detector, stats, good=good, bad=100 - good)
    if list(rate.problems()):
        assert not detector.sweep(10.0).ejected


# ---------------------------------------------------------- failure percentage


def test_one_that_fails_more_than_the_threshold_is_ejected_however_the_others_do() -> None:
    detector, (*others, last) = a_detector(ONLY_FAILURE_PERCENTAGE, 5)
    for stats in others:
        calls(detector, stats, good=15, bad=85)  # the threshold is not more than itself
    calls(detector, last, good=14, bad=86)
    (ejection,) = detector.sweep(10.0).ejected
    assert (ejection.stats, ejection.algorithm) == (last, "failure_percentage")


@pytest.mark.parametrize("missing", ["a host", "volume of the bad one", "volume of a good one"])
def test_failure_percentage_rests_where_a50_says_so(missing: str) -> None:
    detector, (*good, bad) = a_detector(ONLY_FAILURE_PERCENTAGE, 4 if missing == "a host" else 5)
    for stats in good:
        calls(detector, stats, good=49 if missing == "volume of a good one" else 50)
    calls(detector, bad, good=0, bad=49 if missing == "volume of the bad one" else 50)
    assert not detector.sweep(10.0).ejected


def test_of_three_the_one_that_fails_every_second_call_is_ejected_with_the_settings_for_small_clusters() -> (
    None
):
    settings = OutlierDetection(failure_percentage=FailurePercentage(threshold=40, minimum_hosts=3))
    detector, (*good, bad) = a_detector(settings, 3)
    for stats in good:
        calls(detector, stats, good=100)
    for _ in range(50):
        assert not calls(detector, bad, good=1, bad=1), "there are never five in a row"
    (ejection,) = detector.sweep(10.0).ejected
    assert ejection.stats is bad


def test_counts_are_of_one_interval_not_of_more() -> None:
    detector, (*good, bad) = a_detector(ONLY_FAILURE_PERCENTAGE, 5)
    for now in (10.0, 20.0):
        for stats in good:
            calls(detector, stats, good=100)
        calls(detector, bad, good=0, bad=25)
        assert not detector.sweep(now).ejected


# -------------------------------------------------------------- failures in a row


def test_five_failures_in_a_row_eject_at_once() -> None:
    detector, (stats, *_) = a_detector(ONLY_IN_A_ROW, 3)
    assert not calls(detector, stats, good=1, bad=4)
    assert not calls(detector, stats, good=0, bad=4)
    (ejection,) = calls(detector, stats, good=0, bad=1)
    assert (ejection.stats, ejection.algorithm, ejection.for_s) == (stats, "consecutive_failures", 30.0)


def test_late_failures_of_one_that_is_ejected_prolong_nothing() -> None:
    detector, (stats, *_) = a_detector(ONLY_IN_A_ROW, 3)
    assert calls(detector, stats, good=0, bad=5)
    assert not any(detector.failed(stats, 29.0) for _ in range(20))
    assert detector.sweep(30.0).returned == [stats]
    assert detector.unenforced == 0


def test_failures_of_one_that_is_gone_eject_nobody() -> None:
    detector, (stats, *_) = a_detector(ONLY_IN_A_ROW, 3)
    detector.remove(stats)
    assert not calls(detector, stats, good=0, bad=20)
    assert detector.ejected == 0


# --------------------------------------------------------------- ejection and return


def fail_at_once(detector: OutlierDetector, stats: OutlierStats, now: float) -> float:
    """Have it ejected; for how long."""
    ejections = [detector.failed(stats, now) for _ in range(5)]
    assert ejections[-1] is not None
    return ejections[-1].for_s


def test_each_ejection_is_longer_up_to_the_longest_and_sweeps_in_use_make_it_shorter_again() -> None:
    detector, (stats, *_) = a_detector(ONLY_IN_A_ROW, 3)
    now, times = 0.0, []
    for _ in range(12):
        times.append(fail_at_once(detector, stats, now))
        began = now
        while stats.ejected_at is not None:
            now += 10
            detector.sweep(now)
        assert now - began == times[-1]
    assert times == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]
    for _ in range(11):
        now += 10
        detector.sweep(now)
    assert fail_at_once(detector, stats, now) == 60, "one is left of twelve"


def test_a_base_time_above_the_longest_is_the_longest() -> None:
    settings = OutlierDetection(
        base_ejection_time_s=400, max_ejection_time_s=300, success_rate=None, failure_percentage=None
    )
    detector, (stats, *_) = a_detector(settings, 3)
    assert fail_at_once(detector, stats, 0.0) == 400


@pytest.mark.parametrize(
    ("endpoints", "percent", "most"), [(1, 10, 1), (2, 10, 1), (3, 10, 1), (10, 10, 1), (11, 10, 2), (20, 10, 2),
                                       (4, 50, 2), (3, 100, 3), (5, 0, 0)]
)  # fmt: skip
def test_no_more_are_ejected_once_the_share_is_reached(endpoints: int, percent: int, most: int) -> None:
    settings = OutlierDetection(
        max_ejection_percent=percent, failure_percentage=FailurePercentage(minimum_hosts=1), success_rate=None
    )
    detector, all_of_them = a_detector(settings, endpoints)
    for stats in all_of_them:
        calls(detector, stats, good=0, bad=100)
    detector.sweep(10.0)
    assert detector.ejected == most
    assert bool(detector.unenforced) == (most < endpoints)


@pytest.mark.parametrize(("enforcement", "least", "most"), [(0, 0, 0), (100, 1000, 1000), (30, 250, 350)])
def test_enforcement_is_the_chance_that_an_outlier_is_ejected(
    enforcement: int, least: int, most: int
) -> None:
    percentage = FailurePercentage(minimum_hosts=1, enforcement=enforcement)
    settings = OutlierDetection(
        max_ejection_percent=100,
        failure_percentage=percentage,
        success_rate=None,
        consecutive_failures=None,
    )
    detector, all_of_them = a_detector(settings, 1000)
    for stats in all_of_them:
        calls(detector, stats, good=0, bad=50)
    assert least <= len(detector.sweep(10.0).ejected) <= most


@given(data=st.data(), endpoints=st.integers(1, 12), percent=st.integers(0, 100))
def test_whatever_happens_no_more_than_the_share_is_ejected_and_all_come_back(
    data: st.DataObject, endpoints: int, percent: int
) -> None:
    settings = OutlierDetection(
        max_ejection_percent=percent,
        success_rate=SuccessRate(request_volume=5, stdev_factor=500, minimum_hosts=2),
        failure_percentage=FailurePercentage(request_volume=5, threshold=50, minimum_hosts=1),
    )
    detector, all_of_them = a_detector(settings, endpoints)
    now = 0.0
    ejected_until: dict[OutlierStats, float] = {}
    ended = counted = 0
    for _ in range(data.draw(st.integers(1, 8))):
        ejections = []
        for stats in all_of_them:
            for ok in data.draw(st.lists(st.booleans(), max_size=12)):
                ended += 1
                if ok:
                    calls(detector, stats, good=1)
                elif ejection := detector.failed(stats, now):
                    ejections.append(ejection)
        counted += sum(stats.successes + stats.failures for stats in all_of_them)
        now += 10.0
        sweep = detector.sweep(now)
        for ejection in ejections + sweep.ejected:
            assert ejection.stats not in ejected_until, "it was ejected already"
            assert 30.0 <= ejection.for_s <= 300.0
            assert ejection.stats.ejected_at is not None
            ejected_until[ejection.stats] = ejection.stats.ejected_at + ejection.for_s
        for stats in sweep.returned:
            assert ejected_until.pop(stats) <= now
        assert {stats for stats in all_of_them if stats.ejected_at is not None} == set(ejected_until)
        assert detector.ejected == len(ejected_until)
        assert 100 * (len(ejected_until) - 1) < percent * endpoints
    assert ended == counted
    for _ in range(30):
        now += 10.0
        detector.sweep(now)
    assert detector.ejected == 0


def test_an_endpoint_that_goes_takes_its_ejection_with_it() -> None:
    detector, (first, second, _) = a_detector(ONLY_IN_A_ROW, 3)
    fail_at_once(detector, first, 0.0)
    assert not calls(detector, second, good=0, bad=5), "there is one already"
    detector.remove(first)
    fail_at_once(detector, second, 1.0)
