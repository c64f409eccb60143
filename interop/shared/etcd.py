"""A fresh etcd, and its command line client (grpc-go) against one endpoint."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interop.shared.ports import free_port
from interop.shared.processes import Lines, Listener

COMMAND_SECONDS = 20.0
ENVIRONMENT = {**os.environ, "ETCDCTL_API": "3"}


class Etcdctl:
    """`etcdctl` against one endpoint."""

    def __init__(self, target: str) -> None:
        self._target = target

    def __call__(self, *arguments: str, stdin: str = "") -> dict[str, Any]:
        """Run a command to its end."""
        done = subprocess.run(
            self._command(*arguments), input=stdin, capture_output=True, text=True, env=ENVIRONMENT,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        return {
            "command": arguments[0],
            "exit": done.returncode,
            "stdout": done.stdout.splitlines(),
            "stderr": [re.sub(r'"ts":"[^"]*",?', "", line) for line in done.stderr.splitlines()],
        }

    def start(self, *arguments: str) -> Lines:
        """Start a command that goes on until it is stopped."""
        return Lines(self._command(*arguments), ENVIRONMENT)

    def _command(self, *arguments: str) -> list[str]:
        return ["etcdctl", f"--endpoints={self._target}", *arguments]


class EtcdPorts:
    """Ports that every etcd of a run uses in turn, so that its member and cluster ids, hashes of them, are equal."""

    def __init__(self) -> None:
        self.client = free_port()
        self.peer = free_port()


@contextmanager
def etcd_server(ports: EtcdPorts) -> Iterator[str]:
    """A fresh etcd; its target."""
    client, peer = f"http://127.0.0.1:{ports.client}", f"http://127.0.0.1:{ports.peer}"
    with tempfile.TemporaryDirectory() as directory:
        command = [
            "etcd", "--name=interop", f"--data-dir={directory}", "--log-level=error", "--logger=zap",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=interop={peer}",
        ]  # fmt: skip
        with Listener("etcd", command, ports.client) as listener:
            yield listener.target
