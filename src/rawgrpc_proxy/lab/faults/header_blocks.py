"""Header blocks that nobody's table depends on (RFC 7541): decoded with the sender's, written for the receiver without.

So a header list can be dropped, changed or made up, and all others are read as before. The invariant: where the sender
has said a new size of its table, as an encoder has to, the next block says one: none, for nothing here is in a table.
"""

import hpack

from rawgrpc_proxy.errors import ProtocolViolation
from rawgrpc_proxy.http2.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADER_BYTES,
    HEADERS,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    Data,
    frame_header,
    without_padding,
)
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.hpack import HeaderDecoder

MAX_BLOCK_BYTES = 1 << 20
_MAX_FIELDS = 10_000
_PRIORITY_BYTES, _STREAM_ID_BYTES = 5, 4
_MAX_7 = 0x7F
_SIZE_UPDATE, _SIZE_UPDATE_MASK = 0x20, 0xE0
_NEVER_INDEXED = 0x10
_MORE = 0x80


class UnreadableBlockError(Exception):
    """A block cannot be decoded: whoever gets it may say so."""


class Block:
    """A header block, whole or not yet."""

    __slots__ = ("flags", "frame_type", "frames", "headers", "payload", "promised", "stream_id", "untouched")

    def __init__(self, frame_type: int, flags: int, stream_id: int, *, untouched: bool) -> None:
        self.frame_type, self.flags, self.stream_id = frame_type, flags, stream_id
        self.untouched = untouched
        """Its frames are passed on as they are."""
        self.frames: list[bytes] = []
        """If they are not: those that have come."""
        self.payload = bytearray()
        self.promised: Data = b""
        self.headers: Headers = []


class BlockReader:
    """Reads the blocks of one direction, all of them."""

    def __init__(self, *, of_requests: bool) -> None:
        self._decoder = HeaderDecoder(MAX_BLOCK_BYTES, _MAX_FIELDS, of_requests=of_requests)
        self.block: Block | None = None
        """What is under way."""
        self.size_update = b""
        """For the next block that goes out."""

    def add(
        self, frame: bytes, frame_type: int, flags: int, stream_id: int, *, untouched: bool
    ) -> Block | None:
        """Answer the block that this frame completes. Raises `UnreadableBlockError`.

        `untouched` is for the first frame of a block.
        """
        block = self.block
        payload: Data = memoryview(frame)[HEADER_BYTES:]
        if (frame_type == CONTINUATION) is (block is None) or (block and stream_id != block.stream_id):
            raise UnreadableBlockError
        if block is None:
            block = self.block = Block(frame_type, flags, stream_id, untouched=untouched)
        if not block.untouched:
            block.frames.append(frame)
        if frame_type != CONTINUATION:
            try:
                payload = without_padding(flags, payload)
            except ProtocolViolation as error:
                raise UnreadableBlockError from error
            if frame_type == HEADERS and flags & PRIORITY_FLAG:
                payload = payload[_PRIORITY_BYTES:]
            elif frame_type == PUSH_PROMISE:
                block.promised, payload = payload[:_STREAM_ID_BYTES], payload[_STREAM_ID_BYTES:]
        block.payload += payload
        if not flags & END_HEADERS:
            if len(block.payload) > MAX_BLOCK_BYTES:
                raise UnreadableBlockError
            return None
        block.headers = self._read(bytes(block.payload), untouched=block.untouched)
        self.block = None
        return block

    def unread(self, frame: bytes) -> list[bytes]:
        """The frames that are not passed on, if this is the last of them."""
        frames = [] if self.block is None else self.block.frames
        return frames if frames and frames[-1] is frame else [*frames, frame]

    def _read(self, block: bytes, *, untouched: bool) -> Headers:
        if not untouched and block and block[0] & _SIZE_UPDATE_MASK == _SIZE_UPDATE:
            # Not those that have come: of blocks that go nowhere there would be more and more.
            self.size_update = bytes((_SIZE_UPDATE,))
        try:
            return self._decoder.decode(block)
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise UnreadableBlockError from error


def write_block(headers: Headers) -> bytes:
    """The block for this list: literals, without indexing, without Huffman's code."""
    block = bytearray()
    for field in headers:
        block.append(_NEVER_INDEXED if isinstance(field, hpack.NeverIndexedHeaderTuple) else 0)
        for text in field:
            block += _length(len(text))
            block += text
    return bytes(block)


def header_frames(
    stream_id: int, block: bytes, *, end_stream: bool, max_frame: int, first_bytes: int | None = None
) -> bytes:
    """HEADERS and, as it takes, CONTINUATION. The first frame has `first_bytes` at the most, if that is said."""
    first_bytes = max_frame if first_bytes is None else min(first_bytes, max_frame)
    return _frames(HEADERS, END_STREAM if end_stream else 0, stream_id, block, first_bytes, max_frame)


def push_promise_frames(stream_id: int, promised: Data, block: bytes, max_frame: int) -> bytes:
    """The same for PUSH_PROMISE; `promised` is its first four bytes."""
    return _frames(PUSH_PROMISE, 0, stream_id, bytes(promised) + block, max_frame, max_frame)


def _frames(frame_type: int, flags: int, stream_id: int, payload: bytes, first: int, max_frame: int) -> bytes:
    if len(payload) <= first:
        return frame_header(frame_type, flags | END_HEADERS, stream_id, len(payload)) + payload
    frames = [frame_header(frame_type, flags, stream_id, first), payload[:first]]
    for start in range(first, len(payload), max_frame):
        piece = payload[start : start + max_frame]
        last = END_HEADERS if start + max_frame >= len(payload) else 0
        frames += [frame_header(CONTINUATION, last, stream_id, len(piece)), piece]
    return b"".join(frames)


def _length(length: int) -> bytes:
    if length < _MAX_7:
        return bytes((length,))
    octets = bytearray((_MAX_7,))
    length -= _MAX_7
    while length >= _MORE:
        octets.append(length & _MAX_7 | _MORE)
        length >>= 7
    octets.append(length)
    return bytes(octets)
