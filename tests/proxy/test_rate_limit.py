"""Rate limits: the bucket, the buckets of many callers, and the director that is held to one."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import CallContext, ConfigError, Metadata, RpcError, Status, limit_rate
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import RateLimited
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.proxy.rate_limit import Buckets, RateLimit, RateLimiter, TokenBucket
from tests.proxy.house import House, a_proxy, on_every_engine

TEN = RateLimit.of("10/s", burst=3)


def context(peer: str = "127.0.0.1:1", *pairs: tuple[str, str]) -> CallContext:
    raw = [(b":path", b"/p.S/M"), *((name.encode(), value.encode()) for name, value in pairs)]
    return CallContext(method="/p.S/M", metadata=Metadata(raw), peer=peer)


def test_a_burst_is_let_through_and_then_one_call_each_tenth_of_a_second() -> None:
    bucket = TokenBucket(TEN.burst, now=5.0)
    assert [bucket.take(TEN, 5.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(TEN, 5.0) == pytest.approx(0.1)
    assert bucket.take(TEN, 5.05) == pytest.approx(0.05)
    assert bucket.take(TEN, 5.1001) == 0
    assert bucket.take(TEN, 5.1001) == pytest.approx(0.0999)


@given(
    per_s=st.floats(0.01, 10_000),
    burst=st.floats(1, 1000),
    steps=st.lists(st.floats(0, 5), max_size=300),
)
@example(per_s=3.0, burst=1.0, steps=[1 / 3] * 300)
def test_no_more_than_burst_and_rate_are_let_through_in_any_time(
    per_s: float, burst: float, steps: list[float]
) -> None:
    limit = RateLimit(per_s=per_s, burst=burst)
    now, let_through = 1000.0, []
    bucket = TokenBucket(burst, now)
    for step in steps:
        now += step
        if not bucket.take(limit, now):
            let_through.append(now)
    for first in range(len(let_through)):
        for count, at in enumerate(let_through[first:], start=1):
            assert count <= burst + per_s * (at - let_through[first]) + 1e-6


@given(per_s=st.floats(0.01, 10_000), burst=st.floats(1, 100), step=st.floats(0, 1))
def test_a_call_that_comes_again_when_it_is_told_to_is_let_through(
    per_s: float, burst: float, step: float
) -> None:
    limit = RateLimit(per_s=per_s, burst=burst)
    bucket, now = TokenBucket(burst, 0.0), 0.0
    while not (wait_s := bucket.take(limit, now)):
        now += step / per_s / 2
    assert bucket.take(limit, now + wait_s * 0.9) > 0
    assert bucket.take(limit, now + wait_s + 0.001) == 0


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets(TEN)
    assert [buckets.take(b"a", 0.0) > 0 for _ in range(4)] == [False, False, False, True]
    assert not buckets.take(b"b", 0.0)
    long = b"x" * 60_000
    assert [buckets.take(long, 0.0) > 0 for _ in range(4)] == [False, False, False, True]
    assert not buckets.take(long + b"y", 0.0)


def test_made_up_keys_neither_pile_up_nor_have_what_others_used_forgotten() -> None:
    limit = RateLimit.of("1/s", burst=2, max_keys=100)
    buckets = Buckets(limit)
    for _ in range(2):
        assert not buckets.take(b"a known one", 0.0)
    for number in range(50_000):
        buckets.take(b"made up %d" % number, 0.001)
    assert len(buckets) == 100
    assert buckets.take(b"a known one", 0.5) > 0
    # They share what is left for all new ones: the rate of so many callers, not of any number.
    let_through = sum(not buckets.take(b"new %d" % number, 0.002) for number in range(50_000))
    assert let_through < 1024


def test_a_new_caller_gets_the_place_of_one_whose_bucket_is_full_again() -> None:
    limit = RateLimit.of("1/s", burst=2, max_keys=2)
    buckets = Buckets(limit)
    for key in (b"a", b"b", b"c", b"d"):
        buckets.take(key, 0.0)
    assert len(buckets) == 2
    assert [buckets.take(b"e", 1.5) > 0 for _ in range(3)] == [False, False, True]
    assert [buckets.take(b"b", 1.5) > 0 for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ("10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1"),
        ("[2001:db8::1]:1", "[2001:db8::ffff:2]:1", "[2001:db8:0:1::1]:1"),
        ("unix:", "unix:/x", "10.0.0.1:1"),
    ],
)
def test_peers_are_told_apart_by_their_address_without_the_port(one: str, same: str, other: str) -> None:
    limiter = RateLimiter(RateLimit.of("1/s", per="peer"))
    limiter.check(context(one), 0.0)
    with pytest.raises(RateLimited):
        limiter.check(context(same), 0.0)
    limiter.check(context(other), 0.0)
    assert limiter.refused == 1


def test_callers_are_told_apart_by_a_header_and_those_without_are_one() -> None:
    limiter = RateLimiter(RateLimit.of("1/s", per="X-User"))
    limiter.check(context("10.0.0.1:1", ("x-user", "u")), 0.0)
    limiter.check(context("10.0.0.1:1", ("x-user", "v")), 0.0)
    limiter.check(context(), 0.0)
    for pairs in ([("x-user", "u"), ("x-user", "w")], []):
        with pytest.raises(RateLimited, match="of this x-user allows; one more is allowed in 1000 ms"):
            limiter.check(context("10.0.0.2:1", *pairs), 0.0)


@pytest.mark.parametrize(
    ("rate", "settings", "words"),
    [
        ("fast", {}, "is no rate"),
        ("0/s", {}, "is no rate"),
        ("-1/s", {}, "is no rate"),
        ("1/s", {"burst": 0.5}, "burst"),
        ("1/s", {"burst": float("nan")}, "burst"),
        ("1/s", {"max_keys": 0}, "max_keys"),
        ("1/s", {"per": "an user"}, "the key of a header"),
        ("1/s", {"per": ":path"}, "the key of a header"),
    ],
)
def test_what_is_no_limit_is_said(rate: str, settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RateLimit.of(rate, **settings)  # type: ignore[arg-type]


def test_a_rate_may_be_for_a_second_a_minute_or_an_hour_and_is_shared_by_workers() -> None:
    assert RateLimit.of("90/m").per_s == 1.5
    assert RateLimit.of("1.5/s").burst == 1.5
    assert RateLimit.of("1/h").burst == 1
    part = RateLimit.of("100/s", burst=200).shared_by(4)
    assert (part.per_s, part.burst) == (25, 50)


@trio_test
async def test_a_director_held_to_a_rate_is_not_asked_about_calls_beyond_it(clock: MockClock) -> None:
    asked = []

    def director(context: CallContext, method: str) -> Direction:
        asked.append(method)
        raise RpcError(Status.ABORTED)

    limited = limit_rate(director, "10/s", burst=2)
    for _ in range(2):
        with pytest.raises(RpcError) as refused:
            limited(context(), "/p.S/M")
        assert refused.value.status is Status.ABORTED
    with pytest.raises(RateLimited) as limit:
        limited(context(), "/p.S/M")
    assert limit.value.trailing_metadata == (("grpc-retry-pushback-ms", "100"),)
    assert len(asked) == 2
    clock.jump(0.1001)
    with pytest.raises(RpcError) as refused:
        limited(context(), "/p.S/M")
    assert refused.value.status is Status.ABORTED


@on_every_engine
@trio_test
async def test_a_caller_beyond_the_rate_is_told_when_to_come_again_and_nothing_goes_upstream(
    engine: Engine,
) -> None:
    houses: list[House] = []
    limited = limit_rate(
        lambda context, _: (context, houses[0].pool.target(houses[0].backend.address)), "1/h", burst=1
    )
    async with a_proxy(engine, director=limited) as house:
        houses.append(house)
        client = await house.client()
        first = await client.request()
        await (await house.backend.request()).respond()
        assert (await first.answer()).status == Status.OK
        answer = await (await client.request()).answer()
        assert answer.frames == ["HEADERS END_STREAM"]
        assert answer.status == Status.RESOURCE_EXHAUSTED
        pushback = answer.get(b"grpc-retry-pushback-ms")
        assert pushback is not None
        assert 3_000_000 < int(pushback) <= 3_600_000
        assert house.backend.no_request_came()
        assert [(await house.record()).origin for _ in range(2)] == ["upstream", "proxy"]


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.mark.parametrize("per", ["ip", "Client", "address"])
def test_a_caller_s_address_is_not_taken_for_a_header_that_nobody_sends(per: str) -> None:
    with pytest.raises(ConfigError, match='write "peer" for the caller'):
        RateLimit.of("1/s", per=per)
