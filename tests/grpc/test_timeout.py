"""Durations on the wire: what is read, what is written, and that no hop makes them longer."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rawgrpc_proxy.grpc.timeout import format_timeout, parse_timeout

UNIT_S = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "S": 1.0, "M": 60.0, "H": 3600.0}
LONGEST_S = 99_999_999 * 3600

timeouts = st.from_regex(r"[0-9]{1,8}[HMSmun]", fullmatch=True, alphabet=st.characters(max_codepoint=127))
durations = st.floats(min_value=0, max_value=LONGEST_S)


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"100m", 0.1),
        (b"7u", 0.000007),
        (b"9n", 0.000000009),
        (b"0n", 0.0),
        (b"00000001S", 1.0),
        (b"99999999H", 359999996400.0),
    ],
)
def test_a_timeout_is_read_in_seconds(raw: bytes, seconds: float) -> None:
    assert parse_timeout(raw) == seconds


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1",
        b"S",
        b"123456789S",
        b"-1S",
        b"+1S",
        b"1.5S",
        b"1s",
        b"1h",
        b" 1S",
        b"1S ",
        b"1S\n",
        b"1SS",
        b"\xb21S",
    ],
)
def test_a_timeout_that_is_none_is_refused_with_the_rule(raw: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 8 digits and one of H, M, S, m, u, n"):
        parse_timeout(raw)


def test_a_refused_timeout_does_not_flood_the_log() -> None:
    with pytest.raises(ValueError, match="not a grpc-timeout") as caught:
        parse_timeout(b"1" * 10_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "raw"),
    [
        (0, b"0n"),
        (-1.5, b"0n"),
        (-math.inf, b"0n"),
        (1e-10, b"0n"),
        (1e-9, b"1n"),
        (0.05, b"50000000n"),
        (0.1, b"100000u"),
        (1, b"1000000u"),
        (99.999999, b"99999999u"),
        (100, b"100000m"),
        (100_000, b"100000S"),
        (100_000_000, b"1666666M"),
        (6_000_000_000, b"1666666H"),
        (LONGEST_S, b"99999999H"),
        (LONGEST_S * 10.0, b"99999999H"),
        (math.inf, b"99999999H"),
    ],
)
def test_a_timeout_is_written_in_the_most_precise_unit_that_fits(seconds: float, raw: bytes) -> None:
    assert format_timeout(seconds) == raw


def test_not_a_number_is_not_a_timeout() -> None:
    with pytest.raises(ValueError, match="NaN"):
        format_timeout(math.nan)


@given(durations)
def test_what_is_written_can_be_read(seconds: float) -> None:
    assert re.fullmatch(rb"[0-9]{1,8}[HMSmun]", format_timeout(seconds))


@given(durations)
@example(0.1)
@example(0.3)
@example(1.1)
def test_writing_never_makes_a_duration_longer(seconds: float) -> None:
    assert parse_timeout(format_timeout(seconds)) <= seconds


@given(durations)
def test_writing_loses_less_than_one_unit(seconds: float) -> None:
    raw = format_timeout(seconds).decode()
    # A float of many hours is itself coarser than a nanosecond, hence the relative slack.
    assert seconds - parse_timeout(raw.encode()) <= UNIT_S[raw[-1]] * (1 + 1e-6)


@given(timeouts)
@example("99999999n")
@example("29n")
@example("57u")
def test_a_hop_that_takes_no_time_keeps_the_duration(timeout: str) -> None:
    seconds = parse_timeout(timeout.encode())
    assert parse_timeout(format_timeout(seconds)) == seconds
