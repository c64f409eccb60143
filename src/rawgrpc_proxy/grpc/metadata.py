"""The metadata of a call: a view of raw HTTP/2 headers for people.

This module does not judge what a peer sent: raw headers are the HTTP/2 engine's to check. It checks what
users put in, by the rules of `custom_metadata.py`. The invariant: a header that nobody changed leaves as it came, the
same object, in the same place. A `-bin` value is decoded when somebody reads it and never encoded again.

Owns: "Custom-Metadata" of the gRPC over HTTP/2 specification.
"""

import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar, overload

from rawgrpc_proxy.custom_metadata import Value, checked_text, header_of, headers_of
from rawgrpc_proxy.http2.headers import FixedHeaders, Headers, RawHeader, check_fields, for_next_hop, size_of

TE_TRAILERS = (b"te", b"trailers")
T = TypeVar("T")

_SETTABLE_PSEUDO_HEADERS = (":authority", ":path")


class Metadata:
    """An ordered, multi-valued, read-only view of a list of raw headers, pseudo-headers included.

    Keys are `str` and case does not matter. Values are `str`, or `bytes` where the key ends in "-bin".
    Reading a `-bin` value that is not base64 raises `ValueError`; such a value is forwarded all the same.

        metadata[":authority"]                      # the first value, KeyError if there is none
        metadata.get("x-user")                      # the first value or None
        metadata.get_all("x-tag")                   # every value, in order
        metadata = metadata.with_value("x-via", "edge-1")

    `with_value`, `with_added` and `without` answer a new `Metadata` and leave this one alone. What was set or removed
    is `decided`: a caller cannot say otherwise behind its messages, in the trailers of its request.
    """

    __slots__ = ("_next_hop", "_next_hop_size", "_raw", "by_hand", "decided")

    def __init__(self, raw: Iterable[RawHeader] = ()) -> None:
        """Take headers as they are on the wire: lower-case names, `-bin` values in base64.

        Raises `TypeError` for anything but pairs of `bytes`. Whether they make a request shows when they are sent.
        """
        self._raw = tuple(raw)
        self.by_hand = not isinstance(raw, FixedHeaders)
        """Made from headers that no peer has sent, so that nobody has held them against the rules yet."""
        if self.by_hand:
            check_fields(self._raw)
        self.decided: frozenset[bytes] = frozenset()
        """Names of fields that somebody has set or removed."""
        self._next_hop: FixedHeaders | None = None
        self._next_hop_size = 0

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> "Metadata":
        """Make custom metadata from keys and values; errors as in `with_added`."""
        return cls(headers_of(pairs))

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
            self._next_hop = FixedHeaders((*headers[:first_regular], TE_TRAILERS, *headers[first_regular:]))
        return self._next_hop

    @property
    def next_hop_size(self) -> int:
        """The size of `next_hop`."""
        if not self._next_hop_size:
            self._next_hop_size = size_of(self.next_hop)
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
        header = header_of(key, value)
        return self._replacing(header, otherwise_at=len(self._raw))

    def with_added(self, key: str, value: Value) -> "Metadata":
        """Add a value at the end and keep those the key has. Errors as in `with_value`; no pseudo-headers."""
        return self._changed((*self._raw, header_of(key, value)))

    def without(self, key: str) -> "Metadata":
        """Remove every value of the key; one that has none is no error. `ValueError` for pseudo-headers."""
        if key.startswith(":"):
            raise ValueError(f"a request needs its {key}: pseudo-headers cannot be removed")
        unwanted = _wire_name(key)
        return self._changed(tuple(header for header in self._raw if header[0] != unwanted), unwanted)

    def with_fields(self, names: frozenset[bytes], fields: Iterable[RawHeader]) -> "Metadata":
        """Remove every value of these names, and add these fields at the end.

        For whoever does so for every call: nothing is checked, and it costs a third of `without` and `with_value`.
        Names and fields are those of `header_of`.
        """
        return self._changed((*[field for field in self._raw if field[0] not in names], *fields), *names)

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
        text = checked_text(key, value)
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
        return self._changed((*kept_before, header, *kept_after), header[0])

    def _changed(self, raw: tuple[RawHeader, ...], *decided: bytes) -> "Metadata":
        """The metadata after a change that keeps to the rules, if these do."""
        changed = Metadata()
        changed._raw, changed.by_hand = raw, self.by_hand
        changed.decided = self.decided.union(decided)
        return changed


def _wire_name(key: str) -> bytes:
    return key.lower().encode()


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
