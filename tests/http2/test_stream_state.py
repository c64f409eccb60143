"""DATA that waits on a stream: small pieces are joined, and nobody's credit is lost on the way."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.http2.stream_state import PendingData, Receiving, Sending, StreamState
from tests.http2.peer import Owed


def waiting(state: StreamState) -> list[PendingData]:
    return list(state.pending or ())


def pieces(state: StreamState) -> list[tuple[int, int]]:
    """Length and credit of what waits."""
    return [(len(piece.data), piece.credit) for piece in waiting(state)]


def test_a_new_stream_waits_for_headers_and_may_send() -> None:
    state = StreamState(1, send_window=7, receive_window=9)

    assert state.receiving is Receiving.HEADERS
    assert state.sending is Sending.OPEN
    assert (state.send_window, state.receive_window) == (7, 9)
    assert not state.pending


def test_small_pieces_of_one_source_are_joined() -> None:
    state, source = StreamState(1), Owed()

    for _ in range(10):
        state.hold(b"x" * 100, source, 101)

    assert pieces(state) == [(1000, 1010)]


@pytest.mark.parametrize(("size", "joined"), [(2047, True), (2048, False)])
def test_a_piece_is_joined_when_it_is_shorter_than_2048_bytes(size: int, joined: bool) -> None:
    state, source = StreamState(1), Owed()
    state.hold(b"x", source, 1)

    state.hold(bytes(size), source, size)

    assert pieces(state) == ([(1 + size, 1 + size)] if joined else [(1, 1), (size, size)])


@pytest.mark.parametrize(("waiting", "joined"), [(8191, True), (8192, False)])
def test_pieces_are_joined_until_8192_bytes_are_together(waiting: int, joined: bool) -> None:
    state, source = StreamState(1), Owed()
    state.hold(bytes(waiting), source, waiting)

    state.hold(b"x", source, 1)

    assert pieces(state) == ([(waiting + 1, waiting + 1)] if joined else [(waiting, waiting), (1, 1)])


def test_pieces_of_different_sources_stay_apart() -> None:
    state = StreamState(1)

    state.hold(b"x", Owed(), 1)
    state.hold(b"y", Owed(), 1)
    state.hold(b"z", None, 0)

    assert pieces(state) == [(1, 1), (1, 1), (1, 0)]


@pytest.mark.parametrize("waiting", [1, 100_000])
def test_an_end_by_itself_rides_on_the_piece_before_it(waiting: int) -> None:
    """An empty piece of its own would be a frame of its own, and wait for a window that it does not need."""
    state = StreamState(1)
    state.hold(bytes(waiting), Owed(), waiting)

    state.hold(b"", None, 0)

    assert pieces(state) == [(waiting, waiting)]


def test_the_credit_of_an_empty_piece_is_not_lost() -> None:
    """Padding has credit and no data."""
    state, source, other = StreamState(1), Owed(), Owed()
    state.hold(bytes(10_000), source, 10_000)

    state.hold(b"", source, 7)
    state.hold(b"", other, 8)

    assert pieces(state) == [(10_000, 10_007), (0, 8)]


def test_a_first_piece_may_be_empty() -> None:
    state = StreamState(1)

    state.hold(b"", None, 0)

    assert pieces(state) == [(0, 0)]


def test_the_bytes_are_copied() -> None:
    state = StreamState(1)
    chunk = bytearray(b"hello")

    state.hold(memoryview(chunk), None, 0)
    chunk[:] = b"-----"

    assert waiting(state)[0].data == b"hello"


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy does not tell the size of objects")
def test_a_peer_that_sends_single_bytes_costs_little_more_than_the_bytes() -> None:
    state, source = StreamState(1), Owed()
    size = 256 * 1024

    for _ in range(size):
        state.hold(b"x", source, 1)

    held = sum(
        sys.getsizeof(part)
        for piece in waiting(state)
        for part in (piece, piece.data, piece.source, piece.credit)
    )
    assert sum(length for length, _ in pieces(state)) == size
    assert held < 1.5 * size


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2047, 2048, 9000]), st.integers(0, 300), st.integers(0, 2))))
def test_no_byte_and_no_credit_is_lost_or_reordered(held: list[tuple[int, int, int]]) -> None:
    state, sources = StreamState(1), (Owed(), Owed(), Owed())
    wanted = b""
    owed: dict[int, int] = {}

    for index, (size, credit, who) in enumerate(held):
        piece = bytes([index % 256]) * size
        wanted += piece
        owed[who] = owed.get(who, 0) + credit
        state.hold(piece, sources[who], credit)

    assert b"".join(piece.data for piece in waiting(state)) == wanted
    for who, credit in owed.items():
        assert sum(piece.credit for piece in waiting(state) if piece.source is sources[who]) == credit


def test_what_joins_a_piece_of_which_a_part_is_out_follows_what_is_left() -> None:
    state, source = StreamState(1), Owed()
    state.hold(b"abcdef", source, 6)
    (piece,) = waiting(state)
    for out, more, left in ((4, b"gh", b"efgh"), (3, b"i", b"hi")):
        piece.sent += out
        state.hold(more, source, len(more))
        assert piece.data[piece.sent :] == left
    assert (waiting(state), piece.credit, piece.sent) == ([piece], 9, 0)
