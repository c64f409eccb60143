"""What there is to see on a link: the events of `link_view.py`, as frozen values for `match`.

Every event has `link` (which connection) and `at` (when, of the view's clock). Most have `sender`, who has said it: of
the two ends of this link the CLIENT or the SERVER. On a downstream link the client is the caller and the server is this
proxy; on an upstream link the client is this proxy, see `who`.

What it does not do: hold payloads. `FrameSeen.payload` may be a view of what was read, valid while the event is told
and no longer; all other fields are values of their own, but for `stream`, which changes while the stream lives.
"""

import enum
from collections.abc import Sequence

import attrs

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.net.tapped import Link


class Sender(enum.Enum):
    """Which end of a link has said something."""

    CLIENT = "client"
    SERVER = "server"


def who(link: Link, sender: Sender) -> str:
    """The same, by its place: "caller", "proxy" or "upstream"."""
    if link.side is Side.DOWNSTREAM:
        return "caller" if sender is Sender.CLIENT else "proxy"
    return "proxy" if sender is Sender.CLIENT else "upstream"


class HeadersKind(enum.Enum):
    """What a header list is of its stream."""

    REQUEST = "request"
    INFORMATIONAL = "informational"
    """A response's with a status of 1xx."""
    RESPONSE = "response"
    TRAILERS = "trailers"
    PUSHED = "pushed"
    """The request that a PUSH_PROMISE makes up."""
    LATE = "late"
    """It came when its half of the stream had ended, or on a stream that nobody has begun."""


@attrs.define(eq=False)
class Half:
    """One direction of a stream, as far as it has been seen."""

    messages: int = 0
    """How many have begun."""
    data_bytes: int = 0
    """Of DATA, padding left out."""
    encoding: str = "identity"
    """What grpc-encoding says."""
    is_grpc: bool = True
    """Whether there are messages in its DATA: what content-type says, if that could be read; False as well if it is not
    known where they begin."""
    headers: bool = False
    """Whether its first header list has come (not an informational one)."""
    closed: bool = False
    """END_STREAM has come."""


@attrs.define(eq=False)
class Stream:
    """A stream, as far as it has been seen. It changes while the stream lives; nothing of it grows."""

    id: int
    began_at: float
    method: str
    """`:path`; "" if the headers could not be read."""
    request: Half = attrs.field(factory=Half)
    response: Half = attrs.field(factory=Half)
    http_status: int | None = None
    grpc_status: int | None = None
    """Of the trailers (or a response that is nothing but them); -1 for what is no number."""
    grpc_message: str = ""
    """As it is on the wire, percent-encoded; at most 1024 characters."""
    call: str = ""
    """Which call it carries, if that is known: the caller's stream, as "LINK.STREAM"."""
    joined: bool = False
    """It was there before the view: `began_at` is when that has seen it first."""

    def half(self, sender: Sender) -> Half:
        """What this end of the link sends."""
        return self.request if sender is Sender.CLIENT else self.response


@attrs.frozen
class LinkOpened:
    """A connection is there. The first event of a link."""

    link: Link
    at: float
    joined: bool = False
    """It was open before; `StreamBegun` and `HeadersSeen` follow for each call that is open."""
    last_stream: int = 0
    """The highest stream that its client had opened then."""


@attrs.frozen
class LinkClosed:
    """The connection is over. The last event of a link, after a `StreamEnded` for each stream that was open."""

    link: Link
    at: float


@attrs.frozen
class FrameSeen:
    """A frame, whole. Told before what it means (the other events)."""

    link: Link
    at: float
    sender: Sender
    type: int
    flags: int
    stream_id: int
    length: int
    payload: Data = attrs.field(repr=False)
    """Padding included. Valid while this is told: copy what you keep."""


@attrs.frozen
class FrameCut:
    """The beginning of a frame whose rest never came: the link is over."""

    link: Link
    at: float
    sender: Sender
    type: int
    flags: int
    stream_id: int
    length: int
    """As its header says."""


@attrs.frozen
class StreamBegun:
    """A client's first HEADERS of a stream. `HeadersSeen` follows."""

    link: Link
    at: float
    sender: Sender
    stream: Stream


@attrs.frozen
class HeadersSeen:
    """A header list, decoded, with its CONTINUATION frames."""

    link: Link
    at: float
    sender: Sender
    stream_id: int
    stream: Stream | None
    """None for a stream that is over, was never begun, or was forgotten."""
    kind: HeadersKind
    headers: Sequence[RawHeader]
    block_bytes: int
    """On the wire, compressed."""
    end_stream: bool


@attrs.frozen
class MessageBegun:
    """The five bytes in front of a message are here, its payload mostly not yet."""

    link: Link
    at: float
    sender: Sender
    stream: Stream
    index: int
    """From 0, in each direction."""
    flag: int
    """0, or 1 if it is compressed."""
    length: int
    """Of the payload, as the prefix declares it."""


@attrs.frozen
class MessageSeen:
    """The last byte of a message has passed."""

    link: Link
    at: float
    sender: Sender
    stream: Stream
    index: int
    flag: int
    length: int
    began_at: float
    payload: bytes | None = attrs.field(repr=False)
    """The first bytes of it, as on the wire, up to the view's limit; None if nobody has asked for any."""

    @property
    def is_whole(self) -> bool:
        """Whether `payload` is all of it."""
        return self.payload is not None and len(self.payload) == self.length


@attrs.frozen
class HalfClosed:
    """END_STREAM: this end sends nothing more on the stream."""

    link: Link
    at: float
    sender: Sender
    stream: Stream
    frame_type: int
    """DATA or HEADERS."""
    missing_bytes: int
    """Of a message that was cut off; -1 if it was cut in the prefix."""


@attrs.frozen
class StreamEnded:
    """The stream is over: both halves have ended, it was reset, GOAWAY disowned it, or the link has closed.

    `sender` and `frame_type` are of the frame that has ended the call: the END_STREAM of the server if that had come,
    whatever came behind it, else the RST_STREAM or GOAWAY; both None if the link has closed. `error_code` is that of
    RST_STREAM or GOAWAY.
    """

    link: Link
    at: float
    sender: Sender | None
    stream: Stream
    frame_type: int | None
    error_code: int | None
    reset_by: Sender | None = None
    """Who has sent a RST_STREAM, if there was one, be it behind a whole response."""
    reset_code: int | None = None


@attrs.frozen
class Unreadable:
    """What an end has sent cannot be read.

    Of a link (`stream_id` 0) nothing more is told of what this end sends if `what` is "link"; if it is "headers",
    frames and messages are told, but no more header lists. Of a stream: this one frame, or this stream, could not be.
    """

    link: Link
    at: float
    sender: Sender
    stream_id: int
    what: str
    """"link", "headers", "frame", "stream", or "messages": of a stream that was open before."""
    reason: str


Event = (
    LinkOpened
    | LinkClosed
    | FrameSeen
    | FrameCut
    | StreamBegun
    | HeadersSeen
    | MessageBegun
    | MessageSeen
    | HalfClosed
    | StreamEnded
    | Unreadable
)
