"""Header lists (RFC 9113 §8): the fields of one HEADERS block, what is remembered with them, and what stays at a hop.

What it does not do: judge what a peer sent (`field_rules.py`), or read and write blocks (`hpack.py`). The invariant: a
field that nobody changed leaves as it came, the same object, in the same place.

Owns: RFC 9113 §8.2.2.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rawgrpc_proxy.custom_metadata import HOP_BY_HOP

FIELD_OVERHEAD = 32  # RFC 9113 §6.5.2
_BLANKS = (b" ", b"\t")
_EDGE_BLANKS = (b"\n ", b" \n", b"\n\t", b"\t\n")

RawHeader = tuple[bytes, bytes]
Headers = list[RawHeader]
T = TypeVar("T")


class FixedHeaders(list[RawHeader]):
    """Headers that nobody changes any more: what is worked out from the list may be kept for as long as it lives."""

    __slots__ = ("__weakref__",)


class HeaderList(FixedHeaders):
    """A list that came from a peer. Nobody may change it.

    The same object is answered each time an equal list comes on the connection, and where the list tells nothing of its
    caller on any other. So what is worked out from it is worked out `once`: what peers repeat for every call is looked
    at once.
    """

    __slots__ = ("_worked_out",)

    def __init__(self, fields: Iterable[RawHeader] = ()) -> None:
        super().__init__(fields)
        self._worked_out: dict[Callable[[HeaderList], Any], Any] = {}

    def once(self, work: "Callable[[HeaderList], T]") -> T:
        """What `work` answers for this list, worked out the first time and kept as long as the list is.

        There must be few of `work` in a process: a function of a module, or one for each setting. What it answers must
        depend on the list alone, and be small, or as large as the list at the most (`hpack.py` counts it so).
        """
        try:
            answer: T = self._worked_out[work]
        except KeyError:
            answer = self._worked_out[work] = work(self)
        return answer


def size_of(headers: Iterable[RawHeader]) -> int:
    """As SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 §6.5.2)."""
    return sum([len(name) + len(value) + FIELD_OVERHEAD for name, value in headers])


def check_fields(headers: Iterable[object]) -> None:
    """Raise `TypeError` if one of these is no header field, a pair of bytes. The message shows names, and no values."""
    for field in headers:
        if not isinstance(field, tuple) or len(field) != 2:
            what = f"a tuple of {len(field)}" if isinstance(field, tuple) else type(field).__name__
            raise TypeError(f"a header field is a tuple of two bytes, its name and its value, not {what}")
        name, value = field
        if not isinstance(name, bytes):
            shown = f" ({name[:64]!r})" if isinstance(name, str) else ""
            raise TypeError(f"the name of a header field is bytes, not {type(name).__name__}{shown}")
        if not isinstance(value, bytes):
            raise TypeError(
                f"the value of the header field {name[:64]!r} is bytes, not {type(value).__name__}"
            )


def strip_hop_by_hop(headers: Headers) -> Headers:
    """Drop what concerns only the connection it came on, and whatever a `connection` header names.

    Answers the very list it was given if there is nothing to drop.
    """
    kept = [header for header in headers if header[0] not in HOP_BY_HOP]
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
    letter answer with the end of the whole connection. gRPC allows to strip them; those of a grpc-message, which is a
    text, are percent-encoded instead. Answers the very list it was given if there is nothing to change.
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
        if name == b"grpc-message":
            # Here they are part of a text, and the text has a way to write them.
            before = value[: len(value) - len(value.lstrip(b" \t"))]
            after = value[len(before) + len(trimmed) :]
            trimmed = _escaped(before) + trimmed + _escaped(after)
        return (name, trimmed) if kind is tuple else kind(name, trimmed)
    return header


def _escaped(blanks: bytes) -> bytes:
    return blanks.replace(b" ", b"%20").replace(b"\t", b"%09")
