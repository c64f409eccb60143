"""What to do about a mistake in the settings, in words: what was meant, where it belongs, what may stand there.

What it does not do: find mistakes (`file.py` does).
"""

import re
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

import attrs

from rawgrpc_proxy.command.settings.clusters import ClusterSettings
from rawgrpc_proxy.command.settings.model import ListenerSettings, ServeSettings
from rawgrpc_proxy.command.settings.routes import RouteSettings
from rawgrpc_proxy.config_words import join, meant

_MAIN_TABLES: tuple[tuple[type[Any], str], ...] = (
    (ClusterSettings, "[clusters.NAME]"),
    (RouteSettings, "[[routes]]"),
    (ListenerSettings, "[[listeners]]"),
    (ServeSettings, "the top level, before the first table"),
)

_OTHER_WORDS = {
    # What the settings were called before they had gRPC's words.
    "attempts": "max_attempts",
    "backoff": "initial_backoff",
    "delay": "hedging_delay",
    "hedge": "hedging",
    "non_fatal": "non_fatal_status_codes",
    "on": "retryable_status_codes",
    "retry_throttle": "retry_throttling",
    # What they are called by Envoy.
    "health_checks": "health",
    "lb_policy": "balance",
    "outlier_detection": "outlier",
    "per_try_timeout": "per_attempt_timeout",
    "retry_on": "retryable_status_codes",
    "retry_policy": "retry",
}
"""Names that somebody may know a setting by."""


def key_of(name: str) -> str:
    """What a field is called in the file: without its unit, which belongs to the value there."""
    return name if name.endswith("_per_s") else name.removesuffix("_s").removesuffix("_bytes")


def belongs(key: str, cls: type[Any], path: str) -> str:
    """What to do about a key that the table of this class at `path` does not know."""
    fields = _keys(cls)
    if (word := _OTHER_WORDS.get(key)) in fields:
        return f" (did you mean {word}?)"
    if close := meant(key, fields):
        return close
    below = [join(join(path, name), key) for name, table in _tables_in(cls) if key in _keys(table)]
    if below:
        return f" (did you mean {' or '.join(below)}?)"
    homes = [name for table, name in _MAIN_TABLES if table is not cls and key in _keys(table)]
    return f"; it belongs into {' or '.join(homes)}" if homes else ""


def table_like(cls: type[Any]) -> str:
    """What a table of this class may look like."""
    needed = [key_of(field.name) for field in attrs.fields(cls) if field.default is attrs.NOTHING]
    if needed:
        return f"a table, like {{ {', '.join(f'{key} = …' for key in needed)} }}"
    if any(getattr(cls(), "problems", tuple)()):
        return f"a table, with some of {', '.join(_keys(cls))}"
    return "a table; {} has the defaults"


def list_like(value: object, of: type[Any]) -> str:
    """What the list may look like that somebody has meant by `value`."""
    if isinstance(value, str) and not attrs.has(of):
        return f'a list, like ["{value}"]'
    if attrs.has(of):
        return (
            f"a list of tables: [{table_like(of).removeprefix('a table, like ')}]" if _needs(of) else "a list"
        )
    return "a list"


def number_like(value: object) -> str:
    """What a number looks like, for somebody who has written `value`."""
    if isinstance(value, str) and (percent := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", value)):
        return f"a number: {value} is {float(percent[1]) / 100:g}"
    return "a number"


def _needs(cls: type[Any]) -> bool:
    return any(field.default is attrs.NOTHING for field in attrs.fields(cls))


def _keys(cls: type[Any]) -> Collection[str]:
    return [key_of(field.name) for field in attrs.fields(cls)]


def _tables_in(cls: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    """The tables that one of this class may have in it, not those in lists."""
    for field in attrs.fields(attrs.resolve_types(cls)):
        kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        for kind in kinds:
            if isinstance(kind, type) and attrs.has(kind):
                yield key_of(field.name), kind
