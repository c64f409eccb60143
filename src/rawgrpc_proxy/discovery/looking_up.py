"""`LookingUp`: looks a name up again and again, and tells the addresses when they have changed.

What a look-up is, and when the next one is due, is said elsewhere (`dns_source.py`, `schedule.py`). The invariant:
whatever a resolver does, what was told stays until there is something better.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NoReturn

import attrs
import trio

from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.resolver import LookUpFailed
from rawgrpc_proxy.discovery.schedule import Schedule
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.observe.tell import tell as tell_observer
from rawgrpc_proxy.observe.words import cut, printable

_ERROR_CHARACTERS = 300


@attrs.frozen(kw_only=True)
class LookUp:
    """What a look-up has brought."""

    found: Sequence[EndpointAddress]
    ttl_s: float | None
    notes: Sequence[str] = ()
    """What of it is in doubt, or left out."""


class LookingUp:
    """A source that looks one name up. Subclasses say how, in `look_up`."""

    def __init__(
        self,
        name: str,
        *,
        min_ttl_s: float,
        max_ttl_s: float,
        max_addresses: int,
        observer: PoolObserver | None,
        rng: random.Random | None,
    ) -> None:
        """Raise `ConfigError` for bounds that cannot be kept."""
        if not 0 < min_ttl_s <= max_ttl_s < math.inf:
            raise ConfigError(
                f"min_ttl_s is {min_ttl_s!r} and max_ttl_s {max_ttl_s!r}; the first must be above 0, the second no less"
            )
        if max_addresses < 1:
            raise ConfigError(f"max_addresses is {max_addresses!r}; it must be 1 or more")
        self.name = name
        self.problem: str | None = None
        """Why the last look-up failed, if it did."""
        self.note: str | None = None
        """What is in doubt, or left out, of what the last look-up that did not fail has brought."""
        self.observer = observer
        """Hears `looked_up`, `look_up_failed`, `look_up_noted` and `addresses_changed`."""
        self._max_addresses = max_addresses
        self._schedule = Schedule(
            min_ttl_s=min_ttl_s,
            max_ttl_s=max_ttl_s,
            rng=rng or random.Random(),  # noqa: S311  # jitter, no secret
        )
        self._asked_for = trio.Event()

    async def look_up(self) -> LookUp:
        """Look up once; waits no longer than some seconds. Raises `LookUpFailed`, or whatever a resolver may raise."""
        raise NotImplementedError

    def look_up_soon(self) -> None:
        """Something does not work there. Look again: at once, unless that was done within the last second.

        For trio's thread. While look-ups fail it hurries nothing.
        """
        self._asked_for.set()

    async def watch(self, tell: Callable[[Sequence[EndpointAddress]], None]) -> NoReturn:
        """Tell each new set as a whole, sorted, until cancelled.

        A look-up that fails, or finds no address at all, changes nothing: `problem` says what is wrong.
        """
        told: frozenset[EndpointAddress] | None = None
        while True:
            self._asked_for = trio.Event()
            began = trio.current_time()
            try:
                brought = await self.look_up()
                if not brought.found:
                    raise LookUpFailed("; ".join(["it has no addresses", *brought.notes]))
            except Exception as error:  # noqa: BLE001  # whatever is wrong with a resolver, or its answers
                due, earliest = self._failed(error, began)
            else:
                now = trio.current_time()
                due, earliest = self._schedule.answered(began, now, brought.ttl_s)
                found = self._bounded(brought)
                tell_observer(self.observer, "looked_up", self.name, now - began, len(found))
                if frozenset(found) != told:
                    told = frozenset(found)
                    addresses = [each.address for each in found]
                    tell_observer(self.observer, "addresses_changed", self.name, addresses)
                    tell(found)
            with trio.move_on_at(due):
                await trio.sleep_until(earliest)
                await self._asked_for.wait()

    def _failed(self, error: Exception, began: float) -> tuple[float, float]:
        now = trio.current_time()
        self.problem = printable(cut(_in_words(error), _ERROR_CHARACTERS))
        tell_observer(self.observer, "look_up_failed", self.name, now - began, self.problem)
        return self._schedule.failed(now)

    def _bounded(self, brought: LookUp) -> list[EndpointAddress]:
        """What is told of it: each once, in order, and no more than may be."""
        found = sorted(set(brought.found), key=_in_order)
        notes = list(brought.notes)
        if len(found) > self._max_addresses:
            notes.append(
                f"it has {len(found)} addresses, of which the first {self._max_addresses} are used (max_addresses)"
            )
        self.problem = None
        before, self.note = self.note, printable(cut("; ".join(notes), _ERROR_CHARACTERS)) or None
        if self.note is not None and self.note != before:
            tell_observer(self.observer, "look_up_noted", self.name, self.note)
        return found[: self._max_addresses]


def _in_order(found: EndpointAddress) -> tuple[int, str, int]:
    return found.priority, found.address, found.weight


def _in_words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LookUpFailed):
        return str(error)
    return f"the resolver failed with {type(error).__name__}: {error}"
