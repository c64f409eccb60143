"""Rules that take more than one exchange: such a row is a transcript of what a raw peer says and hears.

The peer, on either side of the proxy, does nothing by itself: it acknowledges nothing and gives no credit unless its
row says so. So each frame of the proxy has its line, and its place among the others:

    bytes        the peer says this
    a line       the next frame that the peer hears: "HEADERS 1 200", "DATA 1 [5] END_STREAM", "CLOSED" for the end
    a function   something happens: `quiet` is that nothing more is heard, `answers` that the backend answers, ...
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import hpack
import trio
import trio.testing
from hyperframe.frame import ContinuationFrame, HeadersFrame

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import DEFAULT_WINDOW, Engine
from tests.http2.peer import PREFACE, SETTINGS_ACK, Header, parse, ping, settings, show
from tests.proxy.house import House, a_proxy
from tests.proxy.raw_peers import OK, PATIENCE_S, RESPONSE, PeerStream, RawPeer, connected, request_fields

CLOSED = "CLOSED"
_FRAME_HEADER_BYTES = 9
_SHOWN = (b":status", b":path", b"grpc-status")


class Wire:
    """One end of a connection, in frames. What is heard is kept as header lists, blocks and settings, too."""

    def __init__(self, stream: trio.abc.Stream, *, client_side: bool) -> None:
        self.lists: dict[int, list[list[Header]]] = {}
        """The header lists that came on each stream."""
        self.blocks: dict[int, list[bytes]] = {}
        """The same before they were decoded."""
        self.settings: dict[int, int] = {}
        """What the other side has said in all its SETTINGS."""
        self.decoder = hpack.Decoder()
        self._stream = stream
        self._client_side = client_side
        self._left = b""
        self._block = b""
        self._pings = itertools.count()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def say(self, *wire: bytes) -> None:
        await self._stream.send_all(b"".join(wire))

    async def hear(self) -> str:
        """The next frame, as a line; at the end of the connection this side closes as well."""
        header = await self._take(_FRAME_HEADER_BYTES)
        if len(header) < _FRAME_HEADER_BYTES:
            await self.aclose()
            return CLOSED
        (frame,) = parse(header + await self._take(int.from_bytes(header[:3])))
        shown = ""
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            shown = self._fields_of(frame)
        elif "ACK" not in frame.flags:
            self.settings.update(getattr(frame, "settings", {}))
        line = show(frame)
        return line.replace(" END_STREAM", f"{shown} END_STREAM") if "END_STREAM" in line else line + shown

    async def hear_preface(self) -> None:
        """What a client begins with."""
        assert await self._take(len(PREFACE)) == PREFACE

    async def hear_nothing(self) -> None:
        """All that was said has been acted on, and nothing is heard but the answer to a PING."""
        await trio.testing.wait_all_tasks_blocked(0.002)
        opaque = f"quiet{next(self._pings):3}"
        await self.say(ping(opaque.encode()))
        assert await self.hear() == f"PING {opaque} ACK"

    async def greet(self, values: dict[int, int]) -> None:
        """Exchange SETTINGS, these and the proxy's, and see each acknowledged."""
        if self._client_side:
            await self.say(PREFACE, settings(values), SETTINGS_ACK)
        else:
            await self.hear_preface()
            await self.say(settings(values), SETTINGS_ACK)
        assert await self.hear() == "SETTINGS"
        line = await self.hear()
        if line.startswith("WINDOW_UPDATE 0"):
            line = await self.hear()
        assert line == "SETTINGS ACK"

    def _fields_of(self, frame: HeadersFrame | ContinuationFrame) -> str:
        """Keep what came, and answer in words what ends a header block."""
        self._block += frame.data
        if "END_HEADERS" not in frame.flags:
            return ""
        block, self._block = self._block, b""
        fields = [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)]
        self.blocks.setdefault(frame.stream_id, []).append(block)
        self.lists.setdefault(frame.stream_id, []).append(fields)
        names = {b"grpc-status": " grpc-status "}
        return "".join(names.get(name, " ") + value.decode() for name, value in fields if name in _SHOWN)

    async def _take(self, size: int) -> bytes:
        """So many bytes; fewer at the end of the connection."""
        with trio.fail_after(PATIENCE_S):
            while len(self._left) < size:
                try:
                    more = await self._stream.receive_some(65_536)
                except trio.BrokenResourceError:
                    more = b""
                if not more:
                    return b""
                self._left += more
        taken, self._left = self._left[:size], self._left[size:]
        return taken


@dataclass
class Scene:
    """A row while it is played."""

    house: House
    wire: Wire = field(init=False)
    caller: RawPeer | None = None
    """Where the wire is the backend: who makes the calls."""
    calls: list[PeerStream] = field(default_factory=list)
    """Those calls."""
    served: list[PeerStream] = field(default_factory=list)
    """Where the wire is the caller: what the backend was asked."""
    wires: list[Wire] = field(default_factory=list)
    """Where the wire is the backend: all its connections so far."""
    next_wire: Callable[[], Awaitable[Wire]] | None = None
    """And the one to come."""


Step = bytes | str | Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Exchange:
    """One rule, and the transcript that keeps it."""

    section: str
    """With underscores: `6_9_2`."""
    name: str
    steps: Sequence[Step]
    hello: dict[int, int] | None = field(default_factory=dict)
    """The SETTINGS that the peer has exchanged before. None: nothing has been said yet, by either side."""
    proxy: dict[str, Any] = field(default_factory=dict)
    """Http2Settings of the proxy."""
    pool: dict[str, Any] = field(default_factory=dict)
    """The pool's arguments."""

    def __str__(self) -> str:
        return f"{self.section}_{self.name.replace(' ', '_')}"


# --- What may happen ---


async def quiet(scene: Scene) -> None:
    """Nothing more is heard."""
    await scene.wire.hear_nothing()


def asked(body: bytes | None = None) -> Step:
    """A request has come to the backend, with this body if it is told."""

    async def step(scene: Scene) -> None:
        served = await scene.house.backend.request()
        scene.served.append(served)
        if body is not None:
            assert await served.request_body() == body

    return step


async def nobody_asked(scene: Scene) -> None:
    """No request has come to the backend."""
    await trio.testing.wait_all_tasks_blocked(0.002)
    assert scene.house.backend.no_request_came()


def answers(body: bytes = b"", *, trailers: Sequence[Header] = OK, ends: bool = True) -> Step:
    """The backend answers the next request, and the proxy has all of it."""

    async def step(scene: Scene) -> None:
        served = await scene.house.backend.request()
        scene.served.append(served)
        await served.headers(RESPONSE)
        if body:
            await served.body(body)
        if ends:
            await served.headers(trailers, end=True)
        await served.peer.ping()

    return step


def is_reset(code: int, number: int = -1) -> Step:
    """The backend hears that a request is given up."""

    async def step(scene: Scene) -> None:
        assert (await scene.served[number].answer()).reset == code

    return step


def calls(
    body: bytes | None = None, *extra: Header, ends: bool = True, fields: Sequence[Header] | None = None
) -> Step:
    """A caller makes a call with these bytes as DATA (None: none, and END_STREAM on HEADERS), and the proxy has it."""

    async def step(scene: Scene) -> None:
        assert scene.caller is not None
        call = await scene.caller.open(fields or request_fields("/a.B/C", *extra), end=body is None)
        scene.calls.append(call)
        if body is not None:
            await call.body(body, end=ends)
        await scene.caller.ping()

    return step


def told(status: Status, number: int = 0, *, body: bytes | None = None) -> Step:
    """A call (the first, if not said otherwise) ends with this status, and this body if it is told."""

    async def step(scene: Scene) -> None:
        answer = await scene.calls[number].answer()
        assert answer.status == status, answer
        assert body is None or answer.body == body

    return step


def gives_up(number: int = 0, code: int = 8) -> Step:
    """The caller resets a call."""

    async def step(scene: Scene) -> None:
        await scene.calls[number].reset(code)

    return step


async def caller_gives_no_credit(scene: Scene) -> None:
    """The caller takes what its windows have at first, and no more."""
    assert scene.caller is not None
    scene.caller.credits = False


async def caller_gives_credit(scene: Scene) -> None:
    """It takes all the rest."""
    assert scene.caller is not None
    await scene.caller.credit_everything()


def connection(number: int) -> Step:
    """What is said and heard from now on is on this connection of the backend (0: the first), new or not."""

    async def step(scene: Scene) -> None:
        while len(scene.wires) <= number:
            assert scene.next_wire is not None
            scene.wires.append(await scene.next_wire())
        scene.wire = scene.wires[number]

    return step


async def hangs_up(scene: Scene) -> None:
    """The peer closes the connection."""
    await scene.wire.aclose()


# --- How a row is played ---


async def _play(scene: Scene, steps: Sequence[Step]) -> None:
    for number, step in enumerate(steps):
        if isinstance(step, bytes):
            await scene.wire.say(step)
        elif isinstance(step, str):
            heard = await scene.wire.hear()
            assert heard == step, f"step {number}"
        else:
            await step(scene)


async def play_with_a_caller(engine: Engine, rule: Exchange) -> None:
    """The peer calls the proxy."""
    async with a_proxy(engine, pool=rule.pool, **rule.proxy) as house:
        scene = Scene(house)
        scene.wire = Wire(await connected(house.address), client_side=True)
        async with scene.wire:
            if rule.hello is not None:
                await scene.wire.greet(rule.hello)
            await _play(scene, rule.steps)


async def play_with_a_backend(engine: Engine, rule: Exchange) -> None:
    """The peer is what the proxy calls. The first step is a call, since only that makes the proxy connect."""
    async with a_proxy(engine, pool=rule.pool, **rule.proxy) as house:
        come, comes = trio.open_memory_channel[Wire](10)

        over = trio.Event()

        async def hold(stream: trio.SocketStream) -> None:
            await come.send(Wire(stream, client_side=False))
            await over.wait()

        async def next_wire() -> Wire:
            with trio.fail_after(PATIENCE_S):
                wire = await comes.receive()
            if rule.hello is not None:
                await wire.greet(rule.hello)
            return wire

        house.backend.raw_script = hold
        client = await house.client()
        first, *others = rule.steps
        assert callable(first)
        scene = Scene(house, client, next_wire=next_wire)
        await first(scene)
        await _play(scene, [connection(0), *others])
        await client.aclose()
        over.set()


SMALL_WINDOWS = {"stream_window_bytes": DEFAULT_WINDOW, "connection_window_bytes": DEFAULT_WINDOW}
"""Windows as RFC 9113 has them at first: the proxy has nothing to say of them when a connection begins."""
