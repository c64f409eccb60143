"""Whatever happens to the attempts at a call, and in whatever order: its caller sees one response, of one of them."""

from dataclasses import dataclass, field

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from rawgrpc_proxy import CallPolicy, CallRecord, HedgingPolicy, RetryPolicy, Status
from rawgrpc_proxy.config import Engine
from tests.proxy.house import on_every_engine, until
from tests.proxy.policies import RESPONSE, Several, several
from tests.proxy.raw_peers import (
    INITIAL_WINDOW,
    PATIENCE_S,
    Data,
    Headers,
    PeerStream,
    RawPeer,
    Reset,
    message,
    request_fields,
)

pytestmark = on_every_engine

REPLAY_BYTES = 10_000
POLICIES = [
    CallPolicy(retry=RetryPolicy(max_attempts=3, initial_backoff_s=0.001, max_replay_bytes=REPLAY_BYTES)),
    CallPolicy(hedging=HedgingPolicy(max_attempts=3, hedging_delay_s=0.0, max_replay_bytes=REPLAY_BYTES)),
    CallPolicy(hedging=HedgingPolicy(max_attempts=2, hedging_delay_s=100.0, max_replay_bytes=REPLAY_BYTES)),
]
OF_AN_ATTEMPT = [
    "headers",
    "message",
    "empty data",
    "OK",
    "UNAVAILABLE",
    "INTERNAL",
    "REFUSED_STREAM",
    "CANCEL",
    "lost",
]
REFUSED_STREAM, CANCEL = 7, 8


@dataclass
class Seen:
    """One attempt, as its backend sees it."""

    number: int
    stream: PeerStream
    body: bytes = b""
    ended: bool = False
    """The request has ended, by END_STREAM."""
    said: list[bytes] = field(default_factory=list)
    over: bool = False
    """Reset, lost, or answered."""
    has_headers: bool = False

    def look(self) -> None:
        """Take in what has come."""
        self.ended = self.ended or self.stream.request.end_stream
        while not self.stream.nothing_came():
            match self.stream._events.receive_nowait():
                case Data(data, end):
                    assert not self.ended
                    self.body += data
                    self.ended = end
                case Headers():
                    assert not self.ended
                    self.ended = True
                case Reset():
                    self.over = True
                case _:
                    self.over = True

    async def do(self, what: str) -> None:
        """Let the backend do this, unless it is over or would break the rules of HTTP/2."""
        tag = [(b"x-attempt", b"%d" % self.number)]
        if self.over:
            return
        match what:
            case "headers" if not self.has_headers:
                await self.stream.headers([*RESPONSE, *tag])
                self.has_headers = True
            case "message":
                await self.do("headers")
                self.said.append(message(b"%d of %d" % (len(self.said), self.number)))
                await self.stream.data(self.said[-1])
            case "empty data":
                await self.do("headers")
                await self.stream.data(b"")
            case "REFUSED_STREAM" | "CANCEL":
                await self.stream.reset(REFUSED_STREAM if what == "REFUSED_STREAM" else CANCEL)
                self.over = True
            case "lost":
                await self.stream.peer.aclose()
                self.over = True
            case "OK" | "UNAVAILABLE" | "INTERNAL":
                status = [(b"grpc-status", b"%d" % Status[what]), *tag]
                await self.stream.headers([*([] if self.has_headers else RESPONSE), *status], end=True)
                self.over = True
            case _:
                """It has sent its headers already."""


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[str, int]]:
    """What happens: the caller says so many bytes more, ends or gives up; a backend does something."""
    said = st.tuples(st.just("say"), st.sampled_from([1, 100, 4000, 7000, 30_000]))
    done = st.tuples(st.sampled_from(OF_AN_ATTEMPT), st.integers(0, 3))
    ends = st.sampled_from([("end", 0), ("trailers", 0), ("say and end", 5), ("give up", 0)])
    steps = draw(st.lists(st.one_of(said, done, done), max_size=10))
    steps.insert(draw(st.integers(0, len(steps))), draw(ends))
    return steps


@dataclass
class Play:
    """A call, all its attempts, and what its caller has said."""

    town: Several
    client: RawPeer
    call: PeerStream
    seen: list[Seen] = field(default_factory=list)
    said: bytes = b""
    ended: bool = False
    gave_up: bool = False

    async def settle(self) -> None:
        """Wait until nothing happens any more, and look at all attempts."""
        await wait_all_tasks_blocked(0.004)
        while self.town.came:
            self.seen.append(Seen(len(self.seen), (await self.town.request())[1]))
        for each in self.seen:
            each.look()

    async def say(self, size: int, *, end: bool = False) -> None:
        """So much more of the request; nothing if the windows do not allow it, for nobody may read it."""
        if size > min(self.call.window, self.client.window):
            return
        piece = bytes((len(self.said) + n) % 251 for n in range(size))
        self.said += piece
        self.ended = end
        await self.call.body(piece, end=end)

    async def do(self, what: str, number: int) -> None:
        """One step of a script."""
        if what == "give up":
            self.gave_up = self.ended = True
            await self.call.reset()
        elif what in OF_AN_ATTEMPT:
            if number < len(self.seen):
                await self.seen[number].do(what)
        elif self.ended:
            return
        elif what == "trailers":
            self.ended = True
            await self.call.headers([(b"x-end", b"1")], end=True)
        elif what == "end":
            self.ended = True
            await self.call.data(b"", end=True)
        else:
            await self.say(number, end=what != "say")

    def check_requests(self) -> None:
        """What came to the attempts was the request, or a part of it that was not ended."""
        for each in self.seen:
            assert self.said.startswith(each.body)
            if each.ended:
                assert self.ended
                assert each.body == self.said
        assert self.call.window <= INITIAL_WINDOW

    async def check_response(self, record: CallRecord) -> None:
        """It is one attempt's, whole, or an error."""
        answer = await self.call.answer()
        assert not answer.lost
        assert answer.status == record.status
        last = answer.get(b"x-attempt")
        if not answer.body and last is None:
            assert answer.status != Status.OK
            return
        first = last if answer.headers is None else answer.headers.get(b"x-attempt")
        assert first is not None
        counted = b"".join(self.seen[int(first)].said)
        assert counted.startswith(answer.body)
        if last is not None:
            assert (last, answer.body) == (first, counted)


async def play(engine: Engine, policy: CallPolicy, script: list[tuple[str, int]]) -> None:
    async with several(engine, policy, count=3, stream_window_bytes=INITIAL_WINDOW) as town:
        client = await town.house.client()
        one = Play(town, client, await client.open(request_fields()))
        await one.settle()
        for what, number in script:
            await one.do(what, number)
            await one.settle()
        # From here on all goes well.
        with trio.fail_after(PATIENCE_S):
            while town.house.observer.unread == 0:
                for each in one.seen:
                    await each.do("message")
                    await each.do("OK")
                await one.settle()
        record = await town.house.record()
        await until(lambda: not any(endpoint.calls for endpoint in town.cluster.endpoints))
        await one.settle()
        one.check_requests()
        assert town.house.observer.unread == 0
        if not one.gave_up:
            await one.check_response(record)


@settings(max_examples=30)
@given(policy=st.sampled_from(POLICIES), script=scripts())
def test_a_caller_sees_one_response_whole_and_no_request_is_ended_that_was_not(
    engine: Engine, policy: CallPolicy, script: list[tuple[str, int]]
) -> None:
    trio.run(play, engine, policy, script)
