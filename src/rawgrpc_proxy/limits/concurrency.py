"""Limits on how many calls are under way at a time: a fixed one, or one that follows the upstream (`gradient.py`).

A call has its place from when it begins upstream work, the wait for a connection included, until it is over; what finds
none is RESOURCE_EXHAUSTED at once. `Places` are those of one call: taken together or not at all, given back once.

What it does not do: let calls wait (the pool has a line for that), or know of other processes.
"""

from collections.abc import Sequence
from random import Random
from typing import Self

import trio

from rawgrpc_proxy.call_policy import CallLimit
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, TooManyCalls
from rawgrpc_proxy.limits.gradient import Gradient
from rawgrpc_proxy.observe.tell import report

_PUSHBACK_MS = 100
"""What the refused are told to wait: nobody knows when a place is free."""


class ConcurrencyLimit:
    """At most `maximum` calls at a time. `open_calls` are under way, and `refused` were one too many.

    `name` is that of the setting, for the refused to read.
    """

    __slots__ = ("_maximum", "name", "open_calls", "refused")

    def __init__(self, maximum: int, *, name: str = "concurrency") -> None:
        if maximum < 1:
            raise ConfigError(f"a limit of {maximum} calls lets none through; it must be 1 or more")
        self.name = name
        self.open_calls = 0
        self.refused = 0
        self._maximum = maximum

    @property
    def limit(self) -> int:
        """How many there may be now."""
        return self._maximum

    def enter(self) -> None:
        if self.open_calls >= self.limit:
            self.refused += 1
            raise TooManyCalls(
                f"{self.open_calls} calls are under way, as many as may be now ({self.name})",
                pushback_ms=_PUSHBACK_MS,
                cause=self.name,
            )
        self.open_calls += 1

    def leave(self, began_at: float, now: float, status: Status | None) -> None:
        self.open_calls -= 1


class AdaptiveLimit(ConcurrencyLimit):
    """As many calls at a time as the upstream takes without letting them queue, between `minimum` and `maximum`.

    It learns from unary calls: of those that end with OK, the time that they take; how many end by their deadline. For
    methods that take more or less the same time; streams have places, too, so they belong into another route.
    """

    __slots__ = ("_gradient",)

    def __init__(self, minimum: int, maximum: int, rng: Random | None = None) -> None:
        super().__init__(maximum)
        self._gradient = Gradient(minimum, maximum, rng or Random())  # noqa: S311  # jitter

    @property
    def limit(self) -> int:
        return self._gradient.limit

    def enter(self) -> None:
        super().enter()
        self._gradient.began(self.open_calls)

    def leave(self, began_at: float, now: float, status: Status | None) -> None:
        super().leave(began_at, now, status)
        if status is Status.OK:
            self._gradient.ended(began_at, now)
        elif status is Status.DEADLINE_EXCEEDED:
            self._gradient.expired(began_at, now)


class Places:
    """The places that one call has, one of each of these limits."""

    __slots__ = ("_began_at", "_limits")

    def __init__(self, limits: Sequence[CallLimit]) -> None:
        self._limits = limits
        self._began_at = trio.current_time()

    @classmethod
    def of(cls, limits: Sequence[CallLimit]) -> Self:
        """Take one of each. Raises `RpcError`, with none taken, if one of them is full."""
        entered: list[CallLimit] = []
        try:
            for limit in limits:
                limit.enter()
                entered.append(limit)
        except BaseException:
            cls(entered).leave(None)
            raise
        return cls(entered)

    def leave(self, status: Status | None) -> None:
        """Give all back; once. `status` is OK or DEADLINE_EXCEEDED if the time that the call took says something."""
        limits, self._limits = self._limits, ()
        now = trio.current_time() if limits else 0.0
        for limit in limits:
            try:
                limit.leave(self._began_at, now, status)
            except Exception as error:  # noqa: BLE001  # a user's own; we are in the middle of a reader's work
                report(error, limit)
