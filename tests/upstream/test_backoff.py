"""The pauses between dials: pure, with times as arguments."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.upstream.backoff import Backoff

LONGEST_S = 4.0


def an_outage(backoff: Backoff, *, dial_takes_s: float, for_s: float) -> list[float]:
    """Dial as soon as that may be, until the outage is over; answer when each dial began."""
    began, now = [0.0], 0.0
    while now < for_s:
        assert backoff.failed(began[-1], began[-1] + dial_takes_s, ours=False)
        now = backoff.retry_at
        began.append(now)
    return began


@given(seed=st.integers(), dial_takes_s=st.sampled_from([0.0, 0.001, 1.0, 3.0]))
def test_dials_come_at_once_then_seldom_and_never_more_than_four_seconds_apart(
    seed: int, dial_takes_s: float
) -> None:
    began = an_outage(Backoff(random.Random(seed)), dial_takes_s=dial_takes_s, for_s=100)
    pauses = [later - sooner for sooner, later in itertools.pairwise(began)]
    assert pauses[0] <= dial_takes_s + 0.05
    assert max(pauses) <= max(LONGEST_S, dial_takes_s + 0.05)
    assert len(pauses) >= 100 / max(LONGEST_S, dial_takes_s + 0.05)


def test_an_outage_counts_once_however_many_dials_were_under_way() -> None:
    backoff = Backoff(random.Random(1))
    assert backoff.failed(0.0, 1.0, ours=False)
    retry_at = backoff.retry_at
    assert not backoff.failed(0.5, retry_at - 0.001, ours=False)
    assert backoff.retry_at == retry_at
    assert backoff.failed(0.5, retry_at, ours=False), "the pause was over"


def test_what_is_wanting_here_is_not_held_against_the_upstream() -> None:
    backoff = Backoff(random.Random(1))
    now = 0.0
    for _ in range(50):
        assert backoff.failed(now, now, ours=True)
        assert backoff.retry_at - now == pytest.approx(0.1)
        now = backoff.retry_at


def test_a_dial_that_succeeds_lets_the_next_failure_be_the_first_again() -> None:
    backoff = Backoff(random.Random(1))
    an_outage(backoff, dial_takes_s=0, for_s=30)
    backoff.works()
    assert backoff.retry_at < 0
    assert backoff.failed(40.0, 40.0, ours=False)
    assert backoff.retry_at <= 40.05
