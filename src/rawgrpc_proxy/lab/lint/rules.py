"""The rules: what they are called, how bad it is to break them, and where they are written.

An id never changes, for it is in people's `--ignore` and in their CI. `docs/lint.md` says of each why, and what to do.
"""

import enum

import attrs


class Severity(enum.IntEnum):
    """How bad a finding is."""

    NOTE = 1
    """Allowed, and worth knowing."""
    WARNING = 2
    """Some peer will have trouble with it, or it is wrong where nobody is hurt yet."""
    ERROR = 3
    """A document says MUST, or the peers cannot understand each other."""

    @property
    def word(self) -> str:
        """`error`, `warning`, `note`."""
        return self.name.lower()


@attrs.frozen
class Rule:
    """One rule."""

    id: str
    severity: Severity
    section: str
    text: str
    """What breaks it."""
    hop: bool = False
    """Whether a proxy answers for it on its own connections. The others it passes on as they came."""


_GRPC = "gRPC over HTTP/2, "
_N, _W, _E = Severity.NOTE, Severity.WARNING, Severity.ERROR

_CALLS = (
    Rule("te-missing", _E, _GRPC + "Requests", "a request without te: trailers"),
    Rule("te-value", _E, "RFC 9113 §8.2.2", "te says something else than trailers"),
    Rule("content-type-missing", _E, _GRPC + "Requests, Responses", "no content-type"),
    Rule("content-type-invalid", _E, _GRPC + "Requests, Responses", "content-type is not application/grpc"),
    Rule("content-type-duplicate", _E, "RFC 9110 §5.3", "content-type comes twice"),
    Rule("method-not-post", _E, _GRPC + "Requests", ":method is not POST"),
    Rule("path-shape", _E, _GRPC + "Requests", ":path is not /package.Service/Method"),
    Rule("timeout-form", _E, _GRPC + "Requests", "grpc-timeout is not 1 to 8 digits and one of HMSmun"),
    Rule("user-agent-missing", _N, _GRPC + "User Agents", "a request does not say what has made it"),
    Rule("reserved-metadata", _W, _GRPC + "Requests", "metadata whose name begins with grpc-, of no known use"),
    Rule("metadata-not-ascii", _W, _GRPC + "Requests", "a text value with bytes beyond printable ASCII"),
    Rule("binary-metadata", _E, _GRPC + "Requests", "the value of a -bin name is not base64"),
    Rule("request-trailers", _W, _GRPC + "Requests", "a request has trailers"),
    Rule("http-status", _W, _GRPC + "HTTP2 Transport Mapping", "a response has another :status than 200"),
    Rule("trailers-only-split", _E, _GRPC + "Responses", "grpc-status in headers that do not end the stream"),
    Rule("grpc-status-missing", _E, _GRPC + "Responses", "a response ends without grpc-status"),
    Rule("grpc-status-duplicate", _E, _GRPC + "Responses", "grpc-status comes twice"),
    Rule("grpc-status-range", _E, _GRPC + "Responses", "grpc-status is no number from 0 to 16"),
    Rule("grpc-message-encoding", _E, _GRPC + "Responses", "grpc-message is not percent-encoded"),
    Rule("grpc-message-without-status", _W, _GRPC + "Responses", "grpc-message without grpc-status"),
    Rule("encoding-missing", _E, _GRPC + "Message-Encoding", "a compressed message without grpc-encoding"),
    Rule("encoding-not-accepted", _E, "gRPC Compression", "grpc-encoding is not in the caller's grpc-accept-encoding"),
    Rule("message-flag", _E, _GRPC + "Length-Prefixed-Message", "the flag of a message is neither 0 nor 1"),
    Rule("message-truncated", _E, _GRPC + "Length-Prefixed-Message", "the stream ends inside of a message"),
    Rule("content-length-mismatch", _E, "RFC 9113 §8.1.1", "content-length is not the length of the body"),
    Rule("reset-after-response", _W, "RFC 9113 §8.1", "a reset with an error behind a complete response"),
)  # fmt: skip

_FIELDS = (
    Rule("header-name-uppercase", _E, "RFC 9113 §8.2.1", "a header name with upper-case letters"),
    Rule("header-name-invalid", _E, "RFC 9113 §8.2.1", "a header name with characters that no name has"),
    Rule(
        "header-value-invalid", _E, "RFC 9113 §8.2.1", "a value with NUL, CR or LF, or with space around it"
    ),
    Rule("connection-header", _E, "RFC 9113 §8.2.2", "a header of HTTP/1.1 connections"),
    Rule("pseudo-header-order", _E, "RFC 9113 §8.3", "a pseudo-header behind regular ones"),
    Rule("pseudo-header-unknown", _E, "RFC 9113 §8.3", "a pseudo-header that is none of this message"),
    Rule("pseudo-header-duplicate", _E, "RFC 9113 §8.3", "a pseudo-header comes twice"),
    Rule("pseudo-header-missing", _E, "RFC 9113 §8.3.1, §8.3.2", "a pseudo-header that must be there is not"),
    Rule("trailers-pseudo-header", _E, "RFC 9113 §8.1", "trailers have a pseudo-header"),
    Rule("headers-mid-stream", _E, "RFC 9113 §8.1", "HEADERS behind the headers do not end the stream"),
    Rule("data-before-headers", _E, "RFC 9113 §8.1", "DATA before the headers of the response"),
    Rule("header-list-too-large", _W, "RFC 9113 §6.5.2", "a header list above the peer's limit", hop=True),
    Rule("header-block-undecodable", _E, "RFC 9113 §4.3", "a header block cannot be decoded", hop=True),
)

_LINKS = (
    Rule("not-http2", _E, "RFC 9113 §3.4", "what comes is not HTTP/2", hop=True),
    Rule("frame-size", _E, "RFC 9113 §4.2, §6", "a frame has not the length of its type", hop=True),
    Rule("frame-too-large", _E, "RFC 9113 §4.2", "a frame above the peer's SETTINGS_MAX_FRAME_SIZE", hop=True),
    Rule("frame-stream-id", _E, "RFC 9113 §6", "a frame on stream 0 that belongs to one, or the reverse", hop=True),
    Rule("padding-too-long", _E, "RFC 9113 §6.1, §6.2", "the padding is longer than the frame", hop=True),
    Rule("continuation-interleaved", _E, "RFC 9113 §6.10", "another frame inside of a header block", hop=True),
    Rule("continuation-unexpected", _E, "RFC 9113 §6.10", "CONTINUATION without a header block", hop=True),
    Rule("stream-id-even", _E, "RFC 9113 §5.1.1", "a client opens a stream with an even number", hop=True),
    Rule("stream-id-not-increasing", _E, "RFC 9113 §5.1.1", "a new stream below one that was opened before", hop=True),
    Rule("frame-on-idle-stream", _E, "RFC 9113 §5.1", "a frame on a stream that nobody has opened", hop=True),
    Rule("frame-on-closed-stream", _E, "RFC 9113 §5.1", "DATA or HEADERS behind one's own end of the stream", hop=True),
    Rule("too-many-streams", _E, "RFC 9113 §5.1.2", "streams beyond SETTINGS_MAX_CONCURRENT_STREAMS", hop=True),
    Rule("flow-control-overrun", _E, "RFC 9113 §6.9.1", "more DATA than the window allows", hop=True),
    Rule("window-update-zero", _E, "RFC 9113 §6.9", "WINDOW_UPDATE by 0", hop=True),
    Rule("window-overflow", _E, "RFC 9113 §6.9.1", "WINDOW_UPDATE beyond 2^31-1", hop=True),
    Rule("window-never-opened", _W, "RFC 9113 §6.9", "a window stayed shut for 5 s, until the stream was given up"),
    Rule("settings-not-acknowledged", _E, "RFC 9113 §6.5.3", "SETTINGS without an answer for 10 s", hop=True),
    Rule("settings-ack-unexpected", _W, "RFC 9113 §6.5.3", "a SETTINGS ACK for nothing", hop=True),
    Rule("settings-value", _E, "RFC 9113 §6.5.2", "a setting is out of its range", hop=True),
    Rule("ping-not-acknowledged", _E, "RFC 9113 §6.7", "PING without an answer for 20 s", hop=True),
    Rule("ping-ack-unexpected", _W, "RFC 9113 §6.7", "a PING ACK for nothing", hop=True),
    Rule("keepalive-too-frequent", _W, "gRFC A8", "PINGs closer than 10 s, without data between", hop=True),
    Rule("keepalive-below-default", _N, "gRFC A8", "PINGs closer than the 5 min that servers allow", hop=True),
    Rule("goaway-id-increased", _E, "RFC 9113 §6.8", "a GOAWAY with a higher last stream than before", hop=True),
    Rule("goaway-stream-processed", _E, "RFC 9113 §6.8", "an answer on a stream that GOAWAY has disowned", hop=True),
    Rule("stream-after-goaway", _W, "RFC 9113 §6.8", "a new stream 5 s behind a GOAWAY", hop=True),
    Rule("push-promise", _E, "RFC 9113 §6.6, §8.4", "PUSH_PROMISE by a client, or though push is disabled", hop=True),
    Rule("priority-self-dependency", _W, "RFC 7540 §5.3.1", "a stream depends on itself", hop=True),
)  # fmt: skip

RULES = {rule.id: rule for rule in (*_CALLS, *_FIELDS, *_LINKS)}
"""By id, in the order of the page that explains them."""
