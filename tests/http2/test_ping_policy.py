"""gRPC's rule for callers' PINGs, at its boundaries: alone, and in a session of each engine."""

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.errors import PeerAbuse
from rawgrpc_proxy.http2.events import ConnectionEnded
from rawgrpc_proxy.http2.ping_policy import PingPolicy
from tests.http2 import peer as wire
from tests.http2.peer import RESPONSE, TRAILERS, Peer, assert_alive, kinds

INTERVAL_S, TWO_HOURS_S = 300.0, 7200.0
SETTINGS = Http2Settings(min_ping_interval_s=INTERVAL_S)


def ping(policy: PingPolicy, at: float, *, answered: int = 0, has_streams: bool = True) -> None:
    policy.received(at, answered=answered, has_streams=has_streams)


@pytest.mark.parametrize("strikes", [1, 2, 5])
def test_so_many_early_pings_are_forgiven_and_the_next_one_is_not(strikes: int) -> None:
    policy = PingPolicy(Http2Settings(min_ping_interval_s=INTERVAL_S, max_ping_strikes=strikes))
    for number in range(1 + strikes):  # the first one is never early
        ping(policy, number * (INTERVAL_S - 0.001))
    with pytest.raises(PeerAbuse, match=r"sooner than 300 s .*min_ping_interval_s") as caught:
        ping(policy, (1 + strikes) * (INTERVAL_S - 0.001))
    assert (caught.value.told, caught.value.limit) == ("too_many_pings", "min_ping_interval_s")


def test_pings_that_keep_the_interval_are_never_too_many() -> None:
    policy = PingPolicy(SETTINGS)
    for number in range(100):
        ping(policy, number * INTERVAL_S)


def test_an_answer_in_between_takes_the_strikes_away() -> None:
    policy = PingPolicy(SETTINGS)
    now = 0.0
    for answered in range(100):
        for _ in range(3):  # one that is free, and two strikes
            ping(policy, now := now + 1, answered=answered)


def test_without_calls_two_hours_lie_between_pings() -> None:
    policy = PingPolicy(SETTINGS)
    for number in range(10):
        ping(policy, number * TWO_HOURS_S, has_streams=False)
    early = 9 * TWO_HOURS_S + INTERVAL_S
    ping(policy, early, has_streams=False)
    ping(policy, early + INTERVAL_S, has_streams=False)
    with pytest.raises(PeerAbuse, match="sooner than 7200 s"):
        ping(policy, early + 2 * INTERVAL_S, has_streams=False)


def test_callers_without_calls_may_be_allowed_the_same_interval() -> None:
    policy = PingPolicy(Http2Settings(min_ping_interval_s=INTERVAL_S, permit_without_stream=True))
    for number in range(100):
        ping(policy, number * INTERVAL_S, has_streams=False)


def pinged(peer: Peer, times: int = 1) -> None:
    """So many PINGs come, a second apart, and are answered."""
    for _ in range(times):
        peer.now += 1
        assert_alive(peer)


def test_a_session_ends_with_the_words_that_clients_of_grpc_look_for(engine: Engine) -> None:
    peer = wire.server(engine, min_ping_interval_s=INTERVAL_S)
    peer.tell(wire.headers(1))
    pinged(peer, 3)

    events = peer.tell(wire.ping())

    assert kinds(events) == ["ConnectionEnded"]
    assert isinstance(events[0], ConnectionEnded)
    assert "max_ping_strikes" in events[0].error.message
    [goaway] = peer.frames()
    assert goaway.error_code == ErrorCode.ENHANCE_YOUR_CALM
    assert (goaway.last_stream_id, goaway.additional_data) == (1, b"too_many_pings")


def test_headers_and_data_that_a_session_sends_take_the_strikes_away(engine: Engine) -> None:
    peer = wire.server(engine, min_ping_interval_s=INTERVAL_S)
    peer.tell(wire.headers(1))
    pinged(peer, 3)
    peer.session.send_headers(1, RESPONSE)
    pinged(peer, 3)
    peer.session.send_data(1, b"abcde")
    pinged(peer, 3)
    peer.session.send_data(1, b"", end_stream=False)
    pinged(peer, 3)
    peer.session.send_headers(1, TRAILERS, end_stream=True)
    pinged(peer, 3)
    assert kinds(peer.tell(wire.ping())) == ["ConnectionEnded"]


def test_by_default_a_caller_may_ping_as_often_as_its_budget_allows(server: Peer) -> None:
    for _ in range(5_000):
        server.now += 0.1
        server.tell(wire.ping())
        server.hear()
    assert_alive(server)


def test_answers_of_a_caller_to_our_own_pings_are_no_pings(engine: Engine) -> None:
    peer = wire.server(engine, min_ping_interval_s=INTERVAL_S)
    for _ in range(10):
        assert kinds(peer.tell(wire.ping(ack=True))) == ["PingAcknowledged"]
    pinged(peer, 3)


def test_an_upstream_may_ping_as_often_as_it_likes(engine: Engine) -> None:
    pinged(wire.client(engine, min_ping_interval_s=INTERVAL_S), 10)
