"""Faults as people write them: the way back from `Fault` to the values of TOML, which `reading.py` reads as the same.

For those who look at what is in force, as tables and in a few words.
"""

import base64
import enum
from collections.abc import Mapping
from typing import Any

import attrs

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.lab.faults.actions import (
    Action,
    AnswerStatus,
    Bandwidth,
    Cut,
    Delay,
    Goaway,
    Latency,
    Reset,
    Stall,
)
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import BeforeHeaders, Place
from rawgrpc_proxy.lab.faults.vocabulary import ACTIONS, FAULT, PLACES, Spec

Tree = dict[str, Any]


def written(fault: Fault) -> Tree:
    """The rule as a table, without what is as it is by default."""
    tree = {key: _plain(value) for key, value in _changed(fault) if key in FAULT}
    if fault.where != BeforeHeaders():
        tree["where"] = _one(PLACES, fault.where)
    done = [_one(ACTIONS, action) for action in fault.do]
    tree["do"] = done[0] if len(done) == 1 else done
    return tree


def in_words(fault: Fault) -> str:
    """What it does, shortly: "status UNAVAILABLE", "delay 0.2 s, reset CANCEL"."""
    return ", ".join(_shortly(action) for action in fault.do)


def _shortly(action: Action) -> str:
    match action:
        case Reset():
            return f"reset {_value(action, 'code', action.code)}"
        case Delay(seconds=seconds, jitter=jitter) | Latency(seconds=seconds, jitter=jitter):
            to = f" to {seconds + jitter:g}" if jitter else ""
            return f"{'delay' if isinstance(action, Delay) else 'latency'} {seconds:g}{to} s"
        case Bandwidth(bytes_per_s=rate):
            return f"bandwidth {rate} B/s"
        case Stall(seconds=float() | int() as seconds):
            return f"stall {seconds:g} s"
        case _:
            pass
    done = _one(ACTIONS, action)
    if isinstance(done, str):
        return done.replace("_", " ")
    word = next(key for key in done if key in ACTIONS)
    value = done[word]
    if isinstance(value, dict):
        value = " ".join(f"{name}={number}" for name, number in value.items())
    return f"{word.replace('_', ' ')} {value}"


def _one(specs: Mapping[str, Spec], thing: Place | Action) -> str | Tree:
    word, spec = next(
        (word, spec)
        for word, spec in reversed(list(specs.items()))
        if type(thing) is spec.cls and all(getattr(thing, key) == value for key, value in spec.fixed.items())
    )
    keys = {field.name: key for key, field in spec.more.items()}
    if spec.main is not None:
        keys[spec.main.name] = word
    tree = {keys[name]: _value(thing, name, value) for name, value in _changed(thing) if name in keys}
    if not tree:
        return word
    if word in tree:
        return {word: tree.pop(word), **tree}
    return {
        word: True if spec.main is None else _value(thing, spec.main.name, getattr(thing, spec.main.name)),
        **tree,
    }


def _changed(thing: Any) -> list[tuple[str, Any]]:
    """Names and values of the attributes that are not as by default."""
    found = []
    for field in attrs.fields(type(thing)):
        value: Any = getattr(thing, field.name)
        default: Any = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, whatever its stub says
            default = default.factory()
        if value != default and (value or default or not isinstance(value, tuple | list)):
            found.append((field.name, value))
    return found


def _value(thing: object, name: str, value: Any) -> Any:
    if isinstance(thing, Cut):
        return "rst" if value else "fin"
    if isinstance(thing, AnswerStatus) and name == "status":
        return value.name
    if isinstance(thing, Reset | Goaway) and name == "code":
        return ErrorCode(value).name if value in set(ErrorCode) else value
    return _plain(value)


def _plain(value: Any) -> Any:
    """A value as TOML has it."""
    match value:
        case enum.Enum():
            return value.value
        case bytes():
            return value.decode("utf-8", "replace")
        case tuple() | list():
            pairs = [each for each in value if isinstance(each, tuple)]
            return _table(pairs) if pairs else list(value)
        case Mapping():
            return {key.name if isinstance(key, enum.Enum) else key: each for key, each in value.items()}
        case _:
            return value


def _table(pairs: list[tuple[str, Any]]) -> Tree:
    table: Tree = {}
    for name, value in pairs:
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        table.setdefault(name, []).append(text)
    return {name: those[0] if len(those) == 1 else those for name, those in table.items()}
