"""What is taken out of a response's metadata, and put in."""

import pytest

from rawgrpc_proxy import ConfigError, ResponseChanges

RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def test_headers_lose_what_is_removed_or_set_and_get_what_is_set_at_their_end() -> None:
    changes = ResponseChanges(
        remove=["Server", "x-trace-bin"], set_values={"x-edge": "1", "x-raw-bin": b"\xff"}
    )
    came = [*RESPONSE, (b"server", b"a"), (b"x-edge", b"0"), (b"x-kept", b"k"), (b"x-trace-bin", b"AA")]
    assert changes.first(came) == [
        *RESPONSE,
        (b"x-kept", b"k"),
        (b"x-edge", b"1"),
        (b"x-raw-bin", b"/w"),
    ]
    assert len(came) == 6


def test_trailers_lose_what_is_removed_and_get_nothing() -> None:
    changes = ResponseChanges(remove=["server"], set_values={"x-edge": "1"})
    came = [(b"grpc-status", b"0"), (b"x-edge", b"0")]
    assert changes.last(came) is came
    assert changes.last([*came, (b"server", b"a")]) == came


def test_details_of_an_error_may_be_kept_back() -> None:
    changes = ResponseChanges(remove=["grpc-status-details-bin"])
    assert changes.last([(b"grpc-status", b"5"), (b"grpc-status-details-bin", b"AA")]) == [
        (b"grpc-status", b"5")
    ]


@pytest.mark.parametrize(
    "key", ["content-type", "Content-Length", "grpc-status", "grpc-message", "grpc-encoding"]
)
def test_what_a_response_says_itself_can_be_neither_set_nor_removed(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' cannot be removed: the caller cannot read the response"):
        ResponseChanges(remove=[key])
    with pytest.raises(ConfigError, match=f"'{key}' cannot be set: it is not metadata"):
        ResponseChanges(set_values={key: "1"})


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (":status", "':status' cannot be changed: a pseudo-header is no metadata"),
        (":path", "':path' cannot be changed"),
        ("te", "'te' concerns one connection only"),
        ("Connection", "'connection' concerns one connection only"),
        ("x y", "not a metadata key: 'x y'"),
        ("", "not a metadata key: ''"),
    ],
)
def test_a_key_that_is_none_is_refused(key: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ResponseChanges(remove=[key])
    with pytest.raises(ValueError, match=says):
        ResponseChanges(set_values={key: "1"})


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="a metadata key is str, not bytes"):
        ResponseChanges(remove=[b"x-a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a metadata key is str, not bytes"):
        ResponseChanges(set_values={b"x-a": "1"})  # type: ignore[dict-item]


def test_grpcs_own_keys_cannot_be_set() -> None:
    with pytest.raises(ConfigError, match="cannot be set"):
        ResponseChanges(set_values={"grpc-status-details-bin": b"1"})


@pytest.mark.parametrize(("key", "value"), [("x-a", "\n"), ("x-a", " 1"), ("x-a", b"1"), ("x-bin", "1")])
def test_a_value_that_cannot_be_sent_is_refused(key: str, value: str | bytes) -> None:
    with pytest.raises((TypeError, ValueError), match=key):
        ResponseChanges(set_values={key: value})
