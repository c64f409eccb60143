"""What the client of a call gets instead of its response."""

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.custom_metadata import headers_of, response_headers_of
from rawgrpc_proxy.grpc.status import encode_grpc_message
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.lab.faults.actions import AnswerHttp, AnswerStatus

START: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def trailers(answer: AnswerStatus) -> Headers:
    """The fields that say the status."""
    fields: Headers = [(b"grpc-status", b"%d" % answer.status)]
    if answer.message or answer.status is not Status.OK:
        fields.append((b"grpc-message", encode_grpc_message(answer.message)))
    return fields + response_headers_of(answer.metadata)


def http_response(answer: AnswerHttp) -> tuple[Headers, bytes]:
    """Headers and body."""
    body = answer.body.encode() if isinstance(answer.body, str) else answer.body
    headers: Headers = [
        (b":status", b"%d" % answer.status),
        (b"content-type", answer.content_type.encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    return headers + headers_of(answer.headers), body
