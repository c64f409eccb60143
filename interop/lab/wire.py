"""A TCP relay that keeps all bytes: what has passed, as somebody sees it who is neither the proxy nor its recorder."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from interop.shared.frames import PREFACE, take_frames

_READ_BYTES = 65_536
Frame = tuple[int, int, int, bytes]
"""Type, flags, stream, payload."""


@dataclass(eq=False)
class Kept:
    """All bytes of one connection."""

    client: bytearray = field(default_factory=bytearray)
    server: bytearray = field(default_factory=bytearray)


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
            nursery.start_soon(_pump, accepted, dialled, kept.client)
            nursery.start_soon(_pump, dialled, accepted, kept.server)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, kept: bytearray) -> None:
    try:
        while data := await source.receive_some(_READ_BYTES):
            kept += data
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
