"""What is asked of a resolver, and what it answers."""

from collections.abc import Sequence
from typing import Literal, Protocol

import attrs

Family = Literal["all", "ipv4", "ipv6"]
"""Which addresses of a name are wanted."""
OneFamily = Literal["ipv4", "ipv6"]


class LookUpFailed(Exception):
    """There is no answer, or none that is of use; the text says why. What was known before may still hold."""


@attrs.frozen(kw_only=True)
class Addresses:
    """The addresses of one name."""

    found: Sequence[str]
    """As numbers; none if the name is there and has none."""

    ttl_s: float | None = None
    """How long they hold; None if that is not known."""

    unanswered: OneFamily | None = None
    """The family of which the resolver did not say whether there are any; `problem` says why."""

    problem: str | None = None


@attrs.frozen(kw_only=True)
class Service:
    """One SRV record (RFC 2782)."""

    host: str
    port: int
    priority: int
    weight: int


@attrs.frozen(kw_only=True)
class Services:
    """The SRV records of one name."""

    found: Sequence[Service]
    ttl_s: float | None = None


class Resolver(Protocol):
    """Answers questions. Each may be cancelled at any time, and must then let go at once."""

    finds_services: bool
    """Whether it can look up SRV records."""

    async def addresses(self, host: str, family: Family) -> Addresses:
        """Raise `LookUpFailed`."""

    async def services(self, name: str) -> Services:
        """Raise `LookUpFailed`."""
