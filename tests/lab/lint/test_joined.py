"""The linter on connections that were open before: nobody is blamed for what he may have said before it looked."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pytest
import trio.testing
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.position import Position, Table
from rawgrpc_proxy.lab.events import Sender, Stream
from rawgrpc_proxy.lab.late_views import LateViews
from rawgrpc_proxy.lab.link_parts import FoundStream, OpenStream
from rawgrpc_proxy.lab.lint.findings import Finding, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.net.late_taps import current_late_taps
from tests.http2.peer import (
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    SETTINGS_ACK,
    continuation,
    data,
    headers,
    ping,
    push_promise,
    rst_stream,
    settings,
    window_update,
)
from tests.lab.lint.talk import CLIENT, MESSAGE, METHOD, REQUEST, RESPONSE, SERVER, TRAILERS, Talk
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import OK, PeerStream, message, request_fields
from tests.proxy.raw_peers import RESPONSE as HEADERS

LAST = 9


class Joined(Talk):
    """A link that was open before: stream 7 has all of its request, 9 the beginning of its response as well."""

    def __init__(self, side: Side = Side.DOWNSTREAM) -> None:
        super().__init__(side=side)
        table = Table((), 4096)
        position = Position(
            peer_began=True,
            we_began=True,
            unread=b"",
            block=None,
            peer_table=table,
            own_table=table,
            untaken_chunks=0,
            last_stream_id=LAST,
            streams=(),
        )
        asked, answering = (Stream(number, self.now, METHOD, joined=True) for number in (7, LAST))
        asked.request.headers = asked.request.closed = True
        answering.request.headers = answering.response.headers = True
        self.view.join(position, {each.id: partial(_found, each) for each in (asked, answering)}, self.now)


def _found(stream: Stream, _at: float) -> FoundStream:
    return FoundStream(OpenStream(stream), [], ())


Step = float | tuple[Sender, bytes]
"""Seconds that pass, or what an end says."""


def play(talk: Talk, *steps: Step) -> None:
    for step in steps:
        match step:
            case (sender, frames):
                (talk.client if sender is CLIENT else talk.server)(frames)
            case seconds:
                talk.later(seconds)


@pytest.mark.parametrize(
    "steps",
    [
        # Of the connection.
        [(CLIENT, SETTINGS_ACK)],
        [(CLIENT, settings({INITIAL_WINDOW_SIZE: 5})), (SERVER, SETTINGS_ACK * 2)],
        [(SERVER, ping(ack=True))],
        [(CLIENT, window_update(0, 2**31 - 1) * 2)],
        [(CLIENT, data(LAST, bytes(16384)) * 40)],
        [(SERVER, data(LAST, bytes(30_000)))],
        [(CLIENT, b"".join(headers(number, REQUEST) for number in range(11, 1011, 2)))],
        [(SERVER, headers(LAST, [(b"x", b"y" * 9000), *TRAILERS], end_stream=True))],
        [(SERVER, push_promise(LAST, 2))],
        [(CLIENT, continuation(11, end_headers=True))],
        # Of streams that are over.
        [(CLIENT, window_update(1, 5) + rst_stream(5) + data(5, MESSAGE))],
        [(SERVER, window_update(3, 5) + rst_stream(5) + headers(1, TRAILERS, end_stream=True))],
        # Of calls that are open.
        [(SERVER, data(LAST, MESSAGE[3:]) + headers(LAST, TRAILERS, end_stream=True))],
        [(SERVER, data(LAST, b"", end_stream=True))],
        [(CLIENT, data(LAST, MESSAGE[:2], end_stream=True))],
        [(CLIENT, data(LAST, b"\x05" + MESSAGE[1:], end_stream=True))],
        [
            (SERVER, headers(7, [*RESPONSE, (b"grpc-encoding", b"gzip")])),
            (SERVER, data(7, b"\x01" + MESSAGE[1:]) + headers(7, TRAILERS, end_stream=True)),
        ],
        [(CLIENT, window_update(LAST, 2**31 - 1) * 2), (SERVER, data(LAST, MESSAGE) * 20)],
        [60.0, (CLIENT, rst_stream(7) + rst_stream(LAST))],
    ],
)
def test_what_may_be_the_rest_of_something_is_no_finding(steps: Sequence[Step]) -> None:
    talk = Joined()
    play(talk, *steps)
    talk.view.close(talk.now)
    assert talk.told == []


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([(CLIENT, headers(11, REQUEST[:-3]))], ("te-missing", CLIENT, METHOD)),
        ([(CLIENT, window_update(0, 0))], ("window-update-zero", CLIENT, "")),
        ([(CLIENT, headers(5, REQUEST))], ("stream-id-not-increasing", CLIENT, "")),
        ([(CLIENT, data(13, MESSAGE))], ("frame-on-idle-stream", CLIENT, "")),
        ([(CLIENT, data(7, MESSAGE))], ("frame-on-closed-stream", CLIENT, METHOD)),
        ([(SERVER, data(7, MESSAGE))], ("data-before-headers", SERVER, METHOD)),
        (
            [(SERVER, headers(LAST, [(b"grpc-status", b"x")], end_stream=True))],
            ("grpc-status-range", SERVER, METHOD),
        ),
        (
            [(SERVER, headers(7, RESPONSE) + data(7, MESSAGE, end_stream=True))],
            ("grpc-status-missing", SERVER, METHOD),
        ),
        (
            [(SERVER, headers(7, RESPONSE) + data(7, MESSAGE[:3]) + headers(7, TRAILERS, end_stream=True))],
            ("message-truncated", SERVER, METHOD),
        ),
        (
            [(CLIENT, continuation(11, end_headers=True) * 2)],
            ("continuation-unexpected", CLIENT, ""),
        ),
        (
            [(CLIENT, ping(b"x" * 8)), 30.0, (SERVER, data(LAST, MESSAGE))],
            ("ping-not-acknowledged", SERVER, ""),
        ),
        (
            [(SERVER, settings()), 30.0, (CLIENT, data(LAST, MESSAGE))],
            ("settings-not-acknowledged", CLIENT, ""),
        ),
    ],
)
def test_what_was_said_since_is_judged(steps: Sequence[Step], found: tuple[str, Sender, str]) -> None:
    talk = Joined()
    play(talk, *steps)
    assert found in talk.found
    assert {rule for rule, _, _ in talk.found} - {"user-agent-missing", "content-type-missing"} == {found[0]}


def test_a_limit_that_is_told_later_is_none_that_anybody_is_held_to() -> None:
    """The ACK that comes may be for other SETTINGS, which nobody has seen."""
    talk = Joined()
    talk.server(settings({MAX_CONCURRENT_STREAMS: 1}))
    talk.client(SETTINGS_ACK)
    for stream in (11, 13, 15):
        talk.ask(stream=stream)
    assert talk.told == []


Kinds = Counter[tuple[str, str, str]]


def kinds(findings: Findings) -> Kinds:
    return Counter(
        {(each.first.rule.id, each.first.side, each.first.method): each.count for each in findings.counted}
    )


@on_every_engine
@pytest.mark.parametrize("seed", range(4))
@trio_test
async def test_who_comes_late_finds_nothing_that_one_who_was_there_has_not(engine: Engine, seed: int) -> None:
    """Whenever it begins: in the middle of frames, header blocks, messages, windows that are full."""
    rng = random.Random(seed)
    first = Findings()
    lates: list[Findings] = [Findings() for _ in range(8)]
    tap = Views(Linter(first, proxy_passes_on=False).tell)
    spoiled: Sequence[tuple[bytes, bytes]] = [(b"grpc-mine", b"1"), (b"x-bin", b"*"), (b"x-user", b"\xff")]
    async with a_proxy(engine, tap=tap, pool={"tap": tap}, max_output_bytes=20_000) as house:
        clients = [await house.client(), await house.client({INITIAL_WINDOW_SIZE: 20_000})]
        calls: list[tuple[PeerStream, PeerStream]] = []
        rests: dict[PeerStream, bytes] = {}
        for late in lates:
            for _ in range(rng.randrange(1, 16)):
                act = rng.random()
                if not calls or act < 0.4:
                    client = rng.choice(clients)
                    fields = request_fields(
                        rng.choice(["/a.B/C", "/a.B/D"]), *rng.sample(spoiled, rng.randrange(2))
                    )
                    call = await client.open([*fields, (b"user-agent", b"x")])
                    served = await house.backend.request()
                    calls.append((call, served))
                    if rng.random() < 0.7:
                        await served.headers(HEADERS)
                elif act < 0.5:
                    call, served = calls.pop(rng.randrange(len(calls)))
                    if rng.random() < 0.5:
                        await call.reset()
                    else:
                        await served.headers([*HEADERS, *rng.choice([OK, []])], end=True)
                elif act < 0.6:
                    await rng.choice(clients).ping()
                else:
                    sender = rng.choice(rng.choice(calls))
                    data = rests.pop(sender, b"") or message(rng.randbytes(rng.choice([0, 5, 300, 30_000])))
                    cut = rng.choice([len(data), rng.randrange(len(data))])
                    rests[sender] = data[cut:]
                    await sender.body(data[:cut])
            for _ in current_late_taps().attach(LateViews(Linter(late, proxy_passes_on=False).tell)):
                pass
        for call, served in calls:
            await call.data(b"", end=True)
            await served.headers(OK, end=True)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert kinds(first)
    for late in lates:
        assert not kinds(late) - kinds(first)


@on_every_engine
@trio_test
async def test_a_call_that_is_open_already_is_looked_at_to_its_end(engine: Engine) -> None:
    found: list[Finding] = []
    linter = Linter(Findings(found.append))
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        for _ in current_late_taps().attach(LateViews(linter.tell)):
            pass
        await served.headers(HEADERS)
        await served.headers([*OK, (b"grpc-message", b"100%")], end=True)
        assert (await call.answer()).status == Status.OK
        await until(lambda: bool(found))
    # Its request had no user-agent, which was said before.
    assert [(each.rule.id, each.who, each.method) for each in found] == [
        ("grpc-message-encoding", "upstream", "/a.B/C")
    ]
    assert (linter.links_seen, linter.streams_seen) == (2, 2)
