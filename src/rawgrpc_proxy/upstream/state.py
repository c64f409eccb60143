"""What the targets of a pool have in common: how the pool was set, and what there is of it while it is open."""

import random
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import attrs
import trio
import trio.lowlevel

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.net.dial import Connect
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.net.tapped import Tap, Wrap
from rawgrpc_proxy.net.timers import Timers
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.observe.observer import PoolObserver
from rawgrpc_proxy.upstream.choice import PoolLimits

Key = tuple[str, TlsContext | None, str | None]
"""An address, as it was given, with a TLS configuration and the name to check, if that is not the address's."""


class InUse(Protocol):
    """A target with connections, or with calls that want one."""

    def give_up_unused(self) -> bool:
        """End a connection that nobody uses, so that others may have one. False: there is none."""

    def serve(self) -> None:
        """There may be something for those who stand in line."""


T = TypeVar("T", bound=InUse)


@attrs.define(eq=False, kw_only=True)
class PoolState(Generic[T]):
    """One for each pool; the parameters are those of `Pool`."""

    limits: PoolLimits
    max_waiting: int | None
    max_connections: int | None
    dial_timeout_s: float
    connect_wait_s: float
    loop_guard: LoopGuard | None
    settings: Http2Settings
    observer: PoolObserver | None
    tap: Tap | None
    connect: Connect | None
    wrap: Wrap | None
    rng: random.Random

    in_use: dict[Key, T] = attrs.field(factory=dict, init=False)
    connections: int = attrs.field(default=0, init=False)
    """To all addresses, those being dialled included."""
    making_room: set[object] = attrs.field(factory=set, init=False)
    """Of them those that end without need, since others want their place."""
    nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    """Where dials and connections run; None unless the pool is open."""
    timers: Timers | None = attrs.field(default=None, init=False)
    token: trio.lowlevel.TrioToken | None = attrs.field(default=None, init=False)
    hear_placed: Callable[[str], None] | None = attrs.field(default=None, init=False)
    """Tells the observer that a call has got its place, if it wants to know. Asked once, when the pool opens."""
    now: Callable[[], float] = attrs.field(default=trio.current_time, init=False)
    """Once open: the clock itself, to which `trio.current_time` is a long way."""

    @property
    def is_full(self) -> bool:
        """Whether there may be no connection more, to whichever address."""
        return self.max_connections is not None and self.connections >= self.max_connections

    def make_room(self, calls: int) -> int:
        """End connections that nobody uses, for so many calls; answer how many calls will find room by that."""
        ms = self.limits.ms
        while calls > ms * len(self.making_room):
            if not any(target.give_up_unused() for target in self.in_use.values()):
                break
        return ms * len(self.making_room)

    def connection_ended(self, conn: object) -> None:
        """There is one less: somebody may have waited for that."""
        was_full = self.is_full
        self.connections -= 1
        self.making_room.discard(conn)
        if was_full:
            for target in list(self.in_use.values()):
                target.serve()
