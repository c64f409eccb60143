"""dnsmasq, a DNS server whose names change while it runs: from files of hosts, read again at SIGHUP."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from interop.shared.ports import free_port
from interop.shared.processes import Process
from interop.shared.programs import find


class Dnsmasq:
    """One that runs, on a loopback port of its own. `address` is what a setting like `dns_servers` takes."""

    def __init__(self, process: Process, hosts: Path, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.process = process
        self._hosts = hosts

    def set(self, names: Mapping[str, Sequence[str]]) -> None:
        """Each of these names has these addresses from now on, and no other name has any.

        It takes dnsmasq some milliseconds to read them.
        """
        lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
        fresh = self._hosts.with_suffix(".new")  # it never reads half a file
        fresh.write_text("".join(lines))
        fresh.replace(self._hosts)
        os.kill(self.process.pid, signal.SIGHUP)


@contextmanager
def dnsmasq(
    names: Mapping[str, Sequence[str]], *, ttl_s: int = 1, services: Sequence[str] = ()
) -> Iterator[Dnsmasq]:
    """Start one that knows these names and nothing else, and end it.

    `services` are SRV records, `_grpc._tcp.orders.internal,pod-1.internal,50051,0,10` each (name, host, port, priority,
    weight); they stay as they are. Raises `Trouble` if it is not installed.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder, "hosts")
        hosts.touch()
        command = [
            find("dnsmasq"),
            "--keep-in-foreground",
            "--pid-file",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--no-poll",
            "--bind-interfaces",
            "--listen-address=127.0.0.1",
            f"--port={port}",
            f"--addn-hosts={hosts}",
            f"--local-ttl={ttl_s}",
            "--local=/internal/",
            *(f"--srv-host={each}" for each in services),
        ]
        if os.getuid() == 0:
            # It would give up root's rights, and with them the folder.
            command.append("--user=root")
        with Process("dnsmasq", command, port) as process:
            server = Dnsmasq(process, hosts, port)
            server.set(names)
            yield server
