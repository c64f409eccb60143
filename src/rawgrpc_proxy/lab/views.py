"""`Views`: a tap that tells of connections as events, from their beginning.

    server = Server(..., tap=Views(tell))
    pool = Pool(tap=Views(tell, which=Filter.parse("method=/pkg.S/*")))

What it does not do: join connections that are open already (`late_views.py`).
"""

import time
from collections.abc import Container

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.chosen import Chosen, Which, rule_of
from rawgrpc_proxy.lab.link_view import Clock, LinkView, Tell
from rawgrpc_proxy.net.tapped import Link, LinkTap

BOTH_SIDES = (Side.DOWNSTREAM, Side.UPSTREAM)


class Views:
    """A tap: a `LinkView` for each connection, of these sides, which all tell the same callable.

    With `which` only the calls that it matches are told, and nothing that belongs to no call but the connections'
    begin and end. It is a `Filter`, or any function of `Facts`, asked once for each stream. Raises `ConfigError` for a
    filter by status.
    """

    def __init__(
        self,
        tell: Tell,
        *,
        sides: Container[Side] = BOTH_SIDES,
        which: Which | None = None,
        clock: Clock = time.time,
        payload_bytes: int = 0,
    ) -> None:
        self._tell = tell
        self._sides = sides
        self._rule = None if which is None else rule_of(which)
        self._clock = clock
        self._payload_bytes = payload_bytes

    def link(self, link: Link) -> LinkTap | None:
        """The view of this one."""
        tell = self._tell_of(link)
        if tell is None:
            return None
        view = LinkView(link, tell, clock=self._clock, payload_bytes=self._payload_bytes)
        view.open(self._clock())
        return view

    def _tell_of(self, link: Link) -> Tell | None:
        """Whom its view tells; None if there is to be none."""
        if link.side not in self._sides:
            return None
        return self._tell if self._rule is None else Chosen(self._tell, self._rule)
