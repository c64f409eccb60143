"""What the middle does where no fault strikes, and to the other calls where one does."""

import random
from collections.abc import Callable, Sequence

import pytest
from hyperframe.frame import (
    ExtensionFrame,
    GoAwayFrame,
    HeadersFrame,
    PriorityFrame,
    PushPromiseFrame,
    SettingsFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.config import ENGINES, Engine, Http2Settings
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.events import ConnectionEnded, DataReceived, StreamReset
from rawgrpc_proxy.lab.faults.actions import (
    Action,
    AnswerHttp,
    AnswerStatus,
    BadGrpcMessage,
    Bandwidth,
    ChangeSettings,
    CutMessage,
    Delay,
    DoubleMessage,
    DropStatus,
    DropTrailers,
    FlipBits,
    Goaway,
    Latency,
    PadFrame,
    PingFlood,
    Reset,
    SplitFrame,
    Stall,
    SwapMessages,
    TrailersBeforeData,
    UnknownFrame,
)
from rawgrpc_proxy.lab.faults.fault import Fault, Strike
from rawgrpc_proxy.lab.faults.places import (
    AfterBytes,
    AfterMessage,
    AfterTime,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
    Place,
)
from rawgrpc_proxy.net.connection import make_session
from rawgrpc_proxy.net.tapped import Link
from tests.lab.faults.talk import OK, RESPONSE, Field, Talk, message, request_fields


def chat(talk: Talk) -> None:
    """Something of everything."""
    client, server = talk.client, talk.server
    client.headers(1, request_fields(), pieces=3)
    client.frame(PriorityFrame(1, 0, 5))
    client.data(1, message(b"x" * 20_000)[:16_384])
    client.data(1, message(b"x" * 20_000)[16_384:], end=True, pad=7)
    server.headers(1, RESPONSE, pieces=2)
    client.headers(3, [*request_fields(), (b"x-a", b"b" * 300)], end=True)
    server.frame(ExtensionFrame(0xEE, 0, body=b"what"))
    server.data(1, message(b"y"))
    server.headers(1, OK, end=True)
    client.frame(SettingsFrame(0, {1: 100}))
    server.acknowledge()
    server.headers(3, RESPONSE)
    client.reset(3)


@pytest.mark.parametrize("side", [Side.DOWNSTREAM, Side.UPSTREAM])
@pytest.mark.parametrize("cuts", [None, 1, 2])
def test_without_rules_every_byte_passes_as_it_came(side: Side, cuts: int | None) -> None:
    talk = Talk(side=side, active=False, cuts=None if cuts is None else random.Random(cuts))
    sent: dict[bool, bytes] = {True: b"", False: b""}
    real = talk._sent

    def sending(data: bytes, *, peer: bool) -> None:
        sent[peer] += data
        real(data, peer=peer)

    talk._sent = sending  # type: ignore[method-assign]
    before = len(talk.peer.raw), len(talk.connection.raw)
    chat(talk)
    assert talk.connection.raw[before[1] :] == sent[True]
    assert talk.peer.raw[before[0] :] == sent[False]


def test_with_rules_for_other_calls_everything_arrives() -> None:
    plain, watched = Talk(active=False), Talk(Fault(method="/no.such/M", do=Reset()))
    for talk in (plain, watched):
        chat(talk)
    assert watched.client.log == plain.client.log
    assert [line for line in plain.server.log if line != "PriorityFrame"] == watched.server.log
    assert watched.server.fields == plain.server.fields
    assert watched.client.fields == plain.client.fields


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\x00\x00\x04\x04"])
def test_what_is_no_http2_passes_as_it_is(start: bytes) -> None:
    talk = Talk(Fault(do=Reset()), hello=False)
    received = b""
    for byte in start + bytes(50):
        talk.middle.from_peer(bytes([byte]), 0.0)
        received += b"".join(map(bytes, talk.middle.to_connection(0.0)))
    assert received == start + bytes(50)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize(
    "bad",
    [
        bytes([0, 0, 2, 1, 5, 0, 0, 0, 1, 0xFF, 0xFF]),
        bytes([0, 0, 1, 1, 5 | 8, 0, 0, 0, 1, 9]),
        bytes([0, 0, 1, 9, 4, 0, 0, 0, 1, 0xFF]),
        bytes([0, 0, 1, 1, 1, 0, 0, 0, 1, 0xFF]) + bytes([0, 0, 1, 9, 4, 0, 0, 0, 1, 0xFF]),
        bytes([0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82]) + bytes([0, 0, 1, 9, 4, 0, 0, 0, 3, 0x82]),
        bytes([0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82]) + bytes([0, 0, 1, 1, 5, 0, 0, 0, 3, 0x82]),
    ],
)
def test_a_block_that_cannot_be_decoded_goes_to_whom_it_is_for(bad: bytes, active: bool) -> None:
    talk = Talk(Fault(do=Reset()), active=active)
    before = len(talk.server.raw)
    talk.middle.from_peer(bad + b"rest", 0.0)
    assert b"".join(map(bytes, talk.middle.to_connection(0.0))) == bad + b"rest"
    assert len(talk.server.raw) == before


def test_behind_what_cannot_be_decoded_everything_passes_as_it_is() -> None:
    talk = Talk(Fault(do=Reset()))
    bad = bytes([0, 0, 2, 1, 5, 0, 0, 0, 1, 0xFF, 0xFF])
    for data in (bad, b"more", b"and more"):
        talk.middle.from_peer(data, 0.0)
        assert b"".join(map(bytes, talk.middle.to_connection(0.0))) == data


def test_data_whose_padding_is_wrong_goes_to_whom_it_is_for() -> None:
    talk = Talk(Fault(where=AfterMessage(number=9), do=Reset()))
    talk.client.headers(1, request_fields())
    bad = bytes([0, 0, 1, 0, 8, 0, 0, 0, 1, 200])
    talk.middle.from_peer(bad, 0.0)
    assert b"".join(map(bytes, talk.middle.to_connection(0.0))) == bad


def test_a_block_without_end_is_not_kept() -> None:
    talk = Talk(Fault(do=Reset()))
    sent = talk.server.raw
    first = bytes([0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82])
    more = bytes([0, 0x40, 0, 9, 0, 0, 0, 0, 1]) + bytes(0x4000)
    talk.middle.from_peer(first + 70 * more, 0.0)
    assert talk.middle.request.raw
    assert b"".join(map(bytes, talk.middle.to_connection(0.0))) == first + 70 * more
    assert talk.server.raw == sent


def test_headers_with_a_priority_and_large_new_sizes_of_the_table_are_read() -> None:
    talk = Talk(Fault(method="/no.such/M", do=Reset()))
    talk.server._decoder.max_allowed_table_size = 4096
    block = bytes([0x20, 0x3F, 0xE1, 0x1F]) + talk.client._encoder.encode(request_fields())
    frame = HeadersFrame(1, block, depends_on=0, stream_weight=9, flags=["PRIORITY", "END_HEADERS"])
    talk.client.frame(frame)
    assert talk.server.fields[1] == [request_fields()]


def test_rules_that_come_later_strike_calls_that_begin_later() -> None:
    talk = Talk(active=False)
    talk.client.headers(1, [*request_fields(), (b"x-a", b"in the table")])
    talk.client.headers(3, request_fields())
    talk.client.frame(SettingsFrame(0, {1: 0}))
    talk.client.frame(SettingsFrame(0, {1: 4096}))
    talk.striker.faults.append(Fault(method="/one.S/M", do=AnswerStatus(status=14)))
    talk.striker.active = True
    talk.client.headers(5, [*request_fields("/one.S/M"), (b"x-a", b"in the table")], end=True)
    talk.client.headers(7, [*request_fields(), (b"x-a", b"in the table")], end=True)
    talk.client.data(1, message(b"x"), end=True)
    talk.server.respond(1, b"old")
    talk.server.respond(7, b"new")
    assert talk.client.log == [
        "HEADERS 5 14+200 END",
        "HEADERS 1 200", "DATA 1 8", "HEADERS 1 0 END",
        "HEADERS 7 200", "DATA 7 8", "HEADERS 7 0 END",
    ]  # fmt: skip
    assert talk.server.fields[7][0][-1] == (b"x-a", b"in the table")
    talk.striker.active = False
    talk.client.request(9, b"x", "/one.S/M")
    talk.server.respond(9, b"y")
    assert talk.client.log[-1] == "HEADERS 9 0 END"


def test_a_new_size_of_the_table_is_passed_on_with_the_next_block() -> None:
    talk = Talk(Fault(method="/one.S/M", do=AnswerStatus(status=14)))
    talk.server._decoder.max_allowed_table_size = 100
    talk.client._encoder.header_table_size = 100
    talk.client.headers(1, request_fields("/one.S/M"), end=True)
    talk.client.headers(3, request_fields(), end=True)
    assert talk.server.fields[3] == [request_fields()]
    before = len(talk.server.raw)
    talk.client.headers(5, request_fields(), end=True)
    assert talk.server.raw[before + 9] == 0, "not said again"


def test_a_striker_that_raises_strikes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda raised: reported.append(str(raised.exc_value)))
    talk = Talk(Fault(do=UnknownFrame(), where=BeforeHeaders(of=Part.RESPONSE)))

    def broken(link: Link, method: str, headers: Sequence[Field]) -> list[Strike]:
        raise RuntimeError("no rules today")

    def struck(strike: Strike, link: Link, stream_id: int) -> None:
        raise RuntimeError("no ears today")

    talk.striker.struck = struck  # type: ignore[method-assign]
    talk.client.request(1)
    talk.striker.call_begun = broken  # type: ignore[method-assign]
    talk.client.request(3)
    for stream_id in (1, 3):
        talk.server.respond(stream_id, b"y")
    assert talk.client.log[-1] == "HEADERS 3 0 END"
    assert reported == ["no rules today", "no ears today"]


def test_a_push_is_passed_on_with_its_headers() -> None:
    talk = Talk(Fault(method="/no.such/M", do=Reset()))
    talk.client.request(1)
    block = talk.server._encoder.encode(request_fields("/pushed"))
    talk.server.frame(PushPromiseFrame(1, 2, block, flags=["END_HEADERS"]))
    talk.server.headers(1, [*RESPONSE, (b"x-a", b"b")])
    assert talk.client.log[-2:] == ["PushPromiseFrame", "HEADERS 1 200"]
    assert talk.client.fields[1] == [[*RESPONSE, (b"x-a", b"b")]]


def test_streams_that_a_server_disowns_by_itself_are_forgotten() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=Delay(seconds=60)))
    talk.client.request(1)
    talk.client.request(3)
    talk.server.frame(GoAwayFrame(0, 1, 0))
    assert set(talk.middle._calls) == set(talk.middle._live) == {1}
    talk.server.respond(1, b"y")
    talk.wait(60)
    assert talk.client.log == ["GOAWAY 1 0", "HEADERS 1 200", "DATA 1 6", "HEADERS 1 0 END"]


def test_a_call_that_sends_without_end_while_it_is_held_is_reset() -> None:
    talk = Talk(Fault(do=Delay(seconds=60)))
    talk.client.request(1, end=False)
    for _ in range(11_000):
        talk.client.data(1, b"")
    assert talk.client.log == ["RST 1 11"]
    assert talk.server.log == ["HEADERS 1 /a.B/C", "RST 1 8"]


def test_what_was_added_waits_for_the_connections_window_and_others_wait_their_turn() -> None:
    talk = Talk(
        Fault(method="/one.S/M", where=AfterMessage(number=1), do=DoubleMessage()), client={4: 1_000_000}
    )
    talk.client.credits = False
    talk.client.request(1, path="/one.S/M")
    talk.client.request(3)
    talk.client.request(5, path="/one.S/M")
    for stream_id in (1, 3, 5):
        talk.server.headers(stream_id, RESPONSE)
    body = message(b"x" * 15_000)
    talk.server.data(1, body)
    for _ in range(3):
        talk.server.data(3, body)
    assert talk.server.room(3) < len(body)
    talk.server.headers(3, OK, end=True)
    assert talk.client.got == {1: body * 2, 3: body * 2}, "the third has no room: the connection allows 65535"
    talk.server.data(5, b"\0\0\0\0\1")
    talk.server.data(5, b"y")
    talk.client.allow(0, 4 * len(body) + len(body) - 65_535)
    assert len(talk.client.got[3]) == len(body) * 3
    assert talk.client.log[-1] == "HEADERS 3 0 END"
    before = talk.server.send_windows[0]
    talk.client.allow(0, 20_000)
    assert talk.client.got[5] == (b"\0\0\0\0\1y") * 2
    assert talk.server.send_windows[0] < before + 20_000, "what was added is not credited"


# ----------------------------------------------------------------- properties

PLACES: list[Place] = [
    BeforeHeaders(), BeforeHeaders(of=Part.RESPONSE), AfterMessage(number=1), AfterMessage(number=2, of=Part.REQUEST),
    AfterBytes(count=0), AfterBytes(count=33_333), AfterBytes(count=7, of=Part.REQUEST), OnFrame(frame="HEADERS"),
    OnFrame(frame="DATA", nth=2), OnFrame(frame="HEADERS", before=True, of=Part.REQUEST), AtTrailers(),
    AfterTime(seconds=0.5),
]  # fmt: skip
ACTIONS: list[Action] = [
    AnswerStatus(status=14), AnswerHttp(status=502, body="x" * 3000), Reset(), Goaway(), Goaway(below=1),
    ChangeSettings(settings={"INITIAL_WINDOW_SIZE": 100}), PingFlood(count=3), Delay(seconds=0.7, jitter=0.3),
    Latency(seconds=0.1, jitter=0.1), Bandwidth(bytes_per_s=50_000), Stall(seconds=2), DropTrailers(),
    TrailersBeforeData(), DropStatus(), BadGrpcMessage(), CutMessage(keep=7), DoubleMessage(), SwapMessages(),
    FlipBits(bits=3), SplitFrame(at=5, all=True), PadFrame(all=True), PadFrame(bytes=3), UnknownFrame(),
]  # fmt: skip


@st.composite
def faults(draw: Callable[..., object]) -> list[Fault]:
    made = []
    for _ in range(draw(st.integers(1, 3))):  # type: ignore[call-overload]
        where = draw(st.sampled_from(PLACES))
        do = draw(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=2))
        try:
            made.append(Fault(method="/one.S/M", where=where, do=do))  # type: ignore[arg-type]
        except ValueError:
            continue
    return made


class Chatter:
    """Sends a body as windows allow, then its end."""

    def __init__(self, talk: Talk, stream_id: int, body: bytes, *, client: bool) -> None:
        self.end = talk.client if client else talk.server
        self.id, self.left, self.client = stream_id, body, client
        self.done = False

    def go_on(self) -> None:
        if self.done or any(line.startswith(f"RST {self.id} ") for line in self.end.log):
            return
        sent = self.end.body(self.id, self.left)
        self.left = self.left[sent:]
        if not self.left:
            self.done = True
            if self.client:
                self.end.data(self.id, b"", end=True)
            else:
                self.end.headers(self.id, OK, end=True)


def conversation(
    made: Sequence[Fault],
    *,
    cuts: random.Random | None = None,
    window: int = 65_535,
    every: int = 1,
    side: Side = Side.DOWNSTREAM,
) -> Talk:
    """Three calls at once, the second with faults; then another one, large."""
    talk = Talk(*made, cuts=cuts, client={4: window}, server={4: window}, side=side)
    talk.client.credit_every = talk.server.credit_every = every
    request, response = message(b"q" * 9_000) * 4, message(b"r" * 9_000) * 4
    chatters = []
    paths = {1: "/a.B/C", 3: "/one.S/M", 5: "/a.B/C", 7: "/a.B/C"}

    def begin(stream_id: int) -> None:
        talk.client.headers(stream_id, request_fields(paths[stream_id]))
        chatters.append(Chatter(talk, stream_id, request, client=True))

    def settle() -> None:
        served = {chatter.id for chatter in chatters if not chatter.client}
        for stream_id in list(talk.server.fields):
            if stream_id not in served and not any(f"RST {stream_id} " in line for line in talk.server.log):
                talk.server.headers(stream_id, RESPONSE)
                chatters.append(Chatter(talk, stream_id, response, client=False))
        for chatter in chatters:
            chatter.go_on()

    for stream_id in (1, 3, 5):
        begin(stream_id)
    for _ in range(60):
        settle()
        talk.wait(0.1)
    if not any(line.startswith("GOAWAY") for line in talk.client.log):
        begin(7)
        for _ in range(60):
            settle()
            talk.wait(0.1)
    return talk


@given(faults(), st.sampled_from([3_000, 65_535, 1_000_000]), st.sampled_from([1, 1_400]))
def test_other_calls_are_whole_and_no_window_is_overrun_and_nothing_stays(
    made: list[Fault], window: int, every: int
) -> None:
    talk = conversation(made, window=window, every=every)
    gone = [int(line.split()[1]) for line in talk.client.log if line.startswith("GOAWAY")]
    for stream_id in (1, 5, 7):
        if gone and stream_id > min(gone):
            continue
        assert talk.server.got[stream_id] == message(b"q" * 9_000) * 4
        assert talk.client.got[stream_id] == message(b"r" * 9_000) * 4
        assert f"HEADERS {stream_id} 0 END" in talk.client.log
        assert not any(f"RST {stream_id} " in line for line in talk.client.log + talk.server.log)
    assert talk.middle._calls == {}
    assert talk.middle._live == {}
    assert talk.middle.request.account.extra == talk.middle.response.account.extra == 0
    if every == 1:
        # All that was sent is credited, whatever was dropped or added.
        assert talk.client.send_windows[0] == talk.server.send_windows[0] == 65_535


@given(faults(), st.integers(0, 2**32))
def test_how_bytes_are_cut_makes_no_difference_and_the_same_seed_gives_the_same_bytes(
    made: list[Fault], seed: int
) -> None:
    whole = conversation(made)
    cut = conversation(made, cuts=random.Random(seed))
    assert whole.client.raw == cut.client.raw
    assert whole.server.raw == cut.server.raw
    assert whole.striker.done == cut.striker.done


@given(faults(), st.sampled_from([Side.DOWNSTREAM, Side.UPSTREAM]), st.sampled_from(ENGINES))
def test_all_that_reaches_the_proxys_own_session_is_legal(
    made: list[Fault], side: Side, engine: Engine
) -> None:
    if side is Side.UPSTREAM:
        made = [
            fault for fault in made if not any(isinstance(action, TrailersBeforeData) for action in fault.do)
        ]
    talk = conversation(made, side=side)
    session = make_session(Http2Settings(engine=engine), client_side=side is Side.UPSTREAM)
    if side is Side.UPSTREAM:
        session.start()
        for _ in range(4):
            session.open_stream(request_fields())
    raw = talk.connection.raw
    for start in range(0, len(raw), 1000):
        for event in session.receive(raw[start : start + 1000], 0.0):
            assert not isinstance(event, ConnectionEnded), event
            assert not isinstance(event, StreamReset) or event.by_peer or event.goaway is not None, event
            if isinstance(event, DataReceived):
                session.credit(event.stream_id, event.credit)
        session.take_output()
