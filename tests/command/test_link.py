"""The link between a worker and the admin process: sockets of trio, and ends that say what no process of ours says."""

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.command.link import Link, NoAnswer, answer

PATIENCE_S = 30.0
LONG = "x" * 1_000_000
"""Far more than a socket takes."""

Answer = Callable[[Any], Any]


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(PATIENCE_S * 2):
            await main()

    trio.run(bounded)


class Raw:
    """An end of the link without the module: it says and hears bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._read = b""

    async def say(self, *messages: Mapping[str, Any]) -> None:
        await self.stream.send_all(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    async def line(self) -> Any:
        """Answer the next message that comes; None if there is none any more."""
        while b"\n" not in self._read:
            data = await self.stream.receive_some()
            if not data:
                assert not self._read
                return None
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)


@contextlib.asynccontextmanager
async def a_worker(answers: Mapping[str, Answer]) -> AsyncIterator[tuple[Raw, trio.CancelScope, trio.Event]]:
    """A worker that answers; whoever asks, what cancels the worker, and its end."""
    ours, theirs = socket.socketpair()
    ended, scope = trio.Event(), trio.CancelScope()

    async def work() -> None:
        with scope:
            await answer(theirs, answers)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        raw = Raw(ours)
        async with raw.stream:
            yield raw, scope, ended
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def a_link() -> AsyncIterator[tuple[Link, Raw, trio.Event]]:
    """The admin process's end, the worker's, and the end of the first."""
    ours, theirs = socket.socketpair()
    link, raw, ended = Link(ours), Raw(theirs), trio.Event()

    async def keep() -> None:
        await link.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        async with raw.stream:
            yield link, raw, ended
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def both(answers: Mapping[str, Answer]) -> AsyncIterator[tuple[Link, trio.CancelScope, trio.Event]]:
    """A worker and the admin process's end; what cancels the worker, and the end of the link."""
    ours, theirs = socket.socketpair()
    link, scope, ended = Link(ours), trio.CancelScope(), trio.Event()

    async def work() -> None:
        with scope:
            await answer(theirs, answers)

    async def keep() -> None:
        await link.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        nursery.start_soon(keep)
        yield link, scope, ended
        nursery.cancel_scope.cancel()


# --------------------------------------------------------------------- the worker


def test_questions_are_answered_in_their_order_however_they_are_cut_up() -> None:
    async def main() -> None:
        async with a_worker({"double": lambda number: number * 2}) as (raw, _, _):
            for byte in b'{"id": 1, "ask": "double", "argument": 4}\n{"id": 2, "ask": "dou':
                await raw.stream.send_all(bytes([byte]))
            await raw.stream.send_all(b'ble", "argument": 5}\n{"id": 3, "ask": "double", "argument": 6}\n')
            assert [await raw.line() for _ in range(3)] == [
                {"id": 1, "answer": 8},
                {"id": 2, "answer": 10},
                {"id": 3, "answer": 12},
            ]

    run(main)


def test_a_question_that_fails_is_answered_in_words_and_the_next_one_goes_on() -> None:
    async def main() -> None:
        async with a_worker({"half": lambda number: number / 0, "fine": lambda _: "well"}) as (raw, _, _):
            await raw.say(
                {"id": 1, "ask": "half", "argument": 1}, {"id": 2, "ask": "what?"}, {"id": 3, "ask": "fine"}
            )
            assert await raw.line() == {"id": 1, "error": "ZeroDivisionError: division by zero"}
            assert await raw.line() == {"id": 2, "error": "KeyError: 'what?'"}
            assert await raw.line() == {"id": 3, "answer": "well"}

    run(main)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\n",
        b"{\n",
        b"5\n",
        b"[]\n",
        b'{"ask": "report"}\n',
        b'{"id": 1}\n',
        b'{"id": 1, "ask": {}}' * 10_000,
    ],
)
def test_who_asks_what_cannot_be_read_loses_the_link_and_the_worker_goes_on(garbage: bytes) -> None:
    async def main() -> None:
        async with a_worker({"report": lambda _: "all"}) as (raw, scope, ended):
            await raw.stream.send_all(garbage)
            await ended.wait()
            assert not scope.cancel_called
            with contextlib.suppress(trio.BrokenResourceError):  # closed with bytes unread
                assert await raw.line() is None

    run(main)


def test_the_last_words_of_a_worker_are_its_report() -> None:
    async def main() -> None:
        async with a_worker({"report": lambda _: {"calls": 7}}) as (raw, scope, _):
            await raw.say({"id": 1, "ask": "report"})
            assert await raw.line() == {"id": 1, "answer": {"calls": 7}}
            scope.cancel()
            assert await raw.line() == {"id": 0, "answer": {"calls": 7}}
            assert await raw.line() is None

    run(main)


def test_the_last_words_come_behind_the_rest_of_an_answer_that_was_under_way() -> None:
    async def main() -> None:
        async with a_worker({"report": lambda _: LONG}) as (raw, scope, _):
            await raw.say({"id": 1, "ask": "report"})
            await trio.testing.wait_all_tasks_blocked(0.05)  # the socket takes no more
            scope.cancel()
            assert await raw.line() == {"id": 1, "answer": LONG}
            assert await raw.line() == {"id": 0, "answer": LONG}

    run(main)


def test_a_worker_whose_last_words_nobody_hears_ends_all_the_same() -> None:
    async def main() -> None:
        async with a_worker({"report": lambda _: LONG}) as (raw, scope, ended):
            await raw.say({"id": 1, "ask": "report"})
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
            await ended.wait()

    run(main)


def test_a_worker_that_counts_nothing_ends_without_last_words() -> None:
    async def main() -> None:
        async with a_worker({}) as (raw, scope, ended):
            scope.cancel()
            await ended.wait()
            assert await raw.line() is None

    run(main)


def test_a_worker_goes_on_when_whoever_asked_is_gone_before_the_answer() -> None:
    async def main() -> None:
        async with a_worker({"report": lambda _: LONG}) as (raw, scope, ended):
            await raw.say({"id": 1, "ask": "report"})
            await trio.testing.wait_all_tasks_blocked(0.05)
            await raw.stream.aclose()
            await ended.wait()
            assert not scope.cancel_called

    run(main)


# ---------------------------------------------------------------- whoever asks


def test_answers_find_whoever_asked_whatever_their_order_and_however_they_are_cut_up() -> None:
    async def main() -> None:
        async with a_link() as (link, raw, _):
            heard: dict[str, Any] = {}

            async def ask(question: str) -> None:
                heard[question] = await link.ask(question, timeout_s=PATIENCE_S)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "a")
                one = await raw.line()
                nursery.start_soon(ask, "b")
                two = await raw.line()
                said = b"".join(
                    json.dumps({"id": each["id"], "answer": each["ask"] * 3}).encode() + b"\n"
                    for each in (two, one)
                )
                for byte in said:
                    await raw.stream.send_all(bytes([byte]))
            assert heard == {"a": "aaa", "b": "bbb"}

    run(main)


def test_an_error_of_the_worker_is_heard_in_its_words() -> None:
    async def main() -> None:
        async with both({"half": lambda number: number / 0}) as (link, _, _):
            with pytest.raises(NoAnswer, match="ZeroDivisionError: division by zero"):
                await link.ask("half", 1, timeout_s=PATIENCE_S)

    run(main)


def test_whoever_asks_one_that_is_silent_waits_for_the_time_that_he_gave() -> None:
    async def main() -> None:
        async with a_link() as (link, _, _):
            with pytest.raises(NoAnswer, match=r"no answer within 0\.05 s"):
                await link.ask("report", timeout_s=0.05)

    run(main)


def test_one_that_is_silent_is_asked_no_more_until_it_has_answered() -> None:
    async def main() -> None:
        async with a_link() as (link, raw, _):
            for _ in range(3):
                with pytest.raises(NoAnswer):
                    await link.ask("report", timeout_s=0.05)
            first = await raw.line()
            heard: list[Any] = []

            async def ask() -> None:
                heard.append(await link.ask("report", timeout_s=PATIENCE_S))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await raw.say({"id": first["id"], "answer": "late"})
                second = await raw.line()
                assert second["id"] > first["id"]
                await raw.say({"id": second["id"], "answer": "in time"})
            assert heard == ["in time"]

    run(main)


def test_a_question_that_is_given_up_costs_no_other_one_its_answer() -> None:
    async def main() -> None:
        async with a_link() as (link, raw, ended):
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    await link.ask("report", timeout_s=PATIENCE_S)

                nursery.start_soon(ask)
                first = await raw.line()
                nursery.cancel_scope.cancel()
            await raw.say({"id": first["id"], "answer": "for nobody"})
            async with trio.open_nursery() as nursery:

                async def asked() -> None:
                    second = await raw.line()
                    await raw.say({"id": second["id"], "answer": "for you"})

                nursery.start_soon(asked)
                assert await link.ask("report", timeout_s=PATIENCE_S) == "for you"
            assert not ended.is_set()

    run(main)


def test_whoever_comes_to_ask_too_late_has_not_ended_the_link() -> None:
    async def main() -> None:
        async with both({"report": lambda _: "here"}) as (link, _, ended):
            # As when the asking process was stopped for a while: its time is over before it has asked.
            with pytest.raises(NoAnswer):
                await link.ask("report", timeout_s=0)
            assert await link.ask("report", timeout_s=PATIENCE_S) == "here"
            assert not ended.is_set()

    run(main)


def test_a_worker_that_goes_on_after_long_silence_answers_again() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        link = Link(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            for _ in range(2000):  # more than the socket would take
                with pytest.raises(NoAnswer):
                    await link.ask("report", timeout_s=0.0005)
            asked = 0

            def report(_: object) -> int:
                nonlocal asked
                asked += 1
                return asked

            nursery.start_soon(answer, theirs, {"report": report})
            assert await link.ask("report", timeout_s=PATIENCE_S) <= 2
            nursery.cancel_scope.cancel()

    run(main)


def test_the_last_words_are_kept_and_whoever_waits_hears_that_the_worker_is_gone() -> None:
    async def main() -> None:
        async with a_link() as (link, raw, ended):
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(NoAnswer):
                        await link.ask("report", timeout_s=PATIENCE_S * 10)

                nursery.start_soon(ask)
                await raw.line()
                await raw.say({"id": 0, "answer": {"calls": 3}})
                await raw.stream.aclose()
            await ended.wait()
            assert link.last_words == {"calls": 3}
            with pytest.raises(NoAnswer):
                await link.ask("report", timeout_s=PATIENCE_S)

    run(main)


def test_whoever_asks_a_worker_that_has_just_ended_does_not_lose_its_last_words() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        link, raw = Link(ours), Raw(theirs)
        async with raw.stream:
            await raw.say({"id": 0, "answer": {"calls": 3}})
        with pytest.raises(NoAnswer):
            await link.ask("report", timeout_s=PATIENCE_S)
        await link.run()
        assert link.last_words == {"calls": 3}

    run(main)


def test_a_worker_that_is_cancelled_leaves_its_report_with_the_link() -> None:
    async def main() -> None:
        async with both({"report": lambda _: {"text": LONG}}) as (link, scope, ended):
            scope.cancel()
            await ended.wait()
            assert link.last_words == {"text": LONG}

    run(main)


@pytest.mark.parametrize("garbage", [b"no\n", b"5\n", b"[1]\n", b"{}\n", b'{"id": []}\n', b'{"id": 0}\n'])
def test_a_worker_that_says_what_cannot_be_understood_loses_its_link_and_nobody_else_anything(
    garbage: bytes,
) -> None:
    async def main() -> None:
        async with a_link() as (link, raw, ended):
            await raw.stream.send_all(garbage)
            await ended.wait()
            assert link.last_words is None
            with pytest.raises(NoAnswer):
                await link.ask("report", timeout_s=PATIENCE_S)

    run(main)


def test_an_answer_without_one_is_no_answer() -> None:
    async def main() -> None:
        async with a_link() as (link, raw, _), trio.open_nursery() as nursery:

            async def say() -> None:
                await raw.say({"id": (await raw.line())["id"]})

            nursery.start_soon(say)
            with pytest.raises(NoAnswer):
                await link.ask("report", timeout_s=PATIENCE_S)

    run(main)


def test_a_question_that_the_socket_does_not_take_ends_the_link() -> None:
    async def main() -> None:
        async with a_link() as (link, _, ended):
            with pytest.raises(NoAnswer, match="takes no questions"):
                await link.ask("log", LONG, timeout_s=PATIENCE_S)
            await ended.wait()

    run(main)
