"""The status of a call: from its header, from an HTTP status, from a stream reset; and the text beside it.

This module does not decide when a mapping applies: whoever ends the call knows whether a `grpc-status`
arrived. The invariant: every function is total over what a peer can send. A strange number, a broken escape
or bad UTF-8 gives an answer, never an exception.

Owns: "Responses" and "Errors" of the gRPC over HTTP/2 specification, and the gRPC mapping of HTTP statuses.
"""

import http
import re
from urllib.parse import unquote_to_bytes

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.http2.headers import Headers, size_of

_FROM_HTTP = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    431: Status.INTERNAL,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
}

_REGISTERED = frozenset(map(int, http.HTTPStatus))

_FROM_RESET: dict[int, Status] = {
    ErrorCode.NO_ERROR: Status.INTERNAL,
    ErrorCode.PROTOCOL_ERROR: Status.INTERNAL,
    ErrorCode.INTERNAL_ERROR: Status.INTERNAL,
    ErrorCode.FLOW_CONTROL_ERROR: Status.INTERNAL,
    ErrorCode.SETTINGS_TIMEOUT: Status.INTERNAL,
    ErrorCode.STREAM_CLOSED: Status.INTERNAL,
    ErrorCode.FRAME_SIZE_ERROR: Status.INTERNAL,
    ErrorCode.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCode.CANCEL: Status.CANCELLED,
    ErrorCode.COMPRESSION_ERROR: Status.INTERNAL,
    ErrorCode.CONNECT_ERROR: Status.INTERNAL,
    ErrorCode.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
    ErrorCode.HTTP_1_1_REQUIRED: Status.INTERNAL,
}

# The specification lets space to "~" except "%" stand for themselves. RFC 9113 §8.2.1 forbids a field value
# that begins or ends with a space, and a strict peer resets the stream for it, so a space at either end is
# escaped too.
_STATUS_FIELDS = frozenset({b"content-type", b"grpc-status", b"grpc-message"})
_CUT_ESCAPE = re.compile(rb"%[0-9A-Fa-f]?\Z")
_ESCAPED = re.compile(rb"[^ -$&-~]|\A | \Z")


def status_from_http(http_status: int) -> Status:
    """The gRPC status of a response without `grpc-status`, by its HTTP status; 200 gives UNKNOWN too."""
    return _FROM_HTTP.get(http_status, Status.UNKNOWN)


def http_cause(http_status: int) -> str:
    """An HTTP status as what a call ends of: of those that are registered, for a peer can send any number."""
    return f"HTTP {http_status}" if http_status in _REGISTERED else "HTTP unknown"


def status_from_reset(error_code: int) -> Status:
    """The gRPC status of a stream ended by RST_STREAM with this code; an unknown code gives UNKNOWN."""
    return _FROM_RESET.get(error_code, Status.UNKNOWN)


def parse_status(raw: bytes | None) -> Status | None:
    """Read the value of `grpc-status`: None if there was none, UNKNOWN if it is no status's number."""
    if raw is None:
        return None
    # isdigit first: int() also takes signs, spaces and underscores.
    if not raw.isdigit():
        return Status.UNKNOWN
    try:
        return Status(int(raw))
    except ValueError:
        return Status.UNKNOWN


def status_fields(headers: Headers, max_bytes: int) -> Headers:
    """Of a list that ends a response and is too long for its reader: what says how the call went.

    That is the pseudo-fields, content-type, grpc-status, and grpc-message, cut at its end so that all together has at
    most `max_bytes` bytes as RFC 9113 §6.5.2 counts them, if it is long enough to be cut by so much.
    """
    kept = [field for field in headers if field[0][:1] == b":" or field[0] in _STATUS_FIELDS]
    excess = size_of(kept) - max_bytes
    if excess > 0:
        kept = [
            (name, _CUT_ESCAPE.sub(b"", value[: max(0, len(value) - excess)]))
            if name == b"grpc-message"
            else (name, value)
            for name, value in kept
        ]
    return kept


def encode_grpc_message(text: str) -> bytes:
    """Write the value of `grpc-message`: UTF-8, percent-encoded. A lone surrogate becomes "?"."""
    return _ESCAPED.sub(lambda match: b"%%%02X" % ord(match[0]), text.encode("utf-8", "replace"))


def decode_grpc_message(raw: bytes) -> str:
    """Read the value of `grpc-message`. A broken escape stays as it is, bad UTF-8 becomes U+FFFD."""
    return unquote_to_bytes(raw).decode("utf-8", "replace")
