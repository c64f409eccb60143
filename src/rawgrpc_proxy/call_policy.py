"""`CallPolicy`: what more than passing it on is done with a call, made once for each route.

What it does not do: any of it. A call without a policy pays one look at None.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.retry_policy import HedgingPolicy, RetryPolicy
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.validators import at_least


class CallLimit(Protocol):
    """What a call takes a place of when it begins upstream work, and gives it back when it is over: exactly once."""

    def enter(self) -> None:
        """Take a place, or raise `RpcError`."""

    def leave(self, began_at: float, now: float, status: Status | None) -> None:
        """Give it back. `status` is OK or DEADLINE_EXCEEDED for calls by which the upstream's speed can be told.

        Called from the middle of a reader's work: must neither wait nor raise. Times are of trio's clock.
        """


class Tee(Protocol):
    """Gets what a call's upstream gets. Called from a connection's reader: must neither wait nor raise."""

    def request_data(self, data: Data, end_stream: bool) -> None:
        """DATA of the request; maybe a view: copy to keep."""

    def request_ended(self, trailers: Headers | None) -> None:
        """There is no more of it. May be said again."""

    def original_over(self, status: Status | None) -> None:
        """The call is over; `status` is its upstream's, if it was that which ended it."""


class Mirroring(Protocol):
    """Sends copies of calls elsewhere: a `Mirror`."""

    def begin(self, context: Any, headers: Headers, end_stream: bool, deadline: float | None) -> Tee | None:
        """A call goes to its upstream with these headers. None: it is not copied. Must neither wait nor raise."""


def _every(limits: Iterable[CallLimit]) -> tuple[CallLimit, ...]:
    return tuple(limits)


@attrs.frozen(kw_only=True)
class CallPolicy:
    """How calls are treated; a director answers a context that has it (`context.with_policy`).

    Raises `ConfigError` for a policy with retries and hedging: a call has one of them, as in gRPC.
    """

    limits: tuple[CallLimit, ...] = attrs.field(default=(), converter=_every)
    """Of each of these a call needs a place."""

    mirror: Mirroring | None = None
    """Where a copy goes, whose response nobody gets."""

    idle_timeout_s: float | None = attrs.field(default=None, validator=at_least(0.001))
    """A call of which nothing has passed for so long, neither of the request nor of the response, ends (UNAVAILABLE).

    From when it has gone upstream; it may take a quarter longer. Each attempt that is sent counts as the request's.
    """

    retry: RetryPolicy | None = None
    """When a call that has failed is sent once more."""

    hedging: HedgingPolicy | None = None
    """When a call is sent a second time before it has failed."""

    def __attrs_post_init__(self) -> None:
        if self.retry is not None and self.hedging is not None:
            raise ConfigError("a policy has retries or hedging, not both: hedging retries what fails, too")
