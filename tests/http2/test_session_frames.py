"""Frames one by one (RFC 9113 sections 4 to 6): sizes, streams they may stand on, and those that mean nothing."""

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2.events import DataReceived, PingAcknowledged, SettingsReceived
from tests.http2 import peer as wire
from tests.http2.peer import Peer, assert_alive, assert_connection_error, kinds, resets

PING, GOAWAY, SETTINGS, WINDOW_UPDATE, RST_STREAM, PRIORITY = 0x6, 0x7, 0x4, 0x8, 0x3, 0x2


# --- Sizes (sections 4.2, 6.3 to 6.9) ---


@pytest.mark.parametrize("frame_type", [0x0, 0x1, 0x4, 0x9, 0xEE])
def test_a_frame_above_the_advertised_size_ends_the_connection_on_its_header(
    server: Peer, frame_type: int
) -> None:
    events = server.tell(wire.raw(frame_type, 0, 1, length=16_385))

    assert_connection_error(server, events, ErrorCode.FRAME_SIZE_ERROR)


def test_a_frame_of_the_advertised_size_passes(engine: Engine) -> None:
    server = wire.server(engine, max_frame_bytes=20_000)
    server.tell(wire.headers(1))

    assert kinds(server.tell(wire.data(1, bytes(20_000)))) == ["DataReceived"]
    assert_connection_error(server, server.tell(wire.data(1, bytes(20_001))), ErrorCode.FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    "frame",
    [
        *(wire.raw(RST_STREAM, 0, 1, bytes(size)) for size in (0, 3, 5)),
        *(wire.raw(PING, 0, 0, bytes(size)) for size in (0, 7, 9)),
        *(wire.raw(GOAWAY, 0, 0, bytes(size)) for size in (0, 4, 7)),
        *(wire.raw(WINDOW_UPDATE, 0, stream, bytes(size)) for size in (0, 3, 5) for stream in (0, 1)),
        *(wire.raw(SETTINGS, 0, 0, bytes(size)) for size in (1, 5, 7)),
        wire.raw(SETTINGS, 1, 0, bytes(6)),
        wire.raw(0x0, 0x8, 1),  # PADDED, but no pad length
        wire.raw(0x1, 0x8 | 0x4, 3),
        wire.raw(0x1, 0x20 | 0x4, 3, bytes(4)),  # PRIORITY, but no room for it
    ],
)
def test_a_frame_of_the_wrong_size_ends_the_connection(server: Peer, frame: bytes) -> None:
    server.tell(wire.headers(1))
    server.hear()

    assert_connection_error(server, server.tell(frame), ErrorCode.FRAME_SIZE_ERROR)


# --- Streams they may stand on ---


@pytest.mark.parametrize(
    "frame",
    [
        wire.raw(0x0, 0, 0, b"x"),
        wire.raw(0x1, 0x4, 0, wire.block(wire.REQUEST)),
        wire.raw(PRIORITY, 0, 0, bytes(5)),
        wire.raw(RST_STREAM, 0, 0, bytes(4)),
        wire.raw(SETTINGS, 0, 1),
        wire.raw(SETTINGS, 1, 1),
        wire.raw(PING, 0, 1, bytes(8)),
        wire.raw(GOAWAY, 0, 1, bytes(8)),
        wire.raw(0x9, 0x4, 0),
        wire.raw(0x5, 0x4, 0, bytes(4)),
    ],
)
@pytest.mark.parametrize("client_side", [False, True])
def test_a_frame_on_the_wrong_stream_ends_the_connection(
    engine: Engine, client_side: bool, frame: bytes
) -> None:
    peer = wire.client(engine) if client_side else wire.server(engine)
    if client_side:
        peer.session.open_stream(wire.REQUEST)
    else:
        peer.tell(wire.headers(1))
    peer.hear()

    assert_connection_error(peer, peer.tell(frame), ErrorCode.PROTOCOL_ERROR)


# --- Padding (section 6.1) ---


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_of_data_counts_for_credit_and_is_not_delivered(server: Peer, padding: int) -> None:
    server.tell(wire.headers(1))

    events = server.tell(wire.data(1, b"hello", padding=padding))

    assert events == [DataReceived(1, b"hello", 5 + 1 + padding, end_stream=False)]


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_headers_may_be_padded_and_carry_a_priority(server: Peer, padding: int) -> None:
    (event,) = server.tell(wire.headers(1, end_stream=True, padding=padding, priority=True))

    assert kinds([event]) == ["RequestReceived"]
    assert event.headers == wire.REQUEST  # type: ignore[union-attr]


@pytest.mark.parametrize("stream_id", [1, 3])
def test_data_with_more_padding_than_frame_ends_the_connection(server: Peer, stream_id: int) -> None:
    """On a stream that is closed as well."""
    server.tell(wire.headers(1), wire.headers(3), wire.rst_stream(3))

    events = server.tell(wire.raw(0x0, 0x8, stream_id, b"\x05hell"))

    assert_connection_error(server, events, ErrorCode.PROTOCOL_ERROR)


def test_headers_with_more_padding_than_frame_end_the_connection(server: Peer) -> None:
    events = server.tell(wire.raw(0x1, 0x8 | 0x4, 1, b"\x01"))

    assert_connection_error(server, events, ErrorCode.PROTOCOL_ERROR)


# --- Frames without a meaning (sections 5.5, 6.3) ---


def test_frames_of_unknown_types_are_ignored(server: Peer) -> None:
    server.tell(wire.headers(1))

    assert (
        server.tell(
            *(wire.raw(kind, 0xFF, stream, b"?") for kind in (0xA, 0xC, 0xFF) for stream in (0, 1, 99))
        )
        == []
    )

    assert server.hear() == []
    assert_alive(server)


def test_unknown_flags_are_ignored(server: Peer) -> None:
    unknown = 0xFF & ~(0x1 | 0x4 | 0x8 | 0x20)

    assert kinds(server.tell(wire.raw(0x1, unknown | 0x4, 1, wire.block(wire.REQUEST)))) == [
        "RequestReceived"
    ]
    assert server.tell(wire.raw(0x0, unknown, 1, b"x")) == [DataReceived(1, b"x", 1, end_stream=False)]
    assert server.tell(wire.raw(PING, unknown, 0, b"87654321")) == []
    assert server.hear() == ["PING 87654321 ACK"]


def test_priority_is_ignored_wherever_it_stands(server: Peer) -> None:
    server.tell(wire.headers(1), wire.headers(3), wire.rst_stream(3))

    assert server.tell(*(wire.priority(stream_id) for stream_id in (1, 3, 5, 99, 2))) == []

    assert_alive(server)


def test_a_priority_that_depends_on_itself_is_ignored(server: Peer) -> None:
    """RFC 9113 has dropped the tree, and the error with it."""
    assert server.tell(wire.raw(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x10")) == []
    assert_alive(server)


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_priority_of_the_wrong_size_ends_its_stream(server: Peer, size: int) -> None:
    server.tell(wire.headers(1), wire.headers(3))

    events = server.tell(wire.raw(PRIORITY, 0, 1, bytes(size)))

    assert resets(events) == [(1, ErrorCode.FRAME_SIZE_ERROR, False)]
    assert server.hear() == ["RST_STREAM 1 FRAME_SIZE_ERROR"]
    assert list(server.session.streams) == [3]


def test_a_priority_of_the_wrong_size_without_a_stream_is_ignored(server: Peer) -> None:
    assert server.tell(wire.raw(PRIORITY, 0, 7, bytes(4))) == []
    assert_alive(server)


# --- PING (section 6.7) ---


def test_a_ping_is_answered_with_its_own_bytes(server: Peer) -> None:
    assert server.tell(wire.ping(b"abcdefgh"), wire.ping(b"ABCDEFGH")) == []

    assert server.hear() == ["PING abcdefgh ACK", "PING ABCDEFGH ACK"]


def test_an_answer_to_a_ping_is_reported(client: Peer) -> None:
    client.session.ping(b"abcdefgh")
    assert client.hear() == ["PING abcdefgh"]

    assert client.tell(wire.ping(b"abcdefgh", ack=True)) == [PingAcknowledged(b"abcdefgh")]

    assert client.hear() == []


# --- PUSH_PROMISE (section 8.4) ---


@pytest.mark.parametrize("client_side", [False, True])
def test_a_push_promise_ends_the_connection(engine: Engine, client_side: bool) -> None:
    peer = wire.client(engine) if client_side else wire.server(engine)
    if client_side:
        peer.session.open_stream(wire.REQUEST)
    else:
        peer.tell(wire.headers(1))
    peer.hear()

    assert_connection_error(peer, peer.tell(wire.push_promise(1, 2)), ErrorCode.PROTOCOL_ERROR)


def test_a_server_may_not_turn_push_on(client: Peer) -> None:
    """RFC 9113 section 6.5.2: a client treats the value 1 as a connection error."""
    events = client.tell(wire.settings({wire.ENABLE_PUSH: 1}))

    assert_connection_error(client, events, ErrorCode.PROTOCOL_ERROR)


def test_a_client_may_say_whatever_it_likes_about_push(server: Peer) -> None:
    assert server.tell(wire.settings({wire.ENABLE_PUSH: 1}), wire.settings({wire.ENABLE_PUSH: 0})) == [
        SettingsReceived(),
        SettingsReceived(),
    ]
    assert_alive(server)


# --- SETTINGS (section 6.5) ---


def test_each_settings_frame_is_acknowledged(server: Peer) -> None:
    assert (
        server.tell(wire.settings(), wire.settings({wire.HEADER_TABLE_SIZE: 1})) == [SettingsReceived()] * 2
    )

    assert server.hear() == ["SETTINGS ACK", "SETTINGS ACK"]


def test_an_acknowledgement_is_not_answered(server: Peer) -> None:
    assert server.tell(wire.SETTINGS_ACK, wire.SETTINGS_ACK) == []
    assert server.hear() == []


def test_unknown_settings_are_dropped(server: Peer) -> None:
    """h2 would keep them, and look at all of them each time."""
    for number in range(0x100, 0x200):
        server.tell(wire.settings(dict.fromkeys((number, number + 0x1000, number + 0x2000), number)))
        assert server.hear() == ["SETTINGS ACK"]

    assert_alive(server)


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        (wire.ENABLE_PUSH, 2, ErrorCode.PROTOCOL_ERROR),
        (wire.INITIAL_WINDOW_SIZE, 2**31, ErrorCode.FLOW_CONTROL_ERROR),
        (wire.MAX_FRAME_SIZE, 2**14 - 1, ErrorCode.PROTOCOL_ERROR),
        (wire.MAX_FRAME_SIZE, 2**24, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_setting_out_of_range_ends_the_connection(
    server: Peer, setting: int, value: int, code: ErrorCode
) -> None:
    assert_connection_error(server, server.tell(wire.settings({setting: value})), code)


def test_32_settings_in_a_frame_pass_and_33_do_not(server: Peer) -> None:
    numbers = range(0x100, 0x200)

    assert server.tell(wire.settings(dict.fromkeys(numbers[:32], 1))) == [SettingsReceived()]
    server.hear()
    events = server.tell(wire.settings(dict.fromkeys(numbers[:33], 1)))

    assert_connection_error(server, events, ErrorCode.ENHANCE_YOUR_CALM)
