"""Frames on the wire: any chunking gives the same frames, and nothing is held that was not announced."""

import struct
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from hypothesis import example, given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ProtocolViolation
from rawgrpc_proxy.http2 import frames
from rawgrpc_proxy.http2.frames import FrameSplitter, Setting
from tests.http2 import peer

MAX_FRAME = 16_384

Parsed = tuple[int, int, int, bytes]


def splitter(*, expect_preface: bool = False, max_frame_bytes: int = MAX_FRAME) -> FrameSplitter:
    """One that waits for the preface, or one that has the first frame behind it."""
    made = FrameSplitter(max_frame_bytes, expect_preface=expect_preface)
    if not expect_preface:
        assert split(made, [peer.settings()]) == [(frames.SETTINGS, 0, 0, b"")]
    return made


def split(target: FrameSplitter, chunks: Iterable[bytes]) -> list[Parsed]:
    return [
        (frame_type, flags, stream_id, bytes(payload))
        for chunk in chunks
        for frame_type, flags, stream_id, payload in target.split(chunk)
    ]


def single_bytes(wire: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in wire]


def cut(wire: bytes, offsets: Iterable[int]) -> list[bytes]:
    """The wire in pieces, cut at these offsets."""
    points = [0, *sorted(offset % (len(wire) + 1) for offset in offsets), len(wire)]
    return [wire[start:stop] for start, stop in pairwise(points)]


def violation(target: FrameSplitter, chunks: Iterable[bytes]) -> ErrorCode:
    with pytest.raises(ProtocolViolation) as caught:
        split(target, chunks)
    return ErrorCode(caught.value.error_code)


any_frames = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40)),
    max_size=6,
)
cuts = st.lists(st.integers(0, 2**12), max_size=8)


# --- Splitting ---


@given(any_frames, cuts, st.booleans())
def test_any_chunking_gives_the_same_frames(
    wanted: list[Parsed], offsets: list[int], expect_preface: bool
) -> None:
    wire = b"".join(peer.raw(*frame) for frame in wanted)
    if expect_preface:
        wire = peer.PREFACE + wire

    assert split(splitter(expect_preface=expect_preface), cut(wire, offsets)) == wanted


@given(any_frames, cuts, st.integers(1, 4), st.booleans())
def test_frames_that_are_asked_for_step_by_step_are_the_same(
    wanted: list[Parsed], offsets: list[int], steps: int, drained: bool
) -> None:
    """Whether or not what was held back is asked for before more is fed."""
    target, got = splitter(), []
    for chunk in [*cut(b"".join(peer.raw(*frame) for frame in wanted), offsets), b""]:
        now = chunk
        while True:
            part = [(*frame[:3], bytes(frame[3])) for frame in target.split(now, steps)]
            assert len(part) <= steps + 1  # one may have been begun before
            got += part
            now = b""
            if not (target.holds_back and (drained or not chunk)):
                break
    assert got == wanted
    assert not target.holds_back


@pytest.mark.parametrize(("block_bytes", "at_once"), [(0, 32), (31, 32), (32, 22), (2048, 1)])
def test_a_header_block_is_more_work_the_longer_it_is(block_bytes: int, at_once: int) -> None:
    target = splitter()
    chunk = peer.headers(1, encoded=bytes(block_bytes)) * 100

    assert len(list(target.split(chunk, 64))) == at_once
    assert target.holds_back


def test_a_frame_of_some_size_that_fits_into_one_chunk_is_a_view_of_it() -> None:
    """No byte of its payload is copied on the way in."""
    chunk = peer.data(1, bytes(frames.SMALL_BYTES))

    ((_, _, _, payload),) = splitter().split(chunk)

    assert isinstance(payload, memoryview)
    assert payload.obj is chunk


def test_a_small_frame_does_not_keep_its_chunk_alive() -> None:
    chunk = peer.data(1, bytes(frames.SMALL_BYTES - 1))

    ((_, _, _, payload),) = splitter().split(chunk)

    assert isinstance(payload, bytes)


def test_frames_that_were_handed_out_keep_their_payload_when_more_is_fed() -> None:
    target = splitter()
    wire = peer.data(1, b"first") + peer.data(1, b"second")

    held = [payload for chunk in single_bytes(wire) for *_, payload in target.split(chunk)]

    assert [bytes(payload) for payload in held] == [b"first", b"second"]


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    assert split(splitter(), [peer.raw(0, 0, 0x8000_0007, b"x")]) == [(0, 0, 7, b"x")]


@pytest.mark.parametrize("size", [0, 1, MAX_FRAME - 1, MAX_FRAME])
@pytest.mark.parametrize("first_chunk", [1, 8, 9, 10, 10_000])
def test_a_frame_of_up_to_the_maximum_passes(size: int, first_chunk: int) -> None:
    wire = peer.raw(0, 0, 1, bytes(size))

    assert split(splitter(), cut(wire, [min(first_chunk, len(wire))])) == [(0, 0, 1, bytes(size))]


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 2**24 - 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_frame_that_is_too_long_is_refused_on_its_ninth_byte(length: int, at_once: bool) -> None:
    """Of the payload nothing is waited for, and so nothing held."""
    header = peer.raw(0, 0, 1, length=length)
    target = splitter()

    if not at_once:
        assert split(target, single_bytes(header[:8])) == []
        header = header[8:]

    assert violation(target, [header]) is ErrorCode.FRAME_SIZE_ERROR


def test_the_maximum_is_the_configured_one() -> None:
    roomy = splitter(max_frame_bytes=MAX_FRAME + 1)

    assert split(roomy, [peer.raw(0, 0, 1, bytes(MAX_FRAME + 1))]) == [(0, 0, 1, bytes(MAX_FRAME + 1))]


def test_frames_before_one_that_is_too_long_stand() -> None:
    frames_seen: list[frames.Frame] = []

    with pytest.raises(ProtocolViolation, match="declares 16385 bytes"):
        frames_seen.extend(splitter().split(peer.ping() + peer.raw(0, 0, 1, length=MAX_FRAME + 1)))
    # `extend` keeps what came before the error.
    assert [frame_type for frame_type, *_ in frames_seen] == [frames.PING]


# --- Padding ---


@pytest.mark.parametrize("padding", [0, 1, 5, 255])
@pytest.mark.parametrize("payload", [b"", b"hello"])
def test_padding_comes_off(payload: bytes, padding: int) -> None:
    ((_, flags, _, padded),) = splitter().split(peer.data(1, payload, padding=padding))

    assert bytes(frames.without_padding(flags, padded)) == payload


def test_a_frame_without_the_flag_has_no_padding() -> None:
    assert bytes(frames.without_padding(0, memoryview(b"\x05hello"))) == b"\x05hello"


def test_padding_that_fills_the_frame_leaves_nothing() -> None:
    assert bytes(frames.without_padding(frames.PADDED, memoryview(b"\x02.."))) == b""


@pytest.mark.parametrize("payload", [b"\x01", b"\x06hello", b"\xff"])
def test_padding_longer_than_the_frame_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        frames.without_padding(frames.PADDED, memoryview(payload))
    assert caught.value.error_code == ErrorCode.PROTOCOL_ERROR


def test_a_padded_frame_without_room_for_its_pad_length_is_a_frame_size_error() -> None:
    with pytest.raises(ProtocolViolation) as caught:
        frames.without_padding(frames.PADDED, memoryview(b""))
    assert caught.value.error_code == ErrorCode.FRAME_SIZE_ERROR


# --- SETTINGS ---


def settings_payload(*entries: tuple[int, int]) -> memoryview:
    return memoryview(b"".join(struct.pack(">HL", *entry) for entry in entries))


def test_settings_are_read_and_the_last_value_counts() -> None:
    payload = settings_payload((1, 0), (2, 0), (3, 0), (4, 0), (5, 16_384), (6, 0), (4, 7))

    assert frames.parse_settings(payload, 32) == {
        Setting.HEADER_TABLE_SIZE: 0,
        Setting.ENABLE_PUSH: 0,
        Setting.MAX_CONCURRENT_STREAMS: 0,
        Setting.INITIAL_WINDOW_SIZE: 7,
        Setting.MAX_FRAME_SIZE: 16_384,
        Setting.MAX_HEADER_LIST_SIZE: 0,
    }


def test_unknown_settings_are_dropped() -> None:
    assert frames.parse_settings(settings_payload((0, 1), (7, 1), (0x104, 1), (0xFFFF, 1)), 32) == {}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (1, 2**32 - 1),
        (2, 0),
        (2, 1),
        (3, 2**32 - 1),
        (4, 2**31 - 1),
        (5, 2**14),
        (5, 2**24 - 1),
        (6, 2**32 - 1),
    ],
)
def test_a_setting_at_its_limit_passes(setting: int, value: int) -> None:
    assert frames.parse_settings(settings_payload((setting, value)), 32) == {Setting(setting): value}


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        (2, 2, ErrorCode.PROTOCOL_ERROR),
        (4, 2**31, ErrorCode.FLOW_CONTROL_ERROR),
        (5, 2**14 - 1, ErrorCode.PROTOCOL_ERROR),
        (5, 2**24, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_setting_past_its_limit_is_refused(setting: int, value: int, code: ErrorCode) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        frames.parse_settings(settings_payload((setting, value)), 32)
    assert caught.value.error_code == code


@pytest.mark.parametrize("size", [1, 5, 7, 11])
def test_settings_come_in_entries_of_six_bytes(size: int) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        frames.parse_settings(memoryview(bytes(size)), 32)
    assert caught.value.error_code == ErrorCode.FRAME_SIZE_ERROR


def test_as_many_entries_as_allowed_pass_and_one_more_does_not() -> None:
    assert frames.parse_settings(settings_payload(*[(3, 1)] * 32), 32) == {Setting.MAX_CONCURRENT_STREAMS: 1}
    with pytest.raises(ProtocolViolation) as caught:
        frames.parse_settings(settings_payload(*[(3, 1)] * 33), 32)
    assert caught.value.error_code == ErrorCode.ENHANCE_YOUR_CALM


# --- What we write, held against hyperframe ---

stream_ids = st.integers(1, 2**31 - 1)
u32 = st.integers(0, 2**32 - 1)


@given(st.integers(0, 2**24 - 1), st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1))
def test_a_frame_header_has_nine_bytes_in_network_order(
    length: int, frame_type: int, flags: int, stream_id: int
) -> None:
    expected = peer.raw(frame_type, flags, stream_id, length=length)

    assert frames.frame_header(frame_type, flags, stream_id, length) == expected


@given(stream_ids, u32)
def test_rst_stream_is_written_as_hyperframe_writes_it(stream_id: int, code: int) -> None:
    assert frames.rst_stream(stream_id, code) == RstStreamFrame(stream_id, code).serialize()


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_window_update_is_written_as_hyperframe_writes_it(stream_id: int, increment: int) -> None:
    assert frames.window_update(stream_id, increment) == WindowUpdateFrame(stream_id, increment).serialize()


@given(st.binary(min_size=8, max_size=8), st.booleans())
def test_ping_is_written_as_hyperframe_writes_it(opaque: bytes, ack: bool) -> None:
    expected = PingFrame(0, opaque, flags=["ACK"] if ack else []).serialize()

    assert frames.ping(opaque, ack=ack) == expected
    assert frames.ping(memoryview(opaque), ack=ack) == expected


@given(st.integers(0, 2**31 - 1), u32, st.binary(max_size=20))
def test_goaway_is_written_as_hyperframe_writes_it(last: int, code: int, debug: bytes) -> None:
    assert frames.goaway(last, code, debug) == GoAwayFrame(0, last, code, debug).serialize()


@given(st.dictionaries(st.sampled_from(Setting), u32))
@example({})
def test_settings_are_written_as_hyperframe_writes_them(values: dict[Setting, int]) -> None:
    expected = SettingsFrame(0, {int(setting): value for setting, value in values.items()}).serialize()

    assert frames.settings(values) == expected
    assert frames.SETTINGS_ACK == peer.SETTINGS_ACK


def test_a_number_is_read_in_network_order() -> None:
    payload = memoryview(b"\x01\x02\x03\x04\xff\xff\xff\xfe")

    assert frames.read_u32(payload) == 0x01020304
    assert frames.read_u32(payload, 4) == 0xFFFFFFFE
