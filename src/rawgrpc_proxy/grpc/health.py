"""The two messages of `grpc.health.v1.Health`, read and written without protobuf.

A request is one string (field 1), a response one enum (field 1). What it does not do: serve health, or ask for it.
"""

from enum import IntEnum

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError, Side

SERVICE = "grpc.health.v1.Health"
_STRING_FIELD_1 = 0x0A
_VARINT_FIELD_1 = 0x08
_FIXED = {1: 8, 5: 4}
"""By the kind of a field: its bytes, of those that have always as many."""
_VARINT_BITS = 63  # more is no length, and adding it up would take time quadratic in the payload


class ServingStatus(IntEnum):
    """grpc.health.v1.HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def request_for(service: str) -> bytes:
    """The payload that asks for this service (of up to 16,383 bytes)."""
    name = service.encode()
    if not name:
        return b""
    length = [len(name)] if len(name) < 0x80 else [len(name) & 0x7F | 0x80, len(name) >> 7]  # noqa: PLR2004
    return bytes([_STRING_FIELD_1, *length]) + name


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


def read_status(payload: bytes) -> ServingStatus:
    """The status that a HealthCheckResponse gives; UNKNOWN for one that we do not know.

    Raises INTERNAL if the payload is no such message.
    """
    value, position = 0, 0
    try:
        while position < len(payload):
            tag, position = _varint(payload, position)
            kind = tag & 7
            if kind == 0:
                number, position = _varint(payload, position)
                value = number if tag == _VARINT_FIELD_1 else value
            elif kind == 2:  # noqa: PLR2004  # has a length
                length, position = _varint(payload, position)
                position += length
            elif kind in _FIXED:
                position += _FIXED[kind]
            else:
                raise ValueError
        if position > len(payload):
            raise ValueError
    except (IndexError, ValueError):
        raise RpcError(
            Status.INTERNAL,
            "the response is no grpc.health.v1.HealthCheckResponse",
            side=Side.UPSTREAM,
            origin="upstream",
        ) from None
    return ServingStatus(value) if value < len(ServingStatus) else ServingStatus.UNKNOWN


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
