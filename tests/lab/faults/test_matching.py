"""Which calls a fault is for: their numbers, their metadata."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.faults.matching import CallNumbers, check_metadata, metadata_test

COUNTS = st.integers(1, 50)


def chosen(text: str, up_to: int = 24) -> list[int]:
    numbers = CallNumbers.parse(text)
    return [number for number in range(1, up_to + 1) if number in numbers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", list(range(1, 25))),
        ("first 2", [1, 2]),
        ("after 20", [21, 22, 23, 24]),
        ("after 0", list(range(1, 25))),
        ("every 7", [7, 14, 21]),
        ("4", [4]),
        ("2-6", [2, 3, 4, 5, 6]),
        ("first 2 of 10", [1, 2, 11, 12, 21, 22]),
        ("after 8 of 10", [9, 10, 19, 20]),
        ("3 of 10", [3, 13, 23]),
        ("10 of 10", [10, 20]),
        ("4-5 of 10", [4, 5, 14, 15, 24]),
        ("1, 4-6 ,every 12", [1, 4, 5, 6, 12, 24]),
        ("  first   3 ", [1, 2, 3]),
    ],
)
def test_numbers_are_chosen_as_written(text: str, expected: list[int]) -> None:
    assert chosen(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not say which calls; write all, first 2"),
        ("first", "does not say which calls"),
        ("frist 2", "does not say which calls"),
        ("0", "numbered from 1"),
        ("first 0", "numbered from 1"),
        ("every 0", "numbered from 1"),
        ("6-2", "'6-2' ends before it begins"),
        ("first 2-4", "has a word and a range"),
        ("every 3 of 5", "write every 3"),
        ("6 of 5", "more calls than there are in 5"),
        ("first 6 of 5", "more calls than there are in 5"),
        ("2-6 of 5", "more calls than there are in 5"),
        ("after 5 of 5", "more calls than there are in 5"),
        ("1 of 0", "more calls than there are in 0"),
        ("1,,2", "does not say which calls"),
        ("٣", "does not say which calls"),
        ("1" * 10, "does not say which calls"),
    ],
)
def test_what_says_no_calls_is_refused_with_what_to_write(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CallNumbers.parse(text)


@given(first=COUNTS, cycle=COUNTS, number=st.integers(1, 10**6))
def test_a_cycle_repeats_itself(first: int, cycle: int, number: int) -> None:
    first = min(first, cycle)
    numbers = CallNumbers.parse(f"first {first} of {cycle}")
    assert (number in numbers) == (number + cycle in numbers) == ((number - 1) % cycle < first)


@given(number=COUNTS, last=COUNTS)
def test_first_and_after_are_each_others_rest(number: int, last: int) -> None:
    assert (number in CallNumbers.parse(f"first {last}")) is not (
        number in CallNumbers.parse(f"after {last}")
    )


@given(parts=st.lists(st.sampled_from(["first 3", "every 4", "9", "11-13", "2 of 6"]), min_size=1))
def test_a_list_is_for_what_one_of_its_parts_is_for(parts: list[str]) -> None:
    assert chosen(",".join(parts)) == sorted({number for part in parts for number in chosen(part)})


@given(text=st.text(alphabet="firstaevyo 0123456789-,", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        numbers = CallNumbers.parse(text)
    except ConfigError as error:
        assert repr(text) in str(error)  # noqa: PT017
    else:
        assert isinstance(1 in numbers, bool)


HEADERS = [(b":path", b"/a/b"), (b"x-user", b"alice"), (b"x-user", b"bob"), (b"x-empty", b"")]


@pytest.mark.parametrize(
    ("metadata", "fits"),
    [
        ({}, True),
        ({"x-user": "alice"}, True),
        ({"x-user": "bob"}, True),
        ({"x-user": "bo"}, False),
        ({"x-user": "b*"}, True),
        ({"x-user": "*li*e"}, True),
        ({"x-user": "a.*"}, False),
        ({"x-user": "alic*ice"}, False),
        ({"x-user": "*"}, True),
        ({"x-empty": "*"}, True),
        ({"x-empty": ""}, True),
        ({"x-other": "*"}, False),
        ({"x-user": "alice", "x-other": "*"}, False),
        ({"x-user": "alice", "x-empty": "*"}, True),
    ],
)
def test_each_name_needs_a_value_that_is_like_its_pattern(metadata: dict[str, str], fits: bool) -> None:
    assert metadata_test(metadata)(HEADERS) is fits


@given(
    pattern=st.text(alphabet="ab*", max_size=8),
    value=st.text(alphabet="ab", max_size=12),
)
def test_a_star_is_anything(pattern: str, value: str) -> None:
    wanted = re.fullmatch(pattern.replace("*", ".*"), value) is not None
    assert metadata_test({"x": pattern})([(b"x", value.encode())]) is wanted


def test_a_hostile_value_costs_no_more_than_its_length() -> None:
    fits = metadata_test({"x": "*a" * 20 + "b"})
    assert not fits([(b"x", b"a" * 1_000_000)])  # a regular expression would try for ever


def test_a_name_of_metadata_that_no_request_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="write 'x-user'"):
        check_metadata({"X-User": "alice"})
    with pytest.raises(ConfigError, match="both text"):
        check_metadata({"x-user": 3})
