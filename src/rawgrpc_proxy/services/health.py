"""`grpc.health.v1.Health`, served by the proxy itself.

Check of an unknown service is NOT_FOUND; the empty name is the whole server. Watch of an unknown service says
SERVICE_UNKNOWN and goes on watching.

When the server stops, everything it knows is NOT_SERVING: those who watch are told, and their calls end with
UNAVAILABLE, so that they do not use up the time that is for others.
"""

from collections.abc import AsyncIterator

import trio

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.health import SERVICE, ServingStatus, read_service, response_of
from rawgrpc_proxy.services.methods import MethodKind, ServedCall, unary_stream, unary_unary

MAX_REQUEST_BYTES = 4096


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
        return response_of(status)

    async def _watch(self, request: bytes, call: ServedCall) -> AsyncIterator[bytes]:
        service = read_service(request)
        told: ServingStatus | None = None
        while True:
            changed, stopping, status = self._changed, call.stopping.is_set(), self._now(service, call)
            if status is not told:
                told = status
                yield response_of(status)
            if stopping:
                raise RpcError(Status.UNAVAILABLE, "the server is shutting down", origin="served")
            with call.stopping.ends():
                await changed.wait()

    def _now(self, service: str, call: ServedCall) -> ServingStatus:
        status = self._status.get(service, ServingStatus.SERVICE_UNKNOWN)
        is_known = status is not ServingStatus.SERVICE_UNKNOWN
        return ServingStatus.NOT_SERVING if is_known and call.stopping.is_set() else status
