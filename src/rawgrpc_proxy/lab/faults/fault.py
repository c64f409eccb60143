"""A fault: which connections and calls it concerns, where it strikes, and what it does.

    Fault(method="/shop.Cart/*", where=AfterMessage(number=2), do=Reset(code="INTERNAL_ERROR"))

This module decides nothing. `Striker` is who does: asked by the middle (`middle.py`) of each connection, and of each
call on it.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.lab.faults.actions import OF_LINKS, Action, AnswerHttp, TrailersBeforeData
from rawgrpc_proxy.lab.faults.matching import ALL, CallNumbers, check_metadata
from rawgrpc_proxy.lab.faults.places import (
    AfterBytes,
    AfterMessage,
    AfterTime,
    AtConnect,
    BeforeHeaders,
    Part,
    Place,
)
from rawgrpc_proxy.net.networks import Networks
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.proxy.patterns import CATCH_ALL, check_pattern
from rawgrpc_proxy.validators import between, held_to


def _actions(value: Action | Iterable[Action]) -> tuple[Action, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


@attrs.frozen(kw_only=True)
class Fault:
    """One rule. What is not said fits everything.

    Raises `ConfigError` for what cannot be done where it is to be done.
    """

    name: str = ""
    side: Side = Side.DOWNSTREAM
    """Whose connections: the callers' (`DOWNSTREAM`) or the upstreams'."""
    method: str = attrs.field(default=CATCH_ALL, validator=held_to(check_pattern))
    """A method, a prefix and `/*`, or `/*`."""
    metadata: Mapping[str, str] = attrs.field(factory=dict, validator=held_to(check_metadata))
    """What a request must have, by name; `*` in a value stands for anything."""
    peer: Sequence[str] = attrs.field(default=(), validator=held_to(Networks.parse))
    """Networks that the peer must be from, single addresses, or "unix"."""
    calls: str = attrs.field(default=ALL, validator=held_to(CallNumbers.parse))
    """Which of those that fit otherwise (`matching.py`), connections if it strikes these."""
    share: float = attrs.field(default=1.0, validator=between(0, 1))
    """Of those, chosen by chance."""
    where: Place = attrs.field(factory=BeforeHeaders)
    do: tuple[Action, ...] = attrs.field(converter=_actions)
    """Done in this order."""

    def __attrs_post_init__(self) -> None:
        if self.side is Side.LOCAL:
            raise ConfigError(
                "side is LOCAL; a fault is on connections of callers (DOWNSTREAM) or upstreams (UPSTREAM)"
            )
        if not self.do:
            raise ConfigError("the fault does nothing")
        if self.of_link and (self.method != CATCH_ALL or self.metadata):
            raise ConfigError("method and metadata are of calls, and at this place there is none")
        for action in self.do:
            problem = _problem(self, action)
            if problem is not None:
                raise ConfigError(f"{type(action).__name__} {problem}")

    @property
    def of_link(self) -> bool:
        """Whether it strikes a connection, and no call."""
        return isinstance(self.where, AtConnect) or (isinstance(self.where, AfterTime) and self.where.of_link)


def _problem(fault: Fault, action: Action) -> str | None:
    """Why this cannot be done there."""
    where = fault.where
    if fault.of_link and not isinstance(action, OF_LINKS):
        return "is done to calls, and at this place there is none; give it a place in a call"
    if isinstance(action, TrailersBeforeData) and fault.side is Side.UPSTREAM:
        return "is against the rules of HTTP/2, and on an upstream's connection it is the proxy that would get it"
    if isinstance(action, AnswerHttp) and (
        isinstance(where, AfterMessage | AfterBytes) and where.of is Part.RESPONSE
    ):
        return "cannot be done where the response has begun; do it before the headers"
    return None


@attrs.frozen(eq=False)
class Strike:
    """One time that a fault is to be done: to a connection, or to a call."""

    fault: Fault
    seed: int = 0
    """What is left to chance in it comes from `random.Random(seed)`."""
    tag: Any = None
    """Whatever the striker wants to know it by."""


class Blow:
    """A strike that is under way. `left` are the actions that are not done by other means."""

    __slots__ = ("_rng", "_tell", "behind_request_headers", "left", "strike")

    def __init__(self, strike: Strike, tell: Callable[[Strike], None]) -> None:
        self.strike = strike
        self.left = strike.fault.do
        self.behind_request_headers = False
        """Whether it stands before a request's headers, and is done behind them: see `Delay`."""
        self._tell: Callable[[Strike], None] | None = tell
        self._rng: random.Random | None = None

    @property
    def rng(self) -> random.Random:
        """The chance of this strike."""
        if self._rng is None:
            self._rng = random.Random(self.strike.seed)  # noqa: S311  # to be the same again, not a secret
        return self._rng

    def tell(self) -> None:
        """Something of it has been done: told once."""
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(self.strike)


class Striker(Protocol):
    """Who says what strikes. Called in the middle of a connection's work: must neither wait nor raise."""

    active: bool
    """Whether there is anything at present that might strike a call. While it is False nobody is asked about calls."""

    def link_opened(self, link: Link) -> Sequence[Strike]:
        """A connection is there: which faults of connections (`of_link`) strike it."""

    def call_begun(self, link: Link, method: str, headers: Sequence[RawHeader]) -> Sequence[Strike]:
        """A call begins: which faults of calls strike it. In this order, where they do so at the same place."""

    def struck(self, strike: Strike, link: Link, stream_id: int) -> None:
        """It has been done, all of it or the first that could be. `stream_id` is 0 if it was done to a connection."""
