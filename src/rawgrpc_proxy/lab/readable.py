"""What a message says, for people: decompressed, and read by a schema or without one. Bounded, whatever it is.

What it does not do: decide which messages are looked at. Who decodes is a `Decoder`: `guessed` needs no schema, and
`descriptors.py` has one that does.
"""

import zlib
from collections.abc import Callable

import attrs

from rawgrpc_proxy.lab.protobuf_guess import Json, as_json, as_text, guess

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_COMPRESSED = 1
MAX_READABLE_BYTES = 64 * 1024
"""Of a message, when it is decompressed: what is beyond is not looked at."""


@attrs.frozen
class Readable:
    """What a message says, as text on one line, and as JSON."""

    text: str
    json: Json


@attrs.frozen(kw_only=True)
class Payload:
    """The beginning of a message as it was before it was compressed."""

    data: bytes
    is_whole: bool


UNKNOWN = "unknown"
"""The encoding of a message, where nobody has seen what the headers said."""

Decoder = Callable[[str, bool, Payload], Readable | None]
"""Of the method, whether it is a request, and the message; None if it cannot tell."""


def plain(payload: bytes, flag: int, encoding: str, *, is_whole: bool) -> Payload | str:
    """The message as it was before it was compressed, or why that cannot be told."""
    if flag != _COMPRESSED:
        return Payload(
            data=payload[:MAX_READABLE_BYTES], is_whole=is_whole and len(payload) <= MAX_READABLE_BYTES
        )
    if encoding not in ("gzip", "deflate", UNKNOWN):
        return f"compressed with {encoding!r}"
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        data = inflater.decompress(payload, MAX_READABLE_BYTES)
    except zlib.error as error:
        return f"not {encoding}: {error}"
    return Payload(data=data, is_whole=inflater.eof)


def guessed(_method: str, _is_request: bool, payload: Payload) -> Readable | None:
    """Without a schema."""
    message = guess(payload.data, cut=not payload.is_whole)
    return None if message is None else Readable(as_text(message), as_json(message))


def raw(payload: Payload) -> Readable:
    """What is no protobuf: its first bytes."""
    shown = payload.data[:64]
    return Readable(
        f"<{shown.hex(' ', 4)}{'…' if len(shown) < len(payload.data) else ''}>", {"hex": shown.hex()}
    )


@attrs.frozen(kw_only=True)
class Message:
    """One, as it was on the wire."""

    method: str
    is_request: bool
    flag: int
    encoding: str
    payload: bytes
    is_whole: bool


def said_in(message: Message, decode: Decoder) -> dict[str, Json]:
    """What there is to say of it: `text` and `message`, `cut` if that is its beginning; or why it is `undecoded`."""
    before = plain(message.payload, message.flag, message.encoding, is_whole=message.is_whole)
    if isinstance(before, str):
        return {"undecoded": before}
    said = decode(message.method, message.is_request, before) or raw(before)
    about: dict[str, Json] = {"text": said.text, "message": said.json}
    if not before.is_whole:
        about["cut"] = True
    return about
