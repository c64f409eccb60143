"""W3C Trace Context: what a caller's `traceparent` says, and what this proxy says in it to an upstream.

    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
                 version, trace, the caller's span, flags (1: sampled)

Pure, and total: whatever bytes a caller sends, the answer is a parent or None, in a time that does not grow with them.
What it does not do: read `tracestate`, `grpc-trace-bin` or `b3`, which go on as they came.

Owns: W3C Trace Context, §3.2; of level 2 the flag that says a trace's id is random.
"""

import re
import time

import attrs

from rawgrpc_proxy.http2.headers import Headers, RawHeader

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
SAMPLED = 1
RANDOM = 2
_KNOWN_FLAGS = SAMPLED | RANDOM
_FORM = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-|\Z)"
)
_SAMPLED_DIGITS = frozenset(b"%x" % digit for digit in range(1, 16, 2))
_LONGEST_AUTHORITY = 256
_LONGEST_STATE = 512
"""Bytes of `tracestate` that are told to a collector: what §3.3.1.5 says everybody should pass on."""


@attrs.frozen
class TraceParent:
    """A valid `traceparent`: 16 and 8 bytes, and the flags that are known here."""

    trace_id: bytes
    parent_id: bytes
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller records its span."""
        return bool(self.flags & SAMPLED)


@attrs.define(eq=False)
class Trace:
    """What of a call is traced: the ids of its two spans, and when they began. Only sampled calls have one."""

    trace_id: bytes
    parent_id: bytes
    """The caller's span; empty where the trace begins here."""
    server_id: bytes
    client_id: bytes
    flags: int
    state: str
    """The caller's `tracestate`, empty if there is none."""
    authority: str
    """Whom the caller has called."""
    started_ns: int
    """Of the server span, since 1970."""
    _started: float = attrs.field(factory=time.perf_counter, alias="started")
    sent_after_s: float | None = None
    """When the request went upstream for the first time, counted from the start; None: it has not."""

    def sent(self) -> None:
        """A stream is being opened upstream for the call."""
        if self.sent_after_s is None:
            self.sent_after_s = time.perf_counter() - self._started

    @property
    def header(self) -> RawHeader:
        """What the upstream is told: the client span is its parent."""
        return TRACEPARENT, b"00-%b-%b-%02x" % (
            self.trace_id.hex().encode(),
            self.client_id.hex().encode(),
            self.flags,
        )


def may_be_sampled(traceparent: bytes) -> bool:
    """Whether its flags say so, if it is one. One look at one digit, for every call; `parse_traceparent` says more."""
    return traceparent[54:55] in _SAMPLED_DIGITS


def parse_traceparent(value: bytes) -> TraceParent | None:
    """What it says; None if it is invalid (§3.2.2): then a trace begins anew, or there is none.

    A version to come may have more behind its flags; of version 00 that is invalid.
    """
    found = _FORM.match(value)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if more and version == b"00":
        return None
    return TraceParent(
        bytes.fromhex(trace_id.decode()),
        bytes.fromhex(parent_id.decode()),
        int(flags, 16) & _KNOWN_FLAGS,
    )


@attrs.frozen
class Told:
    """What the headers of a request tell of its trace."""

    parent: TraceParent | None
    """None also if there is more than one `traceparent`, which says nothing (§3.2)."""
    state: str
    """`tracestate`, several joined; empty if there is none, or more than a collector should be told."""
    authority: str


def told_in(headers: Headers) -> Told:
    """What is in this list. Total."""
    parents, states, authority = [], [], b""
    for name, value in headers:
        if name == TRACEPARENT:
            parents.append(value)
        elif name == TRACESTATE:
            states.append(value)
        elif name == b":authority":
            authority = value[:_LONGEST_AUTHORITY]
    state = b",".join(states)
    return Told(
        parse_traceparent(parents[0]) if len(parents) == 1 else None,
        state.decode("latin-1") if len(state) <= _LONGEST_STATE else "",
        authority.decode("latin-1"),
    )
