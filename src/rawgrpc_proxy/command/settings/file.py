"""From TOML, the environment and options to `ServeSettings`: every mistake at once, each with its place.

    environment ─┐
    file ────────┼─► one tree of plain values, the later ones win ──► read by the model's own types ──► ServeSettings
    options ─────┘   (where each value comes from is remembered)        │
                                                                         └─► problems, with path and remedy

What a setting may be is written with the setting (`model.py`, `config.py`); this module knows only types. Nothing is
opened here but the file.
"""

import copy
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs

from rawgrpc_proxy.command.settings.model import ServeSettings
from rawgrpc_proxy.command.settings.remedies import belongs, key_of, list_like, number_like, table_like
from rawgrpc_proxy.config import DOWNSTREAM_ONLY, UPSTREAM_ONLY
from rawgrpc_proxy.config_words import (
    DURATION,
    SIZE,
    SettingsError,
    bytes_of,
    duration_of,
    is_number,
    join,
    kind_of,
    meant,
)
from rawgrpc_proxy.errors import ConfigError

Tree = dict[str, Any]
"""Tables, lists and values as TOML has them."""

DEFAULT = "default"
VARIABLES = "RAWGRPC_PROXY_"
"""What the names of variables begin with."""
_ALONE = "none"
_PLAIN = {bool: "true or false", str: 'text, in quotation marks: "…"'}
_IN_A_WORD = {"balance": "policy", "slow_start": "window"}
"""Of clusters: tables that may be one word, and what that is."""
_NEVER_NONE = {"balance"}
_LOG_FORMAT = "log_format"
"""Of the top level: the same as `log.format`."""


@attrs.frozen
class Settings:
    """What was read, and where each value comes from: a file, an option, a variable; what is not in it is a default."""

    serve: ServeSettings
    sources: Mapping[str, str]

    def source_of(self, path: str) -> str:
        """Where the value at this path comes from."""
        return self.sources.get(path, DEFAULT)

    def name_of(self, path: str) -> str:
        """What to call it to whoever has set it: its path in the file, an option, or a variable."""
        return _name_of(path, self.sources)


def settings_of(layers: Iterable[tuple[str | Mapping[str, str], Tree]]) -> Settings:
    """The settings in these trees, of which the later ones win, table by table; a list wins as a whole.

    With each tree its source: one name, or one for each path. Raises `SettingsError`.
    """
    tree: Tree = {}
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}
    for source, layer in layers:
        _lay_over(tree, _with_log_format(layer, origins), source, sources, "")
        if _LOG_FORMAT in layer:
            sources[_LOG_FORMAT] = sources.get("log.format", "")
        elif sources.get("log.format") != sources.get(_LOG_FORMAT):
            origins.pop("log.format", None)
    origins |= _spell_out(tree, sources)
    reader = _Reader(sources, origins | _fill_from_above(tree, sources))
    if _LOG_FORMAT in tree:
        del tree[_LOG_FORMAT]
        reader.object_to(_LOG_FORMAT, "is the same as log.format; write the latter")
    serve = reader.table(ServeSettings, tree, "")
    _check_clusters(tree, reader)
    _check_sides(tree, reader)
    if reader.problems:
        raise SettingsError(reader.problems)
    assert serve is not None
    return Settings(serve, sources)


def _lay_over(
    tree: Tree, layer: Tree, source: str | Mapping[str, str], sources: dict[str, str], path: str
) -> None:
    for key, value in layer.items():
        here = join(path, key)
        if key in tree and not (value and isinstance(value, dict)):
            _forget_below(here, sources)  # the list or table that was there is gone
        if isinstance(value, dict):
            below = tree.setdefault(key, {})
            if not isinstance(below, dict):
                below = tree[key] = {}
            _lay_over(below, value, source, sources, here)
            if value:
                continue
        else:
            tree[key] = copy.deepcopy(value)  # tables in it are filled later; the layer stays as it is
        _note(here, value, source if isinstance(source, str) else source[here], sources)


def _with_log_format(layer: Tree, origins: dict[str, str]) -> Tree:
    """The same tree, with `log_format` of the top level where it belongs; what comes whence is noted in `origins`."""
    log = layer.get("log", {})
    if _LOG_FORMAT not in layer or not isinstance(log, dict) or "format" in log:
        return layer
    origins["log.format"] = _LOG_FORMAT
    rest = {key: value for key, value in layer.items() if key != _LOG_FORMAT}
    return {**rest, "log": {**log, "format": layer[_LOG_FORMAT]}}


def _spell_out(tree: Tree, sources: dict[str, str]) -> dict[str, str]:
    """Make tables of what may be said in one word, in clusters. Answers what comes whence."""
    origins: dict[str, str] = {}
    for path, cluster in _tables(tree, "clusters"):
        for name, key in _IN_A_WORD.items():
            value = cluster.get(name)
            if value is None or isinstance(value, dict) or (value == _ALONE and name not in _NEVER_NONE):
                continue
            cluster[name] = {key: value}
            short, full = join(path, name), join(join(path, name), key)
            origins[full] = short
            sources[full] = sources[short]
    return origins


def _forget_below(path: str, sources: dict[str, str]) -> None:
    for known in [known for known in sources if known.startswith((f"{path}[", f"{path}."))]:
        del sources[known]


def _note(path: str, value: object, source: str, sources: dict[str, str]) -> None:
    sources[path] = source
    if isinstance(value, list):
        for place, each in enumerate(value):
            _note(f"{path}[{place}]", each, source, sources)
    elif isinstance(value, dict):
        for key, each in value.items():
            _note(join(path, key), each, source, sources)


def _fill_from_above(tree: Tree, sources: dict[str, str]) -> dict[str, str]:
    """Let listeners and clusters have what the top level's tables of these names say, where their own say nothing.

    An option wins over their own, too. Answers what comes whence.
    """
    origins: dict[str, str] = {}
    for name, sharers in (("pool", ["clusters"]), ("http2", ["listeners", "clusters"])):
        common = tree.get(name)
        if not isinstance(common, dict):
            continue
        for path, sharer in (found for key in sharers for found in _tables(tree, key)):
            if not isinstance(own := sharer.setdefault(name, {}), dict):
                continue
            for key, value in common.items():
                if key not in own or sources[join(name, key)].startswith("--"):
                    own[key] = value
                    origin, here = join(name, key), join(join(path, name), key)
                    origins[here], sources[here] = origin, sources[origin]
    return origins


def _tables(tree: Tree, key: str) -> Iterator[tuple[str, Tree]]:
    """The tables in a list of them, or of tables by name, each with its path; nothing else that may stand there."""
    entries = tree.get(key)
    if isinstance(entries, dict):
        named = [(join(key, name), entry) for name, entry in entries.items()]
    else:
        several = entries if isinstance(entries, list) else []
        named = [(f"{key}[{place}]", entry) for place, entry in enumerate(several)]
    return ((path, entry) for path, entry in named if isinstance(entry, dict))


def _check_clusters(tree: Tree, reader: "_Reader") -> None:
    """That routes lead to clusters that there are. By the tree, so that it is said beside whatever else is wrong."""
    clusters, routes = tree.get("clusters", {}), tree.get("routes", [])
    if not isinstance(clusters, dict) or not isinstance(routes, list):
        return
    named: dict[str, object] = {}
    for place, route in enumerate(routes):
        if isinstance(route, dict):
            named |= {f"routes[{place}]{path}": name for path, name in _clusters_named_by(route)}
    if tree.get("reflection") != _ALONE:
        named["reflection"] = tree.get("reflection")
    for path, name in named.items():
        if isinstance(name, str) and name not in clusters:
            known = ", ".join(sorted(clusters)) or "there are none: write [clusters.NAME]"
            reader.object_to(
                path,
                f"is {name!r}, which is no cluster{meant(name, clusters)}; known: {known}",
            )


def _clusters_named_by(route: Tree) -> Iterator[tuple[str, object]]:
    """Where a route names clusters, and which."""
    tables: list[tuple[str, object]] = [(".mirror", route.get("mirror"))]
    if route.get("cluster") != _ALONE:
        tables.append(("", route))
    if isinstance(split := route.get("split"), list):
        tables += [(f".split[{place}]", part) for place, part in enumerate(split)]
    for path, table in tables:
        if isinstance(table, dict):
            yield f"{path}.cluster", table.get("cluster")


def _check_sides(tree: Tree, reader: "_Reader") -> None:
    """That listeners and clusters set nothing that is for connections of the other side alone."""
    for key, others, names in (
        ("listeners", "clusters", UPSTREAM_ONLY),
        ("clusters", "listeners", DOWNSTREAM_ONLY),
    ):
        for path, table in _tables(tree, key):
            own = join(path, "http2")
            for name in table["http2"] if isinstance(table.get("http2"), dict) else ():
                if name in map(key_of, names) and reader.is_set(join(own, name)):
                    reader.object_to(
                        join(own, name), f"is for {others} alone; write it there, or into [http2]"
                    )


def _name_of(path: str, sources: Mapping[str, str]) -> str:
    source = sources.get(path, "")
    if source.startswith("--"):
        return f"argument {source}"
    return source if source.startswith(VARIABLES) else path


class _Wrong(Exception):
    """What should have been there instead."""


class _Reader:
    """Makes objects of trees by the types of their classes, and notes what is wrong on the way."""

    def __init__(self, sources: Mapping[str, str], origins: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._sources = sources
        self._origins = origins
        """Of values that are set in one place for several."""

    def is_set(self, path: str) -> bool:
        """Whether the value stands at this place, and does not come from another one."""
        return path not in self._origins

    def object_to(self, path: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(f"{self._named(path)} {text}")

    def table(self, cls: type[Any], tree: object, path: str, *, is_needed: bool = True) -> Any:
        """An object of this class, or None, with the problems noted."""
        if not isinstance(tree, dict):
            none = "" if is_needed else f', or "{_ALONE}"'
            self.object_to(path, f"is {kind_of(tree)}; it must be {table_like(cls)}{none}")
            return None
        before = len(self.problems)
        fields = {key_of(field.name): field for field in attrs.fields(attrs.resolve_types(cls))}
        values: dict[str, Any] = {}
        for key, value in tree.items():
            here = join(path, key)
            field = fields.get(key)
            if field is None:
                self.object_to(
                    here, f"is not known{belongs(key, cls, path)}; known here: {', '.join(fields)}"
                )
                continue
            wrong = len(self.problems)
            values[field.name] = read = self._value(field.type, value, here, field.name)
            if len(self.problems) == wrong and field.validator is not None:
                try:
                    # The class itself is not made before all of its fields are right.
                    field.validator(None, field.evolve(name=self._named(here)), read)
                except ConfigError as error:
                    self.problems.append(str(error))
        for key, field in fields.items():
            if field.default is attrs.NOTHING and key not in tree:
                if path:
                    self.object_to(join(path, key), "is missing")
                else:
                    values[field.name] = {} if typing.get_origin(field.type) is not tuple else ()
        if len(self.problems) > before:
            return None
        made = cls(**values)
        for name, text in getattr(made, "problems", tuple)():
            self.object_to(join(path, name) if name.isidentifier() else name, text)
        return made

    def _named(self, path: str) -> str:
        """The place of a value: its path in the file, or the option or variable that has set it."""
        return _name_of(self._origins.get(path, path), self._sources)

    def _value(self, kind: Any, value: Any, path: str, name: str) -> Any:
        """The value of a field of this type, as the file may have it."""
        origin, of = typing.get_origin(kind), typing.get_args(kind)
        if attrs.has(kind):
            return self.table(kind, value, path)
        if origin is tuple:
            if not isinstance(value, list):
                self.object_to(path, f"is {kind_of(value)}; it must be {list_like(value, of[0])}")
                return None
            return tuple(
                self._value(of[0], each, f"{path}[{place}]", name) for place, each in enumerate(value)
            )
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(value, dict):
                self.object_to(path, f"is {kind_of(value)}; it must be a table")
                return None
            return {key: self._value(of[1], each, join(path, key), key) for key, each in value.items()}
        if origin is types.UnionType or origin is typing.Union:
            if types.NoneType in of and value == _ALONE:
                return None
            attempts = [each for each in of if each is not types.NoneType]
            if attrs.has(attempts[0]):
                return self.table(attempts[0], value, path, is_needed=types.NoneType not in of)
        else:
            attempts = [kind]
        expected = []
        for each in attempts:
            try:
                return _simple(each, value, name)
            except _Wrong as wrong:
                expected.append(str(wrong))
        if types.NoneType in of:
            expected.append(f'"{_ALONE}"')
        self.object_to(path, f"is {value!r}; it must be {', or '.join(expected)}")
        return None


def _simple(kind: Any, value: Any, name: str) -> Any:
    """A value of one of TOML's own types. Raises `_Wrong`."""
    if typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        if value in allowed and isinstance(value, str):
            return value
        raise _Wrong(" or ".join(f'"{each}"' for each in allowed) + meant(str(value), allowed))
    if kind in _PLAIN:
        if isinstance(value, kind):
            return value
        raise _Wrong(_PLAIN[kind])
    if name.endswith("_bytes") and kind is int:
        if (size := bytes_of(value)) is not None:
            return size
        raise _Wrong(SIZE)
    if name.endswith("_s") and not name.endswith("_per_s"):
        if (seconds := duration_of(value)) is not None:
            return seconds
        raise _Wrong(DURATION)
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise _Wrong("a whole number")
    if is_number(value):
        return float(value)
    raise _Wrong(number_like(value))
