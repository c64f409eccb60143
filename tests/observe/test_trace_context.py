"""`traceparent`, read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.observe.trace_context import (
    Trace,
    TraceParent,
    may_be_sampled,
    parse_traceparent,
    told_in,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01".encode()


def test_a_valid_one_says_trace_span_and_flags() -> None:
    parent = parse_traceparent(VALID)
    assert parent == TraceParent(bytes.fromhex(TRACE), bytes.fromhex(SPAN), 1)
    assert parent is not None
    assert parent.sampled


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (f"00-{TRACE}-{SPAN}-00", True),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"00-{TRACE}-{SPAN}-01-", False),
        (f"00-{TRACE}-{SPAN}-01 ", False),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-has", True),
        (f"cc-{TRACE}-{SPAN}-01.what-the-future-has", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}-1", False),
        (f"00-{TRACE}-{SPAN}", False),
        ("", False),
        ("00-" + "a" * 64 * 1024, False),
    ],
)
def test_what_the_standard_calls_invalid_is_none(value: str, valid: bool) -> None:
    assert (parse_traceparent(value.encode()) is not None) is valid


def test_two_of_them_say_nothing() -> None:
    headers = [(b":path", b"/p.S/M"), (b"traceparent", VALID), (b"x", b"y")]
    assert told_in(headers).parent == parse_traceparent(VALID)
    assert told_in([*headers, (b"traceparent", VALID)]).parent is None


def test_tracestate_is_joined_and_one_that_is_too_long_is_left_out() -> None:
    assert told_in([(b"tracestate", b"a=1"), (b"x", b"y"), (b"tracestate", b"b=2")]).state == "a=1,b=2"
    assert told_in([(b"tracestate", b"a" * 513)]).state == ""


@given(st.binary(max_size=80) | st.text("0123456789abcdef-fF", max_size=70).map(str.encode))
def test_any_bytes_are_a_parent_or_none(value: bytes) -> None:
    parent = parse_traceparent(value)
    if parent is not None:
        assert any(parent.trace_id)
        assert any(parent.parent_id)
        assert parent.sampled is may_be_sampled(value)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.integers(0, 255))
def test_what_is_read_is_what_was_written(trace_id: bytes, parent_id: bytes, flags: int) -> None:
    value = b"00-%b-%b-%02x" % (trace_id.hex().encode(), parent_id.hex().encode(), flags)
    parent = parse_traceparent(value)
    if not any(trace_id) or not any(parent_id):
        assert parent is None
    else:
        # Of the flags those that nobody knows yet are not passed on (§3.2.2.5.2).
        assert parent == TraceParent(trace_id, parent_id, flags & 3)
        assert may_be_sampled(value) is bool(flags & 1)


def test_the_upstream_is_told_the_client_span_in_version_00() -> None:
    trace = Trace(bytes.fromhex(TRACE), b"callers!", b"server!!", b"client!!", 3, "", "", 0)
    name, value = trace.header
    assert name == b"traceparent"
    assert parse_traceparent(value) == TraceParent(bytes.fromhex(TRACE), b"client!!", 3)
