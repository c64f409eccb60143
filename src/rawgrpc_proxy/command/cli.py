"""The command line: the arguments of `rawgrpc-proxy serve` and the other commands, and their mistakes.

What the commands do is in the modules of their names. What is wrong with the arguments is said in one line, with what
to write instead, and the exit code is 2. Nothing here is needed to use the proxy as a library.
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

import attrs

from rawgrpc_proxy.command.argument_types import checked, count, positive, seconds
from rawgrpc_proxy.command.certs import certs
from rawgrpc_proxy.command.check import check
from rawgrpc_proxy.command.completion import SHELLS, completion
from rawgrpc_proxy.command.demo import run_demo
from rawgrpc_proxy.command.serve import serve
from rawgrpc_proxy.command.settings.clusters import DNS_SCHEME, PoolSettings
from rawgrpc_proxy.command.settings.file import Settings, settings_of
from rawgrpc_proxy.command.settings.model import LogSettings, ServeSettings, check_listener
from rawgrpc_proxy.command.settings.options import layer_of_environment, layer_of_options
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.config_words import SettingsError, load
from rawgrpc_proxy.errors import ConfigError, alone
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.observe.words import printable
from rawgrpc_proxy.proxy.routes import RouteTable
from rawgrpc_proxy.version import python, version

_USAGE_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT
_UNREAD = 128 + signal.SIGPIPE
_LATE = (
    ("tap", "lab.tap:add_tap", "show each message, or frame, while it passes"),
    ("record", "lab.record:add_record", "forward calls, and write every frame to a file"),
    ("replay", "lab.replay:add_replay", "play the clients of a recording to a server"),
    ("serve-recording", "lab.replay:add_serve_recording", "play the server of a recording to any client"),
    ("lint", "lab.lint:add_lint", "name who breaks a rule of HTTP/2 or gRPC"),
    ("faults", "lab.faults:add_faults", "break calls and connections on purpose, by rules"),
)
"""Commands that look into what passes: imported when they are given, and `serve` starts sooner."""
_TLS_OPTIONS = (
    ("--tls-cert", "FILE", "the certificate that callers get, and behind it those that lead to its root"),
    ("--tls-key", "FILE", "its private key"),
    (
        "--tls-client-ca",
        "FILE",
        "authorities of the certificates that callers must have (default: they need none)",
    ),
    (
        "--upstream-ca",
        "FILE",
        "speak TLS to the upstreams, and trust these authorities instead of the system's",
    ),
    ("--upstream-cert", "FILE", "the certificate that upstreams get, if they ask for one"),
    ("--upstream-key", "FILE", "its private key"),
    ("--upstream-server-name", "NAME", "whom the upstreams' certificates must be for (default: their host)"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line (`sys.argv[1:]` unless told otherwise) and answer the exit code."""
    parser = _parser()
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


# --------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and does not bury it under the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


class _CommandParser(_Parser):
    """Of one command; `late` is who adds its arguments, `MODULE:FUNCTION`, when they are needed."""

    def __init__(self, *, late: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self._late = late

    def complete(self) -> None:
        """Add the arguments, unless they have been."""
        if self._late:
            module, _, add = self._late.partition(":")
            self._late = ""
            getattr(importlib.import_module(f"rawgrpc_proxy.command.{module}"), add)(self)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        self.complete()
        return super().parse_known_args(*args, **kwargs)


def _parser(*, whole: bool = False) -> argparse.ArgumentParser:
    """With `whole` it has the arguments of all commands, for those who read it."""
    parser = _Parser(
        prog="rawgrpc-proxy",
        description="A transparent gRPC reverse proxy that forwards HTTP/2 frames and never decodes a message.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_CommandParser)
    settings = _add_serve(
        commands.add_parser(
            "serve", help="forward calls to upstreams", allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
    )
    _add_check(
        commands.add_parser(
            "check", help="look a settings file over, and show what is in force", allow_abbrev=False
        ),
        settings,
    )
    _add_certs(
        commands.add_parser("certs", help="make throw-away certificates, to try TLS with", allow_abbrev=False)
    )
    _add_demo(
        commands.add_parser("demo", help="show calls going through to a built-in backend", allow_abbrev=False)
    )
    for name, late, about in _LATE:
        commands.add_parser(name, help=about, allow_abbrev=False, late=late)
    _add_completion(
        commands.add_parser("completion", help="complete these arguments in a shell", allow_abbrev=False)
    )
    if whole:
        for command in commands.choices.values():
            command.complete()
    return parser


_SEVERAL = "several are the endpoints of a cluster, in a settings file (--config)"


def _add_serve(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add the options of `serve`; answer those that are settings."""
    pool, http2, process = PoolSettings(), Http2Settings(), attrs.fields_dict(ServeSettings)
    actions: list[argparse.Action] = []

    def group(title: str) -> Callable[..., None]:
        add = parser.add_argument_group(title).add_argument
        return lambda *names, **about: actions.append(add(*names, **about))

    parser.description = (
        "Accept gRPC calls and forward them to upstreams. What to serve is in a settings file, or in options, which "
        "win over it; each option has a twin in the environment, RAWGRPC_PROXY_LISTEN for --listen, over which the "
        "file wins. SIGINT or SIGTERM stops accepting and lets running calls finish."
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings, in TOML; `rawgrpc-proxy check FILE` looks them over",
    )
    add = group("where calls go")
    add(
        "--listen",
        type=checked(check_listener),
        metavar="ADDRESS",
        help="where to accept calls: HOST:PORT (port 0 picks a free one), :PORT for every address of this machine, "
        "unix:PATH or unix:@NAME, fd:N for a socket from whoever starts this (systemd)",
    )
    add(
        "--upstream",
        action=_Once,
        type=checked(_check_upstream),
        metavar="ADDRESS",
        help="where calls go that no --route matches: HOST:PORT or unix:PATH (default: they are UNIMPLEMENTED); with "
        "dns:///NAME:PORT to all addresses of a name in turn, which are followed as they change",
    )
    add(
        "--route",
        action="append",
        type=checked(lambda text: RouteTable.parse([text.replace(f"={DNS_SCHEME}", "=", 1)])),
        metavar="PATTERN=ADDRESS",
        help="where calls of one service ('/pkg.Service/*=HOST:PORT'), of one method ('/pkg.Service/Method=HOST:PORT') "
        "or all ('/*=HOST:PORT') go; repeat it for more, the first one that matches decides",
    )
    add(
        "--hop-limit",
        type=positive,
        metavar="N",
        help="refuse calls that have passed N proxies like this one, counted in the metadata 'via' (default: none)",
    )
    add = group("TLS (all files are PEM)")
    for option, metavar, what in _TLS_OPTIONS:
        add(option, metavar=metavar, help=what)
    add(
        "--upstream-tls",
        action="store_true",
        help="speak TLS to the upstreams, with the system's authorities",
    )
    add = group("connections to each upstream")
    add(
        "--size",
        type=count,
        metavar="N",
        help=f"connections kept (default: {pool.size})",
    )
    add(
        "--ttl",
        type=seconds,
        metavar="SECONDS",
        help=f"how long a connection takes new calls, in seconds (default: {pool.ttl_s:g})",
    )
    add(
        "--idle",
        type=count,
        metavar="N",
        help=f"connections without calls kept (default: {pool.idle})",
    )
    add(
        "--ms",
        type=positive,
        metavar="N",
        help=f"calls at a time on one connection (default: {pool.ms})",
    )
    add(
        "--max-waiting",
        type=_count_or_none,
        metavar="N",
        help="calls that wait in line beyond SIZE x MS, the next one is refused; 'none': no limit, each call beyond "
        f"gets a connection of its own (default: {pool.max_waiting})",
    )
    add = group("limits for clients")
    add(
        "--max-connections",
        type=positive,
        metavar="N",
        help="clients' connections that a process has open; one without a call makes room for the next one, which "
        "is closed at once if there is none (default: two thirds of the files that it may have open)",
    )
    add(
        "--max-concurrent-streams",
        type=_setting("max_concurrent_streams"),
        metavar="N",
        help=f"calls at a time on one connection of a client (default: {http2.max_concurrent_streams})",
    )
    add(
        "--max-header-list-bytes",
        type=_setting("max_header_list_bytes"),
        metavar="N",
        help="names and values of the metadata of a call, and of its answer, together "
        f"(default: {http2.max_header_list_bytes})",
    )
    add(
        "--max-header-fields",
        type=_setting("max_header_fields"),
        metavar="N",
        help=f"entries of that metadata (default: {http2.max_header_fields})",
    )
    add = group("peers that are silent (--config FILE can say other times for single listeners and clusters)")
    add(
        "--upstream-keepalive",
        type=_setting("upstream_keepalive_s", seconds),
        metavar="SECONDS",
        help="an upstream that has calls and has sent nothing for so long gets a PING; 'inf': none "
        f"(default: {http2.upstream_keepalive_s:g})",
    )
    add(
        "--downstream-keepalive",
        type=_setting("downstream_keepalive_s", seconds),
        metavar="SECONDS",
        help=f"the same for a client with calls; 'inf': none (default: {http2.downstream_keepalive_s:g})",
    )
    add(
        "--keepalive-timeout",
        type=_setting("keepalive_timeout_s", seconds),
        metavar="SECONDS",
        help="how long a peer has to send anything after that PING, until its connection counts as lost "
        f"(default: {http2.keepalive_timeout_s:g})",
    )
    add = group("the process")
    add(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that share the listening socket, each with connections of its own to the upstreams; 'auto' is "
        f"one for each core (default: {process['workers'].default})",
    )
    add(
        "--grace",
        type=seconds,
        metavar="SECONDS",
        help="how long running calls may go on after SIGINT or SIGTERM, in seconds "
        f"(default: {process['grace_s'].default:g})",
    )
    add(
        "--admin",
        type=checked(check_listener),
        metavar="ADDRESS",
        help="where to answer operators by HTTP: /metrics, /livez, /readyz, a page at /; no password, so keep it to "
        "this machine, for example 127.0.0.1:9901 (default: nowhere)",
    )
    add(
        "--log-format",
        choices=("text", "json", "none"),
        help="how to log calls on standard error, one line each: text, json or none "
        f"(default: {LogSettings().format})",
    )
    _add_engine(add)
    parser.set_defaults(command=lambda options: serve(lambda: _settings(options, actions)))
    return actions


def _add_check(parser: argparse.ArgumentParser, settings: list[argparse.Action]) -> None:
    parser.description = (
        "Look a settings file over, and print the settings in force, each with where it comes from. Every mistake is a "
        "line on standard error; the exit code is 2 then."
    )
    parser.add_argument("config", type=Path, metavar="FILE", help="settings, in TOML")
    parser.set_defaults(
        command=lambda options: check(_settings(argparse.Namespace(config=options.config), settings))
    )


def _add_certs(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a throw-away certificate authority, and pairs for a server on this machine and for a client, to try TLS "
        "with. Files that are there already are left as they are."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put them; made if it is not there")
    parser.set_defaults(command=lambda options: certs(options.folder))


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print a script that completes these arguments. For bash and zsh: "
        'eval "$(rawgrpc-proxy completion bash)"; for fish: rawgrpc-proxy completion fish | source.'
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell it is for")
    parser.set_defaults(command=lambda options: completion(options.shell, _parser(whole=True)))


def _settings(options: argparse.Namespace, actions: list[argparse.Action]) -> Settings:
    """What the environment, a file, and the options say, together. Raises `ConfigError`."""
    environment, written = layer_of_environment(os.environ, actions), layer_of_options(options, actions)
    file: Path | None = getattr(options, "config", None)
    return settings_of(
        [
            (environment.sources, environment.tree),
            *([(str(file), load(file))] if file is not None else []),
            (written.sources, written.tree),
        ]
    )


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
    parser.add_argument(
        "--tls",
        action="store_true",
        help="all speak TLS, with throw-away certificates on both sides (pip install 'rawgrpc-proxy[certs]')",
    )
    _add_engine(parser.add_argument, default=Http2Settings().engine)
    parser.set_defaults(command=_demo)


def _add_engine(add: Callable[..., object], **about: object) -> None:
    add(
        "--engine",
        choices=ENGINES,
        help=f"which implementation of HTTP/2 to use: {' or '.join(ENGINES)} (default: {Http2Settings().engine})",
        **about,
    )


class _Once(argparse.Action):
    """An option that counts once: of two the first would be forgotten without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002  # argparse's
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            raise argparse.ArgumentError(self, f"is there twice; {_SEVERAL}")
        setattr(namespace, self.dest, values)


def _check_upstream(text: str) -> None:
    if "," in text:
        raise ConfigError(f"{text!r} is more than one address; {_SEVERAL}")
    Address.parse(text.removeprefix(DNS_SCHEME))


def _count_or_none(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'none'") from None


def _setting(name: str, read: Callable[[str], float] = count) -> Callable[[str], float]:
    """A number, a whole one unless `read` has others: one of the settings of HTTP/2, in the range that it has."""

    def check(text: str) -> float:
        number = read(text)
        try:
            Http2Settings(**{name: number})  # type: ignore[arg-type]  # mypy thinks of every setting
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return number

    return check


def _workers(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _runs_on() -> str:
    """What a report of a fault has to name beside the version."""
    return f"engine {Http2Settings().engine}; {python()}, {platform.system()} {platform.machine()}"


def _demo(options: argparse.Namespace) -> int:
    return run_demo(stay=options.stay, tls=options.tls, settings=Http2Settings(engine=options.engine))
