"""Calls are found by method, peer, metadata and status; what is no filter is refused in words that teach."""

from time import process_time

import pytest

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.filters import Facts, Filter, without_values

CALL = Facts(
    method="/pkg.S/Do",
    peer="10.0.0.7:4711",
    headers=[(b"x-user", b"alice"), (b"x-user", b"bob"), (b"a.b", b"c*d")],
    status=14,
)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("method=/pkg.S/Do", True),
        ("method=/pkg.S/*", True),
        ("method=*/Do", True),
        ("method=/pkg.S", False),
        ("method=/pkgxS/Do", False),
        ("method!=/pkg.S/*", False),
        ("peer=10.0.*", True),
        ("peer=10.1.*", False),
        ("metadata.x-user=bob", True),
        ("metadata.x-user=carol", False),
        ("metadata.x-user!=carol", True),
        ("metadata.absent=*", False),
        ("metadata.absent!=*", True),
        ("metadata.a.b=c*d", True),
        ("status=UNAVAILABLE", True),
        ("status=14", True),
        ("status=unavailable", True),
        ("status=OK", False),
        ("status!=OK", True),
        ("method=/pkg.S/* status=OK", False),
        ("method=/pkg.S/*  peer=10.*  status!=OK", True),
    ],
)
def test_all_words_have_to_hold(text: str, matches: bool) -> None:
    assert Filter.parse(text).matches(CALL) is matches


def test_a_filter_says_whether_it_can_be_decided_before_the_end() -> None:
    assert Filter.parse("method=/a/b status=OK").needs_status
    assert not Filter.parse("method=/a/b peer=x").needs_status
    assert Filter.parse("method=/pkg.S/* status=OK").may_match(CALL)
    assert not Filter.parse("method=/other/* status=OK").may_match(CALL)


def test_by_peer_alone_connections_are_found_as_well() -> None:
    assert not Filter.parse("peer=10.*").looks_at_calls
    assert Filter.parse("peer=10.* method=/a/b").looks_at_calls


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method", "'method' is no word of a filter; write method=/pkg"),
        ("colour=red", "'colour' is nothing to filter by; write method="),
        ("metadata.=x", "'metadata.' is nothing to filter by"),
        ("status=SAD", "'SAD' is no status; write one of OK, CANCELLED"),
        ("status=99", "'99' is no status"),
    ],
)
def test_what_is_no_filter_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="^" + said.replace(".", r"\.")):
        Filter.parse(text)


def test_a_value_costs_a_filter_no_more_than_its_length_whatever_stars_it_has() -> None:
    one = Filter.parse("metadata.x=*a*a*b")
    began = process_time()
    assert not one.may_match(Facts(method="", peer="", headers=[(b"x", b"a" * 4000)]))
    assert process_time() - began < 1


def test_what_a_log_says_of_a_filter_has_no_metadata() -> None:
    text = "method=/a.B/* metadata.authorization=Bearer* metadata.x-a!=s=3 status!=OK"
    assert without_values(text) == "method=/a.B/* metadata.authorization=… metadata.x-a!=… status!=OK"
