"""What the errors say about themselves, and the error that is refused."""

from typing import Any

import pytest

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionFailed,
    ConnectionGone,
    DeadlineExceeded,
    LinkLost,
    NoRoute,
    PeerAbuse,
    PoolExhausted,
    ProtocolViolation,
    ProxyError,
    RpcError,
    Side,
    StreamRefused,
    StreamReset,
    UpstreamUnavailable,
)


def test_an_rpc_error_comes_from_a_director_unless_told_otherwise() -> None:
    error = RpcError(Status.PERMISSION_DENIED, "testing rejection")
    assert (error.status, error.message) == (Status.PERMISSION_DENIED, "testing rejection")
    assert (error.side, error.origin) == (Side.LOCAL, "director")
    assert error.retry_safe is False
    assert error.trailing_metadata == ()


def test_an_rpc_error_keeps_its_trailing_metadata_in_order() -> None:
    metadata: list[tuple[str, str | bytes]] = [("x-b", "1"), ("x-a-bin", b"\xff"), ("x-b", "2")]
    error = RpcError(Status.ABORTED, "", trailing_metadata=metadata)
    metadata.clear()
    assert error.trailing_metadata == (("x-b", "1"), ("x-a-bin", b"\xff"), ("x-b", "2"))


def test_an_rpc_error_cannot_say_ok() -> None:
    with pytest.raises(ValueError, match=r"cannot carry Status\.OK"):
        RpcError(Status.OK, "fine")


@pytest.mark.parametrize("status", [None, "UNAVAILABLE", 14.0, (14, "unavailable")])
def test_the_status_of_an_rpc_error_is_a_status(status: Any) -> None:
    with pytest.raises(TypeError, match=r"a Status, like Status\.UNAVAILABLE, not "):
        RpcError(status)


@pytest.mark.parametrize("message", [None, b"bytes", ValueError("db down"), 5])
def test_the_message_of_an_rpc_error_is_text(message: Any) -> None:
    with pytest.raises(TypeError, match=f"the message is str, not {type(message).__name__}"):
        RpcError(Status.UNAVAILABLE, message)


@pytest.mark.parametrize(
    ("metadata", "error", "says"),
    [
        ([(None, "y")], TypeError, "a metadata key is str, not NoneType"),
        ([("x", b"y")], TypeError, "the value of 'x' is str, not bytes"),
        ([("x-bin", "y")], TypeError, "its value is bytes, not str"),
        ([("x", None)], TypeError, "the value of 'x' is str, not NoneType"),
        (["xy"], TypeError, "pairs"),
        ([("x", "y", "z")], TypeError, "pairs"),
        ([("Not A Key", "y")], ValueError, "not a metadata key"),
        ([("x", "line\nbreak")], ValueError, "printable ASCII"),
        ([("connection", "close")], ValueError, "one connection only"),
        ([(":status", "200")], ValueError, "is not custom metadata"),
        ([("grpc-status", "0")], ValueError, "'grpc-status' cannot be metadata of a response"),
        ([("Grpc-Message", "x")], ValueError, "'grpc-message' cannot be metadata of a response"),
    ],
)
def test_trailing_metadata_that_cannot_be_sent_is_found_where_it_was_written(
    metadata: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        RpcError(Status.ABORTED, trailing_metadata=metadata)


def test_trailing_metadata_may_be_a_mapping() -> None:
    metadata: dict[str, str | bytes] = {"x": "1", "y-bin": b"2"}
    error = RpcError(Status.ABORTED, trailing_metadata=metadata)
    assert error.trailing_metadata == (("x", "1"), ("y-bin", b"2"))


def test_an_rpc_error_is_checked_again_as_it_was_made() -> None:
    error = StreamReset(Status.CANCELLED, 8, side=Side.UPSTREAM)
    checked = error.checked()
    assert (checked.status, checked.message, checked.side, checked.origin) == (
        Status.CANCELLED,
        error.message,
        Side.UPSTREAM,
        "reset",
    )
    error.message = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match="the message is str"):
        error.checked()


def test_an_rpc_error_cannot_carry_a_number_that_is_no_status() -> None:
    with pytest.raises(ValueError, match="99"):
        RpcError(99, "huh")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "status", "side", "retry_safe", "origin"),
    [
        (NoRoute("m"), Status.UNIMPLEMENTED, Side.LOCAL, False, "proxy"),
        (PoolExhausted("m"), Status.RESOURCE_EXHAUSTED, Side.LOCAL, False, "proxy"),
        (UpstreamUnavailable("m"), Status.UNAVAILABLE, Side.UPSTREAM, False, "proxy"),
        (LinkLost("m"), Status.UNAVAILABLE, Side.UPSTREAM, False, "lost"),
        (StreamRefused("m"), Status.UNAVAILABLE, Side.UPSTREAM, True, "lost"),
        (DeadlineExceeded("m"), Status.DEADLINE_EXCEEDED, Side.LOCAL, False, "proxy"),
    ],
)
def test_what_the_proxy_raises_itself_knows_its_status_side_origin_and_retry_safety(
    error: RpcError, status: Status, side: Side, retry_safe: bool, origin: str
) -> None:
    assert (error.status, error.side, error.retry_safe) == (status, side, retry_safe)
    assert error.origin == origin


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RpcError(Status.NOT_FOUND, "no such user"), "NOT_FOUND: no such user"),
        (RpcError(Status.NOT_FOUND), "NOT_FOUND"),
        (ConfigError("ms is 0"), "ms is 0"),
        (
            StreamReset(Status.CANCELLED, 8, side=Side.UPSTREAM),
            "CANCELLED: the upstream reset the stream with CANCEL",
        ),
        (
            StreamReset(Status.UNKNOWN, 0xBEEF, side=Side.LOCAL),
            "UNKNOWN: the proxy reset the stream with unknown error code 0xbeef",
        ),
        (
            ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "PING of 9 bytes"),
            "FRAME_SIZE_ERROR: PING of 9 bytes",
        ),
        (PeerAbuse("too_many_pings"), "ENHANCE_YOUR_CALM: too_many_pings"),
        (ConnectionGone("end of file"), "end of file"),
        (ConnectionGone("GOAWAY", error_code=0x2), "INTERNAL_ERROR: GOAWAY"),
    ],
)
def test_an_error_reads_well(error: ProxyError, text: str) -> None:
    assert str(error) == text


def test_a_stream_reset_is_safe_to_retry_only_when_the_stream_was_refused() -> None:
    refused = StreamReset(Status.UNAVAILABLE, ErrorCode.REFUSED_STREAM, side=Side.UPSTREAM)
    others = [
        StreamReset(Status.UNKNOWN, code, side=Side.UPSTREAM)
        for code in range(32)
        if code != ErrorCode.REFUSED_STREAM
    ]
    assert refused.retry_safe is True
    assert not any(error.retry_safe for error in others)


def test_a_stream_reset_keeps_the_number_from_the_wire() -> None:
    error = StreamReset(Status.UNKNOWN, 0xDEADBEEF, side=Side.DOWNSTREAM)
    assert (error.error_code, error.side, error.origin) == (0xDEADBEEF, Side.DOWNSTREAM, "reset")


def test_abuse_asks_the_peer_to_calm_down() -> None:
    assert PeerAbuse("too_many_pings").error_code == ErrorCode.ENHANCE_YOUR_CALM


def test_the_connection_can_tell_a_session_s_error_its_side() -> None:
    error: ConnectionFailed = ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 2")
    assert error.side is Side.LOCAL
    error.side = Side.DOWNSTREAM
    assert error.side is Side.DOWNSTREAM


def test_a_config_error_is_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="ms is 0"):
        raise ConfigError("ms is 0")
