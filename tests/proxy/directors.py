"""Directors and handlers as users write them, for more than one file of tests."""

import contextvars
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from rawgrpc_proxy import (
    Call,
    CallContext,
    Direction,
    PoolConn,
    RpcError,
    Server,
    Status,
    StreamDirector,
    transparent_handler,
)
from rawgrpc_proxy.config import Engine
from tests.proxy.house import House, a_proxy


class Wrapped:
    """A handler of a user's own around the proxy's: it hears how each call went, when it is over."""

    def __init__(self) -> None:
        self.ends: list[object] = []

    def configure(self, server: Server, director: StreamDirector) -> None:
        """Answer /a.B/C with this."""
        self._forward = transparent_handler(director)
        server.add_handler("/a.B/C", self)

    async def __call__(self, call: Call) -> None:
        try:
            await self._forward(call)
        except BaseException as error:
            self.ends.append(error)
            raise
        self.ends.append("well")


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class PlainDirector:
    """A director that is no coroutine function. The methods say what it does."""

    def __init__(self) -> None:
        self.house: House | None = None
        self.asked: list[str] = []
        self.lost: PoolConn | None = None

    def __call__(self, context: CallContext, method: str) -> Direction | Awaitable[Direction]:
        assert self.house is not None
        self.asked.append(method)
        pool, address = self.house.pool, self.house.backend.address
        if method == "/a.B/Refused":
            raise RpcError(Status.PERMISSION_DENIED, "not you")
        if method == "/a.B/Fault":
            raise KeyError("fault")
        if method == "/a.B/Nonsense":
            return None  # type: ignore[return-value]
        seen = variable.get()
        variable.set("left over")
        assert seen == "unset"
        conn = pool.get_conn_nowait(address) or self.lost
        if conn is None:
            return self._wait(context)
        return context, conn

    async def _wait(self, context: CallContext) -> Direction:
        assert self.house is not None
        return context, await self.house.pool.get_conn(self.house.backend.address)


@asynccontextmanager
async def a_proxy_with_plain_director(engine: Engine) -> AsyncIterator[tuple[House, PlainDirector]]:
    director = PlainDirector()
    async with a_proxy(engine, director=director) as house:
        director.house = house
        yield house, director
