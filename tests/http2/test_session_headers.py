"""Header blocks and header lists (RFC 9113 sections 4.3, 6.10 and 8; RFC 7541)."""

from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import ENGINES, Engine
from rawgrpc_proxy.http2.events import (
    DataReceived,
    LimitReached,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from rawgrpc_proxy.http2.headers import HeaderList
from tests.http2 import peer as wire
from tests.http2.peer import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    TRAILERS_ONLY,
    Header,
    Peer,
    assert_alive,
    assert_connection_error,
    kinds,
    resets,
)

on_every_engine = pytest.mark.parametrize("engine", ENGINES)
CALM, PROTOCOL = ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.PROTOCOL_ERROR


def cut_block(stream_id: int, fragments: list[bytes], *, end_stream: bool = False) -> bytes:
    """HEADERS and CONTINUATION, a frame for each fragment."""
    first, *others = fragments
    frames = [wire.headers(stream_id, encoded=first, end_headers=not others, end_stream=end_stream)]
    frames += [
        wire.continuation(stream_id, fragment, end_headers=index == len(others))
        for index, fragment in enumerate(others, start=1)
    ]
    return b"".join(frames)


def fields_of(size: int, count: int = 1) -> list[Header]:
    """So many fields that a request of them and REQUEST has this size."""
    room = size - sum(len(name) + len(value) for name, value in REQUEST)
    each, rest = divmod(room, count)
    return [
        *REQUEST,
        *((b"x", bytes([97]) * (each - 1 + (rest if index == 0 else 0))) for index in range(count)),
    ]


# --- Requests and responses ---


def test_a_request_is_told_as_it_came(server: Peer) -> None:
    headers = [
        *REQUEST,
        (b"x-b", b"2"),
        (b"x-a", b"1"),
        (b"x-b", b" edge "),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
    ]

    assert server.tell(wire.headers(1, headers)) == [
        RequestReceived(1, HeaderList(headers), end_stream=False)
    ]
    assert server.tell(wire.headers(3, headers, end_stream=True)) == [
        RequestReceived(3, HeaderList(headers), end_stream=True)
    ]


def test_a_call_from_end_to_end_on_a_server(server: Peer) -> None:
    events = server.tell(wire.headers(1), wire.data(1, b"ask"), wire.data(1, b"", end_stream=True))
    assert kinds(events) == ["RequestReceived", "DataReceived", "DataReceived"]

    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"answer")
    server.session.send_headers(1, TRAILERS, end_stream=True)

    assert server.hear() == ["HEADERS 1", "DATA 1 [6]", "HEADERS 1 END_STREAM"]
    assert server.lists[1] == [RESPONSE, TRAILERS]
    assert server.session.streams == {}
    assert server.session.take_closed() == [1]
    assert server.session.take_closed() == []


def test_a_call_from_end_to_end_on_a_client(client: Peer) -> None:
    assert client.session.open_stream(REQUEST) == 1
    client.session.send_data(1, b"ask", end_stream=True)
    assert client.hear() == ["HEADERS 1", "DATA 1 [3] END_STREAM"]
    assert client.lists[1] == [REQUEST]

    assert client.tell(wire.headers(1, RESPONSE)) == [
        ResponseReceived(1, HeaderList(RESPONSE), end_stream=False)
    ]
    assert client.tell(wire.data(1, b"answer")) == [DataReceived(1, b"answer", 6, end_stream=False)]
    assert client.tell(wire.headers(1, TRAILERS, end_stream=True)) == [
        TrailersReceived(1, HeaderList(TRAILERS))
    ]

    assert client.session.take_closed() == [1]
    assert client.session.open_stream(REQUEST, end_stream=True) == 3
    assert client.hear() == ["HEADERS 3 END_STREAM"]


def test_a_trailers_only_response_is_one_frame_each_way(engine: Engine) -> None:
    server, client = wire.server(engine), wire.client(engine)
    server.tell(wire.headers(1, end_stream=True))
    client.session.open_stream(REQUEST, end_stream=True)

    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    events = client.tell(wire.headers(1, TRAILERS_ONLY, end_stream=True))

    assert server.hear() == ["HEADERS 1 END_STREAM"]
    client.hear()
    assert events == [ResponseReceived(1, HeaderList(TRAILERS_ONLY), end_stream=True)]
    assert server.session.take_closed() == client.session.take_closed() == [1]


def test_requests_may_have_trailers(server: Peer) -> None:
    events = server.tell(wire.headers(1), wire.data(1, b"x"), wire.headers(1, TRAILERS, end_stream=True))

    assert events[2:] == [TrailersReceived(1, HeaderList(TRAILERS))]


def test_empty_trailers_are_legal(client: Peer) -> None:
    client.session.open_stream(REQUEST, end_stream=True)
    client.hear()

    events = client.tell(wire.headers(1, RESPONSE), wire.headers(1, [], end_stream=True))

    assert events == [
        ResponseReceived(1, HeaderList(RESPONSE), end_stream=False),
        TrailersReceived(1, HeaderList([])),
    ]
    assert client.session.take_closed() == [1]


@pytest.mark.parametrize("statuses", [[b"100"], [b"103", b"100", b"199"]])
def test_informational_responses_are_skipped(client: Peer, statuses: list[bytes]) -> None:
    client.session.open_stream(REQUEST, end_stream=True)

    for status in statuses:
        assert client.tell(wire.headers(1, [(b":status", status), (b"link", b"</x>")])) == []

    assert kinds(client.tell(wire.headers(1, RESPONSE))) == ["ResponseReceived"]


# --- Malformed: an error of the stream (section 8.1.1) ---


@pytest.mark.parametrize(
    "headers",
    [
        REQUEST[1:],
        [*REQUEST, (b"Upper", b"x")],
        [*REQUEST, (b"x", b"a\r\nb")],
        [*REQUEST, (b"x", b"a\x00b")],
        [*REQUEST, (b"connection", b"close")],
        [*REQUEST, (b":path", b"/late")],
        [(b":status", b"100"), *REQUEST],
        [*REQUEST, (b"content-length", b"nonsense")],
        [*REQUEST, (b"content-length", b"1"), (b"content-length", b"2")],
        [],
    ],
)
def test_a_malformed_request_is_refused_and_its_siblings_live_on(server: Peer, headers: list[Header]) -> None:
    server.tell(wire.headers(1))

    events = server.tell(
        wire.headers(3, headers), wire.data(3, b"late"), wire.headers(3, TRAILERS, end_stream=True)
    )

    assert resets(events) == [(3, PROTOCOL, False)]
    assert server.hear() == ["RST_STREAM 3 PROTOCOL_ERROR"]
    assert server.session.take_closed() == []
    assert kinds(server.tell(wire.data(1, b"x"), wire.headers(5))) == ["DataReceived", "RequestReceived"]


@pytest.mark.parametrize(
    "headers",
    [
        RESPONSE[1:],
        [(b":status", b"abc")],
        [*RESPONSE, (b"Upper", b"x")],
        [*RESPONSE, (b"x", b"a\nb")],
        [*RESPONSE, (b"content-length", b"-1")],
        [*RESPONSE, RESPONSE[0]],
        [(b":status", b"100"), (b"Upper", b"x")],
        [],
    ],
)
def test_a_malformed_response_ends_its_stream_and_its_siblings_live_on(
    client: Peer, headers: list[Header]
) -> None:
    for _ in range(2):
        client.session.open_stream(REQUEST)
    client.hear()

    events = client.tell(
        wire.headers(1, headers), wire.data(1, b"late"), wire.headers(1, TRAILERS, end_stream=True)
    )

    assert resets(events) == [(1, PROTOCOL, False)]
    assert client.hear() == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert client.session.take_closed() == [1]
    assert kinds(client.tell(wire.headers(3, RESPONSE))) == ["ResponseReceived"]


@pytest.mark.parametrize(
    "trailers", [[(b":status", b"200")], [(b":path", b"/")], [(b"Upper", b"x")], [(b"x", b"\n")]]
)
@pytest.mark.parametrize("client_side", [False, True])
def test_malformed_trailers_end_their_stream_only(
    engine: Engine, client_side: bool, trailers: list[Header]
) -> None:
    peer = with_two_bodies(engine, client_side)

    events = peer.tell(wire.headers(1, trailers, end_stream=True))

    assert resets(events) == [(1, PROTOCOL, False)]
    assert peer.hear() == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert kinds(peer.tell(wire.headers(3, TRAILERS, end_stream=True))) == ["TrailersReceived"]


@pytest.mark.parametrize("client_side", [False, True])
def test_trailers_without_end_stream_end_their_stream_only(engine: Engine, client_side: bool) -> None:
    peer = with_two_bodies(engine, client_side)

    events = peer.tell(wire.headers(1, TRAILERS))

    assert resets(events) == [(1, PROTOCOL, False)]
    assert peer.hear() == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert kinds(peer.tell(wire.data(3, b"x"))) == ["DataReceived"]


def with_two_bodies(engine: Engine, client_side: bool) -> Peer:
    """A session that waits for the rest of the bodies of streams 1 and 3."""
    peer = wire.client(engine) if client_side else wire.server(engine)
    for stream_id in (1, 3):
        if client_side:
            peer.session.open_stream(REQUEST)
        peer.tell(wire.headers(stream_id, RESPONSE if client_side else REQUEST))
    peer.hear()
    return peer


def test_data_before_the_response_headers_ends_its_stream_only(client: Peer) -> None:
    for _ in range(2):
        client.session.open_stream(REQUEST)
    client.tell(wire.headers(1, [(b":status", b"100")]))
    client.hear()

    events = client.tell(wire.data(1, b"early"))

    assert resets(events) == [(1, PROTOCOL, False)]
    assert client.hear() == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert_alive(client)


def test_an_informational_response_that_ends_the_stream_is_an_error_of_it(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.hear()

    events = client.tell(wire.headers(1, [(b":status", b"100")], end_stream=True))

    assert resets(events) == [(1, PROTOCOL, False)]
    assert client.hear() == ["RST_STREAM 1 PROTOCOL_ERROR"]


def test_a_second_response_is_an_error_of_the_stream(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.tell(wire.headers(1, RESPONSE))

    assert resets(client.tell(wire.headers(1, RESPONSE))) == [(1, PROTOCOL, False)]


def test_what_is_wrong_is_said(server: Peer) -> None:
    (event,) = server.tell(wire.headers(1, [*REQUEST, (b"Upper", b"x")]))

    assert isinstance(event, StreamReset)
    assert event.reason == "'Upper' is no field name: lower-case letters, digits and a few marks only"


# --- Content-length (section 8.1.1) ---


@pytest.mark.parametrize(
    ("length", "body", "fine"),
    [
        (b"0", [b""], True),
        (b"5", [b"hello"], True),
        (b"5", [b"hel", b"lo", b""], True),
        (b"5", [b"hello!"], False),
        (b"5", [b"hell"], False),
        (b"5", [b"hello", b"!"], False),
        (b"0", [b"x"], False),
        (b"1", [b""], False),
    ],
)
def test_a_body_must_be_as_long_as_its_content_length(
    server: Peer, length: bytes, body: list[bytes], fine: bool
) -> None:
    server.tell(wire.headers(1), wire.headers(3, [*REQUEST, (b"content-length", length)]))

    *pieces, last = body
    events = server.tell(*(wire.data(3, piece) for piece in pieces), wire.data(3, last, end_stream=True))

    assert resets(events) == ([] if fine else [(3, PROTOCOL, False)])
    assert server.hear() == ([] if fine else ["RST_STREAM 3 PROTOCOL_ERROR"])
    assert kinds(server.tell(wire.data(1, b"x"))) == ["DataReceived"]


def test_padding_is_no_part_of_the_body(server: Peer) -> None:
    server.tell(wire.headers(1, [*REQUEST, (b"content-length", b"5")]))

    events = server.tell(wire.data(1, b"hello", padding=9, end_stream=True))

    assert events == [DataReceived(1, b"hello", 15, end_stream=True)]


@pytest.mark.parametrize(("body", "fine"), [(b"hello", True), (b"hell", False), (b"", False)])
def test_trailers_must_not_cut_a_body_short(client: Peer, body: bytes, fine: bool) -> None:
    client.session.open_stream(REQUEST, end_stream=True)
    client.tell(wire.headers(1, [*RESPONSE, (b"content-length", b"5")]), wire.data(1, body))

    events = client.tell(wire.headers(1, TRAILERS, end_stream=True))

    assert kinds(events) == (["TrailersReceived"] if fine else ["StreamReset"])


@pytest.mark.parametrize(("length", "fine"), [(b"0", True), (b"5", False)])
def test_headers_that_end_the_stream_promise_no_body(engine: Engine, length: bytes, fine: bool) -> None:
    server, client = wire.server(engine), wire.client(engine)
    client.session.open_stream(REQUEST)
    promise = (b"content-length", length)

    request = server.tell(wire.headers(1, [*REQUEST, promise], end_stream=True))
    response = client.tell(wire.headers(1, [*RESPONSE, promise], end_stream=True))

    assert kinds(request) == (["RequestReceived"] if fine else ["StreamReset"])
    assert kinds(response) == (["ResponseReceived"] if fine else ["StreamReset"])


def test_the_declared_length_is_passed_on(server: Peer) -> None:
    headers = [*REQUEST, (b"content-length", b"5")]

    assert server.tell(wire.headers(1, headers)) == [
        RequestReceived(1, HeaderList(headers), end_stream=False)
    ]


# --- CONTINUATION (section 6.10) ---


def test_a_block_may_be_cut_anywhere(server: Peer) -> None:
    encoded = wire.block(REQUEST)

    for stream_id, cut in enumerate(range(len(encoded) + 1)):
        block = cut_block(1 + 2 * stream_id, [encoded[:cut], encoded[cut:]], end_stream=True)
        assert server.tell(block) == [
            RequestReceived(1 + 2 * stream_id, HeaderList(REQUEST), end_stream=True)
        ]


def test_trailers_may_be_cut_too(client: Peer) -> None:
    client.session.open_stream(REQUEST)
    client.tell(wire.headers(1, RESPONSE))
    encoded = wire.block(TRAILERS)

    assert client.tell(cut_block(1, [encoded[:3], b"", encoded[3:]], end_stream=True)) == [
        TrailersReceived(1, HeaderList(TRAILERS))
    ]


@pytest.mark.parametrize(
    "frame",
    [
        wire.data(1, b"x"),
        wire.headers(3),
        wire.headers(1),
        wire.ping(),
        wire.settings(),
        wire.window_update(0, 1),
        wire.priority(1),
        wire.rst_stream(1),
        wire.goaway(0),
        wire.raw(0xEE, 0, 0),
        wire.push_promise(1, 2),
        wire.continuation(3, end_headers=True),
        wire.raw(0x9, 0x4, 0),
    ],
)
def test_nothing_may_interrupt_a_block(server: Peer, frame: bytes) -> None:
    server.tell(wire.headers(1, end_headers=False))

    assert_connection_error(server, server.tell(frame), PROTOCOL)


@pytest.mark.parametrize("before", [b"", wire.headers(1), wire.headers(1, end_stream=True)])
def test_a_continuation_must_continue_something(server: Peer, before: bytes) -> None:
    server.tell(before)

    assert_connection_error(server, server.tell(wire.continuation(1, end_headers=True)), PROTOCOL)


@pytest.mark.parametrize("limit", [0, 1, 8])
def test_as_many_continuation_frames_as_allowed_pass_and_one_more_does_not(
    engine: Engine, limit: int
) -> None:
    server = wire.server(engine, max_continuation_frames=limit)
    encoded = wire.block(REQUEST)

    assert kinds(server.tell(cut_block(1, [encoded, *[b""] * limit]))) == ["RequestReceived"]
    events = server.tell(wire.headers(3, encoded=encoded, end_headers=False), wire.continuation(3) * limit)
    assert events == []
    assert_connection_error(server, server.tell(wire.continuation(3)), CALM)


def test_the_count_of_continuation_frames_begins_anew_with_each_block(engine: Engine) -> None:
    server = wire.server(engine, max_continuation_frames=2)

    for stream_id in (1, 3, 5):
        assert kinds(server.tell(cut_block(stream_id, [wire.block(REQUEST), b"", b""]))) == [
            "RequestReceived"
        ]


# --- HPACK (section 4.3) ---


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\x00",  # an index beyond both tables
        b"\xff" * 60,  # an integer without end
        b"\x40\x05ab",  # a string cut short
        b"\x3f\xe2\x1f",  # a table of 4097 bytes
        b"\x82\x20",  # a size update after a field
        b"\x00\x85\xff\xff\xff\xff\xff\x00",  # Huffman's EOS
    ],
)
def test_a_block_that_is_no_hpack_ends_the_connection(server: Peer, block: bytes) -> None:
    assert_connection_error(server, server.tell(wire.headers(1, encoded=block)), ErrorCode.COMPRESSION_ERROR)


@pytest.mark.parametrize(("before", "stream_id"), [("a reset of ours", 1), ("a stream that is open", 3)])
def test_blocks_of_streams_that_are_turned_down_still_change_the_table(
    engine: Engine, before: str, stream_id: int
) -> None:
    """Trailers that have crossed our reset, and a request too many: later blocks may refer to what they insert."""
    server, encoder = wire.server(engine, max_concurrent_streams=1), hpack.Encoder()
    headers = [*REQUEST, (b"x-new", b"1")]
    server.tell(wire.headers(1))
    if before == "a reset of ours":
        server.session.reset(1, ErrorCode.CANCEL)

    events = server.tell(wire.headers(stream_id, encoded=encoder.encode(headers), end_stream=True))
    assert "RequestReceived" not in kinds(events)
    server.session.reset(1, ErrorCode.CANCEL)
    server.take()
    reference = encoder.encode(headers)

    assert len(reference) < 10
    assert server.tell(wire.headers(5, encoded=reference)) == [
        RequestReceived(5, HeaderList(headers), end_stream=False)
    ]


def test_lists_that_repeat_are_read_and_written_right(engine: Engine) -> None:
    server, encoder = wire.server(engine), hpack.Encoder()
    for number in range(40):
        stream_id, unique = 1 + 2 * number, (b"x-unique", b"%d" % (number // 3))
        headers = [*REQUEST, unique]

        events = server.tell(wire.headers(stream_id, encoded=encoder.encode(headers), end_stream=True))
        server.session.send_headers(stream_id, [*RESPONSE, unique])
        server.session.send_headers(stream_id, TRAILERS, end_stream=True)

        assert events == [RequestReceived(stream_id, HeaderList(headers), end_stream=True)]
        server.hear()
        assert server.lists[stream_id] == [[*RESPONSE, unique], TRAILERS]


def test_a_list_that_repeats_is_judged_anew_where_it_stands(engine: Engine) -> None:
    """What was found out about a block is kept with it: a request is still no trailers, nor trailers a request."""
    server, client = wire.server(engine), wire.client(engine)
    for stream_id in range(1, 9, 4):
        assert kinds(server.tell(wire.headers(stream_id))) == ["RequestReceived"]
        assert resets(server.tell(wire.headers(stream_id, end_stream=True))) == [(stream_id, PROTOCOL, False)]
        assert resets(server.tell(wire.headers(stream_id + 2, TRAILERS))) == [
            (stream_id + 2, PROTOCOL, False)
        ]
        assert server.tell(wire.headers(stream_id + 2, TRAILERS)) == []
    for stream_id in (1, 3):
        client.session.open_stream(REQUEST)
        assert kinds(client.tell(wire.headers(stream_id, RESPONSE))) == ["ResponseReceived"]
        events = client.tell(wire.headers(stream_id, RESPONSE, end_stream=True))
        assert resets(events) == [(stream_id, PROTOCOL, False)]


def test_a_promise_that_repeats_is_kept_each_time(server: Peer) -> None:
    """Content-length, in the same block for each call."""
    promise = [*REQUEST, (b"content-length", b"5")]
    for stream_id, body in ((1, b"hello"), (3, b"hell"), (5, b"hello"), (7, b"hello!")):
        server.tell(wire.headers(stream_id, promise))
        events = server.tell(wire.data(stream_id, body, end_stream=True))
        assert kinds(events) == ["DataReceived" if body == b"hello" else "StreamReset"]


def test_sensitive_fields_stay_sensitive(engine: Engine) -> None:
    """RFC 7541 section 7.1.3: an intermediary keeps the mark of a field that must not be indexed."""
    server, client = wire.server(engine), wire.client(engine)
    fields = [(*field, False) for field in REQUEST]
    encoded = hpack.Encoder().encode([*fields, (b"authorization", b"secret", True)])

    (event,) = server.tell(wire.headers(1, encoded=encoded))
    assert isinstance(event, RequestReceived)
    for _ in range(2):
        client.session.open_stream(event.headers)

    client.hear()
    assert client.lists[1] == client.lists[3] == [[*REQUEST, (b"authorization", b"secret")]]
    assert (b"authorization", b"secret") not in client.decoder.header_table.dynamic_entries


def test_credentials_never_enter_the_table(client: Peer) -> None:
    """Nor by whom they came unmarked: others share the connection to the upstream, and could try them out."""
    for _ in range(3):
        client.session.open_stream([*REQUEST, (b"authorization", b"of-alice"), (b"cookie", b"of-alice")])

    client.hear()

    assert client.lists[5] == [[*REQUEST, (b"authorization", b"of-alice"), (b"cookie", b"of-alice")]]
    assert all(value != b"of-alice" for _, value in client.decoder.header_table.dynamic_entries)


NO_FIELDS: list[Any] = [
    (b"x-tag", "text"), ("x-tag", b"text"), (b"x-tag", None), (b"x-tag", 1), (b"x-tag", bytearray(b"text")),
    (b"x-tag", b"text", b"more"), (b"x-tag",), [b"x-tag", b"text"], b"ab", None,
]  # fmt: skip


@pytest.mark.parametrize("bad", NO_FIELDS)
def test_a_request_that_cannot_be_encoded_opens_no_stream(client: Peer, bad: Any) -> None:
    """Its id is the next one's, and one caller's fields are not read as another's."""
    alice, bob = [*REQUEST, (b"x-user", b"alice")], [*REQUEST, (b"x-user", b"bob")]
    for headers in (alice, alice, bob):
        client.session.open_stream(headers)

    for headers in (bob, [*REQUEST, (b"x-new", b"1")], []):
        for _ in range(2):
            with pytest.raises(TypeError, match="header field"):
                client.session.open_stream([*headers, bad], end_stream=True)

    assert list(client.session.streams) == [1, 3, 5]
    assert [client.session.open_stream(headers) for headers in (alice, bob)] == [7, 9]
    assert client.hear() == [f"HEADERS {stream_id}" for stream_id in (1, 3, 5, 7, 9)]
    assert client.lists[7] == [alice]
    assert client.lists[9] == [bob]


@pytest.mark.parametrize("bad", NO_FIELDS)
def test_a_response_that_cannot_be_encoded_leaves_its_stream_as_it_was(server: Peer, bad: Any) -> None:
    """So that its caller can still be told of the mistake."""
    server.tell(wire.headers(1, end_stream=True))
    with pytest.raises(TypeError, match="header field"):
        server.session.send_headers(1, [*RESPONSE, bad])
    with pytest.raises(TypeError, match="header field"):
        server.session.send_headers(1, [*TRAILERS_ONLY, bad], end_stream=True)

    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)

    assert server.hear() == ["HEADERS 1 END_STREAM"]
    assert server.lists[1] == [TRAILERS_ONLY]


def test_trailers_that_cannot_be_encoded_are_refused_before_they_wait_behind_data(engine: Engine) -> None:
    """When their turn comes there is nobody to tell, and the connection would have to end."""
    server = wire.server(engine, peer_settings={wire.INITIAL_WINDOW_SIZE: 0})
    server.tell(wire.headers(1, end_stream=True))
    server.session.send_headers(1, RESPONSE)
    server.session.send_data(1, b"hello")

    with pytest.raises(TypeError, match="header field"):
        server.session.send_headers(1, [*TRAILERS, (b"x-tag", "text")], end_stream=True)  # type: ignore[list-item]
    server.session.send_headers(1, TRAILERS, end_stream=True)
    server.tell(wire.window_update(1, 100))

    assert server.hear() == ["HEADERS 1", "DATA 1 [5]", "HEADERS 1 END_STREAM"]


@on_every_engine
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.sampled_from([*REQUEST, (b"x-a", b"1"), (b"x-b", b"2"), (b"cookie", b"c")]),
                min_size=1,
                max_size=6,
            ),
            st.lists(st.sampled_from(NO_FIELDS), max_size=2),
            st.permutations(range(8)),
        ),
        max_size=12,
    )
)
def test_no_mistake_puts_the_encoder_out_of_step(
    engine: Engine, script: list[tuple[list[Header], list[Any], list[int]]]
) -> None:
    client = wire.client(engine)
    sent: dict[int, list[list[Header]]] = {}
    for headers, bad, order in script:
        fields = [
            field for _, field in sorted(zip(order, [*headers, *bad], strict=False), key=lambda pair: pair[0])
        ]
        if bad:
            with pytest.raises(TypeError, match="header field"):
                client.session.open_stream(fields)
        else:
            sent[client.session.open_stream(fields)] = [fields]

    client.hear()

    assert client.lists == sent


def test_a_peer_cannot_make_our_encoders_table_larger(engine: Engine) -> None:
    """Its search is linear, and it would announce 2^32-1 in the next block."""
    client = wire.client(engine, peer_settings={wire.HEADER_TABLE_SIZE: 2**32 - 1})
    for number in range(200):
        client.session.open_stream([*REQUEST, (b"x-%d" % number, bytes(100))])

    client.hear()

    assert client.lists[399] == [[*REQUEST, (b"x-199", bytes(100))]]
    assert client.decoder.header_table_size == 4096


@pytest.mark.parametrize("size", [0, 100])
def test_a_smaller_table_is_announced_before_it_is_used(client: Peer, size: int) -> None:
    client.session.open_stream(REQUEST)
    client.hear()
    client.decoder.max_allowed_table_size = (
        size  # from here on a decoder that was not told refuses every block
    )

    client.tell(wire.settings({wire.HEADER_TABLE_SIZE: size}), wire.settings({wire.HEADER_TABLE_SIZE: size}))
    client.session.open_stream([*REQUEST, (b"x", b"y")])
    client.session.open_stream([*REQUEST, (b"x", b"y")])

    client.hear()
    assert client.decoder.header_table_size == size
    assert client.lists[5] == [[*REQUEST, (b"x", b"y")]]


def test_a_long_value_costs_no_huffman(client: Peer) -> None:
    client.session.open_stream([*REQUEST, (b"x", b"v" * 60_000)])

    assert b"v" * 10_000 in client.take()


@pytest.mark.parametrize("limit", [16_384, 20_000])
def test_our_long_lists_are_cut_to_the_peers_frame_size(engine: Engine, limit: int) -> None:
    server = wire.server(engine, peer_settings={wire.MAX_FRAME_SIZE: limit})
    server.tell(wire.headers(1, end_stream=True))

    server.session.send_headers(1, [*RESPONSE, (b"x", b"v" * 40_000)], end_stream=True)

    frames = server.frames()
    assert [wire.show(frame) for frame in frames] == [
        "HEADERS 1 END_STREAM",
        "CONTINUATION 1",
        "CONTINUATION 1",
    ]
    assert [frame.body_len for frame in frames[:2]] == [limit, limit]
    assert server.lists[1] == [[*RESPONSE, (b"x", b"v" * 40_000)]]


def test_a_block_that_just_fills_a_frame_is_one_frame(engine: Engine) -> None:
    server = wire.server(engine)
    server.tell(wire.headers(1))
    overhead = len(wire.block([(b":status", b"200"), (b"x", b"v" * 16_000)])) - 16_000

    server.session.send_headers(1, [(b":status", b"200"), (b"x", b"v" * (16_384 - overhead))])

    assert server.hear() == ["HEADERS 1"]
    assert server.lists[1][0][1][1] == b"v" * (16_384 - overhead)


@pytest.mark.parametrize("frames", [2, 3])
def test_a_block_that_just_fills_several_frames_has_no_empty_one_at_its_end(
    engine: Engine, frames: int
) -> None:
    server = wire.server(engine)
    server.tell(wire.headers(1))
    overhead = len(wire.block([(b":status", b"200"), (b"x", b"v" * 20_000)])) - 20_000
    value = b"v" * (frames * 16_384 - overhead)

    server.session.send_headers(1, [(b":status", b"200"), (b"x", value)])

    assert server.hear() == ["HEADERS 1", *["CONTINUATION 1"] * (frames - 1)]
    assert server.lists[1] == [[(b":status", b"200"), (b"x", value)]]


# --- Lists that are too large (section 10.5.1) ---

LIMITS: dict[str, Any] = {"max_header_list_bytes": 2000, "max_header_fields": 20}


@pytest.mark.parametrize(
    ("headers", "oversized"),
    [
        (fields_of(2000), ""),
        (fields_of(2001), "2001 bytes; max_header_list_bytes is 2000"),
        (fields_of(1000, count=20 - len(REQUEST)), ""),
        (fields_of(1000, count=21 - len(REQUEST)), "21 fields; max_header_fields is 20"),
    ],
)
def test_an_oversized_request_is_told_with_its_pseudo_fields(
    engine: Engine, headers: list[Header], oversized: str
) -> None:
    """So that the server can answer it, with a status instead of a reset."""
    server = wire.server(engine, **LIMITS)

    events = server.tell(wire.headers(1, headers), wire.headers(3))

    told = REQUEST[:4] if oversized else headers
    assert events[0] == RequestReceived(1, HeaderList(told), end_stream=False, oversized=oversized)
    assert kinds(events) == ["RequestReceived", "RequestReceived"]
    server.session.send_headers(1, TRAILERS_ONLY, end_stream=True)
    assert server.hear() == ["HEADERS 1 END_STREAM"]


def test_each_session_has_limits_of_its_own(engine: Engine) -> None:
    """Though equal lists are one object, with what was found out about it."""
    strict, lenient = wire.server(engine, max_header_list_bytes=1024), wire.server(engine)

    for server, stream_id, oversized in ((lenient, 1, False), (strict, 1, True), (lenient, 3, False)):
        (event,) = server.tell(wire.headers(stream_id, fields_of(1100)))
        assert isinstance(event, RequestReceived)
        assert bool(event.oversized) is oversized


@pytest.mark.parametrize(("body", "ends"), [(RESPONSE, True), (RESPONSE, False), (None, True)])
@pytest.mark.parametrize(("extra", "fine"), [(2000, True), (2001, False)])
def test_oversized_response_headers_end_their_stream_only_and_trailers_keep_the_status(
    engine: Engine, body: list[Header] | None, ends: bool, extra: int, fine: bool
) -> None:
    client = wire.client(engine, **LIMITS)
    for _ in range(2):
        client.session.open_stream(REQUEST)
    client.hear()
    start = [] if body is None else body
    size = sum(len(name) + len(value) for name, value in start)
    status = [(b"grpc-status", b"9"), (b"grpc-message", b"as it was")]
    size += sum(len(name) + len(value) for name, value in status)
    padded = [*start, *status, (b"x", b"v" * (extra - size - 1))]

    if body is None:
        client.tell(wire.headers(1, RESPONSE))
    events = client.tell(wire.headers(1, padded, end_stream=ends))

    if ends and fine:
        assert kinds(events) == ["ResponseReceived" if body else "TrailersReceived"]
    elif ends:
        limit, end = events
        assert isinstance(limit, LimitReached)
        assert limit.limit == "max_header_list_bytes"
        assert "2001 bytes; max_header_list_bytes is 2000" in limit.detail
        assert isinstance(end, ResponseReceived | TrailersReceived)
        assert end.headers == [*start, *status]
    elif not fine:
        assert resets(events) == [(1, CALM, False)]
        assert client.hear() == ["RST_STREAM 1 ENHANCE_YOUR_CALM"]
    assert kinds(client.tell(wire.headers(3, RESPONSE))) == ["ResponseReceived"]


ADVERTISED = 2000 + 32 * 20


@pytest.mark.parametrize("frame_bytes", [2**14, 100])
@pytest.mark.parametrize(("size", "fine"), [(ADVERTISED, True), (ADVERTISED + 1, False)])
def test_a_block_longer_than_any_list_that_we_advertise_ends_the_connection(
    engine: Engine, size: int, fine: bool, frame_bytes: int
) -> None:
    """In one frame or in many: whoever keeps to SETTINGS_MAX_HEADER_LIST_SIZE sends no such block."""
    server = wire.server(engine, **LIMITS, max_continuation_frames=64)
    block = wire.block(fields_of(ADVERTISED // 2))
    block += b"\x00\x01x" + literal_string(size - len(block) - 6)

    pieces = [block[start : start + frame_bytes] for start in range(0, size, frame_bytes)]
    last = len(pieces) - 1
    events = server.tell(
        *[
            wire.raw(0x9 if number else 0x1, 0x4 if number == last else 0, 1, piece)
            for number, piece in enumerate(pieces)
        ]
    )

    if fine:
        assert kinds(events) == ["RequestReceived"]
        assert_alive(server)
    else:
        assert "longer than 2640 bytes (max_header_list_bytes is 2000)" in assert_connection_error(
            server, events, CALM
        )


def literal_string(size: int) -> bytes:
    """Of so many bytes, behind a length of three."""
    return b"\x7f" + bytes(((size - 127) & 0x7F | 0x80, (size - 127) >> 7)) + b"x" * size


def test_a_response_that_unfolds_far_beyond_the_limit_costs_its_call_alone(engine: Engine) -> None:
    """Its block is short, for it repeats itself: what it holds beyond the limit is not kept."""
    client = wire.client(engine, **LIMITS)
    for _ in range(2):
        client.session.open_stream(REQUEST)
    block = b"\x88" + b"\x40\x01x" + literal_string(1000) + b"\xbe" * 30

    events = client.tell(wire.headers(1, encoded=block))

    assert resets(events) == [(1, CALM, False)]
    assert kinds(client.tell(wire.headers(3, RESPONSE))) == ["ResponseReceived"]


def test_a_response_of_four_times_the_length_costs_its_call_alone(engine: Engine) -> None:
    client = wire.client(engine, **LIMITS)
    for _ in range(2):
        client.session.open_stream(REQUEST)
    block = b"\x88" + b"\x00\x01x" + literal_string(4 * ADVERTISED - 7)
    assert len(block) == 4 * ADVERTISED

    assert resets(client.tell(wire.headers(1, encoded=block))) == [(1, CALM, False)]
    assert kinds(client.tell(wire.headers(3, RESPONSE))) == ["ResponseReceived"]
    client.session.open_stream(REQUEST)
    assert_connection_error(client, client.tell(wire.headers(5, encoded=block + b"\x88")), CALM)


def test_a_list_of_too_many_fields_ends_the_connection(engine: Engine) -> None:
    """Twice as many as one may have: those of one byte each take the most time."""
    server = wire.server(engine, **LIMITS)
    block = wire.block(REQUEST)

    events = server.tell(wire.headers(1, encoded=block + b"\x90" * (40 - len(REQUEST))))
    assert kinds(events) == ["RequestReceived"]
    reason = assert_connection_error(
        server, server.tell(wire.headers(3, encoded=block + b"\x90" * (41 - len(REQUEST)))), CALM
    )
    assert "more than 40 fields; max_header_fields is 20" in reason


def test_the_headers_of_open_calls_have_a_bound_together(server: Peer) -> None:
    """And the next call is refused, retry-safe."""
    opened = 0
    while not (refused := resets(server.tell(wire.headers(1 + 2 * opened, fields_of(15_000))))):
        opened += 1
        assert opened < 1000
    assert opened == 6 * 2**20 // (15_000 + 150 * (len(REQUEST) + 1))
    assert refused == [(1 + 2 * opened, ErrorCode.REFUSED_STREAM, False)]

    server.session.reset(1, ErrorCode.CANCEL)
    assert kinds(server.tell(wire.headers(3 + 2 * opened, fields_of(15_000)))) == ["RequestReceived"]


def test_header_blocks_cost_what_they_make_us_do(server: Peer) -> None:
    """Of 907 fields that repeat nothing 807 are work: 80 points, of which the call earns 10."""
    blocks = 0
    while not server.session.ended:
        stream_id = 1 + 2 * blocks
        fields = [*REQUEST, (b"x-number", b"%d" % blocks), *((b"x", b"") for _ in range(900))]
        server.tell(wire.headers(stream_id, fields, end_stream=True))
        server.session.send_headers(stream_id, wire.TRAILERS_ONLY, end_stream=True)
        server.take()
        blocks += 1
        assert blocks < 2000
    assert 130 < blocks < 160


def test_of_a_block_that_serves_no_call_nothing_is_free(server: Peer) -> None:
    """16 KB of Huffman-coded text, 40 times 5 points, on a stream that we have reset."""
    block = wire.block(REQUEST) + b"\0\1x\xff\x81\x7c" + b"\x1f" * 16_000
    server.tell(wire.headers(1))
    server.session.reset(1, ErrorCode.CANCEL)
    blocks = 0
    while not server.session.ended and blocks < 100:
        server.tell(wire.headers(1, encoded=block + b"\0\1x\3%03d" % blocks))
        blocks += 1
    assert 45 <= blocks <= 55


def test_calls_with_long_tokens_may_go_on_for_ever(server: Peer) -> None:
    """16 KB of Huffman-coded text in each, which never repeats."""
    for number in range(2000):
        token = b"\0\1x\xff\x81\x7c" + b"\x1f" * 16_000
        block = wire.block([*REQUEST, (b"x-number", b"%d" % number)]) + token
        server.tell(wire.headers(1 + 2 * number, encoded=block, end_stream=True))
        server.session.send_headers(1 + 2 * number, wire.TRAILERS_ONLY, end_stream=True)
        server.take()

    assert not server.session.ended
    assert server.session._guard.bill().startswith("too much work that serves no call:  (")


def test_the_headers_of_open_calls_and_their_trailers_have_one_limit(server: Peer) -> None:
    for number in range(420):
        events = server.tell(wire.headers(1 + 2 * number))
        events = server.tell(wire.headers(1 + 2 * number, [(b"x-text", b"x" * 15_000)], end_stream=True))
        if kinds(events) != ["TrailersReceived"]:
            break
    assert 375 < number < 419
    assert resets(events) == [(1 + 2 * number, ErrorCode.ENHANCE_YOUR_CALM, False)]
    assert "max_open_header_bytes" in repr(events)

    server.session.reset(1, ErrorCode.CANCEL)
    server.tell(wire.headers(2001))
    events = server.tell(wire.headers(2001, [(b"x-text", b"x" * 15_000)], end_stream=True))
    assert kinds(events) == ["TrailersReceived"]


def test_a_request_with_headers_beyond_the_limit_earns_nothing(server: Peer) -> None:
    thousand_bytes = b"\x40\x01x\x7f\xe9\x06" + b"x" * 1000
    for stream_id, times in ((1, 70), (3, 1)):
        block = wire.block(REQUEST) + thousand_bytes + b"\xbe" * times
        server.tell(wire.headers(stream_id, encoded=block, end_stream=True))
        server.session.send_headers(stream_id, wire.TRAILERS_ONLY, end_stream=True)
        server.take()
        assert server.session.points_earned == (10 if stream_id == 3 else 0)


def test_an_hpack_bomb_is_refused_before_it_unfolds(server: Peer) -> None:
    """4 KB of table, then 16 KB of references to it: 64 MB, if somebody put them together."""
    bomb = b"\x40\x01x" + b"\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 12_000

    assert_connection_error(server, server.tell(wire.headers(1, encoded=bomb)), CALM)
