"""`Faults`: what strikes whom, in which order, as often as it should, and the same again with the same seed."""

import random
import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.faults.actions import AnswerStatus, Delay, Reset
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.injector import Counts, Faults, Struck
from rawgrpc_proxy.lab.faults.places import AtConnect
from rawgrpc_proxy.lab.faults.pump import with_faults
from rawgrpc_proxy.net.tapped import Link
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import RawPeer

CALLER = Link(number=1, side=Side.DOWNSTREAM, peer="127.0.0.1:4000", tls=None)
UPSTREAM = Link(number=2, side=Side.UPSTREAM, peer="10.1.2.3:50051", tls=None)
UNIX = Link(number=3, side=Side.DOWNSTREAM, peer="unix:", tls=None)
METHOD = "/shop.Cart/Get"
DOWN = AnswerStatus(status="UNAVAILABLE")


def struck_by(faults: Faults, link: Link = CALLER, method: str = METHOD) -> list[str]:
    """The names of the rules that strike one call."""
    return [strike.tag[0].name for strike in faults.call_begun(link, method, [(b"x-user", b"alice")])]


def run_of(faults: Faults, calls: int = 40) -> list[list[str]]:
    return [struck_by(faults) for _ in range(calls)]


def test_two_fail_and_then_it_works() -> None:
    faults = Faults([Fault(name="two", calls="first 2", do=DOWN)])
    assert run_of(faults, 5) == [["two"], ["two"], [], [], []]
    assert faults.counts == {"two": Counts(fitted=5, struck=0)}


def test_only_calls_that_fit_are_counted() -> None:
    faults = Faults(
        [
            Fault(name="second", method="/shop.Cart/*", calls="2", do=DOWN),
            Fault(name="alice", metadata={"x-user": "a*"}, do=DOWN),
            Fault(name="bob", metadata={"x-user": "b*"}, do=DOWN),
            Fault(name="near", peer=["127.0.0.0/8"], do=DOWN),
            Fault(name="unix", peer=["unix"], do=DOWN),
            Fault(name="to", side=Side.UPSTREAM, peer=["10.0.0.0/8"], do=DOWN),
        ]
    )
    assert struck_by(faults, method="/shop.Order/Get") == ["alice", "near"]
    assert struck_by(faults) == ["alice", "near"]
    assert struck_by(faults, UNIX) == ["second", "alice", "unix"]
    assert struck_by(faults, UPSTREAM) == ["to"]
    assert {name: counts.fitted for name, counts in faults.counts.items()} == {
        "second": 2,
        "alice": 3,
        "bob": 0,
        "near": 2,
        "unix": 1,
        "to": 1,
    }


def test_rules_strike_in_the_order_in_which_they_were_added() -> None:
    faults = Faults(
        [Fault(name="b", do=DOWN), Fault(name="a", method=METHOD, do=DOWN), Fault(name="c", do=DOWN)]
    )
    assert struck_by(faults) == ["b", "a", "c"]


def test_faults_of_connections_are_asked_for_when_one_opens() -> None:
    faults = Faults([Fault(name="every-second", where=AtConnect(), calls="every 2", do=Delay(seconds=1))])
    assert not faults.active
    assert struck_by(faults) == []
    assert [len(faults.link_opened(CALLER)) for _ in range(4)] == [0, 1, 0, 1]
    assert faults.link_opened(UPSTREAM) == []


@given(seed=st.integers(), share=st.floats(0, 1))
def test_the_same_seed_and_order_of_calls_give_the_same_run(seed: int, share: float) -> None:
    rules = [Fault(name="a", share=share, do=DOWN), Fault(name="b", share=0.5, do=DOWN)]
    one, other = Faults(rules, seed=seed), Faults(rules, seed=seed)
    assert run_of(one) == run_of(other)
    assert [each.seed for each in one.call_begun(CALLER, METHOD, ())] == [
        each.seed for each in other.call_begun(CALLER, METHOD, ())
    ]


def test_another_seed_gives_another_run() -> None:
    rules = [Fault(name="half", share=0.5, do=DOWN)]
    assert len({str(run_of(Faults(rules, seed=seed))) for seed in range(20)}) == 20


def test_a_rule_does_not_disturb_the_chance_of_another() -> None:
    half = Fault(name="half", share=0.5, do=DOWN)
    alone = run_of(Faults([half]))
    both = run_of(Faults([Fault(name="other", share=0.3, do=DOWN), half]))
    assert [[name for name in names if name == "half"] for names in both] == alone


def test_two_rules_do_not_choose_the_same_calls() -> None:
    run = run_of(Faults([Fault(name="a", share=0.5, do=DOWN), Fault(name="b", share=0.5, do=DOWN)]))
    assert {tuple(names) for names in run} == {(), ("a",), ("b",), ("a", "b")}


def test_a_share_is_about_that_share() -> None:
    faults = Faults([Fault(name="fifth", share=0.2, do=DOWN)], seed=1)
    assert 1800 < sum(map(len, run_of(faults, 10_000))) < 2200


def test_a_share_is_of_the_calls_that_are_chosen_by_number() -> None:
    faults = Faults([Fault(name="some", calls="first 100", share=0.5, do=DOWN)], seed=3)
    run = run_of(faults, 200)
    assert 30 < sum(map(len, run)) < 70
    assert not any(run[100:])


def test_what_was_done_is_counted_and_told() -> None:
    faults, told = Faults(), list[Struck]()
    faults.watch(told.append)
    rule = faults.add(Fault(do=Reset()))
    (strike,) = faults.call_begun(CALLER, METHOD, ())
    assert rule.counts == Counts(fitted=1, struck=0)
    faults.struck(strike, CALLER, 7)
    assert rule.counts == Counts(fitted=1, struck=1)
    assert told == [Struck(name="fault-1", fault=rule.fault, link=CALLER, stream_id=7, method=METHOD)]


def test_who_raises_when_told_hears_no_more_and_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", raised.append)
    faults, told = Faults([Fault(do=Reset())]), list[Struck]()

    def bad(_struck: Struck) -> None:
        raise RuntimeError("mine")

    faults.watch(bad)
    faults.watch(told.append)
    for _ in range(3):
        (strike,) = faults.call_begun(CALLER, METHOD, ())
        faults.struck(strike, CALLER, 1)
    assert len(told) == 3
    assert len(raised) == 1


def test_a_rule_is_removed_once_and_all_are_cleared() -> None:
    faults = Faults([Fault(name="stays", do=DOWN)])
    rule = faults.add(Fault(name="goes", do=DOWN))
    rule.remove()
    rule.remove()
    assert (struck_by(faults), faults.active) == (["stays"], True)
    faults.clear()
    assert (struck_by(faults), faults.active, faults.rules) == ([], False, ())


def test_two_rules_of_one_name_are_refused_but_one_may_be_put_in_the_others_place() -> None:
    faults = Faults([Fault(name="a", do=DOWN), Fault(name="b", do=DOWN)])
    with pytest.raises(ConfigError, match="named 'a' already"):
        faults.add(Fault(name="a", do=DOWN))
    run_of(faults, 3)
    faults.put([Fault(name="a", do=Reset()), Fault(name="c", do=DOWN)])
    assert struck_by(faults) == ["a", "b", "c"]
    assert faults.counts["a"].fitted == 1
    assert faults.counts["b"].fitted == 4
    assert isinstance(faults.rules[0].fault.do[0], Reset)


def test_rules_without_names_get_some_and_replace_themselves() -> None:
    faults = Faults()
    unnamed = [Fault(do=DOWN), Fault(name="x", do=DOWN), Fault(do=Reset())]
    for _ in range(2):
        faults.put(unnamed, seed=5)
        assert [rule.name for rule in faults.rules] == ["fault-1", "x", "fault-3"]
    assert faults.add(Fault(do=DOWN)).name == "fault-2"


def test_rules_come_and_go_from_other_threads_while_calls_are_made() -> None:
    faults = Faults([Fault(name="always", do=DOWN)])
    over = threading.Event()

    def change(number: int) -> None:
        chance = random.Random(number)
        for turn in range(300):
            rule = faults.add(Fault(name=f"{number}-{turn}", do=DOWN))
            if chance.random() < 0.9:
                rule.remove()
        over.set()

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while not over.is_set():
        assert struck_by(faults)[0] == "always"
    for thread in threads:
        thread.join()
    assert len({rule.name for rule in faults.rules}) == len(faults.rules)
    assert struck_by(faults) == [rule.name for rule in faults.rules]


async def status_of_a_call(house: House, client: RawPeer) -> int | None:
    call = await client.request(body=b"hello")
    async with trio.open_nursery() as nursery:

        async def respond() -> None:
            await (await house.backend.request()).respond(b"hello")

        nursery.start_soon(respond)
        answer = await call.answer()
        nursery.cancel_scope.cancel()
    return answer.status


@on_every_engine
@trio_test
async def test_rules_come_and_go_on_a_connection_that_is_there_already(engine: Engine) -> None:
    faults = Faults()
    async with a_proxy(engine, wrap=with_faults(faults)) as house:
        client = await house.client()
        assert await status_of_a_call(house, client) == Status.OK
        rule = await trio.to_thread.run_sync(faults.add, Fault(do=AnswerStatus(status="ABORTED")))
        assert await status_of_a_call(house, client) == Status.ABORTED
        assert rule.counts == Counts(fitted=1, struck=1)
        await trio.to_thread.run_sync(rule.remove)
        assert await status_of_a_call(house, client) == Status.OK
        assert rule.counts == Counts(fitted=1, struck=1)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"method": "Get"}, "is no pattern"),
        ({"metadata": {"X": "a"}}, "metadata: 'X' is no name"),
        ({"peer": ["here"]}, "peer: 'here' is no network"),
        ({"calls": "some"}, "calls: 'some' does not say which calls"),
        ({"share": 1.5}, "share is 1.5; it must be between 0 and 1"),
        ({"where": AtConnect(), "method": METHOD, "do": Delay(seconds=1)}, "there is none"),
    ],
)
def test_a_rule_that_could_fit_nothing_is_refused_when_it_is_made(
    wrong: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        Fault(**{"do": DOWN, **wrong})  # type: ignore[arg-type]
