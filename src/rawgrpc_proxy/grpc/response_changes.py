"""`ResponseChanges`: what is taken out of a response's metadata on its way to the caller, and what is put in.

What it does not do: say which responses. What a response says itself is left alone: its status and message, how its
messages are encoded, and what HTTP/2 needs. The invariant: a list that was well-formed stays so.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, final

from rawgrpc_proxy.custom_metadata import HOP_BY_HOP, Value, header_of
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import Headers

_OF_THE_RESPONSE = frozenset(
    (b"content-type", b"content-length", b"grpc-status", b"grpc-message", b"grpc-encoding", *HOP_BY_HOP)
)
_GRPC = b"grpc-"


class Changes(Protocol):
    """What is done to the lists of one response from upstream."""

    def first(self, headers: Headers) -> Headers:
        """What is sent for its headers."""

    def only(self, headers: Headers) -> Headers:
        """What is sent for its one list, if it has no others."""

    def last(self, trailers: Headers) -> Headers:
        """What is sent for the trailers behind headers."""


@final
class ResponseChanges:
    """Changes to the responses that come from upstream: first removed, then set.

    `remove` is keys that go no further, from headers and from trailers. `set_values` is keys and the one value that
    each has then, in the headers, or in the one list of a response that has no others (Trailers-Only), behind all that
    came. Trailers come when a call is over, and get nothing. Errors that the proxy makes itself are not changed.
    """

    __slots__ = ("_removed", "_replaced", "_set")

    def __init__(self, *, remove: Iterable[str] = (), set_values: Mapping[str, Value] | None = None) -> None:
        """Raise `ConfigError` for a key that is the response's own, `TypeError` and `ValueError` for what is none."""
        self._removed = frozenset([_removable(key) for key in remove])
        self._set = [_settable(key, value) for key, value in (set_values or {}).items()]
        self._replaced = self._removed | {name for name, _ in self._set}

    def first(self, headers: Headers) -> Headers:
        """What is sent for the list that a response begins with."""
        names = self._replaced
        return [*[field for field in headers if field[0] not in names], *self._set]

    def only(self, headers: Headers) -> Headers:
        """The same where that is all of it."""
        return self.first(headers)

    def last(self, trailers: Headers) -> Headers:
        """What is sent for the trailers behind headers: the very list where nothing is to be removed from it."""
        names = self._removed
        if names.isdisjoint([name for name, _ in trailers]):
            return trailers
        return [field for field in trailers if field[0] not in names]


def _removable(key: str) -> bytes:
    name, _ = _field(key, b"" if str(key).lower().endswith("-bin") else "")
    if name in _OF_THE_RESPONSE:
        raise ConfigError(f"{key!r} cannot be removed: the caller cannot read the response without it")
    return name


def _settable(key: str, value: Value) -> tuple[bytes, bytes]:
    field = _field(key, value)
    if field[0] in _OF_THE_RESPONSE or field[0].startswith(_GRPC):
        raise ConfigError(
            f"{key!r} cannot be set: it is not metadata, but says what the upstream's response is"
        )
    return field


def _field(key: str, value: Value) -> tuple[bytes, bytes]:
    if str(key).startswith(":"):
        raise ConfigError(
            f"{key!r} cannot be changed: a pseudo-header is no metadata, and its value the upstream's"
        )
    return header_of(key, value)
