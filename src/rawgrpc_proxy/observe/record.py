"""What is remembered of a call for those who look on: logs and metrics."""

import attrs

from rawgrpc_proxy.codes import Status


@attrs.define(kw_only=True)
class CallRecord:
    """What happened to a call, for logs and metrics. Bytes are of DATA, gRPC's five-byte prefixes included."""

    method: str
    peer: str
    upstream: str | None = None
    status: Status = Status.UNKNOWN
    origin: str = "proxy"
    """Who made the status: upstream, director, proxy, served, downstream, reset, "HTTP 502"."""
    detail: str = ""
    """The status's message, or the cause that the caller was not told."""
    request_bytes: int = 0
    response_bytes: int = 0
    request_messages: int = 0
    response_messages: int = 0
    messages_are_exact: bool = True
    """False: there were so many tiny messages of all lengths that they are counted no longer, and there were more."""
    duration_s: float = 0.0
