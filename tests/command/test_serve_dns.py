"""`serve` with clusters that DNS finds, as a real process that asks a DNS server of the test's."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.rcode
import pytest
import trio

from rawgrpc_proxy import Pool
from tests.command.test_cli import answer_to, backend
from tests.discovery.dns_server import DnsServer, dns_server
from tests.processes import Program, program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address")

HOUSE = """
log.format = "json"
[[listeners]]
address = "127.0.0.1:0"
[clusters.orders]
{found_by}
dns_servers = ["{servers}"]
dns_min_ttl = "50ms"
[[routes]]
cluster = "orders"
"""
PATH = "/shop.Orders/Get"


@asynccontextmanager
async def serving(folder: Path, found_by: str) -> AsyncIterator[tuple[Program, DnsServer, int]]:
    """A proxy, the DNS server that it asks, and the port on which 127.0.0.1 and 127.0.0.2 answer with their names."""
    file = folder / "proxy.toml"
    async with trio.open_nursery() as nursery, dns_server() as server:
        server.ttl_s = 0
        one = await nursery.start(backend("one").serve, "127.0.0.1:0")
        port = int(one.rpartition(":")[2])
        await nursery.start(backend("two").serve, f"127.0.0.2:{port}")
        server.set("orders.internal", "A", "127.0.0.1")
        server.set("pod-2.internal", "A", "127.0.0.2")
        server.set("_grpc._tcp.orders.internal", "SRV", f"0 1 {port} pod-2.internal.")
        file.write_text(HOUSE.format(found_by=found_by.format(port=port), servers=server.address))
        async with program("serve", "--config", str(file)) as proxy:
            yield proxy, server, port
        nursery.cancel_scope.cancel()


def test_calls_follow_a_name_and_the_log_tells_of_changes_and_failures(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path, 'dns = "orders.internal:{port}"') as (proxy, server, port),
            Pool() as client,
        ):
            address = await proxy.address()
            assert await answer_to(client, address, PATH) == b"one"
            server.set("orders.internal", "A", "127.0.0.2")
            line = await proxy.line(rf'.*"addresses_changed".*127\.0\.0\.2:{port}.*')
            assert json.loads(line[0])["addresses"] == [f"127.0.0.2:{port}"]
            assert await answer_to(client, address, PATH) == b"two"
            server.rcode = dns.rcode.SERVFAIL
            line = await proxy.line(r'.*"look_up_failed".*')
            told = json.loads(line[0])
            assert told["name"] == f"orders.internal:{port}"
            assert "SERVFAIL" in told["reason"]
            assert await answer_to(client, address, PATH) == b"two"

    trio.run(main)


def test_calls_go_where_srv_records_say(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, 'srv = "_grpc._tcp.orders.internal"') as (proxy, _, _), Pool() as client:
            assert await answer_to(client, await proxy.address(), PATH) == b"two"

    trio.run(main)
