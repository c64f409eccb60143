"""How a connection begins (RFC 9113 section 3.4): preface, SETTINGS, and peers that speak something else."""

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConnectionGone, NotHttp2
from rawgrpc_proxy.http2.events import ConnectionEnded, SettingsReceived
from tests.http2 import peer as wire
from tests.http2.peer import PREFACE, Peer, assert_connection_error, kinds, new_session


def fresh_server(engine: Engine) -> Peer:
    return Peer(new_session(engine, client_side=False))


def fresh_client(engine: Engine) -> Peer:
    peer = Peer(new_session(engine, client_side=True))
    peer.session.start()
    return peer


def test_a_client_begins_with_the_preface_settings_and_the_connection_window(engine: Engine) -> None:
    peer = fresh_client(engine)

    output = peer.take()

    assert output.startswith(PREFACE)
    settings, growth = wire.parse(output[len(PREFACE) :])
    assert dict(settings.settings) == {
        wire.INITIAL_WINDOW_SIZE: 1024 * 1024,
        wire.MAX_FRAME_SIZE: 16_384,
        wire.MAX_HEADER_LIST_SIZE: 64 * 1024 + 32 * 1000,
        wire.ENABLE_PUSH: 0,
    }
    assert wire.show(growth) == f"WINDOW_UPDATE 0 +{16 * 1024 * 1024 - 65_535}"


def test_a_server_says_nothing_before_its_peer_has(engine: Engine) -> None:
    peer = fresh_server(engine)

    assert peer.tell(PREFACE) == []

    assert not peer.session.wants_output
    assert peer.hear() == []


def test_a_server_answers_settings_with_its_own_settings_first(engine: Engine) -> None:
    peer = fresh_server(engine)

    assert peer.tell(PREFACE, wire.settings()) == [SettingsReceived()]

    settings, growth, ack = peer.frames()
    assert dict(settings.settings) == {
        wire.INITIAL_WINDOW_SIZE: 1024 * 1024,
        wire.MAX_FRAME_SIZE: 16_384,
        wire.MAX_HEADER_LIST_SIZE: 64 * 1024 + 32 * 1000,
        wire.MAX_CONCURRENT_STREAMS: 1024,
    }
    assert wire.show(growth) == f"WINDOW_UPDATE 0 +{16 * 1024 * 1024 - 65_535}"
    assert wire.show(ack) == "SETTINGS ACK"


def test_a_connection_window_of_the_default_size_is_not_raised(engine: Engine) -> None:
    peer = Peer(new_session(engine, client_side=False, connection_window_bytes=65_535))

    peer.tell(PREFACE, wire.settings())

    assert peer.hear() == ["SETTINGS", "SETTINGS ACK"]


def test_the_connection_window_may_be_as_large_as_windows_get(engine: Engine) -> None:
    peer = Peer(new_session(engine, client_side=False, connection_window_bytes=wire.LARGEST_WINDOW))

    peer.tell(PREFACE, wire.settings())

    assert peer.hear()[1] == f"WINDOW_UPDATE 0 +{wire.LARGEST_WINDOW - 65_535}"


def test_a_request_may_follow_the_settings_in_the_same_breath(engine: Engine) -> None:
    peer = fresh_server(engine)

    events = peer.tell(PREFACE, wire.settings(), wire.headers(1, end_stream=True))

    assert kinds(events) == ["SettingsReceived", "RequestReceived"]


def test_a_client_may_open_streams_before_it_has_seen_settings(engine: Engine) -> None:
    peer = fresh_client(engine)

    assert peer.session.open_stream(wire.REQUEST) == 1
    peer.session.send_data(1, bytes(65_535))

    assert peer.hear()[2:] == [
        "HEADERS 1",
        "DATA 1 [16384]",
        "DATA 1 [16384]",
        "DATA 1 [16384]",
        "DATA 1 [16383]",
    ]


@pytest.mark.parametrize(
    "frame",
    [
        wire.headers(1),
        wire.data(1, b"x"),
        wire.ping(),
        wire.window_update(0, 1),
        wire.goaway(0),
        wire.priority(1),
        wire.rst_stream(1),
        wire.SETTINGS_ACK,
        wire.push_promise(1, 2),
        wire.continuation(1),
        wire.raw(0xEE, 0, 0),
    ],
)
@pytest.mark.parametrize("client_side", [False, True])
def test_the_first_frame_must_be_settings(engine: Engine, client_side: bool, frame: bytes) -> None:
    peer = fresh_client(engine) if client_side else fresh_server(engine)
    peer.hear()

    events = peer.tell(frame if client_side else PREFACE + frame)

    assert isinstance(events[-1], ConnectionEnded)
    heard = ["GOAWAY 0 PROTOCOL_ERROR"] if client_side else ["SETTINGS", "GOAWAY 0 PROTOCOL_ERROR"]
    assert peer.hear() == heard


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 50051\r\n" + PREFACE + wire.settings(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        wire.settings(),
    ],
)
def test_whoever_begins_with_no_preface_gets_no_settings(engine: Engine, wrong: bytes) -> None:
    """A gRPC client behind it would take them for a living server, and come back without a pause, again and again."""
    peer = fresh_server(engine)

    (event,) = peer.tell(wrong)

    assert isinstance(event, ConnectionEnded)
    assert isinstance(event.error, NotHttp2)
    assert not peer.session.wants_output


def test_bad_first_settings_are_answered_with_settings_and_goaway(engine: Engine) -> None:
    peer = fresh_server(engine)

    peer.tell(PREFACE, wire.settings({wire.ENABLE_PUSH: 2}))

    assert peer.hear() == ["SETTINGS", "GOAWAY 0 PROTOCOL_ERROR"]


@pytest.mark.parametrize("start", [b"PROXY T", b"\x16", b"GET /", b"hello"])
def test_whoever_begins_otherwise_and_falls_silent_gets_no_settings_either(
    engine: Engine, start: bytes
) -> None:
    peer = fresh_server(engine)
    assert peer.tell(start) == []

    peer.session.fail(ConnectionGone("too slow"))

    assert not peer.session.wants_output


@pytest.mark.parametrize("line", [b"GET /", b"CONNECT 10.0.0.7:50051", b"M-SEARCH *", b"VERSION-CONTROL /x"])
@pytest.mark.parametrize("cut", [1, 4, 5, 16])
def test_an_http1_client_gets_an_answer_it_can_read(engine: Engine, line: bytes, cut: int) -> None:
    peer = fresh_server(engine)
    request = b"%s HTTP/1.1\r\nhost: x\r\n\r\n" % line

    events = [*peer.tell(request[:cut]), *peer.tell(request[cut:])]

    (ended,) = events
    assert isinstance(ended, ConnectionEnded)
    assert ended.error.error_code == ErrorCode.HTTP_1_1_REQUIRED
    head, _, body = peer.take().partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    assert status == b"HTTP/1.1 505 HTTP Version Not Supported"
    assert b"content-length: %d" % len(body) in fields
    assert b"connection: close" in fields
    assert b"HTTP/2" in body


@pytest.mark.parametrize("cut", [1, 4, 5, 9, 12])
def test_an_http1_server_ends_the_connection_with_the_cause_in_clear(engine: Engine, cut: int) -> None:
    peer = fresh_client(engine)
    response = b"HTTP/1.1 400 Bad Request\r\n\r\n"

    events = [*peer.tell(response[:cut]), *peer.tell(response[cut:])]

    reason = assert_connection_error(peer, events, ErrorCode.HTTP_1_1_REQUIRED)
    assert reason == "answered with HTTP/1.1, not HTTP/2"


def test_a_server_that_gives_up_before_settings_still_begins_with_them(engine: Engine) -> None:
    """A handshake that has timed out, for one."""
    peer = fresh_server(engine)

    peer.session.fail(ConnectionGone("too slow"))

    assert peer.hear() == ["SETTINGS", "GOAWAY 0 NO_ERROR"]


def test_peer_settings_are_seen_once_they_are_in_force(engine: Engine) -> None:
    peer = fresh_client(engine)
    seen = [peer.session.peer_settings_seen]
    assert peer.session.peer_max_concurrent_streams == peer.session.peer_max_header_list_bytes == 2**31 - 1

    peer.tell(
        wire.settings(
            {wire.MAX_CONCURRENT_STREAMS: 7, wire.MAX_HEADER_LIST_SIZE: 8192, wire.MAX_FRAME_SIZE: 20_000}
        )
    )

    seen.append(peer.session.peer_settings_seen)
    assert seen == [False, True]
    assert peer.session.peer_max_concurrent_streams == 7
    assert peer.session.peer_max_header_list_bytes == 8192
    assert peer.session.peer_max_frame_bytes == 20_000


def test_settings_that_come_again_change_only_what_they_name(engine: Engine) -> None:
    peer = wire.client(engine, peer_settings={wire.MAX_CONCURRENT_STREAMS: 7, wire.MAX_FRAME_SIZE: 20_000})

    assert peer.tell(wire.settings({wire.MAX_CONCURRENT_STREAMS: 8})) == [SettingsReceived()]

    assert peer.hear() == ["SETTINGS ACK"]
    assert peer.session.peer_max_concurrent_streams == 8
    assert peer.session.peer_max_frame_bytes == 20_000


def test_a_peer_that_has_not_read_our_settings_may_use_the_default_windows(engine: Engine) -> None:
    """RFC 9113 section 6.5.3: smaller windows of ours would not be in force yet. So the settings allow none."""
    peer = Peer(new_session(engine, client_side=False, stream_window_bytes=65_535))
    body = b"".join(wire.data(1, bytes(16_383), end_stream=number == 4) for number in range(4))

    events = peer.tell(PREFACE, wire.settings(), wire.headers(1), body)

    assert kinds(events) == ["SettingsReceived", "RequestReceived", *["DataReceived"] * 4]
