"""`SystemResolver`: `getaddrinfo`, in threads. It knows whatever the system knows, but not for how long that holds.

The invariant: a look-up that hangs holds up nobody. Whoever waits for it can be cancelled; its thread is then left to
itself, and there are never more than a few.
"""

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio
import trio.lowlevel

from rawgrpc_proxy.discovery.resolver import Addresses, Family, LookUpFailed, Services
from rawgrpc_proxy.net.address import in_words

_THREADS = 8
"""For the look-ups of all sources, those that nobody waits for any more included."""

_FAMILIES = {"all": socket.AF_UNSPEC, "ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_threads = trio.lowlevel.RunVar[trio.CapacityLimiter]("threads of look-ups")

GetAddrInfo = Callable[..., Sequence[tuple[Any, Any, Any, Any, Any]]]


class SystemResolver:
    """The system's own resolver: hosts file, DNS and whatever else it has been told to use.

    `getaddrinfo` is called as `socket.getaddrinfo`, in a thread.
    """

    finds_services = False

    def __init__(self, getaddrinfo: GetAddrInfo = socket.getaddrinfo) -> None:
        self._getaddrinfo = getaddrinfo

    async def addresses(self, host: str, family: Family) -> Addresses:
        """All that the system has. Raises `LookUpFailed`."""
        look_up = partial(self._getaddrinfo, host, None, family=_FAMILIES[family], type=socket.SOCK_STREAM)
        try:
            entries = await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=_limiter())
        except (OSError, UnicodeError) as error:
            raise LookUpFailed(in_words(error)) from error
        return Addresses(found=[_number(entry[4]) for entry in entries])

    async def services(self, name: str) -> Services:
        """Raise `LookUpFailed`: `getaddrinfo` knows nothing of services."""
        raise LookUpFailed(f"the system's resolver has no SRV records, so not those of {name}")


def _limiter() -> trio.CapacityLimiter:
    try:
        return _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_THREADS)
        _threads.set(limiter)
        return limiter


def _number(sockaddr: tuple[Any, ...]) -> str:
    """The address, with its interface if it is one that each interface has (link-local)."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) > 3 else 0  # noqa: PLR2004  # (host, port, flow, scope)
    return f"{host}%{scope}" if scope and "%" not in host else host
