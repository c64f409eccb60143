"""`rawgrpc-proxy lint --attach ADMIN`: what the workers of a running proxy find, summed up.

Each worker has its own linter (`worker_findings.py`), and says of each kind of finding how often it was found by now.
What it does not do: ask (`tap_attach.py`), or show (`lint.py`).
"""

from collections.abc import Callable, Container
from typing import Any

from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.lint.findings import Finding, Findings
from rawgrpc_proxy.lab.lint.rules import RULES, Rule, Severity
from rawgrpc_proxy.lab.rows import Row
from rawgrpc_proxy.net.tapped import Link

WISHES = TapWishes(mode="findings", side="both")


class Totals:
    """Of all workers, in `findings`; rules in `ignore` are left out. `say` hears which workers there are."""

    def __init__(
        self, findings: Findings, say: Callable[[str], None], *, ignore: Container[str] = ()
    ) -> None:
        self._findings = findings
        self._say = say
        self._ignore = ignore
        self._told: dict[int, dict[object, int]] = {}
        """What each process has said last, by what it counts."""
        self.workers_seen = 0
        self.links_seen = 0
        self.streams_seen = 0

    def take(self, row: Row) -> None:
        """Add what is new in it. Raises `KeyError`, `TypeError` or `ValueError` if it cannot be understood."""
        worker, pid = row["worker"], row["pid"]
        match row["event"]:
            case "attached":
                self.workers_seen += 1
                self._told[pid] = {}
                self._say(f"looking at worker {worker} (process {pid})")
            case "detached":
                self._told.pop(pid, None)
                self._say(f"worker {worker} (process {pid}) has ended")
            case "looked":
                self.links_seen += self._new(pid, "connections", row["connections"])
                self.streams_seen += self._new(pid, "streams", row["streams"])
            case "finding" if row["rule"] not in self._ignore:
                finding = _finding(row)
                count = self._new(pid, (finding.rule.id, finding.method, finding.side), row["count"])
                if count:
                    self._findings.add(finding, count)
            case _:
                pass

    def _new(self, pid: int, what: object, count: int) -> int:
        """How many more these are. Fewer than before: it has begun to count again."""
        told = self._told.setdefault(pid, {})
        before, told[what] = told.get(what, 0), count
        return count - before if count >= before else count


def _finding(row: dict[str, Any]) -> Finding:
    side, _, sender = row["side"].partition(" ")
    return Finding(
        rule=RULES.get(row["rule"]) or _rule(row),
        link=Link(number=row["link"], side=Side(side), peer=row["peer"], tls=None),
        sender=Sender(sender),
        at=row["time"],
        stream_id=row["stream"],
        method=row["method"],
        seen=row["seen"],
        worker=row["worker"],
    )


def _rule(row: dict[str, Any]) -> Rule:
    """One that only the proxy knows, which is of another version."""
    return Rule(row["rule"], Severity[row["severity"].upper()], row["section"], row["text"])
