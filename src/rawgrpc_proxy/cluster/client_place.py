"""`ClientPlace`: a place of a client's call at one of a cluster's endpoints, which hears how the call went.

It has a place of each of the cluster's limits, too, which goes on to the place that takes this one's place.
"""

import time

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.cluster.endpoint import Place
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.limits.concurrency import Places
from rawgrpc_proxy.net.stream import Stream


class ClientPlace:
    """Room for one call of a client on a connection to an endpoint."""

    __slots__ = ("_conn", "_context", "_limits", "endpoint", "started")

    def __init__(self, place: Place, context: CallContext, limits: Places | None) -> None:
        """`limits` are the call's places of the cluster's, to be given back with this one."""
        self.endpoint = place.endpoint
        """Where it leads."""
        self.started = time.perf_counter()
        self._conn = place.conn
        self._context = context
        self._limits = limits

    @property
    def address(self) -> str:
        """Of the endpoint."""
        return self.endpoint.address

    @property
    def is_tls(self) -> bool:
        """Whether the connection speaks TLS."""
        return self._conn.is_tls

    @property
    def has_room(self) -> bool:
        """Whether the stream may be opened now."""
        return self._conn.has_room

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the endpoint says it takes."""
        return self._conn.peer_max_header_list_bytes

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open the stream, at once. Raises `UpstreamUnavailable` if there is no room any more."""
        return self._conn.open_stream(headers, end_stream)

    async def again(self) -> "ClientPlace":
        """A place at another endpoint, or if there is none on another connection to this one.

        What this one has of the limits is the other's from then on.
        """
        place = await self.endpoint.cluster.take_another(self._context, self.endpoint)
        if place is None:
            place = Place(self.endpoint, await self._conn.again())
        limits, self._limits = self._limits, None
        return ClientPlace(place, self._context, limits)

    def ended(self, error: RpcError | None) -> None:
        """The endpoint is told."""
        self.endpoint.attempt_ended(Status.OK, self, error)

    def give_back(self) -> None:
        """The call does not need it any more."""
        if self._limits is not None:
            self._limits.leave(None)  # a client's calls are no measure of how fast the endpoints are
        self._conn.give_back()
