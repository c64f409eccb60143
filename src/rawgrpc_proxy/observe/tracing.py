"""`Tracing`: which calls are traced, and the spans of those, until somebody exports them.

    a call ──sampled?──► its ids, and the upstream's traceparent ──its end──► two spans ──► a queue with a bound
                                                                              (too many: dropped, and counted)

A call that nobody samples costs a look at one digit of its `traceparent`, and its metadata go on as they came. Spans
are encoded at the end of their call, so what waits is bytes, and whoever exports them has only to join them.

What it does not do: wait, or send (`proxy/otlp_exporter.py` does). The invariant: a call never waits for a collector.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import Headers, RawHeader
from rawgrpc_proxy.observe.otlp import spans_of
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.trace_context import (
    RANDOM,
    SAMPLED,
    TRACEPARENT,
    TRACESTATE,
    Told,
    Trace,
    may_be_sampled,
    told_in,
)

BATCH = 512
"""Spans that are exported together; together at most 3 MiB, and collectors take 4."""
_GOES_ON = frozenset((TRACEPARENT,))
_BEGINS_HERE = frozenset((TRACEPARENT, TRACESTATE))
_NEVER_BEGINS = "/opentelemetry.proto.collector."
"""Exports that pass through here would make spans that are exported, and so on for ever."""


class Tracing:
    """Traces the calls of a server: `Server(tracing=tracing)`, with an `OtlpExporter(tracing, address)` around it.

    With `sample` "parent" the calls that their callers have sampled, as `traceparent` says (W3C Trace Context). With a
    number between 0 and 1 also that share of the calls that come without a valid one: their trace begins here. What a
    caller has decided stays decided.

    At most `max_queued_spans` wait for an exporter, of at most 6 KiB each; what comes then is `dropped`.
    """

    __slots__ = ("_queue", "_ratio", "_rng", "dropped", "exported", "max_queued_spans", "on_batch")

    def __init__(
        self,
        *,
        sample: float | Literal["parent"] = "parent",
        max_queued_spans: int = 2048,
        rng: random.Random | None = None,
    ) -> None:
        """Raise `ConfigError` for numbers that cannot work."""
        if sample != "parent" and not 0 <= sample <= 1:
            raise ConfigError(f'sample is {sample!r}; it must be "parent", or a number between 0 and 1')
        if max_queued_spans < 2:  # noqa: PLR2004  # those of a call
            raise ConfigError(f"max_queued_spans is {max_queued_spans!r}; it must be 2 or more")
        self._ratio = 0.0 if sample == "parent" else float(sample)
        self._rng = rng or random.Random()  # noqa: S311  # ids have to be different, not secret
        self._queue: deque[bytes] = deque()
        self.max_queued_spans = max_queued_spans
        self.dropped = 0
        """Spans that were not exported: too many waited, or the collector did not take them."""
        self.exported = 0
        """Spans that a collector has taken."""
        self.on_batch: Callable[[], None] | None = None
        """Hears that there is enough for a batch. Must neither wait nor raise."""

    def begin(self, traceparent: bytes | None, headers: Headers, method: str) -> Trace | None:
        """What to trace of a call that has come with these headers; `traceparent` is one of them. None: nothing."""
        if self._ratio == 0 and (traceparent is None or not may_be_sampled(traceparent)):
            return None
        told = told_in(headers)
        parent = told.parent
        if parent is not None:
            if not parent.sampled:
                return None
            return self._trace(told, parent.trace_id, parent.parent_id, parent.flags)
        if self._rng.random() >= self._ratio or method.startswith(_NEVER_BEGINS):
            return None
        return self._trace(told, self._id(16), b"", SAMPLED | RANDOM)

    def told_upstream(self, trace: Trace) -> tuple[frozenset[bytes], tuple[RawHeader]]:
        """The fields to remove of the metadata, and the one to add."""
        return _GOES_ON if trace.parent_id else _BEGINS_HERE, (trace.header,)

    def ended(self, trace: Trace, record: CallRecord) -> None:
        """The call is over."""
        queue = self._queue
        spans = spans_of(trace, record)
        if len(queue) + len(spans) > self.max_queued_spans:
            self.dropped += len(spans)
            return
        queue.extend(spans)
        if len(queue) >= BATCH and self.on_batch is not None:
            self.on_batch()

    @property
    def waiting(self) -> int:
        """Spans that wait."""
        return len(self._queue)

    def take_batch(self) -> list[bytes]:
        """Take what waits for longest, at most a batch of it."""
        queue = self._queue
        return [queue.popleft() for _ in range(min(BATCH, len(queue)))]

    def _trace(self, told: Told, trace_id: bytes, parent_id: bytes, flags: int) -> Trace:
        return Trace(
            trace_id,
            parent_id,
            self._id(8),
            self._id(8),
            flags,
            told.state if parent_id else "",
            told.authority,
            time.time_ns(),
        )

    def _id(self, size: int) -> bytes:
        """Of so many bytes, not all of them zero."""
        return (self._rng.getrandbits(size * 8) or 1).to_bytes(size)
