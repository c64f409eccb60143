"""`StreamDirector`: the user's code that says where a call goes."""

import contextlib
import inspect
from collections.abc import Awaitable, Callable

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Place
from rawgrpc_proxy.cluster.lease import ClusterConn
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.observe.describe import shown
from rawgrpc_proxy.upstream.lease import PoolConn
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

Direction = tuple[CallContext, PoolConn | Target | Cluster]
"""What a director answers: the outgoing context, and where the call goes."""

StreamDirector = Callable[[CallContext, str], Direction | Awaitable[Direction]]
"""Called once for each call, with its context and its full method name (`/package.Service/Method`), before anything
is sent upstream. Answers the outgoing context (the one it was given, unless it changes the metadata) and where the call
goes: a target (`pool.target(address)`), on a connection of which the proxy takes a place itself; a cluster, of which it
chooses an endpoint first; or a connection that the director has leased, which the proxy closes when the call ends. Or
it raises `RpcError`, which the caller gets as it was raised. Plain or async. An async director is cancelled when the
caller gives up or its deadline passes. A plain one costs less: it is asked where the call was read, so it must not
block; if it has to wait after all, it may answer an awaitable."""


_PLACES = (Target, Cluster)  # `Target | Cluster` would be made anew for each call


def checked(
    answer: object, context: CallContext
) -> tuple[CallContext, PooledConnection | Target | Cluster | Place]:
    """What a director has answered, if it is a direction; a lease is ours then. Else raises `ConfigError`."""
    if isinstance(answer, tuple) and len(answer) == 2:  # noqa: PLR2004  # `match` takes three times as long
        outgoing, where = answer
        if isinstance(outgoing, CallContext):
            if isinstance(where, _PLACES):
                return outgoing, where
            if isinstance(where, PoolConn):
                try:
                    conn = where.hand_over()
                    return outgoing, (Place(where.endpoint, conn) if isinstance(where, ClusterConn) else conn)
                except ValueError as error:
                    raise ConfigError(
                        f"the director answered a connection for {context.method} that it has given back already, or "
                        "answered for another call; a lease is for one call, and the proxy closes it when that ends"
                    ) from error
    for part in answer if isinstance(answer, tuple | list) else (answer,):
        # A connection that was leased for this call would never come back otherwise.
        if isinstance(part, PoolConn):
            with contextlib.suppress(ValueError):  # it has been given back
                part.close()
        elif inspect.iscoroutine(part):
            part.close()  # an `await` was forgotten
    raise ConfigError(
        f"the director answered {shown(answer)} for {context.method}; it must return (context, conn) with conn from "
        "`await pool.get_conn(address)`, or (context, pool.target(address)), or (context, cluster), or raise RpcError"
    )
