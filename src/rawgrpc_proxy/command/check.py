"""`rawgrpc-proxy check`: the settings in force, each with where it comes from.

Every mistake has been said before, when they were read (`settings/file.py`).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from rawgrpc_proxy.command.settings.file import Settings
from rawgrpc_proxy.command.settings.remedies import key_of
from rawgrpc_proxy.command.tls_assembly import collector_tls, tls_contexts
from rawgrpc_proxy.config_words import join

_COMMENT_AT = 60


def check(settings: Settings) -> int:
    """Print them as TOML. Raises `ConfigError` for certificates and faults that cannot be used."""
    tls_contexts(settings.serve, print)
    collector_tls(settings.serve.tracing, print)
    if settings.serve.faults is not None:
        from rawgrpc_proxy.command.lab.worker_faults import faults_of_settings  # noqa: PLC0415  # for few

        faults_of_settings(settings.serve)
    print(text_of(settings))
    return 0


def text_of(settings: Settings) -> str:
    """The settings in force as TOML, each with a comment that says where it comes from."""
    return "\n".join(_table(settings, settings.serve, "", ""))


def _table(settings: Settings, table: Any, path: str, header: str) -> Iterator[str]:
    """A table's own values, and then the tables in it."""
    if header:
        yield f"\n{header}"
    below: list[tuple[str, Any]] = []
    for key, value in _entries(table):
        here = join(path, key)
        if path and value == settings.serve.http2:
            continue  # one like the top level's, without a word of its own, need not be read again
        if _is_table(value) or (isinstance(value, tuple) and value and _is_table(value[0])):
            below.append((here, value))
        else:
            yield f"{join('', key)} = {_toml(value)}".ljust(_COMMENT_AT) + f"  # {settings.source_of(here)}"
    for here, value in below:
        if isinstance(value, tuple):
            for place, each in enumerate(value):
                yield from _table(settings, each, f"{here}[{place}]", f"[[{_without_places(here)}]]")
        else:
            yield from _table(settings, value, here, f"[{_without_places(here)}]")


def _entries(table: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(table, Mapping):
        yield from table.items()
    else:
        for field in attrs.fields(type(table)):
            yield key_of(field.name), getattr(table, field.name)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or attrs.has(type(value))


def _without_places(path: str) -> str:
    """TOML finds the table of a list's last entry without its number."""
    return "".join(part.split("]")[-1] for part in path.split("["))


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if value is None:
        return '"none"'
    if isinstance(value, float):
        return f"{value:.10g}"
    return json.dumps(value, ensure_ascii=False)
