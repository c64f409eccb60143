"""What is wrong with a header list: rules and what was seen. Pure, total over any bytes, and without state.

The invariant: values that are secrets by their names (`redact.py`) are in nothing that is told.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.lab.redact import REDACTED, Redactor

Broken = tuple[str, str]
"""A rule's id, and what was seen."""

_NAME = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+\Z")  # RFC 9110 §5.6.2, lower-case
_UPPER = re.compile(rb"[A-Z]")
_CONNECTION = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_OF_REQUEST = frozenset({b":method", b":scheme", b":path", b":authority"})
_MUST_OF_REQUEST = (b":method", b":scheme", b":path")
_OF_RESPONSE = frozenset({b":status"})
_PATH = re.compile(rb"(?:/[^/?#\x00-\x20\x7f]+){2,}\Z")
_TIMEOUT = re.compile(rb"[0-9]{1,8}[HMSmun]\Z")
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?\Z", re.IGNORECASE | re.DOTALL)
_PERCENT_ENCODED = re.compile(rb"(?:[\x20-\x24\x26-\x7e]|%[0-9A-Fa-f]{2})*\Z")
_ASCII = re.compile(rb"[\x20-\x7e\t]*\Z")
_FORBIDDEN = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_END = rb"[A-Za-z0-9+/]{3}=?|[A-Za-z0-9+/]{2}(?:==)?"
_PART = rb"[ \t]*(?:(?:(?:[A-Za-z0-9+/]{4})+(?:%b)?|%b)[ \t]*)?" % (_END, _END)
_BASE64 = re.compile(rb"%b(?:,%b)*\Z" % (_PART, _PART))
"""Several values may be one, with commas between them; padding may be left out. Nothing in it can be read in two ways,
so a value takes no longer than its length."""
_RESERVED = b"grpc-"
_KNOWN_RESERVED = frozenset(
    {
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"grpc-message-type",
        b"grpc-status",
        b"grpc-message",
        b"grpc-status-details-bin",
        b"grpc-previous-rpc-attempts",
        b"grpc-retry-pushback-ms",
        b"grpc-trace-bin",
        b"grpc-tags-bin",
        b"grpc-server-stats-bin",
        b"grpc-internal-encoding-request",
        b"grpc-internal-stream-encoding-request",
    }
)
"""Of gRPC's documents and its implementations."""
_MAX_STATUS = 16
_FIELD_OVERHEAD = 32
_SECRETS = Redactor()
_TABLE_BYTES = 4096
"""Of HPACK, unless a peer allows more, as some do to the proxy."""


def request_problems(headers: Sequence[RawHeader]) -> Iterator[Broken]:
    """Of a request's headers."""
    yield from _pseudo_problems(headers, _OF_REQUEST, _MUST_OF_REQUEST)
    yield from _field_problems(headers)
    method, path = first(headers, b":method"), first(headers, b":path")
    if method is not None and method != b"POST":
        yield "method-not-post", f":method is {show(method)}"
    if path is not None and not _fits(_PATH, path):
        yield "path-shape", f":path is {show(path)}"
    yield from _content_type_problems(headers)
    if first(headers, b"te") is None:
        yield "te-missing", "there is no te"
    for value in values(headers, b"grpc-timeout"):
        if not _TIMEOUT.match(value):
            yield "timeout-form", f"grpc-timeout is {show(value)}"
    if first(headers, b"user-agent") is None:
        yield "user-agent-missing", "there is no user-agent"


def response_problems(headers: Sequence[RawHeader], *, is_all: bool) -> Iterator[Broken]:
    """Of a response's headers; `is_all`: they end it, and so are its trailers, too."""
    yield from _pseudo_problems(headers, _OF_RESPONSE, (b":status",))
    yield from _field_problems(headers)
    status = first(headers, b":status")
    if status is not None and status != b"200":
        yield "http-status", f":status is {show(status)}"
    else:
        yield from _content_type_problems(headers)
    if first(headers, b"grpc-status") is not None and not is_all:
        yield "trailers-only-split", "grpc-status is in headers without END_STREAM"
    yield from _status_problems(headers)


def trailers_problems(headers: Sequence[RawHeader], *, are_of_response: bool) -> Iterator[Broken]:
    """Of the trailers of a request or a response."""
    for name, value in headers:
        if name.startswith(b":"):
            yield "trailers-pseudo-header", f"trailers have {_field(name, value)}"
    yield from _field_problems(headers)
    if are_of_response:
        yield from _status_problems(headers)


def header_list_bytes(headers: Sequence[RawHeader]) -> int:
    """As SETTINGS_MAX_HEADER_LIST_SIZE counts (RFC 9113 §6.5.2)."""
    return sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in headers)


def first(headers: Sequence[RawHeader], name: bytes) -> bytes | None:
    """The first value of this name."""
    return next(iter(values(headers, name)), None)


def values(headers: Sequence[RawHeader], name: bytes) -> list[bytes]:
    """All values of this name."""
    return [value for each, value in headers if each == name]


def show(value: bytes) -> str:
    """In quotes, and not all of it if it is long."""
    text = value[:64].decode("latin-1")
    return repr(text if len(value) <= 64 else f"{text}…")


def _field(name: bytes, value: bytes) -> str:
    """`'name': 'value'`; a secret is not shown."""
    return f"{show(name)}: {_value(name, value)}"


def _value(name: bytes, value: bytes) -> str:
    return REDACTED if _SECRETS.is_secret(name.decode("latin-1")) else show(value)


def _pseudo_problems(
    headers: Sequence[RawHeader], known: frozenset[bytes], needed: Sequence[bytes]
) -> Iterator[Broken]:
    seen: set[bytes] = set()
    regular: bytes | None = None
    for name, value in headers:
        if not name.startswith(b":"):
            regular = name
            continue
        if name not in known:
            yield "pseudo-header-unknown", _field(name, value)
        elif name in seen:
            yield "pseudo-header-duplicate", f"{show(name)} again: {_value(name, value)}"
        elif regular is not None:
            yield "pseudo-header-order", f"{show(name)} is behind {show(regular)}"
        seen.add(name)
    missing = [show(name) for name in needed if name not in seen]
    if missing:
        yield "pseudo-header-missing", f"there is no {' and no '.join(missing)}"


def _fits(pattern: re.Pattern[bytes], value: bytes) -> bool:
    return _known_fits(pattern, value) if len(value) <= _TABLE_BYTES else _looks_so(pattern, value)


def _looks_so(pattern: re.Pattern[bytes], value: bytes) -> bool:
    return pattern.match(value) is not None


_known_fits = lru_cache(256)(_looks_so)


def _field_problems(headers: Sequence[RawHeader]) -> Iterator[Broken]:
    for name, value in headers:
        # Most fields come again and again, and a peer says one that is in its table in a byte.
        may_be_in_table = len(name) + len(value) <= _TABLE_BYTES
        yield from _known_problems(name, value) if may_be_in_table else _problems_of(name, value)


def _problems_of(name: bytes, value: bytes) -> Sequence[Broken]:
    """Of one field."""
    problems: list[Broken] = []
    if name.startswith(b":"):
        if _FORBIDDEN.search(value):
            problems.append(("header-value-invalid", f"{show(name)} is {_value(name, value)}"))
    elif _UPPER.search(name):
        problems.append(("header-name-uppercase", f"a name is {show(name)}"))
    elif not _NAME.match(name):
        problems.append(("header-name-invalid", f"a name is {show(name)}"))
    elif name in _CONNECTION:
        problems.append(("connection-header", _field(name, value)))
    elif name == b"te" and value.lower() != b"trailers":
        problems.append(("te-value", f"te is {show(value)}"))
    elif _FORBIDDEN.search(value):
        problems.append(("header-value-invalid", f"{show(name)} is {_value(name, value)}"))
    elif name.endswith(b"-bin"):
        if not _BASE64.match(value):
            problems.append(("binary-metadata", f"{show(name)} is {_value(name, value)}"))
    elif name != b"grpc-message" and not _ASCII.match(value):
        problems.append(("metadata-not-ascii", f"{show(name)} is {_value(name, value)}"))
    if name.startswith(_RESERVED) and name not in _KNOWN_RESERVED:
        problems.append(("reserved-metadata", _field(name, value)))
    return problems


_known_problems = lru_cache(256)(_problems_of)


def _content_type_problems(headers: Sequence[RawHeader]) -> Iterator[Broken]:
    types = values(headers, b"content-type")
    if not types:
        yield "content-type-missing", "there is no content-type"
    elif not _fits(_CONTENT_TYPE, types[0]):
        yield "content-type-invalid", f"content-type is {show(types[0])}"
    if len(types) > 1:
        yield "content-type-duplicate", f"content-type is {' and '.join(map(show, types[:4]))}"


def _status_problems(headers: Sequence[RawHeader]) -> Iterator[Broken]:
    statuses, messages = values(headers, b"grpc-status"), values(headers, b"grpc-message")
    if len(statuses) > 1:
        yield "grpc-status-duplicate", f"grpc-status is {' and '.join(map(show, statuses[:4]))}"
    for status in statuses:
        # A leading zero is none of gRPC's decimal numbers.
        if (
            not status.isdigit()
            or len(status) > 2
            or int(status) > _MAX_STATUS
            or b"%d" % int(status) != status
        ):
            yield "grpc-status-range", f"grpc-status is {show(status)}"
    for message in messages:
        if not _fits(_PERCENT_ENCODED, message):
            yield "grpc-message-encoding", f"grpc-message is {show(message)}"
    if messages and not statuses:
        yield "grpc-message-without-status", f"grpc-message is {show(messages[0])}"
