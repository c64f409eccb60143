"""Where in a call, or in a connection, a fault strikes.

A place in a call is passed once, and what is done there is done between two bytes: what is before it has gone, what is
behind it has not. Each has `of`, the direction that it is in: the request or the response.
"""

import enum
from typing import Any

import attrs

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.validators import Validator, at_least, between


class Part(enum.Enum):
    """Of a call: what its client sends, or what its server sends."""

    REQUEST = "request"
    RESPONSE = "response"


_MAX_INT = 2**31 - 1


def whole(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    """Validator: a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{attribute.name} is {value!r}; it must be a whole number")


def one_of(*allowed: str) -> Validator:
    """Validator: one of these words."""

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value not in allowed:
            raise ConfigError(f"{attribute.name} is {value!r}; it must be one of {', '.join(allowed)}")

    return check


@attrs.frozen(kw_only=True)
class BeforeHeaders:
    """When headers have come, before they are passed on.

    Those of the request: its server never hears of a call that ends here. Those of the response: the server has seen
    the call, and its client nothing of the answer.
    """

    of: Part = Part.REQUEST


@attrs.frozen(kw_only=True)
class AfterMessage:
    """When the last byte of the message has passed, the first of its direction being 1.

    What is done to a message (`CutMessage`, `DoubleMessage`, ...) is done to this one.
    """

    number: int = attrs.field(validator=[whole, between(1, _MAX_INT)])
    of: Part = Part.RESPONSE


@attrs.frozen(kw_only=True)
class AfterBytes:
    """When so many bytes of the body have passed, the five in front of each message among them; 0: before the first."""

    count: int = attrs.field(validator=[whole, between(0, _MAX_INT)])
    of: Part = Part.RESPONSE


@attrs.frozen(kw_only=True)
class OnFrame:
    """When the call's `nth` frame of this type has passed, or with `before` when it has come.

    HEADERS are those of a header list, be it in several frames: the headers and, where there are some, the trailers.
    """

    frame: str = attrs.field(validator=one_of("DATA", "HEADERS"))
    of: Part = Part.RESPONSE
    nth: int = attrs.field(default=1, validator=[whole, between(1, _MAX_INT)])
    before: bool = False


@attrs.frozen(kw_only=True)
class AtTrailers:
    """When the trailers of the response have come, before they are passed on; Trailers-Only among them."""

    of: Part = attrs.field(default=Part.RESPONSE, init=False)


@attrs.frozen(kw_only=True)
class AfterTime:
    """So many seconds after the call has begun, wherever it is then; not if it is over.

    With `of_link`: after the connection was opened.
    """

    seconds: float = attrs.field(validator=at_least(0))
    of: Part = Part.RESPONSE
    """Which direction it is done to, if it is done to one."""
    of_link: bool = False


@attrs.frozen(kw_only=True)
class AtConnect:
    """When the connection has been opened, before its first byte."""


CallPlace = BeforeHeaders | AfterMessage | AfterBytes | OnFrame | AtTrailers | AfterTime
Place = CallPlace | AtConnect
