"""Messages are read without their schema, and no bytes make that fail."""

import json
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.lab.protobuf_guess import MAX_DEPTH, Message, Text, Varint, as_json, as_text, guess


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value % (1 << 64))


def delimited(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (number(1, 5), "1: 5"),
        (number(1, -1), "1: -1"),
        (number(2, 1999), "2: 1999 (sint -1000)"),
        (delimited(1, b"hello"), '1: "hello"'),
        (delimited(1, b""), '1: ""'),
        (delimited(1, "grün\n".encode()), '1: "grün\\n"'),
        (delimited(3, delimited(1, b"in it") + number(2, 7)), '3: {1: "in it" 2: 7}'),
        (delimited(4, delimited(1, delimited(1, number(1, 1)))), "4: {1: {1: {1: 1}}}"),
        (delimited(5, varint(3) + varint(270) + varint(86942)), "5: [3, 270, 86942]"),
        (delimited(6, b"\xff\xfe\xfd"), "6: <3 B fffefd>"),
        (b"\x39" + struct.pack("<d", 1.5), "7: 1.5"),
        (b"\x3d" + struct.pack("<f", -2.25), "7: -2.25"),
        (b"\x39" + (12345).to_bytes(8, "little"), "7: 12345"),
        (b"\x0b" + number(2, 3) + b"\x0c", "1: {2: 3}"),
        (delimited(1, b"a") + delimited(1, b"b"), '1: "a" 1: "b"'),
        # A text that begins like a message is one, if it ends like one.
        (delimited(1, delimited(1, b" " * 32)), '1: {1: "' + " " * 32 + '"}'),
        (delimited(1, b"\n two lines"), '1: "\\n two lines"'),
    ],
)
def test_what_values_are_is_guessed(data: bytes, text: str) -> None:
    message = guess(data)
    assert message is not None
    assert as_text(message) == text


@pytest.mark.parametrize(
    "data",
    [
        *(b"\x00", b"hello", b"\x08", b"\x08\x80\x00", b"\x0a\x05abc"),
        *(b"\x0b\x10\x03", b"\x0c", b"\x0f\x01", b"\x08" + b"\xff" * 10),
    ],
)
def test_what_cannot_be_a_message_is_none(data: bytes) -> None:
    assert guess(data) is None


def test_the_beginning_of_a_message_is_read_as_far_as_it_goes() -> None:
    data = number(1, 5) + delimited(2, b"hello")
    message = guess(data[:-2], cut=True)
    assert message is not None
    assert (message.is_whole, as_text(message)) == (False, "1: 5 …")
    assert guess(data[:-2]) is None


def test_lines_are_cut() -> None:
    message = guess(delimited(1, b"x" * 1000))
    assert message is not None
    assert as_text(message, 20) == '1: "' + "x" * 15 + "…"


def test_json_names_what_was_guessed() -> None:
    data = number(1, 3) + delimited(2, b"a") + delimited(3, number(1, 2)) + delimited(4, b"\xff")
    data += delimited(5, varint(1) + varint(2)) + b"\x35" + struct.pack("<f", 0.5)
    message = guess(data)
    assert message is not None
    assert as_json(message) == [
        {"field": 1, "int": 3, "sint": -2},
        {"field": 2, "text": "a"},
        {"field": 3, "message": [{"field": 1, "int": 2}]},
        {"field": 4, "hex": "ff"},
        {"field": 5, "packed": [1, 2]},
        {"field": 6, "fixed": 1056964608, "real": 0.5},
    ]


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_make_it_fail(data: bytes, cut: bool) -> None:
    message = guess(data, cut=cut)
    if message is not None:
        assert "\n" not in as_text(message)
        json.dumps(as_json(message), allow_nan=False)


fields = st.recursive(
    st.one_of(
        st.tuples(st.integers(1, 99), st.integers(0, 2**64 - 1)),
        st.tuples(st.integers(1, 99), st.text(st.characters(categories=["L", "Nd"]), min_size=3)),
    ),
    lambda below: st.tuples(st.integers(1, 99), st.lists(below, min_size=1, max_size=3)),
    max_leaves=8,
)


def encoded(field: tuple[int, object]) -> bytes:
    place, value = field
    if isinstance(value, int):
        return number(place, value)
    if isinstance(value, str):
        return delimited(place, value.encode())
    assert isinstance(value, list)
    return delimited(place, b"".join(map(encoded, value)))


@given(st.lists(fields, max_size=5))
def test_numbers_and_texts_of_a_message_are_found_at_its_top(tree: list[tuple[int, object]]) -> None:
    message = guess(b"".join(map(encoded, tree)))
    assert message is not None
    assert [field.number for field in message.fields] == [place for place, _ in tree]
    for field, (_, value) in zip(message.fields, tree, strict=True):
        if isinstance(value, int):
            assert field.value == Varint(value)
        elif isinstance(value, str):
            assert field.value == Text(value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x80\x80\x04" + b"\x0b" * 65536,
        b"\x0b" * 65536,
        b"".join([number(1, 1)] * 30000),
        b"\x0a\x01" * 32768,
    ],
)
def test_messages_made_to_be_deep_or_wide_cost_little(data: bytes) -> None:
    started = time.process_time()
    guess(data, cut=True)
    assert time.process_time() - started < 5


def test_depth_is_bounded() -> None:
    data = number(1, 1)
    for _ in range(100):
        data = delimited(1, data)
    message = guess(data)
    depth = 0
    while message is not None and isinstance(message.fields[0].value, Message):
        message, depth = message.fields[0].value, depth + 1
    assert depth == MAX_DEPTH
