"""A link is told frame by frame and message by message, however its bytes are cut, and whatever they are."""

from collections.abc import Iterator
from time import process_time

import attrs
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab import link_view
from rawgrpc_proxy.lab.events import (
    Event,
    FrameCut,
    FrameSeen,
    HalfClosed,
    HeadersKind,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    MessageBegun,
    MessageSeen,
    Sender,
    StreamBegun,
    StreamEnded,
    Unreadable,
    who,
)
from rawgrpc_proxy.lab.frame_details import (
    GoAway,
    Malformed,
    Ping,
    Settings,
    WindowUpdate,
    details,
    flag_names,
    frame_name,
)
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.net.tapped import Link
from tests.proxy.house import a_proxy, on_every_engine

LINK = Link(number=1, side=Side.DOWNSTREAM, peer="127.0.0.1:5", tls=None)
CLIENT, SERVER = Sender.CLIENT, Sender.SERVER
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/pkg.S/Do"),
    (":authority", "a"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("grpc-encoding", "gzip"),
]
RESPONSE = [(":status", "200"), ("content-type", "application/grpc+proto")]
TRAILERS = [("grpc-status", "14"), ("grpc-message", "gone")]


class Peers:
    """Writes what client and server say, each with an encoder of its own, and keeps the events."""

    def __init__(self, payload_bytes: int = 0, link: Link = LINK) -> None:
        self.events: list[Event] = []
        self.view = LinkView(link, self.events.append, clock=lambda: 0.0, payload_bytes=payload_bytes)
        self._encoders = {CLIENT: hpack.Encoder(), SERVER: hpack.Encoder()}
        self.now = 1.0
        self.say(CLIENT, h2.PREFACE + h2.settings({}))
        self.say(SERVER, h2.settings({}))
        self.events.clear()

    def say(self, sender: Sender, data: bytes) -> list[Event]:
        """What is told of it."""
        before = len(self.events)
        self.view.feed(sender, data, self.now)
        return self.events[before:]

    def headers(
        self, sender: Sender, fields: list[tuple[str, str]], stream: int = 1, end: bool = False
    ) -> bytes:
        block = self._encoders[sender].encode(fields)
        return h2.frame_header(h2.HEADERS, h2.END_HEADERS | end, stream, len(block)) + block

    def begin(self, stream: int = 1) -> None:
        self.say(CLIENT, self.headers(CLIENT, REQUEST, stream))


def data(payload: bytes, stream: int = 1, end: bool = False) -> bytes:
    return h2.frame_header(h2.DATA, int(end), stream, len(payload)) + payload


def meanings(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, FrameSeen | LinkOpened)]


def test_a_call_is_told_from_its_begin_to_its_end() -> None:
    peers = Peers(payload_bytes=3)
    peers.say(CLIENT, peers.headers(CLIENT, REQUEST) + data(encode_message(b"hello"), end=True))
    peers.now = 2.0
    peers.say(SERVER, peers.headers(SERVER, RESPONSE) + data(encode_message(b"ab") + encode_message(b"")))
    peers.say(SERVER, peers.headers(SERVER, TRAILERS, end=True))
    told = meanings(peers.events)
    assert [type(event) for event in told] == [
        StreamBegun, HeadersSeen, MessageBegun, MessageSeen, HalfClosed,
        HeadersSeen, MessageBegun, MessageSeen, MessageBegun, MessageSeen, HeadersSeen, HalfClosed, StreamEnded,
    ]  # fmt: skip
    begun, _, _, message, half, response, _, first, _, second, trailers, _, ended = told
    assert isinstance(begun, StreamBegun)
    assert (begun.stream.method, begun.stream.request.encoding) == ("/pkg.S/Do", "gzip")
    assert isinstance(message, MessageSeen)
    assert (message.sender, message.index, message.length, message.payload) == (CLIENT, 0, 5, b"hel")
    assert not message.is_whole
    assert isinstance(half, HalfClosed)
    assert (half.sender, half.frame_type, half.missing_bytes) == (CLIENT, h2.DATA, 0)
    assert isinstance(response, HeadersSeen)
    assert isinstance(trailers, HeadersSeen)
    assert (response.kind, trailers.kind) == (HeadersKind.RESPONSE, HeadersKind.TRAILERS)
    assert (b"grpc-message", b"gone") in trailers.headers
    assert isinstance(first, MessageSeen)
    assert isinstance(second, MessageSeen)
    assert [(each.index, each.payload, each.is_whole) for each in (first, second)] == [
        (0, b"ab", True),
        (1, b"", True),
    ]
    assert isinstance(ended, StreamEnded)
    assert (ended.sender, ended.frame_type, ended.at) == (SERVER, h2.HEADERS, 2.0)
    assert (ended.stream.grpc_status, ended.stream.http_status) == (14, 200)


def shape(events: list[Event]) -> list[object]:
    """The events as values: a stream is its number, a payload its bytes."""
    values: list[object] = []
    for event in events:
        fields = attrs.asdict(event, recurse=False)
        if "stream" in fields and fields["stream"] is not None:
            fields["stream"] = fields["stream"].id
        if isinstance(event, FrameSeen):
            fields["payload"] = bytes(event.payload)
        values.append((type(event), tuple(fields.items())))
    return values


@given(st.lists(st.integers(1, 40), max_size=30))
def test_how_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    def run(cut: Iterator[int]) -> list[object]:
        peers = Peers(payload_bytes=64)
        said = peers.headers(CLIENT, REQUEST) + data(encode_message(b"x" * 50)[:20])
        said += data(encode_message(b"x" * 50)[20:] + encode_message(b"yy"), end=True)
        values: list[object] = []
        while said:
            length = next(cut, len(said))
            values += shape(peers.say(CLIENT, said[:length]))
            said = said[length:]
        return values

    assert run(iter(cuts)) == run(iter(()))


@given(st.binary(max_size=300), st.sampled_from([CLIENT, SERVER]), st.booleans())
def test_no_bytes_make_it_raise(noise: bytes, sender: Sender, begun: bool) -> None:
    peers = Peers(payload_bytes=10)
    if begun:
        peers.begin()
        peers.say(sender, noise)
    else:
        peers.view = LinkView(LINK, peers.events.append, payload_bytes=10)
        peers.say(sender, noise)
    peers.view.close(3.0)
    assert isinstance(peers.events[-1], LinkClosed)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CLIENT, SERVER]),
            st.integers(0, 10),
            st.integers(0, 255),
            st.integers(0, 5),
            st.binary(max_size=20),
        ),
        max_size=20,
    )
)
def test_no_frames_make_it_raise_and_every_stream_that_begins_ends_once(
    said: list[tuple[Sender, int, int, int, bytes]],
) -> None:
    peers = Peers(payload_bytes=10)
    peers.begin()
    for sender, kind, flags, stream, payload in said:
        peers.say(sender, h2.frame_header(kind, flags, stream, len(payload)) + payload)
    peers.view.close(3.0)
    begun = [event.stream.id for event in peers.events if isinstance(event, StreamBegun)]
    ended = [event.stream.id for event in peers.events if isinstance(event, StreamEnded)]
    assert sorted(begun) == sorted(ended)


def test_a_header_block_in_several_frames_is_one_list() -> None:
    peers = Peers()
    block = peers.headers(CLIENT, REQUEST)[9:]
    peers.say(CLIENT, h2.frame_header(h2.HEADERS, h2.END_STREAM, 1, 5) + block[:5])
    assert meanings(peers.events) == []
    rest = block[5:]
    told = peers.say(CLIENT, h2.frame_header(h2.CONTINUATION, h2.END_HEADERS, 1, len(rest)) + rest)
    [headers] = [event for event in told if isinstance(event, HeadersSeen)]
    assert headers.headers[2] == (b":path", b"/pkg.S/Do")
    assert (headers.block_bytes, headers.end_stream) == (len(block), True)


def test_padding_and_priority_are_left_out() -> None:
    peers = Peers(payload_bytes=10)
    block = peers.headers(CLIENT, REQUEST)[9:]
    payload = b"\x02" + bytes(5) + block + bytes(2)
    flags = h2.END_HEADERS | h2.PADDED | h2.PRIORITY_FLAG
    peers.say(CLIENT, h2.frame_header(h2.HEADERS, flags, 1, len(payload)) + payload)
    payload = b"\x03" + encode_message(b"m") + bytes(3)
    told = peers.say(CLIENT, h2.frame_header(h2.DATA, h2.PADDED, 1, len(payload)) + payload)
    [message] = [event for event in told if isinstance(event, MessageSeen)]
    assert message.payload == b"m"
    assert (message.stream.method, message.stream.request.data_bytes) == ("/pkg.S/Do", 6)
    [headers] = [event for event in peers.events if isinstance(event, HeadersSeen)]
    assert headers.headers == [(name.encode(), value.encode()) for name, value in REQUEST]


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
def test_a_reset_names_whose_it_is(sender: Sender) -> None:
    peers = Peers()
    peers.begin()
    [_, ended] = peers.say(sender, h2.rst_stream(1, 8))
    assert isinstance(ended, StreamEnded)
    assert (ended.sender, ended.frame_type, ended.error_code) == (sender, h2.RST_STREAM, 8)


def test_a_reset_behind_a_whole_response_has_not_ended_the_call() -> None:
    peers = Peers()
    peers.begin()
    peers.say(SERVER, peers.headers(SERVER, [*RESPONSE, *TRAILERS], end=True))
    [_, ended] = peers.say(SERVER, h2.rst_stream(1, 0))
    assert isinstance(ended, StreamEnded)
    assert (ended.sender, ended.frame_type, ended.error_code) == (SERVER, h2.HEADERS, None)
    assert (ended.reset_by, ended.reset_code, ended.stream.grpc_status) == (SERVER, 0, 14)


def test_goaway_ends_the_streams_it_disowns_and_the_end_of_the_link_the_others() -> None:
    peers = Peers()
    peers.begin(1)
    peers.begin(3)
    [_, ended] = peers.say(SERVER, h2.goaway(1, 2))
    assert isinstance(ended, StreamEnded)
    assert (ended.stream.id, ended.frame_type, ended.error_code) == (3, h2.GOAWAY, 2)
    peers.view.close(9.0)
    ended, closed = peers.events[-2:]
    assert isinstance(ended, StreamEnded)
    assert (ended.stream.id, ended.sender, ended.frame_type) == (1, None, None)
    assert closed == LinkClosed(LINK, 9.0)


def test_a_frame_that_the_end_of_the_link_has_cut_is_told_by_its_header() -> None:
    peers = Peers()
    peers.begin()
    assert peers.say(CLIENT, data(bytes(20_000), end=True)[:5_000]) == []
    peers.say(SERVER, h2.ping(b"12345678")[:8])  # not even a header
    peers.view.close(9.0)
    cut, ended, closed = peers.events[-3:]
    assert cut == FrameCut(LINK, 9.0, CLIENT, h2.DATA, h2.END_STREAM, 1, 20_000)
    assert isinstance(ended, StreamEnded)
    assert closed == LinkClosed(LINK, 9.0)


def test_a_message_that_is_cut_off_is_told_where_the_stream_ends() -> None:
    for cut, missing in ((3, -1), (7, 3)):
        peers = Peers()
        peers.begin()
        told = peers.say(CLIENT, data(encode_message(b"hello")[:cut], end=True))
        [half] = [event for event in told if isinstance(event, HalfClosed)]
        assert half.missing_bytes == missing


def test_a_body_that_is_no_grpc_has_no_messages() -> None:
    peers = Peers()
    peers.begin()
    peers.say(SERVER, peers.headers(SERVER, [(":status", "502"), ("content-type", "text/html")]))
    told = peers.say(SERVER, data(b"<html>bad gateway</html>", end=True))
    assert [type(event) for event in told] == [FrameSeen, HalfClosed]
    assert isinstance(told[1], HalfClosed)
    assert (told[1].stream.http_status, told[1].stream.response.data_bytes) == (502, 24)


def test_an_informational_response_is_not_the_response() -> None:
    peers = Peers()
    peers.begin()
    peers.say(SERVER, peers.headers(SERVER, [(":status", "103")]) + peers.headers(SERVER, RESPONSE))
    kinds = [event.kind for event in peers.events if isinstance(event, HeadersSeen)]
    assert kinds[1:] == [HeadersKind.INFORMATIONAL, HeadersKind.RESPONSE]


def test_headers_behind_the_end_are_late() -> None:
    peers = Peers()
    peers.begin()
    peers.say(SERVER, peers.headers(SERVER, RESPONSE, end=True) + peers.headers(SERVER, TRAILERS))
    peers.say(CLIENT, h2.rst_stream(1, 8) + peers.headers(CLIENT, TRAILERS))
    late = [e for e in peers.events if isinstance(e, HeadersSeen) and e.kind is HeadersKind.LATE]
    assert [event.sender for event in late] == [SERVER, CLIENT]


def test_who_speaks_no_http2_is_told_once_and_read_no_more() -> None:
    events: list[Event] = []
    view = LinkView(LINK, events.append, clock=lambda: 1.0)
    view.received(b"GET / HTTP/1.1\r\n\r\n")
    view.sent(b"HTTP/1.1 505 no\r\n\r\n")
    view.received(b"GET / HTTP/1.1\r\n\r\n")
    assert [type(event) for event in events] == [LinkOpened, Unreadable, Unreadable]
    assert [event.what for event in events if isinstance(event, Unreadable)] == ["link", "link"]


def test_a_broken_header_block_loses_header_lists_and_nothing_else() -> None:
    peers = Peers()
    peers.begin()
    peers.say(CLIENT, h2.frame_header(h2.HEADERS, h2.END_HEADERS, 3, 1) + b"\xff")
    [lost] = [event for event in peers.events if isinstance(event, Unreadable)]
    assert (lost.what, lost.stream_id) == ("headers", 3)
    told = peers.say(CLIENT, peers.headers(CLIENT, REQUEST, 5) + data(encode_message(b"m"), 1, end=True))
    kinds = [type(event) for event in told]
    assert kinds == [FrameSeen, StreamBegun, FrameSeen, MessageBegun, MessageSeen, HalfClosed]


def test_a_long_block_of_tiny_fields_takes_the_loop_no_longer_than_its_length() -> None:
    peers = Peers()
    block = b"\x00\x00\x00" * 15_000 + b"\x00\x01a" + b"\x7f\xa1\xc1\x1e" + b"x" * 500_000
    frame = h2.frame_header(h2.HEADERS, h2.END_HEADERS, 1, len(block)) + block
    began = process_time()
    events = peers.say(CLIENT, frame)
    assert process_time() - began < 2
    assert [len(each.headers) for each in events if isinstance(each, HeadersSeen)] == [15_001]


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_view, "MAX_STREAMS", 3)
    monkeypatch.setattr(link_view, "MAX_BLOCK_BYTES", 1000)
    peers = Peers()
    for stream in range(1, 11, 2):
        peers.begin(stream)
    forgotten = [e.stream_id for e in peers.events if isinstance(e, Unreadable) and e.what == "stream"]
    assert forgotten == [1, 3]
    # Each CONTINUATION adds some, and END_HEADERS never comes.
    peers.say(CLIENT, h2.frame_header(h2.HEADERS, 0, 11, 0))
    for _ in range(100):
        peers.say(CLIENT, h2.frame_header(h2.CONTINUATION, 0, 11, 100) + bytes(100))
    assert [e.what for e in peers.events if isinstance(e, Unreadable)][2:] == ["headers"]


def test_frames_are_read_by_their_types() -> None:
    peers = Peers()
    said = (
        h2.settings({h2.Setting.MAX_FRAME_SIZE: 16384})
        + h2.ping(b"12345678", ack=True)
        + h2.goaway(7, 11, b"calm")
        + h2.window_update(1, 5)
        + h2.frame_header(h2.PING, 0, 0, 1)
        + b"x"
    )
    seen = []
    view = LinkView(LINK, lambda event: seen.append(details(event)) if isinstance(event, FrameSeen) else None)
    view.feed(SERVER, said, 0.0)
    peers.say(SERVER, said)
    assert seen[:4] == [
        Settings(ack=False, entries=((5, 16384),)),
        Ping(ack=True, opaque=b"12345678"),
        GoAway(7, 11, b"calm"),
        WindowUpdate(5),
    ]
    assert isinstance(seen[4], Malformed)
    assert (frame_name(h2.DATA), frame_name(0x1F)) == ("DATA", "type 0x1f")
    assert flag_names(h2.HEADERS, 0x45) == ["END_STREAM", "END_HEADERS", "0x40"]


@on_every_engine
@trio_test
async def test_both_links_of_a_call_through_the_proxy_are_told(engine: Engine) -> None:
    events: list[Event] = []
    views = Views(events.append, payload_bytes=10)
    async with a_proxy(engine, tap=views, pool={"tap": views}) as house:
        client = await house.client()
        call = await client.request(body=b"hello")
        await (await house.backend.request()).respond(b"there")
        assert (await call.answer()).status == Status.OK
    messages = [
        (who(event.link, event.sender), event.payload) for event in events if isinstance(event, MessageSeen)
    ]
    assert messages == [
        ("caller", b"hello"),
        ("proxy", b"hello"),
        ("upstream", b"there"),
        ("proxy", b"there"),
    ]
    ended = [
        who(event.link, event.sender) for event in events if isinstance(event, StreamEnded) and event.sender
    ]
    assert sorted(ended) == ["proxy", "upstream"]
    assert not [event for event in events if isinstance(event, Unreadable)]
    assert sum(isinstance(event, LinkOpened) for event in events) == 2
