"""`Watcher`: whoever looks after the endpoints of a cluster, and says which of them are fit for calls."""

from typing import Protocol

import trio

from rawgrpc_proxy.cluster.endpoint import Endpoint


class Watcher(Protocol):
    """Looks after endpoints from when they join to when they leave. It marks them, and has the cluster refresh."""

    def open(self, nursery: trio.Nursery) -> None:
        """The cluster is open; what has to run does so in `nursery`, whose end is the end of it."""

    def join(self, endpoint: Endpoint) -> None:
        """There is one endpoint more."""

    def leave(self, endpoint: Endpoint) -> None:
        """There is one less. Its last calls may still be on their way."""
