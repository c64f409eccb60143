"""What waits in the process is counted where it waits, and near the limit a session takes less."""

import pytest

from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.http2.buffered import MUCH_BYTES, PIECE_BYTES, Account, Buffered
from rawgrpc_proxy.http2.events import RequestReceived, StreamReset
from rawgrpc_proxy.net.connection import make_session
from tests.http2.peer import (
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS_ACK,
    Peer,
    data,
    headers,
    settings,
    window_update,
)

LIMIT = 1_000_000


@pytest.fixture
def buffered() -> Buffered:
    buffered = Buffered()
    for _ in range(2):
        buffered.open(LIMIT)
    return buffered


def a_server(engine: Engine, buffered: Buffered) -> Peer:
    """A session whose peer takes no DATA."""
    made = Http2Settings(engine=engine, connection_window_bytes=256 * 1024)
    peer = Peer(make_session(made, client_side=False, buffered=buffered))
    peer.tell(PREFACE, settings({INITIAL_WINDOW_SIZE: 0}), SETTINGS_ACK)
    peer.hear()
    return peer


class Origin:
    """Whoever the DATA is from."""

    def __init__(self, peer: Peer) -> None:
        self.account = peer.session.account

    def credit(self, size: int) -> None:
        """Not of interest."""


def answer(peer: Peer, stream_id: int, size: int, origin: Origin | None = None) -> None:
    peer.tell(headers(stream_id, end_stream=True))
    peer.session.send_headers(stream_id, [(b":status", b"200")])
    peer.session.send_data(stream_id, bytes(size), source=origin, credit=size)


def test_what_waits_is_counted_until_it_is_out(engine: Engine, buffered: Buffered) -> None:
    peer, other = a_server(engine, buffered), a_server(engine, buffered)
    answer(peer, 1, 10_000, Origin(other))
    account = peer.session.account
    assert buffered.bytes == account.to_peer == other.session.account.from_peer == 10_000 + PIECE_BYTES
    peer.tell(window_update(1, 4000))
    peer.take()
    assert buffered.bytes == 10_000 + PIECE_BYTES  # a bytearray that gets shorter keeps its memory
    peer.tell(window_update(1, 6000))
    peer.take()
    assert buffered.bytes == account.to_peer == other.session.account.from_peer == 0


@pytest.mark.parametrize("end", ["reset", "abandon"])
def test_what_will_never_go_out_is_counted_no_more(engine: Engine, buffered: Buffered, end: str) -> None:
    peer, other = a_server(engine, buffered), a_server(engine, buffered)
    for _ in range(3):
        answer(peer, 1, 1000, Origin(other))
    if end == "reset":
        peer.session.reset(1, 8)
    else:
        peer.session.abandon()
    assert buffered.bytes == peer.session.account.to_peer == other.session.account.from_peer == 0


def test_small_pieces_that_are_joined_count_as_one(engine: Engine, buffered: Buffered) -> None:
    peer = a_server(engine, buffered)
    peer.tell(headers(1, end_stream=True))
    peer.session.send_headers(1, [(b":status", b"200")])
    for _ in range(100):
        peer.session.send_data(1, b"x")
    assert buffered.bytes == 100 + PIECE_BYTES
    peer.tell(window_update(1, 100))
    peer.take()
    assert buffered.bytes == 0


def test_near_the_limit_whoever_holds_much_opens_no_streams_and_others_do(
    engine: Engine, buffered: Buffered
) -> None:
    peer, other = a_server(engine, buffered), a_server(engine, buffered)
    answer(peer, 1, 740_000)
    assert any(isinstance(event, RequestReceived) for event in peer.tell(headers(3)))
    answer(peer, 5, 20_000)
    (refused,) = peer.tell(headers(7))
    assert isinstance(refused, StreamReset)
    assert "max_buffered_bytes" in refused.reason
    assert peer.hear()[-1] == "RST_STREAM 7 REFUSED_STREAM"
    assert any(isinstance(event, RequestReceived) for event in other.tell(headers(1)))
    peer.session.reset(1, 8)
    assert any(isinstance(event, RequestReceived) for event in peer.tell(headers(9)))


def test_near_the_limit_the_connection_window_waits_for_what_has_come_through_it(
    engine: Engine, buffered: Buffered
) -> None:
    peer = a_server(engine, buffered)
    account = peer.session.account
    sent = b"".join(data(1, bytes(16_384)) for _ in range(4))
    peer.tell(headers(1))
    peer.tell(sent)
    assert peer.hear() == ["WINDOW_UPDATE 0 +65536"]
    account.add_arrived(800_000)
    peer.tell(sent)
    assert peer.hear() == []
    account.take_arrived(800_000)
    assert peer.session.credit(1, 16_384)
    assert peer.hear() == ["WINDOW_UPDATE 0 +65536"]


def test_that_much_has_waited_is_remembered_until_it_is_forgotten_and_is_no_alarm() -> None:
    alarms: list[int] = []
    seen: list[bool] = []
    buffered = Buffered()
    buffered.on_alarm = lambda: alarms.append(buffered.bytes)
    buffered.open(4 * MUCH_BYTES)
    for account in (Account(buffered), Account(buffered)):
        account.add(MUCH_BYTES - 1, None)
        seen.append(buffered.has_been_much)
        account.add(1, None)
        seen.append(buffered.has_been_much)
        account.take(MUCH_BYTES, None)
        seen.append(buffered.has_been_much)
        buffered.forget_much()
    assert seen == [False, True, True] * 2
    assert alarms == []
    Account(buffered).add(4 * MUCH_BYTES, None)
    assert buffered.has_been_much
    assert alarms == [4 * MUCH_BYTES]


def test_what_has_come_from_a_peer_is_not_what_it_does_not_take() -> None:
    """An upstream whose answers wait for callers is not to be ended for them."""
    buffered = Buffered()
    buffered.open(100)
    buffered.open(100)
    caller, upstream = Account(buffered), Account(buffered)
    caller.add(60, upstream)
    assert (caller.is_beyond_its_share, caller.its_peer_takes_too_little) == (True, True)
    assert (upstream.is_beyond_its_share, upstream.its_peer_takes_too_little) == (True, False)
