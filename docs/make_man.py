"""Makes `rawgrpc-proxy.1` from the parser of the command line: `python docs/make_man.py`. A test keeps it true.

The page is roff for `man`, with the macros of man(7), which groff and mandoc know alike. The wheel installs it.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from rawgrpc_proxy.command.arguments import Argument, Command, commands_of
from rawgrpc_proxy.command.cli import make_parser

PAGE = Path(__file__).with_name("rawgrpc-proxy.1")
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FILES = """\
What to serve can be in a settings file, in TOML, of which the options are a part: several listeners and clusters, TLS
on both sides, routes by authority and metadata, deadlines. docs/settings.md describes all of it; the command check
says what is wrong with a file. A file like this is enough:
"""
EXAMPLE_FILE = """\
[[listeners]]
address = "0.0.0.0:8443"
tls = { certificate = "server.pem", key = "server.key" }

[clusters.orders]
endpoints = ["10.0.0.7:50051", "10.0.0.8:50051"]

[[routes]]
match = "/com.example.Orders/*"
cluster = "orders"
"""
ENVIRONMENT = """\
Each option of serve that is a setting has a twin, named after it: RAWGRPC_PROXY_LISTEN for --listen. A file wins over
the environment, and options win over both. An option without a value is 1 or 0 there, and one that may be repeated is
several words.
"""
SIGNALS = [
    (
        "SIGINT, SIGTERM",
        "Stop accepting and let running calls finish, for the grace; a second one ends at once.",
    ),
    (
        "SIGHUP",
        "Read the settings again: new workers take over when all of them serve, and the old ones drain.",
    ),
    (
        "SIGUSR2",
        "The same, by the program as it is installed now, in the same process; it is tried first.",
    ),
]
EXIT_CODES = [
    ("0", "After a stop by signal, or if all is well."),
    (
        "1",
        "After a crash, whose traceback is in the log; of a tool, if not all is as expected, or lint has found errors.",
    ),
    (
        "2",
        "If the arguments or settings are wrong, or it cannot listen; a line for each mistake says which.",
    ),
]
EXAMPLES = """\
# All calls to one backend
rawgrpc-proxy serve --listen 0.0.0.0:8080 --upstream 10.0.0.8:50051

# Those of one service elsewhere
rawgrpc-proxy serve --listen :8080 --upstream 10.0.0.8:50051 \\
    --route '/com.example.Orders/*=10.0.0.7:50051'

# A settings file, looked over first
rawgrpc-proxy check proxy.toml && rawgrpc-proxy serve --config proxy.toml
"""


def page() -> str:
    """The whole page."""
    program, commands = commands_of(make_parser(whole=True))
    version = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]
    return "\n".join(
        [
            '.\\" Made by docs/make_man.py: change what the parser says instead.',
            f'.TH RAWGRPC\\-PROXY 1 "" "rawgrpc\\-proxy {version}" "User Commands"',
            *(".SH NAME", "rawgrpc\\-proxy \\- transparent gRPC reverse proxy in pure Python"),
            ".SH SYNOPSIS",
            *_synopsis(program, commands),
            *(".SH DESCRIPTION", _text(program.description)),
            ".SH OPTIONS",
            *_listed(program.options),
            ".SH COMMANDS",
            *(line for command in commands for line in _command(command)),
            *(".SH FILES", _text(FILES), ".PP", ".EX", _verbatim(EXAMPLE_FILE), ".EE"),
            *(".SH ENVIRONMENT", _text(ENVIRONMENT)),
            *(".SH SIGNALS", *_items(SIGNALS)),
            *(".SH EXIT STATUS", *_items(EXIT_CODES)),
            *(".SH EXAMPLES", ".EX", _verbatim(EXAMPLES), ".EE"),
            "",
        ]
    )


def _synopsis(program: Command, commands: tuple[Command, ...]) -> Iterator[str]:
    for option in program.options:
        yield f".B rawgrpc\\-proxy\n{' | '.join(_named(option))}\n.br"
    for place, command in enumerate(commands, 1):
        words = ["[\\fIOPTION\\fR]..."] if len(command.options) > 1 else []
        words += [f"\\fI{_text(each.value)}\\fR" for each in command.places]
        yield f".B rawgrpc\\-proxy {command.name}"
        if words:
            yield " ".join(words)
        if place < len(commands):
            yield ".br"


def _command(command: Command) -> Iterator[str]:
    yield f".SS {command.name}"
    yield _text(command.description)
    for title, arguments in command.groups:
        if title not in {"options", "positional arguments"}:
            yield f".PP\n.I {_text(_capital(title))}"
        yield from _listed(arguments)


def _listed(arguments: tuple[Argument, ...]) -> Iterator[str]:
    for argument in arguments:
        if argument.names == ("-h", "--help"):
            continue
        yield ".TP"
        yield ", ".join(_named(argument))
        yield _text(_capital(argument.about)) + "."


def _named(argument: Argument) -> list[str]:
    value = f"\\fI{_text(argument.value)}\\fR"
    if not argument.names:
        return [value]
    *names, last = [f"\\fB{_text(name)}\\fR" for name in argument.names]
    return [*names, f"{last} {value}" if argument.value else last]


def _items(items: list[tuple[str, str]]) -> Iterator[str]:
    for name, about in items:
        yield f".TP\n.B {_text(name)}\n{_text(about)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(text: str) -> str:
    """Prose: no sign of it means anything to roff, and each sentence begins a line, as man(7) asks."""
    words = _escaped(" ".join(text.split()))
    return "\n".join(_guarded(line) for line in re.split(r"(?<=[.!?]) (?=[A-Z])", words))


def _verbatim(text: str) -> str:
    return "\n".join(_guarded(_escaped(line)) for line in text.rstrip("\n").split("\n"))


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in text)


def _guarded(line: str) -> str:
    """A full stop at the beginning of a line would make it a request."""
    return f"\\&{line}" if line.startswith(".") else line


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
