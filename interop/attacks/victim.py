"""Somebody else's calls: unary ones at a steady pace, on a connection of their own, each timed.

    python -m interop.attacks.victim --target HOST:PORT --seconds S [--rate 100]

Prints one line of JSON: calls, failed, p50_ms, p99_ms.
"""

from __future__ import annotations

import argparse
import json
import socket
import time

from interop.shared.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    acknowledgement,
    frame,
    grpc_request,
    take_frames,
)

PATIENCE_S = 10.0


class Caller:
    """One connection, one call at a time."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self._buffer = bytearray()
        self._next_id = 1
        self._request = grpc_request("/victim.Victim/Call", "victim")

    def call(self) -> bool:
        """Make a call, and say whether it was answered."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._socket.sendall(
            frame(HEADERS, END_HEADERS, stream_id, self._request)
            + frame(DATA, END_STREAM, stream_id, bytes(5))
        )
        while True:
            data = self._socket.recv(65536)
            if not data:
                return False
            self._buffer += data
            for kind, flags, on, payload in take_frames(self._buffer):
                if kind in (SETTINGS, PING) and not flags & ACK:
                    self._socket.sendall(acknowledgement(kind, payload))
                elif on == stream_id and flags & END_STREAM and kind in (HEADERS, DATA):
                    return True


def main() -> None:
    """Call until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=100.0)
    given = parser.parse_args()
    times: list[float] = []
    failed = 0
    started = time.monotonic()
    caller = Caller(given.target)
    number = 0
    while (now := time.monotonic()) < started + given.seconds:
        due = started + number / given.rate
        if due > now:
            time.sleep(due - now)
        number += 1
        begun = time.perf_counter()
        try:
            answered = caller.call()
        except OSError:
            answered = False
        if answered:
            times.append(time.perf_counter() - begun)
        else:
            failed += 1
            caller = Caller(given.target)
    times.sort()
    told = {
        "calls": len(times),
        "failed": failed,
        "p50_ms": round(1e3 * times[len(times) // 2], 2) if times else None,
        "p99_ms": round(1e3 * times[min(len(times) - 1, int(len(times) * 0.99))], 2) if times else None,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
