"""What a session knows of one open stream, and the DATA that waits for its turn on it.

The state of RFC 9113 §5.1, kept as two halves, since each direction ends by itself:

    receiving:  HEADERS ──► BODY ──► ENDED            sending:  OPEN ──► CLOSING ──► ENDED
                   └───────────────►──┘                (CLOSING: the end is queued behind DATA)

When both halves have ended, or either side has sent RST_STREAM, the stream is closed and its state is gone.
"""

import math
from collections import deque
from enum import IntEnum
from typing import Protocol

from rawgrpc_proxy.http2.buffered import PIECE_BYTES, Account
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import Headers

_SMALL = 2048
_COALESCE_UP_TO = 8192
LONG_AGO = -math.inf
"""`StreamState.opened_at` of a call that has been answered."""


class CreditSource(Protocol):
    """Whoever wants to hear that bytes have been handed to the socket."""

    @property
    def account(self) -> Account | None:
        """Of the connection that the bytes have come from, if they have come from any."""

    def credit(self, size: int) -> None:
        """`size` is what was named with the bytes when they were queued."""


class Receiving(IntEnum):
    """How far the peer's half of a stream is."""

    HEADERS = 0
    BODY = 1
    ENDED = 2


class Sending(IntEnum):
    """How far our half of a stream is."""

    OPEN = 0
    CLOSING = 1
    ENDED = 2


_HEADERS, _OPEN = Receiving.HEADERS, Sending.OPEN  # looked up once, not for every stream


class StreamState:
    """One open stream of a session."""

    __slots__ = (
        "body_left",
        "end_batch",
        "id",
        "moved_at",
        "opened_at",
        "held_bytes",
        "pending",
        "queued",
        "receiving",
        "reset_after_end",
        "send_window",
        "receive_window",
        "sending",
        "trailers",
        "uncredited",
        "waiting_bytes",
    )

    def __init__(
        self, stream_id: int, send_window: int = 0, receive_window: int = 0, opened_at: float = 0.0
    ) -> None:
        self.id = stream_id
        self.opened_at = opened_at
        """`LONG_AGO` once it has been answered: then it was not for nothing, however soon it is reset."""
        self.end_batch = 0
        """Which batch of the session's output has the end of our half."""
        self.receiving = _HEADERS
        self.sending = _OPEN
        self.held_bytes = 0
        """What its request headers and trailers take, if they came from the peer."""
        self.body_left: int | None = None
        """What content-length still promises, where there is one."""
        self.uncredited = 0
        self.pending: deque[PendingData] | None = None
        """Made when it is needed first: an empty one takes half a kilobyte."""
        self.waiting_bytes = 0
        """What `pending` takes in memory."""
        self.moved_at = 0
        """What `Buffered.passed` was when a piece of `pending` has left last, or the first one came."""
        self.trailers: Headers | None = None
        """Trailers that end our half once `pending` is out."""
        self.reset_after_end: int | None = None
        self.queued = False
        """Is it in the session's round of streams with something to send?"""
        self.send_window = send_window
        self.receive_window = receive_window

    def hold(self, data: Data, source: CreditSource | None, credit: int) -> int:
        """Queue DATA behind what waits already, and answer what it takes in memory.

        The bytes are copied: a view would keep the whole chunk it was read in alive. Small pieces are joined, so
        that a peer that sends single bytes cannot make us keep a hundred bytes for each.
        """
        if self.pending:
            last = self.pending[-1]
            small = not data or (len(data) < _SMALL and last.left < _COALESCE_UP_TO)
            # END_STREAM by itself, without data or credit, rides on the piece before it, whoever that is from.
            if (small and last.source is source) or not (data or credit):
                if data:
                    last.add(data)
                last.credit += credit
                last.cost += len(data)
                self.waiting_bytes += len(data)
                return len(data)
        elif self.pending is None:
            self.pending = deque()
        piece = PendingData(bytes(data), source, credit)
        self.pending.append(piece)
        self.waiting_bytes += piece.cost
        return piece.cost


class PendingData:
    """A piece of DATA, and who gets `credit` bytes of credit when the last of it is out."""

    __slots__ = ("cost", "credit", "data", "sent", "source")

    def __init__(self, data: bytes, source: CreditSource | None, credit: int) -> None:
        self.data: bytes | bytearray = data
        """A bytearray only if it was joined of several: PyPy sends those a byte at a time."""
        self.sent = 0
        """How much of it is out."""
        self.source = source
        self.credit = credit
        self.cost = len(data) + PIECE_BYTES
        """What it takes in memory until the last of it is out, as much as was ever in it."""

    @property
    def left(self) -> int:
        """How many bytes are not out."""
        return len(self.data) - self.sent

    def add(self, data: Data) -> None:
        """Join more to what is left."""
        if type(self.data) is bytes:
            self.data = bytearray(memoryview(self.data)[self.sent :])
        else:
            del self.data[: self.sent]  # type: ignore[union-attr]
        self.sent = 0
        self.data += data
