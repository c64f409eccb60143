"""OTLP's messages, to read what the proxy exports: of opentelemetry-proto if it is installed, else made here.

Those that are made here have the fields that a test looks at, with the names and numbers of the published .proto files.
They need protobuf, so a test that wants them is skipped without it.
"""

import importlib
from typing import Any

import pytest

_PUBLISHED = "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
_INT64, _FIXED64, _FIXED32, _STRING, _MESSAGE, _BYTES, _ENUM = 3, 6, 7, 9, 11, 12, 5
"""Types of fields in a descriptor. An enum is read as its number."""
_MESSAGES: dict[str, list[tuple[str, int, int, str, bool]]] = {
    "AnyValue": [("string_value", 1, _STRING, "", False), ("int_value", 3, _INT64, "", False)],
    "KeyValue": [("key", 1, _STRING, "", False), ("value", 2, _MESSAGE, "AnyValue", False)],
    "Resource": [("attributes", 1, _MESSAGE, "KeyValue", True)],
    "Scope": [("name", 1, _STRING, "", False), ("version", 2, _STRING, "", False)],
    "Status": [("message", 2, _STRING, "", False), ("code", 3, _ENUM, "", False)],
    "Span": [
        ("trace_id", 1, _BYTES, "", False),
        ("span_id", 2, _BYTES, "", False),
        ("trace_state", 3, _STRING, "", False),
        ("parent_span_id", 4, _BYTES, "", False),
        ("name", 5, _STRING, "", False),
        ("kind", 6, _ENUM, "", False),
        ("start_time_unix_nano", 7, _FIXED64, "", False),
        ("end_time_unix_nano", 8, _FIXED64, "", False),
        ("attributes", 9, _MESSAGE, "KeyValue", True),
        ("status", 15, _MESSAGE, "Status", False),
        ("flags", 16, _FIXED32, "", False),
    ],
    "ScopeSpans": [
        ("scope", 1, _MESSAGE, "Scope", False),
        ("spans", 2, _MESSAGE, "Span", True),
        ("schema_url", 3, _STRING, "", False),
    ],
    "ResourceSpans": [
        ("resource", 1, _MESSAGE, "Resource", False),
        ("scope_spans", 2, _MESSAGE, "ScopeSpans", True),
        ("schema_url", 3, _STRING, "", False),
    ],
    "ExportTraceServiceRequest": [("resource_spans", 1, _MESSAGE, "ResourceSpans", True)],
    "ExportTracePartialSuccess": [
        ("rejected_spans", 1, _INT64, "", False),
        ("error_message", 2, _STRING, "", False),
    ],
    "ExportTraceServiceResponse": [("partial_success", 1, _MESSAGE, "ExportTracePartialSuccess", False)],
}


def otlp() -> Any:
    """What has the classes `ExportTraceServiceRequest` and `ExportTraceServiceResponse`."""
    try:
        return importlib.import_module(_PUBLISHED)
    except ImportError:
        return _made_here()


def _made_here() -> Any:
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    descriptor_pool = importlib.import_module("google.protobuf.descriptor_pool")
    message_factory = importlib.import_module("google.protobuf.message_factory")
    file = descriptor_pb2.FileDescriptorProto(name="otlp_for_tests.proto", package="t", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of, many in fields:
            made = message.field.add(name=field, number=number, type=kind, label=3 if many else 1)
            if of:
                made.type_name = f".t.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}")) for name in _MESSAGES
    }
    return type("Otlp", (), classes)


def spans_in(request: Any) -> list[Any]:
    """All spans of a request, in order."""
    return [
        span
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def attributes_of(span: Any) -> dict[str, str | int]:
    """By key; a key that comes twice is an error."""
    found: dict[str, str | int] = {}
    for each in span.attributes:
        assert each.key not in found
        value = each.value
        found[each.key] = value.string_value or value.int_value
    return found
