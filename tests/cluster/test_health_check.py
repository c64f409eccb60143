"""Endpoints are asked how they are, and those that are not well get no calls."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import Cluster, ConfigError, HealthCheck, Pool, PoolObserver, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.grpc.health import SERVICE, ServingStatus, request_for, response_of
from tests.cluster.town import Town, a_town
from tests.proxy.house import a_proxy, on_every_engine, until
from tests.proxy.raw_peers import RESPONSE, Backend, PeerStream, message

pytestmark = on_every_engine

CHECK, WATCH = f"/{SERVICE}/Check".encode(), f"/{SERVICE}/Watch".encode()
SERVING, NOT_SERVING = ServingStatus.SERVING, ServingStatus.NOT_SERVING
NOWHERE = "127.0.0.1:1"
MAX_CONCURRENT_STREAMS = 3
NOT_FOUND, UNIMPLEMENTED = b"5", b"12"


@pytest.fixture
def still_clock() -> MockClock:
    """Time passes only where a test says so."""
    return MockClock()


class NoChance(random.Random):
    """Intervals are what they are on average."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Ear(PoolObserver):
    """Hears how the endpoints are."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def endpoint_unhealthy(self, cluster: str, address: str, why: str) -> None:
        self.heard.append((cluster, address, why))

    def endpoint_healthy(self, cluster: str, address: str) -> None:
        self.heard.append((cluster, address))


async def end_with(stream: PeerStream, status: bytes) -> None:
    """A response without a message."""
    await stream.headers(RESPONSE)
    await stream.headers([(b"grpc-status", status)], end=True)


@dataclass(eq=False)
class Patient:
    """What a backend answers to checks, and what calls it has got."""

    backend: Backend
    says: ServingStatus | bytes | None = SERVING
    """A status of health, one of gRPC, or nothing at all."""
    payload: bytes | None = None
    """Instead of a response that can be read."""
    has_watch: bool = True
    checks: list[PeerStream] = field(default_factory=list)
    watches: list[PeerStream] = field(default_factory=list)
    calls: int = 0
    held: list[PeerStream] = field(default_factory=list)
    holds: bool = False
    """Whether calls are not answered."""

    @property
    def address(self) -> str:
        return self.backend.address

    async def run(self) -> None:
        async for stream in self.backend._requests:
            path = stream.request.get(b":path")
            if path == CHECK:
                self.checks.append(stream)
                await self.answer(stream)
            elif path == WATCH and self.has_watch:
                self.watches.append(stream)
                await self.tell(SERVING)
            elif path == WATCH:
                await end_with(stream, UNIMPLEMENTED)
            elif self.holds:
                self.held.append(stream)
            else:
                self.calls += 1
                await stream.respond()

    async def answer(self, stream: PeerStream) -> None:
        if isinstance(self.says, ServingStatus):
            await stream.respond(response_of(self.says) if self.payload is None else self.payload)
        elif self.says is not None:
            await end_with(stream, self.says)

    async def tell(self, status: ServingStatus) -> None:
        """Tell whoever watches."""
        stream = self.watches[-1]
        if not stream.sent_bytes:
            await stream.headers(RESPONSE)
        await stream.data(message(response_of(status)))


@dataclass
class Clinic:
    """A proxy before a cluster with health checks, and its patients."""

    town: Town
    patients: list[Patient]
    clock: MockClock

    @property
    def cluster(self) -> Cluster:
        return self.town.cluster

    async def call(self) -> Status | int | None:
        answer = await (await self.town.house.clients[0].request()).answer()
        await self.town.house.record()
        return answer.status

    async def who_gets_calls(self) -> set[int]:
        """Which of the patients do, by their numbers."""
        before = [patient.calls for patient in self.patients]
        for _ in range(2 * len(self.patients)):
            assert await self.call() == Status.OK
        return {n for n, patient in enumerate(self.patients) if patient.calls > before[n]}

    async def pass_time(self, seconds: float, *, step_s: float = 0.5) -> None:
        """Let so much time pass, with everything done that is due at each step."""
        for _ in range(round(seconds / step_s)):
            self.clock.jump(step_s)
            await trio.testing.wait_all_tasks_blocked(0.005)

    async def all_known(self) -> None:
        """Wait for the first checks."""
        await until(lambda: all(each.healthy is not None for each in self.cluster.endpoints))


@asynccontextmanager
async def a_clinic(
    engine: Engine,
    clock: MockClock,
    *others: str,
    count: int = 3,
    health: HealthCheck | None = None,
    settings: dict[int, int] | None = None,
    unwell: tuple[int, ...] = (),
    **more: Any,
) -> AsyncIterator[Clinic]:
    """`count` patients; those that are `unwell` say NOT_SERVING."""
    patients: list[Patient] = []

    def prepare(backends: list[Backend]) -> None:
        for number, backend in enumerate(backends):
            backend.settings |= settings or {}
            patients.append(Patient(backend, says=NOT_SERVING if number in unwell else SERVING))

    async with (
        trio.open_nursery() as nursery,
        a_town(
            engine,
            *others,
            count=count,
            prepare=prepare,
            health=health or HealthCheck(),
            rng=NoChance(1),
            **more,
        ) as town,
    ):
        for patient in patients:
            nursery.start_soon(patient.run)
        yield Clinic(town, patients, clock)
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------- Check


@trio_test
async def test_only_endpoints_that_say_they_serve_get_calls(engine: Engine, still_clock: MockClock) -> None:
    async with a_clinic(engine, still_clock, unwell=(1,)) as clinic:
        await clinic.all_known()
        assert await clinic.who_gets_calls() == {0, 2}
        assert f"{clinic.patients[1].address}: failed its health checks: it says NOT_SERVING" in (
            clinic.cluster.explain()
        )


@trio_test
async def test_calls_wait_for_the_first_check(engine: Engine, still_clock: MockClock) -> None:
    async with a_clinic(engine, still_clock, count=2, unwell=(0,)) as clinic:
        clinic.patients[1].says = None
        call = await clinic.town.house.clients[0].request()
        await until(lambda: len(clinic.patients[1].checks) == 1)
        await until(lambda: clinic.cluster.endpoints[0].healthy is False)
        assert call.nothing_came()
        clinic.patients[1].says = SERVING
        await clinic.patients[1].answer(clinic.patients[1].checks[0])
        assert (await call.answer()).status == Status.OK
        await clinic.town.house.record()
        assert [patient.calls for patient in clinic.patients] == [0, 1]


@trio_test
async def test_three_failures_in_a_row_take_an_endpoint_out_and_two_passes_put_it_back(
    engine: Engine, still_clock: MockClock
) -> None:
    ear = Ear()
    async with a_clinic(engine, still_clock, pool={"observer": ear}) as clinic:
        await clinic.all_known()
        first = clinic.patients[0]
        first.says = NOT_SERVING
        await clinic.pass_time(10.0, step_s=1.0)
        assert len(first.checks) in {2, 3}
        assert await clinic.who_gets_calls() == {0, 1, 2}
        await clinic.pass_time(7.0, step_s=1.0)
        assert await clinic.who_gets_calls() == {1, 2}
        first.says, so_far = SERVING, len(first.checks)
        await clinic.pass_time(5.0, step_s=1.0)
        assert len(first.checks) == so_far + 1
        assert await clinic.who_gets_calls() == {1, 2}
        await clinic.pass_time(6.0, step_s=1.0)
        assert await clinic.who_gets_calls() == {0, 1, 2}
        assert ear.heard == [("orders", first.address, "it says NOT_SERVING"), ("orders", first.address)]


@trio_test
async def test_an_endpoint_that_hangs_is_out_after_three_checks(
    engine: Engine, still_clock: MockClock
) -> None:
    async with a_clinic(engine, still_clock) as clinic:
        await clinic.all_known()
        clinic.patients[2].says = None
        await clinic.pass_time(15.5)
        assert clinic.cluster.endpoints[2].healthy
        await clinic.pass_time(1.0)
        assert await clinic.who_gets_calls() == {0, 1}
        assert clinic.cluster.endpoints[2].why_unhealthy is not None
        assert "timeout of 1 s" in clinic.cluster.endpoints[2].why_unhealthy


@trio_test
async def test_who_has_no_health_service_counts_as_healthy(engine: Engine, still_clock: MockClock) -> None:
    async with a_clinic(engine, still_clock, count=1) as clinic:
        clinic.patients[0].says = UNIMPLEMENTED
        await clinic.all_known()
        assert clinic.cluster.endpoints[0].healthy
        assert not clinic.cluster.panics


@trio_test
async def test_a_check_asks_for_the_service_as_grpc_has_it(engine: Engine, still_clock: MockClock) -> None:
    async with a_clinic(engine, still_clock, count=1, health=HealthCheck(service="a.B")) as clinic:
        clinic.patients[0].says = NOT_FOUND
        await clinic.all_known()
        [check] = clinic.patients[0].checks
        assert await check.request_body() == message(request_for("a.B"))
        assert check.request.get(b":authority") == clinic.patients[0].address.encode()
        assert check.request.get(b"grpc-timeout") is not None
        assert (check.request.get(b"user-agent") or b"").startswith(b"rawgrpc-proxy-health/")
        assert clinic.cluster.endpoints[0].why_unhealthy == "it says SERVICE_UNKNOWN of 'a.B'"


@trio_test
async def test_a_response_that_cannot_be_read_is_a_failure_and_checks_go_on(
    engine: Engine, still_clock: MockClock
) -> None:
    async with a_clinic(engine, still_clock, count=1, health=HealthCheck(healthy_threshold=1)) as clinic:
        clinic.patients[0].payload = b"\xff\xff"
        await clinic.all_known()
        assert "is no grpc.health.v1.HealthCheckResponse" in (clinic.cluster.endpoints[0].why_unhealthy or "")
        clinic.patients[0].payload = None
        await clinic.pass_time(6.0)
        assert clinic.cluster.endpoints[0].healthy


@trio_test
async def test_an_endpoint_that_joins_gets_calls_after_its_first_check_and_one_that_leaves_no_more_checks(
    engine: Engine, still_clock: MockClock
) -> None:
    async with a_clinic(engine, still_clock) as clinic:
        await clinic.all_known()
        one, two, three = clinic.patients
        clinic.cluster.found([EndpointAddress(one.address), EndpointAddress(two.address)])
        so_far = len(three.checks)
        await clinic.pass_time(12.0, step_s=1.0)
        assert len(three.checks) == so_far
        three.says = None
        clinic.cluster.found([EndpointAddress(each.address) for each in clinic.patients])
        await until(lambda: len(three.checks) == so_far + 1)
        assert await clinic.who_gets_calls() == {0, 1}
        three.says = SERVING
        await three.answer(three.checks[-1])
        await until(lambda: clinic.cluster.endpoints[2].healthy is True)
        assert await clinic.who_gets_calls() == {0, 1, 2}


# ----------------------------------------------------------------- where the pool is full


@trio_test
async def test_a_check_does_not_wait_behind_calls_for_a_limit_of_our_own(
    engine: Engine, still_clock: MockClock
) -> None:
    pool = {"size": 1, "ms": 1, "max_waiting": 0}
    async with a_clinic(engine, still_clock, count=1, pool=pool) as clinic:
        [patient] = clinic.patients
        await clinic.all_known()
        patient.holds = True
        call = await clinic.town.house.clients[0].request()
        await until(lambda: len(patient.held) == 1)
        patient.says = NOT_SERVING
        await clinic.pass_time(17.0, step_s=1.0)
        assert len(patient.backend.peers) == 1
        assert clinic.cluster.endpoints[0].why_unhealthy == "it says NOT_SERVING"
        await patient.held[0].respond()
        await call.answer()
        await clinic.town.house.record()


@trio_test
async def test_a_check_for_which_calls_have_left_no_stream_has_a_connection_of_its_own(
    engine: Engine, still_clock: MockClock
) -> None:
    pool = {"size": 1, "max_waiting": 5}
    settings = {MAX_CONCURRENT_STREAMS: 1}
    async with a_clinic(engine, still_clock, count=1, pool=pool, settings=settings) as clinic:
        [patient] = clinic.patients
        await clinic.all_known()
        patient.holds = True
        call = await clinic.town.house.clients[0].request()
        await until(lambda: len(patient.held) == 1)
        await clinic.pass_time(6.0, step_s=1.0)
        [shared, own] = patient.backend.peers
        assert patient.checks[-1].peer is own
        await own.closed()
        assert clinic.cluster.endpoints[0].healthy
        patient.says = NOT_SERVING
        await clinic.pass_time(17.0, step_s=1.0)
        assert clinic.cluster.endpoints[0].why_unhealthy == "it says NOT_SERVING"
        assert patient.held[0].peer is shared
        await patient.held[0].respond()
        assert (await call.answer()).status == Status.OK, "checks have left it alone"
        await clinic.town.house.record()


@trio_test
async def test_a_watch_has_a_connection_of_its_own_for_as_long_as_it_goes_on(
    engine: Engine, still_clock: MockClock
) -> None:
    async with (
        trio.open_nursery() as nursery,
        a_proxy(engine, pool={"size": 1, "max_waiting": 5}, backend={MAX_CONCURRENT_STREAMS: 1}) as house,
    ):
        patient = Patient(house.backend)
        nursery.start_soon(patient.run)
        place = await house.pool.target(patient.address).take()
        async with Cluster([patient.address], pool=house.pool, health=HealthCheck(kind="watch")) as cluster:
            await until(lambda: cluster.endpoints[0].healthy is True)
            [_, own] = patient.backend.peers
            assert patient.watches[0].peer is own
            await patient.tell(NOT_SERVING)
            await until(lambda: cluster.endpoints[0].healthy is False)
            await patient.watches[0].reset(2)
            await own.closed()
        place.give_back()
        nursery.cancel_scope.cancel()


@trio_test
async def test_an_endpoint_whose_dials_hang_is_found_out_when_calls_have_all_places(
    engine: Engine, still_clock: MockClock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        pool = {"size": 1, "ms": 1, "max_waiting": 0, "dial_timeout_s": 100.0}
        async with (
            trio.open_nursery() as nursery,
            a_proxy(engine, pool=pool) as house,
        ):
            target = house.pool.target(address)
            nursery.start_soon(target.take)
            await until(lambda: target.dialling == 1)
            async with Cluster([address], pool=house.pool, health=HealthCheck()) as cluster:
                [endpoint] = cluster.endpoints
                await trio.testing.wait_all_tasks_blocked(0.005)
                assert endpoint.healthy is None
                still_clock.jump(1.0)
                await until(lambda: endpoint.healthy is False)
                assert "timeout of 1 s" in (endpoint.why_unhealthy or "")
            nursery.cancel_scope.cancel()


@trio_test
async def test_an_endpoint_for_which_other_addresses_leave_no_connection_is_checked_all_the_same(
    engine: Engine, still_clock: MockClock
) -> None:
    pool = {"max_connections": 1, "max_waiting": 1}
    async with a_clinic(engine, still_clock, count=2, pool=pool) as clinic:
        await clinic.all_known()
        assert all(endpoint.healthy for endpoint in clinic.cluster.endpoints)
        clinic.patients[0].holds = clinic.patients[1].holds = True
        call = await clinic.town.house.clients[0].request()
        await until(lambda: any(patient.held for patient in clinic.patients))
        [busy] = [n for n, patient in enumerate(clinic.patients) if patient.held]
        clinic.patients[not busy].says = NOT_SERVING
        await clinic.pass_time(17.0, step_s=1.0)
        assert [endpoint.healthy for endpoint in clinic.cluster.endpoints] == [busy == 0, busy == 1]
        await clinic.patients[busy].held[0].respond()
        assert (await call.answer()).status == Status.OK
        await clinic.town.house.record()


# ------------------------------------------------------------------------- Watch


@trio_test
async def test_what_an_endpoint_says_itself_counts_at_once(engine: Engine, still_clock: MockClock) -> None:
    async with a_clinic(engine, still_clock, health=HealthCheck(kind="watch")) as clinic:
        await clinic.all_known()
        assert await clinic.who_gets_calls() == {0, 1, 2}
        await clinic.patients[1].tell(NOT_SERVING)
        await until(lambda: clinic.cluster.endpoints[1].healthy is False)
        assert await clinic.who_gets_calls() == {0, 2}
        await clinic.patients[1].tell(SERVING)
        await until(lambda: clinic.cluster.endpoints[1].healthy is True)
        assert await clinic.who_gets_calls() == {0, 1, 2}
        assert not any(patient.checks for patient in clinic.patients)


@trio_test
async def test_who_has_no_watch_is_asked_by_check(engine: Engine, still_clock: MockClock) -> None:
    async with a_clinic(engine, still_clock, count=1, health=HealthCheck(kind="watch")) as clinic:
        [patient] = clinic.patients
        patient.has_watch = False
        await clinic.all_known()
        assert clinic.cluster.endpoints[0].healthy
        await clinic.pass_time(6.0, step_s=1.0)
        assert len(patient.checks) == 2
        patient.says = NOT_SERVING
        patient.has_watch = True
        await clinic.pass_time(6.0, step_s=1.0)
        assert not patient.watches
        await clinic.pass_time(6.0, step_s=1.0)
        assert len(patient.watches) == 1, "it was started anew, perhaps as another program"


@trio_test
async def test_a_connection_that_is_to_end_does_not_wait_for_a_watch(
    engine: Engine, still_clock: MockClock
) -> None:
    async with a_clinic(engine, still_clock, count=1, health=HealthCheck(kind="watch")) as clinic:
        [patient] = clinic.patients
        await clinic.all_known()
        [old] = patient.backend.peers
        await old.goaway(patient.watches[0].id)
        await clinic.pass_time(6.0, step_s=1.0)
        await old.closed()
        assert len(patient.watches) == 2
        assert clinic.cluster.endpoints[0].healthy


@trio_test
async def test_a_watch_that_is_lost_is_begun_anew_and_fails_as_a_check_does(
    engine: Engine, still_clock: MockClock
) -> None:
    async with a_clinic(engine, still_clock, count=1, health=HealthCheck(kind="watch")) as clinic:
        [patient] = clinic.patients
        await clinic.all_known()
        await patient.watches[0].reset(2)
        await clinic.pass_time(6.0, step_s=1.0)
        assert len(patient.watches) == 2
        assert clinic.cluster.endpoints[0].healthy
        await patient.backend.stop_listening()
        for peer in patient.backend.peers:
            await peer.aclose()
        await clinic.pass_time(17.0, step_s=1.0)
        assert "cannot connect" in (clinic.cluster.endpoints[0].why_unhealthy or "")


@trio_test
async def test_who_changes_its_mind_without_end_is_heard_ten_times_and_then_asked_again_in_an_interval(
    engine: Engine, still_clock: MockClock
) -> None:
    ear = Ear()
    async with a_clinic(
        engine, still_clock, count=1, health=HealthCheck(kind="watch"), pool={"observer": ear}
    ) as clinic:
        [patient] = clinic.patients
        await clinic.all_known()
        watch = patient.watches[0]
        await watch.request_body()
        chatter = [message(response_of(says)) for says in (NOT_SERVING, SERVING)]
        await watch.data(b"".join(chatter * 500))
        assert await watch.expect_reset() == 8
        assert len(ear.heard) == 9
        await clinic.pass_time(4.0, step_s=1.0)
        assert len(patient.watches) == 1
        await clinic.pass_time(2.0, step_s=1.0)
        assert len(patient.watches) == 2
        assert clinic.cluster.endpoints[0].healthy


# --------------------------------------------------------------------------- tcp


@trio_test
async def test_a_tcp_check_wants_a_connection_and_nothing_more(
    engine: Engine, still_clock: MockClock
) -> None:
    health = HealthCheck(kind="tcp")
    async with a_clinic(engine, still_clock, NOWHERE, count=2, health=health) as clinic:
        await clinic.all_known()
        nowhere, *others = clinic.cluster.endpoints
        assert nowhere.why_unhealthy is not None
        assert nowhere.why_unhealthy.startswith(f"cannot connect to {NOWHERE}")
        assert all(endpoint.healthy for endpoint in others)
        assert not any(patient.checks for patient in clinic.patients)
        assert await clinic.who_gets_calls() == {0, 1}


def test_settings_that_do_not_fit_together_are_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="a TCP check asks for nothing"):
        Cluster(["a:1"], pool=Pool(), health=HealthCheck(kind="tcp", service="a.B"))
