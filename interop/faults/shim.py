"""A TCP relay that fails as networks do: slow, silent, reset, closed in one direction."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

READ_BYTES = 65_536


@dataclass(eq=False)
class _Link:
    """One connection through the shim: what was accepted, and what was dialled for it."""

    accepted: trio.SocketStream
    dialled: trio.SocketStream
    flowing: trio.Event = field(default_factory=trio.Event)

    def reset(self) -> None:
        """End both sides with RST."""
        for stream in (self.accepted, self.dialled):
            _close_with_reset(stream)

    def end(self) -> None:
        """End both sides with FIN."""
        for stream in (self.accepted, self.dialled):
            stream.socket.close()


class Shim:
    """Relays what it accepts to `target`. What it is told to do is done to the links there are; new ones are healthy.

    A silent link is what a pulled cable or a lost NAT entry is to an application: nothing comes, and nothing tells of
    it. The kernel still acknowledges what is sent, as far as its buffers go, so TCP notices even less than on a real
    network.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._links: set[_Link] = set()
        self._to_reset = 0
        self.accepted = 0
        """Connections so far, those that were reset included."""
        self.delay_s = 0.0
        """How long what is read is kept before it is passed on, on all links and in both directions."""
        self.trickle_bytes = 0
        """How many bytes are passed on at a time, if it is not 0."""
        self.passed = 0
        """Bytes passed on so far, on all links and in both directions."""
        self._cut_at: int | None = None

    async def serve(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; starts with the address, as HOST:PORT."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._relay, [listener])
            task_status.started(f"127.0.0.1:{port}")

    def silence(self) -> None:
        """Pass on nothing more on the links there are, not even their end."""
        for link in self._links:
            link.flowing = trio.Event()

    def resume(self) -> None:
        """Let silent links go on, with all that has been sent meanwhile."""
        for link in self._links:
            link.flowing.set()

    def reset(self) -> None:
        """Reset the links there are, towards both sides."""
        for link in self._links:
            link.reset()

    def cut_after(self, size: int) -> None:
        """End the links there are, towards both sides and in good order (FIN), when so many bytes more have passed."""
        self._cut_at = self.passed + size

    def reset_next(self, count: int = 1) -> None:
        """Reset so many connections as soon as they are accepted."""
        self._to_reset = count

    async def half_close(self) -> None:
        """Send FIN to those who connected here; what they send is still passed on."""
        for link in list(self._links):
            await link.accepted.send_eof()

    async def _relay(self, accepted: trio.SocketStream) -> None:
        self.accepted += 1
        if self._to_reset:
            self._to_reset -= 1
            _close_with_reset(accepted)
            return
        try:
            dialled = await trio.open_tcp_stream(*self._target, happy_eyeballs_delay=math.inf)
        except OSError:
            _close_with_reset(accepted)
            return
        link = _Link(accepted, dialled)
        link.flowing.set()
        self._links.add(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, link, accepted, dialled)
                nursery.start_soon(self._pump, link, dialled, accepted)
        finally:
            self._links.remove(link)
            link.reset()

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        size = self.trickle_bytes or len(data)
        return (data[start : start + size] for start in range(0, len(data), size))

    async def _pump(self, link: _Link, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while True:
                data = await source.receive_some(READ_BYTES)
                await trio.sleep(self.delay_s)
                await link.flowing.wait()
                if not data:
                    await sink.send_eof()
                    return
                if self._cut_at is not None and self.passed + len(data) >= self._cut_at:
                    await sink.send_all(data[: self._cut_at - self.passed])
                    self._cut_at = None
                    link.end()
                    return
                for piece in self._pieces(data):
                    await sink.send_all(piece)
                    self.passed += len(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await link.flowing.wait()
            link.reset()


@asynccontextmanager
async def shim_before(target: str) -> AsyncIterator[tuple[Shim, str]]:
    """A shim in front of `target`, and where it listens."""
    shim = Shim(target)
    async with trio.open_nursery() as nursery:
        yield shim, await nursery.start(shim.serve)
        nursery.cancel_scope.cancel()


def _close_with_reset(stream: trio.SocketStream) -> None:
    if stream.socket.fileno() == -1:
        return
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
