"""What is made of the bytes on callers' links: each way in which a call can end."""

import zlib
from collections.abc import Sequence

import pytest

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.testing.seen_calls import Keeps, SeenCalls
from tests.lab.test_replaying import REQUEST, RESPONSE, data, headers, message

LINK = Link(number=1, side=Side.DOWNSTREAM, peer="10.0.0.7:4000", tls=None)
CANCELLED = h2.rst_stream(1, ErrorCode.CANCEL)


def seen_with(keeps: Keeps | None = None) -> tuple[SeenCalls, LinkTap]:
    """And the tap of a link on which the client's preface has come."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    seen = SeenCalls(keeps, clock=clock)
    tap = seen.link(LINK)
    assert tap is not None
    tap.received(h2.PREFACE)
    return seen, tap


@pytest.mark.parametrize(
    ("said", "status", "http_status", "reset_code"),
    [
        ([headers([*RESPONSE, ("grpc-status", "5")], end=True)], Status.NOT_FOUND, 200, None),
        ([headers(RESPONSE), headers([("grpc-status", "0")], end=True)], Status.OK, 200, None),
        ([headers(RESPONSE), data(b"", end=True)], Status.UNKNOWN, 200, None),
        ([headers([(":status", "502")]), data(b"<html>", end=True)], Status.UNAVAILABLE, 502, None),
        ([headers(RESPONSE), h2.rst_stream(1, ErrorCode.REFUSED_STREAM)], Status.UNAVAILABLE, 200, 7),
        ([h2.goaway(0, ErrorCode.NO_ERROR)], Status.UNAVAILABLE, None, None),
    ],
    ids=["trailers only", "trailers", "no trailers", "no gRPC", "reset", "goaway"],
)
def test_the_status_is_what_a_client_makes_of_it(
    said: Sequence[bytes], status: Status, http_status: int | None, reset_code: int | None
) -> None:
    seen, tap = seen_with()
    tap.received(headers(REQUEST))  # the request goes on: the end does not depend on it
    assert [call.status for call in seen.all()] == [None]
    for frame in said:
        tap.sent(frame)
    [call] = seen.all()
    assert call.status is status
    assert call.http_status == http_status
    assert call.reset_code == reset_code
    assert call.peer == "10.0.0.7:4000"
    assert call.duration_s is not None


def test_a_call_that_its_caller_gives_up_is_cancelled() -> None:
    seen, tap = seen_with()
    tap.received(headers(REQUEST))
    tap.received(CANCELLED)
    assert [(call.status, call.reset_code) for call in seen.all()] == [(Status.CANCELLED, 8)]


def test_a_whole_answer_counts_more_than_the_reset_behind_it() -> None:
    seen, tap = seen_with()
    tap.received(headers(REQUEST))
    tap.sent(headers([*RESPONSE, ("grpc-status", "0")], end=True))
    [before] = seen.all()
    tap.sent(h2.rst_stream(1, ErrorCode.NO_ERROR))
    [call] = seen.all()
    assert call.status is Status.OK
    assert call.duration_s == before.duration_s


def test_calls_on_a_link_that_closes_are_unavailable() -> None:
    seen, tap = seen_with()
    tap.received(headers(REQUEST))
    tap.sent(headers(RESPONSE))
    tap.closed()
    [call] = seen.all()
    assert call.status is Status.UNAVAILABLE
    assert call.response_metadata is not None


def test_compressed_messages_are_kept_as_they_were_before() -> None:
    seen, tap = seen_with(Keeps(message_bytes=100))
    tap.received(headers([*REQUEST, ("grpc-encoding", "deflate")]))
    for plain in (b"a" * 100, b"b" * 101):
        deflated = zlib.compress(plain)
        tap.received(data(b"\1" + len(deflated).to_bytes(4) + deflated))
    broken = b"\1" + (3).to_bytes(4) + b"???"
    tap.received(data(broken + message(b"not compressed")))
    [call] = seen.all()
    # What would be too long, or is none, is left as it came.
    assert call.request_messages == [b"a" * 100, zlib.compress(b"b" * 101), b"???", b"not compressed"]


def test_a_caller_that_speaks_something_else_is_told_of() -> None:
    seen = SeenCalls()
    tap = seen.link(LINK)
    assert tap is not None
    tap.received(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n")
    assert "10.0.0.7:4000: the client is not understood" in seen.in_words()


def test_the_oldest_calls_go_first() -> None:
    seen, tap = seen_with(Keeps(calls=2))
    for stream in (1, 3, 5):
        tap.received(headers([*REQUEST, ("x-n", str(stream))], stream))
    assert [call.metadata["x-n"] for call in seen.all()] == ["3", "5"]
    assert "(1 calls before these are not kept)" in seen.in_words()
    tap.sent(headers([*RESPONSE, ("grpc-status", "0")], 1, end=True))  # whoever is gone may end
    assert [call.status for call in seen.all()] == [None, None]


def test_what_one_gets_does_not_change_any_more() -> None:
    seen, tap = seen_with()
    tap.received(headers(REQUEST))
    [before] = seen.all()
    tap.received(data(message(b"x")))
    assert before.request_messages == []
    assert seen.all()[0].request_messages == [b"x"]


def test_what_is_forgotten_while_it_is_open_does_no_harm() -> None:
    seen, tap = seen_with()
    tap.received(headers(REQUEST))
    seen.clear()
    tap.received(data(message(b"x")))
    tap.sent(headers([*RESPONSE, ("grpc-status", "0")], end=True))
    tap.received(headers(REQUEST, 3))
    assert len(seen.all()) == 1
