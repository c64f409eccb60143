"""A TCP relay that keeps all bytes: what has passed, as somebody sees it who is neither the proxy nor its recorder."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from interop.shared.frames import DATA, END_STREAM, HEADERS, PREFACE, RST_STREAM, take_frames

_READ_BYTES = 65_536
Frame = tuple[int, int, int, bytes]
"""Type, flags, stream, payload."""


@dataclass(eq=False)
class Kept:
    """All bytes of one connection."""

    client: bytearray = field(default_factory=bytearray)
    server: bytearray = field(default_factory=bytearray)
    reads: list[tuple[bool, int]] = field(default_factory=list)
    """In the order in which they have passed: whether the client has sent it, and how many bytes these were."""

    def frames(self) -> Iterator[tuple[bool, Frame]]:
        """All of both ends, in the order in which they were whole, each with whether the client has sent it."""
        buffers = {True: bytearray(), False: bytearray()}
        sent, at = {True: self.client.removeprefix(PREFACE), False: self.server}, {True: 0, False: 0}
        skip = len(self.client) - len(sent[True])
        for client, size in self.reads:
            if client and skip:
                size, skip = size - min(size, skip), skip - min(size, skip)  # noqa: PLW2901
            buffers[client] += sent[client][at[client] : at[client] + size]
            at[client] += size
            for frame in take_frames(buffers[client]):
                yield client, frame

    def most_open(self) -> int:
        """How many streams were open at once, at most."""
        opened: dict[int, set[bool]] = {}
        most = 0
        for client, (kind, flags, stream_id, _) in self.frames():
            if client and kind == HEADERS:
                opened.setdefault(stream_id, set())
            if kind in (HEADERS, DATA) and flags & END_STREAM and stream_id in opened:
                opened[stream_id].add(client)
            if kind == RST_STREAM or len(opened.get(stream_id, ())) == 2:
                opened.pop(stream_id, None)
            most = max(most, len(opened))
        return most


class Wire:
    """Relays what it accepts to a target; `kept` has the connections in the order in which they were accepted."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self.kept: list[Kept] = []

    async def serve(
        self, port: int = 0, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; starts with the address, as HOST:PORT."""
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._relay, [listener])
            task_status.started(f"127.0.0.1:{listener.socket.getsockname()[1]}")

    async def _relay(self, accepted: trio.SocketStream) -> None:
        kept = Kept()
        self.kept.append(kept)
        dialled = await trio.open_tcp_stream(*self._target, happy_eyeballs_delay=math.inf)
        async with accepted, dialled, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, accepted, dialled, kept, kept.client)
            nursery.start_soon(_pump, dialled, accepted, kept, kept.server)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, kept: Kept, sent: bytearray) -> None:
    try:
        while data := await source.receive_some(_READ_BYTES):
            sent += data
            kept.reads.append((sent is kept.client, len(data)))
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # The other direction ends, too: whoever reads the other end learns of it.
        await sink.aclose()
        await source.aclose()


@asynccontextmanager
async def wire_before(target: str, port: int = 0) -> AsyncIterator[tuple[Wire, str]]:
    """A relay in front of `target`, and where it listens."""
    wire = Wire(target)
    async with trio.open_nursery() as nursery:
        yield wire, await nursery.start(wire.serve, port)
        nursery.cancel_scope.cancel()


def frames_of(data: bytes | bytearray, *, client: bool) -> list[Frame]:
    """What one end has sent, as frames; what is not a whole frame at its end is left out."""
    rest = bytearray(data)
    if client:
        rest = rest.removeprefix(PREFACE)
    return list(take_frames(rest))
