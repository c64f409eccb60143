"""Every error the proxy raises, and what a handler must know of it: its status, its side, whether to retry.

    ProxyError
    ├── ConfigError                settings or arguments are wrong; nothing was sent
    ├── RpcError                   one call ends with a status
    │   ├── NoRoute                UNIMPLEMENTED
    │   ├── PoolExhausted          RESOURCE_EXHAUSTED
    │   ├── RateLimited            RESOURCE_EXHAUSTED, with the time after which to try again
    │   ├── TooManyCalls           the same
    │   ├── UpstreamUnavailable    UNAVAILABLE
    │   │   └── LinkLost           with the call on it
    │   ├── StreamRefused          UNAVAILABLE, provably unprocessed: safe to retry
    │   ├── DeadlineExceeded       DEADLINE_EXCEEDED
    │   ├── IdleTimeout            UNAVAILABLE
    │   └── StreamReset            the status its error code maps to
    └── ConnectionFailed           a whole connection ends, and every stream on it
        ├── ProtocolViolation      the peer broke a rule of HTTP/2
        │   └── NotHttp2           it speaks another protocol
        ├── PeerAbuse              the peer kept the rules and wore us out
        ├── ConnectionGone         the link went away
        ├── ProxyFault             a fault of the proxy's own
        └── ProxyStopping          the proxy ends it, because it stops or has no more use for it

Errors do not become responses here, and no number of the wire is mapped to another: a status arrives
ready-made. The invariant: an `RpcError` never carries `Status.OK`, so whoever catches one has a failed call
in hand.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import overload

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.custom_metadata import Value, response_headers_of

PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer that tells a client with a retry policy when to try again (gRFC A6), in milliseconds."""


class Side(enum.Enum):
    """Where an error arose, seen from the proxy."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    LOCAL = "local"


class ProxyError(Exception):
    """The root of all errors of the proxy.

    `side` may be set after construction: an HTTP/2 session does not know whether its peer is downstream or
    upstream, the connection that owns the session does and says so.
    """

    def __init__(self, message: str, *, side: Side = Side.LOCAL) -> None:
        super().__init__(message)
        self.message = message
        self.side = side

    def __str__(self) -> str:
        return self.message


class ConfigError(ProxyError, ValueError):
    """Settings or arguments that cannot work, found before anything was sent."""


class RpcError(ProxyError):
    """One call ends with this status; a director raises it to refuse a call.

    `trailing_metadata` goes out with the status: pairs of a key and a value, or a mapping; `bytes` values for keys
    ending in `-bin`, `str` for all others.
    `origin` is a short word that says who made the status ("director", "proxy", "reset", …), and `cause` the frame or
    the limit that it comes of ("RST_STREAM CANCEL", "max_waiting"), if it is no wish of whoever made it: for the call
    log and metrics, where both are labels, so there must be few of them (`observe/causes.py`).
    `retry_safe` is True only where the upstream provably did not process the call.
    """

    retry_safe: bool = False

    def __init__(
        self,
        status: Status,
        message: str = "",
        *,
        trailing_metadata: Mapping[str, Value] | Iterable[tuple[str, Value]] = (),
        side: Side = Side.LOCAL,
        origin: str = "director",
        cause: str = "",
    ) -> None:
        """Check what goes to the caller, so that what cannot be sent is found where it was written.

        Raises `ValueError` for `Status.OK`, for numbers that are no gRPC status, and for metadata that gRPC forbids;
        `TypeError` for a status that is no number, a message that is no text, and metadata of other types.
        """
        if not isinstance(status, int):
            raise TypeError(f"the status is a Status, like Status.UNAVAILABLE, not {type(status).__name__}")
        if status == Status.OK:
            raise ValueError("RpcError cannot carry Status.OK: to let a call succeed, do not raise")
        if not isinstance(message, str):
            raise TypeError(
                f"the message is str, not {type(message).__name__}; write what the caller may know, and str(error) "
                "only where that may be all that an error says"
            )
        for what, word in (("origin", origin), ("cause", cause)):
            if not isinstance(word, str):
                raise TypeError(f"the {what} is a word for the call log, not {type(word).__name__}")
        super().__init__(message, side=side)
        self.status = Status(status)
        self.trailing_metadata: tuple[tuple[str, Value], ...] = ()
        if trailing_metadata:
            pairs = trailing_metadata.items() if isinstance(trailing_metadata, Mapping) else trailing_metadata
            self.trailing_metadata = tuple(pairs)
            response_headers_of(self.trailing_metadata)
        self.origin = origin
        self.cause = cause

    def checked(self) -> "RpcError":
        """The same error without what a subclass or an assignment may have done to it. Raises as the constructor."""
        return RpcError(
            self.status,
            self.message,
            trailing_metadata=self.trailing_metadata,
            side=self.side,
            origin=self.origin,
            cause=self.cause,
        )

    def __str__(self) -> str:
        return f"{self.status.name}: {self.message}" if self.message else self.status.name


class NoRoute(RpcError):
    """Nobody here serves this method and no director knows where it goes."""

    def __init__(self, message: str, *, side: Side = Side.LOCAL, cause: str = "no_route") -> None:
        super().__init__(Status.UNIMPLEMENTED, message, side=side, origin="proxy", cause=cause)


class PoolExhausted(RpcError):
    """Every connection to the address is full and the pool may not, or not in time, get another."""

    def __init__(self, message: str, *, side: Side = Side.LOCAL, cause: str = "max_waiting") -> None:
        super().__init__(Status.RESOURCE_EXHAUSTED, message, side=side, origin="proxy", cause=cause)


class RateLimited(RpcError):
    """There were more calls than the rate limit lets through. The caller may come again after `pushback_ms`."""

    def __init__(self, message: str, *, pushback_ms: int, side: Side = Side.LOCAL) -> None:
        super().__init__(
            Status.RESOURCE_EXHAUSTED,
            message,
            trailing_metadata=((PUSHBACK, str(pushback_ms)),),
            side=side,
            origin="proxy",
            cause="rate_limit",
        )


class TooManyCalls(RpcError):
    """As many calls are under way as a concurrency limit allows. As `RateLimited`."""

    def __init__(
        self, message: str, *, pushback_ms: int, side: Side = Side.LOCAL, cause: str = "concurrency"
    ) -> None:
        super().__init__(
            Status.RESOURCE_EXHAUSTED,
            message,
            trailing_metadata=((PUSHBACK, str(pushback_ms)),),
            side=side,
            origin="proxy",
            cause=cause,
        )


class UpstreamUnavailable(RpcError):
    """The upstream could not be reached, or was lost with the call on its way."""

    def __init__(
        self, message: str, *, side: Side = Side.UPSTREAM, origin: str = "proxy", cause: str = "connect"
    ) -> None:
        super().__init__(Status.UNAVAILABLE, message, side=side, origin=origin, cause=cause)


class LinkLost(UpstreamUnavailable):
    """The connection that the call was on is lost; the upstream's, or with side `DOWNSTREAM` the caller's."""

    def __init__(self, message: str, *, side: Side = Side.UPSTREAM, cause: str = "socket_error") -> None:
        super().__init__(message, side=side, origin="lost", cause=cause)


class StreamRefused(RpcError):
    """The upstream says it has not processed the call: REFUSED_STREAM, or an id above GOAWAY's last one."""

    retry_safe = True

    def __init__(self, message: str, *, side: Side = Side.UPSTREAM, cause: str = "") -> None:
        super().__init__(Status.UNAVAILABLE, message, side=side, origin="lost", cause=cause)


class DeadlineExceeded(RpcError):
    """The call's deadline passed before its status arrived, or the time of its last attempt did."""

    def __init__(self, message: str, *, side: Side = Side.LOCAL, cause: str = "deadline") -> None:
        super().__init__(Status.DEADLINE_EXCEEDED, message, side=side, origin="proxy", cause=cause)


class IdleTimeout(RpcError):
    """Nothing of the call has passed for too long.

    Not DEADLINE_EXCEEDED: no deadline of the caller's has passed, and who watches something for ever does well to begin
    anew, as with a connection that is lost.
    """

    def __init__(self, message: str, *, side: Side = Side.LOCAL) -> None:
        super().__init__(Status.UNAVAILABLE, message, side=side, origin="proxy", cause="idle_timeout")


class StreamReset(RpcError):
    """The stream ended with RST_STREAM. `error_code` is the number on the wire, in RFC 9113's set or not.

    One that the proxy itself has sent comes of an error of the stream (RFC 9113 §5.4.2), unless `cause` is another.
    """

    def __init__(self, status: Status, error_code: int, *, side: Side, cause: str = "") -> None:
        who, origin, what = side.value, "reset", "RST_STREAM"
        if side is Side.LOCAL:
            who, origin, what = "proxy", "proxy", "stream error"
        super().__init__(
            status,
            f"the {who} reset the stream with {_name_of(error_code)}",
            side=side,
            origin=origin,
            cause=cause or _caused(what, error_code),
        )
        self.error_code = error_code
        # RFC 9113 §8.7: only REFUSED_STREAM guarantees that the request was not processed.
        self.retry_safe = error_code == ErrorCode.REFUSED_STREAM


class ConnectionFailed(ProxyError):
    """A connection has ended, and every stream on it. `error_code` is what a GOAWAY says of it.

    `why` is one of a few words for it, by which such ends can be counted; `told` is what the peer reads in the GOAWAY,
    where it looks for a certain word: else it is the message.
    """

    why: str = "error"
    told: str = ""

    def __init__(self, message: str, *, error_code: int, side: Side = Side.LOCAL) -> None:
        super().__init__(message, side=side)
        self.error_code = error_code

    @property
    def cause(self) -> str:
        """What the calls on it end of: as `why`, or the frame or limit. One of `observe/causes.py`."""
        return _CAUSES_OF_ENDS.get(self.why, self.why)

    def __str__(self) -> str:
        return f"{_name_of(self.error_code)}: {self.message}"


class ProtocolViolation(ConnectionFailed):
    """The peer broke a rule of HTTP/2 in a way that ends the connection (RFC 9113 §5.4.1)."""

    why = "protocol_error"

    def __init__(self, error_code: int, message: str, *, side: Side = Side.LOCAL) -> None:
        super().__init__(message, error_code=error_code, side=side)

    @property
    def cause(self) -> str:  # noqa: D102  # as inherited; so are those below
        return _caused("connection error", self.error_code)


class NotHttp2(ProtocolViolation):
    """The peer speaks another protocol. The message says which, and what to do, as the rest of a sentence about it.

    `answer` is the last, and the only thing a server says to it: bytes of its own protocol, or nothing.
    """

    why = "not_http2"

    def __init__(
        self,
        message: str,
        *,
        error_code: int = ErrorCode.PROTOCOL_ERROR,
        answer: bytes = b"",
        side: Side = Side.LOCAL,
    ) -> None:
        super().__init__(error_code, message, side=side)
        self.answer = answer

    @property
    def cause(self) -> str:  # noqa: D102
        return self.why

    def __str__(self) -> str:
        # To speak of a code of HTTP/2 would mislead.
        return self.message


class PeerAbuse(ConnectionFailed):
    """The peer kept to the letter of HTTP/2 and used it to wear us out (RFC 9113 §10.5).

    `limit` is the setting that it ran into, or a word for what has no setting.
    """

    why = "abuse"

    def __init__(self, message: str, *, limit: str = "", told: str = "", side: Side = Side.LOCAL) -> None:
        super().__init__(message, error_code=ErrorCode.ENHANCE_YOUR_CALM, side=side)
        self.limit = limit
        self.told = told

    @property
    def cause(self) -> str:  # noqa: D102
        return self.limit or self.why


class ConnectionGone(ConnectionFailed):
    """The link went away: end of file, a socket error, or a GOAWAY carrying `error_code`."""

    def __init__(
        self,
        message: str,
        *,
        error_code: int = ErrorCode.NO_ERROR,
        side: Side = Side.LOCAL,
        why: str = "lost",
        cause: str = "",
    ) -> None:
        super().__init__(message, error_code=error_code, side=side)
        self.why = why
        self._cause = cause

    @property
    def cause(self) -> str:  # noqa: D102
        if self.why == "goaway":
            return _caused("GOAWAY", self.error_code)
        return self._cause or super().cause

    def __str__(self) -> str:
        # A link that just closed has no code worth showing; NO_ERROR in front of a failure would mislead.
        return super().__str__() if self.error_code else self.message


class ProxyFault(ConnectionFailed):
    """A fault of the proxy's own ended the connection. `__cause__` is for the log; peers learn that there was one."""

    why = "proxy_fault"

    def __init__(self, cause: BaseException, *, side: Side = Side.LOCAL) -> None:
        super().__init__("internal error in the proxy", error_code=ErrorCode.INTERNAL_ERROR, side=side)
        self.__cause__ = cause


class ProxyStopping(ConnectionFailed):
    """The proxy ends the connection, because it stops; or this one alone, for which `why` has a word then."""

    def __init__(self, message: str = "the proxy is shutting down", *, why: str = "proxy_stopping") -> None:
        super().__init__(message, error_code=ErrorCode.NO_ERROR)
        self.why = why


class ConnectionLimit(OSError):
    """The server has as many connections as it may, and turns the next one away."""


@overload
def alone(error: Exception) -> Exception: ...
@overload
def alone(error: BaseException) -> BaseException: ...
def alone(error: BaseException) -> BaseException:
    """The error itself, out of groups that have no other one: nurseries wrap up what is raised in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


_CAUSES_OF_ENDS = {"lost": "socket_error", "closed_by_peer": "FIN", "proxy_stopping": "stopping"}


def _caused(what: str, error_code: int) -> str:
    """A frame, or an error, and its code: of those that there are, for a peer can send any number."""
    try:
        return f"{what} {ErrorCode(error_code).name}"
    except ValueError:
        return f"{what} unknown"


def _name_of(error_code: int) -> str:
    try:
        return ErrorCode(error_code).name
    except ValueError:
        return f"unknown error code {error_code:#x}"
