"""The output of a session: bytes in their order, who is owed credit for them, and which streams are over with them.

    write, data, owe ──► a batch is filled ──take──► it is with whoever writes ──written──► it is with the socket

What it does not do: decide what goes out; the session does. The invariants: a source is credited with its bytes' own
batch; a stream that has ended is told of when its last frame is with the socket, and not before (a peer could otherwise
have us keep any number of answers that it does not read).
"""

from typing import Any

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.stream_state import CreditSource

Receipt = list[Any]
"""[source, credit]: a `CreditSource`, and what it is owed. A list, because the next frame of the source adds to it."""


class Output:
    """What is to be written on one connection."""

    __slots__ = (
        "_leaving_now",
        "_leaving_taken",
        "batch",
        "chunks",
        "closed",
        "counted_bytes",
        "counted_taken_bytes",
        "data_bytes",
        "leaving",
        "opening_bytes",
        "owed_bytes",
        "receipts",
        "taken",
        "waits_since",
    )

    def __init__(self) -> None:
        self.chunks: list[Data] = []
        self.receipts: list[Receipt] = []
        self.data_bytes = 0
        """Of the batch: frames of DATA."""
        self.owed_bytes = 0
        """What else the peer is owed, and which no window limits: answers, acknowledgements, resets."""
        self.opening_bytes = 0
        """Request headers: nothing that is owed. A peer that is asked much must be able to answer."""
        self.batch = 1
        """The number of the batch that is filled now."""
        self.taken = False
        """Whether the batch before it is taken, and not written."""
        # Of each of the two: what the connection's account has of it.
        self.counted_bytes = self.counted_taken_bytes = 0
        self.waits_since = 0
        """What `Buffered.passed` was when the socket has last not taken all."""
        # Streams that have closed, but their last frame is here; or taken, and not written; or written, and not told.
        self.leaving = 0
        """How many streams are over, but for what the peer has not taken."""
        self._leaving_now: list[int] = []
        self._leaving_taken: list[int] = []
        self.closed: list[int] = []
        """The last of these three: see `take_closed`."""

    def write(self, data: Data) -> None:
        """Put something in that the peer is owed."""
        self.chunks.append(data)
        self.owed_bytes += len(data)

    def owe(self, source: CreditSource, credit: int) -> None:
        """When what is in the batch by now is written, `source` gets `credit`."""
        receipts = self.receipts
        if receipts and receipts[-1][0] is source:
            receipts[-1][1] += credit
        else:
            receipts.append([source, credit])

    def close(self, stream_id: int, last_batch: int) -> None:
        """The stream is over; the last frame that we have sent on it is in this batch (0: there was none)."""
        if last_batch == self.batch:
            self.leaving += 1
            self._leaving_now.append(stream_id)
        elif self.taken and last_batch == self.batch - 1:
            self.leaving += 1
            self._leaving_taken.append(stream_id)
        else:
            self.closed.append(stream_id)

    @property
    def bytes(self) -> int:
        """What is in the batch."""
        return self.data_bytes + self.owed_bytes + self.opening_bytes

    def take(self) -> tuple[list[Data], list[Receipt]]:
        """The batch. What was taken before must be `written`."""
        chunks, receipts = self.chunks, self.receipts
        self.chunks, self.receipts = [], []
        self.data_bytes = self.owed_bytes = self.opening_bytes = 0
        self.batch += 1
        self.taken = True
        if self._leaving_now:
            self._leaving_taken, self._leaving_now = self._leaving_now, []
        return chunks, receipts

    def written(self) -> None:
        """What was taken is with the socket."""
        self.taken = False
        if self._leaving_taken:
            self.leaving -= len(self._leaving_taken)
            self.closed += self._leaving_taken
            self._leaving_taken = []

    def take_closed(self) -> list[int]:
        """Ids of the streams that are over since the last call, their last frame with the socket."""
        closed, self.closed = self.closed, []
        return closed
