"""The proxies that are attacked, and how each is started: this one on both engines, and others to compare with.

Each listens on a port of its own, passes calls of `/attack.Attack/` on to the one backend and all others to the
other, and is otherwise at its defaults.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from interop.shared.proc import worker_of
from interop.shared.processes import Process, Trouble
from interop.shared.programs import find, version_of

# HAProxy has no time limits by default, and warns; these are those of its manual's example.
HAPROXY = """\
global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
frontend calls
    bind 127.0.0.1:{listen} proto h2
    use_backend hostile if {{ path_beg /attack.Attack/ }}
    default_backend backend
backend backend
    server one 127.0.0.1:{backend} proto h2
backend hostile
    server one 127.0.0.1:{hostile} proto h2
"""


@dataclass(frozen=True)
class Site:
    """Where one run of a proxy takes place: a folder for its files, and the ports."""

    folder: Path
    listen: int
    backend: int
    hostile: int
    """Where calls of `/attack.Attack/` go."""
    memory_mib: int | None = None
    """What a proxy of ours may use, if little."""

    @property
    def longest_step_file(self) -> Path:
        """Where a proxy of ours writes its longest step."""
        return self.folder / "longest"


@dataclass(frozen=True)
class Proxy:
    """One that can be attacked."""

    name: str
    command: Callable[[Site], list[str]]
    program: tuple[str, str] | None = None
    """Of a reference: what has to be installed, and the option that asks for its version."""

    @property
    def is_ours(self) -> bool:
        """Whether the bounds hold for it, and it tells its longest step."""
        return self.program is None

    def version(self) -> str:
        """Of a reference. Raises `Trouble` if it is not installed."""
        return "" if self.program is None else version_of(*self.program)


def longest_step_ms(proxy: Process, site: Site) -> float:
    """The longest step of one of ours since it was asked last."""
    site.longest_step_file.unlink(missing_ok=True)
    os.kill(worker_of(proxy.pid), signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not site.longest_step_file.exists():
        proxy.check()
        if time.monotonic() > deadline:
            raise Trouble("the proxy does not tell of its steps")
        time.sleep(0.01)
    return float(site.longest_step_file.read_text())


def _ours(engine: str, site: Site) -> list[str]:
    return [
        sys.executable, "-m", "interop.attacks.proxy", str(site.longest_step_file), str(site.memory_mib or 0), "serve",
        f"--listen=127.0.0.1:{site.listen}", f"--upstream=127.0.0.1:{site.backend}",
        f"--route=/attack.Attack/*=127.0.0.1:{site.hostile}", f"--engine={engine}", "--log-format=json",
    ]  # fmt: skip


def _nghttpx(site: Site) -> list[str]:
    return [
        find("nghttpx"), "--conf=/dev/null", "--workers=1", f"--frontend=127.0.0.1,{site.listen};no-tls",
        f"--backend=127.0.0.1,{site.hostile};/attack.Attack/;proto=h2",
        f"--backend=127.0.0.1,{site.backend};;proto=h2", "--log-level=ERROR",
    ]  # fmt: skip


def _haproxy(site: Site) -> list[str]:
    file = site.folder / "haproxy.cfg"
    file.write_text(HAPROXY.format(listen=site.listen, backend=site.backend, hostile=site.hostile))
    return [find("haproxy"), "-q", "-db", "-f", str(file)]


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy("relay", partial(_ours, "relay")),
        Proxy("h2", partial(_ours, "h2")),
        Proxy("nghttpx", _nghttpx, ("nghttpx", "--version")),
        Proxy("haproxy", _haproxy, ("haproxy", "-v")),
    )
}
