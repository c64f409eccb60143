"""`StatusOrigin`: a trailer that tells callers who has made the status that they get, and what it comes of.

    x-status-origin: upstream
    x-status-origin: reset: RST_STREAM CANCEL
    x-status-origin: proxy: max_waiting

What it does not do: know who it was. The invariant: a caller gets the trailer from this proxy or not at all; whatever
an upstream sends under its name goes no further, be it in headers or trailers.
"""

from typing import final

from rawgrpc_proxy.custom_metadata import header_of
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.response_changes import Changes
from rawgrpc_proxy.grpc.status import encode_grpc_message, http_cause
from rawgrpc_proxy.http2.headers import Headers

_STATUS = b"grpc-status"


@final
class StatusOrigin:
    """The trailer by its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """Raise `ConfigError` for a name that no trailer can have, or that means something else."""
        try:
            self.name, _ = header_of(name, "")
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{name!r} cannot be the trailer that says who has made a status: {error}"
            ) from error
        if self.name.startswith(b"grpc-") or self.name == b"content-type":
            raise ConfigError(f"{name!r} cannot be the trailer that says who has made a status: it is gRPC's")

    def without(self, headers: Headers) -> Headers:
        """The list without what anybody else has written under this name; the very list if there is nothing."""
        name = self.name
        if name not in [field[0] for field in headers]:
            return headers
        return [field for field in headers if field[0] != name]

    def field(self, origin: str, cause: str) -> tuple[bytes, bytes]:
        """The trailer. What is not printable ASCII in words of users' own is percent-encoded."""
        return self.name, encode_grpc_message(f"{origin}: {cause}" if cause else origin)

    def over(self, changes: Changes | None) -> "Changes":
        """What is done to one response of an upstream: these changes, and the trailer behind them."""
        return _Told(self, changes)


class _Told:
    """Changes to one response."""

    __slots__ = ("_changes", "_http_status", "_origin")

    def __init__(self, origin: StatusOrigin, changes: Changes | None) -> None:
        self._origin = origin
        self._changes = changes
        self._http_status = b""

    def first(self, headers: Headers) -> Headers:
        self._http_status = headers[0][1]
        return self._origin.without(headers if self._changes is None else self._changes.first(headers))

    def only(self, headers: Headers) -> Headers:
        self._http_status = headers[0][1]
        return self._last(headers if self._changes is None else self._changes.only(headers))

    def last(self, trailers: Headers) -> Headers:
        return self._last(trailers if self._changes is None else self._changes.last(trailers))

    def _last(self, headers: Headers) -> Headers:
        if any(name == _STATUS for name, _ in headers):
            told = self._origin.field("upstream", "")
        else:
            told = self._origin.field("http", http_cause(int(self._http_status)))
        return [*self._origin.without(headers), told]
