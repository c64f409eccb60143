"""The backend behind the attacked proxy: answers every call at once, or holds it, or is itself the attacker.

    python -m interop.attacks.backend [--stalls] [--hostile ROW]

Calls of methods named Hold are not answered, those named Long with 40 KB of headers, those named Data with 4 KB of
body, and those named Bulk with 100 KB. Of the windows only the connection's is heeded: the body of an answer fits into
its stream's. One that --stalls takes a stream's first 64 KiB, and nothing after. With --hostile the
first call on a connection is answered with what the row says, again and again, until the proxy ends the connection. Two
lines on standard output tell of each of these: `attack begun`, and `attack ended: KIB HOW`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque

from interop.attacks.headers import Block, HeaderReader
from interop.attacks.rows import BY_NAME, Row, headers, string
from interop.shared.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    acknowledgement,
    frame,
    goaway_reason,
    settings,
    take_frames,
    window_update,
)

WINDOW = 2**30
MAX_FRAME_BYTES = 2**14
STREAMS = 100_000
SMALL_WINDOW = 65_535
START = b"\x88\x0f\x10\x10application/grpc"
STATUS = b"\x00\x0bgrpc-status\x010"
ANSWER = START + STATUS
LONG_ANSWER = ANSWER + b"\0\1x" + string(bytes(b"x" * 40_000))
DATA_BYTES, BULK_BYTES = 4096, 100_000
GATHERING_S = 0.3
"""How long a hostile backend waits for further calls: how many come on one connection is the proxy's matter."""


class Connection(asyncio.Protocol):
    """One connection of the proxy's."""

    def __init__(self, hostile: Row | None, *, stalls: bool) -> None:
        self._hostile = hostile
        self._window = SMALL_WINDOW if stalls else WINDOW
        self._buffer = bytearray()
        self._headers = HeaderReader()
        self._greeted = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._flood: asyncio.Task[None] | None = None
        self._sent = 0
        self._uncredited = 0
        self._credit = SMALL_WINDOW
        self._bodies: deque[tuple[int, bytes]] = deque()
        """What the proxy has given no credit for yet: streams and the rest of their answers' bodies."""
        self._reason = "closed"
        self._methods: dict[int, bytes] = {}
        """Of the calls that are open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # So that each of the attacker's callers has a hostile connection to itself, if the proxy heeds it.
        streams = STREAMS if self._hostile is None else self._hostile.calls
        transport.write(settings({MAX_CONCURRENT_STREAMS: streams, INITIAL_WINDOW_SIZE: self._window}))
        transport.write(window_update(0, WINDOW))

    def connection_lost(self, error: Exception | None) -> None:
        self._may_write.set()
        if self._flood is not None:
            self._flood.cancel()
            print(f"attack ended: {self._sent // 1024} {self._reason}", flush=True)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._greeted:
            if len(self._buffer) < len(PREFACE):
                return
            del self._buffer[: len(PREFACE)]
            self._greeted = True
        for kind, flags, stream_id, payload in take_frames(self._buffer):
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._transport.write(acknowledgement(kind, payload))
            elif kind == GOAWAY:
                self._reason = goaway_reason(payload) or self._reason
            elif kind == WINDOW_UPDATE and stream_id == 0:
                self._credit += int.from_bytes(payload)
                self._send_bodies()
            elif kind == DATA:
                self._uncredited += len(payload)
                if self._uncredited > WINDOW // 2:
                    self._transport.write(window_update(0, self._uncredited))
                    self._uncredited = 0
                if flags & END_STREAM:
                    self._answer(stream_id)
            elif block := self._headers.take(kind, flags, stream_id, payload):
                self._request(block)

    def _request(self, block: Block) -> None:
        # Trailers have no path, and change nothing.
        if path := block.fields.get(b":path"):
            self._methods[block.stream_id] = path.rpartition(b"/")[2]
        if self._hostile is not None and self._flood is None:
            self._flood = asyncio.get_running_loop().create_task(self._attack(self._hostile))
        if block.ends:
            self._answer(block.stream_id)

    def _answer(self, stream_id: int) -> None:
        if self._hostile is not None:
            return
        match self._methods.pop(stream_id, b""):
            case b"Hold":
                return
            case b"Long":
                answer = headers(stream_id, LONG_ANSWER)
            case b"Data" | b"Bulk" as method:
                answer = frame(HEADERS, END_HEADERS, stream_id, START)
                self._bodies.append((stream_id, bytes(DATA_BYTES if method == b"Data" else BULK_BYTES)))
            case _:
                answer = frame(HEADERS, END_HEADERS | END_STREAM, stream_id, ANSWER)
        self._transport.write(answer)
        self._send_bodies()

    def _send_bodies(self) -> None:
        while self._bodies and self._credit:
            stream_id, body = self._bodies.popleft()
            size = min(self._credit, MAX_FRAME_BYTES, len(body))
            self._credit -= size
            self._transport.write(frame(DATA, 0, stream_id, body[:size]))
            if size < len(body):
                self._bodies.appendleft((stream_id, body[size:]))
            else:
                self._transport.write(headers(stream_id, STATUS))

    async def _attack(self, row: Row) -> None:
        await asyncio.sleep(GATHERING_S)
        print("attack begun", flush=True)
        if row.answered:
            self._transport.write(frame(HEADERS, END_HEADERS, 1, START))
        while not self._transport.is_closing():
            self._transport.write(row.piece)
            self._sent += len(row.piece)
            await self._may_write.wait()
            await asyncio.sleep(0)


async def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hostile", choices=BY_NAME)
    parser.add_argument("--stalls", action="store_true")
    given = parser.parse_args()
    row = None if given.hostile is None else BY_NAME[given.hostile]
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(row, stalls=given.stalls), "127.0.0.1", 0
    )
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
