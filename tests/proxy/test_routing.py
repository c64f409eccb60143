"""Routes with conditions, changes and deadlines."""

from collections import Counter
from random import Random

import attrs
import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    ConcurrencyLimit,
    ConfigError,
    Metadata,
    Pool,
    ResponseChanges,
)
from rawgrpc_proxy.call import ObservedContext
from rawgrpc_proxy.errors import NoRoute, RateLimited
from rawgrpc_proxy.observe.record import CallExtras
from rawgrpc_proxy.proxy.rate_limit import RateLimit, RateLimiter
from rawgrpc_proxy.proxy.routing import Part, Route, SplitByWeight, director_of
from rawgrpc_proxy.upstream.target import Target

METHOD = "/p.S/M"


def context(*pairs: tuple[str, str], deadline: float | None = None) -> CallContext:
    raw = [(b":path", METHOD.encode()), *((name.encode(), value.encode()) for name, value in pairs)]
    return CallContext(method=METHOD, metadata=Metadata(raw), peer="127.0.0.1:1", deadline=deadline)


def targets(*addresses: str) -> list[Target]:
    pool = Pool()
    return [pool.target(address) for address in addresses]


def asked(routes: list[Route], what: CallContext) -> tuple[CallContext, str]:
    answer = director_of(routes)(what, what.method)
    assert isinstance(answer, tuple)
    assert isinstance(answer[1], Target)
    return answer[0], answer[1].address


def test_the_first_route_that_takes_the_call_decides() -> None:
    [a, b, c, d] = targets("a:1", "b:1", "c:1", "d:1")
    routes = [
        Route("/p.S/*", a, authority="Shop.Example:443"),
        Route("/*", b, metadata={"x-env": "staging", "x-tag": "1"}),
        Route(METHOD, c),
        Route("/p.T/*", d),
    ]
    staging = ("x-env", "staging"), ("x-tag", "1")
    assert asked(routes, context((":authority", "shop.example:443"), *staging))[1] == "a:1"
    assert asked(routes, context((":authority", "shop.example"), *staging))[1] == "b:1"
    assert asked(routes, context(*staging[:1]))[1] == "c:1"
    assert asked(routes, context(*staging, ("x-tag", "2")))[1] == "c:1"
    with pytest.raises(NoRoute, match=r"no route for /p\.S/M"):
        director_of(routes[3:])(context(), METHOD)
    with pytest.raises(ConfigError, match="is no pattern"):
        director_of([Route("p.S", a)])


def test_a_binary_value_that_is_none_fails_no_call() -> None:
    routes = [Route("/*", *targets("a:1"), metadata={"x-bin": "1"}), Route("/*", *targets("b:1"))]
    assert asked(routes, context(("x-bin", "?")))[1] == "b:1"


def test_metadata_are_removed_and_then_set() -> None:
    route = Route(
        "/*", *targets("a:1"), remove=["x-debug", "x-edge"], set_values={"x-edge": "1", ":authority": "b"}
    )
    before = context((":authority", "a"), ("x-debug", "1"), ("x-edge", "0"), ("x-user", "u"))
    after = asked([route], before)[0].metadata
    assert list(after) == [(":path", METHOD), (":authority", "b"), ("x-user", "u"), ("x-edge", "1")]


def test_a_route_may_change_what_callers_get() -> None:
    changes = ResponseChanges(remove=["server"])
    [a, b] = targets("a:1", "b:1")
    routes = [Route(METHOD, a, response_changes=changes), Route("/*", b)]
    after = asked(routes, context())[0]
    assert after.response_changes is changes
    assert after.metadata == context().metadata
    assert asked(routes[1:], context())[0].response_changes is None


def test_a_route_without_changes_leaves_the_context_alone() -> None:
    before = context()
    assert asked([Route("/*", *targets("a:1"))], before)[0] is before


@trio_test
async def test_a_route_has_a_longest_deadline_and_one_for_calls_without(clock: MockClock) -> None:
    now = trio.current_time()
    route = Route("/*", *targets("a:1"), max_timeout_s=30, default_timeout_s=5)
    for deadline, expected in ((None, 5), (10, 10), (100, 30)):
        given = context(deadline=None if deadline is None else now + deadline)
        assert asked([route], given)[0].deadline == pytest.approx(now + expected)
    only_longest = Route("/*", *targets("a:1"), max_timeout_s=30)
    assert asked([only_longest], attrs.evolve(given, deadline=None))[0].deadline == pytest.approx(now + 30)


def test_a_route_has_its_calls_treated_by_its_policy() -> None:
    policy = CallPolicy(idle_timeout_s=300)
    assert asked([Route("/*", *targets("a:1"), policy=policy)], context())[0].policy is policy
    assert asked([Route("/*", *targets("a:1"))], context())[0].policy is None


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


def test_a_split_sends_calls_with_the_same_header_to_the_same_part_and_says_which() -> None:
    [a, b] = targets("a:1", "b:1")
    split = SplitByWeight([Part("canary", a, 10), Part("stable", b, 90)], sticky="X-User", rng=Random(1))
    route = Route("/*", split, names=("the route", "none of them"))
    counts = Counter[str]()
    for number in range(200):
        seen = set()
        for _ in range(2):
            observed = noted(context(("x-user", f"user-{number}")))
            address = asked([route], observed)[1]
            seen.add(address)
            assert observed.extras.cluster == {"a:1": "canary", "b:1": "stable"}[address]
            assert observed.extras.route == "the route"
        [address] = seen
        counts[address] += 1
    assert counts["a:1"] == pytest.approx(20, abs=10)


def test_calls_without_the_header_are_split_by_chance() -> None:
    [a, b] = targets("a:1", "b:1")
    for sticky in (None, "x-user"):
        route = Route("/*", SplitByWeight([Part("a", a, 1), Part("b", b, 1)], sticky=sticky, rng=Random(1)))
        seen = {asked([route], context())[1] for _ in range(50)}
        assert seen == {"a:1", "b:1"}


def test_a_split_by_what_is_no_header_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a metadata key"):
        SplitByWeight([Part("a", targets("a:1")[0], 1)], sticky="x user")


@trio_test
async def test_a_route_beyond_its_rate_refuses_what_no_other_gets_and_is_named(clock: MockClock) -> None:
    [a, b] = targets("a:1", "b:1")
    limiter = RateLimiter(RateLimit.of("1/s"))
    routes = [
        Route("/p.S/*", a, metadata={"x-env": "staging"}, names=("staging", "a"), rate_limiter=limiter),
        Route("/*", b),
    ]
    staging = ("x-env", "staging")
    assert asked(routes, context(staging))[1] == "a:1"
    observed = noted(context(staging))
    with pytest.raises(RateLimited):
        asked(routes, observed)
    assert (observed.extras.route, observed.extras.cluster) == ("staging", "a")
    assert asked(routes, context())[1] == "b:1"
    clock.jump(1.001)
    assert asked(routes, context(staging))[1] == "a:1"


def test_a_route_has_one_policy_for_its_calls() -> None:
    policy = CallPolicy(limits=[ConcurrencyLimit(1)])
    [a] = targets("a:1")
    assert asked([Route("/*", a, policy=policy)], context())[0].policy is policy


def noted(what: CallContext) -> ObservedContext:
    """The call with room for what routes note."""
    extras = CallExtras(headers=[], stream_id=1, tls_peer=None, started=0.0)
    return ObservedContext.of(what, extras)
