"""hpack 4.2: what its encoder and decoder cost, and what they let through."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKDecodingError, InvalidTableSizeError, OversizedHeaderListError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH


class Shift(int):
    """A code length that adds up how many bits of number were moved each time it was shifted by."""

    bits_moved = 0

    def __rlshift__(self, number: int) -> int:
        Shift.bits_moved += number.bit_length()
        return number << int(self)


def bits_moved_by_huffman(length: int) -> int:
    Shift.bits_moved = 0
    lengths: list[int] = [Shift(bits) for bits in REQUEST_CODES_LENGTH]
    encoded = HuffmanEncoder(REQUEST_CODES, lengths).encode(b"v" * length)
    assert encoded == HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(b"v" * length)
    return Shift.bits_moved


class WalkedEntries(deque[tuple[bytes, bytes]]):
    """A dynamic table that counts how many of its entries a search looked at."""

    walked = 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for entry in super().__iter__():
            self.walked += 1
            yield entry


class HuffmanUsedError(Exception):
    pass


class NoHuffman(HuffmanEncoder):
    def encode(self, bytes_to_encode: bytes | None) -> bytes:
        raise HuffmanUsedError(bytes_to_encode)


def encoder_without_huffman() -> Encoder:
    encoder = Encoder()
    encoder.huffman_coder = NoHuffman(REQUEST_CODES, REQUEST_CODES_LENGTH)
    return encoder


def test_huffman_encoding_of_one_value_is_quadratic_in_its_length() -> None:
    """The code is built by shifting one ever longer integer, once per byte: 60 KB take up to a second.

    The proxy encodes with ``huffman=False``, so that one long value cannot stall every connection of the
    process.
    """
    small, large = bits_moved_by_huffman(1_000), bits_moved_by_huffman(4_000)

    assert 15 < large / small < 17  # 4 times the length, 4 squared times the work


def test_encoding_uses_huffman_unless_told_otherwise() -> None:
    """The default is ``huffman=True``; h2 has no option for it and never passes one.

    The proxy therefore gives h2 an encoder of its own whose ``encode`` turns it off.
    """
    with pytest.raises(HuffmanUsedError):
        encoder_without_huffman().encode([(b"x-field", b"value")])


def test_encoding_without_huffman_copies_values_as_they_are() -> None:
    """The cheap path: no Huffman coder is called, and the value stands in the block byte for byte."""
    value = b"v" * 60_000

    encoded = encoder_without_huffman().encode([(b"x-field", value)], huffman=False)

    assert encoded.endswith(value)
    assert Decoder().decode(encoded, raw=True) == [(b"x-field", value)]


@pytest.mark.parametrize("entries", [10, 100, 1_000])
def test_a_search_that_misses_looks_at_every_entry_of_the_dynamic_table(entries: int) -> None:
    """The dynamic table is searched from end to end, so each new field costs as much as the table is long.

    The proxy never lets a peer's HEADER_TABLE_SIZE grow the encoder's table beyond 4096 bytes.
    """
    encoder = Encoder()
    encoder.header_table_size = 2**32 - 1
    for number in range(entries):
        encoder.encode([(b"x-%d" % number, b"")], huffman=False)
    watched = WalkedEntries(encoder.header_table.dynamic_entries)
    encoder.header_table.dynamic_entries = watched

    assert encoder.header_table.search(b"x-absent", b"") is None

    assert watched.walked == entries


def test_a_match_in_the_static_table_does_not_search_the_dynamic_one() -> None:
    """Static fields are found by hash, and cost the same whatever the table holds."""
    encoder = Encoder()
    encoder.encode([(b"x-field", b"value")])
    watched = WalkedEntries(encoder.header_table.dynamic_entries)
    encoder.header_table.dynamic_entries = watched

    assert encoder.header_table.search(b":method", b"POST") == (3, b":method", b"POST")

    assert watched.walked == 0


def test_the_encoder_accepts_any_table_size_its_peer_allows() -> None:
    """Nothing bounds ``header_table_size``: 2^32 - 1 is taken, and told to the peer in the next block.

    The proxy clamps the peer's SETTINGS_HEADER_TABLE_SIZE to 4096 before it reaches the encoder.
    """
    encoder = Encoder()

    encoder.header_table_size = 2**32 - 1

    assert encoder.header_table_size == 2**32 - 1
    assert encoder.encode([(b":method", b"POST")]) == b"\x3f\xe0\xff\xff\xff\x0f\x83"


def test_the_encoder_announces_every_size_that_its_table_had() -> None:
    """RFC 7541 §4.2 wants two at the most, and a decoder that allows 60 bytes by now fails at the 100.

    ``_PlainEncoder`` in ``http2/h2_session.py`` therefore leaves the smallest of them and the last.
    """
    encoder = Encoder()
    for size in (100, 60, 80):
        encoder.header_table_size = size
    assert encoder.table_size_changes == [100, 60, 80]
    decoder = Decoder()
    decoder.max_allowed_table_size = 80
    with pytest.raises(InvalidTableSizeError):
        decoder.decode(encoder.encode([(b":status", b"200")]))


def test_setting_the_same_table_size_twice_forgets_to_tell_the_peer() -> None:
    """The second, equal assignment clears the "resized" mark of the first, so no size update is ever written.

    RFC 7541 section 4.2 obliges the encoder to acknowledge a reduced table at the start of the next block,
    and strict peers close the connection when it does not. A peer can cause this by sending the same SETTINGS
    twice before the next header block. The proxy passes HEADER_TABLE_SIZE on only when it differs from the
    size in force.
    """
    once, twice = Encoder(), Encoder()
    once.header_table_size = 100
    twice.header_table_size = 100
    twice.header_table_size = 100

    assert once.encode([(b":method", b"POST")]) == b"\x3f\x45\x83"
    assert twice.encode([(b":method", b"POST")]) == b"\x83"


def test_every_field_not_marked_sensitive_enters_the_dynamic_table() -> None:
    """Unique values (trace ids, deadlines, tokens) push the useful entries out of the table.

    The encoder adds only what is marked to the list of exceptions: nothing is left out for its name or its
    value.
    """
    encoder = Encoder()

    encoder.encode([(b"grpc-timeout", b"4999973u"), NeverIndexedHeaderTuple(b"authorization", b"secret")])

    assert list(encoder.header_table.dynamic_entries) == [(b"grpc-timeout", b"4999973u")]


def test_an_exception_in_mid_block_leaves_the_table_changed() -> None:
    """Fields before the failing one stay in the encoder's table although the peer never gets the block.

    From then on both tables differ and every later block decodes wrongly. The proxy checks a header list
    whole before it encodes the first field, and treats an exception from the encoder as the end of the
    connection.
    """
    encoder = Encoder()

    def fields() -> Iterator[HeaderTuple]:
        yield HeaderTuple(b"x-first", b"1")
        raise LookupError

    with pytest.raises(LookupError):
        encoder.encode(fields())

    assert list(encoder.header_table.dynamic_entries) == [(b"x-first", b"1")]


def test_the_decoder_bounds_the_size_of_a_list_but_not_its_number_of_fields() -> None:
    """Each field counts 32 bytes more than its text; nothing else is limited: 64 KiB allow 1,985 tiny ones.

    One byte of wire makes one such field. The proxy counts the fields itself and refuses more than 100.
    """
    decoder = Decoder(max_header_list_size=65_536)
    fits = (b"x", b"")  # 33 bytes of list
    decoder.decode(Encoder().encode([fits]), raw=True)
    indexed = b"\xbe"  # the youngest entry of the dynamic table

    assert len(list(decoder.decode(indexed * 1_985, raw=True))) == 1_985
    with pytest.raises(OversizedHeaderListError):
        decoder.decode(indexed * 1_986, raw=True)


def test_an_oversized_list_stops_decoding_in_mid_block_and_loses_the_rest_of_the_table() -> None:
    """The entries that the rest of the block would have added are missing: the decoder is unusable.

    A limit that must cost one stream only cannot be the decoder's. The proxy sets the decoder's limit as the
    bound for the connection, and refuses smaller excesses by looking at the decoded list.
    """
    decoder = Decoder(max_header_list_size=100)
    encoded = Encoder().encode([(b"x-long", b"v" * 100), (b"x-after", b"1")])

    with pytest.raises(OversizedHeaderListError):
        decoder.decode(encoded, raw=True)

    assert [name for name, _ in decoder.header_table.dynamic_entries] == [b"x-long"]


def test_size_updates_at_the_start_of_a_block_are_not_counted() -> None:
    """A block may be nothing but table size updates: a thousand of them decode to no field at all.

    RFC 7541 section 4.2 speaks of at most two. The proxy bounds them by bounding the block.
    """
    assert Decoder().decode(b"\x20" * 1_000, raw=True) == []


def test_a_size_update_after_a_field_is_an_error() -> None:
    """The other half of the rule is kept by hpack, so the proxy need not look for it."""
    with pytest.raises(HPACKDecodingError, match="not at the start"):
        Decoder().decode(b"\x83\x20", raw=True)


def test_a_size_update_above_the_allowed_table_is_an_error() -> None:
    """``max_allowed_table_size`` is 4096 unless raised, so a peer cannot grow the decoder's table.

    The proxy leaves SETTINGS_HEADER_TABLE_SIZE at its default and needs no check of its own.
    """
    assert Decoder().max_allowed_table_size == 4096
    assert Decoder().decode(b"\x3f\xe1\x1f", raw=True) == []
    with pytest.raises(InvalidTableSizeError):
        Decoder().decode(b"\x3f\xe2\x1f", raw=True)


def test_the_decoder_looks_at_no_byte_of_a_name_or_a_value() -> None:
    """Empty names, upper case, NUL, line feeds, edge whitespace: HPACK is a codec, and passes it all.

    The proxy validates every field it forwards.
    """
    fields = [
        (b"", b"empty"),
        (b"Upper", b"a\x00b"),
        (b"x y:z", b" edge "),
        (b"x", b"a\r\nb"),
        (b"\xff", b"\xff"),
    ]

    assert Decoder().decode(Encoder().encode(fields), raw=True) == fields


def test_decoding_raw_keeps_the_mark_of_never_indexed_fields() -> None:
    """A sensitive field comes out as ``NeverIndexedHeaderTuple`` and, passed on, is encoded so again.

    RFC 7541 section 7.1.3 asks intermediaries to keep the mark. The proxy forwards the decoder's own tuples.
    """
    wire = Encoder().encode([(b"x-secret", b"s", True), (b"x-open", b"o")])

    secret, public = Decoder().decode(wire, raw=True)
    encoder = Encoder()
    encoder.encode([secret, public])

    assert isinstance(secret, NeverIndexedHeaderTuple)
    assert not isinstance(public, NeverIndexedHeaderTuple)
    assert list(encoder.header_table.dynamic_entries) == [(b"x-open", b"o")]
