"""What is ordered of faults reaches every worker, whenever it comes and however long it says nothing."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from rawgrpc_proxy.command.admin_news import nameless_file
from rawgrpc_proxy.command.admin_process import Workers
from rawgrpc_proxy.command.lab.admin_faults import CLEAR, PUT, TELL
from rawgrpc_proxy.command.link import Link, answer
from tests.proxy.house import until

ONE = '[[faults]]\nname = "one"\ndo = { reset = "CANCEL" }\n'
TWO = ONE.replace("one", "two")


class Worker:
    """Has rules; with a shut gate it does not answer."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.asked = 0
        self.gate = trio.Event()
        self.gate.set()

    async def put(self, toml: str) -> bool:
        self.asked += 1
        await self.gate.wait()
        if toml not in self.rules:
            self.rules.append(toml)
        return True

    async def clear(self, _: object) -> bool:
        self.asked += 1
        await self.gate.wait()
        self.rules.clear()
        return True


class Supervisor:
    """Has no news."""

    async def news(self) -> None:
        await trio.sleep_forever()


@contextlib.asynccontextmanager
async def linked(workers: Workers, worker: Worker) -> AsyncIterator[None]:
    ours, theirs = socket.socketpair()
    answers: Any = {PUT: worker.put, CLEAR: worker.clear, TELL: lambda _: [], "report": lambda _: _report()}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, theirs, answers)
        nursery.start_soon(workers._keep, os.getpid(), Link(ours))
        nursery.start_soon(workers._look_now_and_then)
        await until(lambda: bool(workers.links))
        yield
        nursery.cancel_scope.cancel()


def _report() -> None:
    raise ValueError("this test has none")


@pytest.mark.parametrize("clock", [MockClock(autojump_threshold=0)])
@trio_test
async def test_faults_that_are_taken_away_while_a_worker_begins_do_not_come_back(
    clock: MockClock,
) -> None:
    worker = Worker()
    with nameless_file() as ledger:
        workers = Workers(Supervisor(), ledger.fileno(), may_set_faults=True)  # type: ignore[arg-type]
        await workers.put_faults(ONE)
        await workers.put_faults(TWO)
        worker.gate = trio.Event()
        async with linked(workers, worker):
            await until(lambda: worker.asked == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.clear_faults)
                await wait_all_tasks_blocked()
                worker.gate.set()
            await trio.sleep(20)
            assert worker.rules == []


@pytest.mark.parametrize("clock", [MockClock(autojump_threshold=0)])
@trio_test
async def test_a_worker_that_did_not_answer_hears_of_an_order_later(clock: MockClock) -> None:
    worker = Worker()
    with nameless_file() as ledger:
        workers = Workers(Supervisor(), ledger.fileno(), may_set_faults=True)  # type: ignore[arg-type]
        async with linked(workers, worker):
            await workers.put_faults(ONE)
            assert worker.rules == [ONE]
            worker.gate = trio.Event()
            await workers.put_faults(TWO)
            await workers.clear_faults()
            worker.gate.set()
            await trio.sleep(20)
            assert worker.rules == []
            asked = worker.asked
            await trio.sleep(20)
            assert worker.asked == asked, "who has heard all is told nothing more"
