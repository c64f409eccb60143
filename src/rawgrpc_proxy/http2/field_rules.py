"""The rules for header and trailer fields (RFC 9113 §8.1 to §8.3), checked per stream.

Each check answers None, or a sentence that says what is wrong. A malformed list is an error of its stream and never
of the connection: one peer's strange value must not end the calls of everybody who shares the connection with it.
What it does not check: what gRPC asks beyond HTTP/2 (method, path, content-type). The server does that, with an
answer instead of a reset.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

from rawgrpc_proxy.http2.headers import Headers

# RFC 9110 §5.6.2 tokens without upper case (RFC 9113 §8.2.1).
_NAME = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+\Z")
# RFC 9113 §8.2.1 forbids NUL, CR and LF; the other control characters (RFC 9110 §5.5) have no business here either.
_BAD_IN_VALUE = bytes({*range(0x20), 0x7F} - {0x09})
_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_TE_TRAILERS = (b"te", b"trailers")
# RFC 3986 §3.2 without user information (RFC 9113 §8.3.1). A comma, which the letter allows in a name, is none here: it
# is how two values of one field are joined; but for what follows.
_AUTHORITY = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+(?:%25[\w.~%-]+)?\]|[A-Za-z0-9._~%!$&'()*+;=-]+)(?::([0-9]{0,5}))?\Z"
)
# What gRPC's C core sends for a target of several addresses ("ipv4:10.0.0.7:443,10.0.0.8:443"), which names no host. As
# a Host field it would be two values.
_ADDRESS = rb"(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+\]):\d{1,5}"
_ADDRESSES = re.compile(_ADDRESS + rb"(?:," + _ADDRESS + rb")+\Z")
_SCHEME = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*\Z")  # RFC 3986 §3.1
_ONCE = frozenset({b"host", b"content-type", b"grpc-timeout"})
"""Fields of a request of which a second one would let two readers read two different things."""
_NOT_IN_TRAILERS = frozenset({b"content-length", b"host", b"content-type", b"te"})  # RFC 9110 §6.5.1
_FIELD_BYTES = 150
"""A field's tuple and its two bytes objects, beyond its bytes."""
_known_authorities: set[bytes] = set()
_MAX_KNOWN_AUTHORITIES = 256
_MAX_PORT = 65_535
_known_names: set[bytes] = set()
_MAX_KNOWN_NAMES = 1024


Rule = Callable[[Headers], str | None]
Limits = tuple[int, int]
"""How many fields a list may have, and how many bytes all names and values together."""


class Excess(NamedTuple):
    """What of a list is too much: the setting that limits it, and both numbers in words."""

    limit: str
    text: str


class CheckedFields(NamedTuple):
    """A header list held against a rule and limits: what is wrong, what is too much, the body it declares."""

    problem: str | None
    excess: Excess | None
    content_length: int | None
    held_bytes: int
    """What it takes to hold the list, about."""


Check = Callable[[Headers], CheckedFields]


class Checks(NamedTuple):
    """What a session holds its peer's lists against. One for each pair of limits, so that each check is a `once`."""

    request: Check
    response: Check
    request_trailers: Check
    response_trailers: Check


@cache
def checks_for(limits: Limits) -> Checks:
    """The checks by these limits. A process has few of those."""
    return Checks(
        partial(check, request_problem, limits),
        partial(check, response_problem, limits),
        partial(check, request_trailers_problem, limits),
        partial(check, trailers_problem, limits),
    )


def check(rule: Rule, limits: Limits, headers: Headers) -> CheckedFields:
    """Hold the list against `request_problem`, `response_problem` or `trailers_problem`, and against the limits."""
    max_fields, max_bytes = limits
    fields, size = len(headers), len(b"".join(chain.from_iterable(headers)))
    excess = None
    if fields > max_fields:
        excess = Excess("max_header_fields", f"{fields} fields; max_header_fields is {max_fields}")
    elif size > max_bytes:
        excess = Excess("max_header_list_bytes", f"{size} bytes; max_header_list_bytes is {max_bytes}")
    return CheckedFields(rule(headers), excess, content_length(headers), size + _FIELD_BYTES * fields)


def request_problem(headers: Headers) -> str | None:
    """What makes these request headers malformed (RFC 9113 §8.3.1)."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name[:1] != b":":
            break
        if name not in _REQUEST_PSEUDO:
            return f"{_show(name)} is no pseudo-field of a request"
        if name in seen:
            return f"{_show(name)} comes twice"
        seen.add(name)
    pseudo, regular = headers[: len(seen)], headers[len(seen) :]
    if _has_bad(b"".join([value for _, value in pseudo])):
        return "the value of a pseudo-field has control characters"
    problem = _regular_problem(regular, "comes after regular fields")
    if problem is not None:
        return problem
    if len(seen) < 4 and not seen >= {b":method", b":scheme", b":path"}:
        return ":method, :scheme or :path is missing"
    names = [name for name, _ in regular]
    if len({*names}) < len(names) and not _ONCE.isdisjoint(names):
        for name in _ONCE:
            if names.count(name) > 1:
                return f"{_show(name)} comes twice"
    return _target_problem(dict(pseudo), dict(regular).get(b"host"))


def _target_problem(pseudo: dict[bytes, bytes], host: bytes | None) -> str | None:
    """What is wrong with whom the request is for (RFC 9113 §8.3.1)."""
    if not pseudo[b":path"]:
        return "the :path is empty"
    scheme = pseudo[b":scheme"]
    if scheme not in {b"http", b"https"} and not _SCHEME.match(scheme):
        return f"the :scheme is {_show(scheme)}"
    authority = pseudo.get(b":authority", host)
    if authority is None:
        return "there is neither :authority nor host"
    if (
        authority not in _known_authorities
        and not _is_authority(authority)
        and (host is not None or not _ADDRESSES.match(authority))
    ):
        return f"the :authority, or the host, is {_show(authority)}: a name or an address, and maybe a port"
    if host is not None and host.lower() != authority.lower():
        return f"the host is {_show(host)}, and the :authority {_show(authority)}"
    return None


def _is_authority(authority: bytes) -> bool:
    match = _AUTHORITY.match(authority)
    if match is None or int(match[1] or 0) > _MAX_PORT:
        return False
    if len(_known_authorities) < _MAX_KNOWN_AUTHORITIES and len(authority) <= 64:
        _known_authorities.add(authority)
    return True


def response_problem(headers: Headers) -> str | None:
    """What makes these response headers malformed (RFC 9113 §8.3.2)."""
    if not headers or headers[0][0] != b":status":
        return "a response does not begin with :status"
    status = headers[0][1]
    if len(status) != 3 or not status.isdigit() or not b"100" <= status <= b"599" or status == b"101":
        # RFC 9110 §15; 101 is not for HTTP/2 (RFC 9113 §8.6).
        return f":status is {_show(status)}"
    return trailers_problem(headers[1:])


def request_trailers_problem(headers: Headers) -> str | None:
    """What makes these trailers of a request malformed: as of any, and fields that tell where or how it is read."""
    problem = trailers_problem(headers)
    if problem is not None:
        return problem
    for name, _ in headers:
        if name in _NOT_IN_TRAILERS:
            return f"{_show(name)} has no place in trailers (RFC 9110 §6.5.1)"
    return None


def trailers_problem(headers: Headers) -> str | None:
    """What makes these trailers malformed: any pseudo-field, or a bad regular field (RFC 9113 §8.1)."""
    return _regular_problem(headers, "is out of place")


def _regular_problem(headers: Headers, of_a_pseudo_field: str) -> str | None:
    # Nearly always all are well-known and well-formed, which a look at all of them together tells.
    names = [name for name, _ in headers]
    if (
        _known_names.issuperset(names)
        and names.count(b"te") == headers.count(_TE_TRAILERS)
        and not _has_bad(b"\t".join([value for _, value in headers]))
    ):
        return None
    for name, value in headers:
        if name[:1] == b":":
            return f"the pseudo-field {_show(name)} {of_a_pseudo_field}"
        problem = _field_problem(name, value)
        if problem is not None:
            return problem
    return None


def content_length(headers: Headers) -> int | None:
    """The declared length of the body, None if none is declared, -1 if what is declared makes no sense."""
    declared: int | None = None
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < 19 else -1
            if declared is not None and declared != length:
                return -1
            declared = length
    return declared


def _field_problem(name: bytes, value: bytes) -> str | None:
    if name not in _known_names:
        if not _NAME.match(name):
            return f"{_show(name)} is no field name: lower-case letters, digits and a few marks only"
        if name in _CONNECTION_SPECIFIC:
            return f"{_show(name)} belongs to HTTP/1.1 connections (RFC 9113 §8.2.2)"
        if len(_known_names) < _MAX_KNOWN_NAMES and len(name) <= 64:
            _known_names.add(name)
    if _has_bad(value):
        return f"the value of {_show(name)} has control characters"
    if name == b"te" and value.lower() != b"trailers":
        return "te may only say trailers (RFC 9113 §8.2.2)"
    return None


def _has_bad(value: bytes) -> bool:
    # `translate` is several times as fast as a regular expression, and finds the same.
    return len(value.translate(None, _BAD_IN_VALUE)) != len(value)


def _show(text: bytes) -> str:
    return repr(text[:64].decode("latin-1"))
