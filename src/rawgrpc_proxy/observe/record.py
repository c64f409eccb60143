"""What is remembered of a call for those who look on: logs and metrics."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.observe.trace_context import Trace


@attrs.define(kw_only=True, eq=False)
class CallExtras:
    """What more there is to know of a call, for observers that ask for it (`ServerObserver.wants`).

    It is as confidential as the call: all request headers are here. Times are of `time.perf_counter`.
    """

    headers: Headers
    """The request's, as they came, pseudo-headers included."""
    stream_id: int
    tls_peer: Mapping[str, Any] | None
    """The caller's certificate, as `ssl.SSLSocket.getpeercert` gives it."""
    started: float
    route: str | None = None
    cluster: str | None = None
    attempts: int = 0
    """How many streams were opened upstream."""
    first_byte_at: float | None = None
    """When the response began, if somebody wants to know."""
    flag: str = ""
    """Why the call failed, of those in `flags.py`."""
    refresh: Callable[[], None] | None = None
    """Brings the record up to date, while the call is on its way."""

    def response_began(self) -> None:
        """Its headers are here."""
        self.first_byte_at = time.perf_counter()


@attrs.define(kw_only=True)
class Repeats:
    """What a policy has had a call do more than once."""

    retries: int = 0
    """Attempts that followed one that had failed."""
    hedges: int = 0
    """Attempts that were sent beside others."""
    is_pausing: bool = False
    """The next attempt is to come."""
    is_throttled: bool = False
    """One more would have been sent, had not too many attempts failed at this cluster."""
    is_exhausted: bool = False
    """One more would have been sent, had not all been used."""


@attrs.define  # not `kw_only`: CPython takes twice as long for one of those, of which there is one for each call
class CallRecord:
    """What happened to a call, for logs and metrics. Bytes are of DATA, gRPC's five-byte prefixes included."""

    method: str
    peer: str
    upstream: str | None = None
    status: Status = Status.UNKNOWN
    origin: str = "proxy"
    """Who made the status, of `causes.ORIGINS`, unless a director or a handler has a word of its own."""
    cause: str = ""
    """The frame or the limit that it comes of, of `causes.CAUSES`; none if it is as its maker wished."""
    detail: str = ""
    """The status's message, or the cause that the caller was not told."""
    request_bytes: int = 0
    response_bytes: int = 0
    request_messages: int = 0
    response_messages: int = 0
    messages_are_exact: bool = True
    """False: there were so many tiny messages of all lengths that they are counted no longer, and there were more."""
    duration_s: float = 0.0
    repeats: Repeats | None = None
    """Of a call that a policy has sent more than once, or would have."""
    extras: CallExtras | None = None
    """For an observer that asks for more, see `ServerObserver.wants`."""
    trace: Trace | None = None
    """Of a call that is traced, see `Tracing`."""
