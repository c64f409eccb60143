"""What the Python clients and servers share: messages, methods and how values are written in outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from interop.peers.generated import test_pb2

T = TypeVar("T")
Metadata = list[tuple[str, "str | bytes"]]

PACKAGE = "grpc.testing"
CALL_ID_KEY = "x-interop-call-id"
ECHO_INITIAL_KEY = "x-grpc-test-echo-initial"
ECHO_TRAILING_KEY = "x-grpc-test-echo-trailing-bin"
#: More than the largest message (64 MiB) and the largest header list (63 KiB) of the cases.
MESSAGE_LIMIT = 80 * 1024 * 1024
METADATA_LIMIT = 128 * 1024
#: Longer metadata values are reported as size and hash.
LONG_VALUE = 200

_PATTERN = bytes(i * i % 251 for i in range(251))


@dataclass(frozen=True)
class Method:
    """One method of the .proto, as every library wants it described."""

    name: str
    path: str
    client_streaming: bool
    server_streaming: bool
    request_type: type[Message]
    response_type: type[Message]


def methods(service: str) -> dict[str, Method]:
    """All methods of one service of the .proto by name."""
    descriptor = test_pb2.DESCRIPTOR.services_by_name[service]
    return {
        method.name: Method(
            method.name,
            f"/{PACKAGE}.{service}/{method.name}",
            method.client_streaming,
            method.server_streaming,
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )
        for method in descriptor.methods
    }


def body(size: int) -> bytes:
    """A payload in which swapped, doubled or lost HTTP/2 frames change the hash (251 is prime)."""
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


def describe(message: Message) -> dict[str, Any]:
    """What an outcome says of a message."""
    if isinstance(message, test_pb2.StreamingInputCallResponse):
        return {"aggregated": message.aggregated_payload_size}
    data: bytes = message.payload.body if hasattr(message, "payload") else b""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def metadata_text(key: str, value: str | bytes) -> str:
    """A metadata value as an outcome shows it."""
    if key == "date":
        return "A DATE"  # it cannot be equal
    if len(value) > LONG_VALUE:
        data = value if isinstance(value, bytes) else value.encode()
        return f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    return f"hex:{value.hex()}" if isinstance(value, bytes) else value


def metadata_entries(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[tuple[str, str]]:
    """Metadata as an outcome shows it; the order of different names means nothing in HTTP, so it is dropped."""
    entries = [(key, metadata_text(key, value)) for key, value in metadata or ()]
    return sorted(entries, key=lambda entry: entry[0])


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose awaits all block instead of suspending (the adapters of the synchronous API)."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking adapter suspended")
