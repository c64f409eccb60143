"""The proxy under the soak, in front of its upstreams, and what its log tells."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from interop.promises.running import backend
from interop.shared.etcd import EtcdPorts, etcd_server
from interop.shared.processes import Listener, proxy_command

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

    def unexpected(self) -> Counter[str]:
        """Ends of calls that no client has asked for, and events of trouble. What a client ends, it knows of itself."""
        found: Counter[str] = Counter()
        for (method, status, origin), count in self.calls.items():
            if status not in ASKED_FOR and origin != "downstream":
                found[f"{method}: {status} from {origin}"] += count
        for event in TROUBLES & self.events.keys():
            found[f"the log's event {event}"] += self.events[event]
        return found


@contextmanager
def proxy_before(engine: str | None, log: ProxyLog) -> Iterator[tuple[Listener, bool]]:
    """The proxy in front of its upstreams, and whether etcd is one of them."""
    with ExitStack() as stack:
        upstream = stack.enter_context(backend()).target
        options = [f"--upstream={upstream}", "--log-format=json"]
        with_etcd = bool(shutil.which("etcd") and shutil.which("etcdctl"))
        if with_etcd:
            target = stack.enter_context(etcd_server(EtcdPorts()))
            options += [f"--route=/etcdserverpb.{service}/*={target}" for service in ETCD_SERVICES]
        command = proxy_command(*options, engine=engine)
        yield stack.enter_context(Listener("the proxy", command, on_error_line=log.read)), with_etcd
