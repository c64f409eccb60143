"""The tasks that run calls, and what one call must not leave to the next in the same task."""

import contextvars
from typing import Any, cast

import trio
import trio.testing

from rawgrpc_proxy.call_runners import CallRunners
from rawgrpc_proxy.net.connection import Turn
from rawgrpc_proxy.net.stream import Stream

CALL = cast("Stream", None)  # the runners only hand it on
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def settled() -> None:
    """Let every task run until it waits."""
    await trio.testing.wait_all_tasks_blocked()


def test_a_call_that_comes_after_another_runs_in_its_task() -> None:
    async def main() -> None:
        tasks = []

        async def run_call(_stream: Stream, _oversized: bool, _scope: trio.CancelScope) -> None:
            tasks.append(trio.lowlevel.current_task())

        async with trio.open_nursery() as nursery:
            turn = Turn()
            runners = CallRunners(nursery, run_call, turn)
            runners.start(CALL, False)
            runners.start(CALL, False)
            assert turn.starting == 2
            await settled()
            runners.start(CALL, False)
            await settled()
            assert turn.starting == 0
            assert tasks[0] is not tasks[1]
            assert tasks[2] in tasks[:2]
            runners.close()

    trio.run(main)


def test_context_variables_of_a_call_do_not_reach_the_next_one() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def run_call(_stream: Stream, _oversized: bool, _scope: trio.CancelScope) -> None:
            seen.append(variable.get())
            variable.set("left over")

        variable.set("the connection's")
        async with trio.open_nursery() as nursery:
            runners = CallRunners(nursery, run_call, Turn())
            for _ in range(3):
                runners.start(CALL, False)
                await settled()
            runners.close()
        assert seen == ["the connection's"] * 3

    trio.run(main)


def test_a_call_after_a_cancelled_one_is_not_cancelled() -> None:
    async def main() -> None:
        ends: list[Any] = []

        async def run_call(_stream: Stream, cancel: bool, scope: trio.CancelScope) -> None:
            if cancel:
                scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            finally:
                ends.append(scope.cancel_called)

        async with trio.open_nursery() as nursery:
            runners = CallRunners(nursery, run_call, Turn())
            for cancel in (False, True, False):
                runners.start(CALL, cancel)
                await settled()
            runners.close()
        assert ends == [False, True, False]

    trio.run(main)


def test_a_call_whose_deadline_passed_after_its_end_does_not_harm_the_next_one() -> None:
    async def main() -> None:
        runs = []

        async def run_call(_stream: Stream, late: bool, scope: trio.CancelScope) -> None:
            runs.append(late)
            if late:
                scope.deadline = trio.current_time()
            else:
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            runners = CallRunners(nursery, run_call, Turn())
            for late in (True, False):
                runners.start(CALL, late)
                await settled()
            runners.close()
        assert runs == [True, False]

    trio.run(main)


def test_closing_ends_the_idle_tasks_and_lets_a_running_call_finish() -> None:
    async def main() -> None:
        go_on, done = trio.Event(), []

        async def run_call(_stream: Stream, waits: bool, _scope: trio.CancelScope) -> None:
            if waits:
                await go_on.wait()
            done.append(waits)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                runners = CallRunners(nursery, run_call, Turn())
                runners.start(CALL, False)
                runners.start(CALL, True)
                await settled()
                runners.close()
                await settled()
                assert len(nursery.child_tasks) == 1
                go_on.set()
        assert done == [False, True]

    trio.run(main)


def test_cancelling_the_nursery_ends_idle_tasks() -> None:
    async def main() -> None:
        async def run_call(_stream: Stream, _oversized: bool, _scope: trio.CancelScope) -> None:
            pass

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                runners = CallRunners(nursery, run_call, Turn())
                runners.start(CALL, False)
                await settled()
                nursery.cancel_scope.cancel()
        runners.close()

    trio.run(main)
