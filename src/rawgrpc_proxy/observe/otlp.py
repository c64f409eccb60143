"""OTLP: spans of calls as the protobuf that collectors read, and what they answer to it.

Only what a span of a call has; a dozen fields need no library, and none of those that there are does without threads
and grpcio (see ARCHITECTURE.md). What it does not do: choose calls (`tracing.py`), or send anything.

The invariants: a span has no more than 6 KiB, whatever callers and upstreams send; its texts are UTF-8, or its batch
would be turned away as a whole.

Owns: `opentelemetry/proto/trace/v1`, `collector/trace/v1` (OTLP 1), and OpenTelemetry's semantic conventions for gRPC,
version 1.45, beside those names of 1.37 that mean nothing else today.
"""

import ipaddress
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.trace_context import Trace

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SCHEMA: Final = "https://opentelemetry.io/schemas/1.45.0"
_LONGEST_TEXT = 256
"""Characters of a name, an address or a message."""
_LONGEST_PEER = 64
_SERVER, _CLIENT = 2, 3
"""Kinds of spans."""
_IS_KNOWN, _IS_REMOTE = 0x100, 0x200
"""Flags of a span: whether its parent is another process's is told, and whether it is."""
_ERROR = 2
_SERVER_ERRORS = frozenset(
    (
        Status.UNKNOWN,
        Status.DEADLINE_EXCEEDED,
        Status.UNIMPLEMENTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
        Status.DATA_LOSS,
    )
)
"""What is the server's failure and not the caller's."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_times = struct.Struct("<BQBQ").pack
_MOST_SHIFTS = 63


@attrs.frozen
class PartialSuccess:
    """What a collector did not take of a batch that it took."""

    rejected: int
    message: str


def spans_of(trace: Trace, record: CallRecord) -> list[bytes]:
    """The spans of a call that has ended: the server's, and the client's if anything was sent upstream."""
    end_ns = trace.started_ns + int(record.duration_s * 1e9)
    known = record.upstream is not None or record.status is not Status.UNIMPLEMENTED
    call = _of_call(record.method[: _LONGEST_TEXT + 1], known)
    status = _of_status(record.status)
    remote = _IS_KNOWN | _IS_REMOTE if trace.parent_id else _IS_KNOWN
    server = [
        _ids(trace, trace.server_id, trace.parent_id, remote),
        _moments(_SERVER, trace.started_ns, end_ns),
        call,
        status,
        _of_callee(trace.authority[:_LONGEST_TEXT]),
        _of_caller(record.peer[:_LONGEST_PEER]),
        _of_origin(record.origin[:_LONGEST_PEER]),
    ]
    if record.cause:
        server.append(_of_cause(record.cause[:_LONGEST_PEER]))
    if record.status in _SERVER_ERRORS:
        server.append(_failure(record))
    spans = [b"".join(server)]
    if trace.sent_after_s is not None and record.upstream is not None:
        sent_ns = min(trace.started_ns + int(trace.sent_after_s * 1e9), end_ns)
        client = [
            _ids(trace, trace.client_id, trace.server_id, _IS_KNOWN),
            _moments(_CLIENT, sent_ns, end_ns),
            call,
            status,
            _of_upstream(record.upstream[:_LONGEST_TEXT]),
        ]
        if record.status is not Status.OK:
            client.append(_failure(record))
        spans.append(b"".join(client))
    return spans


def request_head(resource: Mapping[str, str], version: str) -> tuple[bytes, bytes]:
    """What every request of a process has: its resource, and the scope of its spans."""
    attributes = b"".join(_bytes(1, _key_value(key, value)) for key, value in resource.items())
    scope = _text(1, "rawgrpc_proxy") + _text(2, version)
    return _bytes(1, attributes), _bytes(1, scope)


def request_of(head: tuple[bytes, bytes], spans: Iterable[bytes]) -> bytes:
    """An ExportTraceServiceRequest with these spans."""
    resource, scope = head
    scope_spans = scope + b"".join(_bytes(2, span) for span in spans) + _text(3, SCHEMA)
    return _bytes(1, resource + _bytes(2, scope_spans) + _text(3, SCHEMA))


def partial_success_in(response: bytes) -> PartialSuccess | None:
    """What an ExportTraceServiceResponse objects to; None if nothing, or if it cannot be read."""
    try:
        told = dict(_fields(response)).get(1)
        if not isinstance(told, bytes):
            return None
        fields = dict(_fields(told))
    except ValueError:
        return None
    rejected, message = fields.get(1, 0), fields.get(2, b"")
    if not isinstance(rejected, int) or not isinstance(message, bytes) or not (rejected or message):
        return None
    return PartialSuccess(rejected, message[:_LONGEST_TEXT].decode("utf-8", "replace"))


# ------------------------------------------------------------------ parts of a span


def _ids(trace: Trace, span_id: bytes, parent_id: bytes, flags: int) -> bytes:
    ids = [b"\x0a\x10", trace.trace_id, b"\x12\x08", span_id]
    if trace.state:
        ids.append(_text(3, trace.state))
    if parent_id:
        ids += b"\x22\x08", parent_id
    ids.append(_tag(16, _FIXED32) + struct.pack("<I", flags | trace.flags))
    return b"".join(ids)


def _moments(kind: int, start_ns: int, end_ns: int) -> bytes:
    return b"\x30%c" % kind + _times(7 << 3 | _FIXED64, start_ns, 8 << 3 | _FIXED64, end_ns)


@lru_cache(maxsize=1024)
def _of_call(path: str, known: bool) -> bytes:
    """The name and what is said of the method. Of one that nobody here serves, the name is its caller's invention."""
    method = path.removeprefix("/")[:_LONGEST_TEXT]
    fixed = [
        _attribute("rpc.system.name", "grpc"),
        _attribute("rpc.system", "grpc"),
        _attribute("network.protocol.name", "http"),
        _attribute("network.protocol.version", "2"),
    ]
    if not known:
        return b"".join(
            (
                _text(5, "grpc"),
                *fixed,
                _attribute("rpc.method", "_OTHER"),
                _attribute("rpc.method_original", method),
            )
        )
    service = _attribute("rpc.service", method.rpartition("/")[0])
    return b"".join((_text(5, method), *fixed, service, _attribute("rpc.method", method)))


@lru_cache(maxsize=32)
def _of_status(status: Status) -> bytes:
    return _attribute("rpc.response.status_code", status.name) + _attribute(
        "rpc.grpc.status_code", int(status)
    )


def _failure(record: CallRecord) -> bytes:
    told = _text(2, record.detail[:_LONGEST_TEXT]) if record.detail else b""
    return _attribute("error.type", record.status.name) + _bytes(15, told + bytes((3 << 3, _ERROR)))


@lru_cache(maxsize=256)
def _of_callee(authority: str) -> bytes:
    host, port = _host_and_port(authority)
    return _place("server", host, port) if host else b""


@lru_cache(maxsize=1024)
def _of_caller(peer: str) -> bytes:
    if peer.startswith("unix:"):
        return _attribute("network.transport", "unix")
    host, port = _host_and_port(peer)
    return (
        _attribute("network.transport", "tcp")
        + _place("client", host, port)
        + _place("network.peer", host, port)
    )


@lru_cache(maxsize=1024)
def _of_upstream(address: str) -> bytes:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return (
            _attribute("network.transport", "unix")
            + _place("server", path, None)
            + _place("network.peer", path, None)
        )
    host, port = _host_and_port(address)
    told = _attribute("network.transport", "tcp") + _place("server", host, port)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return told  # a name: which of its addresses the connection goes to is not known here
    return told + _place("network.peer", host, port)


@lru_cache(maxsize=64)
def _of_origin(origin: str) -> bytes:
    return _attribute("rawgrpc_proxy.status_origin", origin)


@lru_cache(maxsize=256)
def _of_cause(cause: str) -> bytes:
    return _attribute("rawgrpc_proxy.status_cause", cause)


def _place(name: str, host: str, port: int | None) -> bytes:
    address = _attribute(f"{name}.address", host)
    return address if port is None else address + _attribute(f"{name}.port", port)


def _host_and_port(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > len("65535"):
        host, port = text, ""
    return host.removeprefix("[").removesuffix("]"), int(port) if port else None


# ------------------------------------------------------------------------- protobuf


def _attribute(key: str, value: str | int) -> bytes:
    return _bytes(9, _key_value(key, value))


def _key_value(key: str, value: str | int) -> bytes:
    any_value = _text(1, value) if isinstance(value, str) else _tag(3, _VARINT) + _varint(value)
    return _text(1, key) + _bytes(2, any_value)


def _text(number: int, text: str) -> bytes:
    return _bytes(number, text.encode("utf-8", "replace"))


def _bytes(number: int, payload: bytes) -> bytes:
    return _tag(number, _LENGTH) + _varint(len(payload)) + payload


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    if value < 0x80:  # noqa: PLR2004  # seven bits in a byte
        return b"%c" % value
    digits = bytearray()
    while value >= 0x80:  # noqa: PLR2004
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _fields(message: bytes) -> Iterable[tuple[int, int | bytes]]:
    """The fields of a message, in order. Raises `ValueError` if it is none."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        value: int | bytes
        if wire_type == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if wire_type == _LENGTH:
                size, at = _read_varint(message, at)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, len(message) + 1)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("the message is cut off, or none")
        yield number, value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MOST_SHIFTS + 1, 7):
        if at >= len(message):
            break
        digit = message[at]
        at += 1
        value |= (digit & 0x7F) << shift
        if digit < 0x80:  # noqa: PLR2004
            return value, at
    raise ValueError("a number is cut off, or too long")
