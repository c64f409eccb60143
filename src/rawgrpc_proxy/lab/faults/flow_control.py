"""Flow control of one direction between two ends, where something is added or taken away between them (RFC 9113 §5.2).

What it does not do: see frames. All numbers count from the beginning, so nothing is lost where credit and data cross.
The invariant: nothing is delivered that the receiver has not allowed, if `room` is kept to; and what the sender is
granted is what the receiver allows, but for what was removed, added or is held back.
"""

_MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535


class Account:
    """Of a connection, or of a stream."""

    __slots__ = ("allowed", "cap", "delivered", "extra", "granted", "received", "removed", "stalled")

    def __init__(self, allowed: int, granted: int, cap: int | None = None) -> None:
        self.allowed = allowed
        """By the receiver."""
        self.granted = granted
        """To the sender."""
        self.cap = cap
        """The sender never has more than this, if it is smaller than what the receiver allows."""
        self.received = 0
        self.delivered = 0
        self.removed = 0
        """Of what was received: never to be delivered. Less what is delivered and was never received."""
        self.extra = 0
        """Held back for something that is to come from the sender: not to count against it meanwhile."""
        self.stalled = False
        """The sender is granted nothing more."""

    @property
    def room(self) -> int:
        """So much may be delivered now."""
        return self.allowed - self.delivered

    def due(self) -> int:
        """How much more the sender is to be granted, which is noted; 0: nothing."""
        if self.stalled:
            return 0
        granted = self.allowed + self.removed + self.extra
        if self.cap is not None:
            granted = min(granted, self.received + self.cap)
        due = min(granted, self.received + _MAX_WINDOW) - self.granted
        if due <= 0:
            return 0
        self.granted += due
        return due
