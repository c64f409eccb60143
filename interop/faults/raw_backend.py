"""A backend in raw frames, within the runner, so that it can do what no library does.

It greets, acknowledges SETTINGS and PING and gives back credit by itself; what becomes of a request is its script's
matter. Windows of the proxy are not heeded: what it answers fits into them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from interop.shared.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_CONCURRENT_STREAMS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    acknowledgement,
    frame,
    header_block,
    settings,
    take_frames,
    window_update,
)

NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL = 0, 2, 7, 8
FRAME_BYTES = 16_384
READ_BYTES = 65_536
RESPONSE = (":status", "200"), ("content-type", "application/grpc"), ("backend", "raw")


@dataclass(frozen=True)
class Heard:
    """A frame that the proxy has sent."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Link:
    """One connection of the proxy's, and what can be said on it."""

    def __init__(self, backend: RawBackend, stream: trio.abc.Stream, number: int) -> None:
        self.number = number
        """The first one is 0."""
        self.heard: list[Heard] = []
        self.open: set[int] = set()
        """Streams that have neither been answered to the end nor reset."""
        self.most_open = 0
        self._backend, self._stream = backend, stream
        self._sending = trio.Lock()

    # ----------------------------------------------------------------------- what is said

    async def send(self, *frames: bytes) -> None:
        """All of these in one write; nothing happens if the proxy has gone."""
        async with self._sending:
            try:
                await self._stream.send_all(b"".join(frames))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.open.clear()

    async def headers(self, stream_id: int, *more: tuple[str, str], end: bool = False) -> None:
        """The headers of a response, in as many frames as they need; alone, with `end`, they are all of it."""
        await self._block(stream_id, (*RESPONSE, *more), end=end)

    async def data(self, stream_id: int, size: int, sent: int | None = None) -> None:
        """A message of so many bytes, of which only the first `sent` are sent, its prefix included."""
        whole = b"\0" + size.to_bytes(4) + bytes(size)
        await self.send(frame(DATA, 0, stream_id, whole[:sent]))

    async def trailers(self, stream_id: int, *more: tuple[str, str], status: int = 0) -> None:
        """The end of a response."""
        await self._block(stream_id, (("grpc-status", str(status)), *more), end=True)

    async def answer(self, stream_id: int, size: int = 100) -> None:
        """A whole response, of one message."""
        await self.headers(stream_id)
        await self.data(stream_id, size)
        await self.trailers(stream_id)

    async def reset(self, stream_id: int, code: int) -> None:
        """RST_STREAM."""
        self.open.discard(stream_id)
        await self.send(frame(RST_STREAM, 0, stream_id, code.to_bytes(4)))

    async def goaway(self, last_stream_id: int) -> None:
        """GOAWAY, without an error."""
        await self.send(frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4) + NO_ERROR.to_bytes(4)))

    async def ping(self) -> None:
        """A PING, whose answer will be among what is heard."""
        await self.send(frame(PING, 0, 0, b"are here"))

    async def allow(self, streams: int) -> None:
        """How many streams may be open from now on."""
        await self.send(settings({MAX_CONCURRENT_STREAMS: streams}))

    async def _block(self, stream_id: int, fields: tuple[tuple[str, str], ...], *, end: bool) -> None:
        block = header_block(fields)
        pieces = [block[start : start + FRAME_BYTES] for start in range(0, len(block), FRAME_BYTES)]
        frames = []
        for number, piece in enumerate(pieces):
            flags = END_HEADERS if number == len(pieces) - 1 else 0
            if number == 0 and end:
                flags |= END_STREAM
            frames.append(frame(CONTINUATION if number else HEADERS, flags, stream_id, piece))
        if end:
            self.open.discard(stream_id)
        await self.send(*frames)

    # ----------------------------------------------------------------------- what is heard

    def resets(self) -> dict[int, int]:
        """By stream, the code with which the proxy has reset it."""
        return {
            each.stream_id: int.from_bytes(each.payload) for each in self.heard if each.kind == RST_STREAM
        }

    def pongs(self) -> int:
        """Answers to PINGs."""
        return sum(each.kind == PING and bool(each.flags & ACK) for each in self.heard)

    def requests(self) -> list[int]:
        """The streams that the proxy has opened."""
        return [each.stream_id for each in self.heard if each.kind == HEADERS]

    async def run(self) -> None:
        """Greet, and listen until the connection ends."""
        await self.send(settings({MAX_CONCURRENT_STREAMS: self._backend.streams}), window_update(0, 2**30))
        buffer, greeted = bytearray(), False
        async with trio.open_nursery() as nursery:
            try:
                while data := await self._stream.receive_some(READ_BYTES):
                    buffer += data
                    if not greeted:
                        if len(buffer) < len(PREFACE):
                            continue
                        del buffer[: len(PREFACE)]
                        greeted = True
                    for heard in take_frames(buffer):
                        await self._hear(Heard(*heard), nursery)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

    async def _hear(self, heard: Heard, nursery: trio.Nursery) -> None:
        self.heard.append(heard)
        if heard.kind in (SETTINGS, PING) and not heard.flags & ACK:
            await self.send(acknowledgement(heard.kind, heard.payload))
        elif heard.kind == DATA and heard.payload:
            size = len(heard.payload)
            await self.send(window_update(0, size), window_update(heard.stream_id, size))
        elif heard.kind == RST_STREAM:
            self.open.discard(heard.stream_id)
        elif heard.kind == HEADERS and heard.stream_id not in self.open:
            self.open.add(heard.stream_id)
            self.most_open = max(self.most_open, len(self.open))
            if self._backend.early:
                nursery.start_soon(self._backend.script, self, heard.stream_id)
        if heard.kind in (HEADERS, DATA) and heard.flags & END_STREAM and not self._backend.early:
            nursery.start_soon(self._backend.script, self, heard.stream_id)


Script = Callable[[Link, int], Awaitable[None]]


@dataclass
class RawBackend:
    """The backend: `script` is told of each request, when its end has come, or with `early` its headers."""

    script: Script
    early: bool = False
    streams: int = 1000
    links: list[Link] = field(default_factory=list)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection."""
        link = Link(self, stream, len(self.links))
        self.links.append(link)
        await link.run()
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def listening(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Have `serve` deal with all who connect, and answer where."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
