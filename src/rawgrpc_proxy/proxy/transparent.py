"""`transparent_handler` and `register_service`: calls that go to whatever upstream a director names.

What it does not do: make up answers. A handler raises `RpcError`, and the server turns that into a response.
"""

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio

from rawgrpc_proxy.call import Call, CallContext, Handler
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Place
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.proxy.director import StreamDirector, checked
from rawgrpc_proxy.proxy.forwarding import Forwarding, Owner
from rawgrpc_proxy.proxy.hedging import HedgedForwarding
from rawgrpc_proxy.proxy.retrying import RetryingForwarding
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

_ORIGINS_OF_UPSTREAMS = frozenset({"upstream", "http", "reset", "lost"})


class TransparentHandler:
    """Passes calls on to where its director says.

    Called like any handler it returns when the call is over. A server does better: it lets the call begin, and needs
    no task for it from then on; and none at all if the director is no coroutine function, and need not wait.
    """

    def __init__(self, director: StreamDirector) -> None:
        self._director = director
        self.asking: set[Call] = set()
        """Calls whose director has been asked, and is waited for."""
        self._may_wait = inspect.iscoroutinefunction(director) or inspect.iscoroutinefunction(
            getattr(director, "__call__", None)  # noqa: B004  # an object with `async def __call__`
        )

    def forward_now(
        self, call: Call, owner: Owner
    ) -> Forwarding | Callable[[], Awaitable[Forwarding | None]]:
        """Ask the director, open the upstream stream and join it to the call's, all at once; or answer what to await.

        None from that means that the call is over: a subclass may answer some calls itself.

        Raises as `forward` does. What is written has to be flushed by the caller.
        """
        if self._may_wait:
            return partial(self.forward, call, owner)
        try:
            answer = self._director(call.context, call.context.method)
        except RpcError as error:
            _note_director(error)
            raise
        if not isinstance(answer, tuple):
            return partial(self._forward_by, answer, call, owner)
        context, where = checked(answer, call.context)
        made = Forwarding if context.policy is None else _forwarding
        forwarding = made(call, context, where, owner)
        return forwarding if forwarding.open_now() else forwarding.open

    async def forward(self, call: Call, owner: Owner) -> Forwarding:
        """Ask the director, open the upstream stream and join it to the call's.

        Raises what the director raises, and `RpcError` if no stream can be opened; then, and when it is cancelled, the
        call has left no trace upstream, and `owner` hears nothing. What is written has to be flushed by the caller.
        """
        if call.stream.inbox.error is not None:
            raise call.stream.inbox.error
        try:
            answer = self._director(call.context, call.context.method)
        except RpcError as error:
            _note_director(error)
            raise
        return await self._forward_by(answer, call, owner)

    async def _forward_by(self, answer: object, call: Call, owner: Owner) -> Forwarding:
        if not isinstance(answer, tuple) and inspect.isawaitable(answer):
            self.asking.add(call)
            try:
                answer = await answer
            except RpcError as error:
                _note_director(error)
                raise
            finally:
                self.asking.discard(call)
        return await _forwarding(call, *checked(answer, call.context), owner).open()

    async def __call__(self, call: Call) -> None:
        """Pass the call on, and wait until it is over. Raises `RpcError` unless the upstream has ended it."""
        waiter = _Waiter()
        forwarding = await self.forward(call, waiter)
        try:
            while True:
                call.stream.connection.turn.flush()
                await waiter.news.wait()
                if forwarding.over:
                    break
                waiter.news = trio.Event()
                await forwarding.open_again()
        finally:
            forwarding.stop()
        if waiter.error is not None:
            raise waiter.error


def _note_director(error: RpcError) -> None:
    """A director may let through the error of a call of its own: that status is of no upstream of this call."""
    if error.origin in _ORIGINS_OF_UPSTREAMS:
        error.origin = "director"


def _forwarding(
    call: Call, context: CallContext, where: PooledConnection | Target | Cluster | Place, owner: Owner
) -> Forwarding:
    """The call on its way, as its policy has it."""
    policy = context.policy
    if policy is not None:
        if policy.retry is not None:
            return RetryingForwarding(call, context, where, owner, policy.retry)
        if policy.hedging is not None:
            return HedgedForwarding(call, context, where, owner, policy.hedging)
    return Forwarding(call, context, where, owner)


class _Waiter:
    """The owner of a forwarding that a task waits for."""

    def __init__(self) -> None:
        self.news = trio.Event()
        self.error: RpcError | None = None

    def forwarding_over(self, _forwarding: Forwarding, error: RpcError | None) -> None:
        self.error = error
        self.news.set()

    def forwarding_refused(self, _forwarding: Forwarding) -> None:
        self.news.set()


def transparent_handler(director: StreamDirector) -> Handler:
    """A handler that passes every call on, unchanged, to where `director` says.

    Use it as a server's `unknown_service_handler`, or on single methods with `register_service`. All request headers
    are forwarded unless the director changes them. A call that provably was not processed (REFUSED_STREAM, GOAWAY) is
    sent once more while nothing of its response has arrived and its request fits into 64 KiB.

    A handler of your own may await it, once for each call: it returns when the call is over, and raises `RpcError`
    unless the upstream has ended the call.
    """
    return TransparentHandler(director)


class MethodTable(Protocol):
    """Where handlers are registered: a `Server`."""

    def add_handler(self, path: str, handler: Handler) -> None:
        """Let `handler` answer the method `path`."""


def register_service(
    server: MethodTable, director: StreamDirector, service_name: str, *method_names: str
) -> None:
    """Proxy the named methods of one service, and no others.

    A method of the service that is not named goes to the server's unknown-service handler, or is UNIMPLEMENTED.
    """
    handler = transparent_handler(director)
    for method_name in method_names:
        server.add_handler(f"/{service_name}/{method_name}", handler)
