"""`DnsSource`: when it looks up, what it tells, and that nothing a resolver does takes away what works."""

import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.discovery.dns_source import DnsSource
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.resolver import Addresses, LookUpFailed
from rawgrpc_proxy.errors import ConfigError
from tests.discovery.told import Heard, Script, watched

NAME = "orders.internal:50051"


def run(test: Callable[[], Awaitable[None]]) -> None:
    """In a time of its own, which passes when all wait."""

    async def bounded() -> None:
        with trio.fail_after(1e6):
            await test()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def source_of(script: Script, **options: Any) -> DnsSource:
    return DnsSource(NAME, resolver=script, rng=random.Random(1), **options)


def gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]


# ------------------------------------------------------------------------------------------------- what is told


def test_all_addresses_of_a_name_are_told_once_each_with_the_name_for_tls() -> None:
    async def test() -> None:
        script = Script("10.0.0.2", "10.0.0.1", "10.0.0.2", "::1")
        async with watched(source_of(script)) as told:
            await told.until("10.0.0.1:50051", "10.0.0.2:50051", "[::1]:50051")
        assert told.sets[0][0] == EndpointAddress("10.0.0.1:50051", server_name="orders.internal")

    run(test)


def test_a_set_is_told_again_only_if_it_has_changed_whatever_its_order() -> None:
    async def test() -> None:
        script = Script("10.0.0.1", "10.0.0.2", ttl_s=5)
        async with watched(source_of(script)) as told:
            await trio.sleep(1)
            script.answer = Addresses(found=["10.0.0.2", "10.0.0.1"], ttl_s=5)
            await trio.sleep(20)
            assert len(told.sets) == 1
            script.answer = Addresses(found=["10.0.0.2"], ttl_s=5)
            await trio.sleep(20)
            assert told.addresses == ["10.0.0.2:50051"]
            assert len(told.sets) == 2

    run(test)


def test_a_number_instead_of_a_name_is_just_that_and_nobody_is_asked() -> None:
    async def test() -> None:
        for number in ("127.0.0.1:50051", "[::1]:50051"):
            script = Script()
            async with watched(DnsSource(number, resolver=script)) as told:
                await told.until(number)
                await trio.sleep(1000)
            assert told.sets == [[EndpointAddress(number)]]
            assert not script.asked_at

    run(test)


def test_what_one_cannot_connect_to_is_no_address() -> None:
    async def test() -> None:
        async with watched(source_of(Script("0.0.0.0", "224.0.0.1", "::", "gibberish", "10.0.0.1"))) as told:
            await told.until("10.0.0.1:50051")

    run(test)


def test_addresses_that_this_machine_knows_no_way_to_are_left_out_unless_there_are_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        monkeypatch.setattr("rawgrpc_proxy.discovery.dns_source.has_route", lambda number: ":" not in number)
        async with watched(source_of(Script("2001:db8::1", "127.0.0.1"))) as told:
            await told.until("127.0.0.1:50051")
        async with watched(source_of(Script("2001:db8::1"))) as told:
            await told.until("[2001:db8::1]:50051")

    run(test)


def test_a_name_with_thousands_of_addresses_gets_as_many_as_may_be_and_a_note() -> None:
    async def test() -> None:
        many = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(5000)]
        heard = Heard()
        source = source_of(Script(*many), max_addresses=10, observer=heard)
        async with watched(source) as told:
            await trio.sleep(1)
            assert len(told.sets[0]) == 10
            assert source.note == "it has 5000 ipv4 addresses, of which 10 are used (max_addresses)"
            assert source.problem is None
            source.look_up_soon()
            await trio.sleep(100)
            assert len(told.sets) == 1  # always the same ones
        assert [event[0] for event in heard.events].count("look_up_noted") == 1

    run(test)


# --------------------------------------------------------------------------------------------- when it looks up


@pytest.mark.parametrize(
    ("ttl_s", "gap_s"), [(0, 2), (1, 2), (7, 7), (59, 59), (2**31, 60), (None, 30)], ids=str
)
def test_a_ttl_is_obeyed_within_bounds(ttl_s: float | None, gap_s: float) -> None:
    async def test() -> None:
        script = Script("10.0.0.1", ttl_s=ttl_s)
        async with watched(source_of(script, min_ttl_s=2, max_ttl_s=60)):
            await trio.sleep(200)
        assert set(gaps(script.asked_at)) == {gap_s}

    run(test)


def test_a_ttl_of_zero_costs_one_look_up_a_second() -> None:
    async def test() -> None:
        script = Script("10.0.0.1", ttl_s=0)
        async with watched(source_of(script)):
            await trio.sleep(10.5)
        assert gaps(script.asked_at) == [1] * 10

    run(test)


def test_after_a_failure_the_pauses_grow_to_less_than_5_s_and_are_never_quite_the_same() -> None:
    async def test() -> None:
        script = Script()
        script.answer = LookUpFailed("SERVFAIL")
        async with watched(source_of(script)) as told:
            await trio.sleep(60)
            pauses = gaps(script.asked_at)
            for pause, about in zip(pauses, [0.5, 1, 2, 4, 4, 4, 4], strict=False):
                assert 0.8 * about <= pause <= 1.2 * about
            assert len(set(pauses)) == len(pauses)
            script.answer = Addresses(found=["10.0.0.1"], ttl_s=60)
            with trio.fail_after(5):
                await told.until("10.0.0.1:50051")

    run(test)


def test_who_asks_for_a_look_up_gets_one_at_once_and_a_storm_gets_one_a_second() -> None:
    async def test() -> None:
        script = Script("10.0.0.1", ttl_s=300)
        source = source_of(script)
        async with watched(source):
            await trio.sleep(10.25)
            source.look_up_soon()
            await trio.testing.wait_all_tasks_blocked()
            assert script.asked_at[1:] == [trio.current_time()]
            for _ in range(1000):
                source.look_up_soon()
                await trio.sleep(0.01)
            await trio.sleep(20)
            assert set(gaps(script.asked_at[1:])) == {1}
            assert len(script.asked_at) <= 13

    run(test)


def test_a_resolver_that_fails_is_not_asked_more_often_because_somebody_hurries() -> None:
    async def test() -> None:
        script = Script()
        script.answer = LookUpFailed("SERVFAIL")
        source = source_of(script)
        async with watched(source):
            for _ in range(1000):
                source.look_up_soon()
                await trio.sleep(0.1)
        assert len(script.asked_at) <= 35

    run(test)


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (LookUpFailed("there is no such name (NXDOMAIN)"), "there is no such name (NXDOMAIN)"),
        (None, "no answer within 5 s"),
        (Addresses(found=[]), "it has no addresses"),
        (ZeroDivisionError("of a\nuser's"), "the resolver failed with ZeroDivisionError: of a\\nuser's"),
        (ExceptionGroup("", [LookUpFailed("x" * 10_000)]), "x" * 150 + "[… 9700 characters …]" + "x" * 150),
    ],
    ids=["failed", "silent", "empty", "raised", "long"],
)
def test_a_look_up_that_fails_leaves_what_was_told_and_says_what_is_wrong(
    answer: Addresses | Exception | None, problem: str
) -> None:
    async def test() -> None:
        heard = Heard()
        script = Script("10.0.0.1", ttl_s=10)
        source = source_of(script, observer=heard)
        async with watched(source) as told:
            await trio.sleep(1)
            works, script.answer = script.answer, answer
            await trio.sleep(16)
            assert source.problem == problem
            assert len(told.sets) == 1
            script.answer = works
            await trio.sleep(20)
            assert not source.problem
            assert len(told.sets) == 1
        assert heard.events[:3] == [
            ("looked_up", NAME, 1),
            ("addresses_changed", NAME, ["10.0.0.1:50051"]),
            ("look_up_failed", NAME, problem),
        ]

    run(test)


def test_what_a_resolver_cannot_say_of_one_family_stays_as_it_was() -> None:
    async def test() -> None:
        script = Script("10.0.0.1", "::1", ttl_s=5)
        source = source_of(script)
        async with watched(source) as told:
            await trio.sleep(1)
            script.answer = Addresses(found=["10.0.0.2"], ttl_s=5, unanswered="ipv6", problem="no IPv6 today")
            await told.until("10.0.0.2:50051", "[::1]:50051")
            assert source.note == "no IPv6 today"
            script.answer = Addresses(found=["10.0.0.2"], ttl_s=5)
            await told.until("10.0.0.2:50051")
            assert source.note is None

    run(test)


def test_an_observer_that_raises_stops_nothing() -> None:
    async def test() -> None:
        class Raises:
            def looked_up(self, *facts: object) -> None:
                raise KeyError

        async with watched(source_of(Script("10.0.0.1"), observer=Raises())) as told:
            await told.until("10.0.0.1:50051")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda _: None)
        run(test)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("orders.internal", {}, "write HOST:PORT"),
        ("unix:/run/orders", {}, "has no name to look up"),
        ("a..b:80", {}, "no host can have this name"),
        ("x" * 64 + ":80", {}, "no host can have this name"),
        ("abcdefg." * 40 + "x:80", {}, "a name has 1 to 253"),
        (NAME, {"min_ttl_s": 0}, "the first must be above 0"),
        (NAME, {"min_ttl_s": 10, "max_ttl_s": 5}, "the second no less"),
        (NAME, {"max_addresses": 0}, "it must be 1 or more"),
        (NAME, {"family": "ipv5"}, "it must be one of all, ipv4, ipv6"),
    ],
)
def test_what_cannot_be_looked_up_is_told_when_the_source_is_made(
    name: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        DnsSource(name, resolver=Script(), **options)
