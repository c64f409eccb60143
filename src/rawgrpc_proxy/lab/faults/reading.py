"""Faults as people write them, in TOML: every mistake at once, each with its place and what may stand there.

    seed = 7
    preset = "slow-network"

    [[faults]]
    name = "cart"
    method = "/shop.Cart/*"
    calls = "first 2"
    where = { message = 1, of = "response" }
    do = { reset = "INTERNAL_ERROR" }

What a key may be is in `vocabulary.py`, what a value may be with the fields of `Fault`, places and actions. Nothing is
opened here but the file.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from rawgrpc_proxy.config_words import SettingsError, join, kind_of, load, meant
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.presets import PRESETS
from rawgrpc_proxy.lab.faults.vocabulary import (
    ACTIONS,
    FAULT,
    PLACES,
    Field,
    Spec,
    Wrong,
    WrongWithin,
    text,
    whole_number,
)

_TOP = {"seed": whole_number, "preset": text, "faults": None}


@attrs.frozen(kw_only=True)
class FaultsFile:
    """What was read."""

    faults: tuple[Fault, ...]
    """Those of the preset first."""
    seed: int | None
    """None if it says none."""


def faults_of_file(path: Path | str) -> FaultsFile:
    """The faults in a file. Raises `SettingsError`, whose lines begin with the file's name."""
    tree = load(Path(path))
    try:
        return faults_of(tree)
    except SettingsError as error:
        raise SettingsError([f"{path}: {problem}" for problem in error.problems]) from None


def faults_of_text(toml: str) -> FaultsFile:
    """The faults in this text. Raises `SettingsError`."""
    try:
        return faults_of(tomllib.loads(toml))
    except SettingsError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
        raise SettingsError([f"this is not TOML: {error}"]) from None


def faults_of(tree: Mapping[str, Any]) -> FaultsFile:
    """The faults in this tree of plain values. Raises `SettingsError`."""
    if not _fits_toml(tree):
        raise SettingsError(["a number has more than the 64 bits that TOML has"])
    reader = _Reader()
    for key in tree.keys() - _TOP.keys():
        hint = meant(key, _TOP) or ("; it belongs into [[faults]]" if key in FAULT else "")
        reader.object_to(key, f"is not known{hint}; known here: {', '.join(_TOP)}")
    seed = reader.value(whole_number, tree["seed"], "seed") if "seed" in tree else None
    faults = list(_preset(reader, tree))
    entries = tree.get("faults", [])
    if not isinstance(entries, list):
        reader.object_to("faults", f"is {kind_of(entries)}; it must be a list of tables: write [[faults]]")
        entries = []
    elif not entries and "preset" not in tree:
        reader.object_to("faults", "is empty: nothing would happen; write [[faults]], or preset = …")
    names = {fault.name: f"preset {tree['preset']}" for fault in faults if fault.name}
    for place, entry in enumerate(entries):
        path = f"faults[{place}]"
        fault = reader.fault(entry, path)
        if fault is None:
            continue
        if fault.name and fault.name in names:
            reader.object_to(join(path, "name"), f"is {fault.name!r}, as in {names[fault.name]}")
        names[fault.name] = path
        faults.append(fault)
    if reader.problems:
        raise SettingsError(reader.problems)
    return FaultsFile(faults=tuple(faults), seed=seed)


def _fits_toml(value: object) -> bool:
    """Python reads numbers of any length, and fails to show those of very many digits."""
    if isinstance(value, dict):
        return all(map(_fits_toml, value.values()))
    if isinstance(value, list):
        return all(map(_fits_toml, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _preset(reader: "_Reader", tree: Mapping[str, Any]) -> Iterator[Fault]:
    if "preset" not in tree:
        return
    name = tree["preset"]
    if isinstance(name, str) and name in PRESETS:
        yield from PRESETS[name].faults
        return
    known = ", ".join(PRESETS)
    reader.object_to("preset", f"is {name!r}, which is none{meant(str(name), PRESETS)}; known: {known}")


class _Reader:
    """Makes faults of trees, and notes what is wrong on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def object_to(self, path: str, words: str) -> None:
        """Note a problem."""
        self.problems.append(f"{path} {words}")

    def value(self, read: Any, value: object, path: str) -> Any:
        """What this kind of value is; None, and a problem noted, if it is none."""
        try:
            return read(value)
        except WrongWithin as wrong:
            self.problems.append(f"{path}: {wrong}")
        except Wrong as wrong:
            shown = kind_of(value) if isinstance(value, list | dict) else repr(value)
            self.object_to(path, f"is {shown}; it must be {wrong}")
        return None

    def fault(self, tree: object, path: str) -> Fault | None:
        """A rule; None if something is wrong with it."""
        if not isinstance(tree, dict):
            self.object_to(path, f"is {kind_of(tree)}; it must be a table, like {{ do = {{ reset = … }} }}")
            return None
        before = len(self.problems)
        values: dict[str, Any] = {}
        for key, value in tree.items():
            here = join(path, key)
            if key == "where":
                values[key] = self.one_of(PLACES, value, here, "place")
            elif key == "do":
                values[key] = self._actions(value, here)
            elif key in FAULT:
                self._field(Fault, FAULT[key], value, here, values)
            else:
                self._unknown(key, here, (*FAULT, "where", "do"))
        if "do" not in tree:
            self.object_to(join(path, "do"), f"is missing; it says what is done: {', '.join(ACTIONS)}")
        if len(self.problems) > before:
            return None
        made: Fault | None = self._made(Fault, values, path)
        return made

    def _actions(self, value: object, path: str) -> list[Any]:
        if not isinstance(value, list):
            return [self.one_of(ACTIONS, value, path, "action")]
        if not value:
            self.object_to(path, "is empty; it says what is done")
        return [self.one_of(ACTIONS, each, f"{path}[{place}]", "action") for place, each in enumerate(value)]

    def one_of(self, specs: Mapping[str, Spec], value: object, path: str, what: str) -> Any:
        """A place or an action, as a word or as a table."""
        known = ", ".join(specs)
        if isinstance(value, str):
            spec = specs.get(value)
            if spec is None:
                self.object_to(path, f"is {value!r}, which is no {what}{meant(value, specs)}; known: {known}")
            elif spec.needs_value:
                self.object_to(path, f"is {value!r} alone; write {{ {spec.example(value)} }}")
            else:
                return spec.cls(**spec.fixed)
            return None
        if not isinstance(value, dict):
            self.object_to(path, f"is {kind_of(value)}; it must be a word or a table, of {known}")
            return None
        words = [key for key in value if key in specs]
        if not words:
            hint = next((found for key in value if (found := meant(key, specs))), "")
            self.object_to(path, f"does not say which {what}{hint}; it must have one of {known}")
            return None
        if len(words) > 1:
            several = ", as a list of tables" if what == "action" else ""
            self.object_to(path, f"has {' and '.join(words)}; write one in a table{several}")
            return None
        return self._of_table(specs[words[0]], words[0], value, path)

    def _of_table(self, spec: Spec, word: str, tree: Mapping[str, object], path: str) -> Any:
        before = len(self.problems)
        values: dict[str, Any] = dict(spec.fixed)
        for key, value in tree.items():
            here = join(path, key)
            if key == word and spec.main is None:
                if value is not True:
                    self.object_to(here, f'takes no value; write "{word}" alone, or {word} = true')
            elif key == word:
                assert spec.main is not None
                self._field(spec.cls, spec.main, value, here, values)
            elif key in spec.more:
                self._field(spec.cls, spec.more[key], value, here, values)
            else:
                self._unknown(key, here, (word, *spec.more))
        return None if len(self.problems) > before else self._made(spec.cls, values, path)

    def _field(self, cls: type[Any], field: Field, value: object, path: str, values: dict[str, Any]) -> None:
        """Read one field, and hold it to what its class says of it, so that all that is wrong is said at once."""
        before = len(self.problems)
        read = self.value(field.read, value, path)
        if len(self.problems) > before:
            return
        values[field.name] = read
        attribute = attrs.fields_dict(cls)[field.name]
        convert: Any = attribute.converter
        try:
            if convert is not None:
                read = convert(read)
        except ConfigError as error:
            self.object_to(path, f"cannot be: {error}")
            return
        try:
            if attribute.validator is not None:
                attribute.validator(None, attribute.evolve(name=path), read)
        except ConfigError as error:
            self.problems.append(str(error))

    def _made(self, cls: type[Any], values: Mapping[str, Any], path: str) -> Any:
        try:
            return cls(**values)
        except ConfigError as error:
            self.object_to(path, f"cannot be: {_in_words_of_the_file(str(error))}")
        return None

    def _unknown(self, key: str, path: str, known: tuple[str, ...]) -> None:
        self.object_to(path, f"is not known{meant(key, known)}; known here: {', '.join(known)}")


def _in_words_of_the_file(problem: str) -> str:
    """With the word for an action where its class stands at the beginning."""
    subject, _, rest = problem.partition(" ")
    words = [word for word, spec in ACTIONS.items() if spec.cls.__name__ == subject]
    return f"{words[0]} {rest}" if words else problem
