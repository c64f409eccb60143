"""Several taps as one."""

from collections.abc import Sequence

import attrs

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net.tapped import Link, LinkTap, Tap
from rawgrpc_proxy.observe.tell import report


def several_taps(*taps: Tap) -> Tap:
    """Each sees what it asks for. One that raises is told nothing more of that connection; the others are."""
    return taps[0] if len(taps) == 1 else _Taps(taps)


@attrs.frozen
class _Taps:
    taps: Sequence[Tap]

    def link(self, link: Link) -> LinkTap | None:
        """Who of them wants to see this one."""
        seeing: list[LinkTap] = []
        for tap in self.taps:
            try:
                link_tap = tap.link(link)
            except Exception as error:  # noqa: BLE001  # any code of a user's
                report(error, tap)
            else:
                if link_tap is not None:
                    seeing.append(link_tap)
        return _LinkTaps(seeing) if seeing else None


class _LinkTaps:
    def __init__(self, taps: list[LinkTap]) -> None:
        self._taps = taps

    def received(self, data: Data) -> None:
        """From the peer."""
        self._tell("received", data)

    def sent(self, data: Data) -> None:
        """To the peer."""
        self._tell("sent", data)

    def closed(self) -> None:
        """It is over."""
        self._tell("closed")

    def _tell(self, what: str, *data: Data) -> None:
        for tap in list(self._taps):
            try:
                getattr(tap, what)(*data)
            except Exception as error:  # noqa: BLE001  # any code of a user's
                self._taps.remove(tap)
                report(error, tap)
