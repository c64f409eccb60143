"""`StreamDirector`: the user's code that says where a call goes."""

import inspect
from collections.abc import Awaitable, Callable

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.describe import shown
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.pool import PoolConn

Direction = tuple[CallContext, PoolConn]

StreamDirector = Callable[[CallContext, str], Direction | Awaitable[Direction]]
"""Called once for each call, with its context and its full method name (`/package.Service/Method`), before anything
is sent upstream. Answers the outgoing context (the one it was given, unless it changes the metadata) and a pooled
connection, which the proxy closes when the call ends; or raises `RpcError`, which the caller gets as it was raised.
Plain or async. An async director is cancelled when the caller gives up or its deadline passes. A plain one costs less:
it is asked where the call was read, so it must not block; if it has to wait after all, it may answer an awaitable."""


def checked(answer: object, context: CallContext) -> Direction:
    """What a director has answered, if it is a direction. Raises `ConfigError` for anything else."""
    if isinstance(answer, tuple) and len(answer) == 2:  # noqa: PLR2004  # `match` takes three times as long
        outgoing, conn = answer
        if isinstance(outgoing, CallContext) and isinstance(conn, PoolConn):
            if conn.streams < 1:
                raise ConfigError(
                    f"the director answered a connection for {context.method} that it has given back already; "
                    "the proxy closes it when the call ends"
                )
            return outgoing, conn
    for part in answer if isinstance(answer, tuple | list) else (answer,):
        # A connection that was leased for this call would never come back otherwise.
        if isinstance(part, PoolConn):
            part.close()
        elif inspect.iscoroutine(part):
            part.close()  # an `await` was forgotten
    raise ConfigError(
        f"the director answered {shown(answer)} for {context.method}; it must return (context, conn) with conn from "
        "`await pool.get_conn(address)`, or raise RpcError"
    )
