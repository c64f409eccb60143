"""Metadata as a director reads and changes it, and the headers that are never forwarded."""

import base64
from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.custom_metadata import Value
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.status import decode_grpc_message
from rawgrpc_proxy.http2.headers import FixedHeaders, Headers, RawHeader, for_next_hop, strip_hop_by_hop

REQUEST: Headers = [
    (b":method", b"POST"),
    (b":path", b"/pkg.Service/Method"),
    (b":authority", b"api.example"),
    (b"x-tag", b"one"),
    (b"trace-bin", b"AP8="),
    (b"x-tag", b"two"),
    (b"trace-bin", b"AP8,YWJj"),
]

names = st.sampled_from([b":path", b":authority", b"x-a", b"x-b", b"x-c-bin", b"x.d_e"])
raw_headers = st.lists(st.tuples(names, st.binary(max_size=12)), max_size=12)
custom_keys = st.sampled_from(["x-a", "x-b", "x-c-bin", "X-New", "x-new-bin"])
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(str.strip)


def value_for(key: str) -> st.SearchStrategy[Value]:
    return st.binary() if key.endswith("-bin") else texts


changes = custom_keys.flatmap(lambda key: st.tuples(st.just(key), value_for(key)))


def others(headers: Headers, key: str) -> list[RawHeader]:
    return [header for header in headers if header[0] != key.lower().encode()]


def test_a_value_is_read_by_its_key_in_any_case() -> None:
    metadata = Metadata(REQUEST)
    assert metadata["x-tag"] == metadata["X-Tag"] == metadata.get("X-TAG") == "one"
    assert "X-Tag" in metadata
    assert "x-other" not in metadata
    assert b"x-tag" not in metadata


def test_pseudo_headers_can_be_read() -> None:
    assert Metadata(REQUEST)[":authority"] == "api.example"


def test_a_key_that_is_not_there_has_no_value() -> None:
    metadata = Metadata(REQUEST)
    with pytest.raises(KeyError, match="x-other"):
        metadata["x-other"]
    assert metadata.get("x-other") is None
    assert metadata.get("x-other", "none") == "none"
    assert metadata.get_all("x-other") == []
    assert "é" not in metadata


def test_binary_values_are_decoded_with_and_without_padding_and_split_at_commas() -> None:
    metadata = Metadata(REQUEST)
    assert metadata["trace-bin"] == b"\x00\xff"
    assert metadata.get_all("trace-bin") == [b"\x00\xff", b"\x00\xff", b"abc"]


def test_spaces_around_joined_binary_values_are_ignored() -> None:
    assert Metadata([(b"t-bin", b"AA, YWJj ,")]).get_all("t-bin") == [b"\x00", b"abc", b""]


def test_a_comma_in_a_text_value_is_part_of_it() -> None:
    assert Metadata([(b"x", b"a,b")]).get_all("x") == ["a,b"]


def test_a_text_value_of_any_bytes_can_be_read() -> None:
    assert Metadata([(b"x", b" caf\xe9 ")])["x"] == " café "


@pytest.mark.parametrize("raw", [b"A", b"A===", b"A!==", b"AA==AA==", b"\xff\xff"])
def test_a_binary_value_that_is_not_base64_is_an_error_when_read_and_only_then(raw: bytes) -> None:
    metadata = Metadata([(b"x-bad-bin", raw), (b"x", b"1")])
    with pytest.raises(ValueError, match="'x-bad-bin' is not base64"):
        metadata.get("x-bad-bin")
    assert "x-bad-bin" in metadata
    assert metadata["x"] == "1"
    assert metadata.with_added("y", "2").raw[0] == (b"x-bad-bin", raw)


def test_iteration_gives_every_key_and_value_in_order() -> None:
    assert list(Metadata(REQUEST)) == [
        (":method", "POST"),
        (":path", "/pkg.Service/Method"),
        (":authority", "api.example"),
        ("x-tag", "one"),
        ("trace-bin", b"\x00\xff"),
        ("x-tag", "two"),
        ("trace-bin", b"\x00\xff"),
        ("trace-bin", b"abc"),
    ]


def test_neither_the_list_it_is_made_from_nor_the_list_it_gives_can_change_it() -> None:
    headers = list(REQUEST)
    metadata = Metadata(headers)
    headers.clear()
    metadata.raw.clear()
    assert metadata.raw == REQUEST


def test_a_replaced_value_takes_the_place_of_the_first() -> None:
    changed = Metadata(REQUEST).with_value("X-Tag", "three").raw
    assert changed == [*REQUEST[:3], (b"x-tag", b"three"), REQUEST[4], REQUEST[6]]


def test_a_new_value_goes_to_the_end() -> None:
    assert Metadata(REQUEST).with_value("x-via", "edge").raw == [*REQUEST, (b"x-via", b"edge")]


def test_an_added_value_leaves_those_that_are_there() -> None:
    assert Metadata(REQUEST).with_added("x-tag", "three").get_all("x-tag") == ["one", "two", "three"]


def test_a_removed_key_is_gone_with_all_its_values() -> None:
    metadata = Metadata(REQUEST).without("X-Tag")
    assert "x-tag" not in metadata
    assert metadata.without("x-tag") == metadata


@given(raw_headers, changes)
def test_a_change_leaves_all_other_headers_as_they_were(headers: Headers, change: tuple[str, Value]) -> None:
    key, value = change
    metadata = Metadata(headers)
    for changed in (metadata.with_value(key, value), metadata.with_added(key, value), metadata.without(key)):
        kept = others(changed.raw, key)
        assert len(kept) == len(others(headers, key))
        assert all(new is old for new, old in zip(kept, others(headers, key), strict=True))
    assert metadata.raw == headers


@given(raw_headers, changes)
def test_what_was_set_is_what_is_read(headers: Headers, change: tuple[str, Value]) -> None:
    key, value = change
    metadata = Metadata(headers).without(key)
    assert metadata.get_all(key) == []
    assert metadata.with_value(key, value).get_all(key) == [value]
    assert metadata.with_added(key, value).with_value(key, value).get_all(key) == [value]
    assert metadata.with_added(key, value).with_added(key, value).get_all(key) == [value, value]


@given(st.binary())
def test_binary_values_are_written_in_base64_without_padding(value: bytes) -> None:
    [(_, raw)] = Metadata.from_pairs({"x-bin": value}).raw
    assert raw == base64.b64encode(value).rstrip(b"=")


@given(st.lists(changes))
def test_metadata_made_from_pairs_gives_the_pairs_back(pairs: list[tuple[str, Value]]) -> None:
    assert list(Metadata.from_pairs(pairs)) == [(key.lower(), value) for key, value in pairs]
    assert list(Metadata.from_pairs(dict(pairs))) == [
        (key.lower(), value) for key, value in dict(pairs).items()
    ]


def test_the_authority_can_be_replaced_in_its_place() -> None:
    changed = Metadata(REQUEST).with_value(":authority", "other.example").raw
    assert changed == [*REQUEST[:2], (b":authority", b"other.example"), *REQUEST[3:]]


def test_an_authority_that_was_missing_goes_behind_the_other_pseudo_headers() -> None:
    without_authority = [*REQUEST[:2], *REQUEST[3:]]
    changed = Metadata(without_authority).with_value(":Authority", "other.example").raw
    assert changed == [*REQUEST[:2], (b":authority", b"other.example"), *REQUEST[3:]]


def test_the_path_can_be_replaced() -> None:
    assert Metadata(REQUEST).with_value(":path", "/other.Service/Method")[":path"] == "/other.Service/Method"


@pytest.mark.parametrize(
    ("key", "value", "lesson"),
    [
        (":method", "GET", "only :authority and :path"),
        (":status", "200", "only :authority and :path"),
        (":authority", "", "empty or has a space"),
        (":authority", "a b", "empty or has a space"),
        (":authority", "a\nb", "printable ASCII"),
        (":path", "pkg.Service/Method", "no '/' in front"),
        ("", "x", "made of letters, digits"),
        ("x y", "x", "made of letters, digits"),
        ("x:y", "x", "made of letters, digits"),
        ("x\n", "x", "made of letters, digits"),
        ("é", "x", "made of letters, digits"),
        ("K\u0130", "x", "made of letters, digits"),
        ("Connection", "close", "one connection only"),
        ("te", "trailers", "one connection only"),
        ("x", "a\r\nb", "printable ASCII"),
        ("x", "a\n", "printable ASCII"),
        ("x", "café", "any bytes can go under '-bin' keys"),
        ("x", " a", "begins or ends with a space"),
        ("x", "a ", "begins or ends with a space"),
    ],
)
def test_a_key_or_value_that_grpc_forbids_is_refused_with_the_rule(key: str, value: str, lesson: str) -> None:
    with pytest.raises(ValueError, match=lesson):
        Metadata(REQUEST).with_value(key, value)


def test_text_under_a_binary_key_and_bytes_under_a_text_key_are_type_errors() -> None:
    with pytest.raises(TypeError, match="ends in '-bin', so its value is bytes, not str"):
        Metadata().with_value("x-bin", "text")
    with pytest.raises(TypeError, match="is str, not bytes; bytes need a key that ends in '-bin'"):
        Metadata().with_added("x", b"bytes")
    with pytest.raises(TypeError, match="is str, not int"):
        Metadata.from_pairs({"x": 1})  # type: ignore[arg-type]


def test_pseudo_headers_are_neither_added_nor_removed() -> None:
    metadata = Metadata(REQUEST)
    with pytest.raises(ValueError, match="set it with with_value"):
        metadata.with_added(":authority", "second.example")
    with pytest.raises(ValueError, match="set it with with_value"):
        Metadata.from_pairs({":authority": "second.example"})
    with pytest.raises(ValueError, match="cannot be removed"):
        metadata.without(":path")


def test_metadata_of_the_same_headers_is_equal() -> None:
    assert Metadata(REQUEST) == Metadata(REQUEST)
    assert hash(Metadata(REQUEST)) == hash(Metadata(REQUEST))
    assert Metadata(REQUEST) != Metadata(REQUEST[::-1])
    assert Metadata(REQUEST) != REQUEST


def test_the_repr_shows_no_values() -> None:
    secret = Metadata([(b"authorization", b"Bearer 123"), (b"x", b"1")])
    assert repr(secret) == "<Metadata authorization x>"


def test_headers_with_nothing_to_strip_are_the_same_list() -> None:
    assert strip_hop_by_hop(REQUEST) is REQUEST


@pytest.mark.parametrize(
    "name", [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"]
)
def test_hop_by_hop_headers_are_stripped(name: bytes) -> None:
    headers = [*REQUEST[:5], (name, b"trailers"), *REQUEST[5:]]
    assert strip_hop_by_hop(headers) == REQUEST
    assert len(headers) == len(REQUEST) + 1


def test_headers_that_a_connection_header_names_are_stripped_too() -> None:
    headers = [(b"x-hop", b"1"), *REQUEST, (b"connection", b"close, X-Hop"), (b"connection", b"x-tag")]
    assert strip_hop_by_hop(headers) == others(REQUEST, "x-tag")


def test_a_connection_header_cannot_strip_a_pseudo_header() -> None:
    assert strip_hop_by_hop([*REQUEST, (b"connection", b":path,:method")]) == REQUEST


def test_the_next_hop_gets_values_without_blanks_at_their_edges() -> None:
    headers = [
        (b":path", b"/p.S/M"),
        (b"x-a", b" one "),
        (b"x-b", b"two\t"),
        (b"x-c", b"t h r e e"),
        (b"x-d", b""),
    ]
    assert for_next_hop(headers) == [
        (b":path", b"/p.S/M"),
        (b"x-a", b"one"),
        (b"x-b", b"two"),
        (b"x-c", b"t h r e e"),
        (b"x-d", b""),
    ]


def test_a_field_that_must_never_be_indexed_stays_one_when_it_is_trimmed() -> None:
    secret = hpack.NeverIndexedHeaderTuple(b"authorization", b" secret ")
    assert for_next_hop([secret]) == [(b"authorization", b"secret")]
    assert isinstance(for_next_hop([secret])[0], hpack.NeverIndexedHeaderTuple)


def test_the_next_hop_gets_the_same_list_where_there_is_nothing_to_change() -> None:
    assert for_next_hop(REQUEST) is REQUEST


def test_an_upstream_is_always_told_that_trailers_are_understood_right_behind_the_pseudo_headers() -> None:
    metadata = Metadata([(b":method", b"POST"), (b":path", b"/p.S/M"), (b"te", b"trailers"), (b"x-a", b"1")])
    assert metadata.next_hop == [
        (b":method", b"POST"),
        (b":path", b"/p.S/M"),
        (b"te", b"trailers"),
        (b"x-a", b"1"),
    ]
    assert Metadata([(b":path", b"/p.S/M")]).next_hop == [(b":path", b"/p.S/M"), (b"te", b"trailers")]


def test_the_size_for_the_next_hop_counts_32_bytes_for_each_field() -> None:
    metadata = Metadata([(b":path", b"/p"), (b"x", b"12345")])
    assert metadata.next_hop_size == (5 + 2) + (2 + 8) + (1 + 5) + 3 * 32


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([("x", b"y")], "bytes, not str"),
        ([(b"x", "y")], "bytes, not str"),
        ([(b"x", None)], "bytes, not NoneType"),
        ([(b"x", bytearray(b"y"))], "bytes, not bytearray"),
        ([[b"x", b"y"]], "a tuple of two bytes, its name and its value, not list"),
        ([(b"x", b"y", b"z")], "a tuple of two bytes, its name and its value, not a tuple of 3"),
        ([None], "not NoneType"),
        (["xy"], "not str"),
    ],
)
def test_raw_headers_are_pairs_of_bytes(raw: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Metadata(raw)


def test_headers_that_were_changed_are_as_well_checked_as_what_they_were_made_of() -> None:
    received = Metadata(FixedHeaders(REQUEST))
    assert not received.by_hand
    assert (
        not received.with_value("x", "1")
        .with_added("x", "2")
        .without("x-tag")
        .with_value(":path", "/p.S/M")
        .by_hand
    )
    assert Metadata(received.raw).by_hand
    assert Metadata(received.raw).with_value("x", "1").by_hand


@pytest.mark.parametrize(
    ("message", "passed_on"),
    [
        (b"said so ", b"said so%20"),
        (b" said so", b"%20said so"),
        (b"\t said so \t", b"%09%20said so%20%09"),
        (b" ", b"%20"),
        (b"100%25 ", b"100%25%20"),
        (b"said so", b"said so"),
        (b"", b""),
    ],
)
def test_blanks_around_a_message_are_escaped_so_that_the_text_arrives_whole(
    message: bytes, passed_on: bytes
) -> None:
    headers = [(b"grpc-status", b"9"), (b"grpc-message", message), (b"x", b" y ")]
    assert for_next_hop(headers) == [(b"grpc-status", b"9"), (b"grpc-message", passed_on), (b"x", b"y")]
    assert decode_grpc_message(passed_on) == decode_grpc_message(message)
