"""`grpc.health.v1.Health` for some services by name, answered by the proxy; calls about all others are passed on.

So a balancer can ask the proxy itself how it is, and through it, on the same port, each backend. Whom a call is about
is in its request, which is looked at where it waits and not taken: what is passed on goes as it came, its first message
not before it is whole. What it does not do: know how backends are, or what is said (`health.py`).

The invariant: a request that does not clearly ask for one of the names is the upstream's to answer.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import trio

from rawgrpc_proxy.call import Call, Handler
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.grpc.compression import inflated
from rawgrpc_proxy.grpc.health import ServingStatus, read_service
from rawgrpc_proxy.grpc.messages import PREFIX_BYTES, is_one_message
from rawgrpc_proxy.proxy.director import StreamDirector
from rawgrpc_proxy.proxy.forwarding import Forwarding, Owner
from rawgrpc_proxy.proxy.transparent import TransparentHandler
from rawgrpc_proxy.services.health import MAX_REQUEST_BYTES, Health

_STALLED_S = 30.0
"""How long we wait for the request; then the upstream may wait for the rest of it, which costs no task here."""


def own_health(names: Iterable[str], director: StreamDirector) -> dict[str, Handler]:
    """Handlers, by method, that answer Check and Watch of these services; those of others go where the director says.

    They are SERVING until the server stops, and NOT_SERVING from then on. The empty name is the whole server. Of no
    names there are no handlers.
    """
    names = frozenset(names)
    if not names:
        return {}
    health = Health()
    for name in names:
        health.set(name, ServingStatus.SERVING)
    return {
        path: _OwnHealth(names, method(identity_codec()), director)
        for path, method in health.methods().items()
    }


class _OwnHealth(TransparentHandler):
    """Answers the calls that ask for one of `names`, and passes the others on."""

    def __init__(self, names: frozenset[str], answer: Handler, director: StreamDirector) -> None:
        super().__init__(director)
        self._names = names
        self._answer = answer

    def forward_now(
        self, call: Call, owner: Owner
    ) -> Forwarding | Callable[[], Awaitable[Forwarding | None]]:
        inbox = call.stream.inbox
        prefix = inbox.peek(PREFIX_BYTES)
        message = None if prefix is None else inbox.peek(_size_of(prefix))
        if message is None or self._is_own(message, call):
            return partial(self._answer_or_forward, call, owner)
        return super().forward_now(call, owner)

    async def _answer_or_forward(self, call: Call, owner: Owner) -> Forwarding | None:
        inbox = call.stream.inbox
        message = b""
        with trio.move_on_after(_STALLED_S):
            message = await inbox.await_first(_size_of(await inbox.await_first(PREFIX_BYTES)))
        if not self._is_own(message, call):
            return await self.forward(call, owner)
        await self._answer(call)
        return None

    def _is_own(self, message: bytes, call: Call) -> bool:
        """Whether this is a whole request for one of the names."""
        if not is_one_message(message):
            return False
        payload = message[PREFIX_BYTES:]
        try:
            if message[0]:
                encoding = dict(call.stream.headers).get(b"grpc-encoding", b"identity")
                payload = inflated(payload, encoding, MAX_REQUEST_BYTES, origin="served")
            return read_service(payload) in self._names
        except RpcError:
            return False


def _size_of(prefix: bytes) -> int:
    """How much to look at of the message that begins so: of one that is too long to be a request, no more than this."""
    length = int.from_bytes(prefix[1:PREFIX_BYTES])
    return PREFIX_BYTES + (length if length <= MAX_REQUEST_BYTES else 0)
