"""`serve` with what routes and clusters may do about traffic, as a process; and the page about it."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy import Client, Pool, RpcError, Status
from rawgrpc_proxy.command.route_assembly import share_of
from rawgrpc_proxy.command.settings.file import settings_of
from tests.command.test_cli import answer_to, backends
from tests.command.test_serve_admin import Admin
from tests.processes import program

PAGE = Path(__file__).parents[2] / "docs" / "traffic.md"
HOUSE = """
workers = 2
log = {{ format = "json", fields = ["method", "route", "cluster", "status", "flags", "cause"] }}
[admin]
address = "127.0.0.1:0"
[[listeners]]
address = "127.0.0.1:0"
[clusters.a]
endpoints = ["{a}"]
[clusters.b]
endpoints = ["{b}"]
max_requests = 100
max_pending = 10
max_connections = 2
[clusters.shadow]
endpoints = ["{c}"]
[[routes]]
match = "/p.Split/*"
split = [{{ cluster = "a", weight = 1 }}, {{ cluster = "b", weight = 1 }}]
sticky = "x-user"
[[routes]]
match = "/p.Limited/*"
cluster = "a"
rate_limit = {{ rate = "2/h", burst = 2 }}
[[routes]]
match = "/p.Mirrored/*"
cluster = "a"
mirror = {{ cluster = "shadow" }}
concurrency = {{ adaptive = true }}
"""


def test_calls_are_split_limited_and_copied_and_the_metrics_tell_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with backends("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0") as [a, b, c]:
            file = tmp_path / "proxy.toml"
            file.write_text(HOUSE.format(a=a, b=b, c=c))
            async with program("serve", "--config", str(file)) as proxy, Pool(size=1) as pool:
                address = await proxy.address()
                admin = Admin((await proxy.line(r"^admin: http://(.*)/$", "stdout"))[1])
                await _calls(pool, address)
                await proxy.line(r'"route": ?"/p\.Split/\*", ?"cluster": ?"b", ?"status": ?"OK"')
                await proxy.line(
                    r'"route": ?"/p\.Limited/\*", ?"cluster": ?"a", .*"RL", ?"cause": ?"rate_limit"'
                )
                told = await admin.until_told(
                    lambda told: told.of("rawgrpc_proxy_mirror_statuses_total", outcome="same") == 1
                )
                limited = {"route": "/p.Limited/*", "limit": "rate_limit"}
                assert told.of("rawgrpc_proxy_route_calls_refused_total", **limited) == 2
                assert told.of("rawgrpc_proxy_mirrored_calls_total", route="/p.Mirrored/*") == 1
                assert told.of("rawgrpc_proxy_route_concurrency_limit", route="/p.Mirrored/*") > 2
                for limit in ("max_requests", "max_pending"):
                    assert told.of("rawgrpc_proxy_cluster_calls_refused_total", cluster="b", limit=limit) == 0

    trio.run(main)


async def _calls(pool: Pool, address: str) -> None:
    counts = Counter[bytes]()
    async with Client(pool.target(address)) as caller:
        for number in range(20):
            user = {"x-user": f"user-{number}"}
            answers = {await caller.unary_unary("/p.Split/Get", b"?", metadata=user) for _ in range(2)}
            [answer] = answers
            counts[answer] += 1
        assert set(counts) == {b"a", b"b"}
        # All calls of a connection are on one worker, whose share of the burst is one call.
        assert await caller.unary_unary("/p.Limited/Get", b"?") == b"a"
        for _ in range(2):
            with pytest.raises(RpcError) as refused:
                await caller.unary_unary("/p.Limited/Get", b"?")
            assert refused.value.status is Status.RESOURCE_EXHAUSTED
    assert await answer_to(pool, address, "/p.Mirrored/Get") == b"a"


def test_workers_share_figures_and_each_has_at_least_one() -> None:
    assert [share_of(100, workers) for workers in (1, 3, 200)] == [100, 34, 1]


def test_every_example_of_the_page_is_one() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 5
    for example in examples:
        tree = tomllib.loads(example)
        tree["listeners"] = [{"address": ":0"}]
        clusters = tree.setdefault("clusters", {})
        for name in re.findall(r'cluster = "(\w+)"', example):
            clusters.setdefault(name, {"endpoints": ["h:1"]})
        tree.setdefault("routes", [{"cluster": next(iter(clusters))}])
        assert settings_of([("traffic.md", tree)]).serve.routes
