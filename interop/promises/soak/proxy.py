"""The proxy under the soak, in front of its upstreams, and what its log tells."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from interop.peers.catalogue import left_out, peer_command
from interop.promises.backend import backend
from interop.shared.etcd import EtcdPorts, etcd_server
from interop.shared.processes import Listener, proxy_command

#: The services of bytes_server.py, and of the same in Go.
BYTES, GO_BYTES = "interop.Bytes", "interop.go.Bytes"
ETCD_SERVICES = ("KV", "Watch", "Lease")
EVENT = re.compile(r'"event": "(\w+)"')
#: Statuses that the clients ask for, and events that tell of trouble.
ASKED_FOR = {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
TROUBLES = {"refused", "handler_error", "accept_error", "not JSON"}
CALL = re.compile(r'"method": "([^"]*)".*?"status": "(\w+)", "origin": "(\w+)"')


class ProxyLog:
    """The proxy's log, line by line: calls counted by method and end, everything else kept."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.events: Counter[str] = Counter()
        self.closed: list[str] = []

    def read(self, line: str) -> None:
        """One line, from the proxy's standard error."""
        event = EVENT.search(line)
        if event is None:
            self.events["not JSON"] += 1
        elif event[1] != "call":
            self.events[event[1]] += 1
            if event[1] == "connection_error":
                self.closed.append(line.strip())
        elif call := CALL.search(line):
            self.calls[call[1], call[2], call[3]] += 1

    def ended(self, status: str) -> int:
        """How many calls have ended so, whoever said it."""
        return sum(count for (_, ended, _), count in self.calls.items() if ended == status)

    def unexpected(self) -> Counter[str]:
        """Ends of calls that no client has asked for, and events of trouble. What a client ends, it knows of itself."""
        found: Counter[str] = Counter()
        for (method, status, origin), count in self.calls.items():
            if status not in ASKED_FOR and origin != "downstream":
                found[f"{method}: {status} from {origin}"] += count
        for event in TROUBLES & self.events.keys():
            found[f"the log's event {event}"] += self.events[event]
        return found


@dataclass
class Site:
    """The proxy, and what of its upstreams this machine has."""

    proxy: Listener
    services: list[str]
    """Those that answer with the bytes of the request, each by another library's server."""
    with_etcd: bool


@contextmanager
def proxy_before(engine: str | None, log: ProxyLog) -> Iterator[Site]:
    """The proxy in front of its upstreams."""
    with ExitStack() as stack:
        upstream = stack.enter_context(backend()).target
        options = [f"--upstream={upstream}", "--log-format=json"]
        services = [BYTES]
        if not left_out("grpc-go"):
            command = peer_command("grpc-go", "bytes_server")
            target = stack.enter_context(Listener("the backend in Go", command)).target
            options.append(f"--route=/{GO_BYTES}/*={target}")
            services.append(GO_BYTES)
        with_etcd = bool(shutil.which("etcd") and shutil.which("etcdctl"))
        if with_etcd:
            target = stack.enter_context(etcd_server(EtcdPorts()))
            options += [f"--route=/etcdserverpb.{service}/*={target}" for service in ETCD_SERVICES]
        command = proxy_command(*options, engine=engine)
        proxy = stack.enter_context(Listener("the proxy", command, on_error_line=log.read))
        yield Site(proxy, services, with_etcd)
