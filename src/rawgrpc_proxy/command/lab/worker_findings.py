"""What a worker finds for one who looks through the admin listener: `GET /tap?mode=findings`.

The linter runs here, since what it finds is little and what it looks at is much. A row is a kind of finding: its first
case, and how often it was found since the look began. It comes again when that has changed, so no row is missed for
long if one is lost. What it does not do: sum up workers (`lint_attach.py`). The invariants: what is held is bounded by
`MAX_KINDS` of findings, and by what connections and their open streams are; what is said at once by `_AT_ONCE`.
"""

from collections.abc import Mapping
from typing import Any

from rawgrpc_proxy.lab.lint.findings import Counted, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.lab.row_text import json_of

_REMEMBERS = 32
"""Of each connection's streams that have ended: a server may have ten thousand connections."""
_AT_ONCE = 16 * 1024
"""Characters. A worker is asked forty times a second."""


class FindingLines:
    """Findings as lines; `where` says in which worker."""

    def __init__(self, where: Mapping[str, int]) -> None:
        self._where = where
        self._findings = Findings()
        self._linter = Linter(self._findings, remembers=_REMEMBERS)
        self._looked_at = (0, 0)
        self.tell = self._linter.tell

    def take(self) -> tuple[str, bool]:
        """The next lines. What is left of those that have changed can wait."""
        changed, lines, size = self._findings.changed, [], 0
        while changed and size < _AT_ONCE:
            counted = next(iter(changed))
            del changed[counted]
            lines.append(json_of({**_row(counted), **self._where}))
            size += len(lines[-1])
        looked_at = self._linter.links_seen, self._linter.streams_seen
        if looked_at != self._looked_at:
            self._looked_at = looked_at
            connections, streams = looked_at
            row = {"event": "looked", "connections": connections, "streams": streams, **self._where}
            lines.append(json_of(row))
        return "".join(lines), False

    def again(self) -> None:
        """Say all there is once more: what was taken last may not have arrived."""
        self._findings.changed = dict.fromkeys(self._findings.counted)
        self._looked_at = (0, 0)


def _row(counted: Counted) -> dict[str, Any]:
    first = counted.first
    return {
        "event": "finding",
        "time": round(first.at, 6),
        "rule": first.rule.id,
        "severity": first.rule.severity.word,
        "section": first.rule.section,
        "text": first.rule.text,
        "who": first.who,
        "side": first.side,
        "method": first.method,
        "count": counted.count,
        "link": first.link.number,
        "peer": first.link.peer,
        "stream": first.stream_id,
        "seen": first.seen,
    }
