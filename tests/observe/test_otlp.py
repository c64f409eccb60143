"""Spans as OTLP, read by protobuf."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.observe.otlp import SCHEMA, partial_success_in, request_head, request_of, spans_of
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.trace_context import Trace
from tests.observe.otlp_messages import attributes_of, otlp, spans_in

HEAD = request_head({"service.name": "edge", "deployment.environment.name": "prod"}, "1.2.3")
STARTED_NS = 1_700_000_000_123_456_789
UNSET, ERROR = 0, 2
SERVER, CLIENT = 2, 3
HAS_REMOTE, REMOTE, SAMPLED = 0x100, 0x200, 1


def a_trace(**changes: Any) -> Trace:
    fields = {
        "trace_id": b"a trace's 16 B..",
        "parent_id": b"caller's",
        "server_id": b"server's",
        "client_id": b"client's",
        "flags": SAMPLED,
        "state": "vendor=1",
        "authority": "shop.example:8443",
        "started_ns": STARTED_NS,
        "sent_after_s": 0.25,
    }
    return Trace(**{**fields, **changes})


def a_record(**changes: Any) -> CallRecord:
    fields = {
        "method": "/shop.Orders/Get",
        "peer": "10.0.0.9:40000",
        "upstream": "10.0.0.7:50051",
        "status": Status.OK,
        "origin": "upstream",
        "duration_s": 1.5,
    }
    return CallRecord(**{**fields, **changes})


def read(trace: Trace, record: CallRecord) -> list[Any]:
    request = otlp().ExportTraceServiceRequest.FromString(request_of(HEAD, spans_of(trace, record)))
    return spans_in(request)


def test_a_request_says_whose_spans_they_are_and_which_conventions_they_follow() -> None:
    request = otlp().ExportTraceServiceRequest.FromString(request_of(HEAD, []))
    [resource_spans] = request.resource_spans
    assert attributes_of(resource_spans.resource) == {
        "service.name": "edge",
        "deployment.environment.name": "prod",
    }
    [scope_spans] = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("rawgrpc_proxy", "1.2.3")
    assert scope_spans.schema_url == resource_spans.schema_url == SCHEMA


def test_a_call_is_a_server_span_under_the_caller_s_and_a_client_span_under_that() -> None:
    server, client = read(a_trace(), a_record())
    assert server.trace_id == client.trace_id == b"a trace's 16 B.."
    assert (server.parent_span_id, server.span_id) == (b"caller's", b"server's")
    assert (client.parent_span_id, client.span_id) == (b"server's", b"client's")
    assert (server.kind, client.kind) == (SERVER, CLIENT)
    assert server.flags == HAS_REMOTE | REMOTE | SAMPLED
    assert client.flags == HAS_REMOTE | SAMPLED
    assert server.name == client.name == "shop.Orders/Get"
    assert server.trace_state == client.trace_state == "vendor=1"
    assert server.start_time_unix_nano == STARTED_NS
    assert client.start_time_unix_nano == STARTED_NS + 250_000_000
    assert server.end_time_unix_nano == client.end_time_unix_nano == STARTED_NS + 1_500_000_000
    assert server.status.code == client.status.code == UNSET


def test_attributes_are_those_of_the_conventions_for_grpc() -> None:
    server, client = read(a_trace(), a_record(status=Status.UNAVAILABLE, detail="gone"))
    both = {
        "error.type": "UNAVAILABLE",
        "network.protocol.name": "http",
        "network.protocol.version": "2",
        "network.transport": "tcp",
        "rpc.method": "shop.Orders/Get",
        "rpc.response.status_code": "UNAVAILABLE",
        "rpc.system.name": "grpc",
        # Names of before 1.38.
        "rpc.grpc.status_code": 14,
        "rpc.service": "shop.Orders",
        "rpc.system": "grpc",
    }
    assert attributes_of(server) == {
        **both,
        "client.address": "10.0.0.9",
        "client.port": 40000,
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 40000,
        "server.address": "shop.example",
        "server.port": 8443,
        "rawgrpc_proxy.status_origin": "upstream",
    }
    assert attributes_of(client) == {
        **both,
        "network.peer.address": "10.0.0.7",
        "network.peer.port": 50051,
        "server.address": "10.0.0.7",
        "server.port": 50051,
    }
    assert (server.status.code, server.status.message) == (ERROR, "gone")
    assert (client.status.code, client.status.message) == (ERROR, "gone")


def test_what_a_status_comes_of_is_told_of_the_server_span() -> None:
    server, client = read(a_trace(), a_record(status=Status.UNAVAILABLE, origin="lost", cause="FIN"))
    assert attributes_of(server)["rawgrpc_proxy.status_origin"] == "lost"
    assert attributes_of(server)["rawgrpc_proxy.status_cause"] == "FIN"
    assert "rawgrpc_proxy.status_cause" not in attributes_of(client)


def test_unix_sockets_and_names_are_told_as_what_they_are() -> None:
    server, client = read(
        a_trace(authority="[::1]"), a_record(peer="unix:", upstream="unix:/run/orders.sock")
    )
    assert attributes_of(server)["network.transport"] == "unix"
    assert attributes_of(server)["server.address"] == "::1"
    assert not {"server.port", "client.address"} & attributes_of(server).keys()
    assert attributes_of(client)["server.address"] == "/run/orders.sock"
    [_, named] = read(a_trace(), a_record(upstream="orders.internal:50051"))
    assert attributes_of(named)["server.address"] == "orders.internal"
    assert "network.peer.address" not in attributes_of(named)


@pytest.mark.parametrize("status", list(Status))
def test_what_the_caller_did_wrong_is_no_error_of_the_server(status: Status) -> None:
    server, client = read(a_trace(), a_record(status=status, detail="text"))
    servers_fault = status.name in {
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
    assert server.status.code == (ERROR if servers_fault else UNSET)
    assert client.status.code == (UNSET if status is Status.OK else ERROR)


def test_a_call_that_was_never_sent_has_no_client_span() -> None:
    [server] = read(a_trace(sent_after_s=None), a_record(status=Status.UNAVAILABLE))
    assert server.kind == SERVER


def test_a_trace_that_begins_here_has_a_root() -> None:
    server, client = read(a_trace(parent_id=b"", state=""), a_record())
    assert (server.parent_span_id, server.flags) == (b"", HAS_REMOTE | SAMPLED)
    assert client.parent_span_id == b"server's"


def test_a_method_that_nobody_serves_makes_no_name_of_its_own() -> None:
    [server] = read(
        a_trace(sent_after_s=None),
        a_record(upstream=None, method="/made.Up/1234", status=Status.UNIMPLEMENTED),
    )
    assert server.name == "grpc"
    assert attributes_of(server)["rpc.method"] == "_OTHER"
    assert attributes_of(server)["rpc.method_original"] == "made.Up/1234"


@given(
    st.text(max_size=10) | st.just("/" + "ÿ" * 65536),
    st.text(max_size=10) | st.just("€" * 65536),
    st.text(max_size=30) | st.just("x:99999999999999999999"),
    st.one_of(st.none(), st.text(max_size=30)),
    st.sampled_from(list(Status)),
    st.floats(-1e6, 1e9),
)
def test_whatever_is_in_a_record_its_spans_are_short_and_can_be_read(
    method: str, detail: str, place: str, upstream: str | None, status: Status, duration_s: float
) -> None:
    trace = a_trace(authority=place[:256], state="ÿ" * 512)
    record = a_record(
        method=method,
        detail=detail + "\ud800",
        peer=place,
        upstream=upstream,
        status=status,
        duration_s=max(duration_s, 0.0),
    )
    for span, encoded in zip(read(trace, record), spans_of(trace, record), strict=True):
        assert len(encoded) <= 6 * 1024
        assert span.end_time_unix_nano >= span.start_time_unix_nano
        attributes_of(span)


def test_what_a_collector_objects_to_is_read() -> None:
    response = otlp().ExportTraceServiceResponse()
    assert partial_success_in(response.SerializeToString()) is None
    response.partial_success.rejected_spans = 300
    response.partial_success.error_message = "too old"
    found = partial_success_in(response.SerializeToString())
    assert found is not None
    assert (found.rejected, found.message) == (300, "too old")


@given(st.binary(max_size=64))
def test_any_bytes_of_a_collector_are_an_objection_or_none(response: bytes) -> None:
    found = partial_success_in(response)
    assert found is None or (found.rejected >= 0 and len(found.message) <= 256)
