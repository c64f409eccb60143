"""What waits to go out: in order, in turns, within bounds, and with a receipt for whoever is owed credit."""

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.http2 import peer as wire
from tests.http2.peer import DEFAULT_WINDOW, LARGEST_WINDOW, REQUEST, RESPONSE, TRAILERS, Owed, Peer


def responding(engine: Engine, *streams: int, window: int = DEFAULT_WINDOW, **changes: int) -> Peer:
    """A server that has begun to answer these streams, of which each has this send window."""
    peer = wire.server(engine, peer_settings={wire.INITIAL_WINDOW_SIZE: window}, **changes)
    for stream_id in streams:
        peer.tell(wire.headers(stream_id, end_stream=True))
        peer.session.send_headers(stream_id, RESPONSE)
    peer.hear()
    return peer


# --- Ends ---


def test_an_end_rides_on_the_last_data(engine: Engine) -> None:
    server = responding(engine, 1, 3)

    server.session.send_data(1, b"hello", end_stream=True)
    server.session.send_data(3, bytes(20_000), end_stream=True)

    assert server.hear() == ["DATA 1 [5] END_STREAM", "DATA 3 [16384]", "DATA 3 [3616] END_STREAM"]


def test_trailers_wait_for_the_data_in_front_of_them(engine: Engine) -> None:
    server = responding(engine, 1, window=3)
    server.session.send_data(1, b"hello")
    server.session.send_headers(1, TRAILERS, end_stream=True)
    assert server.hear() == ["DATA 1 [3]"]
    assert server.session.take_closed() == []

    server.tell(wire.window_update(1, 2))

    assert server.hear() == ["DATA 1 [2]", "HEADERS 1 END_STREAM"]
    assert server.lists[1][-1] == TRAILERS
    assert server.session.take_closed() == [1]


@pytest.mark.parametrize("waiting", [True, False])
def test_empty_trailers_become_an_empty_data_frame(engine: Engine, waiting: bool) -> None:
    server = responding(engine, 1, window=3)
    server.session.send_data(1, b"hello" if waiting else b"")
    server.hear()

    server.session.send_headers(1, [], end_stream=True)
    server.tell(wire.window_update(1, 100))

    assert server.hear() == [*(["DATA 1 [2]"] if waiting else []), "DATA 1 [0] END_STREAM"]
    assert server.session.take_closed() == [1]


def test_an_end_is_never_invented(engine: Engine) -> None:
    server = responding(engine, 1)

    server.session.send_headers(1, [])
    server.session.send_data(1, b"still open")

    assert server.hear() == ["DATA 1 [10]"]


def test_a_header_block_enters_the_output_when_it_is_encoded(engine: Engine) -> None:
    """The trailers that wait are encoded after the headers that overtake them, as HPACK's table demands."""
    server = responding(engine, 1, 3, window=0)
    new = (b"x-new", b"1")
    server.session.send_data(1, b"x")
    server.session.send_headers(1, [*TRAILERS, new], end_stream=True)
    server.session.send_headers(3, [*TRAILERS, new], end_stream=True)

    assert server.hear() == ["HEADERS 3 END_STREAM"]
    server.tell(wire.window_update(1, 1))
    assert server.hear() == ["DATA 1 [1]", "HEADERS 1 END_STREAM"]
    assert server.lists[1][-1] == server.lists[3][-1] == [*TRAILERS, new]


# --- Receipts ---


def test_a_receipt_comes_with_the_bytes(engine: Engine) -> None:
    server, source = responding(engine, 1), Owed()

    server.session.send_data(1, b"hello", source=source, credit=9)

    assert server.receipts == []
    assert server.hear() == ["DATA 1 [5]"]
    assert server.receipts == [(source, 9)]
    assert source.credited == 0, "whoever writes gives the credit, once the bytes are with the socket"


def test_a_receipt_comes_with_the_last_of_the_bytes(engine: Engine) -> None:
    server, source = responding(engine, 1, window=3), Owed()

    server.session.send_data(1, b"hello", source=source, credit=9)

    assert server.hear() == ["DATA 1 [3]"]
    assert server.receipts == []
    server.tell(wire.window_update(1, 1))
    assert server.hear() == ["DATA 1 [1]"]
    assert server.receipts == []
    server.tell(wire.window_update(1, 1))
    assert server.hear() == ["DATA 1 [1]"]
    assert server.receipts == [(source, 9)]


def test_each_piece_has_its_receipt(engine: Engine) -> None:
    server, first, second = responding(engine, 1, window=6), Owed(), Owed()
    server.session.send_data(1, b"hello", source=first, credit=5)
    server.session.send_data(1, b"cruel", source=second, credit=6)
    server.session.send_data(1, b"world", source=first, credit=7)

    assert server.hear() == ["DATA 1 [5]", "DATA 1 [1]"]
    assert server.receipts == [(first, 5)]
    server.tell(wire.window_update(1, 100))
    assert server.hear() == ["DATA 1 [4]", "DATA 1 [5]"]
    assert server.receipts == [(first, 5), (second, 6), (first, 7)]


def test_data_without_a_source_needs_no_receipt(engine: Engine) -> None:
    server = responding(engine, 1, window=3)

    server.session.send_data(1, b"he")
    server.session.send_data(1, b"llo")
    server.tell(wire.window_update(1, 100))
    server.hear()

    assert server.receipts == []


def test_small_pieces_that_wait_go_out_in_one_frame(engine: Engine) -> None:
    server, source = responding(engine, 1, window=0), Owed()
    for _ in range(1000):
        server.session.send_data(1, b"x", source=source, credit=2)

    server.tell(wire.window_update(1, 1000))

    assert server.hear() == ["DATA 1 [1000]"]
    assert server.receipts == [(source, 2000)]


def test_a_reset_drops_what_waits_without_a_receipt(engine: Engine) -> None:
    server, source = responding(engine, 1, window=3), Owed()
    server.session.send_data(1, b"hello", source=source, credit=5)
    assert server.hear() == ["DATA 1 [3]"]

    server.session.reset(1, ErrorCode.CANCEL)
    server.tell(wire.window_update(1, 100))

    assert server.hear() == ["RST_STREAM 1 CANCEL"]
    assert server.receipts == []


@pytest.mark.parametrize("how", ["our reset", "the peer's reset", "an error of the stream"])
def test_a_stream_that_closes_loses_its_turn(engine: Engine, how: str) -> None:
    """Its DATA has not been looked at yet; the stream behind it has its turn all the same."""
    server, source = responding(engine, 1, 3, window=LARGEST_WINDOW), Owed()
    for stream_id in (1, 3):
        server.session.send_data(stream_id, bytes(20_000), source=source, credit=stream_id)

    if how == "our reset":
        server.session.reset(1, ErrorCode.CANCEL)
    else:
        server.tell(wire.rst_stream(1) if how == "the peer's reset" else wire.window_update(1, 0))

    assert [line for line in server.hear() if not line.startswith("RST")] == [
        "DATA 3 [16384]",
        "DATA 3 [3616]",
    ]
    assert server.receipts == [(source, 3)]


def test_what_was_said_before_a_reset_keeps_its_receipt(engine: Engine) -> None:
    """The bytes are in the output, and go out."""
    server, source = responding(engine, 1), Owed()
    server.session.send_data(1, b"hello", source=source, credit=5)

    server.tell(wire.rst_stream(1))

    assert server.hear() == ["DATA 1 [5]"]
    assert server.receipts == [(source, 5)]


def test_the_bytes_may_be_a_view_that_changes_after_they_were_queued(engine: Engine) -> None:
    server = responding(engine, 1, window=2)
    chunk = bytearray(b"hello")

    server.session.send_data(1, memoryview(chunk))
    chunk[:] = b"-----"
    server.tell(wire.window_update(1, 100))
    server.hear()

    assert server.bodies[1] == b"hello"


# --- Turns and bounds ---


def test_streams_with_data_take_turns(engine: Engine) -> None:
    server = responding(engine, 1, 3, window=LARGEST_WINDOW)
    server.tell(wire.window_update(0, 10**6))

    for stream_id in (1, 3):
        server.session.send_data(stream_id, bytes(50_000))

    assert server.hear() == [
        "DATA 1 [16384]",
        "DATA 3 [16384]",
        "DATA 1 [16384]",
        "DATA 3 [16384]",
        "DATA 1 [16384]",
        "DATA 3 [16384]",
        "DATA 1 [848]",
        "DATA 3 [848]",
    ]


def test_a_stream_keeps_its_turn_while_the_connection_window_is_closed(engine: Engine) -> None:
    server = responding(engine, 1, 3, 5, window=LARGEST_WINDOW)
    server.session.send_data(5, bytes(DEFAULT_WINDOW))
    server.hear()
    for stream_id in (1, 3):
        server.session.send_data(stream_id, bytes(40_000))
    assert server.hear() == []

    order = []
    for _ in range(4):
        server.tell(wire.window_update(0, 16_384))
        order += server.hear()

    assert order == ["DATA 1 [16384]", "DATA 3 [16384]"] * 2


def test_a_stream_without_a_window_is_passed_over(engine: Engine) -> None:
    server = responding(engine, 1, 3, window=10)
    server.session.send_data(1, bytes(20))
    server.session.send_data(3, b"hello")

    assert server.hear() == ["DATA 3 [5]", "DATA 1 [10]"]
    assert not server.session.wants_output


def test_data_beyond_max_output_bytes_stays_with_its_stream(engine: Engine) -> None:
    server = responding(engine, 1, window=LARGEST_WINDOW, max_output_bytes=32_768)
    server.tell(wire.window_update(0, 10**7))

    for _ in range(20):
        server.session.send_data(1, bytes(10_000))

    assert server.session.output.bytes <= 32_768 + 16_384 + 9
    total = 0
    while server.session.wants_output:
        taken = server.take()
        assert len(taken) <= 32_768 + 2 * (16_384 + 9)
        total += sum(len(frame.data) for frame in wire.parse(taken))
    assert total == 200_000


def test_output_that_is_full_takes_headers_and_ends_all_the_same(engine: Engine) -> None:
    server = responding(engine, 1, 3, 5, window=LARGEST_WINDOW, max_output_bytes=16_384)
    server.tell(wire.window_update(0, 10**7))
    server.session.send_data(1, bytes(16_384))

    server.session.send_headers(3, TRAILERS, end_stream=True)
    server.session.send_data(5, b"", end_stream=True)

    assert server.hear() == ["DATA 1 [16384]", "HEADERS 3 END_STREAM", "DATA 5 [0] END_STREAM"]


def test_order_on_a_stream_is_kept_when_the_output_is_full(engine: Engine) -> None:
    server = responding(engine, 1, window=LARGEST_WINDOW, max_output_bytes=16_384)
    server.tell(wire.window_update(0, 10**7))
    pieces = [bytes([number]) * size for number, size in enumerate([16_384, 1, 16_384, 3000, 2, 20_000, 7])]

    for piece in pieces:
        server.session.send_data(1, piece)
    server.session.send_headers(1, TRAILERS, end_stream=True)
    heard = []
    while server.session.wants_output:
        heard += server.hear()

    assert server.bodies[1] == b"".join(pieces)
    assert heard[-1] == "HEADERS 1 END_STREAM"


def test_taken_output_is_gone(server: Peer) -> None:
    server.session.ping(b"12345678")
    assert server.session.output.bytes == 17

    assert server.hear() == ["PING 12345678"]

    assert server.session.output.bytes == 0
    assert server.hear() == []


def test_a_client_sends_a_body_with_trailers(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.session.send_data(1, b"ask")
    client.session.send_headers(1, TRAILERS, end_stream=True)

    assert client.hear() == ["HEADERS 1", "DATA 1 [3]", "HEADERS 1 END_STREAM"]


@pytest.mark.parametrize("size", [100, 4096, 16_384])
def test_data_goes_out_unchanged_whatever_its_size_and_kind(engine: Engine, size: int) -> None:
    server = responding(engine, 1)
    body = bytes(number % 251 for number in range(size))

    server.session.send_data(1, body)
    server.session.send_data(1, memoryview(body))
    server.session.send_data(1, bytearray(body))  # type: ignore[arg-type]
    server.hear()

    assert server.bodies[1] == 3 * body


def test_headers_behind_data_that_waits_must_end_the_stream(engine: Engine) -> None:
    server = responding(engine, 1, window=3)
    server.session.send_data(1, b"hello")

    with pytest.raises(ValueError, match="have to end it"):
        server.session.send_headers(1, TRAILERS)

    server.session.send_data(1, b" world", end_stream=True)
    server.tell(wire.window_update(1, 100))
    assert server.hear()[-1].endswith("END_STREAM")
    assert server.bodies[1] == b"hello world"


def test_output_is_counted_by_what_it_is(engine: Engine) -> None:
    """Answers wait without a window that bounds them; DATA has one; request headers are nothing that is owed."""
    server, client = responding(engine, 1), wire.client(engine)

    server.session.send_data(1, b"hello")
    assert (server.session.output.data_bytes, server.session.output.owed_bytes) == (14, 0)
    server.tell(wire.ping())
    assert (server.session.output.data_bytes, server.session.output.owed_bytes) == (14, 17)
    client.session.open_stream(REQUEST)
    assert client.session.output.owed_bytes == 0
    assert client.session.output.bytes == client.session.output.opening_bytes > 9


def test_what_the_socket_does_not_take_counts_and_what_is_written_behind_it(server: Peer) -> None:
    session, account = server.session, server.session.account
    for stream_id in (1, 3, 5):
        server.tell(wire.headers(stream_id, end_stream=True))
    session.send_headers(1, wire.RESPONSE)
    assert account.to_peer == 0
    session.take_output()
    session.output_waits(50)
    assert account.to_peer == 50
    session.send_headers(3, wire.RESPONSE)
    with_headers = account.to_peer
    assert with_headers > 50
    session.send_data(3, bytes(1000))
    assert account.to_peer == with_headers + 1009
    session.output_written()
    assert account.to_peer == with_headers + 1009 - 50
    session.take_output()
    assert account.to_peer == account.buffered.bytes == 0
    session.output_waits(70)
    session.send_headers(5, wire.RESPONSE)
    session.abandon()
    assert account.to_peer == account.buffered.bytes == 0
