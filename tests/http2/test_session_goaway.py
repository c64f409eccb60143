"""The end of a connection (RFC 9113 sections 5.4.1 and 6.8): in peace, with nothing lost, or in error."""

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConnectionGone, PeerAbuse
from rawgrpc_proxy.http2.events import GoAwayReceived, StreamReset
from tests.http2 import peer as wire
from tests.http2.peer import REQUEST, RESPONSE, TRAILERS, TRAILERS_ONLY, Peer, assert_alive, kinds, resets

LAST = 2**31 - 1


# --- The peer goes ---


def test_goaway_lets_the_open_streams_run_on(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.hear()

    events = client.tell(wire.goaway(1, ErrorCode.NO_ERROR, b"max_age"))

    assert events == [GoAwayReceived(1, ErrorCode.NO_ERROR, b"max_age")]
    client.session.send_data(1, b"more", end_stream=True)
    assert client.hear() == ["DATA 1 [4] END_STREAM"]
    events = client.tell(
        wire.headers(1, RESPONSE), wire.data(1, b"x"), wire.headers(1, TRAILERS, end_stream=True)
    )
    assert kinds(events) == ["ResponseReceived", "DataReceived", "TrailersReceived"]
    assert client.session.take_closed() == [1]
    assert_alive(client)


def test_goaway_with_the_highest_id_refuses_nothing(client: Peer) -> None:
    client.session.open_stream(REQUEST)

    assert client.tell(wire.goaway(LAST)) == [GoAwayReceived(LAST, ErrorCode.NO_ERROR, b"")]

    assert list(client.session.streams) == [1]


def test_streams_above_the_last_id_are_reported_as_refused(client: Peer) -> None:
    """They were not processed, so their calls may be tried again elsewhere."""
    for _ in range(4):
        client.session.open_stream(REQUEST)
    client.hear()

    events = client.tell(wire.goaway(3))

    assert kinds(events) == ["GoAwayReceived", "StreamReset", "StreamReset"]
    assert resets(events) == [(5, ErrorCode.REFUSED_STREAM, True), (7, ErrorCode.REFUSED_STREAM, True)]
    assert list(client.session.streams) == [1, 3]
    assert client.session.take_closed() == [5, 7]
    assert client.hear() == []


def test_what_still_comes_on_a_refused_stream_is_ignored(client: Peer) -> None:
    for _ in range(2):
        client.session.open_stream(REQUEST)
    client.tell(wire.goaway(1))
    client.hear()

    late = [wire.headers(3, RESPONSE), wire.data(3, b"x"), wire.rst_stream(3), wire.window_update(3, 1)]
    assert client.tell(*late) == []

    assert client.hear() == []
    assert_alive(client)


def test_data_that_waits_on_a_refused_stream_is_dropped(engine: Engine) -> None:
    client = wire.client(engine, peer_settings={wire.INITIAL_WINDOW_SIZE: 0})
    source = wire.Owed()
    client.session.open_stream(REQUEST)
    client.session.send_data(1, b"waits", source=source, credit=5)
    client.hear()

    client.tell(wire.goaway(0), wire.window_update(0, 100))

    assert client.hear() == []
    assert client.receipts == []


def test_a_drain_in_two_steps_refuses_only_what_came_too_late(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    assert resets(client.tell(wire.goaway(LAST))) == []
    client.session.open_stream(REQUEST)

    assert resets(client.tell(wire.goaway(1))) == [(3, ErrorCode.REFUSED_STREAM, True)]

    assert resets(client.tell(wire.goaway(0))) == [(1, ErrorCode.REFUSED_STREAM, True)]
    assert client.session.take_closed() == [3, 1]


def test_the_text_of_a_goaway_is_cut_at_a_kilobyte(client: Peer) -> None:
    (event,) = client.tell(wire.goaway(LAST, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings" + bytes(5000)))

    assert isinstance(event, GoAwayReceived)
    assert event.error_code == ErrorCode.ENHANCE_YOUR_CALM
    assert event.debug.startswith(b"too_many_pings")
    assert len(event.debug) <= 1024


def test_a_client_that_goes_away_keeps_its_calls(server: Peer) -> None:
    """Its last id speaks of streams that we open, and there are none."""
    server.tell(wire.headers(1))

    assert kinds(server.tell(wire.goaway(0))) == ["GoAwayReceived"]

    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    assert server.hear() == ["HEADERS 1 END_STREAM"]
    assert kinds(server.tell(wire.headers(3))) == ["RequestReceived"]


def test_frames_around_a_goaway_are_not_lost(client: Peer) -> None:
    client.session.open_stream(REQUEST)

    events = client.tell(wire.headers(1, RESPONSE), wire.goaway(1), wire.data(1, b"x", end_stream=True))

    assert kinds(events) == ["ResponseReceived", "GoAwayReceived", "DataReceived"]


# --- We go ---


def test_a_first_goaway_refuses_nothing(server: Peer) -> None:
    server.tell(wire.headers(1))

    server.session.go_away(final=False)

    assert server.hear() == [f"GOAWAY {LAST} NO_ERROR"]
    assert kinds(server.tell(wire.headers(3))) == ["RequestReceived"]


def test_after_the_final_goaway_streams_finish_and_later_ones_are_ignored(server: Peer) -> None:
    server.tell(wire.headers(1), wire.headers(3))
    server.session.go_away(final=True)
    assert server.hear() == ["GOAWAY 3 NO_ERROR"]

    late = [
        wire.headers(5),
        wire.data(5, b"x"),
        wire.window_update(5, 1),
        wire.headers(5, TRAILERS, end_stream=True),
    ]
    assert server.tell(*late, wire.rst_stream(5)) == []

    assert server.hear() == []
    events = server.tell(wire.data(1, b"x", end_stream=True), wire.rst_stream(3))
    assert kinds(events) == ["DataReceived", "StreamReset"]
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    assert server.hear() == ["HEADERS 1 END_STREAM"]
    assert server.session.streams == {}


def test_a_drain_in_two_steps_loses_no_stream_in_flight(server: Peer) -> None:
    server.session.go_away(final=False)
    server.session.ping(b"draining")
    assert server.hear() == [f"GOAWAY {LAST} NO_ERROR", "PING draining"]

    events = server.tell(wire.headers(1, end_stream=True), wire.ping(b"draining", ack=True))
    server.session.go_away(final=True)

    assert kinds(events) == ["RequestReceived", "PingAcknowledged"]
    assert server.hear() == ["GOAWAY 1 NO_ERROR"]


def test_a_last_stream_id_never_grows(server: Peer) -> None:
    """RFC 9113 section 6.8: by then the peer has tried those streams elsewhere."""
    server.tell(wire.headers(1))
    server.session.go_away(final=True)
    server.tell(wire.headers(3), wire.headers(5))

    server.session.go_away(final=True)
    server.session.go_away(final=False)
    server.session.fail(ConnectionGone("enough"))

    assert server.hear() == ["GOAWAY 1 NO_ERROR"] * 4


def test_goaway_before_any_stream_names_none(server: Peer) -> None:
    server.session.go_away(final=True)

    assert server.hear() == ["GOAWAY 0 NO_ERROR"]


def test_a_server_that_drains_before_its_peer_has_spoken_begins_with_settings(engine: Engine) -> None:
    peer = Peer(wire.new_session(engine, client_side=False))

    peer.session.go_away(final=False)
    peer.session.ping(b"draining")
    assert [line.split()[0] for line in peer.hear()] == ["SETTINGS", "WINDOW_UPDATE", "GOAWAY", "PING"]

    events = peer.tell(wire.PREFACE, wire.settings(), wire.headers(1))
    assert kinds(events) == ["SettingsReceived", "RequestReceived"]
    assert peer.hear() == ["SETTINGS ACK"]


def test_a_server_that_pings_before_its_peer_has_spoken_begins_with_settings(engine: Engine) -> None:
    peer = Peer(wire.new_session(engine, client_side=False))

    peer.session.ping(b"12345678")
    peer.tell(b"GET / HTTP/1.1\r\n\r\n")

    heard = [line.split()[0] for line in peer.hear()]
    assert heard == ["SETTINGS", "WINDOW_UPDATE", "PING", "GOAWAY"], "too late for an answer in HTTP/1.1"


# --- The end in error ---


def test_events_before_the_error_stand(server: Peer) -> None:
    events = server.tell(wire.headers(1), wire.data(1, b"x"), wire.continuation(1), wire.headers(3))

    assert kinds(events) == ["RequestReceived", "DataReceived", "ConnectionEnded"]
    assert server.hear() == ["GOAWAY 1 PROTOCOL_ERROR"]


def test_output_before_the_error_goes_out(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"x")

    server.tell(wire.ping(b"answer!!"), wire.continuation(1))

    assert server.hear() == ["HEADERS 1", "DATA 1 [1]", "PING answer!! ACK", "GOAWAY 1 PROTOCOL_ERROR"]


@pytest.mark.parametrize("client_side", [False, True])
def test_after_the_end_nothing_is_sent_whatever_is_asked(engine: Engine, client_side: bool) -> None:
    """Also after an error that the engine has found, and not the checks in front of it."""
    peer = wire.client(engine) if client_side else wire.server(engine)
    if client_side:
        peer.session.open_stream(REQUEST)
    else:
        peer.tell(wire.headers(1))
    peer.tell(wire.window_update(0, LAST), wire.window_update(0, 1))
    session = peer.session
    assert session.ended
    assert peer.hear()[-1].startswith("GOAWAY")

    session.send_headers(1, RESPONSE)
    session.send_data(1, b"x", end_stream=True)
    session.send_headers(1, TRAILERS, end_stream=True)
    session.reset_after_end(1, ErrorCode.NO_ERROR)
    session.reset(1, ErrorCode.CANCEL)
    session.credit(1, 10**6)
    session.ping(b"12345678")
    session.go_away(final=False)
    session.go_away(final=True)
    session.fail(PeerAbuse("again"))

    assert not session.wants_output
    assert not session.room
    assert peer.hear() == []
    assert peer.tell(wire.headers(3)) == []


def test_data_that_waits_when_the_connection_fails_is_dropped(engine: Engine) -> None:
    server = wire.server(engine, peer_settings={wire.INITIAL_WINDOW_SIZE: 2})
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"hello")
    server.tell(wire.window_update(1, 1))

    server.session.fail(PeerAbuse("enough"))

    assert server.hear() == ["HEADERS 1", "GOAWAY 1 ENHANCE_YOUR_CALM"]


def test_a_goaway_says_why(server: Peer) -> None:
    server.session.fail(PeerAbuse("grün" * 100))

    (frame,) = server.frames()
    assert frame.additional_data == ("grün" * 100).encode()[:256]


def test_a_reset_of_the_peer_and_a_refusal_have_different_voices(client: Peer) -> None:
    for _ in range(2):
        client.session.open_stream(REQUEST)

    events = client.tell(wire.rst_stream(1, ErrorCode.REFUSED_STREAM), wire.goaway(1))

    assert [event.reason for event in events if isinstance(event, StreamReset)] == [
        "",
        "GOAWAY with last stream 1",
    ]
