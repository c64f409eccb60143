"""`Endpoint`: one address in a cluster, and whether it is fit for calls. `Place`: one call's on a connection there."""

from collections.abc import Callable
from typing import Protocol

import attrs

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.errors import DeadlineExceeded, RpcError, Side
from rawgrpc_proxy.grpc.retry_policy import RetryThrottling
from rawgrpc_proxy.observe.report import Standing
from rawgrpc_proxy.upstream.call_total import CallTotal
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target


class Home(Protocol):
    """The cluster of an endpoint, as a call knows it that has a place there."""

    retry_throttling: RetryThrottling | None

    async def take_untried(self, context: CallContext, tried: "list[Endpoint]") -> "Place":
        """A place at an endpoint that has not been tried, and is added to these; at any, if all have been."""

    async def take_another(self, context: CallContext, endpoint: "Endpoint") -> "Place | None":
        """A place at another endpoint. None: that cannot be had."""


class Attempt(Protocol):
    """A call, as its endpoint knows it."""

    @property
    def started(self) -> float:
        """When, by `time.perf_counter`."""


class Endpoint:
    """A target as its cluster sees it. The cluster decides; others only look."""

    __slots__ = (
        "cluster",
        "draining",
        "effective_weight",
        "ejected",
        "found",
        "healthy",
        "hear_ended",
        "target",
        "why_ejected",
        "why_unhealthy",
    )

    def __init__(self, cluster: Home, target: Target, found: EndpointAddress) -> None:
        self.cluster = cluster
        self.target = target
        self.found = found
        self.effective_weight: float = found.weight
        """Its weight, less while it starts slowly."""
        self.healthy: bool | None = True
        """What health checks say of it, if there are any; None: nothing yet."""
        self.why_unhealthy: str | None = None
        self.ejected = False
        """Whether its calls went so badly that it has a rest."""
        self.why_ejected: str | None = None
        self.draining = False
        """Whether its source names it no more: its calls go on to their ends, and it gets no new ones."""
        self.hear_ended: Callable[[Status, Attempt], None] | None = None
        """Hears how each attempt at a call ended, if that says something of the endpoint and anybody wants to know."""

    def found_again(self, found: EndpointAddress) -> None:
        """Its source says so of it now."""
        self.effective_weight *= found.weight / self.found.weight
        self.found = found

    def attempt_ended(self, status: Status, attempt: Attempt, error: RpcError | None = None) -> None:
        """An attempt at a call here has ended with its upstream's status, or with an error.

        Errors that say nothing of the endpoint are not told. The caller gave up, something here is wanting, or the call
        was refused: whoever leaves in good order (GOAWAY) is not to be blamed, and the call goes to another one.
        """
        hear = self.hear_ended
        if hear is None:
            return
        if error is None:
            hear(status, attempt)
        elif isinstance(error, DeadlineExceeded) or (error.side is Side.UPSTREAM and not error.retry_safe):
            hear(error.status, attempt)

    @property
    def address(self) -> str:
        """Where it is."""
        return self.target.address

    @property
    def calls(self) -> int:
        """Calls that it has now, those that wait for a place included."""
        return self.target.calls

    def count_in(self, total: CallTotal) -> None:
        """Its calls are among these until `count_out`."""
        self.target.count_in(total)

    def count_out(self, total: CallTotal) -> None:
        """Its calls are not among these any more."""
        self.target.count_out(total)

    @property
    def standing(self) -> Standing:
        """Whether it gets calls, or why not, in a word; the first that fits."""
        if self.draining:
            return "draining"
        if self.ejected:
            return "ejected"
        if not self.healthy:
            return "unchecked" if self.healthy is None else "unhealthy"
        return "in_rotation" if self.target.trouble is None else "unreachable"

    def explain(self) -> str:
        """The same for people."""
        match self.standing:
            case "draining":
                return f"leaves, with {self.calls} calls"
            case "ejected":
                return _with_reason("ejected", self.why_ejected)
            case "unchecked":
                return "waits for its first health check"
            case "unhealthy":
                return _with_reason("failed its health checks", self.why_unhealthy)
            case "unreachable":
                return f"cannot be connected to: {self.target.trouble}"
            case _:
                part = self.effective_weight / self.found.weight
                return (
                    "in rotation" if part == 1 else f"in rotation, with {part:.0%} of its weight (slow start)"
                )

    def __repr__(self) -> str:
        return f"<Endpoint {self.address}>"


def _with_reason(what: str, why: str | None) -> str:
    return what if why is None else f"{what}: {why}"


@attrs.frozen
class Place:
    """A place for one stream on a connection to an endpoint; whoever has it gives it back (`conn.give_back`)."""

    endpoint: Endpoint
    conn: PooledConnection
