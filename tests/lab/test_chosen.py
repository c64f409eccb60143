"""Of the calls that a rule does not want nothing is told, and of the others all."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.chosen import Chosen, rule_of
from rawgrpc_proxy.lab.events import (
    Event,
    FrameCut,
    FrameSeen,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    MessageSeen,
    StreamBegun,
    StreamEnded,
    Unreadable,
)
from rawgrpc_proxy.lab.filters import Facts, Filter
from rawgrpc_proxy.lab.late_views import LateViews
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.sinks import QueueSink
from rawgrpc_proxy.lab.views import Views
from tests.lab.test_late_views import begun, looking_on
from tests.lab.test_link_view import CLIENT, LINK, REQUEST, RESPONSE, SERVER, TRAILERS, Peers, data
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import OK, message


class Choosing(Peers):
    """Peers of whom both all is told, and what a rule chooses."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.chosen: list[Event] = []
        chosen = Chosen(self.chosen.append, rule_of(Filter.parse(rule)))

        def tell(event: Event) -> None:
            self.events.append(event)
            chosen(event)

        self.view = LinkView(LINK, tell, clock=lambda: 0.0, payload_bytes=100)
        self.say(CLIENT, h2.PREFACE + h2.settings({}))
        self.say(SERVER, h2.settings({}))

    def call(self, stream: int, *extra: tuple[str, str], block: int = 1000) -> None:
        frame = self.headers(CLIENT, [*REQUEST, *extra], stream)
        payload = frame[h2.HEADER_BYTES :]
        first, rest = payload[:block], payload[block:]
        self.say(
            CLIENT, h2.frame_header(h2.HEADERS, 0 if rest else h2.END_HEADERS, stream, len(first)) + first
        )
        if rest:
            last = h2.frame_header(h2.CONTINUATION, h2.END_HEADERS, stream, len(rest)) + rest
            for number in range(len(last)):
                self.say(CLIENT, last[number : number + 1])
        self.say(CLIENT, data(message(b"hello"), stream, end=True) + h2.ping(b"12345678"))
        self.say(SERVER, self.headers(SERVER, RESPONSE, stream) + h2.window_update(stream, 1))
        self.say(SERVER, self.headers(SERVER, TRAILERS, stream, end=True) + h2.rst_stream(stream, 0))


def stream_of(event: Event) -> int:
    match event:
        case FrameSeen() | FrameCut() | HeadersSeen() | Unreadable():
            return event.stream_id
        case LinkOpened() | LinkClosed():
            return 0
        case _:
            return event.stream.id


@pytest.mark.parametrize("block", [1000, 3])
def test_all_of_the_calls_that_match_is_told_in_order_and_nothing_of_others(block: int) -> None:
    peers = Choosing("metadata.x-user=bob")
    for stream, user in ((1, "alice"), (3, "bob"), (5, "carol"), (7, "bob")):
        peers.call(stream, ("x-user", user), block=block)
    peers.view.close(9.0)
    wanted = [
        event
        for event in peers.events
        if isinstance(event, LinkOpened | LinkClosed)
        # The reset comes when the stream is over, and belongs to no call any more.
        or (stream_of(event) in (3, 7) and getattr(event, "type", None) != h2.RST_STREAM)
    ]
    assert peers.chosen == wanted
    assert sum(isinstance(event, MessageSeen) for event in wanted) == 2
    assert sum(isinstance(event, FrameSeen) for event in wanted) == 2 * (5 + (block == 3))


def test_frames_that_are_held_are_copies() -> None:
    peers = Choosing("method=/pkg.S/*")
    frame = bytearray(peers.headers(CLIENT, [*REQUEST, ("x-long", "x" * 5000)], 1))
    peers.say(CLIENT, memoryview(frame))  # type: ignore[arg-type]
    [told] = [event for event in peers.chosen if isinstance(event, FrameSeen)]
    before = bytes(told.payload)
    frame[:] = bytes(len(frame))
    assert bytes(told.payload) == before


def test_a_call_whose_headers_cannot_be_read_is_one_without_any() -> None:
    peers, nobody = Choosing("metadata.x-user!=bob"), Choosing("metadata.x-user=bob")
    for each in (peers, nobody):
        each.say(CLIENT, h2.frame_header(h2.HEADERS, h2.END_HEADERS, 1, 1) + b"\xff")
        each.say(CLIENT, data(b"x", 1))
        each.view.close(9.0)
    assert any(isinstance(event, StreamEnded) for event in peers.chosen)
    # That a connection cannot be read any more concerns all its calls.
    assert not any(isinstance(event, StreamBegun) for event in nobody.chosen)


def test_a_view_cannot_choose_by_what_is_known_in_the_end() -> None:
    with pytest.raises(ConfigError, match="a view cannot choose calls by their status"):
        Views(print, which=Filter.parse("method=/a/* status=OK"))
    with pytest.raises(ConfigError, match="a view cannot choose calls by their status"):
        LateViews(print, which=Filter.parse("status!=OK"))


@on_every_engine
@trio_test
async def test_a_rule_may_be_a_function_and_who_is_told_a_task(engine: Engine) -> None:
    asked: list[Facts] = []

    def which(facts: Facts) -> bool:
        asked.append(facts)
        return facts.method == "/a.B/D"

    async with QueueSink() as events:
        tap = Views(events, which=which, sides=[Side.DOWNSTREAM], payload_bytes=9)
        async with a_proxy(engine, tap=tap) as house:
            client = await house.client()
            for method in ("/a.B/C", "/a.B/D", "/a.B/E"):
                call = await client.request(method, body=method.encode())
                await (await house.backend.request()).respond(b"reply")
                assert (await call.answer()).status == Status.OK
        events.close()
        seen = [event async for event in events]
    assert [facts.method for facts in asked] == ["/a.B/C", "/a.B/D", "/a.B/E"]
    messages = [event for event in seen if isinstance(event, MessageSeen)]
    assert [(event.sender, event.index, event.flag, event.payload) for event in messages] == [
        (CLIENT, 0, 0, b"/a.B/D"),
        (SERVER, 0, 0, b"reply"),
    ]
    assert {stream_of(event) for event in seen} == {0, 3}


@on_every_engine
@trio_test
async def test_calls_that_are_open_already_are_chosen_as_well(engine: Engine) -> None:
    told: list[Event] = []
    async with a_proxy(engine) as house:
        (alice, one), (bob, two) = [await begun(house, (b"x-user", user)) for user in (b"alice", b"bob")]
        with looking_on(LateViews(told.append, which=Filter.parse("metadata.x-user=bob"), payload_bytes=9)):
            for call, served in ((alice, one), (bob, two)):
                await served.data(message(b"more"))
                await served.headers(OK, end=True)
                await call.answer()
                await call.data(b"", end=True)
            await until(lambda: sum(isinstance(event, StreamEnded) for event in told) == 2)
    assert {stream_of(event) for event in told} == {0, 3}
    assert sum(isinstance(event, MessageSeen) for event in told) == 2
