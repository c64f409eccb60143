"""Budgets at their boundary: the limit passes, one more ends the connection."""

from collections.abc import Callable

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import PeerAbuse
from rawgrpc_proxy.http2.guard import Guard

NOW = 1_000.0


def allowed(count: Callable[[], None], limit: int) -> None:
    """Exactly `limit` of them pass."""
    for _ in range(limit):
        count()
    with pytest.raises(PeerAbuse) as caught:
        count()
    assert caught.value.error_code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_thousand_resets_at_once_pass() -> None:
    guard = Guard()

    allowed(lambda: guard.work_for_nothing(NOW, 0), 1000)


def test_after_a_burst_33_resets_a_second_pass() -> None:
    guard = Guard()
    allowed(lambda: guard.work_for_nothing(NOW, 0), 1000)

    allowed(lambda: guard.work_for_nothing(NOW + 2, 0), 66)


def test_a_peer_that_resets_33_a_second_goes_on_for_ever() -> None:
    guard = Guard()

    for second in range(1, 200):
        for _ in range(33):
            guard.work_for_nothing(NOW + second, 0)


def test_a_long_rest_saves_up_no_more_than_one_burst() -> None:
    guard = Guard()
    guard.work_for_nothing(NOW, 0)

    allowed(lambda: guard.work_for_nothing(NOW + 1e6, 0), 1000)


def test_each_stream_that_goes_well_pays_for_one_that_does_not() -> None:
    guard = Guard()
    allowed(lambda: guard.work_for_nothing(NOW, 0), 1000)

    for good in range(1, 5000):
        guard.work_for_nothing(NOW, good)

    allowed(lambda: guard.work_for_nothing(NOW, 4999), 0)


def test_good_streams_save_up_no_more_than_one_burst() -> None:
    guard = Guard()

    allowed(lambda: guard.work_for_nothing(NOW, 1_000_000), 1000)


def test_a_limit_that_a_peer_cannot_know_yet_is_forgiven_for_one_large_first_flight() -> None:
    guard = Guard()

    assert [guard.may_not_know_the_limit() for _ in range(10_001)] == [True] * 10_000 + [False]


def test_a_limit_that_a_peer_has_acknowledged_is_not_forgiven() -> None:
    guard = Guard()
    guard.settings_acknowledged = True

    assert not guard.may_not_know_the_limit()


def test_a_thousand_answers_may_wait_for_the_socket() -> None:
    guard = Guard()

    allowed(guard.answer_owed, 1000)


def test_answers_that_were_written_are_not_owed_any_more() -> None:
    guard = Guard()
    for _ in range(1000):
        guard.answer_owed()

    guard.answers_written()

    allowed(guard.answer_owed, 1000)


def test_a_hundred_empty_data_frames_in_a_row_pass() -> None:
    guard = Guard()

    allowed(guard.one_more_empty_data, 100)


def test_data_with_payload_ends_a_row_of_empty_ones() -> None:
    guard = Guard()
    for _ in range(100):
        guard.one_more_empty_data()

    guard.empty_data = 0

    allowed(guard.one_more_empty_data, 100)


@pytest.mark.parametrize(("streams", "limit"), [(0, 100), (1, 200), (7, 800)])
def test_a_hundred_priority_frames_for_each_stream_and_the_connection_pass(streams: int, limit: int) -> None:
    guard = Guard()

    allowed(lambda: guard.priority(streams), limit)


@pytest.mark.parametrize(
    ("streams", "data_frames", "limit"), [(0, 0, 5), (1, 0, 7), (0, 1, 25), (3, 4, 5 + 2 * (3 + 10 * 4))]
)
def test_window_updates_are_allowed_in_proportion_to_streams_and_data(
    streams: int, data_frames: int, limit: int
) -> None:
    guard = Guard()

    allowed(lambda: guard.window_update(streams, data_frames), limit)


def test_the_budgets_are_apart() -> None:
    guard = Guard()
    allowed(guard.one_more_empty_data, 100)

    allowed(guard.answer_owed, 1000)
    allowed(lambda: guard.priority(0), 100)
    allowed(lambda: guard.window_update(0, 0), 5)
    allowed(lambda: guard.work_for_nothing(NOW, 0), 1000)
