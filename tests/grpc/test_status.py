"""Statuses from headers, from HTTP and from resets; and the text of grpc-message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.grpc.status import (
    decode_grpc_message,
    encode_grpc_message,
    parse_status,
    status_fields,
    status_from_http,
    status_from_reset,
)
from rawgrpc_proxy.http2.headers import Headers


@pytest.mark.parametrize(
    ("http_status", "status"),
    [
        (200, Status.UNKNOWN),
        (302, Status.UNKNOWN),
        (400, Status.INTERNAL),
        (401, Status.UNAUTHENTICATED),
        (403, Status.PERMISSION_DENIED),
        (404, Status.UNIMPLEMENTED),
        (415, Status.UNKNOWN),
        (429, Status.UNAVAILABLE),
        (431, Status.INTERNAL),
        (500, Status.UNKNOWN),
        (502, Status.UNAVAILABLE),
        (503, Status.UNAVAILABLE),
        (504, Status.UNAVAILABLE),
    ],
)
def test_an_http_status_maps_to_a_grpc_status(http_status: int, status: Status) -> None:
    assert status_from_http(http_status) is status


NOT_INTERNAL = {
    ErrorCode.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCode.CANCEL: Status.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


@pytest.mark.parametrize("code", ErrorCode)
def test_a_reset_maps_to_a_grpc_status(code: ErrorCode) -> None:
    assert status_from_reset(code) is NOT_INTERNAL.get(code, Status.INTERNAL)


def test_a_reset_is_found_by_its_plain_number() -> None:
    assert status_from_reset(0x8) is Status.CANCELLED


@given(st.integers(min_value=0xE, max_value=2**32 - 1))
def test_a_reset_with_an_unknown_code_is_unknown(code: int) -> None:
    assert status_from_reset(code) is Status.UNKNOWN


@pytest.mark.parametrize("status", Status)
def test_every_status_is_read_from_its_number(status: Status) -> None:
    assert parse_status(b"%d" % status) is status


def test_there_are_seventeen_statuses_and_fourteen_error_codes() -> None:
    assert [int(status) for status in Status] == list(range(17))
    assert [int(code) for code in ErrorCode] == list(range(14))


def test_no_header_is_no_status() -> None:
    assert parse_status(None) is None


@pytest.mark.parametrize(
    "raw", [b"", b"17", b"-1", b"+1", b" 1", b"1 ", b"1_0", b"0x1", b"OK", b"1.0", b"\xb2", b"9" * 5000]
)
def test_a_status_that_is_no_status_is_unknown(raw: bytes) -> None:
    assert parse_status(raw) is Status.UNKNOWN


@given(st.text())
def test_a_message_survives_the_wire(text: str) -> None:
    assert decode_grpc_message(encode_grpc_message(text)) == text


@given(st.text(st.characters()))
def test_an_encoded_message_is_a_legal_header_value(text: str) -> None:
    raw = encode_grpc_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in raw)
    assert raw == raw.strip()


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="%")))
def test_printable_ascii_goes_as_it_is(text: str) -> None:
    assert encode_grpc_message(text) == text.encode()


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("no such user", b"no such user"),
        ("100%", b"100%25"),
        ("café", b"caf%C3%A9"),
        ("a\r\nb", b"a%0D%0Ab"),
        ("\x7f", b"%7F"),
        (" edge ", b"%20edge%20"),
        (" ", b"%20"),
        ("\ud800", b"?"),
    ],
)
def test_a_message_is_percent_encoded(text: str, raw: bytes) -> None:
    assert encode_grpc_message(text) == raw


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"100%", "100%"),
        (b"%4", "%4"),
        (b"%zz%41", "%zzA"),
        (b"%c3%a9", "é"),
        (b"%C3", "\ufffd"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff", "\ufffd"),
        (b" a ", " a "),
    ],
)
def test_a_broken_message_is_read_as_well_as_can_be(raw: bytes, text: str) -> None:
    assert decode_grpc_message(raw) == text


@given(st.binary())
def test_reading_a_message_never_fails(raw: bytes) -> None:
    assert isinstance(decode_grpc_message(raw), str)


END = [
    (b":status", b"200"),
    (b"x-a", b"1"),
    (b"grpc-status", b"9"),
    (b"grpc-message", b"a%20%E2%82%ACb"),
    (b"x-b", b"2"),
]


def size_of(headers: Headers) -> int:
    return sum(len(name) + len(value) + 32 for name, value in headers)


def test_of_an_end_that_is_too_long_the_status_and_the_message_stay() -> None:
    kept = [field for field in END if not field[0].startswith(b"x-")]
    assert status_fields(END, size_of(kept)) == kept


def test_a_message_that_is_too_long_is_cut_at_its_end_and_in_no_escape() -> None:
    kept = [field for field in END if not field[0].startswith(b"x-")]
    cut = {}
    for less in range(15):
        reduced = status_fields(END, size_of(kept) - less)
        assert size_of(reduced) <= size_of(kept) - less
        assert [field for field in reduced if field[0] != b"grpc-message"] == kept[:2]
        cut[less] = reduced[-1][1]
    assert [cut[less] for less in (0, 1, 2, 3, 4, 10, 11, 12, 13, 14)] == [
        *(b"a%20%E2%82%ACb", b"a%20%E2%82%AC", b"a%20%E2%82", b"a%20%E2%82", b"a%20%E2%82"),
        *(b"a%20", b"a", b"a", b"a", b""),
    ]


def test_a_limit_that_even_the_status_passes_leaves_an_empty_message() -> None:
    assert status_fields(END, 1)[-2:] == [(b"grpc-status", b"9"), (b"grpc-message", b"")]
