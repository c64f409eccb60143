"""Copies of calls for a shadow: what it gets, what is compared, and that the call itself never notices."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    Cluster,
    ConcurrencyLimit,
    ConfigError,
    HedgingPolicy,
    Metadata,
    Mirror,
    Pool,
    RetryPolicy,
    Status,
)
from rawgrpc_proxy.cluster.balance import Balancer
from rawgrpc_proxy.cluster.endpoint import Endpoint
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.proxy import shadow_call
from rawgrpc_proxy.proxy.director import Direction
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    INITIAL_WINDOW_SIZE,
    MAX_HEADER_LIST_SIZE,
    OK,
    RESPONSE,
    Backend,
    Headers,
    PeerStream,
    RawPeer,
    message,
    request_fields,
)

NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8
NOT_FOUND = [(b"grpc-status", b"5")]
NOWHERE = "127.0.0.1:1"
pytestmark = on_every_engine


@dataclass
class Street:
    """A proxy before a backend, and a shadow that gets copies."""

    house: House
    shadow: Backend
    mirror: Mirror

    @property
    def client(self) -> RawPeer:
        return self.house.clients[0]

    async def call(self, *extra: tuple[bytes, bytes]) -> tuple[PeerStream, PeerStream, PeerStream]:
        """A unary call, as its caller, its backend and the shadow see it."""
        call = await self.client.request("/a.B/C", *extra, body=b"hello")
        return call, await self.house.backend.request(), await self.shadow.request()

    async def well(self, call: PeerStream, at_backend: PeerStream) -> None:
        """End the call itself with OK."""
        await at_backend.respond(b"answer")
        answer = await call.answer()
        assert (answer.status, answer.body) == (Status.OK, message(b"answer"))
        await self.house.record()

    def counts(self) -> dict[str, int]:
        """All that is not 0."""
        mirror = self.mirror
        counts = {
            "sent": mirror.sent,
            "same": mirror.same,
            "different": mirror.different,
            "given_up": mirror.given_up,
            **mirror.dropped,
        }
        return {name: count for name, count in counts.items() if count}


@asynccontextmanager
async def a_street(
    engine: Engine,
    *,
    shadow: dict[int, int] | None = None,
    shadow_address: str | None = None,
    limit: ConcurrencyLimit | None = None,
    stream_window_bytes: int = 1024 * 1024,
    policy: CallPolicy | None = None,
    **mirror: Any,
) -> AsyncIterator[Street]:
    policies: list[CallPolicy] = []
    houses: list[House] = []

    def director(context: CallContext, _method: str) -> Direction:
        return context.with_policy(policies[0]), houses[0].pool.target(houses[0].backend.address)

    async with a_proxy(engine, director=director, stream_window_bytes=stream_window_bytes) as house:
        houses.append(house)
        peer = Backend(shadow)
        await house.nursery.start(peer.run)
        address = shadow_address or peer.address
        async with Cluster([address], pool=house.pool, limits=[] if limit is None else [limit]) as cluster:
            where = house.pool.target(address) if limit is None else cluster
            async with Mirror(where, **mirror) as made:
                policies.append(attrs.evolve(policy or CallPolicy(), mirror=made))
                await house.client()
                yield Street(house, peer, made)
                for client in house.clients:
                    await client.aclose()
        assert made.open_copies == 0
        assert made.waiting_bytes == 0
        assert made.same + made.different <= made.sent
    assert limit is None or limit.open_calls == 0


@trio_test
async def test_the_shadow_gets_the_same_request_with_a_mark_and_its_response_goes_nowhere(
    engine: Engine,
) -> None:
    async with a_street(engine) as street:
        call, at_backend, at_shadow = await street.call((b"x-user", b"u"))
        assert at_shadow.request.fields == [*at_backend.request.fields, (b"x-rawgrpc-mirror", b"1")]
        assert await at_shadow.request_body() == await at_backend.request_body() == message(b"hello")
        await at_shadow.respond(b"of no interest")
        assert call.nothing_came()
        await street.well(call, at_backend)
        assert street.counts() == {"sent": 1, "same": 1}


@pytest.mark.parametrize("shadow_first", [True, False])
@trio_test
async def test_statuses_are_compared_whoever_is_first(engine: Engine, shadow_first: bool) -> None:
    async with a_street(engine) as street:
        call, at_backend, at_shadow = await street.call()
        if shadow_first:
            await at_shadow.headers([*RESPONSE, *NOT_FOUND], end=True)
            await at_shadow.peer.ping()
        await street.well(call, at_backend)
        if not shadow_first:
            await at_shadow.respond(trailers=NOT_FOUND)
        await until(lambda: street.mirror.open_copies == 0)
        assert street.counts() == {"sent": 1, "different": 1}


@pytest.mark.parametrize(
    "frames",
    [
        ["HEADERS END_STREAM"],
        ["HEADERS", "DATA END_STREAM"],
        ["HEADERS", "DATA", "HEADERS END_STREAM"],
        ["HEADERS", "HEADERS END_STREAM"],
    ],
)
@pytest.mark.parametrize("warm", [True, False])
@trio_test
async def test_a_request_ends_at_the_shadow_as_it_does_at_its_backend(
    engine: Engine, frames: list[str], warm: bool
) -> None:
    async with a_street(engine) as street:
        if warm:
            call, at_backend, at_shadow = await street.call()
            await at_shadow.respond()
            await street.well(call, at_backend)
        call = await street.client.open(request_fields(), end=frames == ["HEADERS END_STREAM"])
        if "DATA" in frames:
            await call.data(message(b"part"))
        if frames[-1] == "DATA END_STREAM":
            await call.data(b"", end=True)
        elif len(frames) > 1:
            await call.headers([(b"x-end", b"1")], end=True)
        at_backend, at_shadow = await street.house.backend.request(), await street.shadow.request()
        for served in (at_backend, at_shadow):
            ended = served.request.end_stream
            while not ended:
                event = await served.next()
                if isinstance(event, Headers):
                    assert event.fields == [(b"x-end", b"1")]
                ended = getattr(event, "end_stream", False)
        await at_shadow.respond()
        await street.well(call, at_backend)
        assert street.counts()["same"] == 1 + warm


@trio_test
async def test_messages_of_a_stream_go_to_the_shadow_as_they_come(engine: Engine) -> None:
    async with a_street(engine, stream_window_bytes=65_535) as street:
        call = await street.client.open(request_fields())
        at_backend, at_shadow = await street.house.backend.request(), await street.shadow.request()
        for number in range(3):
            part = message(b"part %d" % number)
            await call.data(part)
            assert await at_backend.read(len(part)) == part
            assert await at_shadow.read(len(part)) == part
        await at_shadow.headers(RESPONSE)
        await call.data(b"", end=True)
        await at_shadow.body(bytes(300_000))  # more than any window, unless it is credited
        await at_shadow.headers(OK, end=True)
        await street.well(call, at_backend)
        assert street.counts() == {"sent": 1, "same": 1}


@trio_test
async def test_a_shadow_that_takes_nothing_loses_its_copy_and_the_call_goes_on(engine: Engine) -> None:
    async with a_street(engine, shadow={INITIAL_WINDOW_SIZE: 0}, max_call_buffered_bytes=100_000) as street:
        call = await street.client.open(request_fields())
        at_backend, at_shadow = await street.house.backend.request(), await street.shadow.request()
        body = bytes(range(256)) * 1200  # 300 KB
        await call.body(body, end=True)
        assert await at_backend.request_body() == body
        assert await at_shadow.expect_reset() == CANCEL
        await street.well(call, at_backend)
        assert street.counts() == {"sent": 1, "bytes": 1}


@trio_test
async def test_bytes_of_all_copies_are_bounded_together(engine: Engine) -> None:
    async with a_street(engine, shadow={INITIAL_WINDOW_SIZE: 0}, max_buffered_bytes=15_000) as street:
        calls = [await street.client.request(body=bytes(9_995)) for _ in range(2)]
        first = await street.shadow.request()
        await until(lambda: street.mirror.dropped["bytes"] == 1)
        assert street.mirror.waiting_bytes == 10_000
        for _ in calls:
            await (await street.house.backend.request()).respond()
        for call in calls:
            assert (await call.answer()).status == Status.OK
        await first.peer.credit(first, 10_000)
        assert await first.request_body() == message(bytes(9_995))
        assert street.mirror.waiting_bytes == 0
        assert street.shadow.no_request_came()


@trio_test
async def test_a_shadow_that_cannot_be_reached_costs_the_call_nothing(engine: Engine) -> None:
    async with a_street(engine, shadow_address=NOWHERE) as street:
        call = await street.client.request()
        await street.well(call, await street.house.backend.request())
        await until(lambda: street.mirror.open_copies == 0)
        assert street.counts() == {"unreachable": 1}


@pytest.mark.parametrize("connected", [True, False])
@trio_test
async def test_a_call_that_is_given_up_takes_its_copy_with_it(engine: Engine, connected: bool) -> None:
    async with a_street(engine) as street:
        if connected:
            call, _, at_shadow = await street.call()
        else:
            dialled = trio.Event()

            async def says_nothing(_stream: trio.SocketStream) -> None:
                dialled.set()
                await trio.sleep_forever()

            street.shadow.raw_script = says_nothing
            call = await street.client.request()
            await street.house.backend.request()
            await dialled.wait()
        await call.reset(CANCEL)
        assert (await street.house.record()).status == Status.CANCELLED
        if connected:
            assert await at_shadow.request_body() == message(b"hello")
            assert await at_shadow.expect_reset() == CANCEL
        assert street.mirror.open_copies == 0
        assert street.mirror.given_up == 1
        if not connected:
            target = street.house.pool.target(street.shadow.address)
            await wait_all_tasks_blocked()
            assert target.calls == 0, "the copy still waits for a connection"


@pytest.mark.parametrize("end", ["reset", "lost", "HTTP"])
@trio_test
async def test_a_shadow_that_fails_is_different_and_no_trouble(engine: Engine, end: str) -> None:
    async with a_street(engine) as street:
        call, at_backend, at_shadow = await street.call()
        if end == "reset":
            await at_shadow.reset(CANCEL)
        elif end == "lost":
            await at_shadow.peer.aclose()
        else:
            await at_shadow.headers([(b":status", b"503")], end=True)
        await street.well(call, at_backend)
        await until(lambda: street.mirror.open_copies == 0)
        assert street.counts() == {"sent": 1, "different": 1}


@trio_test
async def test_a_shadow_that_refuses_a_copy_is_not_asked_again(engine: Engine) -> None:
    async with a_street(engine) as street:
        call, at_backend, at_shadow = await street.call()
        await at_shadow.reset(REFUSED_STREAM)
        await street.well(call, at_backend)
        await until(lambda: street.mirror.open_copies == 0)
        assert street.counts() == {"sent": 1, "unreachable": 1}
        assert street.shadow.no_request_came()


@trio_test
async def test_a_call_that_is_sent_again_is_copied_once(engine: Engine) -> None:
    async with a_street(engine) as street:
        call = await street.client.open(request_fields())
        await call.data(message(b"one"))
        at_backend, at_shadow = await street.house.backend.request(), await street.shadow.request()
        await at_backend.read(8)
        await at_backend.reset(REFUSED_STREAM)
        at_backend = await street.house.backend.request()
        await call.data(message(b"two"), end=True)
        assert await at_backend.request_body() == message(b"one") + message(b"two")
        assert await at_shadow.request_body() == message(b"one") + message(b"two")
        await at_shadow.respond()
        await street.well(call, at_backend)
        assert street.counts() == {"sent": 1, "same": 1}
        assert street.shadow.no_request_came()


@pytest.mark.parametrize(
    "repeats",
    [{"retry": RetryPolicy(initial_backoff_s=0.001)}, {"hedging": HedgingPolicy(hedging_delay_s=3600)}],
)
@pytest.mark.parametrize("ends", ["before", "between"])
@trio_test
async def test_a_call_with_several_attempts_is_copied_once_and_holds_one_place(
    engine: Engine, repeats: dict[str, Any], ends: str
) -> None:
    limit = ConcurrencyLimit(1)
    async with a_street(engine, policy=CallPolicy(limits=[limit], **repeats)) as street:
        call = await street.client.open(request_fields())
        await call.data(message(b"one"), end=ends == "before")
        first, at_shadow = await street.house.backend.request(), await street.shadow.request()
        await first.read(8)
        await first.headers([*RESPONSE, (b"grpc-status", b"14")], end=True)
        second = await street.house.backend.request()
        if ends == "between":
            await call.data(message(b"two"), end=True)
        whole = message(b"one") + (message(b"two") if ends == "between" else b"")
        assert await second.request_body() == await at_shadow.request_body() == whole
        assert limit.open_calls == 1
        await at_shadow.respond()
        await street.well(call, second)
        assert street.counts() == {"sent": 1, "same": 1}
        assert street.shadow.no_request_came()
    assert limit.open_calls == 0


@trio_test
async def test_a_shadow_that_answers_before_the_request_is_over_gets_no_more_of_it(engine: Engine) -> None:
    async with a_street(engine) as street:
        call = await street.client.open(request_fields())
        at_backend, at_shadow = await street.house.backend.request(), await street.shadow.request()
        await at_shadow.respond()
        assert await at_shadow.expect_reset() == NO_ERROR
        await call.data(message(b"more"), end=True)
        assert await at_backend.request_body() == message(b"more")
        await street.well(call, at_backend)
        assert at_shadow.nothing_came()
        assert street.counts() == {"sent": 1, "same": 1}


@trio_test
async def test_no_more_copies_are_under_way_than_may_be(engine: Engine) -> None:
    async with a_street(engine, max_calls=1) as street:
        await street.call()
        call = await street.client.request()
        await street.well(call, await street.house.backend.request())
        assert street.shadow.no_request_came()
        assert street.counts() == {"sent": 1, "calls": 1}


@trio_test
async def test_a_copy_keeps_to_the_limits_of_the_shadows_cluster(engine: Engine) -> None:
    limit = ConcurrencyLimit(1)
    async with a_street(engine, limit=limit) as street:
        call, at_backend, at_shadow = await street.call()
        assert limit.open_calls == 1
        other = await street.client.request()
        await street.well(other, await street.house.backend.request())
        await at_shadow.respond()
        await street.well(call, at_backend)
        await until(lambda: street.mirror.open_copies == 0)
        assert street.counts() == {"sent": 1, "same": 1, "overflow": 1}


@trio_test
async def test_a_share_of_the_calls_is_copied(engine: Engine) -> None:
    rng = Random(3)
    expected = [rng.random() < 0.25 for _ in range(20)]
    async with a_street(engine, share=0.25, rng=Random(3)) as street:
        for is_copied in expected:
            call = await street.client.request()
            if is_copied:
                await (await street.shadow.request()).respond()
            await street.well(call, await street.house.backend.request())
        assert street.mirror.sent == sum(expected) > 0
        assert street.shadow.no_request_came()


@pytest.fixture
def still_clock() -> MockClock:
    """Time passes only where a test says so."""
    return MockClock()


@trio_test
async def test_the_shadow_is_told_the_deadline_and_ends_with_it(
    engine: Engine, still_clock: MockClock
) -> None:
    async with a_street(engine) as street:
        call, at_backend, at_shadow = await street.call((b"grpc-timeout", b"1S"))
        [timeout] = at_shadow.request.get_all(b"grpc-timeout")
        assert timeout.endswith(b"u")
        assert int(timeout[:-1]) <= 1_000_000
        await street.well(call, at_backend)
        assert street.mirror.open_copies == 1
        await at_shadow.request_body()
        still_clock.jump(1)
        assert await at_shadow.expect_reset() == CANCEL
        assert street.counts() == {"sent": 1, "late": 1}


@trio_test
async def test_a_copy_without_a_deadline_ends_soon_after_its_call(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_call, "_LINGER_S", 0.01)
    async with a_street(engine) as street:
        call, at_backend, at_shadow = await street.call()
        await at_shadow.request_body()
        await street.well(call, at_backend)
        assert await at_shadow.expect_reset() == CANCEL
        assert street.counts() == {"sent": 1, "late": 1}


@trio_test
async def test_a_shadow_that_takes_no_such_headers_is_not_sent_them(engine: Engine) -> None:
    async with a_street(engine, shadow={MAX_HEADER_LIST_SIZE: 1000}) as street:
        call = await street.client.request("/a.B/C", (b"x-long", b"x" * 1000))
        await street.well(call, await street.house.backend.request())
        await until(lambda: street.mirror.open_copies == 0)
        assert street.counts() == {"headers": 1}


@trio_test
async def test_leaving_a_mirror_gives_up_what_is_under_way_and_the_calls_go_on(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        shadow = Backend()
        await house.nursery.start(shadow.run)
        async with Mirror(house.pool.target(shadow.address)) as mirror:
            copy = mirror.begin(_context(), request_fields(), False, None)
            waiting = await shadow.request()
            assert copy is not None
        assert await waiting.expect_reset() == CANCEL
        assert (mirror.open_copies, mirror.given_up) == (0, 1)
        copy.request_data(b"too late", True)
        copy.original_over(Status.OK)
        assert mirror.begin(_context(), request_fields(), False, None) is None


class Broken(Balancer[Endpoint]):
    """A user's balancer, with a fault in it that shows the second time."""

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once

    def update(self, candidates: Sequence[Endpoint]) -> None:
        """Nothing to be made of them."""

    def pick(self, key: bytes | None = None, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        if self._at_once:
            raise ZeroDivisionError
        self._at_once = True
        return None


@pytest.mark.parametrize("at_once", [True, False])
@trio_test
async def test_a_fault_in_the_shadows_balancer_is_counted_and_goes_no_further(
    engine: Engine, at_once: bool
) -> None:
    async with (
        a_proxy(engine) as house,
        Cluster([NOWHERE], pool=house.pool, balancer=Broken(at_once=at_once)) as shadow,
        Mirror(shadow) as mirror,
    ):
        copy = mirror.begin(_context(), request_fields(), False, None)
        assert (copy is None) is at_once
        await until(lambda: mirror.dropped["fault"] == 1)
        assert mirror.open_copies == 0
        with pytest.raises(ConfigError, match="open already"):
            await mirror.__aenter__()


class Chance:
    """Peers that do whatever comes to their minds."""

    def __init__(self) -> None:
        self._rng = Random(7)

    async def shadow(self, copy: PeerStream) -> None:
        rng = self._rng
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            match rng.randrange(6):
                case 0:
                    await copy.reset(rng.choice([NO_ERROR, REFUSED_STREAM, CANCEL]))
                case 1:
                    await copy.headers([*RESPONSE, *NOT_FOUND], end=True)
                case 2 if rng.random() < 0.2:
                    await copy.peer.aclose()
                case 3:
                    await trio.sleep_forever()
                case _:
                    await copy.respond(bytes(rng.randrange(5000)))

    async def backend(self, served: PeerStream) -> None:
        if self._rng.random() < 0.1:
            await served.reset(self._rng.choice([REFUSED_STREAM, CANCEL]))
        else:
            await served.respond(b"x")

    async def caller(self, client: RawPeer) -> None:
        rng = self._rng
        call = await client.open(request_fields())
        if rng.random() < 0.15:
            await call.reset(CANCEL)
            return
        await call.body(message(bytes(rng.randrange(40_000))), end=rng.random() < 0.9)
        if rng.random() < 0.2:
            await call.reset(CANCEL)
        else:
            await call.answer()


@trio_test
async def test_whatever_peers_do_nothing_is_left_and_each_copy_is_counted_once(engine: Engine) -> None:
    chance, limit, count = Chance(), ConcurrencyLimit(20), 150
    async with a_street(engine, limit=limit, max_call_buffered_bytes=20_000, max_calls=15) as street:
        house = street.house
        async with trio.open_nursery() as peers:
            peers.start_soon(street.shadow.answer_all, chance.shadow)
            peers.start_soon(house.backend.answer_all, chance.backend)
            for _ in range(10):
                async with trio.open_nursery() as calls:
                    client = await house.client()
                    for _ in range(count // 10):
                        calls.start_soon(chance.caller, client)
            for _ in range(count):
                await house.record()
            for client in house.clients:
                await client.aclose()
            peers.cancel_scope.cancel()
    mirror, ended = street.mirror, street.counts()
    # Calls that were given up in the read in which they came have no copy.
    total = mirror.same + mirror.different + mirror.given_up + sum(mirror.dropped.values())
    assert 0.8 * count <= total <= count, ended
    assert min(mirror.same, mirror.different, mirror.given_up) > 0, ended


def _context() -> CallContext:
    return CallContext(method="/a.B/C", metadata=Metadata(), peer="unix:")


@pytest.mark.parametrize("mirror", [{"share": 1.5}, {"share": -0.1}, {"max_calls": 0}])
@trio_test
async def test_what_is_no_mirror_is_said(engine: Engine, mirror: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(mirror))):
        Mirror(Pool().target(NOWHERE), **mirror)
