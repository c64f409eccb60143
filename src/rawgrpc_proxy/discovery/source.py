"""`Source`: finds the addresses of a cluster, and says so when they change."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import trio

from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address


class Source(Protocol):
    """Where a cluster has its addresses from."""

    @property
    def problem(self) -> str | None:
        """Why the last look-up failed, if it did."""

    @property
    def note(self) -> str | None:
        """What is in doubt, or left out, of what the last look-up that did not fail has brought."""

    async def watch(self, tell: Callable[[Sequence[EndpointAddress]], None]) -> None:
        """Tell each new set as a whole, until cancelled. A look-up that fails tells nothing: the old set stays."""

    def look_up_soon(self) -> None:
        """Something does not work there: look again, as soon as may be."""


class StaticSource:
    """Addresses that never change."""

    problem: str | None = None
    note: str | None = None

    def __init__(self, endpoints: Iterable[str | EndpointAddress]) -> None:
        """Raise `ConfigError` for what is no address, for one that is there twice, and if there is none."""
        self.found = [
            each if isinstance(each, EndpointAddress) else EndpointAddress(each) for each in endpoints
        ]
        if not self.found:
            raise ConfigError("a cluster needs at least one endpoint")
        seen = set()
        for each in self.found:
            Address.parse(each.address)
            if each.address in seen:
                raise ConfigError(f"the endpoint {each.address} is there twice; give it a weight instead")
            seen.add(each.address)

    async def watch(self, tell: Callable[[Sequence[EndpointAddress]], None]) -> None:
        """Tell them once."""
        tell(self.found)
        await trio.sleep_forever()

    def look_up_soon(self) -> None:
        """They are what they are."""
