"""What a client's calls need: somebody who has places on connections, and such a place.

A `Target` is such a somebody, with connections to one address, and so is a `Cluster`. The invariant: whoever has got a
place gives it back exactly once.
"""

from typing import Protocol

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.stream import Stream

_FRESH_PLACES = 3


class Place(Protocol):
    """Room for one call on a connection."""

    @property
    def address(self) -> str:
        """Where the connection leads, `HOST:PORT` or `unix:PATH`."""

    @property
    def is_tls(self) -> bool:
        """Whether it speaks TLS."""

    @property
    def has_room(self) -> bool:
        """Whether the stream may be opened now."""

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the peer says it takes."""

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open the stream, at once. Raises `RpcError` if there is no room any more."""

    async def again(self) -> "Place":
        """Another place for the same call, on another connection if there is one. This one is to be given back, too."""

    def ended(self, error: RpcError | None) -> None:
        """How the call on it ended; None: with OK. Of a call that was left nothing is told. Must not raise."""

    def give_back(self) -> None:
        """The call does not need it any more."""


class TakesCalls(Protocol):
    """Somebody who has places for calls: a `Target`, or a cluster of them."""

    async def take_place(self, context: CallContext) -> Place:
        """A place for this call.

        The context has the call's method, metadata and deadline. May wait; cancelled, it leaves nothing behind. Raises
        `RpcError` if there is no place to be had.
        """


async def with_room(place: Place) -> Place:
    """The place, or another one, that has room now: a connection may have gone away while the call waited."""
    try:
        for _ in range(_FRESH_PLACES):
            if place.has_room:
                break
            fresh = await place.again()
            place.give_back()
            place = fresh
    except BaseException:
        place.give_back()
        raise
    return place
