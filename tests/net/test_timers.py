"""Timers of calls without a task: they go off in time and in order, and do not pile up when calls end earlier."""

import trio
import trio.testing

from rawgrpc_proxy.net.timers import Timers


def run(main: trio.abc.Instrument | object) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_timers_go_off_in_the_order_of_their_times_however_they_were_added() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            deadlines, heard = Timers(nursery), list[tuple[str, float]]()
            start = trio.current_time()

            def note(name: str) -> None:
                heard.append((name, trio.current_time() - start))

            deadlines.add(start + 30, lambda: note("last"))
            await trio.testing.wait_all_tasks_blocked()
            deadlines.add(start + 10, lambda: note("first"))
            deadlines.add(start + 20, lambda: note("second"))
            await trio.sleep(100)
            assert [(name, round(when)) for name, when in heard] == [
                ("first", 10),
                ("second", 20),
                ("last", 30),
            ]
            deadlines.close()

    run(main)


def test_a_cancelled_timer_does_not_go_off_and_may_be_cancelled_again() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            deadlines, heard = Timers(nursery), list[str]()
            timer = deadlines.add(trio.current_time() + 10, lambda: heard.append("cancelled"))
            other = deadlines.add(trio.current_time() + 20, lambda: heard.append("kept"))
            timer.cancel()
            timer.cancel()
            await trio.sleep(30)
            assert heard == ["kept"]
            assert not other.waits
            other.cancel()
            deadlines.close()

    run(main)


def test_a_timer_that_another_one_adds_goes_off_too() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            deadlines, heard = Timers(nursery), list[str]()

            def first() -> None:
                heard.append("first")
                deadlines.add(trio.current_time() + 5, lambda: heard.append("second"))
                deadlines.add(trio.current_time(), lambda: heard.append("at once"))

            deadlines.add(trio.current_time() + 5, first)
            await trio.sleep(20)
            assert heard == ["first", "at once", "second"]
            deadlines.close()

    run(main)


def test_of_many_timers_that_are_due_at_once_some_go_off_before_others_have_their_turn() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            deadlines, heard, seen = Timers(nursery), list[int](), set[int]()
            due = trio.current_time() + 5
            for number in range(200):
                deadlines.add(due, lambda number=number: heard.append(number))  # type: ignore[misc]
            await trio.sleep_until(due)
            while len(heard) < 200:
                seen.add(len(heard))
                await trio.lowlevel.checkpoint()
            assert len(seen) >= 3
            assert heard == list(range(200))
            assert trio.current_time() == due
            deadlines.close()

    run(main)


def test_timers_of_calls_that_have_ended_are_forgotten_long_before_their_time() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            deadlines, heard = Timers(nursery), list[int]()
            hour = trio.current_time() + 3600
            kept = deadlines.add(hour, lambda: heard.append(-1))
            for number in range(10_000):
                deadlines.add(hour, lambda n=number: heard.append(n)).cancel()  # type: ignore[misc]
                assert len(deadlines._heap) < 200
            assert kept.waits
            await trio.sleep(3601)
            assert heard == [-1]
            deadlines.close()

    run(main)


def test_closing_ends_the_task_and_nobody_is_called_back() -> None:
    async def main() -> None:
        heard = list[str]()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                deadlines = Timers(nursery)
                deadlines.close()  # before it has a task
                deadlines = Timers(nursery)
                deadlines.add(trio.current_time() + 10, lambda: heard.append("no"))
                deadlines.close()  # before its task has run
                deadlines = Timers(nursery)
                deadlines.add(trio.current_time() + 10, lambda: heard.append("no"))
                await trio.testing.wait_all_tasks_blocked()
                deadlines.close()
        assert not heard

    run(main)
