"""Somebody else's calls: unary ones at a steady pace, on a connection of their own, each timed.

    python -m interop.attacks.victim --target HOST:PORT --seconds S [--rate 100]

A call is made when it is due, answered or not what came before, and its time counts from then: a proxy that stands
still for a second has not delayed one call but a hundred. Prints one line of JSON: calls (answered with grpc-status
0), failures (of each kind, how many), p50_ms, p99_ms.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator

from hpack import HPACKError

from interop.attacks.headers import HeaderReader
from interop.shared.frames import (
    ACK,
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
    grpc_request,
    take_frames,
)

PATIENCE_S = 10.0
REQUEST = grpc_request("/victim.Victim/Call", "victim")


class Connection:
    """A connection with calls on it. What ends it raises OSError, and so does a GOAWAY: a victim has given no cause."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self._buffer = bytearray()
        self._headers = HeaderReader()
        self._next_id = 1
        self._limit = 100
        self.due: dict[int, float] = {}
        """When each call that is open was due, by its stream."""

    @property
    def has_room(self) -> bool:
        """Whether the peer allows one more call."""
        return len(self.due) < self._limit

    def begin(self, due: float) -> None:
        """Make a call."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self.due[stream_id] = due
        self._socket.sendall(
            frame(HEADERS, END_HEADERS, stream_id, REQUEST) + frame(DATA, END_STREAM, stream_id, bytes(5))
        )

    def ended(self, seconds: float) -> Iterator[tuple[float, str]]:
        """The calls that end with what comes within so many seconds: when each was due, and what is wrong."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        self._buffer += data
        for kind, flags, stream_id, payload in take_frames(self._buffer):
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._heed(kind, payload)
                self._socket.sendall(acknowledgement(kind, payload))
            elif kind == GOAWAY:
                raise ConnectionResetError(f"GOAWAY {int.from_bytes(payload[4:8])}")
            elif (
                wrong := self._wrong(kind, flags, stream_id, payload)
            ) is not None and stream_id in self.due:
                yield self.due.pop(stream_id), wrong

    def _heed(self, kind: int, payload: bytes) -> None:
        for at in range(0, len(payload) if kind == SETTINGS else 0, 6):
            if int.from_bytes(payload[at : at + 2]) == MAX_CONCURRENT_STREAMS:
                self._limit = int.from_bytes(payload[at + 2 : at + 6])

    def _wrong(self, kind: int, flags: int, stream_id: int, payload: bytes) -> str | None:
        """Of a frame that ends a call, what is wrong with its end, or nothing (the empty text); None for others."""
        if kind == RST_STREAM:
            return f"RST_STREAM {int.from_bytes(payload)}"
        if kind == DATA and flags & END_STREAM:
            return "no status"
        block = self._headers.take(kind, flags, stream_id, payload)
        if block is None or not block.ends:
            return None
        status = block.fields.get(b"grpc-status")
        if status is None:
            return f"no status, HTTP {block.fields.get(b':status', b'-').decode()}"
        return "" if status == b"0" else f"grpc-status {status.decode()}"

    def close(self) -> None:
        self._socket.close()


class Victim:
    """Calls at `rate` a second for so many seconds, on a new connection when the last one was lost."""

    def __init__(self, target: str, seconds: float, rate: float) -> None:
        self._target = target
        self._count = round(seconds * rate)
        self._rate = rate
        self._connection: Connection | None = None
        self.times: list[float] = []
        self.failures = Counter[str]()

    def run(self) -> None:
        """Make all the calls, and wait for what comes of them."""
        started = time.monotonic()
        made = 0
        while made < self._count or (self._connection and self._connection.due):
            now = time.monotonic()
            due = started + made / self._rate
            try:
                if (
                    made < self._count
                    and due <= now
                    and (self._connection is None or self._connection.has_room)
                ):
                    made += 1
                    self._begin(due)
                else:
                    self._listen(max(0.001, due - now) if made < self._count else 0.1)
            except (OSError, HPACKError) as error:
                self._lost(error)
            self._give_up(time.monotonic() - PATIENCE_S)

    def _begin(self, due: float) -> None:
        if self._connection is None:
            try:
                self._connection = Connection(self._target)
            except OSError as error:
                self.failures[f"cannot connect: {error}"] += 1
                return
        self._connection.begin(due)

    def _listen(self, seconds: float) -> None:
        if self._connection is None:
            time.sleep(seconds)
            return
        for due, wrong in self._connection.ended(seconds):
            if wrong:
                self.failures[wrong] += 1
            else:
                self.times.append(time.monotonic() - due)

    def _lost(self, error: Exception) -> None:
        assert self._connection is not None
        self.failures[f"connection lost: {error}"] += max(1, len(self._connection.due))
        self._connection.close()
        self._connection = None

    def _give_up(self, before: float) -> None:
        due = self._connection.due if self._connection else {}
        for stream_id in [stream_id for stream_id, at in due.items() if at < before]:
            del due[stream_id]
            self.failures[f"not answered within {PATIENCE_S:.0f} s"] += 1


def main() -> None:
    """Call until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=100.0)
    given = parser.parse_args()
    victim = Victim(given.target, given.seconds, given.rate)
    victim.run()
    times = sorted(victim.times)
    told = {
        "calls": len(times),
        "failures": dict(victim.failures),
        "p50_ms": round(1e3 * times[len(times) // 2], 2) if times else None,
        "p99_ms": round(1e3 * times[min(len(times) - 1, int(len(times) * 0.99))], 2) if times else None,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
