"""How times, sizes and paths are written in files of settings."""

import math

import pytest

from rawgrpc_proxy.config_words import bytes_of, duration_of, join, kind_of, meant


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(2, 2.0), (0.5, 0.5), ("250ms", 0.25), ("1.5 s", 1.5), ("5m", 300.0), ("2h", 7200.0)],
)
def test_a_time_is_seconds_or_has_a_unit(value: object, seconds: float) -> None:
    assert duration_of(value) == seconds


@pytest.mark.parametrize("value", ["5", "5 sec", "-1s", True, None, [1]])
def test_what_is_no_time(value: object) -> None:
    assert duration_of(value) is None


@pytest.mark.parametrize(
    ("value", "size"), [(7, 7), (7.0, 7), ("64KiB", 65536), ("1.5 MiB", 1572864), ("2kB", 2000)]
)
def test_a_size_is_bytes_or_has_a_unit(value: object, size: int) -> None:
    assert bytes_of(value) == size


@pytest.mark.parametrize("value", ["7", 7.5, math.inf, math.nan, True, None, "1 kib"])
def test_what_is_no_size(value: object) -> None:
    assert bytes_of(value) is None


def test_a_path_quotes_what_toml_quotes() -> None:
    assert join("", "a") == "a"
    assert join("clusters", "a.b") == 'clusters."a.b"'


def test_what_was_probably_meant() -> None:
    assert meant("UNAVAILBLE", ["OK", "UNAVAILABLE"]) == " (did you mean UNAVAILABLE?)"
    assert meant("x", ["OK"]) == ""


def test_values_have_names() -> None:
    values: list[object] = [True, 1, "a", [], {}]
    assert [kind_of(each) for each in values] == [
        "true or false",
        "a number",
        "text",
        "a list",
        "a table",
    ]
