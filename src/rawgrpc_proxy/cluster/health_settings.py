"""What can be set of active health checks.

What it does not do: check (`health_check.py` does).
"""

from collections.abc import Iterator
from typing import Literal

import attrs

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.validators import at_least, between, held_to

HealthCheckKind = Literal["grpc", "watch", "tcp"]
_LONGEST_NAME = 1000


def _check_service(service: str) -> None:
    if len(service.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"has {len(service.encode())} bytes; a service's name has {_LONGEST_NAME} at the most"
        )


@attrs.frozen(kw_only=True)
class HealthCheck:
    """Endpoints are asked how they are, and those that are not well get no calls; `health = {}` has the defaults.

    Each worker asks on its own, over the connections that calls use. Where calls have taken all places (`ms`, `size`,
    `max_connections`, what the endpoint itself allows) a check does not wait for one, but has a connection of its own
    beyond these limits, for as long as it takes: calls, however many, do not make an endpoint look dead that answers,
    nor keep one that is dead from being found out. An endpoint that joins gets calls once its first check has passed.
    Whoever answers UNIMPLEMENTED has no health service, and counts as healthy, as in gRPC.
    """

    kind: HealthCheckKind = attrs.field(default="grpc")
    """"grpc": `grpc.health.v1.Health/Check`; "watch": its `Watch`, by which an endpoint tells of changes itself (where
    there is no Watch, Check is used; one that hangs is noticed by keepalive, after 40 s); "tcp": whether the port takes
    a connection, and nothing more."""

    service: str = attrs.field(default="", validator=held_to(_check_service))
    """The service to ask about; "" is the whole server."""

    interval_s: float = attrs.field(default=5.0, validator=at_least(0.1))
    """From one check to the next, within a tenth, so that workers do not all ask at the same moment. With "watch" from
    one that came to nothing to the next."""

    timeout_s: float = attrs.field(default=1.0, validator=at_least(0.01))
    """A check without an answer after so long has failed, whatever it has waited for: a connection that has to be made
    first is part of it."""

    unhealthy_threshold: int = attrs.field(default=3, validator=between(1, 1000))
    """So many checks in a row must fail until a healthy endpoint gets no calls: one that hangs is out after 18 s at the
    latest. The first check decides alone, and so does what an endpoint says itself by "watch"."""

    healthy_threshold: int = attrs.field(default=2, validator=between(1, 1000))
    """So many in a row must pass until an unhealthy endpoint gets calls again."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit together."""
        if self.kind == "tcp" and self.service:
            yield "service", 'is for the kinds "grpc" and "watch": a TCP check asks for nothing'
