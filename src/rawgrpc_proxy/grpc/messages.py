"""Length-prefixed gRPC messages: one byte that says compressed or not, four bytes of length, the payload.

This module neither compresses nor decodes a payload. `MessageReader` hands out messages and is for calls
the proxy serves itself; `MessageCounter` looks on while a proxied call's frames pass and keeps none of
them. The invariant: how the bytes were cut into DATA frames never changes the outcome, and the work is
linear in the bytes fed. Memory follows the bytes that arrived, never the length a prefix promises.

Owns: "Length-Prefixed-Message" of the gRPC over HTTP/2 specification.
"""

import struct
from collections.abc import Iterator

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError

_PREFIX = struct.Struct(">BI")
PREFIX_BYTES = 5
length_of = struct.Struct(">xI").unpack_from
"""The length that a prefix tells, in a tuple of its own."""

_ALIKE = 8
"""So many messages of one length in a row, and more of them are looked for."""
_STEPS_AT_FIRST, _BYTES_A_STEP = 4096, 64
_FOR_EVER = 1 << 62
_ZEROS = bytes(2**18)

# What gRPC's own libraries accept unless told otherwise.
DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024


def encode_message(payload: bytes, *, compressed: bool = False) -> bytes:
    """Put the prefix in front of one message; `compressed` says that the payload already is."""
    return _PREFIX.pack(compressed, len(payload)) + payload


class MessageReader:
    """Cuts a stream of bytes into messages. Of no more use once `take` or `feed` has raised.

    `add` what has arrived, and `take` messages until there is none: however many there are, each costs the same, and
    whoever takes them can let others run in between. `feed` does both at once.
    """

    def __init__(self, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._held: bytes | bytearray = b""
        self._start = 0  # of the first prefix in what is held

    @property
    def at_boundary(self) -> bool:
        """False in mid-message: a stream that ends now is truncated."""
        return self._start == len(self._held)

    def add(self, data: bytes | memoryview) -> None:
        """Take the bytes of one frame."""
        if self.at_boundary:
            self._held = bytes(data)
        else:
            if not isinstance(self._held, bytearray):
                self._held = bytearray(self._held)
            # All messages have been taken, or nearly: what is left and moved here is mostly less than the last frame
            # brought, so the work is linear.
            del self._held[: self._start]
            self._held += data
        self._start = 0

    def take(self) -> tuple[bool, bytes] | None:
        """The next message, as (compressed, payload); None until more bytes have come.

        Raises `RpcError`, as soon as the prefix is there: RESOURCE_EXHAUSTED if the message is longer than
        `max_message_bytes`, INTERNAL if the flag is neither 0 nor 1.
        """
        held = self._held
        payload = self._start + PREFIX_BYTES
        if payload > len(held):
            return None
        flag, length = _PREFIX.unpack_from(held, self._start)
        self._check(flag, length)
        end = payload + length
        if end > len(held):
            return None
        self._start = end
        return flag == 1, bytes(memoryview(held)[payload:end])

    def feed(self, data: bytes | memoryview) -> list[tuple[bool, bytes]]:
        """Take the bytes of one frame and answer the messages they complete, in order. Raises as `take`."""
        self.add(data)
        return list(iter(self.take, None))

    def _check(self, flag: int, length: int) -> None:
        if flag > 1:
            raise RpcError(
                Status.INTERNAL,
                f"a message begins with flag {flag}, which is neither 0 nor 1",
                origin="proxy",
                cause="message_flag",
            )
        if length > self._max_message_bytes:
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"a message of {length} bytes is longer than the {self._max_message_bytes} bytes allowed",
                origin="proxy",
                cause="max_message_bytes",
            )


class MessageCounter:
    """Counts the messages that pass by. `count` is the number whose last byte has been fed.

    It judges nothing: flags and lengths are taken as they come. `feed` runs once for every DATA frame of every proxied
    call, so a frame that holds one whole message, and a frame within one message, cost a few additions. Many messages
    of one length, empty ones for instance, are counted together. Of small messages of all lengths mixed it counts a few
    thousand, and from then on one for each 64 bytes: a peer that sends more of them has us count no longer. `count` is
    the least that there were then, and `exact` is False.
    """

    __slots__ = ("_length", "_payload_left", "_prefix_seen", "_steps", "count", "exact")

    def __init__(self) -> None:
        self.count = 0
        self.exact = True
        self._payload_left = 0  # of the message in passing
        self._prefix_seen = 0  # bytes of an unfinished prefix, 0 to 4; above 0 only while _payload_left is 0
        self._length = 0  # what those bytes say so far
        self._steps = _STEPS_AT_FIRST  # that are left

    @property
    def boundary(self) -> tuple[int, int, bytes] | None:
        """How many messages have begun, how many bytes are left of the last, and what there is of its prefix.

        One of the two is nothing. In the place of the prefix's flag is 0. None if it is not `exact`.
        """
        if not self.exact:
            return None
        seen = self._prefix_seen
        prefix = bytes(1) + self._length.to_bytes(4)[5 - seen :] if seen else b""
        return self.count + (self._payload_left > 0 or seen > 0), self._payload_left, prefix

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the bytes of one frame."""
        size = len(data)
        left = self._payload_left
        if left > size:
            self._payload_left = left - size
        elif (
            not left
            and not self._prefix_seen
            and size >= PREFIX_BYTES
            and length_of(data)[0] + PREFIX_BYTES == size
        ):
            self.count += 1
        else:
            self._walk(data, size)

    def _walk(self, data: bytes | bytearray | memoryview, size: int) -> None:
        """Go from prefix to prefix; entered with no more payload outstanding than `data` holds."""
        position = self._payload_left
        count = self.count + (position > 0)
        seen, length = self._prefix_seen, self._length
        last_whole_prefix = size - PREFIX_BYTES
        steps = self._steps + size // _BYTES_A_STEP
        last = alike = 0
        while position < size:
            if not seen and position <= last_whole_prefix:
                step = PREFIX_BYTES + length_of(data, position)[0]
                position += step
                count += position <= size
                steps -= 1
                alike = alike + 1 if step == last else 0
                last = step
                if alike >= _ALIKE and position <= last_whole_prefix:
                    more = _run_of(data, position, size, step)
                    position += more * step
                    count += more
                    alike = 0
                    if more < _ALIKE:
                        steps -= _ALIKE  # looked for in vain
                elif steps < 0:
                    self.count, self.exact, self._payload_left = count, False, _FOR_EVER
                    return
                continue
            if seen:  # the flag came first and is of no interest here
                length = length << 8 | data[position]
            seen += 1
            position += 1
            if seen == PREFIX_BYTES:
                position += length
                count += position <= size
                seen = length = 0
        self.count = count
        self._steps = min(steps, _STEPS_AT_FIRST)
        self._payload_left = position - size
        self._prefix_seen, self._length = seen, length


def _run_of(data: bytes | bytearray | memoryview, start: int, size: int, step: int) -> int:
    """How many messages of `step` bytes each there are from `start` on, one behind the other, at the most.

    Whole stretches are compared at once, each four times as long as the one before until one differs: so the time is
    proportional to the bytes, a fraction of a nanosecond for each.
    """
    view = memoryview(data)
    length = (step - PREFIX_BYTES).to_bytes(4)
    found, stretch = 0, _ALIKE
    while stretch and start + step <= size:
        stretch = min(stretch, (size - start) // step)
        end = start + stretch * step
        zeros = step == PREFIX_BYTES and bytes(view[start:end]) == _ZEROS[: end - start]
        if zeros or not any(_columns(view, start, end, step, length)):
            found += stretch
            start = end
            stretch *= 4
        else:
            stretch //= 8
    return found


def _columns(view: memoryview, start: int, end: int, step: int, length: bytes) -> Iterator[bool]:
    """Of each byte of the length in turn: whether one of the messages has another one there."""
    for at, expected in enumerate(length, 1):
        column = bytes(view[start + at : end : step])
        yield column.count(expected) != len(column)


Messages = int | MessageCounter
"""How many messages have passed: a number while each frame was one message, and from then on a counter."""


def is_one_message(data: bytes | bytearray | memoryview) -> bool:
    """Whether a frame is just one message, if it begins with one. Most are."""
    return len(data) >= PREFIX_BYTES and length_of(data)[0] + PREFIX_BYTES == len(data)


def counted(messages: Messages, data: bytes | bytearray | memoryview) -> Messages:
    """What it comes to with this frame."""
    if isinstance(messages, int):
        if not data:
            return messages
        counter = MessageCounter()
        counter.count = messages
        messages = counter
    messages.feed(data)
    return messages


def count_of(messages: Messages) -> int:
    """The number."""
    return messages if isinstance(messages, int) else messages.count


def is_exact(messages: Messages) -> bool:
    """Whether it is the number, and not just the least that there were."""
    return isinstance(messages, int) or messages.exact


def boundary_of(messages: Messages) -> tuple[int, int, bytes] | None:
    """As `MessageCounter.boundary`."""
    if isinstance(messages, int):
        return messages, 0, b""
    return messages.boundary
