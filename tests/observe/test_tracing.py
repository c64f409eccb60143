"""Which calls are traced, and what waits of them."""

import random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.trace_context import Trace
from rawgrpc_proxy.observe.tracing import BATCH, Tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01".encode()
NOT_SAMPLED = f"00-{TRACE}-{SPAN}-00".encode()


def begun(
    sample: float | Literal["parent"], *fields: tuple[bytes, bytes], method: str = "/p.S/M"
) -> Trace | None:
    headers: Headers = [(b":authority", b"shop.example"), *fields]
    return Tracing(sample=sample).begin(dict(headers).get(b"traceparent"), headers, method)


def traceparent(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"traceparent", value) for value in values]


def test_what_a_caller_samples_goes_on_in_its_trace() -> None:
    trace = begun("parent", *traceparent(SAMPLED), (b"tracestate", b"a=1"))
    assert trace is not None
    assert (trace.trace_id.hex(), trace.parent_id.hex()) == (TRACE, SPAN)
    assert (trace.flags, trace.state, trace.authority) == (1, "a=1", "shop.example")
    assert len({trace.parent_id, trace.server_id, trace.client_id}) == 3


@pytest.mark.parametrize(
    "values", [(), (NOT_SAMPLED,), (b"junk",), (b"ff" + SAMPLED[2:],), (SAMPLED, SAMPLED)]
)
def test_nothing_else_is_traced_by_default(values: tuple[bytes, ...]) -> None:
    assert begun("parent", *traceparent(*values)) is None


@pytest.mark.parametrize(
    "values", [(), (b"junk",), (b"ff" + SAMPLED[2:],), (b"ff" + NOT_SAMPLED[2:],), (SAMPLED, SAMPLED)]
)
def test_with_a_share_a_trace_begins_where_no_caller_has_decided(values: tuple[bytes, ...]) -> None:
    trace = begun(1.0, *traceparent(*values), (b"tracestate", b"a=1"))
    assert trace is not None
    assert (trace.parent_id, trace.flags, trace.state) == (b"", 3, "")
    assert trace.trace_id.hex() != TRACE


def test_with_a_share_what_the_caller_has_decided_holds() -> None:
    assert begun(1.0, *traceparent(NOT_SAMPLED)) is None
    trace = begun(0.0, *traceparent(SAMPLED))
    assert trace is not None
    assert trace.trace_id.hex() == TRACE
    assert begun(0.0) is None


def test_a_share_is_a_share() -> None:
    tracing = Tracing(sample=0.25, rng=random.Random(7))
    traced = sum(tracing.begin(None, [], "/p.S/M") is not None for _ in range(4000))
    assert 900 < traced < 1100


def test_exports_that_pass_through_begin_no_trace() -> None:
    export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    assert begun(1.0, method=export) is None
    assert begun(1.0, *traceparent(SAMPLED), method=export) is not None


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(sample: float) -> None:
    with pytest.raises(ConfigError, match="sample"):
        Tracing(sample=sample)


def test_the_upstream_is_told_nothing_of_a_state_that_belongs_to_no_trace() -> None:
    tracing = Tracing(sample=1.0)
    goes_on = tracing.begin(SAMPLED, traceparent(SAMPLED), "/p.S/M")
    begins = tracing.begin(None, [], "/p.S/M")
    assert goes_on is not None
    assert begins is not None
    assert tracing.told_upstream(goes_on) == (frozenset([b"traceparent"]), (goes_on.header,))
    assert tracing.told_upstream(begins) == (
        frozenset([b"traceparent", b"tracestate"]),
        (begins.header,),
    )


def test_what_is_too_much_is_dropped_and_counted_whole_calls_at_a_time() -> None:
    tracing = Tracing(max_queued_spans=5)
    record = CallRecord(method="/p.S/M", peer="unix:", upstream="h:1", status=Status.OK)
    for _ in range(10):
        trace = tracing.begin(SAMPLED, traceparent(SAMPLED), "/p.S/M")
        assert trace is not None
        trace.sent()
        tracing.ended(trace, record)
    assert (tracing.waiting, tracing.dropped) == (4, 16)
    assert len(tracing.take_batch()) == 4
    assert tracing.waiting == 0


def test_an_exporter_hears_when_there_is_a_batch_and_gets_no_more_than_one() -> None:
    tracing, heard = Tracing(), list[int]()
    tracing.on_batch = lambda: heard.append(tracing.waiting)
    record = CallRecord(method="/p.S/M", peer="unix:", status=Status.OK)
    for _ in range(BATCH + 1):
        trace = tracing.begin(SAMPLED, traceparent(SAMPLED), "/p.S/M")
        assert trace is not None
        tracing.ended(trace, record)
    assert heard == [BATCH, BATCH + 1]
    assert (len(tracing.take_batch()), tracing.waiting) == (BATCH, 1)


@given(
    st.lists(st.binary(max_size=70) | st.just(SAMPLED) | st.just(b"0" * 65536), max_size=3),
    st.sampled_from(["parent", 0.0, 0.5, 1.0]),
)
def test_whatever_a_caller_sends_there_is_a_trace_or_none(
    values: list[bytes], sample: float | Literal["parent"]
) -> None:
    trace = begun(sample, *traceparent(*values))
    assert trace is None or (len(trace.trace_id), len(trace.server_id), len(trace.client_id)) == (16, 8, 8)
