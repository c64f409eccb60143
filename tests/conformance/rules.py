"""What a rule is, and how it is played: by a caller against the proxy, or by a backend against it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from rawgrpc_proxy import Status
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine
from tests.http2 import peer as wire
from tests.proxy.house import House, a_proxy
from tests.proxy.raw_peers import PeerStream, RawPeer, message

PROTOCOL, FRAME_SIZE, FLOW, CLOSED, COMPRESSION, CALM = (
    ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.STREAM_CLOSED,
    ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM,
)  # fmt: skip
Field = tuple[bytes, bytes]


@dataclass(frozen=True)
class Ends:
    """The connection ends, with GOAWAY and this code."""

    code: int


@dataclass(frozen=True)
class Resets:
    """The stream is reset with this code, and the connection goes on."""

    code: int
    stream_id: int = 1


@dataclass(frozen=True)
class Fine:
    """Nothing comes of it: no stream hears anything, and the connection goes on."""


@dataclass(frozen=True)
class Answered:
    """Stream 1 is answered here, with this HTTP status and this gRPC status; the connection goes on."""

    http_status: bytes
    status: Status


@dataclass(frozen=True)
class Costs:
    """A call of that backend ends with this status, and so do its siblings if the connection ends."""

    status: Status
    siblings_live: bool


ByCaller = Ends | Resets | Fine | Answered
"""What comes of it if a caller says it, on a connection on which nothing has been asked yet."""
ByBackend = Costs
"""What comes of it if a backend does, which has got a request on stream 1 beside another one on stream 3."""
Then = TypeVar("Then", ByCaller, ByBackend)


@dataclass(frozen=True)
class Rule(Generic[Then]):
    """One rule, with what is said and what follows."""

    section: str
    """With underscores: `6_5_2`."""
    name: str
    says: bytes
    then: Then

    def __str__(self) -> str:
        return f"{self.section}_{self.name.replace(' ', '_')}"


def changed(changes: dict[bytes, bytes | None], *more: Field) -> Sequence[Field]:
    """The request headers of an ordinary call, with some fields changed (None: left out), and some more."""
    fields = [(name, changes.get(name, value)) for name, value in wire.REQUEST]
    return [(name, value) for name, value in fields if value is not None] + list(more)


async def a_good_call(house: House, client: RawPeer) -> None:
    """The connection still serves."""
    call = await client.request("/a.B/Good", body=b"x")
    assert (await call.answer()).body == message(b"fine")


async def _answers(served: PeerStream) -> None:
    if served.request.get(b":path") == b"/a.B/Good":
        await served.respond(b"fine")


async def play_as_caller(engine: Engine, rule: Rule[ByCaller]) -> None:
    """Say it to the proxy, on a connection whose SETTINGS are exchanged."""
    async with a_proxy(engine) as house, trio.open_nursery() as nursery:
        nursery.start_soon(house.backend.answer_all, _answers)
        client = await house.client()
        await client.ping()
        streams = [client.new_stream() for _ in range(3)]
        await client.send_bytes(rule.says)
        match rule.then:
            case Ends(code):
                assert (await client.expect_goaway()).code == code
                await client.closed()
            case Resets(code, stream_id):
                assert await client.streams[stream_id].expect_reset() == code
                await a_good_call(house, client)
            case Answered(http_status, status):
                answer = await streams[0].answer()
                assert (answer.http_status, answer.status) == (http_status, status)
                await a_good_call(house, client)
            case Fine():
                await a_good_call(house, client)
                assert all(stream.nothing_came() for stream in streams)
        nursery.cancel_scope.cancel()


async def play_as_backend(engine: Engine, rule: Rule[ByBackend]) -> None:
    """Have a backend say it, and look at the call, its sibling, and the next one."""
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/Broken")
        served = await house.backend.request()
        sibling = await client.request("/a.B/Sibling")
        sibling_served = await house.backend.request()
        assert (served.id, sibling_served.id) == (1, 3)
        await served.request_body()
        await sibling_served.request_body()
        await served.peer.send_bytes(rule.says)
        assert (await call.answer()).status == rule.then.status
        if rule.then.siblings_live:
            await sibling_served.respond(b"fine")
            assert (await sibling.answer()).body == message(b"fine")
        else:
            assert (await sibling.answer()).status == Status.UNAVAILABLE
        after = await client.request("/a.B/After")
        await (await house.backend.request()).respond(b"fine")
        assert (await after.answer()).body == message(b"fine")
