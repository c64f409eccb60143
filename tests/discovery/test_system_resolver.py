"""The system's resolver: in threads that nobody has to wait for."""

import socket
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from rawgrpc_proxy.discovery.dns_source import DnsSource
from rawgrpc_proxy.discovery.resolver import Addresses, LookUpFailed
from rawgrpc_proxy.discovery.system_resolver import SystemResolver
from tests.discovery.told import watched

BOUND_S = 20


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(BOUND_S):
            await test()

    trio.run(bounded)


def answering(*sockaddrs: tuple[Any, ...]) -> Callable[..., Any]:
    return lambda *_args, **_options: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in sockaddrs
    ]


def test_localhost_is_known_to_every_system() -> None:
    async def test() -> None:
        answer = await SystemResolver().addresses("localhost", "ipv4")
        assert answer == Addresses(found=["127.0.0.1"], ttl_s=None)
        async with watched(DnsSource("localhost:80", family="ipv4", resolver=SystemResolver())) as told:
            await told.until("127.0.0.1:80")

    run(test)


@pytest.mark.parametrize(
    ("family", "asked"), [("all", socket.AF_UNSPEC), ("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)]
)
def test_it_is_asked_for_the_family_that_is_wanted(family: Any, asked: int) -> None:
    async def test() -> None:
        heard: list[Any] = []

        def getaddrinfo(host: str, port: None, **options: Any) -> list[Any]:
            heard.append((host, options["family"], options["type"]))
            return []

        await SystemResolver(getaddrinfo).addresses("orders.internal", family)
        assert heard == [("orders.internal", asked, socket.SOCK_STREAM)]

    run(test)


def test_an_address_that_each_interface_has_says_which_one_is_meant() -> None:
    async def test() -> None:
        resolver = SystemResolver(answering(("fe80::1", 0, 0, 3), ("2001:db8::1", 0, 0, 0), ("10.0.0.1", 0)))
        answer = await resolver.addresses("orders.internal", "all")
        assert answer.found == ["fe80::1%3", "2001:db8::1", "10.0.0.1"]

    run(test)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError(24, "…"), "Too many open files"),
        (UnicodeError("label too long"), "no host can have this name"),
    ],
)
def test_what_it_cannot_answer_is_told_in_words(error: Exception, problem: str) -> None:
    def getaddrinfo(*_args: Any, **_options: Any) -> Any:
        raise error

    async def test() -> None:
        with pytest.raises(LookUpFailed, match=problem):
            await SystemResolver(getaddrinfo).addresses("orders.internal", "all")

    run(test)


def test_look_ups_that_hang_hold_up_no_end_and_their_threads_are_few() -> None:
    """All that there may be hang; whoever comes then waits, and can be cancelled as well."""
    let_go = threading.Event()
    threads: set[int] = set()
    all_hang = threading.Event()

    def getaddrinfo(*_args: Any, **_options: Any) -> Any:
        threads.add(threading.get_ident())
        if len(threads) == 8:
            all_hang.set()
        let_go.wait()
        return []

    async def test() -> None:
        resolver = SystemResolver(getaddrinfo)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(partial(resolver.addresses, "orders.internal", "all"))
            await trio.to_thread.run_sync(all_hang.wait)
            nursery.cancel_scope.cancel()
        assert len(threads) == 8
        with trio.move_on_after(0.05) as scope:
            await resolver.addresses("orders.internal", "all")
        assert scope.cancelled_caught
        assert len(threads) == 8
        let_go.set()
        assert (await resolver.addresses("orders.internal", "all")).found == []

    try:
        run(test)
    finally:
        let_go.set()
