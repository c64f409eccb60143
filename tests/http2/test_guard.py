"""The price list at its boundary: the budget covers so many of each, and one more ends the connection."""

from collections.abc import Callable

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import PeerAbuse
from rawgrpc_proxy.http2 import guard as prices
from rawgrpc_proxy.http2.guard import PRICES, Guard

NOW = 1_000.0
BUDGET, PER_S = 10_000.0, 330.0


class Served:
    """What a session tells its guard."""

    def __init__(self) -> None:
        self.now = NOW
        self.points_earned = 0.0


def a_guard() -> tuple[Guard, Served]:
    """One at the beginning of a connection."""
    guard = Guard(BUDGET, PER_S)
    guard.begin(NOW)
    return guard, Served()


def allowed(count: Callable[[], None], limit: int) -> PeerAbuse:
    """Exactly `limit` of them pass."""
    for _ in range(limit):
        count()
    with pytest.raises(PeerAbuse) as caught:
        count()
    assert caught.value.error_code == ErrorCode.ENHANCE_YOUR_CALM
    return caught.value


def used_up(guard: Guard, served: Served) -> None:
    """Nothing is left, and nothing was saved up."""
    guard.charge(prices.RESET_AT_ONCE, served, BUDGET / 10)
    guard.is_low(served)


@pytest.mark.parametrize("which", range(len(PRICES)), ids=lambda which: PRICES[which].name)
def test_the_budget_covers_so_many_of_each_and_the_error_names_it(which: int) -> None:
    guard, served = a_guard()
    used_up(guard, served)
    served.points_earned = 100 * PRICES[which].points + 1e-6

    error = allowed(lambda: guard.charge(which, served), 100)

    assert PRICES[which].name in guard.bill() or guard.counts[which] == 101
    assert "abuse_budget is 10000 points, and 330 a second" in error.message


def test_a_thousand_resets_at_once_pass() -> None:
    guard, served = a_guard()

    error = allowed(lambda: guard.charge(prices.RESET_AT_ONCE, served), 1000)

    assert "1001 streams reset at once" in error.message


def test_what_cost_most_is_named_first() -> None:
    guard, served = a_guard()
    guard.charge(prices.PING, served, 30)
    guard.charge(prices.SETTINGS, served, 4)
    guard.charge(prices.UNKNOWN, served, 20)
    guard.charge(prices.PRIORITY, served)

    assert "call: 4 SETTINGS, 30 PING, 20 frames of an unknown type (" in guard.bill()


def test_the_budget_is_one_however_it_is_spent() -> None:
    guard, served = a_guard()
    for which in (prices.SETTINGS, prices.PRIORITY, prices.STREAM_ERROR, prices.REFUSED):
        guard.charge(which, served, BUDGET / 40)

    allowed(lambda: guard.charge(prices.RESET_AT_ONCE, served), 0)


def test_after_a_burst_33_resets_a_second_pass() -> None:
    guard, served = a_guard()
    used_up(guard, served)
    served.now += 2

    allowed(lambda: guard.charge(prices.RESET_AT_ONCE, served), 66)


def test_a_peer_that_resets_33_a_second_goes_on_for_ever() -> None:
    guard, served = a_guard()

    for _ in range(200):
        served.now += 1
        guard.charge(prices.RESET_AT_ONCE, served, 33)


def test_neither_time_nor_good_calls_save_up_more_than_one_budget() -> None:
    guard, served = a_guard()
    used_up(guard, served)
    served.now += 1e6
    served.points_earned += 1e6
    guard.is_low(served)

    allowed(lambda: guard.charge(prices.RESET_AT_ONCE, served), 1000)


def test_each_stream_that_goes_well_pays_for_one_that_does_not() -> None:
    guard, served = a_guard()
    used_up(guard, served)

    for _ in range(5000):
        served.points_earned += prices.GOOD_STREAM_POINTS
        guard.charge(prices.RESET_AT_ONCE, served)

    allowed(lambda: guard.charge(prices.RESET_AT_ONCE, served), 0)


def test_each_data_frame_pays_for_what_it_is_answered_with() -> None:
    guard, served = a_guard()
    used_up(guard, served)

    for _ in range(5000):
        served.points_earned += prices.DATA_SENT_POINTS
        guard.charge(prices.WINDOW_UPDATE, served, 2)
        guard.charge(prices.PING, served)


def test_the_budget_is_low_when_three_quarters_are_spent_and_time_fills_it_again() -> None:
    guard, served = a_guard()
    guard.charge(prices.RESET_AT_ONCE, served, 750)
    assert not guard.is_low(served)
    guard.charge(prices.WINDOW_UPDATE, served)

    assert guard.is_low(served)
    served.now += 10
    assert not guard.is_low(served)


def test_a_limit_that_a_peer_cannot_know_yet_is_forgiven_for_one_large_first_flight() -> None:
    guard, _ = a_guard()

    assert [guard.may_not_know_the_limit() for _ in range(10_001)] == [True] * 10_000 + [False]


def test_a_limit_that_a_peer_has_acknowledged_is_not_forgiven() -> None:
    guard, _ = a_guard()
    guard.settings_acknowledged = True

    assert not guard.may_not_know_the_limit()


def test_a_thousand_answers_may_wait_for_the_socket() -> None:
    guard, _ = a_guard()

    allowed(guard.answer_owed, 1000)


def test_answers_that_were_written_are_not_owed_any_more() -> None:
    guard, _ = a_guard()
    for _ in range(1000):
        guard.answer_owed()

    guard.answers_written()

    allowed(guard.answer_owed, 1000)


def test_a_hundred_empty_data_frames_in_a_row_pass() -> None:
    guard, served = a_guard()

    allowed(lambda: guard.one_more_empty_data(served), 100)


def test_data_with_payload_ends_a_row_of_empty_ones() -> None:
    guard, served = a_guard()
    for _ in range(100):
        guard.one_more_empty_data(served)

    guard.empty_data = 0

    allowed(lambda: guard.one_more_empty_data(served), 100)
