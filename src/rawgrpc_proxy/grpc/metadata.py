"""The metadata of a call: a view of raw HTTP/2 headers for people, and the headers never to forward.

This module does not judge what a peer sent: raw headers are the HTTP/2 engine's to check. It checks what
users put in. The invariant: a header that nobody changed leaves as it came, the same object, in the same
place. A `-bin` value is decoded when somebody reads it and never encoded again.

Owns: "Custom-Metadata" of the gRPC over HTTP/2 specification, RFC 9113 §8.2.2.
"""

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, overload

FIELD_OVERHEAD = 32  # RFC 9113 §6.5.2
_TE_TRAILERS = (b"te", b"trailers")
_BLANKS = (b" ", b"\t")
_EDGE_BLANKS = (b"\n ", b" \n", b"\n\t", b"\t\n")

RawHeader = tuple[bytes, bytes]
Headers = list[RawHeader]


class FixedHeaders(list[RawHeader]):
    """Headers that nobody changes any more: what is worked out from the list may be kept for as long as it lives."""

    __slots__ = ("__weakref__",)


Value = str | bytes
"""What metadata holds: `bytes` under a key that ends in "-bin", `str` under any other."""

T = TypeVar("T")

_KEY = re.compile(r"[0-9a-z_.-]+")
_ASCII_VALUE = re.compile(r"[ -~]*")
_SETTABLE_PSEUDO_HEADERS = (":authority", ":path")
# RFC 9113 §8.2.2 forbids all of these in HTTP/2 but `te`; that one is between two neighbours, and the proxy
# sends its own.
_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)


class Metadata:
    """An ordered, multi-valued, read-only view of a list of raw headers, pseudo-headers included.

    Keys are `str` and case does not matter. Values are `str`, or `bytes` where the key ends in "-bin".
    Reading a `-bin` value that is not base64 raises `ValueError`; such a value is forwarded all the same.

        metadata[":authority"]                      # the first value, KeyError if there is none
        metadata.get("x-user")                      # the first value or None
        metadata.get_all("x-tag")                   # every value, in order
        metadata = metadata.with_value("x-via", "edge-1")

    `with_value`, `with_added` and `without` answer a new `Metadata` and leave this one alone.
    """

    __slots__ = ("_next_hop", "_next_hop_size", "_raw")

    def __init__(self, raw: Iterable[RawHeader] = ()) -> None:
        """Take headers as they are on the wire: lower-case names, `-bin` values in base64; unchecked."""
        self._raw = tuple(raw)
        self._next_hop: FixedHeaders | None = None
        self._next_hop_size = 0

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> "Metadata":
        """Make custom metadata from keys and values; errors as in `with_added`."""
        if isinstance(pairs, Mapping):
            pairs = pairs.items()
        return cls([_custom_header(key, value) for key, value in pairs])

    @property
    def raw(self) -> Headers:
        """The headers for the wire, in a list of the caller's own."""
        return list(self._raw)

    @property
    def next_hop(self) -> FixedHeaders:
        """The headers as they go on to an upstream: see `for_next_hop`, with `te: trailers` behind the pseudo-headers.

        Worked out once.
        """
        if self._next_hop is None:
            headers = for_next_hop(list(self._raw))
            first_regular = next((i for i, (name, _) in enumerate(headers) if name[:1] != b":"), len(headers))
            self._next_hop = FixedHeaders((*headers[:first_regular], _TE_TRAILERS, *headers[first_regular:]))
        return self._next_hop

    @property
    def next_hop_size(self) -> int:
        """The size of `next_hop` as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 §6.5.2)."""
        if not self._next_hop_size:
            self._next_hop_size = sum(
                [len(name) + len(value) + FIELD_OVERHEAD for name, value in self.next_hop]
            )
        return self._next_hop_size

    def __getitem__(self, key: str) -> Value:
        for value in self._values(key):
            return value
        raise KeyError(key)

    @overload
    def get(self, key: str) -> Value | None: ...
    @overload
    def get(self, key: str, default: T) -> Value | T: ...
    def get(self, key: str, default: object = None) -> object:
        """The first value of the key, or `default`."""
        for value in self._values(key):
            return value
        return default

    def get_all(self, key: str) -> list[Value]:
        """Every value of the key, in order; a `-bin` value joined with commas counts as several."""
        return list(self._values(key))

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        wanted = _wire_name(key)
        return any(name == wanted for name, _ in self._raw)

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        """Every key and value, in order; a key appears as often as it has values."""
        for name, raw in self._raw:
            key = name.decode("latin-1")
            for value in _decode(name, raw):
                yield key, value

    def with_value(self, key: str, value: Value) -> "Metadata":
        """Set the key to this one value, in the place of its first value or at the end.

        Of the pseudo-headers, ":authority" and ":path" can be set. Raises `TypeError` for a value that is not
        `bytes` under a "-bin" key or not `str` elsewhere, `ValueError` for a key or value that gRPC forbids.
        """
        if key.startswith(":"):
            return self._with_pseudo_header(key.lower(), value)
        header = _custom_header(key, value)
        return self._replacing(header, otherwise_at=len(self._raw))

    def with_added(self, key: str, value: Value) -> "Metadata":
        """Add a value at the end and keep those the key has. Errors as in `with_value`; no pseudo-headers."""
        return Metadata((*self._raw, _custom_header(key, value)))

    def without(self, key: str) -> "Metadata":
        """Remove every value of the key; one that has none is no error. `ValueError` for pseudo-headers."""
        if key.startswith(":"):
            raise ValueError(f"a request needs its {key}: pseudo-headers cannot be removed")
        unwanted = _wire_name(key)
        return Metadata(header for header in self._raw if header[0] != unwanted)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Metadata):
            return NotImplemented
        return self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        # Names only: metadata carries credentials, and a repr ends up in logs.
        return f"<Metadata {' '.join(name.decode('latin-1') for name, _ in self._raw)}>"

    def _values(self, key: str) -> Iterator[Value]:
        wanted = _wire_name(key)
        for name, raw in self._raw:
            if name == wanted:
                yield from _decode(name, raw)

    def _with_pseudo_header(self, key: str, value: Value) -> "Metadata":
        if key not in _SETTABLE_PSEUDO_HEADERS:
            raise ValueError(f"{key} cannot be set; of the pseudo-headers only :authority and :path can")
        text = _checked_text(key, value)
        if " " in text or not text:
            raise ValueError(f"the value of {key} is empty or has a space in it: {text!r}")
        if key == ":path" and not text.startswith("/"):
            raise ValueError(
                f"a :path is '/' + service + '/' + method, this one has no '/' in front: {text!r}"
            )
        # RFC 9113 §8.3: pseudo-headers come before all other headers.
        pseudo_headers = sum(name.startswith(b":") for name, _ in self._raw)
        return self._replacing((key.encode(), text.encode()), otherwise_at=pseudo_headers)

    def _replacing(self, header: RawHeader, *, otherwise_at: int) -> "Metadata":
        place = next((i for i, (name, _) in enumerate(self._raw) if name == header[0]), otherwise_at)
        kept_before = self._raw[:place]
        kept_after = (other for other in self._raw[place:] if other[0] != header[0])
        return Metadata((*kept_before, header, *kept_after))


def strip_hop_by_hop(headers: Headers) -> Headers:
    """Drop what concerns only the connection it came on, and whatever a `connection` header names.

    Answers the very list it was given if there is nothing to drop.
    """
    kept = [header for header in headers if header[0] not in _HOP_BY_HOP]
    if len(kept) == len(headers):
        return headers
    named = [value.lower().split(b",") for name, value in headers if name == b"connection"]
    if named:
        # No field name but a pseudo-header's has a colon, and no peer may talk us out of those.
        unwanted = {token.strip() for tokens in named for token in tokens if b":" not in token}
        kept = [header for header in kept if header[0] not in unwanted]
    return kept


def for_next_hop(headers: Headers) -> Headers:
    """The list without hop-by-hop fields, and without leading and trailing blanks in its values.

    grpcio sends such blanks as they are, though RFC 9113 §8.2.1 calls them malformed, and peers that keep to the
    letter answer with the end of the whole connection. gRPC allows to strip them. Answers the very list it was given if
    there is nothing to change.
    """
    headers = strip_hop_by_hop(headers)
    # No value has a line feed in it, so between two of them they show where a value begins and ends.
    values = b"\n".join([b"", *[value for _, value in headers], b""])
    if any([edge in values for edge in _EDGE_BLANKS]):  # noqa: C419  # a generator takes longer than all four
        return [_trimmed(header) for header in headers]
    return headers


def _trimmed(header: RawHeader) -> RawHeader:
    name, value = header
    if value[:1] in _BLANKS or value[-1:] in _BLANKS:
        # hpack marks a field that must never be indexed by its type, and so it stays (RFC 7541 §7.1.3).
        kind: Any = type(header)
        trimmed = value.strip(b" \t")
        return (name, trimmed) if kind is tuple else kind(name, trimmed)
    return header


def _wire_name(key: str) -> bytes:
    return key.lower().encode()


def _custom_header(key: str, value: Value) -> RawHeader:
    """The header for a key and a value that come from a user, checked."""
    key = key.lower()
    if key.startswith(":"):
        raise ValueError(
            f"{key} exists once and is not custom metadata; set it with with_value({key!r}, ...)"
        )
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a metadata key: {key!r}; a key is made of letters, digits, '_', '-' and '.'")
    name = key.encode()
    if name in _HOP_BY_HOP:
        raise ValueError(f"{key!r} concerns one connection only and cannot be metadata of a call")
    if not key.endswith("-bin"):
        return name, _checked_text(key, value).encode()
    if not isinstance(value, bytes):
        raise TypeError(f"the key {key!r} ends in '-bin', so its value is bytes, not {type(value).__name__}")
    # The specification asks for base64 without padding from those who write it.
    return name, binascii.b2a_base64(value, newline=False).rstrip(b"=")


def _checked_text(key: str, value: Value) -> str:
    if not isinstance(value, str):
        raise TypeError(
            f"the value of {key!r} is str, not {type(value).__name__}; bytes need a key that ends in '-bin'"
        )
    if not _ASCII_VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {key!r} has characters outside printable ASCII; any bytes can go under '-bin' keys"
        )
    if value != value.strip():
        # RFC 9113 §8.2.1: a strict peer resets the stream over this.
        raise ValueError(f"the value of {key!r} begins or ends with a space, which HTTP/2 forbids")
    return value


def _decode(name: bytes, raw: bytes) -> Iterator[Value]:
    """The values in one header; more than one only for `-bin`, where a comma joins and cannot be data."""
    if not name.endswith(b"-bin"):
        yield raw.decode("latin-1")
        return
    for piece in raw.split(b","):
        digits = piece.strip()
        try:
            # Padding is optional on the wire, and Python insists on it.
            yield binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"the value of {name.decode('latin-1')!r} is not base64: {error}") from error
