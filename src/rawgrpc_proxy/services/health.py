"""`grpc.health.v1.Health`, served by the proxy itself, without protobuf.

Its two messages are so small that they are read and written here: a request is one string (field 1), a response one
enum (field 1). Check of an unknown service is NOT_FOUND; the empty name is the whole server. Watch of an unknown
service says SERVICE_UNKNOWN and goes on watching.

When the server stops, everything it knows is NOT_SERVING: those who watch are told, and their calls end with
UNAVAILABLE, so that they do not use up the time that is for others.
"""

from collections.abc import AsyncIterator
from enum import IntEnum

import trio

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.services.methods import MethodKind, ServedCall, unary_stream, unary_unary

SERVICE = "grpc.health.v1.Health"
_STRING_FIELD_1 = 0x0A
_VARINT_FIELD_1 = 0x08
_VARINT_BITS = 63  # more is no length, and adding it up would take time quadratic in the payload
MAX_REQUEST_BYTES = 4096


class ServingStatus(IntEnum):
    """grpc.health.v1.HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class Health:
    """The state of the services of one server. The whole server, "", is SERVING from the start."""

    def __init__(self) -> None:
        self._status = {"": ServingStatus.SERVING}
        self._changed = trio.Event()

    def set(self, service: str, status: ServingStatus) -> None:
        """Say how a service is; those who watch it are told."""
        self._status[service] = status
        self._changed.set()
        self._changed = trio.Event()

    def methods(self) -> dict[str, MethodKind]:
        """Paths and methods, for `Server.add_method`."""
        return {
            f"/{SERVICE}/Check": unary_unary(self._check, bytes, max_message_bytes=MAX_REQUEST_BYTES),
            f"/{SERVICE}/Watch": unary_stream(self._watch, bytes, max_message_bytes=MAX_REQUEST_BYTES),
        }

    async def _check(self, request: bytes, call: ServedCall) -> bytes:
        service = read_service(request)
        status = self._now(service, call)
        if status is ServingStatus.SERVICE_UNKNOWN:
            raise RpcError(Status.NOT_FOUND, f"there is no service {service!r} here", origin="served")
        return _response(status)

    async def _watch(self, request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        service = read_service(request)
        told: ServingStatus | None = None
        while True:
            changed, stopping, status = self._changed, call.stopping.is_set(), self._now(service, call)
            if status is not told:
                told = status
                yield _response(status)
            if stopping:
                raise RpcError(Status.UNAVAILABLE, "the server is shutting down", origin="served")
            with call.stopping.ends():
                await changed.wait()

    def _now(self, service: str, call: ServedCall) -> ServingStatus:
        status = self._status.get(service, ServingStatus.SERVICE_UNKNOWN)
        is_known = status is not ServingStatus.SERVICE_UNKNOWN
        return ServingStatus.NOT_SERVING if is_known and call.stopping.is_set() else status


def request_for(service: str) -> bytes:
    """The payload that asks for this service (of up to 127 bytes)."""
    name = service.encode()
    return bytes([_STRING_FIELD_1, len(name)]) + name if name else b""


def read_service(payload: bytes) -> str:
    """The service a HealthCheckRequest names. Raises INTERNAL if the payload is no such message."""
    service, position = b"", 0
    try:
        while position < len(payload):
            if payload[position] != _STRING_FIELD_1:
                raise ValueError
            length, start = _varint(payload, position + 1)
            position = start + length
            service = payload[start:position]
            if len(service) != length:
                raise ValueError
        return service.decode()
    except (IndexError, ValueError):
        raise RpcError(
            Status.INTERNAL, "this is no grpc.health.v1.HealthCheckRequest", origin="served"
        ) from None


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if shift > _VARINT_BITS:
            raise ValueError
        byte = payload[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:  # noqa: PLR2004
            return value, position
        shift += 7


def _response(status: ServingStatus) -> bytes:
    return bytes([_VARINT_FIELD_1, status]) if status else b""
