"""What header lists say of their stream, for those who look on. Total over any list; None is one that is lost."""

from collections.abc import Sequence

from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.lab.events import Half, HeadersKind, Sender, Stream

MAX_METHOD = 4096
_MAX_TEXT = 1024
_FIRST_FINAL_STATUS = 200


def kind_of(half: Half, sender: Sender, headers: Sequence[RawHeader] | None) -> HeadersKind:
    """What the next list of this half is."""
    if half.closed:
        return HeadersKind.LATE
    if half.headers:
        return HeadersKind.TRAILERS
    if sender is Sender.CLIENT:
        return HeadersKind.REQUEST
    status = number_of(text_of(headers, b":status", 8))
    if status is not None and 0 <= status < _FIRST_FINAL_STATUS:
        return HeadersKind.INFORMATIONAL
    return HeadersKind.RESPONSE


def learn(stream: Stream, sender: Sender, kind: HeadersKind, headers: Sequence[RawHeader] | None) -> None:
    """Note what these headers say of the stream."""
    half = stream.half(sender)
    if kind in (HeadersKind.REQUEST, HeadersKind.RESPONSE):
        half.headers = True
        if headers is not None:
            half.encoding = text_of(headers, b"grpc-encoding", 64) or "identity"
            half.is_grpc = (text_of(headers, b"content-type", _MAX_TEXT) or "").startswith("application/grpc")
        if kind is HeadersKind.RESPONSE:
            stream.http_status = number_of(text_of(headers, b":status", 8))
    if sender is Sender.SERVER and kind in (HeadersKind.RESPONSE, HeadersKind.TRAILERS):
        status = text_of(headers, b"grpc-status", 16)
        if status is not None:
            stream.grpc_status = number_of(status)
            stream.grpc_message = text_of(headers, b"grpc-message", _MAX_TEXT) or ""


def text_of(headers: Sequence[RawHeader] | None, name: bytes, length: int) -> str | None:
    """The first value of this name, at most so many bytes of it; None if there is none."""
    for each, value in headers or ():
        if each == name:
            return value[:length].decode("latin-1")
    return None


def number_of(text: str | None) -> int | None:
    """-1 for what is none."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() else -1
