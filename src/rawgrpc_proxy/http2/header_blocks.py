"""Header blocks to header lists and back (RFC 7541), cheap when they repeat, and cheap for what of them repeats.

The calls of a client to a method have nearly the same headers each time: often all of them, and otherwise all but a
deadline, a request id, a trace. Representations are read and written here, since hpack's own way takes longer than all
else a call needs. hpack has the static table, the decoder's dynamic one, and the decoder of Huffman strings.

Answers are kept as well, as long as they cannot have changed: an answer holds for one state of the dynamic table, and
the first block that changes the table throws all answers away.

What it does not do: Huffman-code what is sent; hpack's coder takes time quadratic in the length of a value.
"""

from collections import deque
from collections.abc import Iterable
from functools import cache
from typing import Any

import hpack
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from rawgrpc_proxy.grpc.metadata import FixedHeaders, Headers, RawHeader
from rawgrpc_proxy.http2.fields import CheckedFields, list_size

_MAX_ANSWERS = 64
_MAX_SHARED = 512
_MAX_ANSWER_BYTES = 2048
_MAX_ANSWER_FIELDS = 64
"""One byte of a block can be a field, which takes a hundred bytes here."""
_MAX_SEEN = 128
_MAX_SEEN_BYTES = 1024
_INDEXED = 0x80  # RFC 7541 §6.1
_WITH_INDEXING = 0x40  # §6.2.1
_SIZE_UPDATE = 0x20  # §6.3
_NOT_INDEXED = 0x00  # §6.2.2
_NEVER_INDEXED = 0x10  # §6.2.3
_ENTRY_OVERHEAD = 32  # RFC 7541 §4.1
_INTEGER_BYTES = 5  # behind the prefix: enough for 32 bits
_STATIC = HeaderTable.STATIC_TABLE


class HeaderList(FixedHeaders):
    """A decoded list. Nobody may change it.

    The same object is answered each time an equal list comes, on whichever connection, so those who work something out
    from it leave the result here: `checked` is the session's, `passed_on` a splice's, `asked` the server's, `told` a
    forwarding's. What peers repeat for every call is looked at once.
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

    __slots__ = ("_answers", "_max_list_bytes", "_max_table_bytes", "_table")

    def __init__(self, max_list_bytes: int) -> None:
        self._table = HeaderTable()
        self._max_table_bytes = self._table.maxsize
        self._max_list_bytes = max_list_bytes
        self._answers: dict[bytes, HeaderList] = {}

    def decode(self, block: bytes) -> HeaderList:
        """The list in `block`. Raises `hpack.HPACKError`; the connection is lost then."""
        answer = self._answers.get(block)
        if answer is not None:
            return answer
        try:
            fields, changed, marked = self._read(block)
        except IndexError:
            raise hpack.HPACKDecodingError("the header block is cut short") from None
        headers = _shared(fields, marked=marked)
        if changed:
            self._answers.clear()
        elif len(block) <= _MAX_ANSWER_BYTES and len(headers) <= _MAX_ANSWER_FIELDS:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            self._answers[block] = headers
        return headers

    def _read(self, block: bytes) -> tuple[Headers, bool, bool]:
        """The fields (RFC 7541 §6); whether the table has changed, or what fits into it; whether fields are marked."""
        table, entry = self._table, self._entry
        headers: Headers = []
        changed = marked = False
        room = self._max_list_bytes
        position, end = 0, len(block)
        while position < end:
            first = block[position]
            position += 1
            if first >= 0x80:  # §6.1: a field of the table
                index = first & 0x7F
                if index == 0x7F:
                    index, position = _integer(block, position, index)
                field = entry(index)
            elif first & 0xE0 == 0x20:  # §6.3: a new size of the table
                if headers:
                    raise hpack.HPACKDecodingError("a new table size is not at the start of a block")
                size = first & 0x1F
                if size == 0x1F:
                    size, position = _integer(block, position, size)
                if size > self._max_table_bytes:
                    raise hpack.InvalidTableSizeError(f"a table of {size} bytes is larger than we allow")
                table.maxsize = size
                # By itself it changes what a block does: a field that did not fit into the table may fit now.
                changed = True
                continue
            else:  # §6.2: a literal, to be put into the table if 0x40 is set
                prefix = 0x3F if first & 0x40 else 0x0F
                index = first & prefix
                if index == prefix:
                    index, position = _integer(block, position, index)
                if index:
                    name = entry(index)[0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = name, value
                if first & 0x40:
                    table.add(name, value)
                    changed = True
                elif first & 0x10:
                    # Marked by its type, for the encoder of the next hop (§6.2.3).
                    field = hpack.NeverIndexedHeaderTuple(name, value)
                    marked = True
            headers.append(field)
            room -= len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if room < 0:
                raise hpack.OversizedHeaderListError(f"more than {self._max_list_bytes} bytes")
        return headers, changed, marked

    def _entry(self, index: int) -> RawHeader:
        """RFC 7541 §2.3.3: the static table, then the dynamic one, newest first."""
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        dynamic = self._table.dynamic_entries
        if not len(_STATIC) < index <= len(_STATIC) + len(dynamic):
            raise hpack.InvalidTableIndexError(f"the table has no field {index}")
        return dynamic[index - len(_STATIC) - 1]


_lists: dict[tuple[object, ...], HeaderList] = {}
"""Of all connections, by their fields."""


def _shared(fields: Headers, *, marked: bool) -> HeaderList:
    """The list of these fields that there is already, else a new one."""
    # Two fields are equal even if only one of them is marked.
    key = tuple((type(field), field) for field in fields) if marked else tuple(fields)
    answer = _lists.get(key)
    if answer is None:
        answer = HeaderList(fields)
        if len(_lists) >= _MAX_SHARED:
            _lists.clear()
        if len(fields) <= _MAX_ANSWER_FIELDS and list_size(fields) <= _MAX_ANSWER_BYTES:
            _lists[key] = answer
    return answer


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """An integer whose first byte was full, and where it ends (RFC 7541 §5.1)."""
    value = prefix
    for shift in range(0, 7 * _INTEGER_BYTES, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise hpack.HPACKDecodingError("an integer in a header block is too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """A string literal, and where it ends (RFC 7541 §5.2)."""
    first = block[position]
    position += 1
    length = first & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, length)
    end = position + length
    if end > len(block):
        raise IndexError
    text = block[position:end]
    return (decode_huffman(text) if first & 0x80 else text), end


class HeaderEncoder:
    """Encodes the lists of one connection.

    A field enters the dynamic table when it comes for the second time. What differs with every call, like a deadline or
    a trace, so never pushes out what repeats, and leaves the answers that are kept in force.
    """

    __slots__ = (
        "_answers",
        "_inserted",
        "_max_size",
        "_numbers",
        "_seen",
        "_size",
        "_smallest",
        "_table",
    )

    def __init__(self) -> None:
        self._answers: dict[int, tuple[FixedHeaders, bytes]] = {}
        """By the identity of lists that nobody changes: to hash a list takes longer than all else here."""
        self._table: deque[RawHeader] = deque()
        """The dynamic table, oldest first; no field is in it twice."""
        self._numbers: dict[RawHeader, int] = {}
        """What is in the table → how many were inserted before it."""
        self._inserted = 0
        self._size = 0
        self._max_size = HeaderTable.DEFAULT_SIZE
        self._smallest: int | None = None
        """The smallest size since the last block, if it was changed."""
        self._seen: set[RawHeader] = set()
        """Fields that have come once."""

    def set_table_size(self, size: int) -> None:
        """The peer allows a dynamic table of so many bytes."""
        self._answers.clear()
        self._max_size = size
        self._smallest = size if self._smallest is None else min(size, self._smallest)
        self._evict(0)

    def encode(self, headers: Headers) -> bytes:
        """The block for this list."""
        answer = self._answers.get(id(headers))
        if answer is not None and answer[0] is headers:
            return answer[1]
        static, numbers = _STATIC_FIELDS.get, self._numbers.get
        parts = [] if self._smallest is None else self._size_updates()
        repeats = not parts and isinstance(headers, FixedHeaders)
        for field in headers:
            # The type tells whether a field may ever be indexed, and two that differ in it are equal.
            if type(field) is not tuple and not getattr(field, "indexable", True):
                parts.append(_literal(_NEVER_INDEXED, 0x0F, field))
                repeats = False
            elif (part := static(field)) is not None:
                parts.append(part)
            elif (number := numbers(field)) is not None:
                # RFC 7541 §2.3.3: the newest comes right behind the static table.
                parts.append(_indexed(len(_STATIC) + self._inserted - number))
            else:
                parts.append(self._literal(field))
                repeats = False
        block = b"".join(parts)
        if repeats and len(block) <= _MAX_ANSWER_BYTES:
            assert isinstance(headers, FixedHeaders)
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            self._answers[id(headers)] = headers, block
        return block

    def _size_updates(self) -> list[bytes]:
        """What the first block after changes begins with: the smallest size, and the last (RFC 7541 §4.2)."""
        last, smallest = self._max_size, self._smallest
        assert smallest is not None
        self._smallest = None
        sizes = (last,) if smallest == last else (smallest, last)
        return [_integer_from(_SIZE_UPDATE, 0x1F, size) for size in sizes]

    def _literal(self, field: RawHeader) -> bytes:
        """A field that is in no table: one that comes for the second time is from now on."""
        name, value = field
        size = len(name) + len(value) + _ENTRY_OVERHEAD
        if size > _MAX_SEEN_BYTES or size > self._max_size:
            return _literal(_NOT_INDEXED, 0x0F, field)
        if field not in self._seen:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add(field)
            return _literal(_NOT_INDEXED, 0x0F, field)
        self._seen.remove(field)
        self._answers.clear()  # it moves all others
        self._evict(size)
        self._table.append(field)
        self._numbers[field] = self._inserted
        self._inserted += 1
        self._size += size
        return _literal(_WITH_INDEXING, 0x3F, field)

    def _evict(self, room: int) -> None:
        """RFC 7541 §4.3, §4.4: the oldest go until there is so much room."""
        while self._table and self._size + room > self._max_size:
            name, value = oldest = self._table.popleft()
            del self._numbers[oldest]
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD


def _literal(kind: int, prefix: int, field: RawHeader) -> bytes:
    """A literal, its name from the static table where that has it (RFC 7541 §6.2)."""
    name, value = field
    index = _STATIC_NAMES.get(name)
    if index is not None:
        return b"".join((_integer_from(kind, prefix, index), _integer_from(0, 0x7F, len(value)), value))
    return b"".join(
        (bytes((kind,)), _integer_from(0, 0x7F, len(name)), name, _integer_from(0, 0x7F, len(value)), value)
    )


def _integer_from(kind: int, prefix: int, value: int) -> bytes:
    """An integer behind the bits that say what it is (RFC 7541 §5.1)."""
    if value < prefix:
        return bytes((kind | value,))
    octets = bytearray((kind | prefix,))
    value -= prefix
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


@cache
def _indexed(index: int) -> bytes:
    """A field of one of the tables (RFC 7541 §6.1)."""
    return _integer_from(_INDEXED, 0x7F, index)


_STATIC_FIELDS = {field: _indexed(index) for index, field in reversed([*enumerate(_STATIC, 1)])}
_STATIC_NAMES = {name: index for index, (name, _) in reversed([*enumerate(_STATIC, 1)])}
"""The first index of each."""
