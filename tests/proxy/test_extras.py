"""What is collected of a call for an observer that asks for more, and that nothing is for one that does not."""

import gc
import sys
import weakref

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, CallRecord, Metadata, Status
from rawgrpc_proxy.call import ObservedContext
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.observe.record import CallExtras
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.proxy.hops import limit_hops
from rawgrpc_proxy.proxy.routing import Route, director_of
from tests.proxy.directors import Wrapped
from tests.proxy.house import House, Recorder, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import RESPONSE, message, request_fields

pytestmark = on_every_engine
ALL = frozenset({"messages", "extras", "first_byte", "routes"})


class Curious(Recorder):
    """Asks for these, and hears of calls when they begin."""

    def __init__(self, wants: frozenset[str] = ALL) -> None:
        super().__init__()
        self.wants = wants
        self.started: list[CallRecord] = []

    def call_begun(self, record: CallRecord) -> None:
        self.started.append(record)


async def extras_of(house: House) -> CallExtras:
    """Those of the next call that ends."""
    extras = (await house.record()).extras
    assert extras is not None
    return extras


@trio_test
async def test_an_observer_that_asks_for_nothing_costs_nothing(engine: Engine) -> None:
    seen: list[CallContext] = []

    def director(context: CallContext, _method: str) -> Direction:
        seen.append(context)
        return context, house.pool.target(house.backend.address)

    async with a_proxy(engine, director=director) as house:
        call = await (await house.client()).request(body=b"1")
        await (await house.backend.request()).respond(b"22")
        await call.answer()
        record = await house.record()
        assert record.extras is None
        assert (record.request_messages, record.response_messages) == (1, 1)
    assert type(seen[0]) is CallContext


@trio_test
async def test_messages_are_counted_only_for_those_who_want_to_know(engine: Engine) -> None:
    async with a_proxy(engine, recorder=Curious(frozenset({"extras"}))) as house:
        call = await (await house.client()).request(body=b"1")
        await (await house.backend.request()).respond(b"22")
        await call.answer()
        record = await house.record()
        assert (record.request_messages, record.response_messages) == (0, 0)
        assert (record.request_bytes, record.response_bytes) == (6, 7)
        assert record.extras is not None
        assert record.extras.first_byte_at is None


@trio_test
async def test_the_request_its_stream_and_when_the_response_began(engine: Engine) -> None:
    async with a_proxy(engine, recorder=Curious()) as house:
        client = await house.client()
        for number in (1, 2):
            call = await client.request("/a.B/C", (b"user-agent", b"it/%d" % number), body=b"1")
            served = await house.backend.request()
            await served.headers(RESPONSE)
            await call.expect_headers()
            await trio.sleep(0.05)
            await served.data(message(b"22"))
            await served.headers([(b"grpc-status", b"0")], end=True)
            await call.answer()
            record = await house.record()
            extras = record.extras
            assert extras is not None
            assert (b"user-agent", b"it/%d" % number) in extras.headers
            assert (extras.stream_id, extras.attempts, extras.flag) == (2 * number - 1, 1, "")
            assert extras.first_byte_at is not None
            assert 0 < extras.first_byte_at - extras.started <= record.duration_s - 0.05


@trio_test
async def test_a_call_that_was_refused_has_two_attempts(engine: Engine) -> None:
    async with a_proxy(engine, recorder=Curious()) as house:
        call = await (await house.client()).request()
        await (await house.backend.request()).reset(7)
        await (await house.backend.request()).respond()
        await call.answer()
        assert (await extras_of(house)).attempts == 2


@pytest.mark.parametrize("wrapped", [False, True])
@trio_test
async def test_flags_tell_why_the_proxy_has_ended_a_call(engine: Engine, wrapped: bool) -> None:
    wrapper = Wrapped()
    configure = {"configure": wrapper.configure} if wrapped else {}
    async with a_proxy(engine, recorder=Curious(), **configure) as house:  # type: ignore[arg-type]
        client = await house.client()
        call = await client.request()
        await (await house.backend.request()).reset(2)
        await call.answer()
        reset = await extras_of(house)
        assert (reset.flag, reset.attempts) == ("UR", 1)

        call = await client.request("/a.B/C", (b"grpc-timeout", b"100m"))
        await house.backend.request()
        await call.answer()
        assert (await extras_of(house)).flag == "DT"

        call = await client.open(request_fields())
        await house.backend.request()
        await call.reset(8)
        assert (await extras_of(house)).flag == "DR"

        call = await client.request()
        await (await house.backend.request()).peer.aclose()
        await call.answer()
        assert (await extras_of(house)).flag == "UC"

        await client.open(request_fields())
        await house.backend.request()
        await client.aclose()
        assert (await extras_of(house)).flag == "DC"
        house.clients.clear()


@trio_test
async def test_a_call_that_never_gets_to_its_upstream_has_no_attempt(engine: Engine) -> None:
    async with a_proxy(engine, recorder=Curious(), pool={"connect_wait_s": 0.1}, unknown=True) as house:
        await house.backend.stop_listening()
        call = await (await house.client()).request()
        assert (await call.answer()).status == Status.UNAVAILABLE
        extras = await extras_of(house)
        assert (extras.flag, extras.attempts, extras.first_byte_at) == ("UF", 0, None)


@trio_test
async def test_nobody_serves_it(engine: Engine) -> None:
    async with a_proxy(engine, recorder=Curious(), unknown=False) as house:
        call = await (await house.client()).request()
        assert (await call.answer()).status == Status.UNIMPLEMENTED
        assert (await extras_of(house)).flag == "NR"


@trio_test
async def test_the_route_and_its_cluster_are_noted_whatever_the_context_went_through(engine: Engine) -> None:
    def director(context: CallContext, method: str) -> Direction:
        target = house.pool.target(house.backend.address)
        routes = director_of(
            [
                Route("/a.B/C", target, metadata={"x-env": "staging"}, names=("first", "staging")),
                Route(
                    "/a.B/*", target, set_values={"x-edge": "1"}, max_timeout_s=60, names=("/a.B/*", "all")
                ),
            ]
        )
        answer = limit_hops(routes, 5)(context, method)
        assert isinstance(answer, tuple)
        return answer

    async with a_proxy(engine, recorder=Curious(), director=director) as house:
        client = await house.client()
        staging, other = (b"x-env", b"staging"), (b"x-env", b"other")
        for metadata, names in ((staging, ("first", "staging")), (other, ("/a.B/*", "all"))):
            call = await client.request("/a.B/C", metadata)
            await (await house.backend.request()).respond()
            await call.answer()
            extras = await extras_of(house)
            assert (extras.route, extras.cluster) == names


@trio_test
async def test_a_call_is_told_of_when_it_begins_and_how_far_it_is_can_be_seen_at_any_time(
    engine: Engine,
) -> None:
    observer = Curious()
    async with a_proxy(engine, recorder=observer) as house:
        call = await (await house.client()).open(request_fields())
        served = await house.backend.request()
        [record] = observer.started
        assert record.method == "/a.B/C"
        extras = record.extras
        assert extras is not None
        await call.data(message(b"1"))
        await served.read(6)
        await served.headers(RESPONSE)
        await served.data(message(b"22") * 3)
        await call.expect_headers()
        await call.read(21)
        assert record.response_bytes == 0
        assert extras.refresh is not None
        extras.refresh()
        assert (record.request_bytes, record.request_messages) == (6, 1)
        assert (record.response_bytes, record.response_messages) == (21, 3)
        await served.headers([(b"grpc-status", b"5")], end=True)
        await call.answer()
        ended = await house.record()
        assert ended is record
        assert (record.status, record.response_messages) == (Status.NOT_FOUND, 3)
        assert extras.refresh is None


@pytest.mark.skipif(not hasattr(gc, "freeze"), reason="counts references")
@trio_test
async def test_a_call_that_was_observed_leaves_no_circle(engine: Engine) -> None:
    kept: list[weakref.ref[CallContext]] = []

    def director(context: CallContext, _method: str) -> Direction:
        kept.append(weakref.ref(context))
        return context, house.pool.target(house.backend.address)

    observer = Curious()
    async with a_proxy(engine, recorder=observer, director=director) as house:
        client = await house.client()
        gc.disable()
        try:
            for outcome in ("answered", "reset"):
                call = await client.request()
                served = await house.backend.request()
                await (served.respond() if outcome == "answered" else served.reset(2))
                await call.answer()
                await house.record()
                observer.started.clear()
                del call, served
            await until(
                lambda: not [context for context in kept if context() is not None], "a context is kept"
            )
        finally:
            gc.enable()


class Faulty(Recorder):
    """Asks in ways that are none."""

    wants = 5  # type: ignore[assignment]

    @property
    def call_begun(self) -> object:  # type: ignore[override]
        raise ZeroDivisionError


@trio_test
async def test_an_observer_whose_wishes_cannot_be_read_is_told_what_others_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    async with a_proxy(engine, recorder=Faulty()) as house:
        call = await (await house.client()).request(body=b"1")
        await (await house.backend.request()).respond()
        await call.answer()
        record = await house.record()
        assert (record.request_messages, record.extras) == (1, None)
        assert reported == [ZeroDivisionError]


def test_an_observed_context_is_the_same_call(engine: Engine) -> None:
    extras = CallExtras(headers=[], stream_id=1, tls_peer=None, started=0.0)
    plain = CallContext(method="/p.S/M", metadata=Metadata([]), peer="unix:", deadline=5.0)
    observed = ObservedContext.of(plain, extras).with_deadline(7.0)
    assert isinstance(observed, ObservedContext)
    assert observed.extras is extras
    assert (observed.method, observed.peer, observed.deadline) == ("/p.S/M", "unix:", 7.0)
