"""The fields that a line of the call log may have, and the one function that a choice of them is made into.

What it does not do: decide which calls have a line, or write it. The invariant: whatever a peer sends, the value of a
field is one word, or a quoted text without a line's end.
"""

import difflib
import json
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal

import attrs

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.words import cut
from rawgrpc_proxy.peer_identity import identity_of

_REMEMBERED_CHARACTERS = 256
"""Of a text; longer ones are looked at each time, for they are mostly made up."""
_WORD = re.compile(r"[!#-<>-\[\]-~]+")
"""Printable ASCII without blanks, quotation marks, equals signs and backslashes."""
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-|\Z)")
"""W3C Trace Context §3.2."""
quoted = json.JSONEncoder().encode  # `json.dumps` would look at its options each time

Line = Callable[[CallRecord], str]
"""A record in the words of a log: some fields of it."""


@attrs.frozen(kw_only=True)
class Field:
    """A field: how it is found, and what it costs."""

    meaning: str
    value: Callable[[CallRecord], str | float | None]
    """None: the call has none."""
    envoy: str = ""
    """The operator of Envoy's access log that is the same, or nearly."""
    kind: Literal["text", "count", "milliseconds", "moment"] = "text"
    wants: frozenset[str] = frozenset()
    """What has to be collected for it, see `ServerObserver.wants`."""
    of_the_end: bool = False
    """A call that is still open has none."""


def _header(record: CallRecord, name: bytes) -> str | None:
    """The first value of this name."""
    if record.extras is not None:
        for key, value in record.extras.headers:
            if key == name:
                return value.decode("utf-8", "backslashreplace")
    return None


def _trace_id(record: CallRecord) -> str | None:
    if record.trace is not None:
        return record.trace.trace_id.hex()
    if record.extras is not None:
        for key, value in record.extras.headers:
            if key == b"traceparent":
                found = _TRACEPARENT.match(value)
                return None if found is None else found[1].decode()
    return None


def _time_to_first_byte_ms(record: CallRecord) -> float | None:
    extras = record.extras
    if extras is None or extras.first_byte_at is None:
        return None
    return (extras.first_byte_at - extras.started) * 1e3


def _tls_subject(record: CallRecord) -> str | None:
    identity = None if record.extras is None else identity_of(record.extras.tls_peer)
    return None if identity is None else identity.subject or None


_EXTRAS = frozenset({"extras"})
_MESSAGES = frozenset({"messages"})

FIELDS = {
    "start_time": Field(
        meaning="When the request headers came.",
        value=lambda record: time.time() - record.duration_s,
        envoy="%START_TIME%",
        kind="moment",
    ),
    "method": Field(
        meaning="The path of the request: `/package.Service/Method`.",
        value=lambda record: record.method,
        envoy="%REQ(:PATH)%",
    ),
    "authority": Field(
        meaning="The `:authority` of the request, or its `host`.",
        value=lambda record: _header(record, b":authority") or _header(record, b"host"),
        envoy="%REQ(:AUTHORITY)%",
        wants=_EXTRAS,
    ),
    "route": Field(
        meaning="The `match` of the route that took the call; its number behind it, if others have the same.",
        value=lambda record: None if record.extras is None else record.extras.route,
        envoy="%ROUTE_NAME%",
        wants=_EXTRAS | {"routes"},
    ),
    "cluster": Field(
        meaning="The cluster that the route leads to.",
        value=lambda record: None if record.extras is None else record.extras.cluster,
        envoy="%UPSTREAM_CLUSTER%",
        wants=_EXTRAS | {"routes"},
    ),
    "peer": Field(
        meaning="Who calls: `HOST:PORT`, or `unix:`.",
        value=lambda record: record.peer,
        envoy="%DOWNSTREAM_REMOTE_ADDRESS%",
    ),
    "upstream": Field(
        meaning="The endpoint that the call went to, or would have.",
        value=lambda record: record.upstream,
        envoy="%UPSTREAM_HOST%",
    ),
    "status": Field(
        meaning="The gRPC status, by its name.",
        value=lambda record: record.status.name,
        envoy="%GRPC_STATUS%",
        of_the_end=True,
    ),
    "origin": Field(
        meaning="Who made the status: see below.",
        value=lambda record: record.origin,
        of_the_end=True,
    ),
    "cause": Field(
        meaning="The frame or the limit that it comes of, where whoever made it did not wish it so: see below.",
        value=lambda record: record.cause or None,
        of_the_end=True,
    ),
    "detail": Field(
        meaning="The message of the status, or the cause that the caller was not told.",
        value=lambda record: record.detail or None,
        envoy="%RESPONSE_CODE_DETAILS%",
        of_the_end=True,
    ),
    "flags": Field(
        meaning="Why the proxy has ended the call: see below.",
        value=lambda record: None if record.extras is None else record.extras.flag or None,
        envoy="%RESPONSE_FLAGS%",
        wants=_EXTRAS,
        of_the_end=True,
    ),
    "request_bytes": Field(
        meaning="DATA of the request, gRPC's prefixes of five bytes included.",
        value=lambda record: record.request_bytes,
        envoy="%BYTES_RECEIVED%",
        kind="count",
    ),
    "request_messages": Field(
        meaning="Messages of the request. `20+`: at least so many; in JSON `messages_are_exact` is false then.",
        value=lambda record: record.request_messages,
        kind="count",
        wants=_MESSAGES,
    ),
    "response_bytes": Field(
        meaning="DATA of the response.",
        value=lambda record: record.response_bytes,
        envoy="%BYTES_SENT%",
        kind="count",
    ),
    "response_messages": Field(
        meaning="Messages of the response.",
        value=lambda record: record.response_messages,
        kind="count",
        wants=_MESSAGES,
    ),
    "duration_ms": Field(
        meaning="From the request headers to the end of the response, in milliseconds.",
        value=lambda record: record.duration_s * 1e3,
        envoy="%DURATION%",
        kind="milliseconds",
    ),
    "time_to_first_byte_ms": Field(
        meaning="From the request headers to the response headers of the upstream.",
        value=_time_to_first_byte_ms,
        envoy="%RESPONSE_DURATION%",
        kind="milliseconds",
        wants=_EXTRAS | {"first_byte"},
    ),
    "attempts": Field(
        meaning="How often the call was sent upstream: 0, 1, or 2.",
        value=lambda record: None if record.extras is None else record.extras.attempts,
        envoy="%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        kind="count",
        wants=_EXTRAS,
    ),
    "user_agent": Field(
        meaning="The `user-agent` of the request.",
        value=lambda record: _header(record, b"user-agent"),
        envoy="%REQ(USER-AGENT)%",
        wants=_EXTRAS,
    ),
    "trace_id": Field(
        meaning="The trace id in the request's `traceparent` (W3C Trace Context), or of the trace that begins here.",
        value=_trace_id,
        envoy="%TRACE_ID%",
        wants=_EXTRAS,
    ),
    "tls_subject": Field(
        meaning="The subject of the caller's certificate, as in RFC 4514: `CN=orders,O=Example`.",
        value=_tls_subject,
        envoy="%DOWNSTREAM_PEER_SUBJECT%",
        wants=_EXTRAS,
    ),
    "stream_id": Field(
        meaning="The HTTP/2 stream of the caller's connection.",
        value=lambda record: None if record.extras is None else record.extras.stream_id,
        envoy="%STREAM_ID%",
        kind="count",
        wants=_EXTRAS,
    ),
}
"""By name, in the order of the documentation."""

_ENVOYS = {
    "bytes_received": "request_bytes",
    "bytes_sent": "response_bytes",
    "downstream_peer_subject": "tls_subject",
    "downstream_remote_address": "peer",
    "duration": "duration_ms",
    "grpc_status": "status",
    "path": "method",
    "response_code_details": "detail",
    "response_duration": "time_to_first_byte_ms",
    "response_flags": "flags",
    "route_name": "route",
    "upstream_cluster": "cluster",
    "upstream_host": "upstream",
    "upstream_request_attempt_count": "attempts",
}
"""What people try who know Envoy."""


def check_fields(names: Iterable[str]) -> None:
    """Raise `ConfigError` for a name that is none, and for one that comes twice."""
    seen: set[str] = set()
    for name in names:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, list(FIELDS), n=1)
            meant = _ENVOYS.get(name.strip("%").lower()) or "".join(close)
            hint = f" (did you mean {meant}?)" if meant else ""
            raise ConfigError(f"{name!r} is no field of the log{hint}; there are: {', '.join(FIELDS)}")
        if name in seen:
            raise ConfigError(f"{name!r} comes twice")
        seen.add(name)


def line_of(names: Iterable[str], *, as_json: bool, open_call: bool = False) -> Line:
    """What makes these fields of a record: `name=value` each, or members of an object of JSON, without its braces.

    With `open_call` only those that a call has which has not ended.
    """
    chosen = [name for name in names if not (open_call and FIELDS[name].of_the_end)]
    make, between = (_json_part, ", ") if as_json else (_text_part, " ")
    parts = [make(name, FIELDS[name]) for name in chosen]
    if as_json and any("messages" in FIELDS[name].wants for name in chosen):
        return lambda record: (
            between.join([part(record) for part in parts])
            + ("" if record.messages_are_exact else ', "messages_are_exact": false')
        )
    return lambda record: between.join([part(record) for part in parts])


def _json_part(name: str, field: Field) -> Line:
    value = field.value
    head = f"{quoted(name)}: "
    nothing = f"{head}null"
    form = head + ("%d" if field.kind == "count" else "%.3f")

    def number(record: CallRecord) -> str:
        found = value(record)
        return nothing if found is None else form % found

    def text(record: CallRecord) -> str:
        found = value(record)
        return nothing if found is None else head + quoted(cut(str(found)))

    return text if field.kind == "text" else number


def _text_part(name: str, field: Field) -> Line:
    value = field.value
    head = f"{name}="
    nothing = f"{head}-"
    form = head + ("%d" if field.kind == "count" else "%.1f")

    def number(record: CallRecord) -> str:
        found = value(record)
        return nothing if found is None else form % found

    def messages(record: CallRecord) -> str:
        return number(record) + ("" if record.messages_are_exact else "+")

    def moment(record: CallRecord) -> str:
        found = float(value(record) or 0)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found))
        return f"{head}{stamp}.{int(found % 1 * 1000):03d}Z"

    def text(record: CallRecord) -> str:
        found = value(record)
        if found is None:
            return nothing
        told = str(found)
        return head + (_shown(told) if len(told) <= _REMEMBERED_CHARACTERS else _word_or_quoted(told))

    if field.kind == "count":
        return messages if "messages" in field.wants else number
    return {"text": text, "moment": moment}.get(field.kind, number)


def _word_or_quoted(text: str) -> str:
    told = cut(text)
    return told if _WORD.fullmatch(told) and told != "-" else quoted(told)


_shown = lru_cache(maxsize=1024)(_word_or_quoted)
"""Methods, addresses and the like come again and again."""
