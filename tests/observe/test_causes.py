"""The words for who made a status, and for what it comes of."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rawgrpc_proxy
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import (
    ConnectionFailed,
    ConnectionGone,
    NotHttp2,
    PeerAbuse,
    ProtocolViolation,
    ProxyFault,
    ProxyStopping,
    RpcError,
    Side,
)
from rawgrpc_proxy.net.failures import lost_error, never_sent_error, reset_error
from rawgrpc_proxy.observe.causes import CAUSES, ORIGINS, is_known

SOURCE = Path(rawgrpc_proxy.__file__).parent


def words(keyword: str) -> Iterator[str]:
    """What is written in the source for this keyword argument of an error."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == keyword:
                yield from (
                    each.value
                    for each in ast.walk(node.value)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                )


def test_every_word_in_the_source_is_told_of() -> None:
    assert {word for word in words("origin") if word} <= set(ORIGINS)
    # `why` and `limit` are what calls end of that a connection takes with it.
    causes = {word for keyword in ("cause", "why", "limit") for word in words(keyword)}
    short = {"lost": "socket_error", "closed_by_peer": "FIN", "goaway": "GOAWAY NO_ERROR"}
    assert {cause for cause in causes if cause and not is_known(short.get(cause, cause))} == set()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionGone("the peer closed the connection", why="closed_by_peer"), "FIN"),
        (ConnectionGone("no route to host"), "socket_error"),
        (ConnectionGone("reset", cause="RST"), "RST"),
        (ConnectionGone("calm", error_code=0xB, why="goaway"), "GOAWAY ENHANCE_YOUR_CALM"),
        (ConnectionGone("odd", error_code=0xDEAD, why="goaway"), "GOAWAY unknown"),
        (ConnectionGone("silent", why="keepalive_timeout"), "keepalive_timeout"),
        (
            ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "PING of 9 bytes"),
            "connection error FRAME_SIZE_ERROR",
        ),
        (NotHttp2("speaks HTTP/1.1"), "not_http2"),
        (PeerAbuse("too much", limit="abuse_budget"), "abuse_budget"),
    ],
)
def test_a_call_that_ends_with_its_connection_says_what_has_ended_that(
    error: ConnectionFailed, cause: str
) -> None:
    for of_a_call in (lost_error, never_sent_error):
        told = of_a_call(error, "10.0.0.2:1", Side.UPSTREAM)
        assert (told.origin, told.cause) == ("lost", cause)
        assert is_known(told.cause)


def test_what_the_proxy_does_to_a_connection_is_its_own_doing() -> None:
    for error, cause in (
        (ProxyStopping(), "stopping"),
        (ProxyStopping("old", why="max_connection_age"), "max_connection_age"),
        (ProxyFault(ZeroDivisionError()), "proxy_fault"),
    ):
        told = lost_error(error, "10.0.0.2:1", Side.UPSTREAM)
        assert (told.origin, told.cause) == ("proxy", cause)
        assert is_known(cause)


@pytest.mark.parametrize(
    ("error", "origin", "cause"),
    [
        (reset_error(0x8, Side.UPSTREAM, ""), "reset", "RST_STREAM CANCEL"),
        (reset_error(0xDEADBEEF, Side.UPSTREAM, ""), "reset", "RST_STREAM unknown"),
        (reset_error(0x7, Side.UPSTREAM, "left out", "GOAWAY NO_ERROR"), "reset", "GOAWAY NO_ERROR"),
        (reset_error(0x1, Side.LOCAL, "no :status"), "proxy", "stream error PROTOCOL_ERROR"),
    ],
)
def test_a_reset_says_whose_it_is_and_with_which_code(error: RpcError, origin: str, cause: str) -> None:
    assert (error.origin, error.cause) == (origin, cause)
    assert is_known(cause)


def test_what_peers_make_up_is_not_among_the_words() -> None:
    for made_up in ("", "RST_STREAM 0xdead", "HTTP", "GOAWAY", "FIN FIN", "deadlines", " …", "RST_STREAM …"):
        assert not is_known(made_up) or made_up in CAUSES


def test_a_director_may_have_words_of_its_own() -> None:
    error = RpcError(Status.RESOURCE_EXHAUSTED, "later", origin="quota", cause="per tenant")
    assert (error.checked().origin, error.checked().cause) == ("quota", "per tenant")
    with pytest.raises(TypeError, match="the cause is a word for the call log, not int"):
        RpcError(Status.ABORTED, cause=5)  # type: ignore[arg-type]
