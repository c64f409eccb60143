"""Floods (RFC 9113 section 10.5): each budget at its boundary, and memory that does not grow with the flood."""

import gc
import sys
from types import FunctionType, ModuleType

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.http2 import peer as wire
from tests.http2.peer import (
    REQUEST,
    RESPONSE,
    TRAILERS_ONLY,
    Peer,
    assert_alive,
    assert_connection_error,
    kinds,
    resets,
    views,
)

CALM = ErrorCode.ENHANCE_YOUR_CALM
BURST = 1000
"""Resets that the budget covers, a quarter of which is kept for refusals."""
LOW = BURST * 3 // 4


def test_rapid_resets_are_refused_first_and_then_punished(server: Peer) -> None:
    """CVE-2023-44487."""
    told = []
    for number in range(LOW):
        told += server.tell(wire.headers(1 + 2 * number), wire.rst_stream(1 + 2 * number))
    assert kinds(told).count("RequestReceived") == LOW
    assert_alive(server)  # whose PING takes the last point

    events = server.tell(wire.headers(2001), wire.rst_stream(2001))
    assert kinds(events) == ["LimitReached", "StreamReset"]
    assert f"{LOW} streams reset at once" in repr(events[0])
    assert resets(events) == [(2001, ErrorCode.REFUSED_STREAM, False)]

    for number in range(1, 2 * (BURST - LOW) - 1):
        server.tell(wire.headers(2001 + 2 * number), wire.rst_stream(2001 + 2 * number))
    assert not server.session.ended
    assert_connection_error(server, server.tell(wire.headers(6001), wire.rst_stream(6001)), CALM)


def test_calls_are_taken_again_when_time_has_filled_the_budget(server: Peer) -> None:
    for number in range(LOW + 1):
        server.tell(wire.headers(1 + 2 * number), wire.rst_stream(1 + 2 * number))
    assert kinds(server.tell(wire.headers(2001)))[-1] == "StreamReset"
    server.now += 10

    assert kinds(server.tell(wire.headers(2003))) == ["RequestReceived"]


def test_rapid_resets_pass_at_a_pace(server: Peer) -> None:
    for number in range(3 * BURST):
        server.now = number / 33
        server.tell(wire.headers(1 + 2 * number), wire.rst_stream(1 + 2 * number))

    assert_alive(server)


@pytest.mark.parametrize(
    "provocation",
    [
        lambda stream_id: wire.headers(stream_id) + wire.window_update(stream_id, 0),
        lambda stream_id: wire.headers(stream_id) + wire.headers(stream_id),
        lambda stream_id: wire.headers(stream_id, end_stream=True) + wire.data(stream_id, b"x"),
        lambda stream_id: wire.headers(stream_id, REQUEST[1:]),
        lambda stream_id: (
            wire.headers(stream_id, [*REQUEST, (b"content-length", b"1")]) + wire.data(stream_id, b"xx")
        ),
        lambda stream_id: wire.headers(stream_id) + wire.raw(0x2, 0, stream_id, b"1234"),
    ],
)
def test_resets_that_the_peer_provokes_count_like_its_own(server: Peer, provocation: object) -> None:
    """CVE-2025-8671, MadeYouReset. Half of what may be reset goes into plain resets here."""
    assert callable(provocation)
    for number in range(LOW // 2):
        server.tell(wire.headers(1 + 2 * number), wire.rst_stream(1 + 2 * number))
    for number in range(LOW // 2, LOW):
        assert resets(server.tell(provocation(1 + 2 * number)))[0][1] != ErrorCode.REFUSED_STREAM
        server.take()
    assert_alive(server)

    assert resets(server.tell(provocation(3001)))[0][1] == ErrorCode.REFUSED_STREAM


def test_refused_streams_count_too(engine: Engine) -> None:
    server = wire.server(engine, max_concurrent_streams=1)
    server.tell(wire.headers(1))
    for number in range(1, BURST + 1):
        server.tell(wire.headers(1 + 2 * number))
    assert not server.session.ended

    assert_connection_error(server, server.tell(wire.headers(3001)), CALM)


def test_data_on_closed_streams_counts_too(server: Peer) -> None:
    server.tell(wire.headers(1, end_stream=True))
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    server.hear()
    server.tell(wire.data(1, b"x") * (BURST + 1))  # the stream that went well pays for one
    assert not server.session.ended

    assert_connection_error(server, server.tell(wire.data(1, b"x")), CALM)


@pytest.mark.parametrize("answered", [True, False])
def test_a_server_may_reset_every_stream_that_we_open(client: Peer, answered: bool) -> None:
    """Servers that answer before they have read the request reset each stream, with NO_ERROR, behind the answer."""
    for number in range(3 * BURST):
        stream_id = client.session.open_stream(REQUEST)
        if answered:
            client.tell(wire.headers(stream_id, TRAILERS_ONLY, end_stream=True))
            client.session.reset(stream_id, ErrorCode.NO_ERROR)
        client.tell(wire.rst_stream(stream_id, ErrorCode.NO_ERROR))
        client.take()
        assert not client.session.ended, number

    assert_alive(client)


def test_a_server_all_of_whose_answers_are_malformed_keeps_its_connection(client: Peer) -> None:
    """Each costs its call, and a new connection would bring no better ones."""
    for number in range(3 * BURST):
        stream_id = client.session.open_stream(REQUEST)
        client.tell(wire.headers(stream_id, [(b"content-type", b"application/grpc")]))
        client.take()
        assert not client.session.ended, number

    assert_alive(client)


def test_a_server_that_resets_closed_streams_again_and_again_has_a_budget(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.tell(wire.rst_stream(1) * (1 + BURST + 1))  # the stream pays for one
    assert not client.session.ended

    assert_connection_error(client, client.tell(wire.rst_stream(1)), CALM)


@pytest.mark.parametrize("frame", [wire.ping(), wire.settings()])
def test_a_thousand_answers_may_wait_and_one_more_may_not(server: Peer, frame: bytes) -> None:
    """CVE-2019-9512 and CVE-2019-9515."""
    server.tell(frame * 1000)
    assert not server.session.ended

    assert_connection_error(server, server.tell(frame), CALM)


def test_answers_that_are_taken_away_in_time_have_no_limit(server: Peer) -> None:
    for _ in range(9):
        server.tell(wire.ping() * 950, wire.settings() * 5)
        assert len(server.hear()) == 955

    assert not server.session.ended


def test_acknowledgements_owe_no_answer(server: Peer) -> None:
    server.tell((wire.ping(ack=True) + wire.SETTINGS_ACK) * 2000)

    assert_alive(server)


@pytest.mark.parametrize(
    ("frame", "limit"),
    [
        (wire.ping(ack=True), 10_000),
        (wire.SETTINGS_ACK, 10_000),
        (wire.raw(0xEE, 0, 0, b"what"), 10_000),
        (wire.raw(0xEE, 0, 7, b""), 10_000),
        (wire.priority(1), 1000),
        (wire.window_update(0, 1), 20_000),
        (wire.goaway(0), 100),
    ],
)
def test_frames_that_nobody_needs_have_a_budget(server: Peer, frame: bytes, limit: int) -> None:
    for _ in range(limit // 100):
        server.tell(frame * 100)
    assert not server.session.ended

    assert_connection_error(server, server.tell(frame), CALM)


def test_window_updates_of_closed_streams_count_too(server: Peer) -> None:
    server.tell(wire.headers(1), wire.rst_stream(1))
    server.tell(wire.window_update(1, 1) * 19_980)
    assert not server.session.ended

    assert_connection_error(server, server.tell(wire.window_update(1, 1)), CALM)


def test_interim_responses_have_a_budget(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.tell(wire.headers(1, [(b":status", b"103")]) * 10_010)
    assert not client.session.ended

    assert_connection_error(client, client.tell(wire.headers(1, [(b":status", b"103")])), CALM)


def test_headers_on_streams_that_we_have_reset_have_a_budget(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.session.reset(1, ErrorCode.CANCEL)
    client.tell(wire.headers(1, RESPONSE) * 10_010)
    assert not client.session.ended

    assert_connection_error(client, client.tell(wire.headers(1, RESPONSE)), CALM)


def test_tiny_data_has_a_budget_and_whole_messages_have_none(server: Peer) -> None:
    server.tell(wire.headers(1))
    for _ in range(300):
        server.tell(wire.data(1, b"\0\0\0\0\0") * 100)
        server.session.credit(1, 500)
    server.tell(wire.data(1, b"1234") * 10_000)
    assert not server.session.ended

    assert_connection_error(server, server.tell(wire.data(1, b"1234")), CALM)


def test_settings_cost_more_the_more_streams_they_move(server: Peer) -> None:
    for number in range(1000):
        server.tell(wire.headers(1 + 2 * number))
    flips = 0
    while not server.session.ended:
        flips += 1
        assert flips < 1000
        server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 70_000 + flips}))
        server.take()

    assert flips == 10_000 // (10 + 1000 // 50) + 1


def with_answers_that_wait(server: Peer, calls: int) -> None:
    server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 0}))
    for stream_id in range(1, 2 * calls, 2):
        server.tell(wire.headers(stream_id, end_stream=True))
        server.session.send_headers(stream_id, RESPONSE)
        server.session.send_data(stream_id, bytes(10_000))
    server.take()


def test_a_window_that_opens_by_single_bytes_pays_for_nothing(server: Peer) -> None:
    """CVE-2019-9511, Data Dribble: each of them is a frame of ours."""
    with_answers_that_wait(server, 3)
    rounds = 0
    while not server.session.ended:
        server.tell(*[wire.window_update(stream_id, 1) for stream_id in (1, 3, 5)] * 100)
        server.take()
        rounds += 1
        assert rounds < 100
    assert rounds == 67  # 20,000 of them are the budget


def test_settings_that_open_the_windows_of_many_cost_as_many_window_updates(server: Peer) -> None:
    with_answers_that_wait(server, 100)
    rounds = 0
    while not server.session.ended:
        rounds += 1
        server.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: rounds}))
        server.take()
        assert rounds < 1000
    assert 150 < rounds < 170  # 10 for SETTINGS, 2 for the streams that move, and 50


def test_settings_of_one_read_move_the_streams_once(server: Peer) -> None:
    for number in range(1000):
        server.tell(wire.headers(1 + 2 * number))
    server.hear()

    server.tell(*[wire.settings({wire.INITIAL_WINDOW_SIZE: 70_000 + flip}) for flip in range(900)])

    assert not server.session.ended
    assert server.hear() == ["SETTINGS ACK"] * 900
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, bytes(80_000))
    assert sum(int(line.split("[")[1][:-1]) for line in server.hear() if line.startswith("DATA")) == 65_535


@pytest.mark.parametrize("frame", [wire.data(1), wire.data(1, b"", padding=0), wire.data(1, b"", padding=9)])
def test_a_hundred_empty_data_frames_in_a_row_pass_and_one_more_does_not(server: Peer, frame: bytes) -> None:
    """CVE-2019-9518. Padding does not make them less empty."""
    server.tell(wire.headers(1))
    server.tell(frame * 100, wire.data(1, b"x"), frame * 100)
    assert_alive(server)

    assert_connection_error(server, server.tell(frame), CALM)


def test_empty_data_frames_on_closed_streams_count_too(server: Peer) -> None:
    server.tell(wire.headers(1))
    server.session.reset(1, ErrorCode.CANCEL)
    server.tell(wire.data(1) * 100)
    assert_alive(server)

    assert_connection_error(server, server.tell(wire.data(1)), CALM)


def test_empty_data_goes_no_further(server: Peer) -> None:
    """It would make a flood out of us, on a connection that others share. Its credit is not lost."""
    server.tell(wire.headers(1))

    events = [
        event
        for _ in range(2100)
        for event in server.tell(wire.data(1, b"", padding=255), wire.data(1), wire.data(1, b"x"))
    ]

    assert kinds(events) == ["DataReceived"] * 2100
    assert b"".join(map(bytes, views(events))) == b"x" * 2100
    assert server.hear() == [f"WINDOW_UPDATE 1 +{256 * 2048}"]


def test_an_empty_end_is_no_flood(server: Peer) -> None:
    for number in range(300):
        assert kinds(
            server.tell(wire.headers(1 + 2 * number), wire.data(1 + 2 * number, end_stream=True))
        ) == [
            "RequestReceived",
            "DataReceived",
        ]

    assert_alive(server)


@pytest.mark.parametrize("stream_id", [0, 1])
def test_each_data_frame_that_is_sent_pays_for_twenty_window_updates(server: Peer, stream_id: int) -> None:
    server.tell(wire.headers(1))
    server.session.send_headers(1, RESPONSE)
    for _ in range(2000):
        server.session.send_data(1, b"x")
        server.take()
        server.tell(wire.window_update(stream_id, 1) * 20)

    assert_alive(server)


@pytest.mark.parametrize("closed_by", ["a reset of ours", "an error", "goaway"])
def test_data_that_is_dropped_does_not_fill_our_output(server: Peer, closed_by: str) -> None:
    """Nobody takes the output away: for each byte of DATA there would be thirteen of WINDOW_UPDATE."""
    server.tell(wire.headers(1))
    if closed_by == "a reset of ours":
        server.session.reset(1, ErrorCode.CANCEL)
    elif closed_by == "an error":
        server.tell(wire.window_update(1, 0))
    else:
        server.session.go_away(final=True)
        server.tell(wire.headers(3))
    stream_id = 3 if closed_by == "goaway" else 1
    server.hear()

    for _ in range(50):
        assert server.tell(wire.data(stream_id, b"x") * 1000) == []

    assert server.session.output.bytes < 100
    assert not server.session.ended


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy does not tell the size of objects")
def test_refusals_and_errors_leave_no_state_behind(engine: Engine) -> None:
    server = wire.server(engine, max_concurrent_streams=1)
    server.tell(wire.headers(1))

    def held() -> int:
        found = {id(server.session): server.session}
        to_look_at: list[object] = [server.session]
        while to_look_at:
            for part in gc.get_referents(to_look_at.pop()):
                if not isinstance(part, type | ModuleType | FunctionType) and id(part) not in found:
                    found[id(part)] = part
                    to_look_at.append(part)
        return sum(map(sys.getsizeof, found.values()))

    before = 0
    for number in range(1, 8000):
        server.now = number / 33
        server.tell(wire.headers(1 + 2 * number))
        server.take()
        if number == 3000:
            before = held()

    assert not server.session.ended
    assert held() < 1.5 * before


# --- Honest peers ---


@pytest.mark.parametrize("share", [2, 5, 50])
def test_a_client_that_cancels_some_of_its_calls_may_go_on_for_ever(server: Peer, share: int) -> None:
    for number in range(20_000):
        server.now = number / 2000
        stream_id = 1 + 2 * number
        server.tell(wire.headers(stream_id, end_stream=True))
        if number % 100 < share:
            server.tell(wire.rst_stream(stream_id))
        else:
            server.session.send_headers(stream_id, TRAILERS_ONLY, end_stream=True)
        server.session.take_output()
        server.session.output_written()

    assert_alive(server)


def test_a_client_all_of_whose_deadlines_pass_may_go_on_for_ever(server: Peer) -> None:
    for number in range(20_000):
        server.now = number / 1000
        server.tell(wire.headers(1 + 2 * number, end_stream=True))
        if number >= 20:
            server.tell(wire.rst_stream(1 + 2 * (number - 20)))

    assert_alive(server)


def test_resets_that_cross_our_answers_cost_nothing(server: Peer) -> None:
    for number in range(3 * BURST):
        stream_id = 1 + 2 * number
        server.tell(wire.headers(stream_id, end_stream=True))
        server.session.send_headers(stream_id, TRAILERS_ONLY, end_stream=True)
        server.session.take_output()
        server.session.output_written()
        server.tell(wire.rst_stream(stream_id))

    assert_alive(server)


def test_a_call_that_is_given_up_after_its_first_answer_costs_nothing(server: Peer) -> None:
    for number in range(3 * BURST):
        stream_id = 1 + 2 * number
        server.tell(wire.headers(stream_id))
        server.session.send_headers(stream_id, RESPONSE)
        server.session.send_data(stream_id, b"first")
        server.tell(wire.rst_stream(stream_id))
        server.take()

    assert_alive(server)


def test_a_first_flight_beyond_our_limit_is_refused_and_forgiven(engine: Engine) -> None:
    """RFC 9113 section 5.1.2 lets a client open streams before it has seen our limit."""
    server = Peer(wire.new_session(engine, client_side=False))

    events = server.tell(
        wire.PREFACE, wire.settings(), *[wire.headers(1 + 2 * number) for number in range(2 * BURST + 100)]
    )

    assert kinds(events).count("RequestReceived") == 1024
    assert kinds(events).count("StreamReset") == 2 * BURST + 100 - 1024
    assert_alive(server)
