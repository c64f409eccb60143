"""Routes with conditions, changes and deadlines."""

import attrs
import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import CallContext, CallPolicy, ConfigError, Metadata, Pool, ResponseChanges
from rawgrpc_proxy.errors import NoRoute
from rawgrpc_proxy.proxy.routing import Route, director_of
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
