"""Huffman-coded strings of header blocks (RFC 7541 §5.2), decoded with one look-up for each byte.

hpack's table goes by half bytes; here two of its steps are joined, for each state when it is met first: all states
together take two megabytes. What it does not do: encode.

The invariant: the time is proportional to the length, whatever the bytes are, about 60 ns for each.
"""

from hpack import HPACKDecodingError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

_Row = tuple[bytes, tuple[bytes | None, ...]]
_rows: dict[int, _Row] = {}
"""For each state: by the next byte, the state after it, and the text that it completes; None where there is no code."""
_texts: dict[bytes, bytes] = {}
"""Each text once: there are far fewer than steps."""
_may_end = {0}
"""States in which a string may end: at the end of a code, or within a padding of ones (less than eight of them)."""

_AT_ONCE_BYTES = 2048
"""CPython's `join` takes 80 bytes of memory for each part: five megabytes for a string of 60 KiB."""


def decode_huffman(coded: bytes) -> bytes:
    """The text. Raises `HPACKDecodingError` for a code that there is not, and for a padding that is none."""
    if len(coded) <= _AT_ONCE_BYTES:
        text, state = _decode(coded, 0)
    else:
        texts, state = [], 0
        for at in range(0, len(coded), _AT_ONCE_BYTES):
            text, state = _decode(coded[at : at + _AT_ONCE_BYTES], state)
            texts.append(text)
        text = b"".join(texts)
    if state not in _may_end:
        raise HPACKDecodingError("a Huffman-coded string ends within a code")
    return text


def _decode(coded: bytes, state: int) -> tuple[bytes, int]:
    rows = _rows
    parts = []
    for byte in coded:
        row = rows.get(state)
        if row is None:
            row = rows[state] = _row(state)
        text = row[1][byte]
        if text is None:
            raise HPACKDecodingError("a Huffman-coded string has a code that there is not")
        state = row[0][byte]
        parts.append(text)
    return b"".join(parts), state


def _row(state: int) -> _Row:
    steps = [_step(state, byte) for byte in range(256)]
    return bytes([after for after, _ in steps]), tuple([text for _, text in steps])


def _step(state: int, byte: int) -> tuple[int, bytes | None]:
    text = b""
    for half in (byte >> 4, byte & 0xF):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + half]
        if flags & HUFFMAN_FAIL:
            return 0, None
        if flags & HUFFMAN_EMIT_SYMBOL:
            text += bytes((symbol,))
    if flags & HUFFMAN_COMPLETE:
        _may_end.add(state)
    return state, _texts.setdefault(text, text)
