"""The tasks that run calls' jobs, and what one job must not leave to the next in the same task."""

import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from rawgrpc_proxy.net.turn import Turn
from rawgrpc_proxy.server.runners import CallRunners

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def settled() -> None:
    """Let every task run until it waits."""
    await trio.testing.wait_all_tasks_blocked()


def run(main: Callable[[CallRunners, trio.Nursery], Awaitable[None]]) -> None:
    """Run `main` with runners, and see that they leave no task behind when they are closed."""

    async def with_runners() -> None:
        with trio.fail_after(10):
            variable.set("the connection's")
            async with trio.open_nursery() as nursery:
                runners = CallRunners(nursery, Turn())
                await main(runners, nursery)
                runners.close()

    trio.run(with_runners)


def test_jobs_of_one_moment_run_in_one_task_in_their_order_and_later_ones_in_kept_tasks() -> None:
    async def main(runners: CallRunners, nursery: trio.Nursery) -> None:
        ran = []

        async def job(subject: int, _scope: trio.CancelScope) -> None:
            ran.append((subject, trio.lowlevel.current_task()))

        for number in range(5):
            runners.start(job, number)
        await settled()
        assert [subject for subject, _ in ran] == list(range(5))
        assert len({task for _, task in ran}) == 1
        tasks = set(nursery.child_tasks)
        runners.start(job, 5)
        await settled()
        assert ran[5][1] in tasks
        assert set(nursery.child_tasks) == tasks

    run(main)


def test_a_job_that_waits_holds_up_none_of_the_others() -> None:
    async def main(runners: CallRunners, _nursery: trio.Nursery) -> None:
        go_on, done = trio.Event(), list[int]()

        async def job(subject: int, _scope: trio.CancelScope) -> None:
            if subject % 2 == 0:
                await go_on.wait()
            done.append(subject)

        for number in range(100):
            runners.start(job, number)
        await settled()
        assert done == list(range(1, 100, 2))
        go_on.set()
        await settled()
        assert len(done) == 100

    run(main)


def test_many_jobs_of_one_moment_let_other_tasks_in_between() -> None:
    async def main(runners: CallRunners, nursery: trio.Nursery) -> None:
        done, seen = list[int](), list[int]()

        async def job(subject: int, _scope: trio.CancelScope) -> None:
            done.append(subject)

        async def bystander() -> None:
            while len(done) < 1000:
                seen.append(len(done))
                await trio.lowlevel.checkpoint()

        for number in range(1000):
            runners.start(job, number)
        nursery.start_soon(bystander)
        await settled()
        assert done == list(range(1000))
        assert len(seen) > 10

    run(main)


def test_context_variables_of_a_job_do_not_reach_another_one() -> None:
    async def main(runners: CallRunners, _nursery: trio.Nursery) -> None:
        seen = list[str]()

        async def job(_subject: int, _scope: trio.CancelScope) -> None:
            seen.append(variable.get())
            variable.set("left over")
            await trio.lowlevel.checkpoint()
            assert variable.get() == "left over"

        for number in range(3):
            runners.start(job, number)
        await settled()
        for number in range(3):
            runners.start(job, number)
            await settled()
        assert seen == ["the connection's"] * 6

    run(main)


class Odd:
    """What arrays do: neither equal nor unequal."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")


odd: contextvars.ContextVar[object] = contextvars.ContextVar("odd", default=None)


def test_values_of_context_variables_are_not_compared() -> None:
    async def main(_runners: CallRunners, nursery: trio.Nursery) -> None:
        seen = list[object]()
        first, second = Odd(), Odd()
        odd.set(first)
        runners = CallRunners(nursery, Turn())

        async def job(_subject: int, _scope: trio.CancelScope) -> None:
            seen.append(odd.get())
            odd.set(second)

        for number in range(3):
            runners.start(job, number)
        await settled()
        assert len(seen) == 3
        assert all(value is first for value in seen)
        runners.close()

    run(main)


def test_a_job_after_a_cancelled_one_is_not_cancelled() -> None:
    async def main(runners: CallRunners, _nursery: trio.Nursery) -> None:
        ends = list[Any]()

        async def job(cancel: bool, scope: trio.CancelScope) -> None:
            if cancel:
                scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            finally:
                ends.append(scope.cancel_called)

        for cancel in (False, True, False):
            runners.start(job, cancel)
            await settled()
        assert ends == [False, True, False]
        for cancel in (True, False):
            runners.start(job, cancel)
        await settled()
        assert sorted(ends[3:]) == [False, True]

    run(main)


def test_a_job_that_was_cancelled_and_has_not_noticed_does_not_harm_the_next_one() -> None:
    async def main(runners: CallRunners, _nursery: trio.Nursery) -> None:
        runs = list[bool]()

        async def job(late: bool, scope: trio.CancelScope) -> None:
            runs.append(late)
            if late:
                scope.deadline = trio.current_time()
            else:
                await trio.lowlevel.checkpoint()
                runs.append(late)

        for late in (True, False):
            runners.start(job, late)
        await settled()
        assert runs == [True, False, False]

    run(main)


def test_closing_ends_the_idle_tasks_and_lets_a_running_job_finish() -> None:
    async def main(runners: CallRunners, nursery: trio.Nursery) -> None:
        go_on, done = trio.Event(), list[bool]()

        async def job(waits: bool, _scope: trio.CancelScope) -> None:
            if waits:
                await go_on.wait()
            done.append(waits)

        runners.start(job, True)
        runners.start(job, False)
        await settled()
        runners.close()
        await settled()
        assert len(nursery.child_tasks) == 1
        go_on.set()
        await settled()
        assert done == [False, True]

    run(main)


def test_a_job_that_is_added_as_the_runners_close_is_run() -> None:
    async def main(runners: CallRunners, _nursery: trio.Nursery) -> None:
        done = list[str]()

        async def job(subject: str, _scope: trio.CancelScope) -> None:
            done.append(subject)

        runners.start(job, "before")
        runners.close()
        await settled()
        assert done == ["before"]

    run(main)


def test_cancelling_the_nursery_ends_idle_tasks() -> None:
    async def main(runners: CallRunners, nursery: trio.Nursery) -> None:
        async def job(_subject: int, _scope: trio.CancelScope) -> None:
            pass

        runners.start(job, 1)
        await settled()
        nursery.cancel_scope.cancel()

    run(main)


def test_a_job_that_leaves_a_cancel_scope_open_harms_neither_the_next_ones_nor_the_nursery() -> None:
    async def main(runners: CallRunners, nursery: trio.Nursery) -> None:
        left_open: list[trio.CancelScope] = []
        ran: list[int] = []

        async def job(subject: int, _scope: trio.CancelScope) -> None:
            if subject % 2 == 0:
                left_open.append(trio.CancelScope())
                left_open[-1].__enter__()
                if subject == 2:
                    left_open[-1].cancel()
                    await trio.sleep_forever()
            else:
                for scope in left_open:
                    scope.cancel()
                await trio.lowlevel.checkpoint()
            ran.append(subject)

        for subject in range(4):
            runners.start(job, subject)
        await settled()
        assert ran == [0, 1, 3]
        for subject in range(4, 6):
            runners.start(job, subject)
            await settled()
        assert ran == [0, 1, 3, 4, 5]
        assert not nursery.cancel_scope.cancel_called

    run(main)
