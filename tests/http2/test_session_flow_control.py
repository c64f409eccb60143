"""Windows (RFC 9113 sections 5.2 and 6.9): what may go out, what may come in, and how credit is given back."""

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2.events import DataReceived, SettingsReceived
from tests.http2 import peer as wire
from tests.http2.peer import (
    DEFAULT_WINDOW,
    LARGEST_WINDOW,
    REQUEST,
    RESPONSE,
    TRAILERS,
    Peer,
    assert_alive,
    assert_connection_error,
    kinds,
    resets,
)

FLOW, PROTOCOL = ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.PROTOCOL_ERROR


def responding(engine: Engine, *streams: int, window: int = DEFAULT_WINDOW, **changes: int) -> Peer:
    """A server that has begun to answer these streams, of which each has this send window."""
    peer = wire.server(engine, peer_settings={wire.INITIAL_WINDOW_SIZE: window}, **changes)
    for stream_id in streams:
        peer.tell(wire.headers(stream_id, end_stream=True))
        peer.session.send_headers(stream_id, RESPONSE)
    peer.hear()
    return peer


# --- What may go out ---


def test_data_goes_out_as_far_as_the_stream_window_reaches(engine: Engine) -> None:
    server = responding(engine, 1, window=5)

    server.session.send_data(1, b"hello, world", end_stream=True)

    assert server.hear() == ["DATA 1 [5]"]
    assert not server.wants_output()
    assert server.tell(wire.window_update(1, 4)) == []
    assert server.wants_output()
    assert server.hear() == ["DATA 1 [4]"]
    server.tell(wire.window_update(1, 100))
    assert server.hear() == ["DATA 1 [3] END_STREAM"]
    assert server.bodies[1] == b"hello, world"


def test_data_goes_out_as_far_as_the_connection_window_reaches(engine: Engine) -> None:
    server = responding(engine, 1, 3, window=LARGEST_WINDOW)

    server.session.send_data(1, bytes(DEFAULT_WINDOW - 3))
    server.hear()
    server.session.send_data(3, b"hello", end_stream=True)

    assert server.hear() == ["DATA 3 [3]"]
    assert not server.wants_output()
    server.tell(wire.window_update(0, 1))
    assert server.hear() == ["DATA 3 [1]"]
    server.tell(wire.window_update(0, 1))
    assert server.hear() == ["DATA 3 [1] END_STREAM"]


def test_a_window_update_of_the_connection_does_not_open_a_stream(engine: Engine) -> None:
    server = responding(engine, 1, window=0)
    server.session.send_data(1, b"x")

    server.tell(wire.window_update(0, 1000))

    assert server.hear() == []
    server.tell(wire.window_update(1, 1))
    assert server.hear() == ["DATA 1 [1]"]


@pytest.mark.parametrize("limit", [16_384, 20_000])
def test_data_is_cut_to_the_peers_frame_size(engine: Engine, limit: int) -> None:
    server = wire.server(engine, peer_settings={wire.MAX_FRAME_SIZE: limit})
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    server.hear()

    server.session.send_data(1, bytes(limit))
    server.session.send_data(1, bytes(limit + 1))

    assert server.hear() == [f"DATA 1 [{limit}]", f"DATA 1 [{limit}]", "DATA 1 [1]"]


def test_settings_move_the_windows_of_open_streams(engine: Engine) -> None:
    server = responding(engine, 1, window=5)
    server.session.send_data(1, b"hello, world")
    assert server.hear() == ["DATA 1 [5]"]

    assert server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 8})) == [SettingsReceived()]

    assert server.hear() == ["SETTINGS ACK", "DATA 1 [3]"]


def test_settings_move_the_windows_of_streams_that_open_later(server: Peer) -> None:
    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 3}), wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"hello")

    assert server.hear() == ["SETTINGS ACK", "HEADERS 1", "DATA 1 [3]"]


def test_a_window_may_become_negative_and_has_to_grow_again_first(engine: Engine) -> None:
    """RFC 9113 section 6.9.2."""
    server = responding(engine, 1, window=1000)
    server.session.send_data(1, bytes(800))
    assert server.hear() == ["DATA 1 [800]"]

    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 100}))  # 100 - 800 = -700
    server.session.send_data(1, b"hello")
    assert server.hear() == ["SETTINGS ACK"]

    server.tell(wire.window_update(1, 700))
    assert server.hear() == []
    server.tell(wire.window_update(1, 2))
    assert server.hear() == ["DATA 1 [2]"]
    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 103}))
    assert server.hear() == ["SETTINGS ACK", "DATA 1 [3]"]


def test_a_negative_window_of_one_stream_does_not_hold_up_another(engine: Engine) -> None:
    server = responding(engine, 1, 3, window=1000)
    server.session.send_data(1, bytes(800))
    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 100}))
    server.hear()

    server.session.send_data(1, b"waits")
    server.session.send_data(3, b"goes")

    assert server.hear() == ["DATA 3 [4]"]


def test_the_connection_window_is_untouched_by_settings(engine: Engine) -> None:
    server = responding(engine, 1, window=DEFAULT_WINDOW)
    server.session.send_data(1, bytes(DEFAULT_WINDOW))
    server.hear()

    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: LARGEST_WINDOW}))
    server.session.send_data(1, b"x")

    assert server.hear() == ["SETTINGS ACK"]


@pytest.mark.parametrize("window", [0, 5])
def test_an_end_without_data_needs_no_window(engine: Engine, window: int) -> None:
    server = responding(engine, 1, window=window)
    server.session.send_data(1, bytes(window))
    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 0}))
    server.hear()

    server.session.send_data(1, b"", end_stream=True)

    assert server.hear() == ["DATA 1 [0] END_STREAM"]


def test_an_end_without_data_needs_no_connection_window(engine: Engine) -> None:
    """Even where the last byte before it has just used the window up."""
    server = responding(engine, 1, window=LARGEST_WINDOW)
    server.session.send_data(1, bytes(DEFAULT_WINDOW), source=wire.Owed(), credit=DEFAULT_WINDOW)

    server.session.send_data(1, b"", end_stream=True)

    assert server.hear()[-1] == f"DATA 1 [{DEFAULT_WINDOW % 16_384}] END_STREAM"
    assert server.session.take_closed() == [1]


def test_trailers_need_no_window(engine: Engine) -> None:
    server = responding(engine, 1, window=0)

    server.session.send_headers(1, TRAILERS, end_stream=True)

    assert server.hear() == ["HEADERS 1 END_STREAM"]


# --- WINDOW_UPDATE ---


def test_a_stream_window_may_grow_to_its_maximum_and_not_beyond(engine: Engine) -> None:
    server = responding(engine, 1, 3)
    assert server.tell(wire.window_update(1, LARGEST_WINDOW - DEFAULT_WINDOW)) == []

    events = server.tell(wire.window_update(1, 1))

    assert resets(events) == [(1, FLOW, False)]
    assert server.hear() == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]
    assert list(server.session.streams) == [3]
    assert_alive(server)


def test_the_connection_window_may_grow_to_its_maximum_and_not_beyond(server: Peer) -> None:
    assert server.tell(wire.window_update(0, LARGEST_WINDOW - DEFAULT_WINDOW)) == []

    assert_connection_error(server, server.tell(wire.window_update(0, 1)), FLOW)


def test_settings_that_take_a_stream_window_past_its_maximum_end_the_connection(engine: Engine) -> None:
    server = responding(engine, 1)
    server.tell(wire.window_update(1, 1))

    events = server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: LARGEST_WINDOW}))

    assert_connection_error(server, events, FLOW)


@pytest.mark.parametrize("how", ["reset by the peer", "reset by us", "ended"])
def test_settings_do_not_move_the_windows_of_closed_streams(engine: Engine, how: str) -> None:
    """A window at its maximum cannot grow, but that of a closed stream is nobody's concern any more."""
    server = responding(engine, 1)
    server.tell(wire.window_update(1, LARGEST_WINDOW - DEFAULT_WINDOW))
    match how:
        case "reset by the peer":
            server.tell(wire.rst_stream(1))
        case "reset by us":
            server.session.reset(1, ErrorCode.CANCEL)
        case _:
            server.session.send_headers(1, TRAILERS, end_stream=True)

    assert server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: DEFAULT_WINDOW + 1})) == [SettingsReceived()]

    assert_alive(server)


def test_a_window_update_of_nothing_ends_its_stream(engine: Engine) -> None:
    server = responding(engine, 1, 3)

    events = server.tell(wire.window_update(1, 0))

    assert resets(events) == [(1, PROTOCOL, False)]
    assert server.hear() == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert list(server.session.streams) == [3]


def test_a_window_update_of_nothing_for_the_connection_ends_it(server: Peer) -> None:
    assert_connection_error(server, server.tell(wire.window_update(0, 0)), PROTOCOL)


def test_the_reserved_bit_of_an_increment_is_ignored(engine: Engine) -> None:
    server = responding(engine, 1, window=0)
    server.session.send_data(1, b"hello")

    server.tell(wire.window_update(1, 0x8000_0002))

    assert server.hear() == ["DATA 1 [2]"]


def test_a_stream_that_has_ended_on_our_side_may_get_window_updates(engine: Engine) -> None:
    server = wire.server(engine)
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE, end_stream=True)
    server.hear()

    assert server.tell(wire.window_update(1, 100)) == []
    assert server.hear() == []


# --- What may come in ---


def test_a_peer_may_use_its_stream_window_up_and_not_more(engine: Engine) -> None:
    server = wire.server(engine, stream_window_bytes=DEFAULT_WINDOW)
    server.tell(wire.headers(1))
    for _ in range(DEFAULT_WINDOW // 5 // 1000):
        server.tell(wire.data(1, bytes(5000)))
    assert_alive(server)
    rest = DEFAULT_WINDOW - DEFAULT_WINDOW // 5 // 1000 * 5000

    assert kinds(server.tell(wire.data(1, bytes(rest)))) == ["DataReceived"]
    assert_connection_error(server, server.tell(wire.data(1, b"x")), FLOW)


def test_padding_uses_the_window_up(engine: Engine) -> None:
    server = wire.server(engine, stream_window_bytes=DEFAULT_WINDOW)
    server.tell(wire.headers(1))

    server.tell(wire.data(1, b"x", padding=254) * 255)  # 255 * 256 = 65,280
    assert kinds(server.tell(wire.data(1, bytes(255 - 11), padding=10))) == ["DataReceived"]

    assert_connection_error(server, server.tell(wire.data(1, b"x")), FLOW)


@pytest.mark.parametrize(("size", "fine"), [(DEFAULT_WINDOW, True), (DEFAULT_WINDOW + 1, False)])
def test_a_peer_may_use_its_connection_window_up_and_not_more(engine: Engine, size: int, fine: bool) -> None:
    server = wire.server(engine, connection_window_bytes=DEFAULT_WINDOW, max_frame_bytes=100_000)
    server.tell(wire.headers(1))

    events = server.tell(wire.data(1, bytes(size)))

    if fine:
        assert kinds(events) == ["DataReceived"]
        assert server.hear() == [f"WINDOW_UPDATE 0 +{DEFAULT_WINDOW}"]
    else:
        assert_connection_error(server, events, FLOW)


def test_a_peer_gets_its_connection_window_back(engine: Engine) -> None:
    server = wire.server(engine, connection_window_bytes=DEFAULT_WINDOW)
    server.tell(wire.headers(1))

    heard = []
    for _ in range(100):
        server.tell(wire.data(1, bytes(10_000)))
        heard += server.hear()
        server.session.credit(1, 10_000)

    grown = sum(int(line.rpartition("+")[2]) for line in heard if line.startswith("WINDOW_UPDATE 0"))
    assert 1_000_000 - DEFAULT_WINDOW < grown <= 1_000_000
    assert_alive(server)


def test_data_with_an_end_may_fill_the_window(engine: Engine) -> None:
    server = wire.server(engine, stream_window_bytes=DEFAULT_WINDOW)
    server.tell(wire.headers(1))
    server.tell(wire.data(1, bytes(DEFAULT_WINDOW - 16_384)[:16_384]))
    server.tell(wire.data(1, bytes(16_384)), wire.data(1, bytes(16_384)))

    events = server.tell(wire.data(1, bytes(DEFAULT_WINDOW - 3 * 16_384), end_stream=True))

    assert kinds(events) == ["DataReceived"]


# --- Credit ---


def test_credit_is_given_back_once_half_a_window_is_owed(engine: Engine) -> None:
    server = wire.server(engine, stream_window_bytes=100_000)
    server.tell(wire.headers(1), *[wire.data(1, bytes(10_000))] * 10)
    server.hear()

    server.session.credit(1, 49_999)
    assert server.hear() == []
    server.session.credit(1, 1)
    assert server.hear() == ["WINDOW_UPDATE 1 +50000"]
    server.session.credit(1, 50_000)
    assert server.hear() == ["WINDOW_UPDATE 1 +50000"]


def test_credit_of_one_stream_is_not_given_to_another(engine: Engine) -> None:
    server = wire.server(engine, stream_window_bytes=100_000)
    for stream_id in (1, 3):
        server.tell(wire.headers(stream_id), *[wire.data(stream_id, bytes(10_000))] * 4)

    server.session.credit(1, 30_000)
    server.session.credit(3, 30_000)

    assert server.hear() == []


def test_credit_that_was_given_can_be_used(engine: Engine) -> None:
    server = wire.server(engine, stream_window_bytes=100_000)
    server.tell(wire.headers(1))

    for _ in range(100):
        (event,) = server.tell(wire.data(1, bytes(16_000), padding=100))
        assert isinstance(event, DataReceived)
        server.session.credit(1, event.credit)
        server.hear()

    assert_alive(server)


def test_a_stream_that_the_peer_has_ended_needs_no_credit(server: Peer) -> None:
    server.tell(wire.headers(1), *[wire.data(1, bytes(16_384))] * 12, wire.data(1, b"x", end_stream=True))
    server.hear()

    server.session.credit(1, 12 * 16_384 + 1)

    assert server.hear() == []


def test_the_connection_is_credited_on_arrival_in_quarters(engine: Engine) -> None:
    """So that a stream which nobody reads does not hold up its siblings."""
    server = wire.server(engine, connection_window_bytes=400_000)
    server.tell(wire.headers(1), *[wire.data(1, bytes(10_000))] * 9)
    assert server.hear() == []

    server.tell(wire.data(1, bytes(9_999)))
    assert server.hear() == []
    server.tell(wire.data(1, bytes(1)))

    assert server.hear() == ["WINDOW_UPDATE 0 +100000"]


@pytest.mark.parametrize("how", ["closed by our reset", "closed by both", "too long", "before the headers"])
def test_data_that_is_dropped_is_credited_to_the_connection(engine: Engine, how: str) -> None:
    """Flow control counts it wherever it goes, and what was not given back would be lost for good."""
    client = wire.client(engine, connection_window_bytes=100_000)
    sent = 0
    heard: list[str] = []
    for _ in range(100):
        stream_id = client.session.open_stream(REQUEST, end_stream=True)
        match how:
            case "closed by our reset":
                client.session.reset(stream_id, ErrorCode.CANCEL)
            case "closed by both":
                client.tell(wire.headers(stream_id, RESPONSE, end_stream=True))
            case "too long":
                client.tell(wire.headers(stream_id, [*RESPONSE, (b"content-length", b"1")]))
            case _:
                pass
        client.tell(wire.data(stream_id, bytes(9_000), padding=99))
        sent += 9_100
        heard += client.hear()

    credited = sum(int(line.rpartition("+")[2]) for line in heard if line.startswith("WINDOW_UPDATE 0"))
    assert sent - 25_000 < credited <= sent
    assert_alive(client)
