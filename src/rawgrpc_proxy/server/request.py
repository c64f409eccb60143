"""What the headers of a request ask for: which method, with which deadline, and whether it is a gRPC call at all.

What it does not do: check what HTTP/2 asks of headers (`http2/field_rules.py` has), or answer.

Owns: "Requests" of the gRPC over HTTP/2 specification.
"""

import re

from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.path import path_problem
from rawgrpc_proxy.grpc.timeout import parse_timeout
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.observe.trace_context import TRACEPARENT

_CONTENT_TYPE = re.compile(rb"application/grpc(?:\Z|[+;])")


class Asked:
    """What request headers ask for: worked out once for each header list, which clients repeat."""

    __slots__ = ("malformed", "metadata", "method", "refusal", "timeout_s", "traceparent")

    def __init__(self, headers: Headers) -> None:
        fields = dict(headers)
        path = fields[b":path"]
        self.method = path.decode("latin-1")
        self.metadata = Metadata(headers)
        self.refusal = _refusal(fields)
        """The HTTP status and the reason for what is no gRPC call."""
        self.malformed = path_problem(path) is not None
        """Whether the path names no method. The text that says why is long, and seldom asked for again."""
        self.traceparent = fields.get(TRACEPARENT)
        """One of them, if there are several."""
        self.timeout_s: float | None = None
        """None without grpc-timeout, and with one that is none."""
        timeout = fields.get(b"grpc-timeout")
        if timeout is not None:
            try:
                self.timeout_s = parse_timeout(timeout.strip(b" \t"))
            except ValueError:
                # It is passed on as it came: there are servers that take more than eight digits.
                self.timeout_s = None


def _refusal(fields: dict[bytes, bytes]) -> tuple[int, str] | None:
    if fields[b":method"] != b"POST":
        return 405, "a gRPC call is a POST request"
    if not _CONTENT_TYPE.match(fields.get(b"content-type", b"")):
        return 415, "the content-type of a gRPC call is application/grpc"
    if fields[b":scheme"] not in {b"http", b"https"} or b"@" in fields.get(b":authority", b""):
        return 400, "the :scheme or the :authority of the request is invalid"
    return None
