"""Protobuf messages read without their schema, as well as it can be guessed. Pure, and total over any bytes.

The wire format tells numbers of fields and four kinds of values. What a length-delimited value is (a text, a message,
packed numbers, bytes), whether eight bytes are a double, and whether a number is a sint, is a guess:

- text, if it is UTF-8 and printable, unless it begins with a control character and is a message
- else a message, if it is one to its last byte, with no number in a longer form than needed
- else packed numbers, if it is at least two varints
- else bytes

The invariant: time and memory are linear in the bytes. No more than `MAX_DEPTH` levels and `MAX_FIELDS` fields are
read, and what is beyond is bytes, or left out.
"""

import math
import struct
from collections.abc import Iterable, Iterator

import attrs

MAX_DEPTH = 16
MAX_FIELDS = 2000
MAX_PACKED = 1000

_VARINT, _I64, _LEN, _START, _END, _I32 = range(6)
_MAX_VARINT_BYTES = 10
_NEGATIVE = 1 << 63
_SINT_FROM = 128
"""From here on an odd number is shown as the negative sint that it may be."""
_SHOWN_BYTES, _SHOWN_NUMBERS = 16, 100
_TEXT_CONTROLS = "\n\r\t"
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")
_LARGEST, _SMALLEST = 1e15, 1e-9


@attrs.frozen
class Varint:
    """An int, uint, sint, bool or enum."""

    value: int

    @property
    def signed(self) -> int:
        """As an int64."""
        return self.value - (1 << 64) if self.value >= _NEGATIVE else self.value

    @property
    def zigzag(self) -> int:
        """As a sint64."""
        return (self.value >> 1) ^ -(self.value & 1)


@attrs.frozen
class Fixed:
    """Four or eight bytes: a fixed, sfixed, float or double."""

    raw: bytes

    @property
    def number(self) -> float:
        """As a float or double."""
        reader = _FLOAT if len(self.raw) == _FLOAT.size else _DOUBLE
        value: float = reader.unpack(self.raw)[0]
        return value

    @property
    def integer(self) -> int:
        """As a fixed."""
        return int.from_bytes(self.raw, "little")

    @property
    def looks_real(self) -> bool:
        """Whether it is more likely a float than an integer."""
        size = abs(self.number)
        return math.isfinite(size) and _SMALLEST < size < _LARGEST


@attrs.frozen
class Text:
    """A string."""

    value: str


@attrs.frozen
class Blob:
    """Bytes that are nothing else."""

    value: bytes


@attrs.frozen
class Packed:
    """Repeated numbers in one value."""

    values: tuple[Varint, ...]


@attrs.frozen
class Message:
    """A message, or a group. `is_whole`: nothing is left behind its last field."""

    fields: "tuple[Field, ...]"
    is_whole: bool = True


Value = Varint | Fixed | Text | Blob | Packed | Message


@attrs.frozen
class Field:
    """One field; a repeated one is there several times."""

    number: int
    value: Value


class _NotProtobuf(Exception):
    """It is no message."""


class _CutOff(_NotProtobuf):
    """It is none that ends here."""


class _Reader:
    """Has what all levels of a message share: how many fields may still be read."""

    def __init__(self) -> None:
        self.left = MAX_FIELDS

    def message(
        self, data: bytes, position: int, end: int, depth: int, *, group: int = 0, cut: bool = False
    ) -> tuple[Message, int]:
        """The message from `position` on, and where it ends: at `end`, or behind the end of its group."""
        fields: list[Field] = []
        while position < end:
            if self.left <= 0:
                if cut:
                    return Message(tuple(fields), is_whole=False), end
                raise _NotProtobuf
            try:
                field, position = self._field(data, position, end, depth, group)
            except _CutOff:
                if cut:
                    return Message(tuple(fields), is_whole=False), end
                raise
            if field is None:
                return Message(tuple(fields)), position
            self.left -= 1
            fields.append(field)
        if group:
            raise _CutOff
        return Message(tuple(fields)), position

    def _field(
        self, data: bytes, position: int, end: int, depth: int, group: int
    ) -> tuple[Field | None, int]:
        """The next field; None at the end of the group."""
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise _NotProtobuf
        if kind == _VARINT:
            value, position = _varint(data, position, end)
            return Field(number, Varint(value)), position
        if kind in (_I64, _I32):
            size = 8 if kind == _I64 else 4
            if position + size > end:
                raise _CutOff
            return Field(number, Fixed(data[position : position + size])), position + size
        if kind == _LEN:
            size, position = _varint(data, position, end)
            if position + size > end:
                raise _CutOff
            return Field(number, self._delimited(data, position, position + size, depth)), position + size
        if kind == _START and depth < MAX_DEPTH:
            message, position = self.message(data, position, end, depth + 1, group=number)
            return Field(number, message), position
        if kind == _END and number == group:
            return None, position
        raise _NotProtobuf

    def _delimited(self, data: bytes, start: int, end: int, depth: int) -> Value:
        raw = data[start:end]
        text = _text(raw)
        if text is not None and text[:1] not in _TEXT_CONTROLS:
            return Text(text)
        if raw and depth < MAX_DEPTH:
            left = self.left
            try:
                return self.message(data, start, end, depth + 1)[0]
            except _NotProtobuf:
                self.left = left
        if text is not None:
            return Text(text)
        return _packed(raw) or Blob(raw)


def guess(data: bytes, *, cut: bool = False) -> Message | None:
    """The message that these bytes are; None if they cannot be one. `cut`: they are the beginning of one."""
    try:
        return _Reader().message(bytes(data), 0, len(data), 0, cut=cut)[0]
    except _NotProtobuf:
        return None


def delimited_fields(data: bytes, number: int) -> list[bytes]:
    """The length-delimited values of this field, at the top of the message, as far as it is one. Nothing is guessed."""
    found: list[bytes] = []
    position, end = 0, len(data)
    try:
        while position < end:
            tag, position = _varint(data, position, end)
            kind = tag & 7
            if kind == _VARINT:
                position = _varint(data, position, end)[1]
            elif kind == _LEN:
                size, position = _varint(data, position, end)
                if tag >> 3 == number and position + size <= end:
                    found.append(data[position : position + size])
                position += size
            elif kind in (_I64, _I32):
                position += 8 if kind == _I64 else 4
            else:
                break
    except _NotProtobuf:
        pass
    return found


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for at in range(position, min(end, position + _MAX_VARINT_BYTES)):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            if (not byte and at > position) or value >= 1 << 64:
                raise _NotProtobuf  # longer than needed: nobody writes that
            return value, at + 1
    if end - position < _MAX_VARINT_BYTES:
        raise _CutOff
    raise _NotProtobuf


def _text(raw: bytes) -> str | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.translate(_WITHOUT_CONTROLS).isprintable() else None


_WITHOUT_CONTROLS = {ord(each): None for each in _TEXT_CONTROLS}


def _packed(raw: bytes) -> Packed | None:
    values: list[Varint] = []
    position = 0
    try:
        while position < len(raw):
            if len(values) >= MAX_PACKED:
                return None
            value, position = _varint(raw, position, len(raw))
            values.append(Varint(value))
    except _NotProtobuf:
        return None
    return Packed(tuple(values)) if len(values) > 1 else None


# ------------------------------------------------------------------------- text


def as_text(message: Message, max_characters: int = 400) -> str:
    """On one line: `1: "hello" 2: {1: 5} 3: [1, 2] 4: 1.5`, cut with an ellipsis."""
    pieces: list[str] = []
    length = 0
    for piece in _pieces(message):
        pieces.append(piece)
        length += len(piece)
        if length > max_characters:
            break
    text = "".join(pieces)
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def _pieces(message: Message) -> Iterator[str]:
    for place, field in enumerate(message.fields):
        yield f"{' ' if place else ''}{field.number}: "
        yield from _pieces_of(field.value)
    if not message.is_whole:
        yield " …" if message.fields else "…"


def _pieces_of(value: Value) -> Iterator[str]:
    match value:
        case Varint():
            yield str(value.signed)
            if value.value & 1 and _SINT_FROM <= value.value < _NEGATIVE:
                yield f" (sint {value.zigzag})"
        case Fixed():
            yield f"{value.number:.7g}" if value.looks_real else str(value.integer)
        case Text():
            yield _quoted(value.value)
        case Blob():
            yield f"<{len(value.value)} B {value.value[:_SHOWN_BYTES].hex()}"
            yield "…>" if len(value.value) > _SHOWN_BYTES else ">"
        case Packed():
            yield "[" + ", ".join(str(each.signed) for each in value.values[:_SHOWN_NUMBERS])
            yield ", …]" if len(value.values) > _SHOWN_NUMBERS else "]"
        case Message():
            yield "{"
            yield from _pieces(value)
            yield "}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + escaped.replace("\t", "\\t") + '"'


# ------------------------------------------------------------------------- JSON

Json = str | int | float | list["Json"] | dict[str, "Json"]


def as_json(message: Message) -> list[Json]:
    """A list of fields, each with `field` and one of `int`, `fixed`, `text`, `hex`, `packed`, `message`.

    Beside `int` there is `sint` for what an odd number may be, beside `fixed` `real`, if it looks like a real number.
    """
    return [_json_of(field) for field in message.fields]


def _json_of(field: Field) -> Json:
    about: dict[str, Json] = {"field": field.number}
    match field.value:
        case Varint() as value:
            about["int"] = value.signed
            if value.value & 1:
                about["sint"] = value.zigzag
        case Fixed() as value:
            about["fixed"] = value.integer
            if value.looks_real:
                about["real"] = value.number
        case Text(text):
            about["text"] = text
        case Blob(raw):
            about["hex"] = raw.hex()
        case Packed(values):
            about["packed"] = _signed(values)
        case Message() as message:
            about["message"] = as_json(message)
    return about


def _signed(values: Iterable[Varint]) -> list[Json]:
    return [value.signed for value in values]
