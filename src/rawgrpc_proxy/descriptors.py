"""File descriptors: how many the process may have open, and one plan for who gets how many of them.

Every connection, on either side, is one. Without a plan a crowd on one side leaves nothing for the other: clients would
be accepted whose calls then cannot be sent on. What it does not do: count what is open; `Server` and `Pool` do, each
its own.
"""

import resource
import sys
from typing import Self

import attrs

_ENOUGH = 1 << 20
"""No process of ours comes near it, and some systems say "infinity" where they mean less."""
_OPEN_MAX = 10240
"""macOS takes no higher soft limit where the hard one is infinite (its setrlimit(2), under COMPATIBILITY)."""
_RESERVE = 64
"""Name resolution takes one for each of trio's 40 threads; the rest is for listeners, the log, epoll, pipes."""


@attrs.frozen(kw_only=True)
class DescriptorPlan:
    """How many connections each side may have, out of `limit` descriptors.

    Two thirds of what is left beside a reserve are for clients, each of which needs a connection of its own; an
    upstream's are shared by their calls.
    """

    limit: int
    downstream: int
    upstream: int

    @classmethod
    def of(cls, limit: int) -> Self:
        """The plan for so many descriptors."""
        free = limit - min(_RESERVE, limit // 4)
        upstream = max(1, free // 3)
        return cls(limit=limit, downstream=max(1, free - upstream), upstream=upstream)

    @classmethod
    def of_this_process(cls) -> Self:
        """The plan for the limit as it is now (RLIMIT_NOFILE, the soft one)."""
        return cls.of(soft_limit())


def soft_limit() -> int:
    """How many descriptors this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ENOUGH if soft == resource.RLIM_INFINITY else min(soft, _ENOUGH)


def raise_soft_limit() -> None:
    """Raise the soft limit to the hard one, as servers do: the low default is for programs that use select(2).

    Up to a million. Never lowers it; where the system refuses, it stays as it is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    for wanted in (highest, _OPEN_MAX) if sys.platform == "darwin" else (highest,):
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # ValueError: CPython's word for EINVAL
            continue
        return


def remedy() -> str:
    """What the limit is and how to raise it, for whoever reads that it was reached."""
    return f"the process may have {soft_limit()} files open; raise that with `ulimit -n` or systemd's LimitNOFILE="
