"""`SrvSource`: the hosts and ports of a service."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
import trio

from rawgrpc_proxy.discovery.dns_resolver import DnsResolver
from rawgrpc_proxy.discovery.dns_source import DnsSource, SrvSource, default_resolver
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.resolver import Service, Services
from rawgrpc_proxy.discovery.system_resolver import SystemResolver
from rawgrpc_proxy.errors import ConfigError
from tests.discovery.dns_server import DnsServer, dns_server
from tests.discovery.told import Script, watched

SERVICE = "_grpc._tcp.orders.internal"


def run(test: Callable[[DnsServer, SrvSource], Awaitable[None]], **options: Any) -> None:
    async def bounded() -> None:
        with trio.fail_after(30):
            async with dns_server() as server:
                server.ttl_s = 0
                for number in range(1, 6):
                    server.set(f"pod-{number}.internal", "A", f"127.0.0.{number}")
                resolver = DnsResolver([server.address], hosts_file="/nonexistent")
                await test(server, SrvSource(SERVICE, resolver=resolver, min_ttl_s=0.01, **options))

    trio.run(bounded)


def test_a_service_is_its_hosts_with_their_ports_priorities_and_weights() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", "1 20 50052 pod-2.internal.", "0 10 50051 POD-1.internal.")
        server.set("pod-2.internal", "AAAA", "::1")
        async with watched(source) as told:
            await told.until("127.0.0.1:50051", "127.0.0.2:50052", "[::1]:50052")
        assert told.sets == [
            [
                EndpointAddress("127.0.0.1:50051", 10, 0, "orders.internal"),
                EndpointAddress("127.0.0.2:50052", 20, 1, "orders.internal"),
                EndpointAddress("[::1]:50052", 20, 1, "orders.internal"),
            ]
        ]

    run(test)


def test_many_hosts_on_many_ports_are_not_all_joined() -> None:
    resolver = Script(*(f"127.0.0.{number}" for number in range(1, 201)))
    resolver.services_answer = Services(
        found=[Service(host="a.internal.", port=port, priority=0, weight=1) for port in range(1, 3001)]
    )
    source = SrvSource(SERVICE, resolver=resolver, max_addresses=100)

    async def main() -> None:
        brought = await source.look_up()
        assert 100 < len(brought.found) <= 500
        assert {each.address.rpartition(":")[2] for each in brought.found} <= set("123456")
        assert "no others are looked at" in brought.notes[-1]

    trio.run(main)


def test_certificates_are_checked_against_the_domain_asked_for_and_not_against_what_an_answer_names() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", "0 1 443 pod-1.internal.")
        async with watched(source) as told:
            await told.until("127.0.0.1:443")
        assert told.sets[0][0].server_name == "orders.internal"

    run(test)


def test_weights_of_zero_are_a_small_chance_beside_others_and_equal_among_themselves() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", "0 0 1 pod-1.internal.", "0 0 1 pod-2.internal.")
        async with watched(source) as told:
            await told.until("127.0.0.1:1", "127.0.0.2:1")
            assert [each.weight for each in told.sets[-1]] == [1, 1]
            server.set(SERVICE, "SRV", "0 0 1 pod-1.internal.", "0 5 1 pod-2.internal.")
            while [each.weight for each in told.sets[-1]] != [1, 500]:
                await server.until_asked("SRV", server.asked["SRV"] + 1)

    run(test)


def test_hosts_that_come_and_go_are_followed() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        def pods(*numbers: int) -> None:
            server.set(SERVICE, "SRV", *(f"0 1 1 pod-{number}.internal." for number in numbers))

        async with watched(source) as told:
            for numbers in ((1, 2), (1, 2, 3), (3,)):
                pods(*numbers)
                await told.until(*(f"127.0.0.{number}:1" for number in numbers))

    run(test)


def test_a_host_that_cannot_be_looked_up_keeps_its_addresses_and_is_named() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", "0 1 1 pod-1.internal.", "0 1 1 pod-2.internal.")
        async with watched(source) as told:
            await told.until("127.0.0.1:1", "127.0.0.2:1")
            del server.records["pod-2.internal.", "A"]
            server.set(SERVICE, "SRV", *(f"0 1 1 pod-{number}.internal." for number in (1, 2, 3)))
            await told.until("127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1")
            assert source.note == "pod-2.internal.: there is no such name (NXDOMAIN)"
            server.set(SERVICE, "SRV", *(f"0 1 1 pod-{number}.internal." for number in (1, 3)))
            await told.until("127.0.0.1:1", "127.0.0.3:1")
            assert source.note is None

    run(test)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "the service is not offered there"),
        (["0 0 0 ."], "the service is not offered there"),
        (["0 1 0 pod-1.internal."], "the service is not offered there"),
        (["0 1 1 nobody.internal."], "it has no addresses; nobody.internal.: there is no such name"),
    ],
)
def test_a_service_that_nobody_offers_is_a_failed_look_up(records: list[str], problem: str) -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", *records)
        async with watched(source) as told:
            await server.until_asked("SRV", 2)
            assert source.problem is not None
            assert source.problem.startswith(problem)
            assert not told.sets

    run(test)


def test_a_service_that_cannot_be_looked_up_keeps_its_addresses() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", "0 1 1 pod-1.internal.")
        async with watched(source) as told:
            await told.until("127.0.0.1:1")
            server.rcode = dns.rcode.SERVFAIL
            while source.problem is None:
                await server.until_asked("SRV", server.asked["SRV"] + 1)
            assert "SERVFAIL" in source.problem
            assert len(told.sets) == 1

    run(test)


def test_a_service_with_more_hosts_than_may_be_gets_some_and_a_note() -> None:
    async def test(server: DnsServer, source: SrvSource) -> None:
        server.set(SERVICE, "SRV", *(f"0 1 1 pod-{number}.internal." for number in range(1, 6)))
        async with watched(source) as told:
            await told.until("127.0.0.1:1", "127.0.0.2:1")
            assert source.note == "it has 5 hosts, of which the first 2 are used (max_addresses)"

    run(test, max_addresses=2)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("_grpc._tcp.orders.internal:50051", "SRV records say the port themselves"),
        ("_grpc._tcp", "names no domain"),
        ("_grpc._tcp." + "x" * 64, "no host can have this name"),
        ("", "1 to 253"),
    ],
)
def test_what_is_no_name_of_a_service_is_told_when_the_source_is_made(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SrvSource(name, resolver=Script())


def test_without_dnspython_there_are_names_but_no_services_and_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "rawgrpc_proxy.discovery.dns_resolver", None)
    assert isinstance(default_resolver(), SystemResolver)
    DnsSource("orders.internal:50051")
    with pytest.raises(ConfigError, match=r"takes dnspython: install rawgrpc-proxy\[dns\]"):
        SrvSource(SERVICE)
    with pytest.raises(ConfigError, match=r"takes dnspython: install rawgrpc-proxy\[dns\]"):
        default_resolver(["192.0.2.1"])
