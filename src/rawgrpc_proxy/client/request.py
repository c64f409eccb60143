"""What a call asks of its client, and for: its request headers, with the time left, and its context for who has places.

What it does not do: send anything.
"""

import math
from collections.abc import Callable
from typing import Protocol

import trio

from rawgrpc_proxy.call import CONTENT_TYPE, CallContext
from rawgrpc_proxy.client.places import Place, TakesCalls
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.compression import ACCEPT_ENCODING
from rawgrpc_proxy.grpc.metadata import TE_TRAILERS, Metadata
from rawgrpc_proxy.grpc.timeout import format_timeout
from rawgrpc_proxy.http2.headers import FixedHeaders, Headers
from rawgrpc_proxy.net.timers import Timer

_POST = (b":method", b"POST")


class Ends(Protocol):
    """A call, as its client knows it."""

    def abort(self, error: RpcError) -> None:
        """End with this error."""


class Home(Protocol):
    """The client, as its calls know it, and what their requests have in common."""

    where: TakesCalls
    authority: bytes | None
    user_agent: tuple[bytes, bytes]
    max_message_bytes: int

    def enter(self, call: Ends) -> None:
        """A call begins. Raises `ConfigError` if the client is not open."""

    def leave(self, call: Ends) -> None:
        """It is over."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at this time."""


def context_of(method: str, fields: Headers, deadline: float) -> CallContext:
    """The context of a call that has no place yet, and so no authority. `deadline` may be infinity."""
    return CallContext(
        method=method,
        metadata=Metadata(FixedHeaders((_POST, (b":path", method.encode()), *fields))),
        peer="",
        deadline=None if deadline == math.inf else deadline,
    )


def request_headers(client: Home, place: Place, method: str, fields: Headers, deadline: float) -> Headers:
    """The headers for the server at this place; `fields` are the metadata."""
    headers: Headers = [
        _POST,
        (b":scheme", b"https" if place.is_tls else b"http"),
        (b":path", method.encode()),
        (b":authority", client.authority or _authority_of(place.address)),
        TE_TRAILERS,
    ]
    if deadline < math.inf:
        headers.append((b"grpc-timeout", format_timeout(deadline - trio.current_time())))
    headers += (CONTENT_TYPE, client.user_agent, ACCEPT_ENCODING, *fields)
    return headers


def _authority_of(address: str) -> bytes:
    # A Unix socket has no name that would be an authority: gRPC's clients say localhost.
    return b"localhost" if address.startswith("unix:") else address.encode()
