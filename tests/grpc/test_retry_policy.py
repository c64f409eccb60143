"""The rules of gRFC A6 for pauses, pushback and tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy import ConfigError, Status
from rawgrpc_proxy.grpc.retry_policy import HedgingPolicy, RetryPolicy, RetryThrottling, pushback_s

unit = st.floats(0, 1)


@given(
    initial=st.floats(0.001, 100),
    longest=st.floats(0.001, 100),
    multiplier=st.floats(1, 10),
    jitter=unit,
    chance=unit,
    retry=st.integers(1, 4),
)
def test_a_pause_is_within_its_jitter_of_the_exponential_one(
    initial: float, longest: float, multiplier: float, jitter: float, chance: float, retry: int
) -> None:
    policy = RetryPolicy(
        initial_backoff_s=initial, max_backoff_s=longest, backoff_multiplier=multiplier, jitter=jitter
    )
    plain = min(initial * multiplier ** (retry - 1), longest)
    low, high = plain * (1 - jitter), plain * (1 + jitter)
    assert low - 1e-9 <= policy.backoff_s(retry, chance) <= high + 1e-9


def test_pauses_double_up_to_the_longest() -> None:
    policy = RetryPolicy(initial_backoff_s=0.1, max_backoff_s=0.3, jitter=0)
    assert [policy.backoff_s(retry, 0.5) for retry in (1, 2, 3, 4)] == [0.1, 0.2, 0.3, 0.3]


def test_chance_spreads_a_pause_by_a_fifth_to_both_sides() -> None:
    policy = RetryPolicy(initial_backoff_s=1, max_backoff_s=1)
    assert [policy.backoff_s(1, chance) for chance in (0, 0.5, 1)] == pytest.approx([0.8, 1.0, 1.2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_attempts": 1}, "between 2 and 5"),
        ({"max_attempts": 6}, "gRPC has this bound"),
        ({"max_attempts": 2.5}, "between 2 and 5"),
        ({"retryable_status_codes": []}, "retryable_status_codes is empty"),
        ({"retryable_status_codes": [Status.OK]}, "retryable_status_codes has OK"),
        ({"retryable_status_codes": "UNAVAILABLE"}, "write ['UNAVAILABLE']"),
        ({"retryable_status_codes": [14]}, "like Status.UNAVAILABLE"),
        ({"initial_backoff_s": 0}, "initial_backoff_s"),
        ({"max_backoff_s": float("nan")}, "max_backoff_s"),
        ({"backoff_multiplier": 0.5}, "backoff_multiplier"),
        ({"jitter": 1.5}, "jitter"),
        ({"per_attempt_timeout_s": 0}, "per_attempt_timeout_s"),
        ({"max_replay_bytes": 2**30}, "max_replay_bytes"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_with_the_name_of_what_is_wrong(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        RetryPolicy(**wrong)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [{"max_attempts": 6}, {"hedging_delay_s": -1}, {"non_fatal_status_codes": []}, {"max_replay_bytes": -1}],
)
def test_a_hedging_policy_is_held_to_its_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        HedgingPolicy(**{"hedging_delay_s": 0.1, **wrong})


@pytest.mark.parametrize(
    ("values", "pause_s"),
    [
        ([], None),
        ([b"0"], 0),
        ([b"1500"], 1.5),
        ([b"60000"], 60),
        ([b"60001"], -1),
        ([b"2147483647"], -1),
        ([b"2147483648"], -1),
        ([b"-1"], -1),
        ([b"007"], -1),
        ([b"+5"], -1),
        ([b"5\n"], -1),
        ([b"soon"], -1),
        ([b""], -1),
        ([b"5", b"5"], -1),
    ],
)
def test_pushback_that_cannot_be_read_or_is_beyond_a_minute_forbids_another_attempt(
    values: list[bytes], pause_s: float | None
) -> None:
    fields = [(b"grpc-status", b"14"), *((b"grpc-retry-pushback-ms", value) for value in values)]
    assert pushback_s(fields) == pause_s


@given(st.binary(max_size=12))
def test_any_pushback_is_a_pause_or_forbids(value: bytes) -> None:
    pause_s = pushback_s([(b"grpc-retry-pushback-ms", value)])
    assert pause_s is not None
    assert pause_s == -1 or pause_s == int(value) / 1000


def test_tokens_at_half_forbid_and_successes_bring_them_back() -> None:
    throttle = RetryThrottling(max_tokens=10, token_ratio=0.1)
    for _ in range(4):
        throttle.failed()
    assert throttle.allows
    throttle.failed()
    assert (throttle.tokens, throttle.allows) == (5, False)
    throttle.succeeded()
    assert (throttle.tokens, throttle.allows) == (5.1, True)


@given(
    most=st.integers(1, 1000),
    ratio=st.integers(1, 10_000),
    went_well=st.lists(st.booleans(), max_size=300),
)
def test_tokens_stay_between_none_and_all_and_follow_the_rule_exactly(
    most: int, ratio: int, went_well: list[bool]
) -> None:
    throttle = RetryThrottling(max_tokens=most, token_ratio=ratio / 1000)
    thousandths = most * 1000
    for well in went_well:
        if well:
            throttle.succeeded()
            thousandths = min(most * 1000, thousandths + ratio)
        else:
            throttle.failed()
            thousandths = max(0, thousandths - 1000)
        assert throttle.tokens == thousandths / 1000
        assert throttle.allows == (thousandths > most * 500)


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"max_tokens": 1001}, {"token_ratio": 0.0}])
def test_a_throttle_is_held_to_its_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RetryThrottling(**wrong)
