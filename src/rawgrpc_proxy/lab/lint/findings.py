"""What was found: each kind of finding once, with its first case and a count.

The invariant: memory is bounded by the number of rules and `MAX_METHODS`, whatever peers call their methods.
"""

from collections.abc import Callable

import attrs

from rawgrpc_proxy.lab.events import Sender, who
from rawgrpc_proxy.lab.lint.rules import Rule, Severity
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.observe.words import beginning, printable

MAX_METHODS = 200
OTHER_METHODS = "(other methods)"
_MAX_TEXT = 200


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

    @property
    def who(self) -> str:
        """The same end by its place: "caller", "proxy" or "upstream"."""
        return who(self.link, self.sender)

    @property
    def side(self) -> str:
        """Its link and end: "downstream client"."""
        return f"{self.link.side.value} {self.sender.value}"


@attrs.define(eq=False)
class Counted:
    """Findings of one rule, method and side."""

    first: Finding
    count: int = 1


class Findings:
    """Keeps them. `tell` hears of the first of each rule, method and side."""

    def __init__(self, tell: Callable[[Finding], None] | None = None) -> None:
        self._tell = tell
        self._counted: dict[tuple[str, str, str], Counted] = {}
        self._methods: set[str] = {""}

    def add(self, finding: Finding) -> None:
        """Count it."""
        finding = attrs.evolve(
            finding, method=self._known(finding.method), seen=beginning(printable(finding.seen), _MAX_TEXT)
        )
        key = (finding.rule.id, finding.method, finding.side)
        counted = self._counted.get(key)
        if counted is not None:
            counted.count += 1
            return
        self._counted[key] = Counted(finding)
        if self._tell is not None:
            self._tell(finding)

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

    def _known(self, method: str) -> str:
        method = beginning(printable(method), _MAX_TEXT)
        if method in self._methods:
            return method
        if len(self._methods) > MAX_METHODS:
            return OTHER_METHODS
        self._methods.add(method)
        return method
