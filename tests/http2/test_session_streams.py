"""Streams and their states (RFC 9113 section 5.1): who may open which, and what each frame means in each state."""

from collections.abc import Callable

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2.events import ConnectionEnded, Event, LimitReached, RequestReceived, StreamReset
from tests.http2 import peer as wire
from tests.http2.peer import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    TRAILERS_ONLY,
    Peer,
    assert_alive,
    assert_connection_error,
    kinds,
    resets,
)

PROTOCOL, CLOSED, REFUSED, CANCEL = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.REFUSED_STREAM,
    ErrorCode.CANCEL,
)


# --- Every state, every frame (section 5.1) ---


def outcome(peer: Peer, events: list[Event]) -> str:
    """In one word or two, what came of a frame."""
    if not events:
        return ", ".join(peer.hear()) or "ignored"
    (event,) = events
    match event:
        case ConnectionEnded(error):
            return f"connection {ErrorCode(error.error_code).name}"
        case StreamReset(1 | 3 as stream_id, code, False):
            assert peer.hear() == [f"RST_STREAM {stream_id} {ErrorCode(code).name}"]
            return f"stream {ErrorCode(code).name}"
        case _:
            assert peer.hear() == []
            return type(event).__name__.removesuffix("Received")


def request(peer: Peer, *, end_stream: bool = False) -> None:
    if peer.session.client_side:
        peer.session.open_stream(REQUEST, end_stream=end_stream)
    else:
        peer.tell(wire.headers(1, end_stream=end_stream))


def peer_ends(peer: Peer) -> None:
    if peer.session.client_side:
        peer.tell(wire.headers(1, TRAILERS_ONLY, end_stream=True))
    else:
        peer.tell(wire.data(1, end_stream=True))


def we_end(peer: Peer) -> None:
    if peer.session.client_side:
        peer.session.send_data(1, b"", end_stream=True)
    else:
        peer.session.send_headers(1, TRAILERS_ONLY, end_stream=True)


def idle(peer: Peer) -> None:
    """Nobody has opened the stream."""


def open_(peer: Peer) -> None:
    request(peer)


def response_begun(peer: Peer) -> None:
    request(peer)
    peer.tell(wire.headers(1, RESPONSE))


def half_closed_remote(peer: Peer) -> None:
    request(peer)
    peer_ends(peer)


def half_closed_local(peer: Peer) -> None:
    request(peer)
    we_end(peer)


def closed_by_both_ends(peer: Peer) -> None:
    request(peer)
    peer_ends(peer)
    we_end(peer)


def closed_by_a_reset_of_the_peer(peer: Peer) -> None:
    request(peer)
    peer.tell(wire.rst_stream(1))


def closed_by_a_reset_of_ours(peer: Peer) -> None:
    request(peer)
    peer.session.reset(1, CANCEL)


def closed_by_an_error_of_the_stream(peer: Peer) -> None:
    request(peer)
    peer.tell(wire.raw(0x2, 0, 1, b"short"[:4]))


def refused(peer: Peer) -> None:
    peer.tell(wire.headers(1, REQUEST[1:]))


def skipped(peer: Peer) -> None:
    """A higher stream was opened: that closes the idle ones below it (section 5.1.1)."""
    peer.tell(wire.headers(3))


STATES: dict[bool, dict[Callable[[Peer], None], tuple[str, ...]]] = {
    # state: DATA, HEADERS + END_STREAM, RST_STREAM, WINDOW_UPDATE, PRIORITY
    False: {
        idle: ("connection PROTOCOL_ERROR", "Request", *["connection PROTOCOL_ERROR"] * 2, "ignored"),
        open_: ("Data", "Trailers", "StreamReset", "ignored", "ignored"),
        half_closed_remote: (
            "stream STREAM_CLOSED",
            "stream STREAM_CLOSED",
            "StreamReset",
            "ignored",
            "ignored",
        ),
        half_closed_local: ("Data", "Trailers", "StreamReset", "ignored", "ignored"),
        closed_by_both_ends: ("RST_STREAM 1 STREAM_CLOSED", "connection STREAM_CLOSED", *["ignored"] * 3),
        closed_by_a_reset_of_the_peer: (
            "RST_STREAM 1 STREAM_CLOSED",
            "connection STREAM_CLOSED",
            *["ignored"] * 3,
        ),
        closed_by_a_reset_of_ours: ("ignored",) * 5,
        closed_by_an_error_of_the_stream: ("ignored",) * 5,
        refused: ("ignored",) * 5,
        skipped: ("RST_STREAM 1 STREAM_CLOSED", "connection PROTOCOL_ERROR", *["ignored"] * 3),
    },
    True: {
        idle: (*["connection PROTOCOL_ERROR"] * 4, "ignored"),
        open_: ("stream PROTOCOL_ERROR", "Response", "StreamReset", "ignored", "ignored"),
        response_begun: ("Data", "stream PROTOCOL_ERROR", "StreamReset", "ignored", "ignored"),
        half_closed_remote: (
            "stream STREAM_CLOSED",
            "stream STREAM_CLOSED",
            "StreamReset",
            "ignored",
            "ignored",
        ),
        half_closed_local: ("stream PROTOCOL_ERROR", "Response", "StreamReset", "ignored", "ignored"),
        closed_by_both_ends: ("RST_STREAM 1 STREAM_CLOSED", *["ignored"] * 4),
        closed_by_a_reset_of_the_peer: ("RST_STREAM 1 STREAM_CLOSED", *["ignored"] * 4),
        closed_by_a_reset_of_ours: ("ignored",) * 5,
        closed_by_an_error_of_the_stream: ("ignored",) * 5,
    },
}
FRAMES = ["DATA", "HEADERS", "RST_STREAM", "WINDOW_UPDATE", "PRIORITY"]


@pytest.mark.parametrize(
    ("client_side", "state", "frame", "expected"),
    [
        pytest.param(
            side,
            state,
            frame,
            result,
            id=f"{'client' if side else 'server'}-{state.__name__.strip('_')}-{frame}",
        )
        for side, states in STATES.items()
        for state, results in states.items()
        for frame, result in zip(FRAMES, results, strict=True)
    ],
)
def test_each_frame_in_each_state(
    engine: Engine, client_side: bool, state: Callable[[Peer], None], frame: str, expected: str
) -> None:
    peer = wire.client(engine) if client_side else wire.server(engine)
    state(peer)
    peer.hear()
    trailers_due = not client_side and state in {open_, half_closed_local}
    fields = TRAILERS if trailers_due else RESPONSE if client_side else REQUEST
    said = {
        "DATA": wire.data(1, b"x"),
        "HEADERS": wire.headers(1, fields, end_stream=True),
        "RST_STREAM": wire.rst_stream(1),
        "WINDOW_UPDATE": wire.window_update(1, 1),
        "PRIORITY": wire.priority(1),
    }[frame]

    events = peer.tell(said)

    assert outcome(peer, events) == expected
    if not expected.startswith("connection"):
        assert_alive(peer)


@pytest.mark.parametrize(
    "frame", [wire.headers(2), wire.data(2, b"x"), wire.rst_stream(2), wire.window_update(2, 1)]
)
@pytest.mark.parametrize("client_side", [False, True])
def test_nobody_may_use_even_streams(engine: Engine, client_side: bool, frame: bytes) -> None:
    """Only a push would open them, and there is none."""
    peer = wire.client(engine) if client_side else wire.server(engine)

    assert_connection_error(peer, peer.tell(frame), PROTOCOL)


def test_a_stream_that_closed_long_ago_is_forgotten_but_not_idle(server: Peer) -> None:
    for stream_id in range(1, 2 * 2100, 2):
        server.tell(wire.headers(stream_id, end_stream=True))
        server.session.send_headers(stream_id, TRAILERS_ONLY, end_stream=True)
        server.hear()

    assert server.tell(wire.data(1, b"x"), wire.rst_stream(1), wire.window_update(1, 1)) == []
    assert server.hear() == ["RST_STREAM 1 STREAM_CLOSED"]
    assert_connection_error(server, server.tell(wire.headers(1, end_stream=True)), PROTOCOL)


def test_a_thousand_streams_that_closed_last_are_known_whenever_they_closed(server: Peer) -> None:
    for stream_id in range(1, 2 * 2100, 2):
        server.tell(wire.headers(stream_id, end_stream=True))
        server.session.reset(stream_id, ErrorCode.CANCEL)
        server.hear()
        oldest = max(1, stream_id - 2 * 1000)
        assert server.tell(wire.headers(oldest, TRAILERS_ONLY, end_stream=True)) == []


# --- Ids (section 5.1.1) ---


def test_ids_may_be_skipped(server: Peer) -> None:
    events = server.tell(wire.headers(5), wire.headers(2**31 - 1))

    assert [event.stream_id for event in events if isinstance(event, RequestReceived)] == [5, 2**31 - 1]


def test_our_ids_are_odd_and_grow(client: Peer) -> None:
    assert [client.session.open_stream(REQUEST) for _ in range(3)] == [1, 3, 5]


def test_there_is_no_room_once_the_ids_are_used_up(client: Peer) -> None:
    client.session._next_id = 2**31 - 1
    assert client.has_room()

    assert client.session.open_stream(REQUEST) == 2**31 - 1

    assert not client.has_room()
    assert client.hear() == [f"HEADERS {2**31 - 1}"]


# --- How many (section 5.1.2) ---


def test_as_many_streams_as_we_allow_may_be_open_and_one_more_is_refused(engine: Engine) -> None:
    server = wire.server(engine, max_concurrent_streams=2)

    events = server.tell(*(wire.headers(stream_id) for stream_id in (1, 3, 5)), wire.data(5, b"crossing"))

    assert kinds(events) == ["RequestReceived", "LimitReached", "RequestReceived", "StreamReset"]
    assert resets(events) == [(5, REFUSED, False)]
    assert server.hear() == ["RST_STREAM 5 REFUSED_STREAM"]
    assert kinds(server.tell(wire.rst_stream(1), wire.headers(7))) == ["StreamReset", "RequestReceived"]
    assert_alive(server)


def test_a_half_closed_stream_counts(engine: Engine) -> None:
    server = wire.server(engine, max_concurrent_streams=1)
    server.tell(wire.headers(1, end_stream=True))

    assert resets(server.tell(wire.headers(3))) == [(3, REFUSED, False)]
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    server.hear()
    assert kinds(server.tell(wire.headers(5))) == ["RequestReceived"]


def test_a_malformed_request_takes_no_room(engine: Engine) -> None:
    server = wire.server(engine, max_concurrent_streams=2)
    server.tell(wire.headers(1))

    server.tell(wire.headers(3, REQUEST[1:]))

    assert resets(server.tell(wire.headers(5))) == []
    assert resets(server.tell(wire.headers(7))) == [(7, REFUSED, False)]


def test_a_stream_counts_until_its_last_frame_is_with_the_socket(engine: Engine) -> None:
    """A peer that asks and does not read could have us hold any number of answers otherwise."""
    server = wire.server(engine, max_concurrent_streams=1)
    server.tell(wire.headers(1, end_stream=True))
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)

    assert server.session.take_closed() == []
    assert resets(server.tell(wire.headers(3))) == [(3, REFUSED, False)]
    server.session.take_output()
    assert server.session.take_closed() == []
    assert resets(server.tell(wire.headers(5))) == [(5, REFUSED, False)]
    server.session.output_written()
    assert server.session.take_closed() == [1]
    assert resets(server.tell(wire.headers(7))) == []


@pytest.mark.parametrize("whose", ["ours", "the peer's"])
def test_a_stream_that_is_reset_counts_until_the_reset_is_with_the_socket(engine: Engine, whose: str) -> None:
    server = wire.server(engine, max_concurrent_streams=1)
    server.tell(wire.headers(1))
    if whose == "ours":
        server.session.reset(1, CANCEL)
    else:
        server.tell(wire.window_update(1, 0))  # a mistake, for which we reset the stream

    assert server.session.take_closed() == []
    assert resets(server.tell(wire.headers(3))) == [(3, REFUSED, False)]
    server.session.take_output()
    server.session.output_written()
    assert server.session.take_closed() == [1]
    assert resets(server.tell(wire.headers(5))) == []


def test_whoever_has_as_many_streams_open_as_allowed_is_told_of_once(engine: Engine) -> None:
    server = wire.server(engine, max_concurrent_streams=2)

    told = [
        event
        for number in range(6)
        for event in server.tell(wire.headers(1 + 2 * number))
        if isinstance(event, LimitReached)
    ]

    (limit,) = told
    assert limit.limit == "max_concurrent_streams"
    assert limit.detail.startswith("2 calls are open on this connection")


def test_room_is_what_the_peer_allows(engine: Engine) -> None:
    client = wire.client(engine, peer_settings={wire.MAX_CONCURRENT_STREAMS: 2})
    assert client.has_room()
    client.session.open_stream(REQUEST)
    assert client.has_room()
    client.session.open_stream(REQUEST)
    assert not client.has_room()

    client.tell(wire.rst_stream(1))

    assert client.has_room()


def test_a_limit_that_falls_lets_open_streams_run_on(client: Peer) -> None:
    for _ in range(3):
        client.session.open_stream(REQUEST)

    client.tell(wire.settings({wire.MAX_CONCURRENT_STREAMS: 0}))

    assert not client.has_room()
    client.session.send_data(5, b"x", end_stream=True)
    events = client.tell(wire.headers(5, RESPONSE), wire.data(5, b"y", end_stream=True))
    assert kinds(events) == ["ResponseReceived", "DataReceived"]
    client.tell(wire.rst_stream(1), wire.rst_stream(3))
    assert not client.has_room()
    client.tell(wire.settings({wire.MAX_CONCURRENT_STREAMS: 1}))
    assert client.session.open_stream(REQUEST) == 7


# --- RST_STREAM (section 6.4) ---


@pytest.mark.parametrize("code", [*ErrorCode, 0xDEAD, 2**32 - 1])
def test_a_reset_is_told_with_its_number(server: Peer, code: int) -> None:
    server.tell(wire.headers(1))

    assert server.tell(wire.rst_stream(1, code)) == [StreamReset(1, code, by_peer=True, reason="")]

    assert server.hear() == []
    assert server.session.take_closed() == [1]


def test_our_reset_goes_out_behind_what_was_said_before(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"some")

    server.session.reset(1, CANCEL)

    assert server.hear() == ["HEADERS 1", "DATA 1 [4]", "RST_STREAM 1 CANCEL"]
    assert server.session.take_closed() == [1]


def test_commands_on_a_closed_stream_do_nothing(server: Peer) -> None:
    """Its end has been told; whoever has not heard yet need not ask first."""
    server.tell(wire.headers(1), wire.rst_stream(1))
    session, source = server.session, wire.Owed()

    session.send_headers(1, RESPONSE)
    session.send_data(1, b"x", source=source, credit=1)
    session.send_headers(1, TRAILERS, end_stream=True)
    session.reset(1, CANCEL)
    session.reset_after_end(1, CANCEL)
    session.credit(1, 10**9)

    assert not session.wants_output
    assert server.hear() == []
    assert server.receipts == []


def test_commands_behind_our_end_do_nothing(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    server.hear()

    server.session.send_data(1, b"x", end_stream=True)
    server.session.send_headers(1, TRAILERS, end_stream=True)

    assert server.hear() == []
    assert kinds(server.tell(wire.data(1, b"still open", end_stream=True))) == ["DataReceived"]
    assert server.session.take_closed() == [1]


def test_a_response_that_is_complete_survives_a_reset_behind_it(client: Peer) -> None:
    """A server that has not read the request to its end says so with NO_ERROR (section 8.1)."""
    client.session.open_stream(REQUEST)

    events = client.tell(
        wire.headers(1, RESPONSE),
        wire.data(1, b"answer"),
        wire.headers(1, TRAILERS, end_stream=True),
        wire.rst_stream(1, ErrorCode.NO_ERROR),
    )

    assert kinds(events) == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamReset"]
    assert client.session.take_closed() == [1]


def test_headers_and_reset_in_one_read_leave_nothing_open(server: Peer) -> None:
    events = server.tell(*(wire.headers(n) + wire.rst_stream(n) for n in (1, 3, 5)))

    assert kinds(events) == ["RequestReceived", "StreamReset"] * 3
    assert server.session.streams == {}
    assert server.session.take_closed() == [1, 3, 5]
    assert not server.wants_output()


# --- reset_after_end (section 8.1) ---


def test_reset_after_end_waits_for_our_end(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)

    server.session.reset_after_end(1, ErrorCode.NO_ERROR)
    assert server.hear() == ["HEADERS 1"]
    server.session.send_headers(1, TRAILERS, end_stream=True)

    assert server.hear() == ["HEADERS 1 END_STREAM", "RST_STREAM 1 NO_ERROR"]
    assert server.session.take_closed() == [1]


def test_reset_after_end_waits_for_data_that_waits(engine: Engine) -> None:
    server = wire.server(engine, peer_settings={wire.INITIAL_WINDOW_SIZE: 3})
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"hello")
    server.session.send_headers(1, TRAILERS, end_stream=True)

    server.session.reset_after_end(1, ErrorCode.NO_ERROR)

    assert server.hear() == ["HEADERS 1", "DATA 1 [3]"]
    server.tell(wire.window_update(1, 3))
    assert server.hear() == ["DATA 1 [2]", "HEADERS 1 END_STREAM", "RST_STREAM 1 NO_ERROR"]


def test_reset_after_end_comes_at_once_if_we_have_ended(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)

    server.session.reset_after_end(1, ErrorCode.NO_ERROR)

    assert server.hear() == ["HEADERS 1 END_STREAM", "RST_STREAM 1 NO_ERROR"]


@pytest.mark.parametrize("ends_before", [True, False])
def test_reset_after_end_is_not_needed_if_the_peer_ends_too(server: Peer, ends_before: bool) -> None:
    server.tell(wire.headers(1, end_stream=ends_before))

    server.session.reset_after_end(1, ErrorCode.NO_ERROR)
    if not ends_before:
        server.tell(wire.data(1, end_stream=True))
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)

    assert server.hear() == ["HEADERS 1 END_STREAM"]
    assert server.session.take_closed() == [1]


def test_what_comes_after_reset_after_end_is_dropped(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.reset_after_end(1, ErrorCode.NO_ERROR)
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    server.hear()

    assert server.tell(wire.data(1, b"upload"), wire.headers(1, TRAILERS, end_stream=True)) == []
    assert server.hear() == []
