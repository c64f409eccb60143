"""Answers that are kept for header blocks: nobody can tell them from work done anew."""

import gc
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import hpack
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rawgrpc_proxy.http2 import hpack as blocks
from rawgrpc_proxy.http2 import hpack as module
from rawgrpc_proxy.http2.headers import FixedHeaders
from rawgrpc_proxy.http2.hpack import HeaderDecoder, HeaderEncoder
from tests.http2.peer import REQUEST, TRAILERS, Header

NO_LIMIT = 2**20

names = st.sampled_from([b":method", b":path", b"x-a", b"x-b", b"grpc-status", b"x" * 100])
values = st.sampled_from([b"", b"POST", b"/", b"0", b"v" * 50, b"w" * 3000])
lists = st.lists(st.tuples(names, values), max_size=4)


def literal(field: Header) -> bytes:
    """Without indexing, so that it leaves the table alone (RFC 7541 §6.2.2)."""
    return blocks._literal(0x00, 0x0F, field)


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
    encoder, reference, decoder = hpack.Encoder(), hpack.Decoder(), HeaderDecoder(NO_LIMIT, NO_LIMIT)

    for choice, size in script:
        if size is not None:
            encoder.header_table_size = size
        wire = encoder.encode(pool[choice])

        assert decoder.decode(wire) == list(reference.decode(wire, raw=True))


octets = st.integers(0, 255).map(lambda octet: bytes([octet]))
pieces = st.one_of(
    st.sampled_from(
        [
            b"\x82", b"\x88", b"\xbe", b"\xbf", b"\xff\x00", b"\xff\x80\x80\x80\x80\x00", b"\x80",
            b"\x40\x01x\x01y", b"\x44\x02/a", b"\x7e\x01z", b"\x0f\x10\x01q", b"\x00\x01n\x01v", b"\x10\x01s\x01s",
            b"\x04\x84\x60\x75\x99\x8f", b"\x40\x81\xf3\x81\xf3", b"\x40\x01b\x7f\x01" + b"b" * 128,
            b"\x20", b"\x3f\xe1\x1f", b"\x3f\xe2\x1f", b"\x3f\x80\x80\x80\x80\x80\x00", b"\x3f\x21",
        ]
    ),
    octets,
)  # fmt: skip


@given(st.lists(st.lists(pieces, max_size=6).map(b"".join), max_size=5))
@settings(max_examples=1000)
def test_any_bytes_are_what_they_are_to_hpack(blocks: list[bytes]) -> None:
    """Sense or nonsense: the same lists with the same marks, the same end, the same table afterwards."""

    def outcome(decode: Callable[[bytes], Iterable[Header]], block: bytes) -> object:
        try:
            fields = list(decode(block))
        except hpack.HPACKError as error:
            return type(error) is hpack.OversizedHeaderListError
        return [(field, isinstance(field, hpack.NeverIndexedHeaderTuple)) for field in fields]

    reference, decoder = hpack.Decoder(max_header_list_size=2**30), HeaderDecoder(NO_LIMIT, NO_LIMIT)
    for block in blocks:
        assume(not re.match(rb"(\x20|\x3f[\x80-\xff]*[\x00-\x7f]|[\x21-\x3e]){3}", block))  # see below
        expected = outcome(lambda block: reference.decode(block, raw=True), block)
        assert outcome(decoder.decode, block) == expected
        if isinstance(expected, bool):
            return  # the end of the connection
        assert decoder._table.dynamic_entries == reference.header_table.dynamic_entries
        assert decoder._table.maxsize == reference.header_table.maxsize


def test_a_larger_table_alone_changes_what_a_block_does() -> None:
    """A field that did not fit into the table fits after a size update, and can be referred to from then on."""
    to_nothing, to_4096 = b"\x20", b"\x3f\xe1\x1f"
    insertion = b"\x40\x01x\x01y"
    decoder = HeaderDecoder(NO_LIMIT, NO_LIMIT)

    decoder.decode(to_nothing)
    assert decoder.decode(insertion) == [(b"x", b"y")]
    decoder.decode(to_4096 + b"\x82")
    assert decoder.decode(insertion) == [(b"x", b"y")]

    assert decoder.decode(b"\xbe") == [(b"x", b"y")]


def test_a_repeated_block_is_answered_with_the_same_list() -> None:
    decoder, block = HeaderDecoder(NO_LIMIT, NO_LIMIT), never_indexed(REQUEST)

    assert decoder.decode(block) is decoder.decode(block)


def test_equal_lists_of_all_connections_are_the_same_list() -> None:
    """So what is worked out from it is worked out once, however many clients send it."""
    blocks = hpack.Encoder().encode(REQUEST), hpack.Encoder().encode(REQUEST, huffman=False)

    one, other = (HeaderDecoder(NO_LIMIT, NO_LIMIT).decode(block) for block in blocks)

    assert one is other


MARKED: list[Header] = [hpack.NeverIndexedHeaderTuple(*field) for field in REQUEST]


@pytest.mark.parametrize("own", [b"authorization", b"cookie", b"x-api-key", b"ticket-bin", b"grpc-timeout"])
def test_a_list_with_anything_of_its_caller_s_own_is_its_connection_s_alone(own: bytes) -> None:
    """Any field but the protocol's may hold a credential, and one that is marked does for sure."""
    for headers in ([*REQUEST, (own, b"of-alice")], MARKED):
        block = never_indexed(headers) if headers is MARKED else b"".join(map(literal, headers))
        one, other = HeaderDecoder(NO_LIMIT, NO_LIMIT), HeaderDecoder(NO_LIMIT, NO_LIMIT)

        assert one.decode(block) == other.decode(block) == headers
        assert one.decode(block) is not other.decode(block)
        assert one.decode(block) is one.decode(block), "on the connection it is kept"


def test_the_mark_of_never_indexed_fields_is_kept() -> None:
    decoder = HeaderDecoder(NO_LIMIT, NO_LIMIT)

    (field,) = decoder.decode(never_indexed([(b"authorization", b"secret")]))

    assert isinstance(field, hpack.NeverIndexedHeaderTuple)


def test_a_list_of_more_fields_than_allowed_is_refused_each_time() -> None:
    block = b"\x83" * 4

    assert len(HeaderDecoder(NO_LIMIT, 4).decode(block)) == 4
    decoder = HeaderDecoder(NO_LIMIT, 3)
    for _ in range(2):
        with pytest.raises(hpack.OversizedHeaderListError):
            decoder.decode(block)


def test_of_a_list_beyond_the_limit_the_rest_is_not_kept_but_for_how_the_call_went() -> None:
    """And the table stays in step."""
    status, text = (b"grpc-status", b"9"), (b"x-text", b"x")
    block = b"\x83" * 4 + literal(text) + b"".join(b"\x40" + literal(field)[1:] for field in (status, text))

    decoder = HeaderDecoder(172, NO_LIMIT)  # four fields of 43 bytes in RFC 7541's measure
    assert decoder.decode(block) == [(b":method", b"POST")] * 4 + [text, status]
    decoder = HeaderDecoder(171, NO_LIMIT)
    assert decoder.decode(block) == [(b":method", b"POST")] * 4 + [status]
    assert decoder.decode(b"\xbe\xbf") == [text, status]


def test_a_third_size_update_is_refused() -> None:
    """RFC 7541 section 4.2 knows two: the smallest size since the last block, and the last."""
    assert HeaderDecoder(NO_LIMIT, NO_LIMIT).decode(b"\x20\x3f\xe1\x1f\x83") == [(b":method", b"POST")]
    with pytest.raises(hpack.HPACKDecodingError, match="first two"):
        HeaderDecoder(NO_LIMIT, NO_LIMIT).decode(b"\x20\x3f\xe1\x1f\x20\x83")


def test_the_work_of_a_block_is_counted_unless_its_answer_was_kept() -> None:
    decoder = HeaderDecoder(NO_LIMIT, NO_LIMIT)
    block = b"\x83" * 110 + never_indexed([(b"x", b"y")])

    decoder.decode(block)
    decoder.decode(block)
    assert decoder.work == 11
    decoder.decode(b"\0\1x\xff\xa1\x80\x01" + b"\x1f" * (16 * 1024 + 160))
    assert decoder.work == 11 + 20


def test_headers_of_a_hundred_fields_and_a_long_token_are_no_work() -> None:
    decoder = HeaderDecoder(NO_LIMIT, NO_LIMIT)

    for length in (0x80, 16 * 1024):
        size = length - 0x7F
        decoder.decode(
            b"\x83" * 99 + b"\0\1x\xff" + bytes((size & 0x7F | 0x80, size >> 7)) + b"\x1f" * length
        )
        decoder.decode(never_indexed([(b"x", b"y" * 40_000)]))

    assert decoder.work == 0


def test_how_a_call_went_is_kept_once_of_a_list_that_repeats_it() -> None:
    """A field of the table takes one byte each time that it is said."""
    decoder = HeaderDecoder(8000, NO_LIMIT)

    headers = decoder.decode(b"\x40" + literal((b"grpc-message", b"x" * 3000))[1:] + b"\xbe" * 1000)

    assert len(headers) == 5


def test_distinct_blocks_do_not_pile_up() -> None:
    """A peer may send as many different blocks as it likes, each of which leaves the table alone."""
    decoder = HeaderDecoder(NO_LIMIT, NO_LIMIT)
    before = sys.getallocatedblocks() if hasattr(sys, "getallocatedblocks") else 0

    for number in range(5000):
        decoder.decode(never_indexed([(b"x-trace", b"%d" % number)]))

    assert decoder._kept_bytes <= 42 * 1024
    if before:
        assert sys.getallocatedblocks() - before < 5000


def test_blocks_that_expand_to_many_fields_are_not_kept() -> None:
    """One byte of a block can be a field: kept answers could be a hundred times as large as the blocks."""
    decoder = HeaderDecoder(NO_LIMIT, NO_LIMIT)

    decoder.decode(b"\x82" * 64)
    decoder.decode(b"\x82" * 640)

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


def test_a_list_that_repeats_is_encoded_once() -> None:
    encoder, fixed = HeaderEncoder(), FixedHeaders(REQUEST)
    # Fields whose hashes share a place are seen one after the other, and hashes differ from run to run.
    for _ in range(1 + len(REQUEST)):
        block = encoder.encode(fixed)

    assert encoder.encode(fixed) is block
    assert encoder.encode(list(REQUEST)) == block, "an equal list is put together from its fields"


def test_a_list_in_the_place_of_one_that_is_gone_is_not_taken_for_it() -> None:
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    for number in range(1000):
        headers = FixedHeaders([(b"x", b"%d" % (number % 10))])
        assert list(decoder.decode(encoder.encode(headers), raw=True)) == headers


def test_what_differs_each_time_stays_out_of_the_table() -> None:
    """It would push out what repeats; what repeats is in the table from its second time on."""
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    sizes = []

    for number in range(100):
        headers = [*REQUEST, (b"x-trace", b"%d" % number)]
        block = encoder.encode(headers)
        assert list(decoder.decode(block, raw=True)) == headers
        sizes.append(len(block))

    entries = [tuple(entry) for entry in decoder.header_table.dynamic_entries]
    assert all(name != b"x-trace" for name, _ in entries)
    assert entries
    assert set(entries) <= set(REQUEST)
    assert sizes[-1] < sizes[0] / 2


def test_a_field_that_must_never_be_indexed_never_is() -> None:
    """RFC 7541 §6.2.3 asks those in between to keep the mark, also for a value that others send without it."""
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    plain, marked = (b"x-secret", b"secret"), hpack.NeverIndexedHeaderTuple(b"x-secret", b"secret")

    for field in [plain, plain, plain, plain, marked, marked, plain, marked]:
        for headers in ([field], FixedHeaders([field])):
            (read,) = decoder.decode(encoder.encode(headers), raw=True)
            assert read == field
            assert isinstance(read, hpack.NeverIndexedHeaderTuple) == (field is marked)


def test_a_change_of_the_table_is_announced_once() -> None:
    encoder = HeaderEncoder()
    encoder.set_table_size(0)

    static_only = [(b":status", b"200")]
    assert encoder.encode(static_only) == b"\x20\x88"
    assert encoder.encode(static_only) == b"\x88"


@pytest.mark.parametrize(
    ("sizes", "updates"),
    [
        ([4096], b"\x3f\xe1\x1f"),
        ([0], b"\x20"),
        ([100, 50, 200], b"\x3f\x13\x3f\xa9\x01"),
        ([0, 4096] * 5000, b"\x20\x3f\xe1\x1f"),
    ],
)
def test_of_several_changes_of_the_table_the_smallest_and_the_last_are_announced(
    sizes: list[int], updates: bytes
) -> None:
    """RFC 7541 §4.2: however often a peer changes its mind."""
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    for _ in range(3):
        decoder.decode(encoder.encode(REQUEST), raw=True)

    for size in sizes:
        encoder.set_table_size(size)
    block = encoder.encode(REQUEST)

    assert block.startswith(updates)
    assert list(decoder.decode(block, raw=True)) == REQUEST
    assert list(decoder.decode(encoder.encode(REQUEST), raw=True)) == REQUEST


def test_a_table_of_tiny_fields_is_made_smaller() -> None:
    """They take several times in memory what RFC 7541 counts for them. Any decoder follows."""
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    fields = [(b"%c" % (97 + number % 26), b"%d" % number) for number in range(300)]

    for field in fields:
        for _ in range(3):
            assert list(decoder.decode(encoder.encode([field]), raw=True)) == [field]
        assert len(encoder._table) <= 65

    assert decoder.header_table_size == 2048
    encoder.set_table_size(4096)
    for headers in (REQUEST, REQUEST, REQUEST, fields[-5:]):
        assert list(decoder.decode(encoder.encode(headers), raw=True)) == headers
    assert decoder.header_table_size == 4096


def test_values_are_never_huffman_coded() -> None:
    assert b"/helloworld.Greeter/SayHello" in HeaderEncoder().encode(REQUEST)


def test_distinct_lists_do_not_pile_up() -> None:
    encoder = HeaderEncoder()
    kept = [FixedHeaders([*TRAILERS, (b"x", b"%d" % number)]) for number in range(1000)]
    for _ in range(4):
        for headers in kept:
            encoder.encode(headers)
        encoder.encode(FixedHeaders([(b"x", b"v" * 3000)]))

    assert encoder._kept_bytes <= 42 * 1024
    assert len(encoder._numbers) == len(encoder._table) <= 4096 / 32


@pytest.mark.parametrize("name", [b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"])
def test_credentials_never_enter_the_table(name: bytes) -> None:
    """RFC 7541 §7.1.3: others on the connection could try them out. A list with them is kept all the same."""
    encoder, decoder, headers = (
        HeaderEncoder(),
        hpack.Decoder(),
        FixedHeaders([*REQUEST, (name, b"of-alice")]),
    )

    for _ in range(5):
        block = encoder.encode(headers)
        assert list(decoder.decode(block, raw=True)) == headers

    assert encoder.encode(headers) is block
    assert isinstance(list(decoder.decode(block, raw=True))[-1], hpack.NeverIndexedHeaderTuple)
    assert all(entry[0] != name for entry in decoder.header_table.dynamic_entries)


def test_an_encoder_keeps_nothing_of_a_list_that_is_gone() -> None:
    """Lists of callers who have left, with what they hold, do not stay with the upstream's connection."""
    encoder = HeaderEncoder()
    headers = FixedHeaders([*REQUEST, (b"authorization", b"of-alice")])
    for _ in range(1 + len(headers)):
        encoder.encode(headers)
    assert [kept() for kept in encoder._answers.values()] == [headers]

    del headers
    gc.collect()

    assert not encoder._answers
    assert encoder._kept_bytes == 0


# --- What is no header field ---

good = st.lists(st.tuples(names, values), max_size=4)
junk = st.sampled_from(
    [
        ("x-a", b"text"), (b"x-a", "text"), (b"x-a", None), (None, b"v"), (b"x-a", 1), (b"x-a", bytearray(b"v")),
        (b"x-a", memoryview(b"v")), (b"x-a", [b"v"]), (b"x-a",), (b"x-a", b"v", True), (), [b"x-a", b"v"], b"ab",
        "ab", None, 7, {b"x-a": b"v"}, hpack.NeverIndexedHeaderTuple(b"x-a", bytearray(b"v")),
        hpack.NeverIndexedHeaderTuple("x-a", b"v"),
    ]
)  # fmt: skip


def state_of(encoder: HeaderEncoder) -> object:
    return (
        dict(encoder._answers), encoder._kept_bytes, list(encoder._table), dict(encoder._numbers), encoder._inserted,
        encoder._size, encoder._max_size, encoder._smallest, encoder._seen.tobytes(),
    )  # fmt: skip


@given(st.lists(st.tuples(good, st.one_of(st.none(), junk), st.sampled_from([None, None, 0, 60, 4096]))))
@settings(max_examples=300)
def test_what_cannot_be_encoded_leaves_the_encoder_as_it_was(
    script: list[tuple[list[Header], Any, int | None]],
) -> None:
    """Whatever came before it in the list: the next block is in step with the peer."""
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    for headers, bad, size in script:
        if size is not None:
            encoder.set_table_size(size)
        if bad is not None:
            before = state_of(encoder)
            for kind in (list, FixedHeaders):
                for mixed in (kind([*headers, bad]), kind([bad, *headers]), kind([*headers, *headers, bad])):
                    with pytest.raises(TypeError, match="header field"):
                        encoder.encode(mixed)
            assert state_of(encoder) == before
        for fields in (headers, FixedHeaders(headers)):
            assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields


def test_the_message_about_a_bad_field_shows_its_name_and_no_value() -> None:
    for bad in [(b"authorization", "Bearer secret"), (b"authorization", b"Bearer secret", b"secret")]:
        with pytest.raises(TypeError) as caught:
            HeaderEncoder().encode([bad])  # type: ignore[list-item]
        assert "secret" not in str(caught.value)

    with pytest.raises(TypeError, match="value of the header field b'x-tag' is bytes, not str"):
        HeaderEncoder().encode([(b"x-tag", "text")])  # type: ignore[list-item]


def test_a_list_is_looked_through_once_however_many_of_its_fields_enter_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once for each field, lists of a thousand of them would take a thousand times as long."""
    looked: list[object] = []
    monkeypatch.setattr(module, "check_fields", looked.append)
    encoder, headers = HeaderEncoder(), [(b"x-%d" % number, b"") for number in range(100)]

    encoder.encode(list(headers))
    encoder.encode(list(headers))

    assert len(encoder._numbers) > 50
    assert len(looked) == 1
