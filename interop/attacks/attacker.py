"""Says what a row of the table says, as fast as it is read, on some connections at once; from a process of its own.

    python -m interop.attacks.attacker --row NAME --target HOST:PORT --seconds S [--connections N]

Prints one line of JSON: how many connections were closed, after how many bytes and seconds, and with which words.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time
from collections import Counter
from statistics import median

from interop.attacks.rows import BY_NAME, Row
from interop.shared.frames import ACK, GOAWAY, PREFACE, SETTINGS, frame, goaway_reason, take_frames

LISTEN_S = 1.0
"""How long an attacker whose connection takes no more listens for the reason."""


class Connection:
    """One connection of the attacker's."""

    def __init__(self, row: Row, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._row = row
        self.socket = socket.create_connection((host, int(port)), 10)
        self.socket.setblocking(False)
        self._next_id = 1
        start = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0) + row.first
        self._waits = memoryview(PREFACE[:10] if row.name == "slow_preface" else start)
        self._heard = bytearray()
        self.sent = 0
        self.closed: str | None = None
        self.ended_at = 0.0

    def say(self) -> None:
        """Send what the socket takes."""
        if not self._waits:
            self._waits = memoryview(self._piece())
        if not self._waits:
            return
        try:
            size = self.socket.send(self._waits)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(type(error).__name__)
            return
        self.sent += size
        self._waits = self._waits[size:]

    def hear(self) -> None:
        """Read what there is, for the reason of an end."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(type(error).__name__)
            return
        if not data:
            self._end("closed")
            return
        self._heard += data
        for kind, _, _, payload in take_frames(self._heard):
            if kind == GOAWAY and (reason := goaway_reason(payload)):
                self._end(reason)

    def _piece(self) -> bytes:
        row = self._row
        if row.fresh is None:
            return row.piece
        ids = range(self._next_id, self._next_id + 2 * row.ids, 2)
        self._next_id += 2 * row.ids
        return b"".join(map(row.fresh, ids))

    def _end(self, how: str) -> None:
        if self.closed is None or how.startswith("GOAWAY"):
            self.closed = how
            self.ended_at = time.monotonic()


def attack(row: Row, target: str, seconds: float, count: int) -> dict[str, object]:
    """Attack, and tell what came of it."""
    started = time.monotonic()
    connections = [Connection(row, target) for _ in range(count)]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if row.reads or row.patient else 0)
            selector.register(connection.socket, events, connection)
        while selector.get_map() and (now := time.monotonic()) < started + seconds:
            idle = True
            for key, events in selector.select(0.1):
                connection = key.data
                if events & selectors.EVENT_READ and (row.reads or now > started + seconds - LISTEN_S):
                    connection.hear()
                    idle = False
                if events & selectors.EVENT_WRITE and connection.closed is None:
                    before = connection.sent
                    connection.say()
                    idle = idle and connection.sent == before
                if connection.closed is not None:
                    selector.unregister(connection.socket)
            if idle:
                time.sleep(0.01)
    for connection in connections:
        if connection.closed is None:
            connection.hear()
            connection.hear()
    closed = [connection for connection in connections if connection.closed is not None]
    words = Counter(str(connection.closed) for connection in closed)
    return {
        "closed": len(closed),
        "of": count,
        "sent_kib": round(median(connection.sent for connection in connections) / 1024, 1),
        "after_s": round(median(connection.ended_at for connection in closed) - started, 2)
        if closed
        else None,
        "how": words.most_common(1)[0][0] if words else None,
    }


def main() -> None:
    """Parse the arguments and attack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", choices=BY_NAME, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(attack(BY_NAME[given.row], given.target, given.seconds, given.connections)))


if __name__ == "__main__":
    main()
