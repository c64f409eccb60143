"""Which calls and connections a fault concerns: numbers of calls, metadata, peers. Pure.

    "first 2"   "after 5"   "every 3"   "4"   "2-6"   "first 2 of 5"   "1, 4-6, every 10"   "all"

Calls are numbered from 1, each fault counting those that fit it otherwise. `… of M` counts anew behind every M of them:
"first 2 of 5" is 1, 2, 6, 7, 11, 12. With commas it is whatever one of the parts is for.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.lab.filters import is_like

ALL = "all"
_PART = re.compile(r"(?:(first|after|every) )?([0-9]{1,9})(?:-([0-9]{1,9}))?(?: of ([0-9]{1,9}))?")
_HOW = "write all, first 2, after 5, every 3, 4, 2-6, first 2 of 5, or several of these with commas between"
_NAME = re.compile(r"[0-9a-z_.-]+")


@attrs.frozen
class _Range:
    """From `first` to `last`, of each `cycle` if there is one."""

    first: int
    last: int | None
    cycle: int | None = None

    def __contains__(self, number: int) -> bool:
        if self.cycle is not None:
            number = (number - 1) % self.cycle + 1
        return number >= self.first and (self.last is None or number <= self.last)


@attrs.frozen
class CallNumbers:
    """Some of the numbers from 1: `number in numbers`."""

    _ranges: tuple[_Range, ...]

    @classmethod
    def parse(cls, text: str) -> "CallNumbers":
        """Read them as above. Raises `ConfigError`."""
        if not isinstance(text, str):
            raise ConfigError(f"{text!r} is no text; {_HOW}")
        return cls(tuple(_range(part.strip(), text) for part in text.split(",")))

    def __contains__(self, number: int) -> bool:
        return any(number in each for each in self._ranges)


def _range(part: str, text: str) -> _Range:
    if part == ALL:
        return _Range(1, None)
    match = _PART.fullmatch(" ".join(part.split()))
    if match is None:
        raise ConfigError(f"{text!r} does not say which calls; {_HOW}")
    word, first, last, cycle = match[1], int(match[2]), match[3], int(match[4] or 0)
    if word and last:
        raise ConfigError(f"{text!r}: {part!r} has a word and a range; {_HOW}")
    if first == 0 and word != "after":
        raise ConfigError(f"{text!r}: calls are numbered from 1")
    if word == "every":
        if cycle:
            raise ConfigError(f"{text!r}: 'every' has a cycle already; write every {first}")
        return _Range(first, first, first)
    start, end = {"first": (1, first), "after": (first + 1, None)}.get(word, (first, int(last or first)))
    if end is not None and end < start:
        raise ConfigError(f"{text!r}: {part!r} ends before it begins")
    if match[4] and max(start, 0 if end is None else end) > cycle:
        raise ConfigError(f"{text!r}: {part!r} is for more calls than there are in {cycle}")
    return _Range(start, end, cycle or None)


def check_metadata(metadata: Mapping[Any, Any]) -> None:
    """Raise `ConfigError` for what no request can have."""
    for name, pattern in metadata.items():
        if not isinstance(name, str) or not isinstance(pattern, str):
            raise ConfigError("metadata is names with values, both text; * in a value stands for anything")
        if not _NAME.fullmatch(name):
            small = f"; write {name.lower()!r}" if _NAME.fullmatch(name.lower()) else ""
            raise ConfigError(f"{name!r} is no name of metadata, which is in small letters{small}")


def metadata_test(metadata: Mapping[str, str]) -> Callable[[Sequence[RawHeader]], bool]:
    """A test whether for each name one of the request's values is like its pattern, as on the wire.

    `*` stands for anything, so that alone it asks whether there is any value.
    """
    wanted = [(name.encode(), pattern.encode().split(b"*")) for name, pattern in metadata.items()]

    def test(headers: Iterable[RawHeader]) -> bool:
        return all(
            any(known == name and is_like(parts, value) for known, value in headers) for name, parts in wanted
        )

    return test
