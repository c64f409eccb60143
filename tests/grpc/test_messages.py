"""Messages cut from any chunks, and messages counted as they pass."""

import mmap
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.messages import MessageCounter, MessageReader, encode_message

messages = st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=8)
chunk_sizes = st.lists(st.integers(min_value=0, max_value=30), max_size=60)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut `data` into chunks of these sizes, and the rest."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def encode_all(wanted: list[tuple[bool, bytes]]) -> bytes:
    return b"".join(encode_message(payload, compressed=compressed) for compressed, payload in wanted)


def test_a_message_is_a_flag_a_length_and_its_payload() -> None:
    assert encode_message(b"abc") == b"\x00\x00\x00\x00\x03abc"
    assert encode_message(b"", compressed=True) == b"\x01\x00\x00\x00\x00"
    assert encode_message(b"x" * 0x010203)[:5] == b"\x00\x00\x01\x02\x03"


@given(messages, chunk_sizes)
def test_what_was_encoded_is_read_however_it_is_cut(
    wanted: list[tuple[bool, bytes]], sizes: list[int]
) -> None:
    reader = MessageReader()
    read = [message for chunk in cut(encode_all(wanted), sizes) for message in reader.feed(chunk)]
    assert read == wanted
    assert reader.at_boundary


@given(messages, st.data())
def test_a_message_is_handed_out_with_its_last_byte(
    wanted: list[tuple[bool, bytes]], data: st.DataObject
) -> None:
    stream = encode_all(wanted)
    fed = data.draw(st.integers(min_value=0, max_value=len(stream)))
    reader = MessageReader()
    read = reader.feed(stream[:fed])
    assert read == wanted[: len(read)]
    consumed = len(encode_all(read))
    assert reader.at_boundary is (consumed == fed)
    if len(read) < len(wanted):
        assert consumed + len(encode_all(wanted[len(read) :][:1])) > fed


def test_a_payload_does_not_change_with_the_buffer_it_was_read_from() -> None:
    buffer = bytearray(encode_message(b"first"))
    [(_, payload)] = MessageReader().feed(memoryview(buffer))
    buffer[5:] = b"other"
    assert payload == b"first"


def test_half_a_message_does_not_change_with_the_buffer_it_was_read_from() -> None:
    buffer = bytearray(encode_message(b"first")[:8])
    reader = MessageReader()
    reader.feed(memoryview(buffer))
    buffer[:] = bytes(8)
    assert reader.feed(b"st") == [(False, b"first")]


def test_messages_are_taken_one_by_one_at_the_price_of_each() -> None:
    reader = MessageReader()
    reader.add(encode_message(b"") * 200_000 + b"\x00\x00")
    begun, count = time.process_time(), 0
    while reader.take() == (False, b""):
        count += 1
    assert count == 200_000
    assert time.process_time() - begun < 2  # to move all that is left for each takes minutes
    assert not reader.at_boundary
    reader.add(b"\x00\x00\x01a" + encode_message(b"b"))
    assert [reader.take(), reader.take(), reader.take()] == [(False, b"a"), (False, b"b"), None]
    assert reader.at_boundary


def test_a_message_as_long_as_allowed_is_read() -> None:
    assert MessageReader(max_message_bytes=3).feed(encode_message(b"abc")) == [(False, b"abc")]


def test_a_message_longer_than_allowed_is_refused_by_its_prefix() -> None:
    reader = MessageReader(max_message_bytes=3)
    assert reader.feed(b"\x00\x00\x00\x00") == []
    with pytest.raises(RpcError, match="4 bytes is longer than the 3 bytes allowed") as caught:
        reader.feed(b"\x04")
    assert (caught.value.status, caught.value.origin) == (Status.RESOURCE_EXHAUSTED, "proxy")


@pytest.mark.parametrize("flag", [2, 0x80, 0xFF])
def test_a_flag_other_than_0_or_1_is_an_internal_error(flag: int) -> None:
    with pytest.raises(RpcError, match=f"flag {flag}") as caught:
        MessageReader().feed(bytes([flag, 0, 0, 0, 0]))
    assert caught.value.status is Status.INTERNAL


def test_a_promised_length_takes_no_memory() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    reader = MessageReader(max_message_bytes=2**32)
    tracemalloc.start()
    try:
        reader.feed(struct.pack(">BI", 0, 2**32 - 1) + b"x")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_long_message_in_small_pieces_is_not_copied_again_for_each() -> None:
    payload = bytes(8 * 1024 * 1024)
    stream = memoryview(encode_message(payload))
    reader = MessageReader(max_message_bytes=len(payload))
    begun = time.process_time()
    read = [message for at in range(0, len(stream), 128) for message in reader.feed(stream[at : at + 128])]
    # Linear work takes a fraction of a second, copying what is held 65 536 times takes minutes.
    assert time.process_time() - begun < 20
    assert read == [(False, payload)]


def test_many_small_messages_in_one_piece_are_not_moved_for_each_that_is_taken() -> None:
    count = 1_200_000
    stream = encode_message(b"") * count
    reader = MessageReader()
    begun = time.process_time()
    assert len(reader.feed(stream)) == count
    # Linear work takes half a second, moving the rest each time a minute.
    assert time.process_time() - begun < 15


@given(messages, chunk_sizes, st.sampled_from([bytes, bytearray, memoryview]))
def test_messages_are_counted_however_they_are_cut(
    passing: list[tuple[bool, bytes]],
    sizes: list[int],
    frame: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    counter, reader, read = MessageCounter(), MessageReader(), 0
    for chunk in cut(encode_all(passing), sizes):
        counter.feed(frame(chunk))
        read += len(reader.feed(chunk))
        assert counter.count == read
    assert counter.count == len(passing)


def test_a_message_is_counted_with_its_last_byte() -> None:
    counter = MessageCounter()
    counts = []
    for byte in encode_message(b"ab") + encode_message(b"") + encode_message(b"c")[:-1]:
        counter.feed(bytes([byte]))
        counts.append(counter.count)
    assert counts == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]


def test_counting_does_not_judge_the_flag_or_the_length() -> None:
    counter = MessageCounter()
    counter.feed(b"\xff\xff\xff\xff\xff" + bytes(100))
    counter.feed(bytes(16384))
    assert counter.count == 0


def test_a_payload_that_looks_like_a_prefix_is_not_counted_as_one() -> None:
    counter = MessageCounter()
    stream = encode_message(b"\x00\x00\x00\x00\x0a") + encode_message(b"whole")
    counter.feed(stream[:5])
    counter.feed(stream[5:])  # 15 bytes, and the first five would promise ten more
    assert counter.count == 2


def test_counting_looks_at_prefixes_only() -> None:
    # Memory that nobody has touched yet costs nothing: whoever looked at all of it would take minutes, and the memory.
    size, message = 1 << 33, (1 << 31) - 5
    with mmap.mmap(-1, size) as frame:
        for start in range(0, size, 1 << 31):
            frame[start : start + 5] = b"\x00" + message.to_bytes(4, "big")
        counter = MessageCounter()
        with memoryview(frame) as view:
            counter.feed(b"\x00\x00\x00\x00\x01x" + view[:3])
            counter.feed(view[3:-1])
        assert counter.count == 1 + 3
        counter.feed(b"\x00")
        assert counter.count == 1 + 4


runs = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 300)), min_size=1, max_size=6)


@given(runs, chunk_sizes, st.sampled_from([bytes, bytearray, memoryview]))
def test_many_messages_of_one_length_are_counted_together_and_right(
    alike: list[tuple[int, int]],
    sizes: list[int],
    frame: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    stream = b"".join(encode_message(b"\0" * length) * times for length, times in alike)
    counter = MessageCounter()
    for chunk in cut(stream, sizes):
        counter.feed(frame(chunk))
    assert (counter.count, counter.exact) == (sum(times for _, times in alike), True)


@given(st.lists(st.integers(0, 3), min_size=20, max_size=20), st.integers(5, 20_000))
def test_a_run_ends_where_a_message_of_another_length_begins(lengths: list[int], size: int) -> None:
    stream = b"".join(encode_message(b"\0" * length) * 20 for length in lengths)
    counter = MessageCounter()
    for start in range(0, len(stream), size):
        counter.feed(memoryview(stream)[start : start + size])
    assert counter.count == 400


@pytest.mark.parametrize("lengths", [(0, 1), (0, 0, 0, 0, 0, 0, 0, 0, 0, 1), (0, 1, 2, 3)])
def test_tiny_messages_of_all_lengths_are_counted_no_longer_when_they_are_too_many(
    lengths: tuple[int, ...],
) -> None:
    """Each would have to be looked at: whoever sends a window full of them has us do it again and again."""
    counter = MessageCounter()
    frame = b"".join(encode_message(b"x" * length) for length in lengths) * 1000
    for _ in range(100):
        counter.feed(frame)
    assert not counter.exact
    assert 2000 <= counter.count < 100_000


def test_messages_of_sixty_four_bytes_are_counted_for_ever() -> None:
    counter = MessageCounter()
    frame = b"".join(encode_message(b"x" * length) for length in (58, 59, 60, 61))
    for _ in range(50_000):
        counter.feed(frame)
    assert (counter.count, counter.exact) == (200_000, True)
