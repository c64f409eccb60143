"""What was found: each kind of finding once, with its first case and a count.

The invariant: memory is bounded by the number of rules and `MAX_KINDS`, whatever peers call their methods.
"""

from collections.abc import Callable

import attrs

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.events import Sender, who
from rawgrpc_proxy.lab.lint.rules import Rule, Severity
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.observe.words import beginning, printable

MAX_METHODS = 200
MAX_KINDS = 2000
"""Of findings. Beyond it what is found of a method is counted with `OTHER_METHODS`."""
OTHER_METHODS = "(other methods)"
_MAX_TEXT = 200


_SIDES = {(side, sender): f"{side.value} {sender.value}" for side in Side for sender in Sender}


def side_of(side: Side, sender: Sender) -> str:
    """An end of a link in words: "downstream client"."""
    return _SIDES[side, sender]


@attrs.frozen
class Finding:
    """An end of a link has broken a rule."""

    rule: Rule
    link: Link
    sender: Sender
    """Whose fault it is."""
    at: float
    stream_id: int
    """0: it is about the connection."""
    method: str
    """"" if it is about the connection; printable, and cut if it is long."""
    seen: str
    """In words."""
    worker: int | None = None
    """Of a running `serve`, which has seen it; None: this process has."""

    @property
    def who(self) -> str:
        """The same end by its place: "caller", "proxy" or "upstream"."""
        return who(self.link, self.sender)

    @property
    def side(self) -> str:
        """Its link and end: "downstream client"."""
        return side_of(self.link.side, self.sender)


@attrs.define(eq=False)
class Counted:
    """Findings of one rule, method and side."""

    first: Finding
    count: int = 0


class Findings:
    """Keeps them. `tell` hears of the first of each rule, method and side."""

    def __init__(self, tell: Callable[[Finding], None] | None = None) -> None:
        self._tell = tell
        self._counted: dict[tuple[str, str, str], Counted] = {}
        self._methods: set[str] = {""}
        self.changed: dict[Counted, None] = {}
        """What was counted since it was taken out of here, by whom it may concern; in that order."""

    def again(self, rule: str, method: str, side: str) -> bool:
        """Count one more of a kind that there is already; answer whether there is. Peers may have it called often."""
        method = _shown(method)
        if method not in self._methods:
            if len(self._methods) <= MAX_METHODS:
                return False
            method = OTHER_METHODS
        counted = self._counted.get((rule, method, side))
        if counted is None and method and len(self._counted) >= MAX_KINDS:
            counted = self._counted.get((rule, OTHER_METHODS, side))
        if counted is None:
            return False
        self._count(counted, 1)
        return True

    def add(self, finding: Finding, count: int = 1) -> None:
        """Count it, so many times."""
        method = self._known(finding.method)
        counted = self._counted.get(key := (finding.rule.id, method, finding.side))
        if counted is None and method and len(self._counted) >= MAX_KINDS:
            method = OTHER_METHODS
            counted = self._counted.get(key := (finding.rule.id, method, finding.side))
        if counted is None:
            first = attrs.evolve(finding, method=method, seen=beginning(printable(finding.seen), _MAX_TEXT))
            counted = self._counted[key] = Counted(first)
            if self._tell is not None:
                self._tell(first)
        self._count(counted, count)

    @property
    def counted(self) -> list[Counted]:
        """All, the worst first, then by count."""
        return sorted(
            self._counted.values(),
            key=lambda each: (-each.first.rule.severity, -each.count, each.first.rule.id, each.first.method),
        )

    @property
    def worst(self) -> Severity | None:
        """None if nothing was found."""
        return max((each.first.rule.severity for each in self._counted.values()), default=None)

    def _count(self, counted: Counted, count: int) -> None:
        counted.count += count
        self.changed[counted] = None

    def _known(self, method: str) -> str:
        method = _shown(method)
        if method in self._methods:
            return method
        if len(self._methods) > MAX_METHODS:
            return OTHER_METHODS
        self._methods.add(method)
        return method


def _shown(method: str) -> str:
    return beginning(printable(method[: _MAX_TEXT + 1]), _MAX_TEXT)
