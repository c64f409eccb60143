"""What Accept, Accept-Encoding and If-None-Match ask for."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.command.admin.negotiate import gzipped, matches_etag, takes_gzip, wants_openmetrics

HEADERS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            [
                "application/openmetrics-text",
                "text/plain",
                "gzip",
                "*",
                '"x"',
                ";",
                ",",
                "q=",
                "0.5",
                "=",
                "W/",
                " ",
            ]
        ),
        max_size=10,
    ).map("".join),
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html, */*;q=0.1", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; version=1.0.0", True),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.4", True),
        ("application/openmetrics-text;q=0.4, text/plain;q=0.5", False),
        ("application/openmetrics-text, text/plain", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=abc", False),
        ("application/openmetrics-text;q=inf", False),
        (
            "application/openmetrics-text;version=0.0.1;q=0.1, application/openmetrics-text;version=1.0.0;q=0.9",
            True,
        ),
        ("text/plain;version=0.0.4", False),
    ],
)
def test_openmetrics_comes_where_it_is_named_and_weighs_no_less(
    accept: str | None, openmetrics: bool
) -> None:
    assert wants_openmetrics(accept) is openmetrics


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        (None, False),
        ("identity", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, br", False),
        ("*", False),
        ("gzipped", False),
    ],
)
def test_gzip_comes_where_it_is_named(accept: str | None, packed: bool) -> None:
    assert takes_gzip(accept) is packed


@given(HEADERS)
def test_no_header_is_too_strange(value: str) -> None:
    wants_openmetrics(value)
    takes_gzip(value)
    matches_etag(value, '"x"')


@given(st.binary(max_size=3000))
def test_what_is_packed_is_the_same_each_time_and_can_be_unpacked(body: bytes) -> None:
    assert gzipped(body) == gzipped(body)
    assert gzip.decompress(gzipped(body)) == body
