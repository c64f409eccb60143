"""Client, proxy and upstream in memory, in virtual time: an hour takes none, and takes it in the same way each time."""

import math
import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from rawgrpc_proxy import (
    CallContext,
    CallPolicy,
    Http2Settings,
    Pool,
    RetryPolicy,
    RpcError,
    ServedCall,
    Server,
    Status,
    StreamDirector,
    Target,
    identity_codec,
    unary_unary,
)
from rawgrpc_proxy.config import ENGINES, Engine
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab import Answers, Recorder, read_recording
from rawgrpc_proxy.testing import in_memory, replayed
from rawgrpc_proxy.testing.in_memory import InMemory

GET = "/shop.Orders/Get"
AN_HOUR_S = 3600.0
on_every_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def echo(request: bytes, _call: ServedCall) -> bytes:
    return request


async def slow(request: bytes, _call: ServedCall) -> bytes:
    await trio.sleep(AN_HOUR_S)
    return request


async def a_caller(house: InMemory) -> None:
    await house.client.unary_unary(GET, b"x")


@on_every_engine
@trio_test
async def test_a_call_goes_through_the_proxy(engine: Engine, autojump_clock: MockClock) -> None:
    settings = Http2Settings(engine=engine)
    async with in_memory({GET: unary_unary(echo, bytes)}, settings=settings) as house:
        assert await house.client.unary_unary(GET, b"x" * 1_000_000) == b"x" * 1_000_000
        [call] = house.calls
        assert call.status is Status.OK
        assert call.request_messages == [b"x" * 1_000_000]
        assert call.upstream == "upstream:1"


@trio_test
async def test_an_hour_takes_no_time_and_is_measured_exactly(autojump_clock: MockClock) -> None:
    began = time.monotonic()
    async with in_memory({GET: unary_unary(slow, bytes)}) as house:
        assert await house.client.unary_unary(GET, b"x") == b"x"
        assert house.calls[0].duration_s == pytest.approx(AN_HOUR_S)
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await house.client.unary_unary(GET, b"x", timeout=60)
        await wait_all_tasks_blocked()  # the client has given up; the proxy hears of it now
        assert house.calls[1].status in (Status.CANCELLED, Status.DEADLINE_EXCEEDED)
        assert house.calls[1].duration_s == pytest.approx(60)
    assert time.monotonic() - began < 60


@trio_test
async def test_several_upstreams_and_a_director(autojump_clock: MockClock) -> None:
    async def fail(_request: bytes, _call: ServedCall) -> bytes:
        raise RpcError(Status.UNAVAILABLE, "not now")

    east, west = Server(codec=identity_codec()), Server(codec=identity_codec())
    east.add_method(GET, unary_unary(fail, bytes))
    west.add_method(GET, unary_unary(echo, bytes))

    def make(pool: Pool) -> StreamDirector:
        targets = {name: pool.target(f"{name}:1") for name in ("east", "west", "north")}
        policy = CallPolicy(retry=RetryPolicy(max_attempts=3, retryable_status_codes=[Status.UNAVAILABLE]))

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context.with_policy(policy), targets[str(context.metadata.get("x-to", "west"))]

        return director

    async with in_memory({"east:1": east, "west:1": west}, director=make) as house:
        assert await house.client.unary_unary(GET, b"x") == b"x"
        for name, why in (("east", "not now"), ("north", "there is no upstream north:1 in memory")):
            with pytest.raises(RpcError, match=f"UNAVAILABLE: .*{why}"):
                await house.client.unary_unary(GET, b"x", metadata={"x-to": name})


@trio_test
async def test_the_same_seed_gives_the_same_run(autojump_clock: MockClock) -> None:
    async def a_run(seed: int) -> list[float]:
        began = trio.current_time()
        async with in_memory({"nowhere:1": Server()}, seed=seed) as house:
            for _ in range(3):
                with pytest.raises(RpcError, match="there is no upstream upstream:1"):
                    await house.client.unary_unary(GET, b"")
                await trio.sleep(10)
        assert len(house.calls) == 3
        return [call.duration_s or math.nan for call in house.calls] + [trio.current_time() - began]

    assert await a_run(1) == pytest.approx(await a_run(1))


@trio_test
async def test_what_the_block_raises_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    async def a_test() -> None:
        async with in_memory({GET: unary_unary(slow, bytes)}) as house, trio.open_nursery() as nursery:
            nursery.start_soon(a_caller, house)
            await trio.sleep(1)
            assert house.proxy.open_calls == 1
            nursery.cancel_scope.cancel()
        raise KeyError("of the test")

    tasks = trio.lowlevel.current_statistics().tasks_living
    with pytest.raises(KeyError):
        await a_test()
    with pytest.raises(ZeroDivisionError):
        async with in_memory({GET: unary_unary(echo, bytes)}):
            raise ZeroDivisionError
    assert trio.lowlevel.current_statistics().tasks_living == tasks


@trio_test
async def test_a_server_that_stops_ends_connections_in_memory_as_others(autojump_clock: MockClock) -> None:
    async with in_memory({GET: unary_unary(slow, bytes)}) as house, trio.open_nursery() as nursery:
        nursery.start_soon(a_caller, house)
        await trio.sleep(1)
        house.proxy.stop(grace_s=2 * AN_HOUR_S)
        assert house.proxy.open_connections == 1
        await trio.sleep(AN_HOUR_S + 1)
        assert house.proxy.open_connections == 0
        assert house.calls[0].status is Status.OK


@trio_test
async def test_a_recorded_failure_is_a_test_in_three_lines(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "failure.jsonl"

    async def failing(request: bytes, _call: ServedCall) -> bytes:
        raise RpcError(Status.INTERNAL, f"no order {request.decode()}")

    with Recorder(path) as recorder:
        async with in_memory({GET: unary_unary(failing, bytes)}, taps=[recorder]) as house:
            with pytest.raises(RpcError):
                await house.client.unary_unary(GET, b"7")
    # As it failed then it does now.
    async with in_memory({GET: unary_unary(failing, bytes)}) as house:
        assert await replayed(path, house.proxy) == []
        assert await replayed(path, house.upstreams["upstream:1"], side=Side.UPSTREAM) == []
    # When it is mended, it says so.
    async with in_memory({GET: unary_unary(echo, bytes)}) as house:
        [status, *_] = await replayed(path, house.proxy)
        assert f"{GET} (stream 1): grpc-status 0 instead of grpc-status 13" in status
    # The recorded answer is waited for, 10 s longer than it took then.
    async with in_memory({GET: unary_unary(slow, bytes)}) as house:
        assert any("did not send" in text for text in await replayed(path, house.proxy))


@trio_test
async def test_a_client_is_tested_against_a_recorded_server(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "calls.jsonl"
    with Recorder(path) as recorder:
        async with in_memory({GET: unary_unary(slow, bytes)}, taps=[recorder]) as house:
            assert await house.client.unary_unary(GET, b"7") == b"7"
    upstream = Answers(read_recording(path).side(Side.UPSTREAM)).handle
    async with in_memory(upstream) as house:
        assert await house.client.unary_unary(GET, b"7") == b"7"
        with pytest.raises(RpcError, match="not as recorded"):
            await house.client.unary_unary(GET, b"8")


@trio_test
async def test_a_recording_without_connections_of_the_side_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "empty.jsonl"
    with Recorder(path):
        pass
    with pytest.raises(ConfigError, match="has no connection of the side 'downstream'"):
        await replayed(path, Server())
