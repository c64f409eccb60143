"""The two messages of `grpc.health.v1.Health`, read and written without protobuf.

A request is one string (field 1), a response one enum (field 1). What it does not do: serve health, or ask for it.
"""

from enum import IntEnum

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError

SERVICE = "grpc.health.v1.Health"
_STRING_FIELD_1 = 0x0A
_VARINT_FIELD_1 = 0x08
_VARINT_BITS = 63  # more is no length, and adding it up would take time quadratic in the payload


class ServingStatus(IntEnum):
    """grpc.health.v1.HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


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


def response_of(status: ServingStatus) -> bytes:
    """The payload of a HealthCheckResponse."""
    return bytes([_VARINT_FIELD_1, status]) if status else b""


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
