"""The command line: which command is meant, and what becomes of its mistakes.

A command's options, and what it does, are in the module that the table names. What is wrong with the arguments is said
in one line, with what to write instead, and the exit code is 2. Nothing here is needed to use the proxy as a library.
"""

import argparse
import importlib
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.config_words import SettingsError
from rawgrpc_proxy.errors import ConfigError, alone
from rawgrpc_proxy.observe.words import printable
from rawgrpc_proxy.version import python, version

_COMMANDS = (
    ("serve", "serve_options:add_serve", "forward calls to upstreams"),
    ("check", "serve_options:add_check", "look a settings file over, and show what is in force"),
    ("certs", "certs:add_certs", "make throw-away certificates, to try TLS with"),
    ("demo", "demo:add_demo", "show calls going through to a built-in backend"),
    ("tap", "lab.tap:add_tap", "show each message, or frame, while it passes"),
    ("record", "lab.record:add_record", "forward calls, and write every frame to a file"),
    ("replay", "lab.replay:add_replay", "play the clients of a recording to a server"),
    ("serve-recording", "lab.replay:add_serve_recording", "play the server of a recording to any client"),
    ("lint", "lab.lint:add_lint", "name who breaks a rule of HTTP/2 or gRPC"),
    ("faults", "lab.faults:add_faults", "break calls and connections on purpose, by rules"),
    ("completion", "completion:add_completion", "complete these arguments in a shell"),
)
"""Each with who adds its arguments: imported when the command is given, so that none waits for the others' modules."""
_USAGE_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT
_UNREAD = 128 + signal.SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run the command line (`sys.argv[1:]` unless told otherwise) and answer the exit code."""
    parser = make_parser()
    try:
        options = parser.parse_args(argv)
        if options.version:
            print(f"rawgrpc-proxy {version()} ({_runs_on()})")
            return 0
        if options.command is None:
            print(parser.format_help().rstrip(), file=sys.stderr)
            return _USAGE_ERROR
        command: Callable[[argparse.Namespace], int] = options.command
        try:
            code = command(options)
        except BaseExceptionGroup as group:
            error = alone(group)
            if not isinstance(error, ConfigError | BrokenPipeError | KeyboardInterrupt):
                raise
            raise error from None
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except ConfigError as error:
        for problem in error.problems if isinstance(error, SettingsError) else [str(error)]:
            print(f"rawgrpc-proxy: {printable(problem)}", file=sys.stderr)
        return _USAGE_ERROR
    except SystemExit as done:
        # --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever reads us, as `head` does, has enough. Python would try again in the end, and complain.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return _UNREAD


def make_parser(*, whole: bool = False) -> argparse.ArgumentParser:
    """With `whole` it has the arguments of all commands, for those who read it."""
    parser = _Parser(
        prog="rawgrpc-proxy",
        description="A transparent gRPC reverse proxy that forwards HTTP/2 frames and never decodes a message.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_CommandParser)
    for name, where, about in _COMMANDS:
        commands.add_parser(name, help=about, allow_abbrev=False, where=where)
    if whole:
        for command in commands.choices.values():
            command.complete()
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and does not bury it under the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


class _CommandParser(_Parser):
    """Of one command; `where` is who adds its arguments, `MODULE:FUNCTION`, when they are needed."""

    def __init__(self, *, where: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._where = where

    def complete(self) -> None:
        """Add the arguments, unless they have been."""
        if self._where:
            module, _, add = self._where.partition(":")
            self._where = ""
            getattr(importlib.import_module(f"rawgrpc_proxy.command.{module}"), add)(self)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        self.complete()
        return super().parse_known_args(*args, **kwargs)


def _runs_on() -> str:
    """What a report of a fault has to name beside the version."""
    return f"engine {Http2Settings().engine}; {python()}, {platform.system()} {platform.machine()}"
