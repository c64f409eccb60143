"""`ClusterConn`: a lease on a connection to one of a cluster's endpoints."""

from rawgrpc_proxy.cluster.endpoint import Endpoint, Place
from rawgrpc_proxy.upstream.lease import PoolConn, Releases


class ClusterConn(PoolConn):
    """A lease that knows its endpoint, so that the call that gets it can tell there how it ended."""

    __slots__ = ("endpoint",)

    def __init__(self, pool: Releases, place: Place) -> None:
        super().__init__(pool, place.conn)
        self.endpoint: Endpoint = place.endpoint
        """Where it leads."""
