"""What a fault does.

Two ends take part on each connection: the client and the server of its calls. On a caller's connection the caller is
the client and the proxy the server; on an upstream's the proxy is the client. `towards` says to which of them something
is done that only one of them gets.
"""

import enum
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.custom_metadata import Value, headers_of, response_headers_of
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.faults.places import one_of, whole
from rawgrpc_proxy.validators import at_least, between


class End(enum.Enum):
    """One of the two ends of a connection."""

    CLIENT = "client"
    SERVER = "server"


MAX_PINGS = 10_000
MAX_FRAME_BYTES = 2**14
"""So long a frame's payload may be for any peer (RFC 9113 §6.5.2, SETTINGS_MAX_FRAME_SIZE)."""
MAX_DEBUG_BYTES = MAX_FRAME_BYTES - 8
"""Beside the last id and the code in a GOAWAY."""
MAX_PADDING = 255
_MAX_U32 = 2**32 - 1
_RANGES = {
    Setting.HEADER_TABLE_SIZE: (0, 4096),
    Setting.ENABLE_PUSH: (0, 0),
    Setting.MAX_CONCURRENT_STREAMS: (0, _MAX_U32),
    Setting.INITIAL_WINDOW_SIZE: (0, 2**31 - 1),
    Setting.MAX_FRAME_SIZE: (2**14, 2**19),
    Setting.MAX_HEADER_LIST_SIZE: (0, _MAX_U32),
}


def _error_code(value: int | str) -> int:
    if isinstance(value, str):
        try:
            return ErrorCode[value]
        except KeyError:
            raise ConfigError(
                f"{value!r} is no error code of HTTP/2; write one of {_names(ErrorCode)}"
            ) from None
    if not 0 <= value <= _MAX_U32:
        raise ConfigError(
            f"{value!r} is no error code of HTTP/2; write its name, or a number from 0 to 2^32-1"
        )
    return value


def _status(value: int | str) -> Status:
    try:
        return Status[value] if isinstance(value, str) else Status(value)
    except (KeyError, ValueError):
        raise ConfigError(f"{value!r} is no gRPC status; write one of {_names(Status)}") from None


def _names(numbers: type[enum.IntEnum]) -> str:
    return ", ".join(each.name for each in numbers)


def _pairs(value: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> tuple[tuple[str, Value], ...]:
    return tuple(value.items() if isinstance(value, Mapping) else value)


def _response_metadata(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    try:
        response_headers_of(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{attribute.name}: {error}") from None


def _http_headers(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    try:
        headers_of(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{attribute.name}: {error}") from None


def _as_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


_NO_FIELD_VALUE = re.compile(rb"[\x00-\x1f\x7f]|\A[ \t]|[ \t]\Z")


def _field_value(_instance: object, attribute: "attrs.Attribute[Any]", value: bytes) -> None:
    if _NO_FIELD_VALUE.search(value):
        raise ConfigError(
            f"{attribute.name} is {value!r}; a header field has no control characters, nor blanks at its ends"
        )


def _settings(value: Mapping[Setting | str, int]) -> dict[Setting, int]:
    known = {}
    for key, number in value.items():
        try:
            setting = Setting[key] if isinstance(key, str) else Setting(key)
        except (KeyError, ValueError):
            raise ConfigError(f"{key!r} is no setting of HTTP/2; write one of {_names(Setting)}") from None
        low, high = _RANGES[setting]
        if not low <= number <= high:
            raise ConfigError(f"{setting.name} is {number!r}; it must be a number from {low} to {high}")
        known[setting] = number
    if not known:
        raise ConfigError("no settings are given")
    return known


def _fits_a_frame(most: int) -> Any:
    """A validator: text or bytes that a peer takes in one frame, whatever its SETTINGS say."""

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: bytes | str) -> None:
        size = len(_as_bytes(value))
        if size > most:
            raise ConfigError(
                f"{attribute.name} has {size} bytes; it may have {most}, or the frame would be longer than each peer "
                f"takes ({MAX_FRAME_BYTES}, SETTINGS_MAX_FRAME_SIZE)"
            )

    return check


def _int(low: int, high: int, default: Any = attrs.NOTHING) -> Any:
    return attrs.field(default=default, validator=[whole, between(low, high)])


def _seconds(default: Any = attrs.NOTHING) -> Any:
    return attrs.field(default=default, validator=between(0, 86400))


# ------------------------------------------------------------------ ends of a call


@attrs.frozen(kw_only=True)
class AnswerStatus:
    """The client gets this status, the server's stream is cancelled. Trailers-Only if the response has not begun.

    Not done where the response is complete.
    """

    status: Status = attrs.field(converter=_status)
    message: str = ""
    metadata: tuple[tuple[str, Value], ...] = attrs.field(
        default=(), converter=_pairs, validator=_response_metadata
    )


@attrs.frozen(kw_only=True)
class AnswerHttp:
    """The client gets an HTTP response that is none of gRPC, as of a load balancer; the server's stream is cancelled.

    Not done where the response has begun.
    """

    status: int = _int(200, 599)
    body: str | bytes = ""
    content_type: str = "text/html"
    headers: tuple[tuple[str, Value], ...] = attrs.field(
        default=(), converter=_pairs, validator=_http_headers
    )


@attrs.frozen(kw_only=True)
class Reset:
    """RST_STREAM with this code to one end; the other one's stream is cancelled."""

    code: int = attrs.field(default=ErrorCode.INTERNAL_ERROR, converter=_error_code)
    towards: End = End.CLIENT


# ------------------------------------------------------------------ the connection


@attrs.frozen(kw_only=True)
class Goaway:
    """GOAWAY; the last id in it is that of the call, or of the last one that has begun, or `below` calls below that.

    The calls above it end, for their server. They are swallowed, as are those that the client still begins.
    """

    code: int = attrs.field(default=ErrorCode.NO_ERROR, converter=_error_code)
    below: int = _int(0, 2**30, 0)
    debug: str = attrs.field(default="", validator=_fits_a_frame(MAX_DEBUG_BYTES))
    towards: End = End.CLIENT


@attrs.frozen(kw_only=True)
class Cut:
    """The connection ends, for both ends. The peer gets what was sent before and FIN, or with `reset` RST."""

    reset: bool = False


@attrs.frozen(kw_only=True)
class Silence:
    """Nothing passes any more in either direction, and the connection stays open: as if the network were gone.

    It ends when one of the ends gives it up.
    """


@attrs.frozen(kw_only=True)
class HalfClose:
    """The peer gets FIN, and nothing more; what it sends still passes."""


@attrs.frozen(kw_only=True)
class ChangeSettings:
    """SETTINGS say this instead of what the other end has said. At `AtConnect` its first ones, later by a frame more.

    Windows that are smaller are kept small: credit is given as data passes.
    """

    settings: Mapping[Setting, int] = attrs.field(converter=_settings)
    towards: End = End.CLIENT


@attrs.frozen(kw_only=True)
class PingFlood:
    """So many PINGs at once. The answers are swallowed."""

    count: int = _int(1, MAX_PINGS, 1000)
    towards: End = End.CLIENT


# ------------------------------------------------------------------ time


@attrs.frozen(kw_only=True)
class Delay:
    """What is behind the place waits, once, for so many seconds and up to `jitter` more, by chance.

    In a call: of that direction; before the request's headers, whatever follows them. At `AtConnect`: everything.
    """

    seconds: float = _seconds()
    jitter: float = _seconds(0.0)


@attrs.frozen(kw_only=True)
class Latency:
    """From here on each frame waits for so many seconds and up to `jitter` more, by chance; their order stays.

    In a call: of that direction. At `AtConnect`: of both.
    """

    seconds: float = _seconds()
    jitter: float = _seconds(0.0)


@attrs.frozen(kw_only=True)
class Bandwidth:
    """From here on no more than so many bytes pass in a second: in a call of that direction, at `AtConnect` of each."""

    bytes_per_s: float = attrs.field(validator=at_least(1))


@attrs.frozen(kw_only=True)
class Stall:
    """From here on WINDOW_UPDATE frames that allow more of that direction are kept, for so long; None: for ever.

    In a call: those of its stream. At `AtConnect`: those of the connection, in both directions.
    """

    seconds: float | None = attrs.field(default=None, validator=attrs.validators.optional(between(0, 86400)))


# ------------------------------------------------------------------ trailers


@attrs.frozen(kw_only=True)
class DropTrailers:
    """The response ends without them: with END_STREAM on DATA that is empty, or on the headers that were all of it."""


@attrs.frozen(kw_only=True)
class SplitTrailersOnly:
    """A response that is nothing but trailers comes as two header lists. Others are left alone."""


@attrs.frozen(kw_only=True)
class TrailersBeforeData:
    """The last DATA comes behind the trailers: against the rules, so only on a caller's connection.

    Of a response the last DATA frame is always held back, until the next one comes or the trailers.
    """


@attrs.frozen(kw_only=True)
class DropStatus:
    """The trailers come without grpc-status and grpc-message."""


@attrs.frozen(kw_only=True)
class BadGrpcMessage:
    """The trailers have this as grpc-message: by default its percent-encoding is broken."""

    value: bytes = attrs.field(default=b"%E4%ZZ %", converter=_as_bytes, validator=_field_value)


# ------------------------------------------------------------------ messages and frames


@attrs.frozen(kw_only=True)
class CutMessage:
    """Of the message only the first `keep` bytes pass, five of which are its prefix; behind it nothing but the end."""

    keep: int = _int(1, 2**31 - 1, 3)


@attrs.frozen(kw_only=True)
class DoubleMessage:
    """The message comes twice."""


@attrs.frozen(kw_only=True)
class SwapMessages:
    """The message comes behind the next one. If there is none, nothing is changed."""


@attrs.frozen(kw_only=True)
class FlipBits:
    """So many bits of the message's payload are flipped, by chance; its length stays."""

    bits: int = _int(1, 4096, 1)


@attrs.frozen(kw_only=True)
class SplitFrame:
    """The next frame is split behind so many bytes of its payload: DATA, or with `frame` HEADERS and a CONTINUATION.

    With `all` each one from here on. One that is not longer is left as it is.
    """

    at: int = _int(0, 2**24 - 1)
    frame: str = attrs.field(default="DATA", validator=one_of("DATA", "HEADERS"))
    all: bool = False


@attrs.frozen(kw_only=True)
class PadFrame:
    """The next DATA frame is padded with so many bytes; with `all` each one from here on."""

    bytes: int = _int(0, MAX_PADDING, MAX_PADDING)
    all: bool = False


@attrs.frozen(kw_only=True)
class UnknownFrame:
    """A frame of a type that nobody knows comes on the call's stream (RFC 9113 §5.5: it is to be ignored)."""

    type: int = _int(0x0B, 0xFF, 0xFA)
    payload: bytes = attrs.field(default=b"unknown", validator=_fits_a_frame(MAX_FRAME_BYTES))


Action = (
    AnswerStatus | AnswerHttp | Reset | Goaway | Cut | Silence | HalfClose | ChangeSettings | PingFlood | Delay
    | Latency | Bandwidth | Stall | DropTrailers | SplitTrailersOnly | TrailersBeforeData | DropStatus | BadGrpcMessage
    | CutMessage | DoubleMessage | SwapMessages | FlipBits | SplitFrame | PadFrame | UnknownFrame
)  # fmt: skip
OF_LINKS = (Goaway, Cut, Silence, HalfClose, ChangeSettings, PingFlood, Delay, Latency, Bandwidth, Stall)
"""What can be done where there is no call: at `AtConnect`, and `AfterTime` of the connection."""
OF_MESSAGES = (CutMessage, DoubleMessage, SwapMessages, FlipBits)
OF_TRAILERS = (DropTrailers, SplitTrailersOnly, TrailersBeforeData, DropStatus, BadGrpcMessage)
