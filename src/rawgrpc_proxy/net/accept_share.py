"""One process's share of the connections that come to a listening socket of several processes.

The kernel wakes all of them, and the first to come takes what it finds: of twenty clients that connect together mostly
one process would get them all. gRPC's connections are few and live long, so what begins uneven stays uneven. Here the
processes tell each other how many connections they have, in memory that they share, and one that has more than another
waits a moment before it takes the next.

What it does not do: move a connection, or look at how much there is to do on it. The invariant: nobody depends on
another process; one that hangs or is gone delays each connection by that moment, and no longer.
"""

import mmap

import trio.lowlevel

_COUNT_BYTES = 4
_EIGHTH = 3


class AcceptShare:
    """The counts of all processes, and which of them is this one's."""

    __slots__ = ("_counts", "_own")

    def __init__(self, counts: memoryview, own: int) -> None:
        """`counts` is made by `shared_counts`; `own` is this process's place in it, which begins at nothing."""
        self._counts = counts
        self._own = own
        counts[own] = 0

    def opened(self) -> None:
        """Count a connection that this process has taken."""
        self._counts[self._own] += 1

    def closed(self) -> None:
        """Count one less: it is over."""
        self._counts[self._own] -= 1

    @property
    def is_ahead(self) -> bool:
        """Whether another process has fewer connections. An eighth of many makes no difference."""
        fewest: int = min(self._counts)
        own: int = self._counts[self._own]
        return own > fewest + (fewest >> _EIGHTH)


def shared_counts(processes: int) -> memoryview:
    """Counts for so many processes, in memory that those forked from this one share."""
    return memoryview(mmap.mmap(-1, _COUNT_BYTES * processes)).cast("I")


_share_of_run: trio.lowlevel.RunVar[AcceptShare | None] = trio.lowlevel.RunVar(
    "rawgrpc_proxy.accept_share", None
)


def set_accept_share(share: AcceptShare) -> None:
    """From now on this trio run, a process of several, counts the connections it accepts, and leaves some to others."""
    _share_of_run.set(share)


def current_accept_share() -> AcceptShare | None:
    """The share of this trio run; None if it shares its listeners with nobody."""
    return _share_of_run.get()
