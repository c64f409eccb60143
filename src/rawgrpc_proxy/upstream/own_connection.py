"""`OwnConnection`: a connection to a target's upstream that is not one of the pool's, for one call of the proxy's own.

For what must have an answer while calls have taken all there is: a check of health. It is dialled beyond `size` and
`max_connections`, stands in no line, and is closed with its call. What it does not do: change what the target knows of
its upstream; a dial that fails here is no trouble of calls. The invariant: no other call gets it.
"""

import trio

from rawgrpc_proxy.errors import ProxyError, UpstreamUnavailable
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.observe.tell import tell
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target


class OwnConnection:
    """The owner of that one connection. `take` it once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.address = target.address
        self.parsed = target.parsed
        self.ssl_context = target.ssl_context
        self.server_name = target.server_name
        self.peer_limit = target.peer_limit
        self.keepalive_s = target.keepalive_s
        self.state = target.state
        self._settled = trio.Event()
        self._problem: ProxyError | None = None

    async def take(self) -> PooledConnection:
        """Dial. The place on it is to be given back, as any.

        Waits for the dial, `dial_timeout_s` at the most. Raises `UpstreamUnavailable`, or whatever the dial has failed
        with. Cancelled, it leaves nothing.
        """
        state = self.state
        if state.nursery is None:
            raise UpstreamUnavailable("the pool is closed", cause="stopping")
        conn = PooledConnection(self, trio.current_time(), streams=1)
        tell(state.observer, "dial_started", self.address)
        state.nursery.start_soon(conn.run)
        try:
            await self._settled.wait()
            if self._problem is not None:
                raise self._problem
            if not conn.has_room:
                raise UpstreamUnavailable(
                    f"{self.parsed} allows no streams at present", cause="SETTINGS_MAX_CONCURRENT_STREAMS"
                )
        except BaseException:
            self.give_back(conn, failed=True)
            raise
        return conn

    # ------------------------------------------------- what a connection tells its owner

    def give_back(self, conn: PooledConnection, *, failed: bool) -> None:  # noqa: ARG002  # the protocol's
        """Its call is over, and so is it."""
        conn.streams -= 1
        conn.end()

    async def take_another(self, conn: PooledConnection) -> PooledConnection:  # noqa: ARG002  # the protocol's
        """Its call needs another one: one of the same kind."""
        return await OwnConnection(self._target).take()

    def dialled(self, conn: PooledConnection, connection: Connection) -> None:
        """The dial has succeeded."""
        now = trio.current_time()
        tell(self.state.observer, "dial_succeeded", self.address, now - conn.created_at)
        tell(self.state.observer, "upstream_opened", self.address, connection.transport.tls_version)
        conn.peer_limit = connection.session.peer_max_concurrent_streams
        conn.connection, conn.created_at = connection, now
        self._settled.set()

    def dial_failed(self, conn: PooledConnection, error: ProxyError) -> None:
        """It could not be had."""
        tell(self.state.observer, "dial_failed", self.address, trio.current_time() - conn.created_at, error)
        self.dial_ended(conn, error)

    def dial_ended(self, conn: PooledConnection, error: ProxyError) -> None:
        """There is none."""
        conn.err = self._problem = error
        self._settled.set()

    def retire(self, conn: PooledConnection) -> None:
        """It takes no more calls: it has its only one."""

    def allows(self, limit: int) -> None:
        """Its call has its stream already."""

    def changed(self, conn: PooledConnection) -> None:
        """Its call sees what becomes of it."""

    def ended(self, conn: PooledConnection) -> None:
        """It is no more, and was never counted."""

    def expires_at(self, conn: PooledConnection) -> float:
        """The last moment at which it takes new streams."""
        return conn.created_at + self.state.limits.ttl_s
