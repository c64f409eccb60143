"""The options of `rawgrpc-proxy serve`: what each may be, and what `--help` says of it. `check` reads what they read.

Each but `--config` is a setting, or a part of one; which, says `settings/options.py`.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import attrs

from rawgrpc_proxy.command.argument_types import ENGINE, checked, count, positive, seconds
from rawgrpc_proxy.command.check import check
from rawgrpc_proxy.command.serve import serve
from rawgrpc_proxy.command.settings.clusters import DNS_SCHEME, PoolSettings
from rawgrpc_proxy.command.settings.file import Settings, settings_of
from rawgrpc_proxy.command.settings.model import LogSettings, ServeSettings, check_listener
from rawgrpc_proxy.command.settings.options import layer_of_environment, layer_of_options
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.config_words import load
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.proxy.route_table import RouteTable

Add = Callable[..., None]
"""As `add_argument` of argparse."""
_SEVERAL = "several are the endpoints of a cluster, in a settings file (--config)"


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.description = (
        "Accept gRPC calls and forward them to upstreams. What to serve is in a settings file, or in options, which "
        "win over it; each option has a twin in the environment, RAWGRPC_PROXY_LISTEN for --listen, over which the "
        "file wins. SIGINT or SIGTERM stops accepting and lets running calls finish."
    )
    parser.argument_default = argparse.SUPPRESS  # what is not given is absent, and leaves the file its word
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings, in TOML; `rawgrpc-proxy check FILE` looks them over",
    )
    actions = _add_settings(parser)
    parser.set_defaults(command=lambda options: serve(lambda: _settings(options, actions)))


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.description = (
        "Look a settings file over, and print the settings in force, each with where it comes from. Every mistake is a "
        "line on standard error; the exit code is 2 then."
    )
    parser.add_argument("config", type=Path, metavar="FILE", help="settings, in TOML")
    actions = _add_settings(argparse.ArgumentParser())  # for their twins in the environment
    parser.set_defaults(
        command=lambda options: check(_settings(argparse.Namespace(config=options.config), actions))
    )


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


def _add_settings(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add all options that are settings, and answer them."""
    actions: list[argparse.Action] = []

    def adding_to(group: argparse._ArgumentGroup) -> Add:
        return lambda *names, **about: actions.append(group.add_argument(*names, **about))

    for title, add_options in _GROUPS:
        add_options(adding_to(parser.add_argument_group(title)))
    return actions


# ----------------------------------------------------------------------- options


def _where_calls_go(add: Add) -> None:
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


def _tls(add: Add) -> None:
    add(
        "--tls-cert",
        metavar="FILE",
        help="the certificate that callers get, and behind it those that lead to its root",
    )
    add("--tls-key", metavar="FILE", help="its private key")
    add(
        "--tls-client-ca",
        metavar="FILE",
        help="authorities of the certificates that callers must have (default: they need none)",
    )
    add(
        "--upstream-ca",
        metavar="FILE",
        help="speak TLS to the upstreams, and trust these authorities instead of the system's",
    )
    add("--upstream-cert", metavar="FILE", help="the certificate that upstreams get, if they ask for one")
    add("--upstream-key", metavar="FILE", help="its private key")
    add(
        "--upstream-server-name",
        metavar="NAME",
        help="whom the upstreams' certificates must be for (default: their host)",
    )
    add(
        "--upstream-tls",
        action="store_true",
        help="speak TLS to the upstreams, with the system's authorities",
    )


def _pool(add: Add) -> None:
    pool = PoolSettings()
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


def _limits(add: Add) -> None:
    http2 = Http2Settings()
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


def _keepalive(add: Add) -> None:
    http2 = Http2Settings()
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


def _process(add: Add) -> None:
    process = attrs.fields_dict(ServeSettings)
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
    add("--engine", **ENGINE)


_GROUPS: tuple[tuple[str, Callable[[Add], None]], ...] = (
    ("where calls go", _where_calls_go),
    ("TLS (all files are PEM)", _tls),
    ("connections to each upstream", _pool),
    ("limits for clients", _limits),
    (
        "peers that are silent (--config FILE can say other times for single listeners and clusters)",
        _keepalive,
    ),
    ("the process", _process),
)
"""In the order of `--help`, with their titles."""


# -------------------------------------------------------------- what they may be


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
