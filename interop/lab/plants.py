"""Faults in raw frames, each in an exchange that is good otherwise: what a caller says, or what an upstream answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interop.shared.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    frame,
    header_block,
    settings,
    window_update,
)

PUSH_PROMISE = 5
PADDED = 0x8
ENABLE_PUSH, MAX_FRAME_SIZE = 2, 5
INTERNAL_ERROR = 2
METHOD = "/lab.Planted/Call"
MESSAGE = b"\0\0\0\0\5hello"

Field = tuple[str, str]
Script = Sequence["bytes | float"]
"""Frames to send, and seconds to wait."""


@dataclass(frozen=True)
class Plant:
    """One fault: which rule it breaks, and how."""

    rule: str
    whose: str
    """As the linter calls it: caller, upstream."""
    caller: Script = ()
    """What the caller says behind its preface and SETTINGS; nothing: a good call."""
    upstream: Script = ()
    """What the upstream answers; nothing: a good response."""
    raw: bytes = b""
    """What the upstream says in place of HTTP/2."""


REQUEST: list[Field] = [
    (":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", "planted.example"),
    ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "grpc-lab/1"),
]  # fmt: skip
RESPONSE: list[Field] = [(":status", "200"), ("content-type", "application/grpc")]
TRAILERS: list[Field] = [("grpc-status", "0")]


def headers(fields: Sequence[Field], *, stream: int = 1, end: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, header_block(fields))


def data(payload: bytes = MESSAGE, *, stream: int = 1, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def reset(stream: int = 1, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last: int) -> bytes:
    return frame(GOAWAY, 0, 0, last.to_bytes(4) + bytes(4))


def call(stream: int = 1, fields: Sequence[Field] = REQUEST, message: bytes = MESSAGE) -> list[bytes]:
    return [headers(fields, stream=stream), data(message, stream=stream, end=True)]


def response(
    fields: Sequence[Field] = RESPONSE, message: bytes = MESSAGE, trailers: Sequence[Field] = TRAILERS
) -> list[bytes]:
    return [headers(fields), data(message), headers(trailers, end=True)]


OPEN = headers(REQUEST)
GOOD_CALL: Script = call()
GOOD_RESPONSE: Script = response()


def _request(rule: str, *extra: Field, without: str = "") -> Plant:
    """Headers with these fields in place of those of their names."""
    names = {name for name, _ in extra} | {without}
    fields = [*(field for field in REQUEST if field[0] not in names), *extra]
    fields.sort(key=lambda field: not field[0].startswith(":"))
    return Plant(rule, "caller", caller=call(fields=fields))


def _caller(rule: str, *script: bytes | float) -> Plant:
    return Plant(rule, "caller", caller=script)


def _upstream(rule: str, *script: bytes | float) -> Plant:
    return Plant(rule, "upstream", upstream=script)


def _trailers(rule: str, *fields: Field) -> Plant:
    return _upstream(rule, *response(trailers=fields))


PLANTS: list[Plant] = [
    # header lists of requests
    _request("te-missing", without="te"),
    _request("te-value", ("te", "gzip")),
    _request("content-type-missing", without="content-type"),
    _request("content-type-invalid", ("content-type", "application/json")),
    _request("content-type-duplicate", ("content-type", "application/grpc"), ("content-type", "application/grpc+json")),
    _request("method-not-post", (":method", "GET")),
    _request("path-shape", (":path", "/Call")),
    _request("timeout-form", ("grpc-timeout", "1.5S")),
    _request("user-agent-missing", without="user-agent"),
    _request("reserved-metadata", ("grpc-my-flag", "1")),
    _request("metadata-not-ascii", ("x-name", "Zoë")),
    _request("binary-metadata", ("x-trace-bin", "not base64!")),
    _request("header-name-uppercase", ("X-User", "bob")),
    _request("header-name-invalid", ("x user", "bob")),
    _request("header-value-invalid", ("x-user", "a\r\nb")),
    _request("connection-header", ("connection", "keep-alive")),
    _request("pseudo-header-unknown", (":status", "200")),
    _request("pseudo-header-missing", without=":scheme"),
    _request("content-length-mismatch", ("content-length", "3")),
    _caller("pseudo-header-order", *call(fields=[*REQUEST[:3], *REQUEST[4:], REQUEST[3]])),
    _caller("pseudo-header-duplicate", *call(fields=[REQUEST[0], *REQUEST])),
    # messages of requests, and their ends
    _caller("encoding-missing", *call(message=b"\1" + MESSAGE[1:])),
    _caller("message-truncated", *call(message=MESSAGE[:-2])),
    _caller("request-trailers", OPEN, data(), headers([("x-checksum", "1")], end=True)),
    # frames of callers
    _caller("frame-size", frame(PING, 0, 0, b"1234567")),
    _caller("frame-too-large", OPEN, data(b"\0\0\0\x40\0" + bytes(16_384), end=True)),
    _caller("frame-stream-id", frame(PING, 0, 1, b"12345678")),
    _caller("padding-too-long", OPEN, frame(DATA, PADDED, 1, b"\x09123")),
    _caller("continuation-interleaved", frame(HEADERS, 0, 1, header_block(REQUEST[:3])), ping()),
    _caller("stream-id-even", *call(stream=2)),
    _caller("stream-id-not-increasing", *call(stream=5), 0.3, *call(stream=3)),
    _caller("frame-on-idle-stream", data()),
    _caller("frame-on-closed-stream", *call(), data()),
    _caller("window-update-zero", window_update(0, 0)),
    _caller("window-overflow", window_update(0, 2**31 - 1)),
    _caller("settings-value", settings({ENABLE_PUSH: 2})),
    _caller("settings-ack-unexpected", 0.3, frame(SETTINGS, ACK, 0), *call()),
    _caller("push-promise", OPEN, frame(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4) + header_block(REQUEST))),
    _caller("priority-self-dependency", frame(2, 0, 1, b"\0\0\0\x01\x0f"), *call()),
    _caller("keepalive-too-frequent", *(each for _ in range(5) for each in (ping(), 1.0)), *call()),
    # responses
    _upstream("content-type-missing", *response(fields=[(":status", "200")])),
    _upstream("content-type-invalid", *response(fields=[(":status", "200"), ("content-type", "text/html")])),
    _upstream("http-status", *response(fields=[(":status", "503"), ("content-type", "application/grpc")])),
    _upstream("encoding-not-accepted", *response(fields=[*RESPONSE, ("grpc-encoding", "zstd")])),
    _upstream("grpc-status-missing", headers(RESPONSE), data(end=True)),
    _trailers("grpc-status-duplicate", ("grpc-status", "0"), ("grpc-status", "13")),
    _trailers("grpc-status-range", ("grpc-status", "17")),
    _trailers("grpc-message-encoding", ("grpc-status", "5"), ("grpc-message", "100% wrong")),
    _trailers("trailers-pseudo-header", (":status", "200"), ("grpc-status", "0")),
    _upstream("trailers-only-split", headers([*RESPONSE, ("grpc-status", "5")]), data(b"", end=True)),
    _upstream("grpc-message-without-status", *response(fields=[*RESPONSE, ("grpc-message", "gone")])),
    _upstream("headers-mid-stream", headers(RESPONSE), headers([("x-more", "1")]), data(), headers(TRAILERS, end=True)),
    _upstream("data-before-headers", data(), *response()),
    _upstream("message-flag", *response(message=b"\2" + MESSAGE[1:])),
    _upstream("reset-after-response", *response(), reset(code=INTERNAL_ERROR)),
    # frames of upstreams
    Plant("not-http2", "upstream", raw=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    _upstream("header-block-undecodable", frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\x0f")),
    _upstream("continuation-unexpected", headers(RESPONSE), frame(CONTINUATION, END_HEADERS, 1)),
    _upstream("ping-ack-unexpected", ping(b"nobodyis", ack=True), *response()),
    _upstream("goaway-id-increased", *response(), goaway(1), goaway(3)),
    _upstream("goaway-stream-processed", b"".join([goaway(0), *response()])),
]  # fmt: skip
