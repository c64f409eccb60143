"""What callers and backends send, so that each can tell whether all of it has come: contents by number, never zeros.

A success that lacks a byte is the worst that a proxy can do; whoever reads only lengths or statuses would not see it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_PATTERN = hashlib.shake_128(b"what is sent").digest(1 << 20)


def content(number: int, size: int) -> bytes:
    """A message: of this size, and another one for each number."""
    head = number.to_bytes(8)
    return (head + _PATTERN[: size - 8])[:size] if size <= len(_PATTERN) else head + bytes(size - 8)


@dataclass(frozen=True)
class Stream:
    """What is asked of the backend's `Stream`: so many messages of a size, with a pause after each."""

    count: int
    size: int
    pause_s: float = 0.0

    def encode(self) -> bytes:
        """As it is sent."""
        return f"{self.count} {self.size} {self.pause_s}".encode()

    @classmethod
    def decode(cls, request: bytes) -> Stream:
        """As it has come."""
        count, size, pause_s = request.decode().split()
        return cls(int(count), int(size), float(pause_s))

    def digest(self) -> str:
        """Of all messages together."""
        total = hashlib.sha256()
        for number in range(self.count):
            total.update(content(number, self.size))
        return total.hexdigest()
