"""Header blocks to header lists and back (RFC 7541), cheap when they repeat.

The calls of a client to a method have nearly the same headers each time, and HPACK makes nearly the same bytes of
them. hpack does the work; what is kept here is its answers, and only as long as they cannot have changed: an answer
holds for one state of the dynamic table, and the first block that changes the table throws all answers away.
"""

from collections.abc import Iterable
from typing import Any

import hpack

from rawgrpc_proxy.grpc.metadata import Headers, RawHeader
from rawgrpc_proxy.http2.fields import CheckedFields

_MAX_ANSWERS = 256
_MAX_ANSWER_BYTES = 2048
_MAX_ANSWER_FIELDS = 64
"""One byte of a block can be a field, which takes a hundred bytes here."""
_TABLE_SIZE_UPDATES = frozenset(bytes([first]) for first in range(0x20, 0x40))  # RFC 7541 §6.3


class HeaderList(list[RawHeader]):
    """A decoded list. Nobody may change it.

    The same object is answered each time its block comes again, so those who work something out from it leave the
    result here: `checked` is the session's, `passed_on` a splice's, `asked` the server's, `told` a forwarding's. What a
    peer repeats for every call is looked at once.
    """

    __slots__ = ("asked", "checked", "passed_on", "told")

    def __init__(self, fields: Iterable[RawHeader] = ()) -> None:
        super().__init__(fields)
        self.checked: CheckedFields | None = None
        self.passed_on: Headers | None = None
        self.asked: Any = None
        self.told: Any = None


class HeaderDecoder:
    """Decodes the blocks of one connection. `max_list_bytes` is RFC 9113 §6.5.2's measure."""

    __slots__ = ("_answers", "_hpack")

    def __init__(self, max_list_bytes: int) -> None:
        self._hpack = hpack.Decoder(max_header_list_size=max_list_bytes)
        self._answers: dict[bytes, HeaderList] = {}

    def decode(self, block: bytes) -> HeaderList:
        """The list in `block`. Raises `hpack.HPACKError`; the connection is lost then."""
        answer = self._answers.get(block)
        if answer is not None:
            return answer
        entries = self._hpack.header_table.dynamic_entries
        before = len(entries), entries[0] if entries else None
        headers = HeaderList(self._hpack.decode(block, raw=True))
        # An insertion puts a new entry in front, and a smaller table drops some at the end: nothing else can happen.
        changed = before[0] != len(entries) or (entries and before[1] is not entries[0])
        if changed or block[:1] in _TABLE_SIZE_UPDATES:
            # A new size alone changes what a block does: a field that did not fit into the table may fit now.
            self._answers.clear()
        elif len(block) <= _MAX_ANSWER_BYTES and len(headers) <= _MAX_ANSWER_FIELDS:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            self._answers[block] = headers
        return headers


class HeaderEncoder:
    """Encodes the lists of one connection, never with Huffman: hpack's coder is quadratic in the length of a value."""

    __slots__ = ("_answers", "_hpack")

    def __init__(self) -> None:
        self._hpack = hpack.Encoder()
        self._answers: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}

    def set_table_size(self, size: int) -> None:
        """The peer allows a dynamic table of so many bytes."""
        self._answers.clear()
        self._hpack.header_table_size = size

    def encode(self, headers: Headers) -> bytes:
        """The block for this list."""
        key = tuple(headers)
        answer = self._answers.get(key)
        if answer is not None:
            return answer
        entries = self._hpack.header_table.dynamic_entries
        before = len(entries), entries[0] if entries else None
        block = self._hpack.encode(headers, huffman=False)
        if before[0] != len(entries) or (entries and before[1] is not entries[0]):
            self._answers.clear()
        elif len(block) <= _MAX_ANSWER_BYTES and block[:1] not in _TABLE_SIZE_UPDATES:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            self._answers[key] = block
        return block
