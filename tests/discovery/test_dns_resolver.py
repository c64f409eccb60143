"""Asking DNS itself, of a server on the loopback interface that does as it is told."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
import trio

from rawgrpc_proxy.discovery.dns_resolver import DnsResolver
from rawgrpc_proxy.discovery.dns_source import DnsSource, default_resolver
from rawgrpc_proxy.discovery.resolver import Addresses, LookUpFailed
from rawgrpc_proxy.errors import ConfigError
from tests.discovery.dns_server import DnsServer, dns_server
from tests.discovery.told import watched

BOUND_S = 30


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., None]:
    """Runs a test with a server, and a resolver that asks it; `conf` is the rest of resolv.conf."""

    def run(
        test: Callable[[DnsServer, DnsResolver], Awaitable[None]], *, conf: str = "", hosts: str = ""
    ) -> None:
        async def bounded() -> None:
            with trio.fail_after(BOUND_S):
                async with dns_server() as server:
                    (tmp_path / "resolv.conf").write_text(f"nameserver 192.0.2.1\n{conf}")
                    (tmp_path / "hosts").write_text(hosts)
                    files = {
                        "resolv_conf": str(tmp_path / "resolv.conf"),
                        "hosts_file": str(tmp_path / "hosts"),
                    }
                    await test(server, DnsResolver([server.address], **files))

        trio.run(bounded)

    return run


def test_all_addresses_of_both_families_are_found_with_their_ttl(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "A", "10.0.0.1", "10.0.0.2")
        server.set("orders.internal", "AAAA", "::1")
        answer = await resolver.addresses("Orders.internal", "all")
        assert sorted(answer.found) == ["10.0.0.1", "10.0.0.2", "::1"]
        assert answer.ttl_s == 60
        assert answer.problem is None
        assert (await resolver.addresses("orders.internal", "ipv6")).found == ["::1"]
        assert sorted((await resolver.addresses("orders.internal", "ipv4")).found) == ["10.0.0.1", "10.0.0.2"]

    ask(test)


def test_how_long_a_name_has_no_address_of_one_family_says_nothing_of_the_other(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "A", "10.0.0.1")
        answer = await resolver.addresses("orders.internal", "all")
        assert answer == Addresses(found=["10.0.0.1"], ttl_s=60)

    ask(test)


def test_an_alias_is_followed_and_one_that_leads_to_itself_is_a_failure(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "CNAME", "blue.internal.")
        server.set("blue.internal", "A", "10.0.0.1")
        assert (await resolver.addresses("orders.internal", "all")).found == ["10.0.0.1"]
        server.set("blue.internal", "CNAME", "orders.internal.")
        del server.records["blue.internal.", "A"]
        with pytest.raises(LookUpFailed):
            await resolver.addresses("orders.internal", "all")

    ask(test)


def test_an_answer_that_is_too_long_for_udp_is_asked_for_by_tcp(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        many = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(3000)]
        server.set("orders.internal", "A", *many)
        server.truncates = True
        answer = await resolver.addresses("orders.internal", "all")
        assert set(answer.found) == set(many)
        assert server.asked["tcp"]

    ask(test)


def test_a_name_that_is_not_there_a_server_that_fails_and_one_that_refuses_are_failures(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        with pytest.raises(LookUpFailed, match="there is no such name"):
            await resolver.addresses("orders.internal", "all")
        server.set("orders.internal", "A", "10.0.0.1")
        for rcode in (dns.rcode.SERVFAIL, dns.rcode.REFUSED):
            server.rcode = rcode
            with pytest.raises(LookUpFailed, match=dns.rcode.to_text(rcode)):
                await resolver.addresses("orders.internal", "all")

    ask(test)


def test_a_name_without_addresses_is_none_that_is_not_there(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "TXT", '"hello"')
        assert (await resolver.addresses("orders.internal", "all")).found == []

    ask(test)


def test_a_server_that_never_says_anything_of_ipv6_does_not_keep_ipv4_from_being_used(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "A", "10.0.0.1")
        server.silent_for = {"AAAA"}
        began = trio.current_time()
        answer = await resolver.addresses("orders.internal", "all")
        assert trio.current_time() - began < 4
        assert (answer.found, answer.unanswered) == (["10.0.0.1"], "ipv6")
        assert answer.problem == "nobody says whether there are ipv6 addresses: no answer"

    ask(test)


@pytest.mark.parametrize("other", ["AAAA", "A"])
def test_where_one_family_has_no_addresses_and_the_other_is_not_known_nothing_is_known(
    ask: Any, other: str
) -> None:
    """So what was known before stays, and is asked for again soon."""

    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "TXT", '"there"')
        plain = server.answer

        def answer(query: Any) -> Any:
            response = plain(query)
            if response is not None and dns.rdatatype.to_text(query.question[0].rdtype) == other:
                response.set_rcode(dns.rcode.SERVFAIL)
            return response

        server.answer = answer  # type: ignore[method-assign]
        with pytest.raises(LookUpFailed, match="SERVFAIL"):
            await resolver.addresses("orders.internal", "all")

    ask(test)


def test_a_server_that_knows_no_name_by_ipv6_has_no_ipv6_addresses(ask: Any) -> None:
    """There are those that say NXDOMAIN to a question of a type which they do not know."""

    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "A", "10.0.0.1")
        plain = server.answer

        def answer(query: Any) -> Any:
            response = plain(query)
            if response is not None and query.question[0].rdtype == dns.rdatatype.AAAA:
                response.set_rcode(dns.rcode.NXDOMAIN)
            return response

        server.answer = answer  # type: ignore[method-assign]
        answered = await resolver.addresses("orders.internal", "all")
        assert (answered.found, answered.problem) == (["10.0.0.1"], None)

    ask(test)


def test_names_are_completed_as_in_kubernetes(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.shop.svc.cluster.local", "A", "10.0.0.1")
        server.set("orders.example.com", "A", "10.0.0.2")
        for name in ("orders", "orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local."):
            assert (await resolver.addresses(name, "all")).found == ["10.0.0.1"], name
        assert (await resolver.addresses("orders.example.com", "all")).found == ["10.0.0.2"]
        with pytest.raises(LookUpFailed):
            await resolver.addresses("orders.", "all")

    ask(test, conf="search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")


def test_localhost_and_what_the_hosts_file_has_is_asked_of_nobody(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "A", "10.0.0.9")
        assert (await resolver.addresses("orders.internal.", "all")).found == ["10.0.0.1", "::1"]
        assert (await resolver.addresses("Orders.internal", "ipv4")).found == ["10.0.0.1"]
        assert (await resolver.addresses("localhost", "all")).found == ["127.0.0.1", "::1"]
        assert (await resolver.addresses("orders.localhost", "ipv6")).found == ["::1"]
        assert (await resolver.addresses("orders.internal", "all")).ttl_s is None
        assert not server.asked

    ask(test, hosts="10.0.0.1 orders.internal\n::1 orders.internal\n")


def test_the_servers_of_resolv_conf_are_asked_and_the_file_is_read_again(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "resolv.conf"
        resolver = DnsResolver(resolv_conf=str(path), hosts_file=str(tmp_path / "hosts"))
        with pytest.raises(LookUpFailed, match="cannot open"):
            await resolver.addresses("orders.internal", "all")
        path.write_text("search example.com\n")
        with pytest.raises(LookUpFailed, match="no nameservers"):
            await resolver.addresses("orders.internal", "all")

    trio.run(test)


def test_a_name_that_changes_is_followed_and_a_name_server_that_dies_takes_nothing_away(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.set("orders.internal", "A", "127.0.0.1")
        server.ttl_s = 0
        source = DnsSource("orders.internal:80", resolver=resolver, min_ttl_s=0.01)
        async with watched(source) as told:
            await told.until("127.0.0.1:80")
            server.set("orders.internal", "A", "127.0.0.2", "127.0.0.1", "127.0.0.3")
            await told.until("127.0.0.1:80", "127.0.0.2:80", "127.0.0.3:80")
            sets = len(told.sets)
            server.rcode = dns.rcode.SERVFAIL
            while source.problem is None:
                await server.until_asked("A", server.asked["A"] + 1)
            assert "SERVFAIL" in source.problem
            assert len(told.sets) == sets
            server.rcode = None
            server.set("orders.internal", "A", "127.0.0.3")
            await told.until("127.0.0.3:80")
            assert source.problem is None

    ask(test)


def test_a_look_up_that_hangs_holds_up_no_end(ask: Any) -> None:
    async def test(server: DnsServer, resolver: DnsResolver) -> None:
        server.silent_for = {"A", "AAAA"}
        async with watched(DnsSource("orders.internal:80", resolver=resolver)):
            await server.until_asked("A", 1)
            began = trio.current_time()
        assert trio.current_time() - began < 1

    ask(test)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "dns.internal", "dns.internal:53", "", "unix:/run/dns"])
def test_servers_to_ask_are_numbers(text: str) -> None:
    with pytest.raises(ConfigError):
        default_resolver([text])


def test_servers_to_ask_may_have_ports() -> None:
    for text in ("192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:5353"):
        assert isinstance(default_resolver([text]), DnsResolver)
