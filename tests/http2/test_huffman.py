"""Huffman-coded strings: the same texts, and the same refusals, as hpack's own decoder gives."""

import hpack
import pytest
from hpack.huffman_table import decode_huffman as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rawgrpc_proxy.http2.huffman import decode_huffman


def outcome(decode: object, coded: bytes) -> bytes | None:
    assert callable(decode)
    try:
        text = decode(coded)
    except hpack.HPACKDecodingError:
        return None
    assert isinstance(text, bytes)
    return text


def coded(text: bytes) -> bytes:
    """By the rules of RFC 7541 appendix B, as hpack knows them."""

    return bytes(hpack.Encoder().huffman_coder.encode(text))


@given(st.binary(max_size=300))
@settings(max_examples=1000)
def test_any_bytes_are_what_they_are_to_hpack(data: bytes) -> None:
    assert outcome(decode_huffman, data) == outcome(reference, data)


@given(st.binary(max_size=300))
@settings(max_examples=500)
def test_what_is_coded_is_decoded(text: bytes) -> None:
    assert decode_huffman(coded(text)) == text


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",  # EOS (RFC 7541 section 5.2)
        b"\x1f\xff",  # "a" and eight bits of padding more than there may be
        b"\x18",  # "a" and zeros
    ],
)
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(hpack.HPACKDecodingError):
        decode_huffman(data)


def test_the_example_of_the_rfc() -> None:
    """RFC 7541 appendix C.4.1."""
    assert decode_huffman(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")) == b"www.example.com"
