"""Answers that are kept for header blocks: nobody can tell them from work done anew."""

import sys

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.http2 import header_blocks
from rawgrpc_proxy.http2.header_blocks import HeaderDecoder, HeaderEncoder
from tests.http2.peer import REQUEST, RESPONSE, TRAILERS, Header

NO_LIMIT = 2**20

names = st.sampled_from([b":method", b":path", b"x-a", b"x-b", b"grpc-status", b"x" * 100])
values = st.sampled_from([b"", b"POST", b"/", b"0", b"v" * 50, b"w" * 3000])
lists = st.lists(st.tuples(names, values), max_size=4)


def never_indexed(headers: list[Header]) -> bytes:
    return hpack.Encoder().encode([(name, value, True) for name, value in headers], huffman=False)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, 0, 60, 200, 4096])), max_size=25), st.data()
)
def test_what_is_decoded_is_what_hpack_decodes(
    script: list[tuple[int, int | None]], draw: st.DataObject
) -> None:
    """Also after changes of the table, and of its size alone."""
    pool = draw.draw(st.lists(lists, min_size=6, max_size=6))
    encoder, reference, decoder = hpack.Encoder(), hpack.Decoder(), HeaderDecoder(NO_LIMIT)

    for choice, size in script:
        if size is not None:
            encoder.header_table_size = size
        wire = encoder.encode(pool[choice])

        assert decoder.decode(wire) == list(reference.decode(wire, raw=True))


def test_a_larger_table_alone_changes_what_a_block_does() -> None:
    """A field that did not fit into the table fits after a size update, and can be referred to from then on."""
    to_nothing, to_4096 = b"\x20", b"\x3f\xe1\x1f"
    insertion = b"\x40\x01x\x01y"
    decoder = HeaderDecoder(NO_LIMIT)

    decoder.decode(to_nothing)
    assert decoder.decode(insertion) == [(b"x", b"y")]
    decoder.decode(to_4096 + b"\x82")
    assert decoder.decode(insertion) == [(b"x", b"y")]

    assert decoder.decode(b"\xbe") == [(b"x", b"y")]


def test_a_repeated_block_is_answered_without_hpack(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, block = HeaderDecoder(NO_LIMIT), never_indexed(REQUEST)
    first = decoder.decode(block)
    monkeypatch.setattr(hpack.Decoder, "decode", None)

    assert decoder.decode(block) is first


def test_the_mark_of_never_indexed_fields_is_kept() -> None:
    decoder = HeaderDecoder(NO_LIMIT)

    (field,) = decoder.decode(never_indexed([(b"authorization", b"secret")]))

    assert isinstance(field, hpack.NeverIndexedHeaderTuple)


def test_a_list_beyond_the_limit_is_refused_each_time() -> None:
    block = b"\x83" * 4  # four fields of 43 bytes in RFC 7541's measure

    assert len(HeaderDecoder(172).decode(block)) == 4
    decoder = HeaderDecoder(171)
    for _ in range(2):
        with pytest.raises(hpack.OversizedHeaderListError):
            decoder.decode(block)


def test_distinct_blocks_do_not_pile_up() -> None:
    """A peer may send as many different blocks as it likes, each of which leaves the table alone."""
    decoder = HeaderDecoder(NO_LIMIT)
    before = sys.getallocatedblocks() if hasattr(sys, "getallocatedblocks") else 0

    for number in range(5000):
        decoder.decode(never_indexed([(b"x-trace", b"%d" % number)]))

    assert len(decoder._answers) <= 256
    if before:
        assert sys.getallocatedblocks() - before < 5000


def test_blocks_that_expand_to_many_fields_are_not_kept() -> None:
    """One byte of a block can be a field: kept answers could be a hundred times as large as the blocks."""
    decoder = HeaderDecoder(NO_LIMIT)

    decoder.decode(b"\x82" * 64)
    decoder.decode(b"\x82" * 65)

    assert [len(answer) for answer in decoder._answers.values()] == [64]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, None, 0, 60, 200, 4096])), max_size=25),
    st.data(),
)
def test_what_is_encoded_is_what_any_decoder_reads(
    script: list[tuple[int, int | None]], draw: st.DataObject
) -> None:
    pool = draw.draw(st.lists(lists, min_size=6, max_size=6))
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    in_force = 4096

    for choice, size in script:
        if size is not None and size != in_force:
            encoder.set_table_size(size)
            in_force = size

        assert list(decoder.decode(encoder.encode(pool[choice]), raw=True)) == pool[choice]
        assert decoder.header_table_size == in_force or size is None


def test_a_repeated_list_is_answered_without_hpack(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = HeaderEncoder()
    encoder.encode(RESPONSE)
    block = encoder.encode(RESPONSE)
    monkeypatch.setattr(hpack.Encoder, "encode", None)

    assert encoder.encode(list(RESPONSE)) == block


def test_a_change_of_the_table_is_announced_once() -> None:
    encoder = HeaderEncoder()
    encoder.set_table_size(0)

    static_only = [(b":status", b"200")]
    assert encoder.encode(static_only) == b"\x20\x88"
    assert encoder.encode(static_only) == b"\x88"


def test_values_are_never_huffman_coded() -> None:
    assert b"/helloworld.Greeter/SayHello" in HeaderEncoder().encode(REQUEST)


def test_distinct_lists_do_not_pile_up() -> None:
    encoder = HeaderEncoder()
    encoder.set_table_size(0)  # nothing enters the table, so nothing is thrown away for its sake

    for number in range(1000):
        encoder.encode([*TRAILERS, (b"x", b"%d" % number)])
    encoder.encode([(b"x", b"v" * 3000)])

    assert 0 < len(encoder._answers) <= 256
    assert max(map(len, encoder._answers.values())) <= header_blocks._MAX_ANSWER_BYTES
