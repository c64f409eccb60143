"""Which calls somebody wants to see: by method, peer, metadata and status.

    method=/pkg.Orders/*  peer=10.0.*  metadata.x-user=alice  status!=OK

All words of a filter have to hold. `*` stands for anything in a value, `!=` for the opposite. A status is a name or a
number; it is known when the call ends, so that whoever shows calls by status has to hold them until then.
"""

import re
from collections.abc import Callable, Sequence
from typing import AnyStr

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import RawHeader

_WORD = re.compile(r"([a-z0-9._-]+)(!?=)(.*)", re.DOTALL)
_METADATA = "metadata."
_VALUE = re.compile(r"(metadata\.\S*?=)\S+")


@attrs.frozen(kw_only=True)
class Facts:
    """What a filter looks at. None: not known yet."""

    method: str
    peer: str
    headers: Sequence[RawHeader] = ()
    """Of the request."""
    status: int | None = None


_Test = Callable[[Facts], bool]


@attrs.frozen
class Filter:
    """Words that all hold. An empty one is for everything."""

    _tests: tuple[_Test, ...] = ()
    _status_tests: tuple[_Test, ...] = ()
    looks_at_calls: bool = False
    """Whether what belongs to no call (SETTINGS, PING) cannot match."""
    metadata: frozenset[str] = frozenset()
    """Names of the metadata that it looks at."""

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read words as above, with blanks between. Raises `ConfigError`."""
        tests: list[_Test] = []
        status_tests: list[_Test] = []
        looks_at_calls = False
        names: set[str] = set()
        for word in text.split():
            match = _WORD.fullmatch(word)
            if match is None:
                raise ConfigError(f"{word!r} is no word of a filter; {_HOW}")
            key, sign, value = match.groups()
            wanted = sign == "="
            if key == "status":
                status_tests.append(_status_test(value, wanted=wanted))
            elif key == "peer":
                tests.append(_test(lambda facts: [facts.peer], value, wanted=wanted))
            elif key == "method":
                tests.append(_test(lambda facts: [facts.method], value, wanted=wanted))
            elif key.startswith(_METADATA) and key != _METADATA:
                name = key.removeprefix(_METADATA)
                names.add(name)
                tests.append(_test(_values_of(name.encode()), value, wanted=wanted))
            else:
                raise ConfigError(f"{key!r} is nothing to filter by; {_HOW}")
            looks_at_calls = looks_at_calls or key != "peer"
        return cls(tuple(tests), tuple(status_tests), looks_at_calls, frozenset(names))

    @property
    def needs_status(self) -> bool:
        """Whether it is not known before the end of a call if it matches."""
        return bool(self._status_tests)

    def may_match(self, facts: Facts) -> bool:
        """Whether all but the status matches."""
        return all(test(facts) for test in self._tests)

    def matches(self, facts: Facts) -> bool:
        """Whether all does."""
        return self.may_match(facts) and all(test(facts) for test in self._status_tests)


def without_values(text: str) -> str:
    """The filter for a log: what is asked of metadata may be a secret."""
    return _VALUE.sub(r"\1…", text)


_HOW = "write method=/pkg.Service/*, peer=HOST:PORT, metadata.NAME=VALUE or status=UNAVAILABLE, != for the opposite"


def _test(values: Callable[[Facts], Sequence[str]], pattern: str, *, wanted: bool) -> _Test:
    parts = pattern.split("*")

    def test(facts: Facts) -> bool:
        return any(is_like(parts, value) for value in values(facts)) is wanted

    return test


def is_like(parts: Sequence[AnyStr], value: AnyStr) -> bool:
    """Whether the parts stand in the value in their order, from its beginning to its end."""
    # No regular expression: the value is a peer's, and each star would multiply the time it takes.
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return value == first
    at, end = len(first), len(value) - len(last)
    if at > end or not value.startswith(first) or not value.endswith(last):
        return False
    for part in parts[1:-1]:
        at = value.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _values_of(wanted: bytes) -> Callable[[Facts], Sequence[str]]:
    return lambda facts: [value.decode("latin-1") for name, value in facts.headers if name == wanted]


def _status_test(text: str, *, wanted: bool) -> _Test:
    try:
        status = Status(int(text)) if text.isascii() and text.isdigit() else Status[text.upper()]
    except (KeyError, ValueError):
        raise ConfigError(
            f"{text!r} is no status; write one of {', '.join(Status.__members__)}, or its number"
        ) from None
    return lambda facts: (facts.status == status) is wanted
