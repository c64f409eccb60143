"""The proxy under the load: its settings file, its signals, its workers, and what its log tells.

Which connections a worker has is asked of the kernel, which caller a connection is of, of the call log: callers say who
they are in their authority. Nothing here works but on Linux.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from interop.shared import proc
from interop.shared.processes import Listener, Trouble

GRACE_SECONDS = 10
POLL_SECONDS = 0.005
WITHIN_SECONDS = 60.0
_SERVING = "serving, with the settings as they are now"
_ESTABLISHED = "01"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Setup:
    """How the proxy is run, whatever its settings file says at the moment."""

    upstream: str
    workers: int = 2
    engine: str = "relay"
    python: str = sys.executable
    admin: bool = False
    tls: tuple[str, str] | None = None
    """Files of certificate and key, for callers."""


class Proxy:
    """A running `rawgrpc-proxy serve --config FILE`."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.port_of: dict[str, int] = {}
        """By caller: of its connection, as of the last call that the log has told of."""
        self.said: deque[str] = deque(maxlen=200)
        """What the log has told beside calls."""
        self._setup = setup
        self._file = folder / "proxy.toml"
        self._took_over = 0
        self._settings = 0
        self.write()
        command = [setup.python, "-m", "rawgrpc_proxy", "serve", f"--config={self._file}"]
        self.process = Listener("the proxy", command, on_error_line=self._read)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.process.target.rpartition(":")[2])

    def write(self) -> None:
        """Write the settings, other ones each time."""
        setup, self._settings = self._setup, self._settings + 1
        tls = ""
        if setup.tls is not None:
            tls = f"tls = {{ certificate = {json.dumps(setup.tls[0])}, key = {json.dumps(setup.tls[1])} }}\n"
        new = self._file.with_suffix(".new")
        new.write_text(
            f"workers = {setup.workers}\ngrace = {GRACE_SECONDS}\n"
            f'pool = {{ size = {100 + self._settings} }}\nhttp2 = {{ engine = "{setup.engine}" }}\n'
            'log = { format = "json", start_after = "1s", fields = ["authority", "peer", "status", "detail"] }\n'
            + ('admin = { address = "127.0.0.1:0" }\n' if setup.admin else "")
            + f'[[listeners]]\naddress = "127.0.0.1:0"\n{tls}'
            f'[clusters.backend]\nendpoints = ["{setup.upstream}"]\n'
            f'[[routes]]\ncluster = "backend"\n'
            f'response_metadata = {{ set = {{ "x-settings" = "{self._settings}" }} }}\n'
        )
        new.rename(self._file)

    def _read(self, line: str) -> None:
        with suppress(ValueError):
            told = json.loads(line)
            if "authority" in told:
                self.port_of[told["authority"]] = int(told["peer"].rpartition(":")[2])
                return
        self.said.append(line)
        self._took_over += _SERVING in line

    # ----------------------------------------------------------------- events

    def take_over(self, number: signal.Signals) -> None:
        """Change the settings, send SIGHUP or SIGUSR2, and wait until the new workers have taken over."""
        self.write()
        before = self._took_over
        os.kill(self.process.pid, number)
        self.until(lambda: self._took_over > before, f"the new workers did not take over after {number.name}")

    def kill_worker(self) -> tuple[set[int], float, float]:
        """Kill the one with the most connections; answer their ports, and between which times it was done."""
        victim = max(self.workers(), key=lambda pid: len(self.ports(pid)))
        killed = time.monotonic()
        # Stopped first: what is connected now is what is cut off.
        os.kill(victim, signal.SIGSTOP)
        ports = self.ports(victim)
        os.kill(victim, signal.SIGKILL)
        self.until(lambda: not self.ports(victim), "a killed worker still had its connections")
        return ports, killed, time.monotonic()

    def until(self, condition: Callable[[], bool], else_said: str) -> None:
        """Wait for it. Raises `Trouble`."""
        by = time.monotonic() + WITHIN_SECONDS
        while not condition():
            self.process.check()
            if time.monotonic() > by:
                raise Trouble(f"{else_said} within {WITHIN_SECONDS:.0f} s\n{''.join(self.said)}")
            time.sleep(POLL_SECONDS)

    # ---------------------------------------------------------------- workers

    def workers(self) -> list[int]:
        """All that are there, by process id; those that drain, and an admin process, too."""
        return proc.with_descendants(self.process.pid)[1:]

    def wait_until_drained(self) -> None:
        """Wait until no worker is left but those that serve."""
        count = self._setup.workers + self._setup.admin
        self.until(lambda: len(self.workers()) == count, f"there were not {count} processes")

    def ports(self, pid: int) -> set[int]:
        """Those of callers that are connected to this worker."""
        inodes = set()
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if found := _SOCKET.match(str(entry.readlink())):
                        inodes.add(found[1])
        ports = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split(maxsplit=10)[:10]
            if state == _ESTABLISHED and inode in inodes and int(local.partition(":")[2], 16) == self.port:
                ports.add(int(remote.partition(":")[2], 16))
        return ports


@contextmanager
def running_proxy(setup: Setup, folder: Path) -> Iterator[Proxy]:
    """The proxy, from its start to its end."""
    proxy = Proxy(setup, folder)
    with proxy.process:
        yield proxy
