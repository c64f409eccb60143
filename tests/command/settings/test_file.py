"""Settings from a file, the environment and options: what wins, and what is said of each mistake."""

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from rawgrpc_proxy.cluster.balance_settings import Balance
from rawgrpc_proxy.cluster.health_settings import HealthCheck
from rawgrpc_proxy.cluster.outlier_settings import FailurePercentage, OutlierDetection
from rawgrpc_proxy.cluster.slow_start import SlowStart
from rawgrpc_proxy.command.cli import main
from rawgrpc_proxy.command.settings.clusters import ClusterSettings, ClusterTls, PoolSettings
from rawgrpc_proxy.command.settings.file import Settings, settings_of
from rawgrpc_proxy.command.settings.routes import MetadataChanges, RouteSettings
from rawgrpc_proxy.command.settings.traffic import (
    ConcurrencySettings,
    MirrorSettings,
    RateLimitSettings,
    SplitSettings,
)
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.config_words import SettingsError, load
from rawgrpc_proxy.discovery.dns_source import DnsSource
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.observe.observer import PoolObserver

GOOD = """
max_connections = 5000
grace = "1.5m"

[[listeners]]
address = "0.0.0.0:8443"
tls = { certificate = "server.pem", key = "server.key", client_ca = "clients.pem", client_certificate = "request" }

[[listeners]]
address = "unix:/run/proxy.sock"
proxy_protocol = ["10.0.0.0/8", "::1", "unix"]

[http2]
stream_window = "256KiB"
handshake_timeout = 2

[pool]
idle = 7

[clusters.orders]
endpoints = ["10.0.0.7:50051", "unix:/run/orders.sock"]
tls = { ca = "ca.pem", server_name = "orders.internal", certificate = "me.pem", key = "me.key" }
pool = { size = 100, ttl = "250ms", idle = 50, max_waiting = "none" }
balance = { policy = "ring_hash", header = "x-user", bounded_load = "none" }
slow_start = "none"
weights = { "unix:/run/orders.sock" = 3 }

[clusters.users]
endpoints = ["https://users.internal:443/"]
balance = "least_request"
slow_start = "30s"

[clusters.canary]
endpoints = ["h:1"]
max_requests = 1000
max_pending = 100
max_connections = 10

[[routes]]
match = "/shop.Orders/*"
authority = "shop.example:8443"
metadata = { "x-env" = "staging" }
cluster = "orders"
max_timeout = "30s"
idle_timeout = "5m"
request_metadata = { set = { "x-edge" = "1" }, remove = ["x-debug"] }

[[routes]]
match = "/shop.Users/*"
split = [{ cluster = "users", weight = 99.5 }, { cluster = "canary", weight = 0.5 }]
sticky = "x-user"
rate_limit = { rate = "100/s", burst = 200, per = "peer" }
concurrency = { adaptive = true, max = 200 }
mirror = { cluster = "orders", share = 0.1, max_call_buffered = "64KiB" }

[[routes]]
cluster = "users"
"""


def read(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    return settings_of([("proxy.toml", load(file))])


def test_a_file_says_all_there_is_to_say(tmp_path: Path) -> None:
    serve = read(tmp_path, GOOD).serve

    assert (serve.max_connections, serve.grace_s, serve.workers) == (5000, 90.0, 1)
    assert [listener.address for listener in serve.listeners] == ["0.0.0.0:8443", "unix:/run/proxy.sock"]
    assert [listener.proxy_protocol for listener in serve.listeners] == [(), ("10.0.0.0/8", "::1", "unix")]
    assert serve.listeners[0].tls is not None
    assert serve.listeners[0].tls.client_certificate == "request"
    assert (serve.http2.stream_window_bytes, serve.http2.handshake_timeout_s) == (256 * 1024, 2.0)
    orders, users = serve.clusters["orders"], serve.clusters["users"]
    assert orders.tls == ClusterTls(
        ca="ca.pem", server_name="orders.internal", certificate="me.pem", key="me.key"
    )
    assert orders.pool == PoolSettings(size=100, ttl_s=0.25, idle=50, max_waiting=None)
    assert users.addresses == ("users.internal:443",)
    assert (orders.speaks_tls, users.speaks_tls) == (True, True)
    assert users.pool == PoolSettings(idle=7)
    assert orders.balance == Balance(policy="ring_hash", header="x-user", bounded_load=None)
    assert (users.balance, users.slow_start) == (Balance(policy="least_request"), SlowStart(window_s=30))
    assert orders.slow_start is None
    assert orders.found == [
        EndpointAddress("10.0.0.7:50051"),
        EndpointAddress("unix:/run/orders.sock", weight=3),
    ]
    assert users.found == [EndpointAddress("users.internal:443")]
    assert serve.routes == (
        RouteSettings(
            match="/shop.Orders/*",
            authority="shop.example:8443",
            metadata={"x-env": "staging"},
            cluster="orders",
            max_timeout_s=30.0,
            idle_timeout_s=300.0,
            request_metadata=MetadataChanges(set={"x-edge": "1"}, remove=("x-debug",)),
        ),
        RouteSettings(
            match="/shop.Users/*",
            split=(
                SplitSettings(cluster="users", weight=99.5),
                SplitSettings(cluster="canary", weight=0.5),
            ),
            sticky="x-user",
            rate_limit=RateLimitSettings(rate="100/s", burst=200, per="peer"),
            concurrency=ConcurrencySettings(adaptive=True, max=200),
            mirror=MirrorSettings(cluster="orders", share=0.1, max_call_buffered_bytes=64 * 1024),
        ),
        RouteSettings(cluster="users"),
    )
    canary = serve.clusters["canary"]
    assert (canary.max_requests, canary.max_pending, canary.max_connections) == (1000, 100, 10)


ROUTED = '[clusters.a]\nendpoints = ["h:1"]\n[[routes]]\ncluster = "a"\n'
LISTENING = '[[listeners]]\naddress = "h:1"\n'

BROKEN = [
    (
        f"{LISTENING}{ROUTED}retry = {{ max_attempts = 9 }}",
        r"routes\[0\]\.retry\.max_attempts is 9; it must be between 2 and 5",
    ),
    (
        f'{LISTENING}{ROUTED}retry = {{ retryable_status_codes = ["UNAVAILBLE"] }}',
        r"routes\[0\]\.retry\.retryable_status_codes\[0\] is 'UNAVAILBLE'; it must be .*\(did you mean UNAVAILABLE\?\)",
    ),
    (
        f"{LISTENING}{ROUTED}retry = {{ retryable_status_codes = [] }}",
        r"routes\[0\]\.retry\.retryable_status_codes is empty; name the statuses",
    ),
    (
        f'{LISTENING}{ROUTED}retry = {{ initial_backoff = "5s" }}',
        r"routes\[0\]\.retry\.initial_backoff is longer than max_backoff \(1 s\); raise that, too",
    ),
    (
        f"{LISTENING}{ROUTED}retry = true",
        r"routes\[0\]\.retry is true or false; it must be a table; \{\} has the defaults, or \"none\"$",
    ),
    (
        f"{LISTENING}{ROUTED}concurrency = 100",
        r"concurrency is a number; it must be a table, with some of max, adaptive, min, or ",
    ),
    (
        f'{LISTENING}{ROUTED}rate_limit = "100/s"',
        r"rate_limit is text; it must be a table, like \{ rate = … \}, or ",
    ),
    (
        f'{LISTENING}{ROUTED}retry = {{ retryable_status_codes = "UNAVAILABLE" }}',
        r"""retry\.retryable_status_codes is text; it must be a list, like \["UNAVAILABLE"\]$""",
    ),
    (
        f'{LISTENING}{ROUTED}retry = {{ retryable_status_codes = ["unavailable"] }}',
        r"retry\.retryable_status_codes\[0\] is 'unavailable'; .*\(did you mean UNAVAILABLE\?\)",
    ),
    (
        f'{LISTENING}{ROUTED}mirror = {{ cluster = "a", share = "10%" }}',
        r"mirror\.share is '10%'; it must be a number: 10% is 0\.1$",
    ),
    (
        f'{LISTENING}{ROUTED}mirror = {{ cluster = "a", max_buffered = "64KiB" }}',
        r"mirror\.max_call_buffered is more than max_buffered, 65536; raise that, too",
    ),
    (
        f"{LISTENING}{ROUTED}split = {{ a = 1 }}",
        r"split is a table; it must be a list of tables: \[\{ cluster = …, weight = … \}\]$",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nmin_idle = 2',
        r"clusters\.b\.min_idle is not known \(did you mean clusters\.b\.pool\.min_idle\?\); known here",
    ),
    (
        f"{LISTENING}{ROUTED}[clusters.a.pool]\nretry = {{}}",
        r"clusters\.a\.pool\.retry is not known; it belongs into \[\[routes\]\]; known here",
    ),
    (
        f"{LISTENING}{ROUTED}[clusters.a.balance]\nchoices = 3",
        r'balance\.choices is for "least_request", and the policy is "round_robin"$',
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.a.balance]\npolicy = "least_request"\nbounded_load = 2',
        r'balance\.bounded_load is for "ring_hash", and the policy is "least_request"$',
    ),
    (
        f"{LISTENING}{ROUTED}[clusters.a.outlier]\nfailures = []",
        r"outlier\.failures: is empty: nobody would ever be ejected",
    ),
    (f"{LISTENING}{ROUTED}hedging = {{}}", r"routes\[0\]\.hedging\.hedging_delay is missing"),
    (f"{LISTENING}{ROUTED}hedge = {{}}", r"routes\[0\]\.hedge is not known \(did you mean hedging\?\)"),
    (
        f'{LISTENING}{ROUTED}retry = {{ on = ["ABORTED"] }}',
        r"retry\.on is not known \(did you mean retryable_status_codes\?\)",
    ),
    (
        f'{LISTENING}{ROUTED}retry = {{ backoff = "1s" }}',
        r"retry\.backoff is not known \(did you mean initial_backoff\?\)",
    ),
    (
        f"{LISTENING}{ROUTED}[clusters.a.outlier_detection]",
        r"clusters\.a\.outlier_detection is not known \(did you mean outlier\?\)",
    ),
    (
        f"{LISTENING}{ROUTED}retry = {{}}\nhedging = {{ hedging_delay = 1 }}",
        r"routes\[0\]\.hedging is set beside retry; a route has one of them",
    ),
    ("grace = ", r"proxy\.toml: is not TOML: Invalid value \(at "),
    ("grace = 1\ngrace = 2", "is not TOML: Cannot overwrite a value"),
    (LISTENING, "routes is empty: calls would go nowhere; give --upstream"),
    (ROUTED, "listeners is empty: there is nowhere to accept calls; give --listen"),
    (
        f"graze = 1\n{LISTENING}{ROUTED}",
        r"graze is not known \(did you mean grace\?\); known here: listeners, clusters",
    ),
    (
        f'grace = "soon"\n{LISTENING}{ROUTED}',
        "grace is 'soon'; it must be a time: a number of seconds, or text like",
    ),
    (
        f'status_origin_trailer = "grpc-origin"\n{LISTENING}{ROUTED}',
        "status_origin_trailer: 'grpc-origin' cannot be the trailer that says who has made a status: it is gRPC's",
    ),
    (f"grace = -1\n{LISTENING}{ROUTED}", r"grace is -1\.0; it must be 0 or more"),
    (f"grace = true\n{LISTENING}{ROUTED}", "grace is True; it must be a time"),
    (f"grace = 2020-02-02\n{LISTENING}{ROUTED}", "grace is datetime.date.*; it must be a time"),
    (f"workers = 0\n{LISTENING}{ROUTED}", 'workers is 0; it must be 1 or more, or "auto"'),
    (f'workers = "many"\n{LISTENING}{ROUTED}', "workers is 'many'; it must be "),
    (
        f'log_format = "jsno"\n{LISTENING}{ROUTED}',
        r"""log_format is 'jsno'; .*"json".*\(did you mean json\?\)""",
    ),
    (
        f'reflection = "A"\n{LISTENING}{ROUTED}',
        r"reflection is 'A', which is no cluster \(did you mean a\?\); known: a",
    ),
    (f'health = "own"\n{LISTENING}{ROUTED}', "health is text; it must be a list"),
    (f'{LISTENING}{ROUTED}[http2]\nstream_window = "1Mb"', "http2.stream_window is '1Mb'; it must be a size"),
    (
        f'{LISTENING}{ROUTED}[http2]\nstream_window = "1KiB"',
        "http2.stream_window is 1024; it must be between 65535 and",
    ),
    (
        f"{LISTENING}{ROUTED}[http2]\nstream_window_bytes = 1",
        r"http2\.stream_window_bytes is not known \(did you mean stream_window\?\)",
    ),
    (f'{LISTENING}{ROUTED}[http2]\nengine = "h3"', """http2.engine is 'h3'; it must be "relay" or "h2\""""),
    (f"{ROUTED}[listeners]\naddress = 1", "listeners is a table; it must be a list"),
    (f"{ROUTED}[[listeners]]", r"listeners\[0\].address is missing"),
    (
        f'{ROUTED}[[listeners]]\naddress = "8080"',
        r"listeners\[0\].address: '8080' is no address; write HOST:PORT",
    ),
    (
        f'{LISTENING}tls = {{ certificate = "x" }}\n{ROUTED}',
        r"listeners\[0\].tls.key is missing",
    ),
    (
        f'{LISTENING}tls = {{ certificate = "x", key = "x", client_certificate = "no" }}\n{ROUTED}',
        r"""listeners\[0\].tls.client_certificate is 'no'; it must be "require" or "request\"""",
    ),
    (
        f'{LISTENING}proxy_protocol = "10.0.0.0/8"\n{ROUTED}',
        r"listeners\[0\].proxy_protocol is text; it must be a list",
    ),
    (
        f'{LISTENING}proxy_protocol = ["10.0.0.0/8", "lb"]\n{ROUTED}',
        r"listeners\[0\].proxy_protocol: 'lb' is no network; write 10\.0\.0\.0/8, 2001:db8::/32, a single address, or",
    ),
    (
        f'{LISTENING}proxy_protocol = ["10.1.2.3/8"]\n{ROUTED}',
        r"listeners\[0\].proxy_protocol: '10\.1\.2\.3/8' is an address in a network; write 10\.0\.0\.0/8 for that, or",
    ),
    (
        f'{LISTENING}proxy_protocol = ["unix"]\n{ROUTED}',
        r"""listeners\[0\].proxy_protocol names nobody who can come to h:1: "unix" is for Unix sockets""",
    ),
    (
        f'{ROUTED}[[listeners]]\naddress = "unix:/run/x"\nproxy_protocol = ["::/0"]',
        'names nobody who can come to unix:/run/x: all who come to a Unix socket are "unix"',
    ),
    (f"{LISTENING}{ROUTED}[clusters.b]\nendpoints = []", "clusters.b.endpoints is empty; write at least one"),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = "h:1"',
        "clusters.b.endpoints is text; it must be a list",
    ),
    (
        f"{LISTENING}{ROUTED}[clusters.b]\nendpoints = [1]",
        r"clusters.b.endpoints\[0\] is 1; it must be text, in",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["ftp://h:1"]',
        "clusters.b.endpoints: 'ftp://h:1' is a URL",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["https://h:1", "h:2"]',
        "clusters.b.endpoints mix TLS and plaintext",
    ),
    (
        f"{LISTENING}{ROUTED}[clusters.b]",
        "clusters.b.endpoints is empty; write .*, or have dns or srv find them",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\nendpoints = ["h:1"]',
        "clusters.b.dns and endpoints are two ways to say the same; a cluster has one of them",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\nsrv = "_a._tcp.h"',
        "clusters.b.srv and dns are two ways to say the same",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["dns:///h:1"]',
        r'clusters\.b\.endpoints: dns:///h:1 means all addresses of a name: write dns = "h:1" instead',
    ),
    (f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h"', "clusters.b.dns: 'h' is no address; write HOST:PORT"),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nsrv = "_a._tcp.h:1"',
        "clusters.b.srv: '_a._tcp.h:1': SRV records say the port themselves",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\ndns_servers = ["dns.internal"]',
        "clusters.b.dns_servers: 'dns.internal' is no address",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\ndns_min_ttl = "10m"',
        r"clusters\.b\.dns_min_ttl is more than dns_max_ttl \(300 s\)",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\ndns_min_ttl = 0',
        "clusters.b.dns_min_ttl is 0.0; it must",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\ndns_family = "ipv5"',
        "clusters.b.dns_family is 'ipv5'; it must be",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\ndns_max_ttl = 5',
        "clusters.b.dns_max_ttl goes with dns or srv; endpoints are not looked up",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\ntls = {{ key = "x" }}',
        "clusters.b.tls.certificate is missing; certificate and key belong together",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\npool = {{ size = 0 }}',
        """clusters.b.pool.size of 0 would never let a call through: give max_waiting "none", too""",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\npool = {{ min_idle = 3, size = 2 }}',
        r"clusters\.b\.pool\.min_idle of 3 is more than are kept: size is 2; raise that, too",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nbalance = "fair"',
        r"""clusters\.b\.balance is 'fair'; it must be "round_robin" or "least_request" or .*""",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nbalance = {{ header = "x-user" }}',
        r"""clusters\.b\.balance\.header is for "ring_hash"; "round_robin" looks at no header""",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nbalance = {{ policy = "ring_hash", header = "X" }}',
        r"""clusters\.b\.balance\.header: 'X' is no name of a header; write it in lower case, like x-user""",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nslow_start = 0',
        r"clusters\.b\.slow_start is 0\.0; it must be between 0\.1 and 86400",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nslow_start = {{ min_weight = 1 }}',
        r"clusters\.b\.slow_start\.window is missing",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nweights = {{ "h:2" = 3 }}',
        r"clusters\.b\.weights are by endpoint, as it is written there, and 'h:2' is none of these",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nbalance = "pick_first"\nslow_start = "9s"',
        r'clusters\.b\.slow_start is for policies that go by weights; "pick_first" knows none',
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nbalance = "pick_first"\nweights = {{ "h:1" = 2 }}',
        r'clusters\.b\.weights is for policies that go by weights; "pick_first" knows none',
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\nweights = {{ "h:1" = 2 }}',
        r"clusters\.b\.weights go with endpoints; those of srv have their records', and those of dns none",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1", "h:1"]',
        r'clusters\.b\.endpoints have h:1 twice; for more calls there write weights = \{ "h:1" = 2 \}$',
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\ndns = "h:1"\ndns_servers = ["dns.example"]',
        r"clusters\.b\.dns_servers: 'dns\.example' is no address of a DNS server; write ADDRESS",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nweights = {{ "h:1" = 0 }}',
        r"clusters\.b\.weights are between 1 and 1000000, and 'h:1' has 0",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\npanic_threshold = 50',
        r"clusters\.b\.panic_threshold is 50\.0; it must be between 0 and 1",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nhttp2 = {{ upstream_keepalive = 5 }}',
        r"clusters\.b\.http2\.upstream_keepalive is 5\.0; it must be between 10 and inf",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nhttp2 = {{ downstream_keepalive = 50 }}',
        r"clusters\.b\.http2\.downstream_keepalive is for listeners alone; write it there, or into \[http2\]",
    ),
    (
        f'[[listeners]]\naddress = ":0"\nhttp2 = {{ upstream_keepalive = 50 }}\n{ROUTED}',
        r"listeners\[0\]\.http2\.upstream_keepalive is for clusters alone",
    ),
    (
        f'[[listeners]]\naddress = ":0"\nhttp2 = 7\n[http2]\nengine = "h2"\n{ROUTED}',
        r"listeners\[0\]\.http2 is a number; it must be a table",
    ),
    (
        f"{LISTENING}{ROUTED}[http2]\nstream_windows = 7",
        r"http2\.stream_windows is not known \(did you mean stream_window\?\); known here: [^\n]*$",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters."b.c"]\nendpoints = ["h:1"]\npool = {{ ms = 1.5 }}',
        r'clusters\."b\.c"\.pool\.ms is 1\.5; it must be a whole number',
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\npool = {{ max_waiting = 1.5 }}',
        'max_waiting is 1.5; it must be a whole number, or "none"',
    ),
    (
        f'{LISTENING}{ROUTED}[[routes]]\ncluster = "aa"',
        r"routes\[1\].cluster is 'aa', .* \(did you mean a\?\); known: a",
    ),
    (f"{LISTENING}{ROUTED}[[routes]]", r"routes\[1\].cluster is missing"),
    (
        f'{LISTENING}{ROUTED}split = [{{ cluster = "a", weight = 1 }}]',
        r"routes\[0\].split is there, and cluster, too: calls go to one, or are split",
    ),
    (
        f'{LISTENING}{ROUTED}[[routes]]\nsplit = [{{ cluster = "aa", weight = 1 }}]',
        r"routes\[1\].split\[0\].cluster is 'aa', .* \(did you mean a\?\); known: a",
    ),
    (
        f'{LISTENING}{ROUTED}[[routes]]\nsplit = [{{ cluster = "a", weight = 0 }}]',
        r"routes\[1\].split has but weights of 0",
    ),
    (
        f'{LISTENING}{ROUTED}[[routes]]\nsplit = [{{ cluster = "a", weight = -1 }}]',
        r"routes\[1\].split\[0\].weight is -1\.0; it must be between 0 and",
    ),
    (f'{LISTENING}{ROUTED}sticky = "x-user"', r"routes\[0\].sticky goes with split"),
    (f'{LISTENING}{ROUTED}sticky = "x user"', r"routes\[0\].sticky: not a metadata key: 'x user'"),
    (f"{LISTENING}{ROUTED}rate_limit = {{}}", r"routes\[0\].rate_limit.rate is missing"),
    (
        f'{LISTENING}{ROUTED}rate_limit = {{ rate = "100" }}',
        r"""routes\[0\].rate_limit.rate: '100' is no rate; write calls and a unit of time: "100/s", "30/m", "5/h\"""",
    ),
    (
        f'{LISTENING}{ROUTED}rate_limit = {{ rate = "1/s", burst = 0 }}',
        r"routes\[0\].rate_limit.burst is 0\.0; it must be 1 or more, or no call gets through",
    ),
    (
        f'{LISTENING}{ROUTED}rate_limit = {{ rate = "1/s", per = "user id" }}',
        r"""routes\[0\].rate_limit.per: write "route", "peer", or the key of a header""",
    ),
    (
        f"{LISTENING}{ROUTED}concurrency = {{}}",
        r"routes\[0\].concurrency.max is missing; write it, or adaptive = true",
    ),
    (
        f"{LISTENING}{ROUTED}concurrency = {{ max = 5, min = 1 }}",
        r"routes\[0\].concurrency.min goes with adaptive = true",
    ),
    (
        f"{LISTENING}{ROUTED}concurrency = {{ adaptive = true, max = 5, min = 6 }}",
        r"routes\[0\].concurrency.min of 6 is more than max, 5",
    ),
    (
        f'{LISTENING}{ROUTED}mirror = {{ cluster = "b" }}',
        r"routes\[0\].mirror.cluster is 'b', which is no cluster; known: a",
    ),
    (
        f'{LISTENING}{ROUTED}mirror = {{ cluster = "a", share = 10 }}',
        r"routes\[0\].mirror.share is 10\.0; it must be between 0 and 1",
    ),
    (
        f'{LISTENING}{ROUTED}[clusters.b]\nendpoints = ["h:1"]\nmax_requests = 0',
        r"clusters\.b\.max_requests is 0; it must be 1 or more",
    ),
    (
        f'{LISTENING}{ROUTED}match = "p.S"',
        r"routes\[0\].match: 'p\.S' is no pattern; write '/pkg\.Service/\*'",
    ),
    (f'{LISTENING}{ROUTED}metadata = {{ "X Y" = "1" }}', r"routes\[0\].metadata: "),
    (
        f'{LISTENING}{ROUTED}request_metadata = {{ set = {{ te = "x" }} }}',
        r"routes\[0\].request_metadata.set: ",
    ),
    (
        f'{LISTENING}{ROUTED}request_metadata = {{ remove = [":path"] }}',
        r"routes\[0\].request_metadata.remove: a request needs its :path",
    ),
    (
        f'{LISTENING}{ROUTED}max_timeout = "1s"\ndefault_timeout = "2s"',
        r"routes\[0\].default_timeout is longer than max_timeout",
    ),
    (
        f'{LISTENING}{ROUTED}response_metadata = {{ set = {{ ":status" = "200" }} }}',
        r"routes\[0\].response_metadata.set: ",
    ),
    (
        f'{LISTENING}{ROUTED}response_metadata = {{ set = {{ grpc-status = "0" }} }}',
        r"routes\[0\].response_metadata: 'grpc-status' cannot be set: it is not metadata",
    ),
    (
        f'{LISTENING}{ROUTED}response_metadata = {{ remove = ["content-type"] }}',
        r"routes\[0\].response_metadata: 'content-type' cannot be removed: the caller cannot read",
    ),
    (
        f'{LISTENING}{ROUTED}response_metadata = {{ remove = ["te"] }}',
        r"routes\[0\].response_metadata: 'te' concerns one connection only",
    ),
    (
        f'{LISTENING}identity_header = "grpc-status"\n{ROUTED}',
        r"listeners\[0\].identity_header: 'grpc-status' means something else already; write a name like",
    ),
    (
        f'{LISTENING}forwarded = "x-real-ip"\n{ROUTED}',
        r"listeners\[0\].forwarded is 'x-real-ip'; it must be \"x-forwarded-for\" or \"forwarded\" or \"none\"",
    ),
    (
        f'{LISTENING}forwarded = "forwarded"\ntrusted_proxies = ["10.0.0.1/8"]\n{ROUTED}',
        r"listeners\[0\].trusted_proxies: '10\.0\.0\.1/8' is an address in a network; write 10\.0\.0\.0/8 for that",
    ),
    (
        f'{LISTENING}trusted_proxies = ["10.0.0.0/8"]\n{ROUTED}',
        r"listeners\[0\].trusted_proxies go with forwarded = ",
    ),
    (f"{LISTENING}{ROUTED}max_timeout = 0", r"routes\[0\].max_timeout is 0\.0; it must be 0\.001 or more"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN)
def test_a_mistake_is_one_line_with_its_place_and_the_remedy(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    for command in (["check", str(file)], ["serve", "--config", str(file)]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        assert re.search(rf"^rawgrpc-proxy: .*{says}", err), err


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read(
            tmp_path,
            'grace = "x"\n[[listeners]]\naddress = 1\n[[routes]]\ncluster = "c"\nmatch = "m"\n[pool]\nsiz = 1',
        )
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "grace",
        "listeners[0].address",
        "routes[0].match:",
        "pool.siz",
        "routes[0].cluster",
    ]


def test_a_file_that_is_no_text_or_is_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        load(tmp_path / "binary")
    with pytest.raises(SettingsError, match="Is a directory"):
        load(tmp_path)


def in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str = f"{LISTENING}{ROUTED}"
) -> dict[str, tuple[str, str]]:
    """What `check` says: by table and key, the value and its source."""
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    assert main(["check", str(file)]) == 0
    settings, table = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("["):
            table = f"{line.strip('[]')}."
        elif line:
            setting, _, source = line.rpartition("  # ")
            key, _, value = setting.strip().partition(" = ")
            settings[table + key] = (value, source)
    return settings


def test_check_shows_what_one_word_stands_for_and_that_it_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[clusters.b]\nendpoints = ["h:1"]\nbalance = "least_request"\nslow_start = "30s"\n'
    shown = in_force(tmp_path, capsys, f"{LISTENING}{ROUTED}{text}")
    file = str(tmp_path / "proxy.toml")
    assert shown["clusters.b.balance.policy"] == ('"least_request"', file)
    assert shown["clusters.b.balance.choices"] == ("2", "default")
    assert shown["clusters.b.slow_start.window"] == ("30", file)
    assert shown["clusters.a.balance.policy"] == ('"round_robin"', "default")


def test_check_shows_what_is_in_force_and_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAWGRPC_PROXY_GRACE", "5")
    monkeypatch.setenv("RAWGRPC_PROXY_SIZE", "6")
    monkeypatch.setenv("RAWGRPC_PROXY_LISTEN", ":1")
    file = str(tmp_path / "proxy.toml")
    shown = in_force(tmp_path, capsys, f"grace = 7\n{LISTENING}{ROUTED}")

    assert shown["grace"] == ("7", file)
    assert shown["clusters.a.pool.size"] == ("6", "RAWGRPC_PROXY_SIZE")
    assert shown["clusters.a.pool.ms"] == ("100", "default")
    assert shown["listeners.address"] == ('"h:1"', file)
    assert shown["clusters.a.endpoints"] == ('["h:1"]', file)
    assert shown["http2.abuse_budget_per_s"] == ("330", "default")
    assert shown["http2.max_header_list"] == ("65536", "default")


def test_what_check_shows_is_a_file_that_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, again = tmp_path / "proxy.toml", tmp_path / "again.toml"
    file.write_text(
        GOOD.replace('tls = { certificate = "server.pem"', 'other = { certificate = "server.pem"')
        .replace("other = {", "# {")
        .replace('tls = { ca = "ca.pem"', '# { ca = "ca.pem"')
    )
    assert main(["check", str(file)]) == 0
    again.write_text(capsys.readouterr().out)
    assert settings_of([("", load(again))]).serve == settings_of([("", load(file))]).serve


def layers(file: dict[str, Any], options: dict[str, Any]) -> Settings:
    return settings_of([("file", file), ({"pool.size": "--size", "pool": "--size"}, options)])


def test_an_option_wins_over_what_a_cluster_says() -> None:
    file = {
        "listeners": [{"address": ":0"}],
        "clusters": {"a": {"endpoints": ["h:1"], "pool": {"size": 3, "ms": 4}}},
        "routes": [{"cluster": "a"}],
    }
    settings = layers(file, {"pool": {"size": 9}})
    assert settings.serve.clusters["a"].pool == PoolSettings(size=9, ms=4)
    assert settings.name_of("clusters.a.pool.size") == "argument --size"
    assert settings.source_of("clusters.a.pool.ms") == "file"


HTTP2_OF_TWO = {
    "listeners": [{"address": ":0"}, {"address": ":1", "http2": {"downstream_keepalive": "30s"}}],
    "clusters": {
        "a": {"endpoints": ["h:1"], "http2": {"upstream_keepalive": "5m"}},
        "b.c": {"endpoints": ["h:2"]},
    },
    "routes": [{"cluster": "a"}],
    "http2": {"keepalive_timeout": 7, "upstream_keepalive": 40, "stream_window": "2MiB"},
}


def test_listeners_and_clusters_have_the_http2_of_the_top_level_where_they_say_nothing() -> None:
    settings = settings_of([("file", HTTP2_OF_TWO)])
    serve = settings.serve
    common = Http2Settings(keepalive_timeout_s=7, upstream_keepalive_s=40, stream_window_bytes=2**21)
    assert serve.http2 == serve.listeners[0].http2 == serve.clusters["b.c"].http2 == common
    assert serve.listeners[1].http2 == attrs.evolve(common, downstream_keepalive_s=30)
    assert serve.clusters["a"].http2 == attrs.evolve(common, upstream_keepalive_s=300)
    assert settings.source_of("listeners[1].http2.stream_window") == "file"
    assert settings.source_of("listeners[1].http2.max_frame") == "default"


def test_an_option_wins_over_the_http2_of_clusters_and_listeners() -> None:
    option = "--upstream-keepalive"
    sources = {"http2": option, "http2.upstream_keepalive": option}
    settings = settings_of([("file", HTTP2_OF_TWO), (sources, {"http2": {"upstream_keepalive": 60}})])
    assert {each.http2.upstream_keepalive_s for each in settings.serve.clusters.values()} == {60}
    assert settings.name_of("clusters.a.http2.upstream_keepalive") == f"argument {option}"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("SIZE", "x", "RAWGRPC_PROXY_SIZE: 'x' is no whole number of 0 or more"),
        ("ENGINE", "h3", "RAWGRPC_PROXY_ENGINE: 'h3' must be one of relay, h2"),
        ("UPSTREAM_TLS", "yes", "RAWGRPC_PROXY_UPSTREAM_TLS: 'yes' is neither 1 nor 0"),
        ("ROUTE", "/p.S/*=h:1 /p.S", "RAWGRPC_PROXY_ROUTE: '/p.S' is no route"),
        ("TLS_KEY", "x", "RAWGRPC_PROXY_TLS_KEY goes with RAWGRPC_PROXY_LISTEN"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    name: str, text: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RAWGRPC_PROXY_{name}", text)
    assert main(["serve", "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rawgrpc-proxy: {says}")


def test_the_environment_can_say_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAWGRPC_PROXY_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("RAWGRPC_PROXY_ROUTE", "/p.A/*=h:1 /p.B/*=h:2")
    monkeypatch.setenv("RAWGRPC_PROXY_UPSTREAM", "h:3")
    monkeypatch.setenv("RAWGRPC_PROXY_MAX_WAITING", "none")
    monkeypatch.setenv("RAWGRPC_PROXY_WORKERS", "auto")
    shown = in_force(tmp_path, capsys, "")
    assert shown["workers"] == ('"auto"', "RAWGRPC_PROXY_WORKERS")
    assert shown['clusters."h:1".pool.max_waiting'] == ('"none"', "RAWGRPC_PROXY_MAX_WAITING")
    assert shown['clusters."h:2".endpoints'] == ('["h:2"]', "RAWGRPC_PROXY_ROUTE")
    assert shown["routes.cluster"] == ('"h:3"', "RAWGRPC_PROXY_ROUTE")


def test_an_upstream_with_the_scheme_that_grpc_has_for_names_is_looked_up_with_all_its_addresses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other name is left to each dial."""
    monkeypatch.setenv("RAWGRPC_PROXY_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("RAWGRPC_PROXY_ROUTE", "/p.A/*=h:1")
    monkeypatch.setenv("RAWGRPC_PROXY_UPSTREAM", "dns:///h:2")
    shown = in_force(tmp_path, capsys, "")
    assert shown['clusters."dns:///h:2".dns'] == ('"dns:///h:2"', "RAWGRPC_PROXY_UPSTREAM")
    assert shown['clusters."dns:///h:2".endpoints'] == ("[]", "default")
    assert shown['clusters."h:1".endpoints'] == ('["h:1"]', "RAWGRPC_PROXY_ROUTE")


def test_names_that_dns_knows_speak_tls_as_endpoints_do(tmp_path: Path) -> None:
    def cluster(text: str) -> ClusterSettings:
        return read(tmp_path, f'{LISTENING}[[routes]]\ncluster = "a"\n[clusters.a]\n{text}').serve.clusters[
            "a"
        ]

    assert cluster('dns = "https://orders.internal:443"').speaks_tls
    assert cluster('srv = "_grpc._tcp.orders.internal"\ntls = {}').speaks_tls
    assert not cluster('dns = "orders.internal:443"').speaks_tls
    source = cluster('dns = "https://orders.internal:443"\ndns_min_ttl = "5s"').source(PoolObserver())
    assert isinstance(source, DnsSource)
    assert source.name == "orders.internal:443"


CLUSTER = """
[[listeners]]
address = "127.0.0.1:0"
[[routes]]
cluster = "orders"
[clusters.orders]
endpoints = ["a:1"]
"""


def test_outlier_detection_is_off_and_an_empty_table_has_the_numbers_of_a50(tmp_path: Path) -> None:
    assert read(tmp_path, CLUSTER).serve.clusters["orders"].outlier is None
    assert read(tmp_path, f"{CLUSTER}outlier = {{}}").serve.clusters["orders"].outlier == OutlierDetection()
    text = 'outlier = { interval = "5s", success_rate = "none", failure_percentage = { minimum_hosts = 3 } }'
    assert read(tmp_path, f"{CLUSTER}{text}").serve.clusters["orders"].outlier == OutlierDetection(
        interval_s=5.0, success_rate=None, failure_percentage=FailurePercentage(minimum_hosts=3)
    )


def test_health_checks_are_off_and_an_empty_table_turns_them_on(tmp_path: Path) -> None:
    assert read(tmp_path, CLUSTER).serve.clusters["orders"].health is None
    assert read(tmp_path, f"{CLUSTER}health = {{}}").serve.clusters["orders"].health == HealthCheck()
    text = 'health = { kind = "watch", service = "shop.Orders", interval = "2s", timeout = "500ms" }'
    assert read(tmp_path, f"{CLUSTER}{text}").serve.clusters["orders"].health == HealthCheck(
        kind="watch", service="shop.Orders", interval_s=2.0, timeout_s=0.5
    )
    for text, problem in (
        ('kind = "http"', "clusters.orders.health.kind"),
        ('kind = "tcp", service = "a.B"', "clusters.orders.health.service is for the kinds"),
        ("unhealthy_threshold = 0", "clusters.orders.health.unhealthy_threshold is 0; it must be between 1"),
    ):
        with pytest.raises(SettingsError, match=problem):
            read(tmp_path, f"{CLUSTER}health = {{ {text} }}")


def test_what_outlier_detection_cannot_be_is_said_with_its_place(tmp_path: Path) -> None:
    text = (
        'outlier = { max_ejection_percent = 101, failures = ["OK"], success_rate = { minimum_hosts = 3 }, '
        "interval = 0 }"
    )
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, f"{CLUSTER}{text}")
    where = "clusters.orders.outlier"
    problems = "\n".join(caught.value.problems)
    assert f"{where}.max_ejection_percent is 101; it must be between 0 and 100" in problems
    assert f"{where}.failures: has 'OK'; what may be a failure: UNKNOWN" in problems
    assert f"{where}.success_rate.minimum_hosts of 3 would never find an outlier" in problems
    assert f"{where}.interval is 0.0; it must be 0.1 or more" in problems
