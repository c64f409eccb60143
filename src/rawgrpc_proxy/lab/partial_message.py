"""The message that is under way in one half of a stream: five bytes in front, and then only how much is to come.

Owns: "Length-Prefixed-Message", for those who look on. Whatever the flag and the length are, they are told.
"""

import struct
from collections.abc import Callable

import attrs

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.events import MessageBegun, MessageSeen, Sender, Stream
from rawgrpc_proxy.net.tapped import Link

_PREFIX = struct.Struct(">BI")
_PREFIX_BYTES = 5


@attrs.frozen
class Told:
    """Of what, and to whom."""

    link: Link
    sender: Sender
    stream: Stream
    tell: Callable[[MessageBegun | MessageSeen], None]


class PartialMessage:
    """Holds no more of a message than `payload_bytes`."""

    __slots__ = ("_began_at", "_flag", "_kept", "_left", "_length", "_prefix", "_unknown")

    def __init__(self) -> None:
        self._prefix = b""
        """Of the next message, if it is not whole."""
        self._flag = self._length = self._left = 0
        self._began_at = 0.0
        self._kept: bytearray | None = None
        self._unknown = False
        """The message in passing began before anybody looked: it is not told."""

    def join(self, left: int, prefix: bytes) -> None:
        """Begin in mid-stream: so many bytes come first, then what is left of a prefix of which this has passed."""
        self._left, self._prefix = left, prefix
        self._unknown = bool(left or prefix)

    @property
    def missing_bytes(self) -> int:
        """What has not come of a message that has begun; -1 if it is in its prefix."""
        return -1 if self._prefix else self._left

    def feed(self, data: Data, at: float, told: Told, payload_bytes: int) -> None:
        """Tell of the messages that begin and end in this data. The stream's half counts them."""
        half = told.stream.half(told.sender)
        position, end = 0, len(data)
        while position < end:
            if not self._left:
                taken = _PREFIX_BYTES - len(self._prefix)
                self._prefix += data[position : position + taken]
                position += taken
                if len(self._prefix) < _PREFIX_BYTES:
                    return
                if self._unknown:
                    self._left, self._prefix = _PREFIX.unpack(self._prefix)[1], b""
                    self._unknown = self._left > 0
                    continue
                self._begin(at, payload_bytes)
                half.messages += 1
                told.tell(
                    MessageBegun(
                        told.link, at, told.sender, told.stream, half.messages - 1, self._flag, self._length
                    )
                )
            taken = min(self._left, end - position)
            if self._kept is not None and (room := payload_bytes - len(self._kept)) > 0:
                self._kept += memoryview(data)[position : position + min(taken, room)]
            position += taken
            self._left -= taken
            if self._left:
                return
            if self._unknown:
                self._unknown = bool(self._prefix)
            else:
                kept, self._kept = self._kept, None
                told.tell(
                    MessageSeen(
                        told.link, at, told.sender, told.stream, half.messages - 1, self._flag, self._length,
                        self._began_at, None if kept is None else bytes(kept),
                    )
                )  # fmt: skip

    def _begin(self, at: float, payload_bytes: int) -> None:
        self._flag, self._length = _PREFIX.unpack(self._prefix)
        self._prefix, self._left, self._began_at = b"", self._length, at
        self._kept = bytearray() if payload_bytes else None
