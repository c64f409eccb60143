"""What the honest side of an attack reads of header blocks: the backend for paths, the victim for statuses."""

from __future__ import annotations

from dataclasses import dataclass

from hpack import Decoder

from interop.shared.frames import CONTINUATION, END_HEADERS, END_STREAM, HEADERS

PADDED, PRIORITY = 0x08, 0x20
#: The proxy has limits of its own, which are what is attacked.
NO_LIMIT = 2**31


@dataclass(frozen=True)
class Block:
    """A header block that is whole."""

    stream_id: int
    fields: dict[bytes, bytes]
    """Of a name that comes twice the last value."""
    ends: bool
    """Whether its HEADERS frame has END_STREAM."""


class HeaderReader:
    """Decodes the header blocks that come on one connection, all of them and in order: they share a table."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=NO_LIMIT)
        self._block = bytearray()
        self._ends = False

    def take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Block | None:
        """The block that this frame completes, if it does. Raises `hpack.HPACKError` for one that is malformed."""
        if kind not in (HEADERS, CONTINUATION):
            return None
        if kind == HEADERS:
            start = (1 if flags & PADDED else 0) + (5 if flags & PRIORITY else 0)
            end = len(payload) - (payload[0] if flags & PADDED else 0)
            self._block[:] = payload[start:end]
            self._ends = bool(flags & END_STREAM)
        else:
            self._block += payload
        if not flags & END_HEADERS:
            return None
        fields = self._decoder.decode(bytes(self._block), raw=True)
        return Block(stream_id, {bytes(name): bytes(value) for name, value in fields}, self._ends)
