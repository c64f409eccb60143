"""The command line: the arguments of `rawgrpc-proxy serve` and `rawgrpc-proxy demo`, and what is wrong with them.

What the commands do is in `serve.py` and `demo.py`. What is wrong with the arguments is said in one line, with what to
write instead, and the exit code is 2. Nothing here is needed to use the proxy as a library.
"""

import argparse
import contextlib
import inspect
import math
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from typing import NoReturn

from rawgrpc_proxy.command.demo import run_demo
from rawgrpc_proxy.command.serve import serve
from rawgrpc_proxy.command.workers import cores
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.observe.call_log import printable
from rawgrpc_proxy.proxy.routes import RouteTable
from rawgrpc_proxy.upstream.pool import Pool

_DISTRIBUTION = "rawgrpc-proxy"
_USAGE_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT
_GRACE_S = 30.0
_MS = 100
"""Calls on one connection to an upstream: what RFC 9113 §6.5.2 says a peer should allow at least. The library's pool
keeps the original's 20, with which a burst of 3,000 calls needs 150 connections."""
_MAX_WAITING = 1000
"""Calls in line for one upstream, when SIZE × MS are on their way: a burst fits, and costs a few MiB. The library's
pool has no line, as the original; a backend that hangs then takes a connection for each call, until no file is left."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line (`sys.argv[1:]` unless told otherwise) and answer the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        if options.version:
            print(f"rawgrpc-proxy {_version()}")
            return 0
        if options.command is None:
            print(parser.format_help().rstrip(), file=sys.stderr)
            return _USAGE_ERROR
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except ConfigError as error:
        print(f"rawgrpc-proxy: {printable(str(error))}", file=sys.stderr)
        return _USAGE_ERROR
    except SystemExit as done:
        # --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _INTERRUPTED


# --------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and does not bury it under the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rawgrpc-proxy",
        description="A transparent gRPC reverse proxy that forwards HTTP/2 frames and never decodes a message.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="forward calls to upstreams", allow_abbrev=False))
    _add_demo(
        commands.add_parser("demo", help="show calls going through to a built-in backend", allow_abbrev=False)
    )
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    pool = {name: parameter.default for name, parameter in inspect.signature(Pool).parameters.items()}
    parser.description = (
        "Accept gRPC calls on one address and forward them to upstreams. SIGINT or SIGTERM stops accepting and lets "
        "running calls finish."
    )
    add = parser.add_argument_group("where calls go").add_argument
    add(
        "--listen",
        required=True,
        type=_checked(lambda text: Address.parse(text, to_listen=True)),
        metavar="ADDRESS",
        help="where to accept calls: HOST:PORT (port 0 picks a free one), :PORT for every address of this machine, "
        "unix:PATH or unix:@NAME",
    )
    add(
        "--upstream",
        type=_checked(Address.parse),
        metavar="ADDRESS",
        help="where calls go that no --route matches: HOST:PORT or unix:PATH (default: they are UNIMPLEMENTED)",
    )
    add(
        "--route",
        action="append",
        default=[],
        type=_checked(lambda text: RouteTable.parse([text])),
        metavar="PATTERN=ADDRESS",
        help="where calls of one service ('/pkg.Service/*=HOST:PORT'), of one method ('/pkg.Service/Method=HOST:PORT') "
        "or all ('/*=HOST:PORT') go; repeat it for more, the first one that matches decides",
    )
    add(
        "--hop-limit",
        type=_positive,
        metavar="N",
        help="refuse calls that have passed N proxies like this one, counted in the metadata 'via' (default: none)",
    )
    add = parser.add_argument_group("connections to each upstream").add_argument
    add(
        "--size",
        type=_count,
        default=pool["size"],
        metavar="N",
        help="connections kept (default: %(default)s)",
    )
    add(
        "--ttl",
        type=_seconds,
        default=pool["ttl"],
        metavar="SECONDS",
        help="how long a connection takes new calls, in seconds (default: %(default)g)",
    )
    add(
        "--idle",
        type=_count,
        default=pool["idle"],
        metavar="N",
        help="connections without calls kept (default: %(default)s)",
    )
    add(
        "--ms",
        type=_positive,
        default=_MS,
        metavar="N",
        help="calls at a time on one connection (default: %(default)s)",
    )
    add(
        "--max-waiting",
        type=_count_or_none,
        default=_MAX_WAITING,
        metavar="N",
        help="calls that wait in line beyond SIZE x MS, the next one is refused; 'none': no limit, each call beyond "
        "gets a connection of its own (default: %(default)s)",
    )
    add = parser.add_argument_group("limits for clients").add_argument
    add(
        "--max-connections",
        type=_positive,
        metavar="N",
        help="clients' connections that a process has open; further ones are closed at once (default: two thirds of "
        "the files that it may have open)",
    )
    add(
        "--max-concurrent-streams",
        type=_setting("max_concurrent_streams"),
        default=Http2Settings().max_concurrent_streams,
        metavar="N",
        help="calls at a time on one connection of a client (default: %(default)s)",
    )
    add(
        "--max-header-list-bytes",
        type=_setting("max_header_list_bytes"),
        default=Http2Settings().max_header_list_bytes,
        metavar="N",
        help="names and values of the metadata of a call, and of its answer, together (default: %(default)s)",
    )
    add(
        "--max-header-fields",
        type=_setting("max_header_fields"),
        default=Http2Settings().max_header_fields,
        metavar="N",
        help="entries of that metadata (default: %(default)s)",
    )
    add = parser.add_argument_group("the process").add_argument
    add(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that share the listening socket, each with connections of its own to the upstreams; 'auto' is "
        "one for each core (default: %(default)s)",
    )
    add(
        "--grace",
        type=_seconds,
        default=_GRACE_S,
        metavar="SECONDS",
        help="how long running calls may go on after SIGINT or SIGTERM, in seconds (default: %(default)g)",
    )
    add(
        "--log-format",
        choices=("text", "json", "none"),
        default="text",
        help="how to log calls on standard error, one line each: text, json or none (default: %(default)s)",
    )
    _add_engine(add)
    parser.set_defaults(command=serve)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a small built-in gRPC backend and the proxy in front of it on free loopback ports, make a call of each "
        "shape through them, and check the answers. The exit code is 0 if all is as expected, else 1."
    )
    parser.add_argument(
        "--stay",
        action="store_true",
        help="then leave both running, for other clients, until SIGINT or SIGTERM",
    )
    _add_engine(parser.add_argument)
    parser.set_defaults(command=_demo)


def _add_engine(add: Callable[..., object]) -> None:
    add(
        "--engine",
        choices=ENGINES,
        default=Http2Settings().engine,
        help=f"which implementation of HTTP/2 to use: {' or '.join(ENGINES)} (default: %(default)s)",
    )


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """An argument that stays text, and has to be one that `parse` understands."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as error:
            # This one names the option in front of the message.
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return check


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def _count_or_none(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return _count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'none'") from None


def _setting(name: str) -> Callable[[str], int]:
    """A whole number that is one of the settings of HTTP/2, in the range that it has."""

    def check(text: str) -> int:
        number = _count(text)
        try:
            Http2Settings(**{name: number})  # type: ignore[arg-type]  # mypy thinks of every setting
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return number

    return check


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _workers(text: str) -> int:
    return cores() if text == "auto" else _positive(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if seconds >= 0 and not math.isnan(seconds):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write 0 or more, for example 2.5")


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _demo(options: argparse.Namespace) -> int:
    return run_demo(stay=options.stay, settings=Http2Settings(engine=options.engine))
