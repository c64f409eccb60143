"""What holds for any bytes, any chunking, and any order of commands."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawgrpc_proxy.config import ENGINES, Engine
from rawgrpc_proxy.http2.events import ConnectionEnded, Event, RequestReceived
from tests.http2 import peer as wire
from tests.http2.peer import PREFACE, REQUEST, RESPONSE, TRAILERS, Header, Peer

on_every_engine = pytest.mark.parametrize("engine", ENGINES)
sides = st.booleans()


def begun(engine: Engine, *, client_side: bool, **changes: Any) -> Peer:
    """A session in the middle of things: stream 1 waits for a body, 3 is half-closed, 5 is reset."""
    peer = Peer(wire.new_session(engine, client_side=client_side, **changes))
    session = peer.session
    if client_side:
        session.start()
        peer.tell(wire.settings({wire.INITIAL_WINDOW_SIZE: 20}))
        for _ in range(3):
            session.open_stream(REQUEST)
        session.send_data(1, bytes(50))
        peer.tell(wire.headers(1, RESPONSE), wire.headers(3, RESPONSE, end_stream=True))
    else:
        peer.tell(PREFACE, wire.settings({wire.INITIAL_WINDOW_SIZE: 20}))
        peer.tell(wire.headers(1), wire.headers(3, end_stream=True), wire.headers(5))
        session.send_headers(1, RESPONSE)
        session.send_data(1, bytes(50))
    session.reset(5, 8)
    peer.hear()
    return peer


def shown(events: Sequence[Event]) -> list[tuple[str, object]]:
    """The events in a form that can be compared, with payloads as bytes."""
    return [
        ("ConnectionEnded", event.error.error_code)
        if isinstance(event, ConnectionEnded)
        else (type(event).__name__, event)
        for event in events
    ]


# --- Any bytes ---

header_lists: st.SearchStrategy[list[Header]] = st.one_of(
    st.sampled_from([REQUEST, RESPONSE, TRAILERS, [], [*REQUEST, (b"content-length", b"3")], REQUEST[1:]]),
    st.lists(
        st.tuples(
            st.sampled_from([b":status", b":path", b"x", b"X", b"te", b"content-length", b"connection"]),
            st.sampled_from([b"", b"100", b"200", b"/", b"a\nb", b"trailers", b"v" * 300]),
        ),
        max_size=4,
    ),
)
stream_ids = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7, 9, 2**31 - 1])
codes = st.sampled_from([0, 1, 7, 8, 2**32 - 1])

sensible_frames: st.SearchStrategy[bytes] = st.one_of(
    st.builds(
        lambda stream, fields, end, padding: wire.headers(
            stream or 1, fields, end_stream=end, padding=padding
        ),
        stream_ids,
        header_lists,
        st.booleans(),
        st.sampled_from([None, None, 0, 3]),
    ),
    st.builds(
        lambda stream, size, end, padding: wire.data(
            stream or 1, bytes(size), end_stream=end, padding=padding
        ),
        stream_ids,
        st.sampled_from([0, 1, 3, 100, 16_000]),
        st.booleans(),
        st.sampled_from([None, None, 0, 9]),
    ),
    st.builds(lambda stream, code: wire.rst_stream(stream or 1, code), stream_ids, codes),
    st.builds(wire.window_update, stream_ids, st.sampled_from([1, 1, 7, 1000, 0, 2**31 - 1])),
    st.builds(wire.ping, st.just(b"12345678"), ack=st.booleans()),
    st.builds(wire.goaway, stream_ids, codes, st.binary(max_size=5)),
    st.builds(
        wire.settings,
        st.dictionaries(
            st.integers(1, 7),
            st.sampled_from([0, 1, 100, 4096, 16_384, 65_535, 2**31 - 1, 2**32 - 1]),
            max_size=2,
        ),
    ),
    st.just(wire.SETTINGS_ACK),
    st.builds(lambda stream: wire.priority(stream or 1), stream_ids),
    st.builds(
        lambda stream, fields: (
            wire.headers(stream or 1, encoded=wire.block(fields)[:5], end_headers=False)
            + wire.continuation(stream or 1, wire.block(fields)[5:], end_headers=True)
        ),
        stream_ids,
        header_lists,
    ),
)
any_frames = st.one_of(
    sensible_frames,
    sensible_frames,
    st.builds(wire.raw, st.integers(0, 11), st.integers(0, 255), stream_ids, st.binary(max_size=20)),
)
scripts = st.lists(any_frames, max_size=12).map(b"".join)


@on_every_engine
@given(client_side=sides, noise=st.one_of(st.binary(max_size=200), scripts), start=st.booleans())
def test_any_bytes_give_events_or_one_end(
    engine: Engine, client_side: bool, noise: bytes, start: bool
) -> None:
    if start:
        peer = Peer(wire.new_session(engine, client_side=client_side))
        if client_side:
            peer.session.start()
    else:
        peer = begun(engine, client_side=client_side)

    events = peer.tell(noise)

    ends = [index for index, event in enumerate(events) if isinstance(event, ConnectionEnded)]
    assert ends in ([], [len(events) - 1])
    assert peer.session.ended == bool(ends)
    if ends:
        assert peer.tell(noise) == []
        assert peer.session.streams == {}


@on_every_engine
@given(client_side=sides, script=scripts, position=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_events_or_one_end(
    engine: Engine, client_side: bool, script: bytes, position: int, bit: int
) -> None:
    peer = begun(engine, client_side=client_side)
    flipped = bytearray(script)
    if flipped:
        flipped[position % len(flipped)] ^= 1 << bit

    events = peer.tell(bytes(flipped))

    assert all(not isinstance(event, ConnectionEnded) for event in events[:-1])
    wire.parse(peer.take() if not client_side else peer.take().removeprefix(PREFACE))


# --- Any chunking ---


@on_every_engine
@given(
    client_side=sides, script=scripts, cuts=st.lists(st.integers(0, 40_000), max_size=8), single=st.booleans()
)
def test_any_chunking_gives_the_same_events_and_the_same_output(
    engine: Engine, client_side: bool, script: bytes, cuts: list[int], single: bool
) -> None:
    whole, parts = begun(engine, client_side=client_side), begun(engine, client_side=client_side)
    if single and len(script) < 600:
        cuts = list(range(len(script)))
    points = [0, *sorted(cut % (len(script) + 1) for cut in cuts), len(script)]

    expected = whole.tell(script)
    events = [event for start, stop in pairwise(points) for event in parts.tell(script[start:stop])]

    assert shown(events) == shown(expected)
    assert parts.take() == whole.take()
    assert parts.session.take_closed() == whole.session.take_closed()


@on_every_engine
@pytest.mark.parametrize(
    "opening",
    [
        PREFACE + wire.settings() + wire.headers(1),
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        wire.settings() + wire.headers(1),
    ],
)
def test_any_chunking_of_an_opening_gives_the_same_events_and_the_same_output(
    engine: Engine, opening: bytes
) -> None:
    def heard(chunks: list[bytes]) -> tuple[list[tuple[str, object]], bytes]:
        peer = Peer(wire.new_session(engine, client_side=False))
        return shown([event for chunk in chunks for event in peer.tell(chunk)]), peer.take()

    expected = heard([opening])

    for cut in range(len(opening)):
        assert heard([opening[:cut], opening[cut:]]) == expected
    assert heard([bytes([byte]) for byte in opening]) == expected


# --- The engines agree ---

Command = Callable[[Peer], None]


def commands(stream_id: int, size: int, *, end_stream: bool) -> list[Command]:
    return [
        lambda peer: peer.session.send_data(stream_id, bytes(size), end_stream=end_stream),
        lambda peer: peer.session.send_headers(stream_id, TRAILERS, end_stream=True),
        lambda peer: peer.session.send_headers(stream_id, [], end_stream=True),
        lambda peer: peer.session.reset(stream_id, 8),
        lambda peer: peer.session.reset_after_end(stream_id, 0),
    ]


answers = st.builds(
    lambda which, stream_id, size, end: commands(stream_id, size, end_stream=end)[which],
    st.integers(0, 4),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([0, 1, 5, 30, 40_000]),
    st.booleans(),
)
talks = st.lists(st.one_of(any_frames, sensible_frames, answers), max_size=12)


def respond(peer: Peer, events: Sequence[Event]) -> None:
    """Begin a response wherever there is a new request."""
    for event in events:
        if isinstance(event, RequestReceived):
            peer.session.send_headers(event.stream_id, RESPONSE)


@given(client_side=sides, talk=talks)
@settings(max_examples=300)
def test_the_engines_hear_and_say_the_same(client_side: bool, talk: list[bytes | Command]) -> None:
    """RelaySession is held against H2Session, frame by frame."""
    transcripts = []
    for engine in ENGINES:
        peer = begun(engine, client_side=client_side)
        if not client_side:
            peer.session.send_headers(3, RESPONSE)
        transcript: list[object] = []
        for step in talk:
            if isinstance(step, bytes):
                events = peer.tell(step)
                transcript.append(shown(events))
                respond(peer, events)
            else:
                step(peer)
            transcript.append((peer.session.wants_output, peer.hear()))
            transcript.append((sorted(peer.session.streams), peer.session.take_closed(), peer.session.room))
        transcripts.append((transcript, peer.bodies, peer.lists))

    assert transcripts.count(transcripts[0]) == len(transcripts)
