"""Options of `serve`, and variables of the environment, as settings: each is a shorthand for one (`model.py`).

Each option has a twin in the environment, `--max-waiting` has `RAWGRPC_PROXY_MAX_WAITING`. A file wins over the
environment, and options win over both; `file.py` lays them over each other.
"""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from rawgrpc_proxy.command.settings.clusters import DNS_SCHEME
from rawgrpc_proxy.command.settings.file import VARIABLES, Tree
from rawgrpc_proxy.config_words import SettingsError, join
from rawgrpc_proxy.errors import ConfigError

PATHS = {
    "hop_limit": "hop_limit",
    "size": "pool.size",
    "ttl": "pool.ttl",
    "idle": "pool.idle",
    "ms": "pool.ms",
    "max_waiting": "pool.max_waiting",
    "max_connections": "max_connections",
    "max_concurrent_streams": "http2.max_concurrent_streams",
    "max_header_list_bytes": "http2.max_header_list",
    "max_header_fields": "http2.max_header_fields",
    "upstream_keepalive": "http2.upstream_keepalive",
    "downstream_keepalive": "http2.downstream_keepalive",
    "keepalive_timeout": "http2.keepalive_timeout",
    "engine": "http2.engine",
    "workers": "workers",
    "grace": "grace",
    "admin": "admin.address",
    "log_format": "log.format",
}
"""By option: the setting that it is."""
_LISTENER_TLS = {"tls_cert": "certificate", "tls_key": "key", "tls_client_ca": "client_ca"}
_CLUSTER_TLS = {
    "upstream_ca": "ca",
    "upstream_server_name": "server_name",
    "upstream_cert": "certificate",
    "upstream_key": "key",
}


class Layer:
    """What some options, or variables, say: a tree of settings, and the name of each one's source, by its path."""

    def __init__(self, given: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """`given` has the values by option, and `names` what each is called. Raises `ConfigError`."""
        self.tree: Tree = {}
        self.sources: dict[str, str] = {}
        self._given, self._names = given, names
        for option, path in PATHS.items():
            if option in given:
                value = given[option]
                self._set(path.split("."), "none" if value is None else value, names[option])
        self._listen()
        self._lead()

    def _listen(self) -> None:
        listener_tls = {
            key: self._given[option] for option, key in _LISTENER_TLS.items() if option in self._given
        }
        if "listen" in self._given:
            listener = {"address": self._given["listen"]} | ({"tls": listener_tls} if listener_tls else {})
            self._set(["listeners"], [listener], self._names["listen"])
        elif listener_tls:
            raise ConfigError(f"{self._first(_LISTENER_TLS)} goes with {self._names['listen']}")

    def _lead(self) -> None:
        """Where calls go: a cluster for each address, named after it."""
        cluster_tls = {
            key: self._given[option] for option, key in _CLUSTER_TLS.items() if option in self._given
        }
        routes = [(*text.partition("=")[::2], "route") for text in self._given.get("route", ())]
        if "upstream" in self._given:
            routes.append(("/*", self._given["upstream"], "upstream"))
        for _, address, option in routes:
            # Any other name is left to each dial.
            is_name = address.startswith(DNS_SCHEME)
            cluster: Tree = {"dns": address} if is_name else {"endpoints": [address]}
            if cluster_tls or self._given.get("upstream_tls"):
                cluster["tls"] = dict(cluster_tls)
            self._set(["clusters", address], cluster, self._names[option])
        if routes:
            told = self._names[routes[0][2]]
            self._set(
                ["routes"], [{"match": match, "cluster": address} for match, address, _ in routes], told
            )
        elif cluster_tls or self._given.get("upstream_tls"):
            raise ConfigError(
                f"{self._first({'upstream_tls': '', **_CLUSTER_TLS})} goes with {self._names['upstream']} or "
                f"{self._names['route']}"
            )

    def _set(self, keys: list[str], value: Any, source: str) -> None:
        table = self.tree
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        table[keys[-1]] = value
        path = ""
        for key in keys:
            path = join(path, key)
        self._name_all(path, value, source)

    def _name_all(self, path: str, value: Any, source: str) -> None:
        self.sources[path] = source
        for key, below in value.items() if isinstance(value, dict) else ():
            self._name_all(join(path, key), below, source)

    def _first(self, options: Iterable[str]) -> str:
        return next(self._names[option] for option in options if option in self._given)


def layer_of_options(options: argparse.Namespace, actions: Iterable[argparse.Action]) -> Layer:
    """What was written on the command line; an option that was not is absent from `options`."""
    given = vars(options)
    return Layer(given, {action.dest: action.option_strings[0] for action in actions})


def layer_of_environment(variables: Mapping[str, str], actions: Iterable[argparse.Action]) -> Layer:
    """What the twins of the options say. Raises `SettingsError`."""
    given: dict[str, Any] = {}
    names: dict[str, str] = {}
    problems = []
    for action in actions:
        name = VARIABLES + action.dest.upper()
        names[action.dest] = name
        text = variables.get(name)
        if not text:
            continue
        try:
            given[action.dest] = _read(text, action)
        except argparse.ArgumentTypeError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise SettingsError(problems)
    return Layer(given, names)


def _read(text: str, action: argparse.Action) -> Any:
    """As the option would read it; one that may be repeated reads words, one without a value 1 or 0."""
    if action.nargs == 0:
        if text not in {"0", "1"}:
            raise argparse.ArgumentTypeError(f"{text!r} is neither 1 nor 0")
        return text == "1"
    if action.choices is not None and text not in action.choices:
        raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(action.choices)}")
    read: Any = action.type or str
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001  # the class has no public name
        return [read(word) for word in text.split()]
    return read(text)
