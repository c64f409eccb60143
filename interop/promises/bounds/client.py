"""A client that speaks frames over a plain socket, for it has to be able to misbehave: it reads when it is told to."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Self

import trio

from interop.shared import frames

READ_BYTES = 262_144
STREAM_WINDOW_BYTES = 1 << 20
LARGEST_WINDOW_BYTES = 2**31 - 1


class RawClient:
    """One connection whose windows only open when told to: the connection's is all but endless, a stream's 1 MiB."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self.body_bytes = Counter[int]()
        """What has come of each stream's body."""
        self.ended = set[int]()
        self._settings_seen = set[int]()

    @classmethod
    async def connect(cls, address: str) -> Self:
        """Connect to HOST:PORT."""
        host, port = address.rsplit(":", 1)
        client = cls(await trio.open_tcp_stream(host, int(port)))
        await client._stream.send_all(
            frames.PREFACE
            + frames.settings({frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES})
            + frames.window_update(0, LARGEST_WINDOW_BYTES - 65_535)
        )
        return client

    async def settle(self) -> None:
        """Wait for the proxy's SETTINGS and for its acknowledgement of ours, and acknowledge: nothing is open then."""
        while not self._settings_seen >= {0, frames.ACK}:
            await self.read_some(credit=False)
        await self._stream.send_all(frames.frame(frames.SETTINGS, frames.ACK, 0))

    async def call(self, stream_id: int, path: str, message: bytes) -> None:
        """Send a unary request."""
        body = b"\0" + len(message).to_bytes(4) + message
        await self._stream.send_all(
            frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, frames.grpc_request(path, "bounds"))
            + frames.frame(frames.DATA, frames.END_STREAM, stream_id, body)
        )

    async def read_some(self, *, credit: bool) -> None:
        """Read once from the socket; give the streams their windows back or not."""
        data = await self._stream.receive_some(READ_BYTES)
        if not data:
            raise ConnectionError("the proxy closed the connection")
        self._buffer += data
        owed: Counter[int] = Counter()
        for kind, flags, stream_id, payload in frames.take_frames(self._buffer):
            if kind == frames.DATA:
                owed[stream_id] += len(payload)
            if kind in {frames.DATA, frames.HEADERS} and flags & frames.END_STREAM:
                self.ended.add(stream_id)
            if kind == frames.SETTINGS:
                self._settings_seen.add(flags)
            if kind == frames.GOAWAY:
                raise ConnectionError(f"GOAWAY {struct.unpack('>LL', payload[:8])} {payload[8:]!r}")
        self.body_bytes += owed
        if credit and owed.total():
            updates = [frames.window_update(stream_id, size) for stream_id, size in (+owed).items()]
            await self._stream.send_all(b"".join(updates) + frames.window_update(0, owed.total()))
