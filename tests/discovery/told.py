"""What a source has told, and the source at work."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.resolver import Addresses, Family, Services
from rawgrpc_proxy.discovery.source import Source


class Told:
    """The sets that a source has told, in turn."""

    def __init__(self) -> None:
        self.sets: list[list[EndpointAddress]] = []
        self._changed = trio.Event()

    def __call__(self, found: Sequence[EndpointAddress]) -> None:
        self.sets.append(list(found))
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, *addresses: str) -> None:
        """Wait until these are the last ones told, in this order."""
        while not self.sets or self.addresses != list(addresses):
            await self._changed.wait()

    @property
    def addresses(self) -> list[str]:
        """The last ones."""
        return [each.address for each in self.sets[-1]]


@asynccontextmanager
async def watched(source: Source) -> AsyncIterator[Told]:
    """The source while it is at work."""
    told = Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.watch, told)
        yield told
        nursery.cancel_scope.cancel()


class Script:
    """A resolver that answers what it is told to, without any network; it notes when it was asked."""

    finds_services = True

    def __init__(self, *found: str, ttl_s: float | None = None) -> None:
        self.answer: Addresses | Exception | None = Addresses(found=found, ttl_s=ttl_s)
        """None: it never answers."""
        self.services_answer = Services(found=())
        self.asked_at: list[float] = []

    async def addresses(self, host: str, family: Family) -> Addresses:
        self.asked_at.append(trio.current_time())
        answer = self.answer
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def services(self, name: str) -> Services:
        return self.services_answer


class Heard:
    """An observer of look-ups."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def looked_up(self, name: str, duration_s: float, addresses: int) -> None:
        self.events.append(("looked_up", name, addresses))

    def look_up_failed(self, name: str, duration_s: float, problem: str) -> None:
        self.events.append(("look_up_failed", name, problem))

    def look_up_noted(self, name: str, note: str) -> None:
        self.events.append(("look_up_noted", name, note))

    def addresses_changed(self, name: str, addresses: Sequence[str]) -> None:
        self.events.append(("addresses_changed", name, list(addresses)))
