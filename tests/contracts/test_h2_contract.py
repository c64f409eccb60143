"""h2 4.4: what it does to a connection when a peer, or the caller, does something unusual."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PingReceived,
    PushedStreamReceived,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import (
    DenialOfServiceError,
    FlowControlError,
    FrameTooLargeError,
    InvalidBodyLengthError,
    NoSuchStreamError,
    ProtocolError,
    StreamClosedError,
    StreamIDTooLowError,
    TooManyStreamsError,
)
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream
from hpack import Decoder, Encoder, HeaderTuple
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from tests.contracts import wire

REQUEST, RESPONSE, TRAILERS = wire.REQUEST, wire.RESPONSE, wire.TRAILERS
LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535


# --- GOAWAY ---


def test_receiving_goaway_closes_h2_and_drops_pending_output() -> None:
    """GOAWAY means "no new streams"; for h2 it is the end, with its output emptied and open streams cut off.

    Every upstream's MAX_CONNECTION_AGE would kill the calls in flight. The proxy diverts inbound GOAWAY
    before h2 sees it, and keeps count of the last stream id itself.
    """
    conn = wire.client_with_request()
    conn.send_data(1, b"on its way")

    events = conn.receive_data(wire.goaway())

    assert wire.kinds(events) == ["ConnectionTerminated"]
    assert conn.data_to_send() == b""
    with pytest.raises(ProtocolError):
        conn.send_data(1, b"more")


def test_after_receiving_goaway_the_frames_of_open_streams_are_connection_errors() -> None:
    """The response that the peer promised to finish by its last stream id can no longer be read."""
    conn = wire.client_with_request(end_stream=True)
    conn.receive_data(wire.goaway(last_stream_id=1))

    with pytest.raises(ProtocolError):
        conn.receive_data(wire.headers(1, RESPONSE))


def test_sending_goaway_through_h2_closes_it_but_keeps_pending_output() -> None:
    """``close_connection`` is as final as receiving a GOAWAY, but what was pending goes out before it.

    The proxy writes GOAWAY frames itself, and calls ``close_connection`` never.
    """
    conn = wire.server_with_request()
    conn.send_headers(1, RESPONSE)

    conn.close_connection()

    assert [type(frame) for frame in wire.parse(conn.data_to_send())] == [HeadersFrame, GoAwayFrame]
    with pytest.raises(ProtocolError):
        conn.send_data(1, b"more")
    with pytest.raises(ProtocolError):
        conn.receive_data(wire.data(1, b"more"))


def test_streams_that_a_goaway_refused_still_open_when_h2_did_not_see_it() -> None:
    """A peer that ignores a GOAWAY which we wrote ourselves goes on opening streams, and h2 takes them.

    The proxy ignores streams above the id in its own GOAWAY.
    """
    conn = wire.server_with_request(end_stream=True)

    assert wire.kinds(conn.receive_data(wire.headers(3, REQUEST))) == ["RequestReceived"]


# --- Reading: chunks, lengths, the preface ---


def test_events_of_good_frames_are_lost_when_a_later_frame_in_the_chunk_is_bad() -> None:
    """``receive_data`` raises instead of returning what it had: a response may vanish behind one bad frame.

    The proxy feeds h2 one frame at a time.
    """
    ping, bad = wire.ping(), wire.continuation(1)
    together, apart = wire.server(), wire.server()

    with pytest.raises(ProtocolError):
        together.receive_data(ping + bad)

    assert wire.kinds(apart.receive_data(ping)) == ["PingReceived"]
    with pytest.raises(ProtocolError):
        apart.receive_data(bad)


def test_an_oversized_frame_is_buffered_whole_before_its_length_is_checked() -> None:
    """The length stands in the first three bytes, yet h2 complains after the last: up to 16 MB a connection.

    The proxy checks the nine bytes of each frame header itself.
    """
    conn = wire.server()
    oversized = wire.data(1, bytes(100_000))

    assert conn.receive_data(oversized[:-1]) == []
    with pytest.raises(FrameTooLargeError):
        conn.receive_data(oversized[-1:])


def test_a_bad_preface_raises_without_a_goaway() -> None:
    """h2 says nothing to such a peer.

    The proxy looks at the preface itself, and answers HTTP/1.1 in HTTP/1.1.
    """
    conn = H2Connection(wire.server().config)

    with pytest.raises(ProtocolError, match="preamble"):
        conn.receive_data(b"GET / HTTP/1.1\r\n")

    assert conn.data_to_send() == b""


def test_the_first_frame_need_not_be_settings() -> None:
    """RFC 9113 section 3.4 wants SETTINGS first; h2 does not look.

    The proxy checks the type of the first frame.
    """
    conn = H2Connection(wire.server().config)
    conn.initiate_connection()

    events = conn.receive_data(wire.PREFACE + wire.headers(1, REQUEST))

    assert wire.kinds(events) == ["RequestReceived"]


def test_every_received_frame_is_formatted_for_a_log_that_nobody_reads() -> None:
    """``repr(frame)`` is evaluated before the logger is asked, and turns all of a DATA frame's body into hex.

    That is more than half of what h2 takes to receive a frame of 16 KB, and no option turns it off.
    """
    conn = wire.server_with_request()

    with wire.counted_calls(Frame.__repr__) as count:
        conn.receive_data(wire.data(1, bytes(16_000)))

    assert count.total() == 1


# --- Fields: what is validated, and at whose cost ---

INVALID_VALUES = [b" leading", b"trailing ", b"\ttab", b"a\x00b", b"a\rb", b"a\nb"]


@pytest.mark.parametrize("value", INVALID_VALUES)
def test_an_invalid_field_value_is_a_connection_error(value: bytes) -> None:
    """One string from one backend handler kills every call on the shared connection.

    RFC 9113 section 8.1.1 calls it a stream error. The proxy turns h2's validation off and resets the stream
    itself.
    """
    conn = wire.client(checks=True)
    for stream_id in (1, 3):
        conn.send_headers(stream_id, REQUEST, end_stream=True)
    conn.clear_outbound_data_buffer()

    with pytest.raises(ProtocolError):
        conn.receive_data(wire.headers(1, [*RESPONSE, (b"x-detail", value)]))

    assert wire.goaways(conn.data_to_send()) == [ErrorCodes.PROTOCOL_ERROR]
    with pytest.raises(ProtocolError):
        conn.receive_data(wire.headers(3, RESPONSE))


@pytest.mark.parametrize("value", INVALID_VALUES)
def test_with_validation_off_an_invalid_field_value_is_passed_on(value: bytes) -> None:
    """The other side of the bargain: everything not refused by the proxy itself is forwarded."""
    (event,) = wire.client_with_request().receive_data(wire.headers(1, [*RESPONSE, (b"x-detail", value)]))

    assert isinstance(event, ResponseReceived)
    assert (b"x-detail", value) in event.headers


GAPS: list[tuple[bytes, bytes]] = [
    (b":path", b"a.B/C"),
    (b":path", b"//a"),
    (b":path", b"/a/../b"),
    (b":path", b"*"),
    (b":path", b"http://e/a"),
    (b":path", b"/a/b?c#d"),
    (b":path", b"/\x01\x7f\xff"),
    (b":method", b"BREW"),
    (b":method", b"post"),
    (b":method", b"GE T"),
    (b":method", b""),
    (b":scheme", b"javascript"),
    (b":scheme", b""),
    (b":authority", b"u@h"),
    (b":authority", b""),
    (b":authority", b"h/p?q"),
    (b"x-control", b"\x01\x1f\x7f"),
    (b"x-high", b"\x80\xff"),
    (b"x(y)", b"a delimiter in a name"),
]


@pytest.mark.parametrize(("name", "value"), GAPS)
def test_validation_lets_through(name: bytes, value: bytes) -> None:
    """With all its checks on, h2 takes any method, any scheme, and any path that is not empty.

    A path without its leading slash slips past rules written as ``/package.Service/``. A gRPC path is
    ``/service/method``: the proxy refuses everything else, and checks method, scheme, authority and every
    byte.
    """
    (event,) = wire.server(checks=True).receive_data(wire.headers(1, wire.request_with(name, value)))

    assert isinstance(event, RequestReceived)
    assert (name, value) in event.headers


REFUSED: dict[str, list[wire.Header]] = {
    "an upper case name": [*REQUEST, (b"Upper", b"x")],
    "an empty name": [*REQUEST, (b"", b"x")],
    "a pseudo-field after a field": [*REQUEST, (b":path", b"/late")],
    "an unknown pseudo-field": [(b":unknown", b"x"), *REQUEST],
    "a pseudo-field twice": [REQUEST[0], *REQUEST],
    "a request with a status": [(b":status", b"200"), *REQUEST],
    "no method": REQUEST[1:],
    "an empty path": wire.request_with(b":path", b""),
    "neither authority nor host": [field for field in REQUEST if field[0] != b":authority"],
    "authority and host that differ": [*REQUEST, (b"host", b"other.example")],
    "a connection field": [*REQUEST, (b"connection", b"close")],
    "transfer-encoding": [*REQUEST, (b"transfer-encoding", b"chunked")],
    "te other than trailers": [field for field in REQUEST if field[0] != b"te"] + [(b"te", b"gzip")],
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_only_validation_refuses(fields: list[wire.Header]) -> None:
    """What h2 checks when asked, as a connection error, and passes on with its validation off.

    The proxy's own validation must hold at least this list.
    """
    with pytest.raises(ProtocolError):
        wire.server(checks=True).receive_data(wire.headers(1, fields))

    (event,) = wire.server(checks=False).receive_data(wire.headers(1, fields))
    assert isinstance(event, RequestReceived)
    assert event.headers == fields


def test_with_validation_off_pseudo_fields_may_stand_in_trailers() -> None:
    """And a second ``:path`` in them would be forwarded. The proxy refuses pseudo-fields in trailers."""
    events = wire.server_with_request().receive_data(wire.headers(1, REQUEST, end_stream=True))

    assert isinstance(events[0], TrailersReceived)
    assert events[0].headers == REQUEST


def test_with_validation_off_a_response_needs_no_status() -> None:
    """``:status`` missing, or ``abc``: it is a ResponseReceived all the same. The proxy checks the status."""
    for fields in ([(b"server", b"x")], [(b":status", b"abc")]):
        (event,) = wire.client_with_request().receive_data(wire.headers(1, fields))
        assert isinstance(event, ResponseReceived)


def test_with_validation_off_a_request_whose_status_begins_with_1_is_still_a_connection_error() -> None:
    """h2 looks for informational responses in every list of fields, on servers too, whatever is configured.

    The proxy has checked the pseudo-fields of a request before h2 sees them.
    """
    conn = wire.server()

    with pytest.raises(ProtocolError, match="RECV_INFORMATIONAL_HEADERS"):
        conn.receive_data(wire.headers(1, [(b":status", b"100"), *REQUEST]))


def test_with_normalizing_off_cookies_stay_apart_and_in_place() -> None:
    """h2 joins cookie fields and moves them to the end by default; the proxy forwards fields as they came."""
    fields = [*REQUEST, (b"cookie", b"a=1"), (b"x-between", b"1"), (b"cookie", b"b=2")]

    (joined,) = wire.server(checks=True).receive_data(wire.headers(1, fields))
    (kept,) = wire.server(checks=False).receive_data(wire.headers(1, fields))

    assert isinstance(joined, RequestReceived)
    assert joined.headers[-1] == (b"cookie", b"a=1; b=2")
    assert isinstance(kept, RequestReceived)
    assert kept.headers == fields


def test_with_normalizing_off_credentials_enter_the_dynamic_table() -> None:
    """h2 marks ``authorization`` as never indexed only while normalizing.

    The proxy passes on the marks that senders set.
    """
    fields = [*REQUEST, (b"authorization", b"secret")]
    normalizing, plain = wire.client(checks=True), wire.client(checks=False)

    normalizing.send_headers(1, fields)
    plain.send_headers(1, fields)

    assert (b"authorization", b"secret") not in normalizing.encoder.header_table.dynamic_entries
    assert (b"authorization", b"secret") in plain.encoder.header_table.dynamic_entries


def test_the_decoder_is_a_seam_where_a_list_of_fields_can_be_put_in() -> None:
    """h2 asks ``conn.decoder`` once for each HEADERS frame and works on whatever list that returns.

    The proxy decodes and checks header blocks first, then feeds h2 an empty block and has the decoder answer
    with the list, less content-length. So nothing in it can become a connection error.
    """

    class ReadyFields(Decoder):
        asked: list[tuple[bytes, bool]]

        def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
            self.asked.append((data, raw))
            return [HeaderTuple(name, value) for name, value in REQUEST]

    conn = wire.server()
    conn.decoder = decoder = ReadyFields()
    decoder.asked = []

    (event,) = conn.receive_data(wire.headers_of_block(1, b""))

    assert isinstance(event, RequestReceived)
    assert event.headers == REQUEST
    assert decoder.asked == [(b"", True)]


def test_the_encoder_is_a_seam_where_huffman_can_be_turned_off() -> None:
    """h2 asks ``conn.encoder`` for one block per list of fields, and never says anything about Huffman."""

    class WithoutHuffman(Encoder):
        def encode(
            self,
            headers: object,
            huffman: bool = True,
        ) -> bytes:
            assert huffman, "h2 passes the default"
            return super().encode(headers, huffman=False)  # type: ignore[arg-type]

    conn = wire.client()
    conn.encoder = WithoutHuffman()

    conn.send_headers(1, REQUEST)

    assert b"/helloworld.Greeter/SayHello" in conn.data_to_send()


# --- content-length ---


@pytest.mark.parametrize("value", [b"", b"+5", b"-1", b"5,5", b" 5", b"0x5", b"9" * 5_000])
def test_with_validation_off_a_malformed_content_length_is_still_a_connection_error(value: bytes) -> None:
    """Its parsing is not part of validation, and runs on each list of fields whatever is turned off.

    RFC 9113 section 8.1.1 calls it a stream error. The proxy keeps content-length from h2 and checks it
    itself.
    """
    conn = wire.server()

    with pytest.raises(ProtocolError, match="content-length"):
        conn.receive_data(wire.headers(1, [*REQUEST, (b"content-length", value)]))

    assert wire.goaways(conn.data_to_send()) == [ErrorCodes.PROTOCOL_ERROR]


def test_two_content_lengths_that_differ_are_a_connection_error() -> None:
    """Equal ones pass, both of them."""
    lengths = [(b"content-length", b"1"), (b"content-length", b"2")]

    with pytest.raises(ProtocolError, match="Conflicting"):
        wire.server().receive_data(wire.headers(1, [*REQUEST, *lengths]))

    assert wire.server().receive_data(wire.headers(1, [*REQUEST, lengths[0], lengths[0]]))


@pytest.mark.parametrize(("payload", "end_stream"), [(b"sixsix", False), (b"four", True), (b"", True)])
def test_a_body_that_contradicts_its_content_length_is_a_connection_error(
    payload: bytes, *, end_stream: bool
) -> None:
    """Too much at any time, or too little at END_STREAM on DATA."""
    conn = wire.server()
    conn.receive_data(wire.headers(1, [*REQUEST, (b"content-length", b"5")]))

    with pytest.raises(InvalidBodyLengthError):
        conn.receive_data(wire.data(1, payload, end_stream=end_stream))

    assert wire.goaways(conn.data_to_send()) == [ErrorCodes.PROTOCOL_ERROR]


@pytest.mark.parametrize("checks", [True, False])
def test_content_length_with_end_stream_on_headers_is_not_checked(*, checks: bool) -> None:
    """A promised body that never comes passes, with validation and without. The proxy checks it."""
    conn = wire.server(checks=checks)

    events = conn.receive_data(wire.headers(1, [*REQUEST, (b"content-length", b"5")], end_stream=True))

    assert wire.kinds(events) == ["RequestReceived", "StreamEnded"]


@pytest.mark.parametrize("checks", [True, False])
def test_content_length_is_not_checked_when_trailers_end_the_stream(*, checks: bool) -> None:
    """Only END_STREAM on DATA compares the two; gRPC responses end with trailers.

    The proxy compares itself.
    """
    conn = wire.server(checks=checks)
    conn.receive_data(wire.headers(1, [*REQUEST, (b"content-length", b"5")]))
    conn.receive_data(wire.data(1, b"four"))

    events = conn.receive_data(wire.headers(1, [(b"x-trailer", b"1")], end_stream=True))

    assert wire.kinds(events) == ["TrailersReceived", "StreamEnded"]


def test_a_malformed_content_length_in_trailers_is_a_connection_error() -> None:
    """Trailers are parsed for it as well."""
    with pytest.raises(ProtocolError, match="content-length"):
        wire.server_with_request().receive_data(wire.headers(1, [(b"content-length", b"x")], end_stream=True))


def test_a_response_to_head_may_have_no_data_whatever_its_content_length() -> None:
    """h2 remembers the method it has sent and expects no body then; one byte of it is a connection error.

    gRPC has no HEAD, and the proxy forwards none.
    """
    conn = wire.client()
    conn.send_headers(1, [(b":method", b"HEAD"), *REQUEST[1:]], end_stream=True)
    conn.receive_data(wire.headers(1, RESPONSE))

    with pytest.raises(InvalidBodyLengthError):
        conn.receive_data(wire.data(1, b"x"))


# --- The order of frames on a stream ---


def test_trailers_without_end_stream_are_a_connection_error_on_both_sides() -> None:
    """A second HEADERS that does not end the stream, from either peer.

    RFC 9113 section 8.1 asks for a stream error.

    The proxy looks at the flags itself and resets the one stream, without asking h2.
    """
    for conn in (wire.server_with_request(), wire.client_with_response()):
        with pytest.raises(ProtocolError, match="END_STREAM"):
            conn.receive_data(wire.headers(1, TRAILERS))
        assert wire.goaways(conn.data_to_send()) == [ErrorCodes.PROTOCOL_ERROR]


def test_data_before_response_headers_is_a_connection_error() -> None:
    """The client side of it; informational responses do not count as headers."""
    conn = wire.client_with_request(end_stream=True)
    conn.receive_data(wire.headers(1, [(b":status", b"103")]))

    with pytest.raises(ProtocolError, match="before headers"):
        conn.receive_data(wire.data(1, b"early"))

    assert wire.goaways(conn.data_to_send()) == [ErrorCodes.PROTOCOL_ERROR]


def test_an_informational_response_is_an_event_of_its_own_and_may_come_often() -> None:
    """Nothing bounds their number. The proxy drops them before h2 sees them."""
    conn = wire.client_with_request(end_stream=True)

    for _ in range(100):
        (event,) = conn.receive_data(wire.headers(1, [(b":status", b"103")]))
        assert isinstance(event, InformationalResponseReceived)

    assert wire.kinds(conn.receive_data(wire.headers(1, RESPONSE))) == ["ResponseReceived"]


@pytest.mark.parametrize("end_stream", [True, False])
def test_an_informational_response_after_the_final_one_is_a_connection_error(*, end_stream: bool) -> None:
    """So are trailers with ``:status: 1xx`` in them."""
    conn = wire.client_with_response(end_stream=True)

    with pytest.raises(ProtocolError):
        conn.receive_data(wire.headers(1, [(b":status", b"100")], end_stream=end_stream))


def test_an_informational_response_that_ends_the_stream_is_a_connection_error() -> None:
    """RFC 9113 section 8.1.1 makes it malformed, a stream error."""
    with pytest.raises(ProtocolError, match="informational"):
        wire.client_with_request().receive_data(wire.headers(1, [(b":status", b"100")], end_stream=True))


@pytest.mark.parametrize("frame", [wire.data(1, b"late"), wire.headers(1, TRAILERS, end_stream=True)])
def test_frames_after_the_peers_end_stream_reset_the_stream_with_a_local_event(frame: bytes) -> None:
    """On a half-closed stream h2 writes RST_STREAM(STREAM_CLOSED) by itself and reports it as a local reset.

    A peer can so make us reset its streams without ever resetting one (MadeYouReset, CVE-2025-8671). The
    proxy counts StreamReset events with ``remote_reset=False`` in the same bucket as the peer's own resets.
    """
    conn = wire.server_with_request(end_stream=True)

    (event,) = conn.receive_data(frame)

    assert isinstance(event, StreamReset)
    assert (event.error_code, event.remote_reset) == (ErrorCodes.STREAM_CLOSED, False)
    assert wire.resets(conn.data_to_send()) == [(1, ErrorCodes.STREAM_CLOSED)]


def test_empty_inbound_trailers_are_legal() -> None:
    """An empty header block that ends the stream is a TrailersReceived with no fields."""
    events = wire.server_with_request().receive_data(wire.headers(1, [], end_stream=True))

    assert isinstance(events[0], TrailersReceived)
    assert events[0].headers == []


def test_sending_empty_trailers_raises_an_index_error_and_spoils_the_stream() -> None:
    """h2 slices the encoded block into frames and takes the first of none.

    The stream then counts its trailers as sent, and cannot be ended but by a reset. The proxy forwards empty
    trailers as an empty DATA frame with END_STREAM.
    """
    conn = wire.client_with_request()

    with pytest.raises(IndexError):
        conn.send_headers(1, [], end_stream=True)

    with pytest.raises(ProtocolError):
        conn.send_headers(1, TRAILERS, end_stream=True)


def test_an_empty_request_is_passed_on_when_validation_is_off() -> None:
    """A HEADERS frame without a single field opens a stream like any other."""
    (event,) = wire.server().receive_data(wire.headers(1, []))

    assert isinstance(event, RequestReceived)
    assert event.headers == []


def test_header_blocks_may_come_in_64_frames_but_not_in_65() -> None:
    """The only limit on CONTINUATION, with 16 KB in each; HEADERS counts as one of them.

    The proxy allows 8 frames and 64 KiB.
    """
    start = wire.headers_of_block(1, b"", end_headers=False)
    encoded = wire.block(REQUEST)

    conn = wire.server()
    conn.receive_data(start + wire.continuation(1) * 62)
    assert wire.kinds(conn.receive_data(wire.continuation(1, encoded, end_headers=True))) == [
        "RequestReceived"
    ]

    conn = wire.server()
    conn.receive_data(start + wire.continuation(1) * 63)
    with pytest.raises(ProtocolError, match="continuation"):
        conn.receive_data(wire.continuation(1, encoded, end_headers=True))


def test_only_the_size_of_a_header_list_is_limited() -> None:
    """Two kilobytes of wire make 1,900 fields, and that is no error at all. The proxy allows 100."""
    conn = wire.server()
    literal = b"\x40\x01x\x00"  # enters the table
    indexed = literal + b"\xbe" * 1_900

    (event,) = conn.receive_data(wire.headers_of_block(1, indexed))

    assert isinstance(event, RequestReceived)
    assert len(event.headers) == 1_901


def test_a_header_list_above_the_decoders_limit_is_a_connection_error() -> None:
    """It must be: the rest of the block is not decoded.

    The limit in force is the decoder's, 64 KiB unless set.
    """
    conn = wire.server()

    with pytest.raises(DenialOfServiceError):
        conn.receive_data(wire.headers_of_block(1, b"\x40\x01x\x00" + b"\xbe" * 1_985))

    assert wire.goaways(conn.data_to_send()) == [ErrorCodes.ENHANCE_YOUR_CALM]


# --- Floods: nothing is counted ---

FLOODS: dict[str, tuple[bytes, int]] = {
    # the frame, and the bytes of answer that each one leaves in h2's output
    "PING": (wire.ping(), 17),
    "SETTINGS": (wire.settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535}), 9),
    "SETTINGS acknowledgements": (wire.settings_ack(), 0),
    "PRIORITY": (wire.priority(1), 0),
    "PRIORITY of streams that do not exist": (wire.priority(999), 0),
    "WINDOW_UPDATE of the connection": (wire.window_update(0, 1), 0),
    "WINDOW_UPDATE of a stream": (wire.window_update(1, 1), 0),
    "RST_STREAM of streams that never existed": (wire.reset(999), 0),
    "empty DATA": (wire.data(1), 0),
    "frames of unknown types": (b"\x00\x00\x00\xee\x00\x00\x00\x00\x01", 0),
}


@pytest.mark.parametrize(("frame", "answer"), FLOODS.values(), ids=FLOODS)
def test_nothing_limits_a_flood_of(frame: bytes, answer: int) -> None:
    """Five thousand are as welcome as one, and answers pile up in h2's output until somebody takes them.

    The proxy has a budget for each kind that is answered or costs something.
    """
    conn = wire.server_with_request()

    for _ in range(50):
        conn.receive_data(frame * 100)

    assert len(conn.data_to_send()) == 5_000 * answer
    assert not wire.is_dead(conn)


def test_nothing_limits_streams_that_are_opened_and_reset() -> None:
    """Rapid reset (CVE-2023-44487): the stream limit is never reached, because no stream is open for long."""
    conn = wire.server(local={SettingCodes.MAX_CONCURRENT_STREAMS: 1})

    for stream_id in range(1, 2_000, 2):
        events = conn.receive_data(wire.headers(stream_id, REQUEST) + wire.reset(stream_id))
        assert wire.kinds(events) == ["RequestReceived", "StreamReset"]


def test_a_ping_is_acknowledged_by_h2_itself() -> None:
    """The answer is in the output when the event arrives.

    The proxy answers itself, so h2 gets to see no PING.
    """
    conn = wire.server()

    (event,) = conn.receive_data(wire.ping(b"payload!"))

    assert isinstance(event, PingReceived)
    (ack,) = wire.parse(conn.data_to_send())
    assert "ACK" in ack.flags


# --- Too many streams ---


def test_too_many_streams_is_a_connection_error_and_not_a_refused_stream() -> None:
    """A client that has not read our SETTINGS yet may open too many by right, and loses all of its calls.

    The proxy gives h2 a limit that is never reached, and refuses streams itself.
    """
    conn = wire.server(local={SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    conn.receive_data(wire.headers(1, REQUEST))

    with pytest.raises(TooManyStreamsError):
        conn.receive_data(wire.headers(3, REQUEST))

    output = conn.data_to_send()
    assert wire.goaways(output) == [ErrorCodes.PROTOCOL_ERROR]
    assert wire.resets(output) == []


def test_at_the_stream_limit_late_trailers_of_a_forgotten_stream_are_too_many_streams() -> None:
    """The count is made for every stream h2 no longer holds, before it looks whether the stream is new."""
    conn = wire.server(local={SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    conn.receive_data(wire.headers(1, REQUEST))
    conn.reset_stream(1)
    conn.receive_data(wire.headers(3, REQUEST))

    with pytest.raises(TooManyStreamsError):
        conn.receive_data(wire.headers(1, TRAILERS, end_stream=True))


def test_a_limit_lowered_by_the_peer_leaves_open_streams_alone() -> None:
    """Even to zero. New streams raise before anything is written, so the proxy can queue and try again."""
    conn = wire.client_with_request()
    conn.receive_data(wire.settings({SettingCodes.MAX_CONCURRENT_STREAMS: 0}))
    conn.clear_outbound_data_buffer()

    conn.send_data(1, b"goes on")
    with pytest.raises(TooManyStreamsError):
        conn.send_headers(3, REQUEST)

    assert [type(frame) for frame in wire.parse(conn.data_to_send())] == [DataFrame]
    assert conn.get_next_available_stream_id() == 3


# --- SETTINGS ---


def test_unknown_settings_are_kept_for_ever() -> None:
    """Each unknown id costs six bytes of wire and close to a kilobyte here, for the life of the connection.

    The proxy strips unknown ids before h2 sees them, and closes on more than 32 entries in a frame.
    """
    conn = wire.server()
    known = len(conn.remote_settings)

    for first in range(0x1000, 0x1000 + 10_000, 1_000):
        conn.receive_data(wire.settings(dict.fromkeys(range(first, first + 1_000), 1)))
    conn.receive_data(wire.settings())

    assert len(conn.remote_settings) == known + 10_000


def test_hyperframe_writes_only_the_low_byte_of_a_setting_id() -> None:
    """Parsing knows all sixteen bits: an unknown 0x0104 that is written again becomes INITIAL_WINDOW_SIZE.

    The proxy never serializes settings whose ids it does not know.
    """
    (frame,) = wire.parse(wire.settings({0x0104: 7}))
    assert isinstance(frame, SettingsFrame)
    assert frame.settings == {0x0104: 7}

    assert frame.serialize() == wire.settings({SettingCodes.INITIAL_WINDOW_SIZE: 7})


def test_each_later_settings_frame_looks_at_every_setting_that_was_kept() -> None:
    """An empty SETTINGS frame is answered by walking over everything the peer has ever sent."""

    def lines(kept: int) -> int:
        conn = wire.server()
        conn.receive_data(wire.settings(dict.fromkeys(range(0x1000, 0x1000 + kept), 1)))
        with wire.counted_lines(Settings.acknowledge) as count:
            conn.receive_data(wire.settings())
        return count.total()

    assert lines(2_000) - lines(1_000) >= 1_000
    assert lines(1_000) - lines(0) >= 1_000


def test_the_peers_header_table_size_reaches_the_encoder_unclamped() -> None:
    """2^32 - 1 is a table that never evicts, and its search is linear. The proxy clamps the value to 4096."""
    conn = wire.client(remote={SettingCodes.HEADER_TABLE_SIZE: 2**32 - 1})

    assert conn.encoder.header_table_size == 2**32 - 1


def test_the_same_header_table_size_twice_goes_unannounced() -> None:
    """The second SETTINGS frame cancels the announcement that the first calls for; strict peers hang up.

    See the encoder's own test. The proxy passes the setting on only when it differs from the one in force.
    """
    once = wire.client(remote={SettingCodes.HEADER_TABLE_SIZE: 100})
    twice = wire.client(remote={SettingCodes.HEADER_TABLE_SIZE: 100})
    twice.receive_data(wire.settings({SettingCodes.HEADER_TABLE_SIZE: 100}))
    for conn in (once, twice):
        conn.clear_outbound_data_buffer()
        conn.send_headers(1, REQUEST)

    assert (
        once.data_to_send()[9:12] == b"\x3f\x45\x83"
    )  # "the table is 100 bytes from here on", ":method: POST"
    assert twice.data_to_send()[9:10] == b"\x83"


def test_initial_settings_are_in_force_at_once_but_not_everywhere() -> None:
    """Replacing ``local_settings`` advertises the values, and leaves two copies at their defaults for good.

    No acknowledgement changes that, since nothing is pending. The proxy sets ``max_inbound_frame_size``
    itself, and decodes with a decoder of its own.
    """
    conn = wire.server(local={SettingCodes.MAX_FRAME_SIZE: 65_536, SettingCodes.MAX_HEADER_LIST_SIZE: 8_192})

    assert conn.local_settings.max_frame_size == 65_536
    assert conn.max_inbound_frame_size == 16_384
    assert conn.local_settings.max_header_list_size == 8_192
    assert conn.decoder.max_header_list_size == 65_536


def test_updated_settings_wait_for_their_acknowledgement() -> None:
    """Given after the start, a value is in force only when the peer says so, and then in every place."""
    conn = wire.server()
    conn.update_settings({SettingCodes.MAX_FRAME_SIZE: 65_536})

    assert conn.local_settings.max_frame_size == conn.max_inbound_frame_size == 16_384
    conn.receive_data(wire.settings_ack())
    assert conn.local_settings.max_frame_size == conn.max_inbound_frame_size == 65_536


def test_a_client_accepts_pushes_by_default() -> None:
    """ENABLE_PUSH is 1 for clients. RFC 9113 section 8.4 lets a server push without being asked."""
    events = wire.client_with_request().receive_data(wire.push_promise(1, 2, REQUEST))

    assert isinstance(events[0], PushedStreamReceived)


def test_push_turned_off_by_an_update_is_accepted_until_acknowledged() -> None:
    """A server that never acknowledges may push for ever.

    The proxy turns it off in its first SETTINGS instead.
    """
    conn = wire.client_with_request()
    conn.update_settings({SettingCodes.ENABLE_PUSH: 0})

    assert wire.kinds(conn.receive_data(wire.push_promise(1, 2, REQUEST))) == ["PushedStreamReceived"]

    conn.receive_data(wire.settings_ack())
    with pytest.raises(ProtocolError, match="pushed"):
        conn.receive_data(wire.push_promise(1, 4, REQUEST))


def test_push_turned_off_in_the_initial_settings_is_refused_at_once() -> None:
    """The only way that works from the first byte on."""
    conn = wire.client(local={SettingCodes.ENABLE_PUSH: 0})
    conn.send_headers(1, REQUEST)

    with pytest.raises(ProtocolError, match="pushed"):
        conn.receive_data(wire.push_promise(1, 2, REQUEST))


@pytest.mark.parametrize("checks", [True, False])
def test_a_server_may_open_a_stream_to_its_client_without_promising_it(*, checks: bool) -> None:
    """HEADERS on an even stream reach a client as RequestReceived, though push is off and validation is on.

    RFC 9113 section 5.1.1 makes it a connection error. The proxy refuses even stream ids from upstreams
    itself.
    """
    conn = wire.client(checks=checks, local={SettingCodes.ENABLE_PUSH: 0})

    (event,) = conn.receive_data(wire.headers(2, REQUEST))

    assert isinstance(event, RequestReceived)


# --- Windows ---


def test_settings_never_change_the_connection_window() -> None:
    """INITIAL_WINDOW_SIZE is about streams (RFC 9113 section 6.9.2); the connection's stay at 65,535.

    The proxy raises it with a WINDOW_UPDATE at the start.
    """
    conn = wire.client(
        local={SettingCodes.INITIAL_WINDOW_SIZE: 2**20}, remote={SettingCodes.INITIAL_WINDOW_SIZE: 2**20}
    )
    conn.send_headers(1, REQUEST)

    assert conn.inbound_flow_control_window == DEFAULT_WINDOW
    assert conn.outbound_flow_control_window == DEFAULT_WINDOW
    assert conn.local_flow_control_window(1) == DEFAULT_WINDOW

    conn.increment_flow_control_window(2**20)
    assert conn.inbound_flow_control_window == DEFAULT_WINDOW + 2**20


def test_a_window_can_become_negative_and_is_reported_so() -> None:
    """RFC 9113 section 6.9.2.

    ``if window:`` would be true and its use as a slice wrong. The proxy tests ``> 0``.
    """
    conn = wire.client_with_request()
    conn.send_data(1, bytes(10_000))

    conn.receive_data(wire.settings({SettingCodes.INITIAL_WINDOW_SIZE: 1_000}))

    assert conn.local_flow_control_window(1) == -9_000
    with pytest.raises(FlowControlError):
        conn.send_data(1, b"x")
    conn.receive_data(wire.window_update(1, 9_001))
    assert conn.local_flow_control_window(1) == 1


def test_an_empty_data_frame_passes_a_negative_window() -> None:
    """It takes no window, so a stream can be ended with its window closed.

    The proxy does not wait for credit then.
    """
    conn = wire.client_with_request()
    conn.send_data(1, bytes(10_000))
    conn.receive_data(wire.settings({SettingCodes.INITIAL_WINDOW_SIZE: 0}))
    conn.clear_outbound_data_buffer()

    conn.send_data(1, b"", end_stream=True)

    (frame,) = wire.parse(conn.data_to_send())
    assert "END_STREAM" in frame.flags


def test_our_own_lowered_window_makes_even_empty_data_a_connection_error() -> None:
    """When our new INITIAL_WINDOW_SIZE makes a window negative, a blameless END_STREAM counts as an overrun.

    The proxy never lowers its window on a live connection.
    """
    conn = wire.client_with_response()
    conn.receive_data(wire.data(1, bytes(100)))
    conn.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 50})
    conn.receive_data(wire.settings_ack())

    assert conn.remote_flow_control_window(1) == -50
    with pytest.raises(FlowControlError):
        conn.receive_data(wire.data(1, b"", end_stream=True))


def test_a_stream_window_raised_above_its_maximum_resets_that_stream_only() -> None:
    """By WINDOW_UPDATE it is a stream error, with a local StreamReset event."""
    conn = wire.client_with_request()

    (event,) = conn.receive_data(wire.window_update(1, LARGEST_WINDOW))

    assert isinstance(event, StreamReset)
    assert not event.remote_reset
    assert wire.resets(conn.data_to_send()) == [(1, ErrorCodes.FLOW_CONTROL_ERROR)]
    assert not wire.is_dead(conn)


def test_a_stream_window_raised_above_its_maximum_by_settings_is_a_connection_error() -> None:
    """As RFC 9113 section 6.9.2 wants it.

    Streams that have closed but are not yet forgotten count as well.
    """
    conn = wire.client_with_request()
    conn.receive_data(wire.window_update(1, LARGEST_WINDOW - DEFAULT_WINDOW))
    conn.reset_stream(1)

    with pytest.raises(FlowControlError):
        conn.receive_data(wire.settings({SettingCodes.INITIAL_WINDOW_SIZE: DEFAULT_WINDOW + 1}))


def test_a_window_update_of_zero_is_a_connection_error_even_on_a_stream() -> None:
    """RFC 9113 section 6.9 asks for a stream error there."""
    conn = wire.client_with_request()
    zero = wire.window_update(1, 1)[:9] + bytes(4)

    with pytest.raises(ProtocolError):
        conn.receive_data(zero)

    assert wire.goaways(conn.data_to_send()) == [ErrorCodes.PROTOCOL_ERROR]


def test_data_beyond_a_stream_window_is_a_connection_error() -> None:
    """RFC 9113 section 6.9.1 allows that as well as a stream error."""
    conn = wire.client_with_response()
    conn.increment_flow_control_window(10**6)
    for _ in range(4):
        conn.receive_data(wire.data(1, bytes(16_000)))

    with pytest.raises(FlowControlError):
        conn.receive_data(wire.data(1, bytes(16_000)))


def test_flow_control_counts_padding() -> None:
    """One byte of data in a padded frame may take 257 bytes of window.

    The proxy credits ``flow_controlled_length``, never the length of the data: else the window leaks away.
    """
    conn = wire.client_with_response()

    (event,) = conn.receive_data(wire.data(1, b"x", padding=255))

    assert isinstance(event, DataReceived)
    assert (len(event.data), event.flow_controlled_length) == (1, 257)
    assert conn.inbound_flow_control_window == DEFAULT_WINDOW - 257


def test_resetting_a_stream_keeps_the_connection_credit_of_what_was_not_read() -> None:
    """Enough cancelled calls close the window of the whole connection.

    The proxy credits the connection when DATA arrives, so that a stream owes nothing when it is reset. h2
    takes credit for closed and forgotten streams too.
    """
    conn = wire.client_with_response()
    for _ in range(3):
        conn.receive_data(wire.data(1, bytes(16_000)))
    conn.reset_stream(1)
    wire.forget_closed_streams(conn)
    conn.clear_outbound_data_buffer()

    assert conn.inbound_flow_control_window == DEFAULT_WINDOW - 48_000
    conn.acknowledge_received_data(48_000, 1)

    assert conn.inbound_flow_control_window == DEFAULT_WINDOW
    assert [frame.stream_id for frame in wire.parse(conn.data_to_send())] == [0]


def test_credit_is_withheld_until_half_a_window_has_been_acknowledged() -> None:
    """``acknowledge_received_data`` writes WINDOW_UPDATE at the half, or when the window is closed.

    With a window shared by slow and fast streams that may be never. The proxy credits with
    ``increment_flow_control_window``, at thresholds of its own.
    """
    conn = wire.client_with_response()
    for _ in range(3):
        conn.receive_data(wire.data(1, bytes(16_000)))

    conn.acknowledge_received_data(DEFAULT_WINDOW // 2 - 1, 1)
    assert conn.data_to_send() == b""
    conn.acknowledge_received_data(1, 1)
    assert [frame.stream_id for frame in wire.parse(conn.data_to_send())] == [0, 1]


def test_data_on_a_stream_that_is_gone_is_credited_by_h2() -> None:
    """It raises no event that could be acknowledged, so h2 gives the connection credit back itself."""
    conn = wire.client_with_response()
    conn.reset_stream(1)
    conn.clear_outbound_data_buffer()

    for _ in range(3):
        assert conn.receive_data(wire.data(1, bytes(16_000))) == []

    assert conn.inbound_flow_control_window == DEFAULT_WINDOW
    returned = [frame for frame in wire.parse(conn.data_to_send()) if isinstance(frame, WindowUpdateFrame)]
    assert [(credit.stream_id, credit.window_increment) for credit in returned] == [(0, 48_000)]


# --- Stream ids ---


def test_the_next_stream_id_stays_the_same_until_headers_are_sent() -> None:
    """Two tasks that ask before either has written get the same id.

    The proxy takes the id and writes the HEADERS without an await in between.
    """
    conn = wire.client()

    assert conn.get_next_available_stream_id() == conn.get_next_available_stream_id() == 1
    conn.send_headers(1, REQUEST)
    assert conn.get_next_available_stream_id() == 3


def test_a_stream_id_below_the_highest_can_no_longer_be_opened() -> None:
    """Ids given out ahead of time must be used in order."""
    conn = wire.client()
    conn.send_headers(3, REQUEST)

    with pytest.raises(StreamIDTooLowError):
        conn.send_headers(1, REQUEST)


# --- Closed streams ---


def reset_by_us() -> H2Connection:
    conn = wire.client_with_request()
    conn.reset_stream(1, ErrorCodes.CANCEL)
    conn.clear_outbound_data_buffer()
    return conn


def reset_by_the_peer() -> H2Connection:
    conn = wire.client_with_request()
    conn.receive_data(wire.reset(1))
    return conn


def ended_by_both() -> H2Connection:
    conn = wire.client_with_response(end_stream=True)
    conn.receive_data(wire.headers(1, TRAILERS, end_stream=True))
    return conn


CLOSED: dict[str, Callable[[], H2Connection]] = {
    "reset by us": reset_by_us,
    "reset by the peer": reset_by_the_peer,
    "ended by both": ended_by_both,
}


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
def test_every_data_frame_on_a_closed_stream_is_answered_with_a_reset(
    closed: Callable[[], H2Connection], *, forgotten: bool
) -> None:
    """However it was closed, and without an event: the caller sees nothing of frame or answer.

    After a cancelled call each frame in flight costs us an RST_STREAM, which a strict peer may count as
    abuse. The proxy keeps the frames of closed streams from h2, and credits the connection itself.
    """
    conn = closed()
    if forgotten:
        wire.forget_closed_streams(conn)

    for _ in range(3):
        assert conn.receive_data(wire.data(1, b"late")) == []

    assert wire.resets(conn.data_to_send()) == [(1, ErrorCodes.STREAM_CLOSED)] * 3


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("closed", [reset_by_us, reset_by_the_peer])
def test_headers_on_a_reset_stream_are_decoded_and_answered_with_a_reset(
    closed: Callable[[], H2Connection], *, forgotten: bool
) -> None:
    """Late trailers of a cancelled call still change the decoder's table: somebody must decode them."""
    conn = closed()
    if forgotten:
        wire.forget_closed_streams(conn)

    assert conn.receive_data(wire.headers_of_block(1, b"\x40\x01x\x00", end_stream=True)) == []

    assert wire.resets(conn.data_to_send()) == [(1, ErrorCodes.STREAM_CLOSED)]
    assert list(conn.decoder.header_table.dynamic_entries) == [(b"x", b"")]


@pytest.mark.parametrize("forgotten", [False, True])
def test_headers_on_a_stream_that_has_ended_are_a_connection_error(*, forgotten: bool) -> None:
    """RFC 9113 section 5.1 wants that: nothing can be in flight after END_STREAM."""
    conn = ended_by_both()
    if forgotten:
        wire.forget_closed_streams(conn)

    with pytest.raises(StreamClosedError):
        conn.receive_data(wire.headers(1, TRAILERS, end_stream=True))


@pytest.mark.parametrize("frame", [wire.reset(1), wire.window_update(1, 1)])
@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
def test_resets_and_window_updates_on_a_closed_stream_are_ignored(
    closed: Callable[[], H2Connection], *, forgotten: bool, frame: bytes
) -> None:
    """No event, no answer, no error: they may have crossed with the end of the stream."""
    conn = closed()
    if forgotten:
        wire.forget_closed_streams(conn)

    assert conn.receive_data(frame) == []
    assert conn.data_to_send() == b""


def test_a_reset_of_a_stream_that_never_existed_is_ignored() -> None:
    """RFC 9113 section 6.4 makes RST_STREAM on an idle stream a connection error; h2 does not mind.

    Unless no stream was ever opened: then it is one.
    """
    conn = wire.server_with_request()

    assert conn.receive_data(wire.reset(7)) == []
    assert not wire.is_dead(conn)
    with pytest.raises(ProtocolError):
        wire.server().receive_data(wire.reset(7))


@pytest.mark.parametrize("frame", [wire.data(7, b"x"), wire.window_update(7, 1)])
def test_data_and_window_updates_of_a_stream_that_never_existed_are_connection_errors(frame: bytes) -> None:
    """As RFC 9113 section 5.1 wants it for idle streams."""
    with pytest.raises(NoSuchStreamError):
        wire.server_with_request().receive_data(frame)


def test_closed_streams_are_held_until_the_open_ones_are_counted() -> None:
    """A stream leaves ``streams`` when another one opens; a connection that falls idle keeps its last.

    Asking for ``open_inbound_streams`` makes h2 let go of them.
    """
    conn = ended_by_both()

    assert 1 in conn.streams
    wire.forget_closed_streams(conn)
    assert 1 not in conn.streams


def test_the_last_65536_closed_streams_are_remembered() -> None:
    """How a stream was closed decides between an RST_STREAM and a connection error; the forgotten are fatal.

    It also is the one thing h2 keeps of every call, so a long-lived connection grows until it holds that
    many.
    """
    assert H2Connection.MAX_CLOSED_STREAMS == 65_536

    class Forgetful(H2Connection):
        MAX_CLOSED_STREAMS = 2

    conn = Forgetful(wire.client().config)
    conn.initiate_connection()
    for stream_id in (1, 3, 5):
        conn.send_headers(stream_id, REQUEST)
        conn.reset_stream(stream_id)
    wire.forget_closed_streams(conn)

    assert conn.receive_data(wire.headers(3, RESPONSE)) == []
    with pytest.raises(StreamIDTooLowError):
        conn.receive_data(wire.headers(1, RESPONSE))


def test_the_memory_of_closed_streams_can_be_bounded_by_a_subclass() -> None:
    """The limit is read from the class when a connection is made; none at all will do.

    It costs about 115 bytes a stream, 7.5 MB a connection. Whoever keeps frames of closed streams from h2
    needs none.
    """

    class Oblivious(H2Connection):
        MAX_CLOSED_STREAMS = 0

    conn = Oblivious(wire.client().config)
    conn.initiate_connection()
    conn.send_headers(1, REQUEST)
    conn.reset_stream(1)
    wire.forget_closed_streams(conn)

    with pytest.raises(StreamIDTooLowError):
        conn.receive_data(wire.headers(1, RESPONSE))


def test_calls_on_a_forgotten_stream_raise_errors_of_different_kinds() -> None:
    """A KeyError among them. The proxy asks its own table whether the stream lives before it calls h2."""
    conn = reset_by_us()
    wire.forget_closed_streams(conn)

    with pytest.raises(StreamClosedError):
        conn.send_data(1, b"x")
    with pytest.raises(KeyError):
        conn.send_data(1, b"", end_stream=True)
    with pytest.raises(KeyError):
        conn.increment_flow_control_window(1, 1)
    with pytest.raises(StreamIDTooLowError):
        conn.send_headers(1, TRAILERS, end_stream=True)
    with pytest.raises(StreamClosedError):
        conn.end_stream(1)
    with pytest.raises(StreamClosedError):
        conn.reset_stream(1)
    with pytest.raises(StreamClosedError):
        conn.local_flow_control_window(1)
    assert not wire.is_dead(conn)


def test_a_peers_reset_with_an_unknown_code_keeps_the_number() -> None:
    """The event's code is then a plain int, which the proxy maps like any other code it has no name for."""
    (event,) = wire.client_with_request().receive_data(wire.reset(1, 0xDEAD))

    assert isinstance(event, StreamReset)
    assert event.remote_reset
    assert event.error_code == 0xDEAD


# --- Mistakes of the caller that cost more than an exception ---


def test_sending_after_our_end_stream_closes_the_stream_behind_the_peers_back() -> None:
    """The exception leaves the stream closed without a reset: the peer's response then ends the connection.

    The proxy never lets a write after END_STREAM reach h2.
    """
    conn = wire.client_with_request(end_stream=True)

    with pytest.raises(ProtocolError):
        conn.send_data(1, b"one too many")
    assert conn.data_to_send() == b""

    with pytest.raises(StreamClosedError):
        conn.receive_data(wire.headers(1, RESPONSE))


def test_trailers_refused_for_want_of_end_stream_have_already_changed_the_encoder() -> None:
    """h2 complains after encoding: the peer never sees the block, and decodes every later one wrongly."""
    conn = wire.client_with_request()

    with pytest.raises(ProtocolError, match="END_STREAM"):
        conn.send_headers(1, [(b"x-lost", b"1")])

    assert conn.data_to_send() == b""
    assert conn.encoder.header_table.dynamic_entries[0] == (b"x-lost", b"1")


def test_headers_refused_by_outbound_validation_have_already_changed_the_encoder() -> None:
    """The check runs while fields are encoded.

    The proxy turns it off and checks the list before h2 gets it.
    """
    conn = wire.client(checks=True)

    with pytest.raises(ProtocolError):
        conn.send_headers(1, [*REQUEST, (b"x-lost", b"1"), (b":late", b"pseudo-field")])

    assert conn.data_to_send() == b""
    assert conn.encoder.header_table.dynamic_entries[0] == (b"x-lost", b"1")


def test_sending_more_than_the_window_or_the_frame_size_leaves_no_trace() -> None:
    """Both are checked before anything is changed, so the caller may split the data and try again."""
    conn = wire.client_with_request()

    with pytest.raises(FlowControlError):
        conn.send_data(1, bytes(DEFAULT_WINDOW + 1))
    with pytest.raises(FrameTooLargeError):
        conn.send_data(1, bytes(16_385))

    assert conn.data_to_send() == b""
    assert conn.local_flow_control_window(1) == DEFAULT_WINDOW
    conn.send_data(1, bytes(16_384))


# --- Costs ---


@pytest.mark.parametrize("open_streams", [0, 10, 100])
def test_opening_a_stream_looks_at_every_open_stream(open_streams: int) -> None:
    """On both sides: the client in ``send_headers``, the server when the request arrives.

    One more reason not to open thousands of streams on one connection.
    """
    here, there = wire.client(), wire.server(local={SettingCodes.MAX_CONCURRENT_STREAMS: 2**31})
    for number in range(open_streams):
        here.send_headers(2 * number + 1, REQUEST)
    there.receive_data(here.data_to_send())
    stream_id = here.get_next_available_stream_id()
    is_open = wire.getter(H2Stream, "open")

    with wire.counted_calls(is_open) as sending:
        here.send_headers(stream_id, REQUEST)
    with wire.counted_calls(is_open) as receiving:
        there.receive_data(here.data_to_send())

    assert (sending.total(), receiving.total()) == (open_streams, open_streams)


def test_frames_on_a_stream_that_is_open_look_at_no_other_stream() -> None:
    """Data, responses and trailers cost the same with a hundred open streams as with one."""
    conn = wire.server()
    for number in range(100):
        conn.receive_data(wire.headers(2 * number + 1, REQUEST))
    is_open = wire.getter(H2Stream, "open")

    with wire.counted_calls(is_open) as count:
        conn.receive_data(wire.data(1, b"request", end_stream=True))
        conn.send_headers(1, RESPONSE)
        conn.send_data(1, b"response")
        conn.send_headers(1, TRAILERS, end_stream=True)

    assert count.total() == 0


def test_output_is_taken_whole_at_no_cost_per_frame() -> None:
    """``data_to_send()`` without an amount hands over everything and leaves an empty buffer.

    With an amount it copies what remains each time. The proxy always takes all.
    """
    conn = wire.server()
    conn.receive_data(wire.ping() * 10)

    assert len(conn.data_to_send()) == 170
    assert conn.data_to_send() == b""
