"""How settings are written: the paths of their keys, times and sizes with units, and what was probably meant.

What all files of ours have in common, whatever is in them. `SettingsError` has every mistake of one at once.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from rawgrpc_proxy.errors import ConfigError

DURATION: Final = 'a time: a number of seconds, or text like "250ms", "1.5s", "5m", "2h"'
"""What `duration_of` reads, in words."""
SIZE: Final = 'a size: a number of bytes, or text like "64KiB", "1.5MiB"'
"""What `bytes_of` reads, in words."""
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|KiB|MiB|GiB|kB|KB|MB|GB)")
_BYTES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


class SettingsError(ConfigError):
    """Settings that cannot work. `problems` has a line for each, with its place in the file."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


def load(path: Path) -> dict[str, Any]:
    """What is in a file of TOML. Raises `SettingsError`."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: is not UTF-8, as TOML must be: {error.reason}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path}: is not TOML: {error}"]) from None


def join(path: str, key: str) -> str:
    """The path of a key in a table."""
    shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
    return f"{path}.{shown}" if path else shown


def meant(text: str, known: Iterable[str]) -> str:
    """What was probably meant, if anything is like it."""
    by_small = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(text.casefold(), list(by_small), n=1)
    return f" (did you mean {by_small[close[0]]}?)" if close else ""


def kind_of(value: object) -> str:
    """What a value of TOML is, in words."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or a time"


def is_number(value: object) -> bool:
    """Whether it is one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def duration_of(value: Any) -> float | None:
    """Seconds; None if it is no time."""
    if is_number(value):
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _SECONDS[match[2]]
    return None


def bytes_of(value: Any) -> int | None:
    """A number of bytes; None if it is no size."""
    if is_number(value) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(float(match[1]) * _BYTES[match[2]])
    return None
