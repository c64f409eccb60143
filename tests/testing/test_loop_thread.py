"""A thread with a loop: nobody waits for it for ever, and what goes wrong in it is raised where somebody waits."""

import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import trio

from rawgrpc_proxy.errors import alone
from rawgrpc_proxy.testing.loop_thread import LoopThread


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    """What blocks the loop until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def run_until_cancelled(started: Callable[[str], None]) -> None:
    started("ready")
    await trio.sleep_forever()


def a_thread() -> LoopThread:
    return LoopThread("the thread", lambda: None)


def test_it_answers_what_was_asked_and_raises_what_that_raises() -> None:
    loop = a_thread()
    assert loop.start(run_until_cancelled) == "ready"
    here, there = threading.get_ident(), loop.ask(threading.get_ident)
    assert here != there

    def fail() -> NoReturn:
        raise TimeoutError("a timeout of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        loop.ask(fail)
    loop.stop()
    with pytest.raises(RuntimeError, match="the thread has ended"):
        loop.ask(threading.get_ident)


def test_a_start_that_hangs_says_where(let_go: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rawgrpc_proxy.testing.loop_thread._START_S", 0.05)

    async def main_that_blocks(_started: Callable[[str], None]) -> None:
        let_go.wait()

    loop = a_thread()
    with pytest.raises(RuntimeError, match=r"does not start within 0\.05 s(?s:.*)main_that_blocks"):
        loop.start(main_that_blocks)
    let_go.set()
    loop.stop()


def test_a_question_that_hangs_says_where(let_go: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = a_thread()
    loop.start(run_until_cancelled)
    monkeypatch.setattr("rawgrpc_proxy.testing.loop_thread._ANSWER_S", 0.05)

    def question_that_blocks() -> None:
        let_go.wait()

    with pytest.raises(RuntimeError, match=r"does not answer within 0\.05 s(?s:.*)question_that_blocks"):
        loop.ask(question_that_blocks)
    let_go.set()
    loop.stop()


def test_one_that_ends_by_itself_has_crashed() -> None:
    over = threading.Event()

    async def main(started: Callable[[str], None]) -> None:
        started("ready")

    loop = LoopThread("the thread", over.set)
    loop.start(main)
    assert over.wait(60)
    assert not loop.is_running
    with pytest.raises(RuntimeError, match="it has ended by itself"):
        loop.stop()


def test_an_error_that_is_alone_is_taken_out_of_its_groups() -> None:
    error = ValueError("x")
    assert alone(BaseExceptionGroup("a", [ExceptionGroup("b", [error])])) is error
    both = ExceptionGroup("c", [error, KeyError("y")])
    assert alone(both) is both
