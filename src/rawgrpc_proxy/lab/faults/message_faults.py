"""Messages of one direction of a call: where they begin and end, and what is done to one of them.

What it does not do: read or write frames. Owns "Length-Prefixed-Message" for faults. The invariant: what is held back
of messages is bounded (`MAX_MESSAGE_BYTES`, twice), and comes out again, changed or not.
"""

import random
import struct
from collections.abc import Callable

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.faults.actions import CutMessage, DoubleMessage, FlipBits, SwapMessages
from rawgrpc_proxy.lab.faults.fault import Blow

MessageAction = CutMessage | DoubleMessage | SwapMessages | FlipBits
Armed = tuple[Blow, MessageAction]

MAX_MESSAGE_BYTES = 4 << 20
"""A message that is longer is left alone."""
_PREFIX_BYTES = 5
_LENGTH = struct.Struct(">xL")


class Messages:
    """Counts messages."""

    __slots__ = ("_left", "_prefix", "ended")

    def __init__(self) -> None:
        self._prefix = b""
        self._left = 0
        self.ended = 0
        """So many messages have passed."""

    @property
    def between(self) -> bool:
        """Whether the last message has ended, and the next one has not begun."""
        return not self._left and not self._prefix

    def advance(self, data: Data, stop: Callable[[int], bool]) -> int:
        """How much of `data` passes up to the end of a message by whose number `stop` says so; else all of it."""
        position, size = 0, len(data)
        while position < size:
            if not self._left:
                taken = min(_PREFIX_BYTES - len(self._prefix), size - position)
                self._prefix += bytes(data[position : position + taken])
                position += taken
                if len(self._prefix) < _PREFIX_BYTES:
                    break
                (self._left,) = _LENGTH.unpack(self._prefix)
                self._prefix = b""
            taken = min(self._left, size - position)
            position += taken
            self._left -= taken
            if not self._left:
                self.ended += 1
                if stop(self.ended):
                    break
        return position


class MessageFaults:
    """What is done to messages of one direction: bytes in, bytes out.

    `held_bytes` is what has gone in and is still to come out. What comes out is otherwise as long as what has gone in,
    but for `removed_bytes`, less what was added; whoever takes note of those sets them back.
    """

    def __init__(self) -> None:
        self.messages = Messages()
        self.by_number: dict[int, list[Armed]] = {}
        self.for_next: list[Armed] = []
        """For the message that begins next."""
        self.drops = False
        """Whether nothing comes out any more."""
        self.removed_bytes = 0
        self._armed: list[Armed] = []
        """For the message that is held back; none: there is none."""
        self._held = bytearray()
        self._later: tuple[Blow, bytes] | None = None
        """A message that comes behind the next one."""

    @property
    def held_bytes(self) -> int:
        """So much is held back."""
        return len(self._held) + (0 if self._later is None else len(self._later[1]))

    def stops_behind(self, number: int) -> bool:
        """Whether something is to be done when this message has ended."""
        return bool(self.for_next or self._armed or self._later is not None or self.by_number.get(number + 1))

    def begin(self) -> None:
        """A message begins."""
        armed = self.by_number.pop(self.messages.ended + 1, [])
        self._armed = armed + self.for_next
        self.for_next = []

    def pass_on(self, data: Data) -> list[Data]:
        """Of one message at the most, behind what `begin` was called for. Answers what comes out."""
        if self.drops:
            self.removed_bytes += len(data)
            return []
        ended = self.messages.between
        if self._armed:
            self._held += data
            return self._held_more(ended=ended)
        if ended and self._later is not None:
            blow, later = self._later
            self._later = None
            blow.tell()
            return [data, later]
        return [data]

    def _held_more(self, *, ended: bool) -> list[Data]:
        held = self._held
        for blow, action in self._armed:
            if isinstance(action, CutMessage) and (ended or len(held) > action.keep):
                keep = min(action.keep, len(held) - 1)
                blow.tell()
                self.drops = True
                self.removed_bytes += len(held) - keep
                return self._release(bytes(held[:keep]))
        if ended:
            return self._changed(bytes(held))
        return self._release(bytes(held)) if len(held) > MAX_MESSAGE_BYTES else []

    def _release(self, *out: Data) -> list[Data]:
        self._armed = []
        self._held = bytearray()
        if self._later is not None and self.messages.between and not self.drops:
            blow, later = self._later
            self._later = None
            blow.tell()
            return [*out, later]
        return list(out)

    def _changed(self, message: bytes) -> list[Data]:
        copies, later = 1, None
        for blow, action in self._armed:
            if isinstance(action, FlipBits):
                if len(message) > _PREFIX_BYTES:
                    message = _flipped(message, action.bits, blow.rng)
                    blow.tell()
            elif isinstance(action, DoubleMessage):
                copies += 1
                blow.tell()
            elif self._later is None:
                later = blow
        self.removed_bytes -= (copies - 1) * len(message)
        if later is None:
            return self._release(*[message] * copies)
        self._armed = []
        self._held = bytearray()
        self._later = (later, message * copies)
        return []

    def end(self) -> list[Data]:
        """The direction ends: what is still held back comes out as it is."""
        out: list[Data] = [] if self._later is None else [self._later[1]]
        if self._held:
            out.insert(0, bytes(self._held))
        self._armed, self._held, self._later = [], bytearray(), None
        return out


def _flipped(message: bytes, bits: int, rng: random.Random) -> bytes:
    """The message with so many bits of its payload flipped, as far as it has any."""
    changed = bytearray(message)
    there = 8 * (len(message) - _PREFIX_BYTES)
    for bit in rng.sample(range(there), min(bits, there)):
        changed[_PREFIX_BYTES + bit // 8] ^= 1 << bit % 8
    return bytes(changed)
