"""Faults in tests: added and taken away while the proxy runs, seen as callers see them, and in virtual time."""

import contextlib
import threading

import pytest
import trio
from trio.testing import MockClock, trio_test

from rawgrpc_proxy import RpcError, Status, unary_unary
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.faults import (
    PRESETS,
    AfterMessage,
    AnswerHttp,
    AnswerStatus,
    AtConnect,
    AtTrailers,
    BeforeHeaders,
    Cut,
    Delay,
    Fault,
    Faults,
    Latency,
    OnFrame,
    Part,
    Reset,
)
from rawgrpc_proxy.testing import ProxyInThread, in_memory
from tests.testing.test_in_memory import autojump_clock as autojump_clock  # noqa: PLC0414  # a fixture
from tests.testing.test_in_memory import echo
from tests.testing.test_in_thread import GET, LIST, ask, ask_in_vain


def test_a_fault_is_there_until_it_is_taken_away() -> None:
    with ProxyInThread() as backend, ProxyInThread(backend.target) as proxy:
        backend.answer(GET, [b"x"])
        backend.answer(LIST, [b"l"])
        fault = Fault(
            method=GET, calls="first 2", do=AnswerStatus(status="UNAVAILABLE", message="on purpose")
        )
        with proxy.faults.add(fault) as rule:
            assert ask(proxy.target, LIST) == b"l"
            assert [ask_in_vain(proxy.target).message for _ in range(2)] == ["on purpose"] * 2
            assert ask(proxy.target) == b"x"
            assert (rule.counts.fitted, rule.counts.struck) == (3, 2)
            proxy.faults.add(Fault(do=Reset(code="ENHANCE_YOUR_CALM")))
            assert ask_in_vain(proxy.target, LIST).status is Status.RESOURCE_EXHAUSTED
        proxy.faults.clear()
        assert ask(proxy.target) == b"x"
        # What was seen is what callers got. The backend has not seen all of them.
        assert [call.status for call in proxy.calls if call.method == GET] == [
            Status.UNAVAILABLE, Status.UNAVAILABLE, Status.OK, Status.OK,
        ]  # fmt: skip
        assert proxy.wait_for(status="RESOURCE_EXHAUSTED")[0].reset_code == 11
        assert len(backend.calls) == 3


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault(do=AnswerHttp(status=502, body="<html>")), Status.UNAVAILABLE),
        (Fault(where=OnFrame(frame="HEADERS"), do=Reset(code="CANCEL")), Status.CANCELLED),
        (Fault(where=AtTrailers(), do=Cut(reset=True)), Status.UNAVAILABLE),
        (Fault(side=Side.UPSTREAM, where=AfterMessage(number=1), do=Cut()), Status.UNAVAILABLE),
    ],
    ids=["http 502", "reset", "cut", "cut upstream"],
)
def test_the_status_is_the_same_for_the_caller_and_the_test(fault: Fault, status: Status) -> None:
    with ProxyInThread() as backend, ProxyInThread(backend.target, faults=Faults([fault])) as proxy:
        backend.answer(GET, [b"x"])
        assert ask_in_vain(proxy.target).status is status
        assert proxy.wait_for(method=GET)[0].status is status


def test_faults_may_come_from_another_thread_while_a_call_waits() -> None:
    with ProxyInThread() as proxy:
        proxy.answer(GET, [b"x"], delay_s=0.2)
        errors: list[RpcError] = []
        caller = threading.Thread(target=lambda: errors.append(ask_in_vain(proxy.target)))
        with proxy.faults.add(
            Fault(where=BeforeHeaders(of=Part.RESPONSE), do=AnswerStatus(status="ABORTED"))
        ):
            caller.start()
            proxy.wait_for(status="ABORTED", timeout_s=30)
        caller.join()
        assert errors[0].status is Status.ABORTED
        assert ask(proxy.target) == b"x"


def test_grpcio_on_a_channel_that_stays_open() -> None:
    grpc = pytest.importorskip("grpc")
    with ProxyInThread() as proxy, grpc.insecure_channel(proxy.target) as channel:
        proxy.answer(GET, [b"x"])
        assert channel.unary_unary(GET)(b"") == b"x"
        with proxy.faults.add(Fault(do=AnswerStatus(status="DATA_LOSS", message="a bit fell over"))):
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary(GET)(b"")
            assert failed.value.code() is grpc.StatusCode.DATA_LOSS
            assert failed.value.details() == "a bit fell over"
        assert channel.unary_unary(GET)(b"") == b"x"
        assert [call.status.name for call in proxy.calls if call.status is not None] == [
            "OK",
            "DATA_LOSS",
            "OK",
        ]


# ------------------------------------------------------------------------------ in virtual time


@trio_test
async def test_faults_take_the_time_they_say(autojump_clock: MockClock) -> None:
    faults = Faults()
    async with in_memory({GET: unary_unary(echo, bytes)}, faults=faults) as house:
        with faults.add(Fault(where=BeforeHeaders(of=Part.RESPONSE), do=Delay(seconds=3600))):
            assert await house.client.unary_unary(GET, b"x") == b"x"
        assert await house.client.unary_unary(GET, b"x") == b"x"
        late, prompt = (call.duration_s for call in house.calls)
        assert late == pytest.approx(3600, abs=1)
        assert prompt == pytest.approx(0, abs=1)


@trio_test
async def test_a_slow_network_is_one(autojump_clock: MockClock) -> None:
    fault = Fault(where=AtConnect(), do=Latency(seconds=0.1))
    async with in_memory({GET: unary_unary(echo, bytes)}, faults=Faults([fault])) as house:
        began = trio.current_time()
        for _ in range(3):
            await house.client.unary_unary(GET, b"x")
        assert trio.current_time() - began >= 0.6


@trio_test
async def test_the_same_seed_strikes_the_same_calls(autojump_clock: MockClock) -> None:
    async def a_run(seed: int) -> list[Status | None]:
        faults = Faults(PRESETS["flaky-backend"].faults, seed=seed)
        async with in_memory({GET: unary_unary(echo, bytes)}, faults=faults) as house:
            for _ in range(40):
                with contextlib.suppress(RpcError):
                    await house.client.unary_unary(GET, b"x", timeout=60)
            return [call.status for call in house.calls]

    first = await a_run(7)
    assert first == await a_run(7)
    assert Status.OK in first
    assert Status.UNAVAILABLE in first
    assert first != await a_run(8)
