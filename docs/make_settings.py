"""Makes `settings.md` from the settings' own docstrings: `python docs/make_settings.py`. A test keeps it true."""

import ast
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from rawgrpc_proxy.command.settings.file import _IN_A_WORD
from rawgrpc_proxy.command.settings.model import ServeSettings
from rawgrpc_proxy.command.settings.options import _CLUSTER_TLS, _LISTENER_TLS, PATHS
from rawgrpc_proxy.command.settings.remedies import key_of

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """\
# Settings

What `rawgrpc-proxy serve --config FILE` reads, in [TOML](https://toml.io). `rawgrpc-proxy check FILE` says what is
wrong with a file, all of it at once, and prints the settings in force, each with where it comes from.

Options win over the file, and the file over the environment, where each option has a twin: `--max-waiting` has
`RAWGRPC_PROXY_MAX_WAITING`. Of tables the single values are laid over each other; a list, as `[[routes]]`, counts as a
whole.

A time is a number of seconds, or text like `"250ms"`, `"1.5s"`, `"5m"`, `"2h"`; a size is a number of bytes, or text
like `"64KiB"`, `"1.5MiB"`. Where there may be none, `"none"` says so.

```toml
{example}```

How the proxy is run, reloaded and upgraded is in [running.md](running.md). This page is made from the source
(`python docs/make_settings.py`).
"""
EXAMPLE = Path(__file__).with_name("proxy.toml")
OPTIONS = {
    **{setting: option for option, setting in PATHS.items()},
    **{f"listeners[].tls.{key}": option for option, key in _LISTENER_TLS.items()},
    **{f"clusters.NAME.tls.{key}": option for option, key in _CLUSTER_TLS.items()},
}
"""By setting: the option that is a shorthand for it."""


def page() -> str:
    """The whole page."""
    return INTRODUCTION.format(example=EXAMPLE.read_text(encoding="utf-8")) + "".join(_sections())


def _sections() -> Iterator[str]:
    """A section for each class, level by level; for one that has a section already, just a pointer."""
    seen: dict[type[Any], str] = {}
    to_come: list[tuple[type[Any], str]] = [(ServeSettings, "")]
    for cls, path in to_come:
        title = f"`{path}`" if path else "The top level"
        if cls in seen:
            yield f"\n## {title}\n\nAs {seen[cls]}.\n"
            continue
        seen[cls] = title
        section, below = _section(cls, path, title)
        yield section
        to_come += below


def _section(cls: type[Any], path: str, title: str) -> tuple[str, list[tuple[type[Any], str]]]:
    """The section of a class, and the classes in it, with their paths."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    about = " ".join(" ".join(paragraphs).split()) if path != "http2" else paragraphs[0]
    documented = _docstrings(cls)
    lines, below = [], []
    for field in attrs.fields(attrs.resolve_types(cls)):
        key = key_of(field.name)
        inner, many = _table_in(field.type)
        here = f"{path}.{key}" if path else key
        text = " ".join(documented[field.name].split()).replace("|", "\\|")
        if inner is not None:
            below.append((inner, f"{here}{many}"))
            text += f" See `{here}{many}`."
        default = _default(field)
        option = OPTIONS.get(here)
        told = f" Option: `--{option.replace('_', '-')}`." if option else ""
        lines.append(f"| `{key}` | {_kind(field)} | {default} | {text}{told} |\n")
    head = f"\n## {title}\n\n{about}\n\n| setting | what it is | default | |\n|---|---|---|---|\n"
    return head + "".join(lines), below


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """Of each field, the text below it."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = text
            case _:
                pass
    return texts


def _table_in(kind: Any) -> tuple[type[Any] | None, str]:
    """The class of a table, of a list of tables, or of tables by name, and how its path goes on."""
    for inner in (kind, *typing.get_args(kind)):
        if isinstance(inner, type) and attrs.has(inner):
            origin = typing.get_origin(kind)
            return inner, "[]" if origin is tuple else ".NAME" if origin not in {
                None,
                types.UnionType,
            } else ""
    return None, ""


def _kind(field: "attrs.Attribute[Any]") -> str:
    kind, of = field.type, typing.get_args(field.type)
    origin = typing.get_origin(kind)
    inner, many = _table_in(kind)
    if inner is not None:
        if field.name in _IN_A_WORD:
            return "text or table"
        return {"": "table", "[]": "list of tables", ".NAME": "tables by name"}[many]
    if origin is Literal:
        return " or ".join(f'`"{each}"`' for each in of)
    if origin is tuple:
        return "list of text"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "table of whole numbers" if of[1] is int else "table of text"
    if field.name.endswith("_bytes"):
        simple = "size"
    elif field.name.endswith("_s") and not field.name.endswith("_per_s"):
        simple = "time"
    else:
        bare = next((each for each in of if each is not types.NoneType), kind)
        simple = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"}[
            getattr(bare, "__name__", "str")
        ]
    words = [simple, *(f'`"{name}"`' for each in of for name in typing.get_args(each))]
    return " or ".join([*words, *(['`"none"`'] if types.NoneType in of else [])])


def _default(field: "attrs.Attribute[Any]") -> str:
    default: Any = field.default
    if default is attrs.NOTHING:
        return "needed"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, whatever its stub says
        return "" if default.factory.__name__ != "default_max_buffered_bytes" else "by memory"
    if isinstance(default, tuple):
        return f"`{json.dumps(default)}`"
    if isinstance(default, float):
        return f"{default:.10g}"
    if isinstance(default, bool):
        return f"{default}".lower()
    return "none" if default is None else f"{default}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
