"""Two network namespaces with two links between them, which can be pulled: what no shim can do to TCP.

    near: the proxy, 10.213.1.1 and 10.213.2.1      far: backends, 10.213.1.2 and 10.213.2.2

Takes root, and a kernel that allows it; `possible` says whether that is so. All of it goes with the context.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from interop.shared.processes import Trouble
from interop.shared.programs import find, output_of

_LINKS = 1, 2
_NUMBERS = itertools.count(1)


class Namespaces:
    """The two, by their names; `run` what stands before a command that is to be run in one of them."""

    def __init__(self) -> None:
        name = f"{os.getpid()}-{next(_NUMBERS)}"
        self.near, self.far = (f"rawgrpc-{side}-{name}" for side in ("near", "far"))

    def near_address(self, link: int) -> str:
        """The near end of a link, 1 or 2."""
        return f"10.213.{link}.1"

    def far_address(self, link: int) -> str:
        """The far end of it."""
        return f"10.213.{link}.2"

    def run(self, side: str) -> list[str]:
        """What stands before a command that runs on this side."""
        return [find("ip"), "netns", "exec", side]

    def pull(self, link: int) -> None:
        """Nothing passes any more, and nobody is told: the far end is down, and the near one stays up."""
        self._ip("-n", self.far, "link", "set", f"far{link}", "down")

    def plug(self, link: int) -> None:
        """The link is there again."""
        self._ip("-n", self.far, "link", "set", f"far{link}", "up")

    def build(self) -> None:
        """Make them. Raises `Trouble`."""
        for side in (self.near, self.far):
            self._ip("netns", "add", side)
            self._ip("-n", side, "link", "set", "lo", "up")
        for link in _LINKS:
            # A bridge at the near end, so that its link stays up when the far end goes down, as behind a switch.
            self._ip("-n", self.near, "link", "add", f"near{link}", "type", "bridge")
            self._ip(
                "-n", self.near, "link", "add", f"port{link}", "type", "veth", "peer", "name", f"far{link}"
            )
            self._ip("-n", self.near, "link", "set", f"far{link}", "netns", self.far)
            self._ip("-n", self.near, "link", "set", f"port{link}", "master", f"near{link}")
            # Something else that is up keeps the bridge's carrier.
            self._ip(
                "-n", self.near, "link", "add", f"keep{link}", "type", "veth", "peer", "name", f"other{link}"
            )
            self._ip("-n", self.near, "link", "set", f"keep{link}", "master", f"near{link}")
            for device in (f"near{link}", f"port{link}", f"keep{link}", f"other{link}"):
                self._ip("-n", self.near, "link", "set", device, "up")
            self._ip("-n", self.far, "link", "set", f"far{link}", "up")
            self._ip("-n", self.near, "addr", "add", f"{self.near_address(link)}/24", "dev", f"near{link}")
            self._ip("-n", self.far, "addr", "add", f"{self.far_address(link)}/24", "dev", f"far{link}")

    def remove(self) -> None:
        """Remove what there is of them."""
        for side in (self.near, self.far):
            with suppress(Trouble):
                self._ip("netns", "del", side)

    def _ip(self, *arguments: str) -> None:
        output_of(find("ip"), *arguments)


@contextmanager
def namespaces() -> Iterator[Namespaces]:
    """Both, from their making to their removal. Raises `Trouble` where that is not possible."""
    made = Namespaces()
    try:
        made.build()
        yield made
    finally:
        made.remove()


def impossible() -> str | None:
    """Why there can be none on this machine; None if there can."""
    try:
        with namespaces():
            return None
    except Trouble as trouble:
        return f"no network namespaces: {str(trouble).splitlines()[0]}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"no network namespaces: {error}"
