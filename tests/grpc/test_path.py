"""Which paths name a method, and which are refused because somebody could read them differently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.grpc.path import path_problem, shortened

GOOD = [
    b"/pkg.Service/Method",
    b"/Method",
    b"/a/b/c/d/e/f/g",
    b"/Echo%20Service/M",
    b"/a/%41",
    b"/a%2Fb/M",
    b"/a;b=c/M:d@e",
    b"/a/...",
    b"/a/.b",
    b"/..a/b",
    b"/%C3%A4/%FF",
    b"/*/M",
    b"/a/%252e%252e",
]
BAD = [
    b"",
    b"*",
    b"/",
    b"a.B/C",
    b"http://host/a/b",
    b"//a",
    b"/a//b",
    b"/a/",
    b"/a/b/",
    b"/.",
    b"/..",
    b"/./a",
    b"/a/./b",
    b"/a/../b",
    b"/a/..",
    b"/a/%2e",
    b"/a/%2E%2e/b",
    b"/a/.%2e",
    b"/a/..%2fb",
    b"/a%2f%2fb",
    b"/a%2F",
    b"/%2Fa",
    b"/a/..%5cb",
    b"/a/%5C../b",
    b"/a/b%",
    b"/a/b%4",
    b"/a/%zz",
    b"/a/%00",
    b"/a/%0a",
    b"/a/%7F",
    b"/a\x00/b",
    b"/a/b\n",
    b"/a\x7f/b",
    b"/a b/c",
    b"/\xc3\xa4/c",
    b"/a\\b/c",
    b"/a/b#c",
    b"/a/b?c=d",
    b"/a/b?",
]


@pytest.mark.parametrize("path", GOOD)
def test_what_can_be_read_in_one_way_only_is_a_method(path: bytes) -> None:
    assert path_problem(path) is None


@pytest.mark.parametrize("path", BAD)
def test_what_somebody_could_read_differently_is_refused(path: bytes) -> None:
    problem = path_problem(path)
    assert problem is not None
    assert problem.startswith("malformed method name: ")


def test_a_long_path_takes_no_time_and_is_told_in_short() -> None:
    assert path_problem(b"/a" * 30_000) is None
    assert path_problem(b"/%41" * 15_000) is None
    problem = path_problem(b"/a" * 30_000 + b"//")
    assert problem is not None
    assert len(problem) < 200


@given(st.binary(max_size=30).map(lambda rest: b"/" + rest))
def test_a_path_that_passes_means_the_same_to_those_who_split_it_at_once_and_later(path: bytes) -> None:
    if path_problem(path) is None:
        assert all(segment not in {b"", b".", b".."} for segment in path[1:].split(b"/"))
        assert path.isascii()
        assert not set(path) & set(b" ?#\\\x7f")


def test_a_short_method_is_told_whole() -> None:
    assert shortened("/p.S/Get") == "/p.S/Get"
