"""Header blocks to header lists and back (RFC 7541), cheap when they repeat, and cheap for what of them repeats.

The calls of a client to a method have nearly the same headers each time: often all of them, and otherwise all but a
deadline, a request id, a trace. Representations are read and written here, since hpack's own way takes longer than all
else a call needs. hpack has the static table, and the decoder's dynamic one.

Answers are kept as well, as long as they cannot have changed: an answer holds for one state of the dynamic table, and
the first block that changes the table throws all answers away.

What is kept is bounded in bytes, as Python takes them, and by whose it is. A decoder and an encoder together keep up to
64 KiB, their dynamic tables included, which go with the connection; all of them together keep 12 MiB. Lists that all
connections share (4 MiB) have fields of the protocol only: whatever else a field holds may be a credential, under
whichever name, and lives no longer than the connection it came on. An encoder knows such a list only as long as
somebody else does.

Credentials (RFC 7541 §7.1.3) never enter an encoder's table. Many callers share a connection to an upstream, and one
who can watch the size of its blocks could try out another's; nghttp2 and hyper leave them out as well. A list with
credentials that repeats is answered like any other.

Decoder and encoder stand together: they share the static table, the measures, and the bound on what is kept.

What it does not do: Huffman-code what is sent; hpack's coder takes time quadratic in the length of a value.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from functools import cache
from typing import Any
from weakref import ref

import hpack
from hpack.table import HeaderTable

from rawgrpc_proxy.http2.headers import FixedHeaders, HeaderList, Headers, RawHeader, check_fields
from rawgrpc_proxy.http2.huffman import decode_huffman
from rawgrpc_proxy.http2.position import Table

_OF_REQUESTS, _OF_RESPONSES = 42 * 1024, 22 * 1024
"""What a decoder or an encoder may keep, by what passes through it: requests differ more. A client's with a token are
kept for fifteen methods, or for thirty if the client has its token indexed."""
_MAX_SHARED_BYTES = 4 * 1024 * 1024
_MAX_KEPT_BYTES = 12 * 1024 * 1024
"""What all decoders and encoders of the process keep: with the shared lists 16 MiB. Beyond it nothing more is kept
until connections end or drop theirs, and a list that would have been found is decoded once more."""
_MAX_LIST_BYTES = 8 * 1024
"""Of one list: another one has to find room beside it."""
_MAX_INDEXED_BYTES = 1024
"""Of a field, in RFC 7541's measure: a quarter of the table."""
_MAX_ENTRIES = 64
_TABLE_OF_TINY_FIELDS = 2048
_SEEN = 128

# What things take in CPython, measured, beyond the bytes of their names and values.
_FIXED_BYTES = 1536  # an empty decoder, or encoder, and the first size of its dicts
_DECODED_ENTRY_BYTES = 152  # an entry of the table: a tuple and two bytes objects, less RFC 7541's 32
_ENCODED_ENTRY_BYTES = 234  # and its place in a dict
_LIST_BYTES = 1100  # a list with its block, and what the floors above leave on it
_FIELD_BYTES = 32  # its place in four lists: decoded, in metadata, for the next hop
_LITERAL_BYTES = 176  # a field that is in no table
_TRIMMED_BYTES = 128  # a field that is copied, to leave without its edge blanks
_KEPT_BLOCK_BYTES = 320  # a weak reference and a block, in a dict

_CREDENTIALS = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"})
_SHAREABLE = frozenset(
    {
        b":authority", b":method", b":path", b":scheme", b":status", b"te", b"content-type", b"user-agent", b"server",
        b"grpc-encoding", b"grpc-accept-encoding", b"accept-encoding", b"grpc-status",
    }
)  # fmt: skip
"""Fields of the protocol that tell nothing of a caller. grpc-timeout is not among them: lists with it rarely repeat."""
_INDEXED = 0x80  # RFC 7541 §6.1
_WITH_INDEXING = 0x40  # §6.2.1
_SIZE_UPDATE = 0x20  # §6.3
_NOT_INDEXED = 0x00  # §6.2.2
_NEVER_INDEXED = 0x10  # §6.2.3
_ENTRY_OVERHEAD = 32  # RFC 7541 §4.1
_SIZE_UPDATES = 2  # §4.2: the smallest size between two blocks, and the last
_NEVER_CUT = frozenset({b"grpc-status", b"grpc-message"})
_NEVER_CUT_FIELDS = 2
_FREE_FIELDS, _FREE_CODED_BYTES = 100, 16 * 1024
"""What of a block is not counted as work: more than the calls need that people make, with their tokens and their
traces, and the end of one with its message. It takes a millisecond at the most."""
_INTEGER_BYTES = 5  # behind the prefix: enough for 32 bits
_STATIC = HeaderTable.STATIC_TABLE


class _Kept:
    """What all decoders and encoders keep together."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


_kept = _Kept()


class _Keeper:
    """Half of a connection: the answers that it keeps, each under what it is asked by, and the count of them."""

    __slots__ = ("_answers", "_kept_bytes", "_max_kept_bytes")

    def __init__(self, *, of_requests: bool) -> None:
        self._max_kept_bytes = _OF_REQUESTS if of_requests else _OF_RESPONSES
        self._answers: dict[Any, Any] = {}
        self._kept_bytes = 0
        """What the answers take."""

    def _take(self, weight: int) -> bool:
        """Count so many bytes more; False, and nothing is counted, if all connections together keep too much then."""
        if _kept.bytes + weight > _MAX_KEPT_BYTES:
            return False
        _kept.bytes += weight
        self._kept_bytes += weight
        return True

    def _give_back(self, weight: int) -> None:
        _kept.bytes -= weight
        self._kept_bytes -= weight

    def _drop_answers(self) -> None:
        self._answers.clear()
        self._give_back(self._kept_bytes)

    def __del__(self) -> None:
        self._give_back(self._kept_bytes)


class HeaderDecoder(_Keeper):
    """Decodes the blocks of one connection: its requests, or its responses.

    `max_list_bytes` is RFC 9113 §6.5.2's measure. Of a list that is longer the rest is decoded, since it belongs to the
    table, but not kept, except for how a call went, told once. A list of more than `max_fields` fields ends the
    connection: those of one byte each take the most time.
    """

    __slots__ = (
        "_coded_bytes",
        "_has_blanks",
        "_inserted_bytes",
        "_max_fields",
        "_max_list_bytes",
        "_max_table_bytes",
        "_table",
        "free_work",
        "work",
    )

    def __init__(
        self,
        max_list_bytes: int,
        max_fields: int,
        *,
        of_requests: bool = True,
        max_table_bytes: int = HeaderTable.DEFAULT_SIZE,
    ) -> None:
        super().__init__(of_requests=of_requests)
        self._answers: dict[bytes, HeaderList]
        self._max_fields = max_fields
        self._table = HeaderTable()
        self._max_table_bytes = max_table_bytes
        self._max_list_bytes = max_list_bytes
        self._inserted_bytes = 0
        """What has ever been put into the table; most of the time it is less than the table may hold."""
        self._has_blanks = False
        """Has there been a value with blanks at its edges? Then any list may be copied, to leave without them."""
        self._coded_bytes = 0
        """Of the block that is read, the Huffman-coded ones."""
        self.work = 0
        """Fields, and eighths of the bytes that were Huffman-coded, of blocks whose answers were not kept: what goes
        beyond a hundred fields, and beyond 16 KiB."""
        self.free_work = 0
        """The rest of that, of the block that was read last; whoever takes note of it sets it back."""

    @property
    def table(self) -> Table:
        """A copy of the dynamic table."""
        return Table(tuple(reversed(self._table.dynamic_entries)), self._table.maxsize)

    def go_on(self, table: Table) -> None:
        """Read the next block with this table."""
        self._table = same = HeaderTable()
        same.maxsize = table.max_bytes
        for name, value in table.fields:
            same.add(name, value)

    def decode(self, block: bytes) -> HeaderList:
        """The list in `block`. Raises `hpack.HPACKError`; the connection is lost then.

        The time is bounded by the length of the block: some 60 ns for a byte.
        """
        answer = self._answers.get(block)
        if answer is not None:
            return answer
        try:
            fields, changed, marked, weight = self._read(block)
        except IndexError:
            raise hpack.HPACKDecodingError("the header block is cut short") from None
        if marked or not _SHAREABLE.issuperset([name for name, _ in fields]):
            headers = HeaderList(fields)
        else:
            headers = _lists.find(fields, weight)
        if changed:
            if self._kept_bytes:
                self._drop_answers()
        elif weight <= _MAX_LIST_BYTES:
            self._keep(block, headers, weight)
        return headers

    def _keep(self, block: bytes, headers: HeaderList, weight: int) -> None:
        table = self._table
        room = self._max_kept_bytes - _FIXED_BYTES - min(self._inserted_bytes, table.maxsize)
        room -= _DECODED_ENTRY_BYTES * len(table.dynamic_entries)
        if self._kept_bytes + weight > room:
            self._drop_answers()
            if weight > room:
                return
        if self._take(weight):
            self._answers[block] = headers

    def _read(self, block: bytes) -> tuple[Headers, bool, bool, int]:
        """The fields (RFC 7541 §6), and what is to be known of them.

        Whether the table has changed, or what fits into it; whether fields are marked; what it takes to keep the list.
        """
        table, entry = self._table, self._entry
        headers: Headers = []
        changed = marked = False
        room, fields_left, updates_left = self._max_list_bytes, self._max_fields, _SIZE_UPDATES
        never_cut, literals, literal_bytes = _NEVER_CUT_FIELDS, 0, 0
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
                if headers or not updates_left:
                    raise hpack.HPACKDecodingError(
                        "a new table size that is not among the first two things of a block"
                    )
                updates_left -= 1
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
                field, position = self._read_literal(block, position, first)
                literals += 1
                literal_bytes += len(field[0]) + len(field[1])
                changed = changed or first & 0x40 != 0
                marked = marked or first & 0xF0 == _NEVER_INDEXED
            fields_left -= 1
            if room >= 0:
                headers.append(field)
                room -= len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            elif never_cut and field[0] in _NEVER_CUT:
                headers.append(field)
                never_cut -= 1
            if fields_left < 0:
                raise hpack.OversizedHeaderListError(f"more than {self._max_fields} fields")
        count = len(headers)
        self._count_work(self._max_fields - fields_left)
        size = self._max_list_bytes - room - _ENTRY_OVERHEAD * count
        weight = _LIST_BYTES + _FIELD_BYTES * count + _LITERAL_BYTES * literals + literal_bytes + end
        for name, value in headers[:4]:
            if name == b":path":
                weight += len(value)  # it is the method's name as well
        if self._has_blanks:
            weight += size + _TRIMMED_BYTES * count
        return headers, changed, marked, weight

    def _count_work(self, fields: int) -> None:
        coded_bytes, self._coded_bytes = self._coded_bytes, 0
        work = 0
        if fields > _FREE_FIELDS:
            work = fields - _FREE_FIELDS
        if coded_bytes > _FREE_CODED_BYTES:
            work += (coded_bytes - _FREE_CODED_BYTES) >> 3
        self.work += work
        self.free_work = fields + (coded_bytes >> 3) - work

    def _read_literal(self, block: bytes, position: int, first: int) -> tuple[RawHeader, int]:
        """The literal whose first byte is `first` (RFC 7541 §6.2), and where it ends."""
        prefix = 0x3F if first & _WITH_INDEXING else 0x0F
        index = first & prefix
        if index == prefix:
            index, position = _integer(block, position, index)
        if index:
            name = self._entry(index)[0]
        else:
            name, position = self._string(block, position)
        value, position = self._string(block, position)
        if not self._has_blanks and value.strip(b" \t") != value:
            self._has_blanks = True
        if first & _WITH_INDEXING:
            self._table.add(name, value)
            self._inserted_bytes += len(name) + len(value) + _ENTRY_OVERHEAD
        elif first & _NEVER_INDEXED:
            # Marked by its type, for the encoder of the next hop (§6.2.3).
            return hpack.NeverIndexedHeaderTuple(name, value), position
        return (name, value), position

    def _string(self, block: bytes, position: int) -> tuple[bytes, int]:
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
        if first & 0x80:
            self._coded_bytes += length
            return decode_huffman(text), end
        return text, end

    def _entry(self, index: int) -> RawHeader:
        """RFC 7541 §2.3.3: the static table, then the dynamic one, newest first."""
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        dynamic = self._table.dynamic_entries
        if not len(_STATIC) < index <= len(_STATIC) + len(dynamic):
            raise hpack.InvalidTableIndexError(f"the table has no field {index}")
        return dynamic[index - len(_STATIC) - 1]


class _SharedLists:
    """Lists of all connections, by their fields."""

    __slots__ = ("by_fields", "kept_bytes")

    def __init__(self) -> None:
        self.by_fields: dict[tuple[RawHeader, ...], HeaderList] = {}
        self.kept_bytes = 0

    def find(self, fields: Headers, weight: int) -> HeaderList:
        """The list of these fields that there is already, else a new one."""
        key = tuple(fields)
        answer = self.by_fields.get(key)
        if answer is None:
            answer = HeaderList(fields)
            if weight <= _MAX_LIST_BYTES:
                # What are entries of one connection's table are another's literals.
                weight += (_LITERAL_BYTES + _FIELD_BYTES) * len(key)
                if self.kept_bytes + weight > _MAX_SHARED_BYTES:
                    self.clear()
                self.by_fields[key] = answer
                self.kept_bytes += weight
        return answer

    def clear(self) -> None:
        """Forget them: each connection finds its own again."""
        self.by_fields.clear()
        self.kept_bytes = 0


_lists = _SharedLists()


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


class _KeptBlock(ref[FixedHeaders]):
    """The block of a list that nobody changes, for as long as the list lives."""

    __slots__ = ("block", "encoder", "key")

    block: bytes
    encoder: "ref[HeaderEncoder]"
    key: int


def _forget(kept: "ref[FixedHeaders]") -> None:
    """The list is gone."""
    assert isinstance(kept, _KeptBlock)
    encoder = kept.encoder()
    if encoder is not None:
        encoder.forget(kept)


class HeaderEncoder(_Keeper):
    """Encodes the lists of one connection: its requests, or its responses.

    A field enters the dynamic table when it comes for the second time. What differs with every call, like a deadline or
    a trace, so never pushes out what repeats, and leaves the answers that are kept in force.
    """

    __slots__ = (
        "__weakref__",
        "_inserted",
        "_is_checked",
        "_max_size",
        "_numbers",
        "_seen",
        "_self",
        "_size",
        "_smallest",
        "_table",
    )

    def __init__(self, *, of_requests: bool = True) -> None:
        super().__init__(of_requests=of_requests)
        self._self = ref(self)
        self._answers: dict[int, _KeptBlock]
        """By the identity of lists that nobody changes: to hash a list takes longer than all else here."""
        self._table: deque[RawHeader] = deque()
        """The dynamic table, oldest first; no field is in it twice."""
        self._numbers: dict[RawHeader, int] = {}
        """What is in the table → how many were inserted before it."""
        self._inserted = 0
        self._is_checked = False
        """Whether all fields of the list that is being encoded are known to be pairs of bytes."""
        self._size = 0
        self._max_size = HeaderTable.DEFAULT_SIZE
        self._smallest: int | None = None
        """The smallest size since the last block, if it was changed."""
        self._seen = array("I", bytes(4 * _SEEN))
        """Hashes of fields that have come once, each in its place. No field is kept for that, and none looked for."""

    @property
    def table(self) -> Table:
        """A copy of the dynamic table."""
        return Table(tuple(self._table), self._max_size)

    def set_table_size(self, size: int) -> None:
        """The peer allows a dynamic table of so many bytes."""
        self._drop_answers()
        self._max_size = size
        self._smallest = size if self._smallest is None else min(size, self._smallest)
        self._evict(0)

    def encode(self, headers: Headers) -> bytes:
        """The block for this list.

        Raises `TypeError` for a field that is no pair of bytes. Nothing has changed then: the next block is in step
        with the peer's table, whoever's it is.
        """
        kept = self._answers.get(id(headers))
        if kept is not None and kept() is headers:
            return kept.block
        static, numbers = _STATIC_FIELDS.get, self._numbers.get
        parts = [] if self._smallest is None else self._size_updates()
        repeats = not parts and isinstance(headers, FixedHeaders)
        inserted = self._inserted
        self._is_checked = False
        new: list[int] = []
        try:
            for field in headers:
                # The type tells whether a field may ever be indexed, and two that differ in it are equal.
                if type(field) is not tuple and not getattr(field, "indexable", True):
                    parts.append(_literal(_NEVER_INDEXED, 0x0F, field))
                elif (part := static(field)) is not None:
                    parts.append(part)
                elif (number := numbers(field)) is not None:
                    # RFC 7541 §2.3.3: the newest comes right behind the static table.
                    parts.append(_indexed(len(_STATIC) + self._inserted - number))
                else:
                    parts.append(self._literal(field, headers, new))
        except (TypeError, ValueError):
            check_fields(headers)
            raise
        block = b"".join(parts)
        self._smallest = None
        for number in new:
            self._seen[number % _SEEN] = number
        if len(self._table) > _MAX_ENTRIES:
            # Fields so small take several times their size in memory. From the next block on there are fewer.
            self.set_table_size(min(self._max_size, _TABLE_OF_TINY_FIELDS))
        if repeats and not new and self._inserted == inserted:
            assert isinstance(headers, FixedHeaders)
            self._keep(headers, block)
        return block

    def _keep(self, headers: FixedHeaders, block: bytes) -> None:
        weight = _KEPT_BLOCK_BYTES + len(block)
        room = (
            self._max_kept_bytes
            - _FIXED_BYTES
            - 4 * _SEEN
            - self._size
            - _ENCODED_ENTRY_BYTES * len(self._table)
        )
        if weight > min(room, _MAX_LIST_BYTES):
            return
        if self._kept_bytes + weight > room:
            self._drop_answers()
        if not self._take(weight):
            return
        kept = _KeptBlock(headers, _forget)
        kept.block, kept.encoder, kept.key = block, self._self, id(headers)
        self._answers[kept.key] = kept

    def forget(self, kept: _KeptBlock) -> None:
        """The list of this block is gone."""
        if self._answers.get(kept.key) is kept:
            del self._answers[kept.key]
            self._give_back(_KEPT_BLOCK_BYTES + len(kept.block))

    def _size_updates(self) -> list[bytes]:
        """What the first block after changes begins with: the smallest size, and the last (RFC 7541 §4.2)."""
        last, smallest = self._max_size, self._smallest
        assert smallest is not None
        sizes = (last,) if smallest == last else (smallest, last)
        return [_integer_from(_SIZE_UPDATE, 0x1F, size) for size in sizes]

    def _literal(self, field: RawHeader, headers: Headers, new: list[int]) -> bytes:
        """A field that is in no table: one that comes for the second time is from now on.

        The first time its hash goes into `new`.
        """
        name, value = field
        if name in _CREDENTIALS:
            return _literal(_NEVER_INDEXED, 0x0F, field)
        part = _literal(_NOT_INDEXED, 0x0F, field)
        size = len(name) + len(value) + _ENTRY_OVERHEAD
        if size > _MAX_INDEXED_BYTES or size > self._max_size:
            return part
        number = hash(field) & 0xFFFF_FFFF
        if self._seen[number % _SEEN] != number:
            new.append(number)
            return part
        if not self._is_checked:
            check_fields(headers)  # what has moved the table must leave
            self._is_checked = True
        self._drop_answers()  # it moves all others
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


def without_index(headers: Iterable[RawHeader]) -> Headers:
    """The list with its credentials marked, for an encoder that is not ours."""
    return [hpack.NeverIndexedHeaderTuple(*field) if field[0] in _CREDENTIALS else field for field in headers]


def _literal(kind: int, prefix: int, field: tuple[Any, Any]) -> bytes:
    """A literal, its name from the static table where that has it (RFC 7541 §6.2)."""
    name, value = field
    if not (isinstance(name, bytes) and isinstance(value, bytes)):
        raise TypeError("a header field is no pair of bytes")
    index = _STATIC_NAMES.get(name)
    if index is None:
        return b"".join((bytes((kind,)), _length(len(name)), name, _length(len(value)), value))
    return b"".join((_static_name(kind, prefix, index), _length(len(value)), value))


def _length(length: int) -> bytes:
    """In front of a string that is not Huffman-coded (RFC 7541 §5.2)."""
    return _LENGTHS[length] if length < len(_LENGTHS) else _integer_from(0, 0x7F, length)


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


@cache
def _static_name(kind: int, prefix: int, index: int) -> bytes:
    """What a literal begins with whose name is in the static table."""
    return _integer_from(kind, prefix, index)


_LENGTHS = [_integer_from(0, 0x7F, length) for length in range(1024)]
_STATIC_FIELDS = {field: _indexed(index) for index, field in reversed([*enumerate(_STATIC, 1)])}
_STATIC_NAMES = {name: index for index, (name, _) in reversed([*enumerate(_STATIC, 1)])}
"""The first index of each."""
