"""Says what a row of the table says, as fast as it is read, on some connections at once; from a process of its own.

    python -m interop.attacks.attacker --row NAME --target HOST:PORT --seconds S [--connections N] [--calls-only]

With --calls-only it makes the calls that a hostile backend answers with that row. Prints one line of JSON: how many
connections were made, how many of these were closed, after how many bytes and seconds, and with which words; and why
the others were not made.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable
from statistics import median

from interop.attacks.rows import BY_NAME, Row
from interop.shared.frames import GOAWAY, goaway_reason, take_frames

LISTEN_S = 1.0
"""How long an attacker whose connection takes no more listens for the reason."""


class Connection:
    """One connection of the attacker's; it need not come about."""

    def __init__(self, row: Row, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._row = row
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self._next_id = 1
        self._waits = memoryview(row.greeting + row.first)
        self._heard = bytearray()
        self.made = False
        self.sent = 0
        self.failure = "the connection was not accepted in time"
        """Why it was not made, if it was not."""
        self.closed: str | None = None
        """How it ended, or could not begin."""
        self.ended_at = 0.0
        if (code := self.socket.connect_ex((host, int(port)))) not in (0, errno.EINPROGRESS):
            self._cannot(code)

    def say(self) -> None:
        """Send what the socket takes; the first time that it takes something the connection is made."""
        if not self.made:
            if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._cannot(code)
                return
            self.made = True
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
            self.hear()  # the reason may have come before
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

    def _cannot(self, code: int) -> None:
        self.closed = self.failure = os.strerror(code)


def attack(row: Row, target: str, seconds: float, count: int) -> dict[str, object]:
    """Attack, and tell what came of it."""
    started = time.monotonic()
    connections = [Connection(row, target) for _ in range(count)]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if row.reads or row.patient else 0)
            if connection.closed is None:
                selector.register(connection.socket, events, connection)
        while selector.get_map() and (now := time.monotonic()) < started + seconds:
            idle = True
            for key, events in selector.select(0.1):
                connection = key.data
                if (
                    events & selectors.EVENT_READ
                    and connection.made
                    and (row.reads or now > started + seconds - LISTEN_S)
                ):
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
        if connection.made and connection.closed is None:
            connection.hear()
            connection.hear()
    made = [connection for connection in connections if connection.made]
    closed = [connection for connection in made if connection.closed is not None]
    return {
        "made": len(made),
        "not_made": most(connection.failure for connection in connections if not connection.made),
        "closed": len(closed),
        "sent_kib": round(median(connection.sent for connection in made) / 1024, 1) if made else 0.0,
        "after_s": round(median(connection.ended_at for connection in closed) - started, 2)
        if closed
        else None,
        "how": most(str(connection.closed) for connection in closed),
    }


def most(words: Iterable[str]) -> str | None:
    """What most of them say; None if there are none."""
    counted = Counter(words).most_common(1)
    return counted[0][0] if counted else None


def main() -> None:
    """Parse the arguments and attack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", choices=BY_NAME, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--calls-only", action="store_true")
    given = parser.parse_args()
    row = BY_NAME[given.row]
    row = row.caller() if given.calls_only else row
    print(json.dumps(attack(row, given.target, given.seconds, given.connections)))


if __name__ == "__main__":
    main()
