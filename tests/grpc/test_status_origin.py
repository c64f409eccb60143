"""The trailer that tells callers who has made their status."""

import pytest

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.response_changes import ResponseChanges
from rawgrpc_proxy.grpc.status_origin import StatusOrigin
from rawgrpc_proxy.http2.headers import Headers

ORIGIN = StatusOrigin("X-Status-Origin")
NAME = b"x-status-origin"
LIE = (NAME, b"upstream, of course")
START: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]


@pytest.mark.parametrize(
    "name", ["", ":status", "grpc-status", "grpc-origin", "content-type", "te", "a b", "x-bin"]
)
def test_what_can_be_no_trailer_of_this_kind_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the trailer that says who has made a status"):
        StatusOrigin(name)


def test_an_upstream_that_claims_to_have_made_a_status_is_not_believed() -> None:
    response = ORIGIN.over(None)
    assert response.first([*START, LIE, (b"x-a", b"1")]) == [*START, (b"x-a", b"1")]
    assert response.last([(b"grpc-status", b"0"), LIE, LIE]) == [(b"grpc-status", b"0"), (NAME, b"upstream")]


def test_a_response_of_one_list_has_the_trailer_in_it() -> None:
    response = ORIGIN.over(None)
    only = [*START, LIE, (b"grpc-status", b"5")]
    assert response.only(only) == [*START, (b"grpc-status", b"5"), (NAME, b"upstream")]


@pytest.mark.parametrize(
    ("http_status", "told"), [(b"502", b"http: HTTP 502"), (b"799", b"http: HTTP unknown")]
)
def test_a_response_without_a_grpc_status_is_told_by_its_http_status(http_status: bytes, told: bytes) -> None:
    start = [(b":status", http_status)]
    assert ORIGIN.over(None).only(start) == [*start, (NAME, told)]
    response = ORIGIN.over(None)
    assert response.first(start) == start
    assert response.last([(b"x", b"1")]) == [(b"x", b"1"), (NAME, told)]


def test_changes_to_responses_come_first_and_cannot_lie_either() -> None:
    changes = ResponseChanges(remove=["x-secret"], set_values={"x-status-origin": "served", "x-edge": "1"})
    response = ORIGIN.over(changes)
    assert response.first([*START, (b"x-secret", b"1")]) == [*START, (b"x-edge", b"1")]
    trailers = [(b"grpc-status", b"0"), (b"x-secret", b"1")]
    assert response.last(trailers) == [(b"grpc-status", b"0"), (NAME, b"upstream")]
    only = ORIGIN.over(changes).only([*START, (b"grpc-status", b"0")])
    assert only == [*START, (b"grpc-status", b"0"), (b"x-edge", b"1"), (NAME, b"upstream")]


def test_words_of_a_users_own_can_be_sent_whatever_they_are() -> None:
    assert ORIGIN.field("quota", "") == (NAME, b"quota")
    assert ORIGIN.field("quoté\n", "per\0tenant ") == (NAME, b"quot%C3%A9%0A: per%00tenant%20")
