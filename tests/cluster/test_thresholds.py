"""What is thought of an endpoint by its checks: pure."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.cluster.thresholds import Thresholds


def after(thresholds: Thresholds, checks: str) -> str:
    """What is thought after each of these checks, of which "+" passes: "h"ealthy or "u"nhealthy."""
    states = ""
    for check in checks:
        thresholds.checked(passed=check == "+")
        states += "h" if thresholds.healthy else "u"
    return states


@pytest.mark.parametrize(
    ("checks", "states"),
    [("+", "h"), ("-", "u"), ("+--+---", "hhhhhhu"), ("+---+-++", "hhhuuuuh"), ("-++", "uuh"), ("+--+--+", "hhhhhhh")],
)  # fmt: skip
def test_the_first_check_decides_and_then_so_many_in_a_row(checks: str, states: str) -> None:
    assert after(Thresholds(healthy=2, unhealthy=3), checks) == states


def test_nothing_is_thought_before_the_first_check() -> None:
    assert Thresholds(healthy=2, unhealthy=3).healthy is None


def test_what_an_endpoint_says_itself_counts_at_once() -> None:
    thresholds = Thresholds(healthy=5, unhealthy=5)
    assert [thresholds.told(healthy=healthy) for healthy in (True, True, False, False, True)] == [
        True, False, True, False, True
    ]  # fmt: skip


@given(st.lists(st.booleans(), min_size=1), st.integers(1, 5), st.integers(1, 5))
def test_a_change_is_told_when_there_is_one_and_never_on_fewer_checks_than_asked_for(
    checks: Sequence[bool], healthy: int, unhealthy: int
) -> None:
    thresholds = Thresholds(healthy=healthy, unhealthy=unhealthy)
    for place, check in enumerate(checks):
        before = thresholds.healthy
        changed = thresholds.checked(passed=check)
        assert changed == (thresholds.healthy is not before)
        if changed and before is not None:
            needed = healthy if check else unhealthy
            assert list(checks[place + 1 - needed : place + 1]) == [check] * needed
