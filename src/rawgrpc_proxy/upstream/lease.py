"""`PoolConn`: a lease, one call's place on a connection that it shares.

What it does not do: find a connection (`target.py`), or be one (`pooled.py`). The invariant: a place is given back
exactly once, or handed over to somebody who does.
"""

import warnings
from typing import Protocol

from rawgrpc_proxy.errors import ProxyError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.upstream.choice import Phase
from rawgrpc_proxy.upstream.pooled import PooledConnection


class Releases(Protocol):
    """A pool, as its leases know it."""

    @property
    def is_open(self) -> bool:
        """Whether there is anything to give back to."""

    def release(self, address: str, conn: "PoolConn", err: BaseException | None) -> None:
        """Take `conn` back from one call."""


class PoolConn:
    """A lease: a place for one stream on a connection that other calls share. Close it when the call is over.

    A director answers it, and the proxy closes it when the call ends. One that is dropped without either is given back
    with a `ResourceWarning`, as soon as the garbage collector finds it.
    """

    __slots__ = ("_held", "pool", "shared")

    def __init__(self, pool: Releases, shared: PooledConnection) -> None:
        self.pool = pool
        """Where it comes from."""
        self.shared = shared
        """The connection. Two leases with the same one share it."""
        self._held = True

    @property
    def address(self) -> str:
        """The address it leads to, as it was given to `get_conn`."""
        return self.shared.address

    @property
    def streams(self) -> int:
        """Calls that hold the connection now."""
        return self.shared.streams

    @property
    def pooled(self) -> bool:
        """Whether the connection is kept when its calls are over, unless there are too many."""
        return self.shared.pooled

    @property
    def peer_limit(self) -> int:
        """The upstream's SETTINGS_MAX_CONCURRENT_STREAMS."""
        return self.shared.peer_limit

    @property
    def err(self) -> ProxyError | None:
        """Why the connection failed or drains, if it does. Once set, the connection is closed with its last call."""
        return self.shared.err

    @err.setter
    def err(self, error: ProxyError | None) -> None:
        self.shared.err = error

    @property
    def phase(self) -> Phase:
        """Where the connection is in its life."""
        return self.shared.phase

    @property
    def has_room(self) -> bool:
        """Whether a stream may be opened on it now."""
        return self.shared.has_room

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the upstream says it takes, as RFC 9113 §6.5.2 counts it."""
        return self.shared.peer_max_header_list_bytes

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open a stream with these request headers, at once. The lease holds a place for it.

        Raises `UpstreamUnavailable` if the connection has failed, drains, or its peer allows no more by now.
        """
        return self.shared.open_stream(headers, end_stream)

    async def again(self) -> "PoolConn":
        """A lease on another connection to the same address with the same TLS, for a call that was refused here.

        Waits and raises as `get_conn`. On the same connection only if nothing else can be had. This lease has to be
        closed all the same.
        """
        return PoolConn(self.pool, await self.shared.again())

    def close(self) -> None:
        """Give the connection back: `pool.release(address, conn, conn.err)`. Once for each `get_conn`."""
        self.pool.release(self.address, self, self.err)

    def hand_over(self) -> PooledConnection:
        """Let somebody else give the place back. Raises `ValueError` if it has been given back or handed over."""
        if not self._held:
            raise ValueError(
                f"{self!r} was given back, or answered by a director, more often than it was taken"
            )
        self._held = False
        return self.shared

    def __del__(self) -> None:
        if self._held and self.pool.is_open:
            self._held = False
            warnings.warn(
                f"a lease on a connection to {self.address} was dropped: close what get_conn answers, or let the "
                "director answer it, or answer pool.target(address), which holds nothing",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self.shared.give_back_soon()

    def __repr__(self) -> str:
        return f"<PoolConn {self.address} {self.phase.value}, {self.streams} streams>"
