"""What a session reports: the peer's frames as events, in their order.

Plain slotted classes: some are made for every frame. `frozen` would cost three times as much to make, so they are
not, and nobody changes them.
"""

from dataclasses import dataclass
from typing import final

from rawgrpc_proxy.errors import ConnectionFailed
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList


@final
@dataclass(slots=True)
class RequestReceived:
    """A peer opened `stream_id`. `oversized` says which limit its list has passed: only the pseudo-fields are here."""

    stream_id: int
    headers: HeaderList
    end_stream: bool
    oversized: str = ""


@final
@dataclass(slots=True)
class ResponseReceived:
    """The final response headers of `stream_id`; 1xx never come up."""

    stream_id: int
    headers: HeaderList
    end_stream: bool


@final
@dataclass(slots=True)
class DataReceived:
    """DATA of `stream_id`.

    `credit` is what flow control counted for it, padding included: give it back with `Session.credit` once the bytes
    have gone where they belong.
    """

    stream_id: int
    data: Data
    credit: int
    end_stream: bool


@final
@dataclass(slots=True)
class TrailersReceived:
    """The trailers of `stream_id`, which end its body."""

    stream_id: int
    headers: HeaderList


@final
@dataclass(slots=True)
class StreamReset:
    """`stream_id` is over: the peer reset it, or (`by_peer` False) we did because of what the peer sent on it.

    `goaway` is the code of the GOAWAY with which the peer left it out, if that is how it did it.
    """

    stream_id: int
    error_code: int
    by_peer: bool
    reason: str
    goaway: int | None = None


@final
@dataclass(slots=True)
class SettingsReceived:
    """The peer's SETTINGS are in force: its limits may have changed."""


@final
@dataclass(slots=True)
class PingAcknowledged:
    """The peer answered our PING that carried `opaque`."""

    opaque: bytes


@final
@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no streams above `last_stream_id`; those up to it run on to their end (RFC 9113 §6.8)."""

    last_stream_id: int
    error_code: int
    debug: bytes


@final
@dataclass(slots=True)
class LimitReached:
    """The peer has run into the limit that the setting `limit` names. `detail` says what becomes of it."""

    limit: str
    detail: str


@final
@dataclass(slots=True)
class ConnectionEnded:
    """The peer broke the connection's rules. A GOAWAY is in the output; nothing more comes from this session."""

    error: ConnectionFailed


RareEvent = (
    StreamReset | SettingsReceived | PingAcknowledged | GoAwayReceived | LimitReached | ConnectionEnded
)
Event = RequestReceived | DataReceived | ResponseReceived | TrailersReceived | RareEvent
