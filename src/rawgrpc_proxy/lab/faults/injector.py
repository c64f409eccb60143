"""`Faults`: rules that are added and taken away while connections and calls go on, and what they have done.

    faults = Faults(seed=7)
    rule = faults.add(Fault(method="/shop.Cart/*", calls="first 2", do=AnswerStatus(status="UNAVAILABLE")))
    ...
    assert rule.counts.struck == 2
    rule.remove()

`add`, `put`, `remove`, `clear` and `counts` may be called from any thread, at any time: rules are one immutable table,
which they replace under a lock, and which a call looks at once, when it begins. What has been chosen to strike a call
by then strikes it, even if its rule is taken away meanwhile. All connections have to be of one event loop.

The same seed, the same rules and the same order of calls give the same faults: each rule draws from numbers of its own,
which come of the seed and of its name.
"""

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

import attrs

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.lab.faults.fault import Fault, Strike
from rawgrpc_proxy.lab.faults.matching import CallNumbers, metadata_test
from rawgrpc_proxy.net.networks import Networks
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.observe.tell import report
from rawgrpc_proxy.proxy.patterns import PatternTable

_SEED_BITS = 64


@attrs.frozen(kw_only=True)
class Counts:
    """What has come of a rule so far."""

    fitted: int
    """Calls that it is for by method, metadata and peer, or connections by their peer."""
    struck: int
    """Those of them that it has been done to. Fewer than were chosen if some never came to its place."""


@attrs.frozen(kw_only=True)
class Struck:
    """One time that a fault was done, for those who watch."""

    name: str
    """Of the rule."""
    fault: Fault
    link: Link
    stream_id: int
    """0 if it was done to a connection."""
    method: str
    """"" if it was done to a connection."""


OnStruck = Callable[[Struck], None]
"""Called in the middle of a connection's work: must not wait. What raises is reported, and hears nothing more."""


class Rule:
    """A fault that was added, and what has come of it. In a `with` it is taken away at the end of the block."""

    def __init__(self, faults: "Faults", name: str, fault: Fault, seed: int) -> None:
        self.name = name
        """That of the fault, or one that it was given."""
        self.fault = fault
        self._faults = faults
        self._random = random.Random(f"{seed}/{name}")  # noqa: S311  # reproducible is what it has to be
        self._calls = CallNumbers.parse(fault.calls)
        self._has_metadata = metadata_test(fault.metadata) if fault.metadata else None
        self._peers = Networks.parse(fault.peer) if fault.peer else None
        self._fitted = self._struck = 0

    @property
    def counts(self) -> Counts:
        """How often it has fitted, and struck, until now."""
        return Counts(fitted=self._fitted, struck=self._struck)

    def remove(self) -> None:
        """Take it away. Nothing happens if it is gone already."""
        self._faults.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def strike(self, link: Link, method: str, headers: Sequence[RawHeader]) -> Strike | None:
        """Whether it is for this call (or connection), whose method fits; None: it is not. It is counted."""
        if self._peers is not None and link.peer not in self._peers:
            return None
        if self._has_metadata is not None and not self._has_metadata(headers):
            return None
        self._fitted += 1
        if self._fitted not in self._calls:
            return None
        if self.fault.share < 1 and self._random.random() >= self.fault.share:
            return None
        return Strike(self.fault, self._random.getrandbits(_SEED_BITS), (self, method))

    def has_struck(self, link: Link, method: str, stream_id: int) -> Struck:
        """Count it."""
        self._struck += 1
        return Struck(name=self.name, fault=self.fault, link=link, stream_id=stream_id, method=method)


@attrs.frozen
class _Table:
    """The rules at one time."""

    rules: tuple[Rule, ...]
    of_links: tuple[Rule, ...]
    of_calls: Mapping[Side, PatternTable[Rule]]

    @classmethod
    def of(cls, rules: Iterable[Rule]) -> "_Table":
        every = tuple(rules)
        of_calls = {
            side: PatternTable(
                (rule.fault.method, rule)
                for rule in every
                if not rule.fault.of_link and rule.fault.side is side
            )
            for side in (Side.DOWNSTREAM, Side.UPSTREAM)
        }
        return cls(every, tuple(rule for rule in every if rule.fault.of_link), of_calls)


class Faults:
    """Says what strikes which call and connection, by rules that may change while they go on."""

    def __init__(self, rules: Iterable[Fault] = (), *, seed: int = 0) -> None:
        """Raise `ConfigError` for two rules of one name."""
        self.seed = seed
        self.active = False
        """Whether there is a rule for calls."""
        self._lock = threading.Lock()
        """Of those who change the table."""
        self._table = _Table.of(())
        self._unnamed = 0
        self._observers: tuple[OnStruck, ...] = ()
        for rule in rules:
            self.add(rule)

    # ------------------------------------------------------------------ from any thread

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that there are now, in the order in which they strike."""
        return self._table.rules

    @property
    def counts(self) -> dict[str, Counts]:
        """Of each rule, by its name."""
        return {rule.name: rule.counts for rule in self.rules}

    def add(self, fault: Fault) -> Rule:
        """Add a rule, for connections and calls that begin from now on.

        Raises `ConfigError` if there is one of its name. Without a name it gets one.
        """
        with self._lock:
            present = self._table.rules
            name = fault.name
            while not name or (not fault.name and _find(present, name) is not None):
                self._unnamed += 1
                name = f"fault-{self._unnamed}"
            if _find(present, name) is not None:
                raise ConfigError(f"there is a fault named {name!r} already; remove it, or use another name")
            rule = Rule(self, name, fault, self.seed)
            self._replace((*present, rule))
        return rule

    def put(self, faults: Iterable[Fault], *, seed: int | None = None) -> list[Rule]:
        """Add these rules at once, each in the place of the one that has its name, if there is one.

        They count from the beginning. Those without a name are `fault-1` and so on, by their place among these; so the
        same rules again replace themselves. `seed` is that of these, in place of the common one.
        """
        with self._lock:
            rules = list(self._table.rules)
            put = []
            for place, fault in enumerate(faults, 1):
                rule = Rule(self, fault.name or f"fault-{place}", fault, self.seed if seed is None else seed)
                put.append(rule)
                before = _find(rules, rule.name)
                if before is None:
                    rules.append(rule)
                else:
                    rules[rules.index(before)] = rule
            self._replace(rules)
        return put

    def remove(self, rule: Rule) -> None:
        """Take a rule away. Nothing happens if it is gone already."""
        with self._lock:
            self._replace(each for each in self._table.rules if each is not rule)

    def clear(self) -> None:
        """Take all rules away."""
        with self._lock:
            self._replace(())

    def watch(self, on_struck: OnStruck) -> None:
        """Have this hear of each time that a fault is done, in the loop of the connections."""
        with self._lock:
            self._observers = (*self._observers, on_struck)

    def _replace(self, rules: Iterable[Rule]) -> None:
        self._table = table = _Table.of(rules)
        self.active = len(table.of_links) < len(table.rules)

    # ------------------------------------------------------------------ from connections (`Striker`)

    def link_opened(self, link: Link) -> list[Strike]:
        """Which faults of connections strike this one."""
        strikes = [rule.strike(link, "", ()) for rule in self._table.of_links if rule.fault.side is link.side]
        return [strike for strike in strikes if strike is not None]

    def call_begun(self, link: Link, method: str, headers: Sequence[RawHeader]) -> list[Strike]:
        """Which faults of calls strike this one."""
        rules = self._table.of_calls[link.side].find_all(method)
        strikes = [rule.strike(link, method, headers) for rule in rules]
        return [strike for strike in strikes if strike is not None]

    def struck(self, strike: Strike, link: Link, stream_id: int) -> None:
        """Count it, and tell those who watch."""
        rule, method = strike.tag
        struck = rule.has_struck(link, method, stream_id)
        for observer in self._observers:
            try:
                observer(struck)
            except Exception as error:  # noqa: BLE001  # any code of a user's
                report(error, observer)
                with self._lock:
                    self._observers = tuple(each for each in self._observers if each is not observer)


def _find(rules: Iterable[Rule], name: str) -> Rule | None:
    return next((rule for rule in rules if rule.name == name), None)
