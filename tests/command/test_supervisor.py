"""Workers, as real processes: who answers, who is replaced, how they stop."""

import errno
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy import Client, UnaryUnaryCall
from rawgrpc_proxy.command import supervisor
from rawgrpc_proxy.command.channel import DRAINING, READY
from rawgrpc_proxy.command.children import Child
from rawgrpc_proxy.command.cores import cores
from rawgrpc_proxy.command.generation import Asked, Generation, State
from rawgrpc_proxy.command.supervisor import Supervisor
from rawgrpc_proxy.errors import LinkLost, RpcError, UpstreamUnavailable
from rawgrpc_proxy.upstream.pool import Pool
from tests.command.test_cli import backends, talk, unread
from tests.processes import TIMEOUT_S, Program, program

WORKERS = ("serve", "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1", "--workers", "2", "--grace", "1")


def children(running: Program | trio.Process) -> set[int]:
    """Process ids of the workers."""
    pid = running.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))


async def until_children(running: Program | trio.Process, number: int, *, without: int = 0) -> None:
    """Wait until there are so many workers, and this one is none of them."""
    with trio.fail_after(TIMEOUT_S):
        # /proc tells nobody when it changes.
        while len(now := children(running)) != number or without in now:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def status_of_a_call(address: str) -> str:
    """Call through a connection of its own. There is no upstream: UNAVAILABLE means that a worker answered."""
    async with Client(address) as client:
        return await status_from(client.unary_unary("/a.B/C", b""))


async def status_from(call: UnaryUnaryCall[bytes]) -> str:
    """The name of the status that somebody has answered. Raises `UpstreamUnavailable` where nobody listens."""
    try:
        await call
    except RpcError as error:
        if isinstance(error, UpstreamUnavailable) and not isinstance(error, LinkLost):
            raise
        return error.status.name
    return "OK"


async def until_answered_by(running: Program, address: str, workers: set[int]) -> None:
    """Make calls until the log has seen each of these workers answer one."""
    seen: set[int] = set()
    while not workers <= seen:
        assert await status_of_a_call(address) == "UNAVAILABLE"
        await running.line(r'"event": "call"')
        events = [json.loads(line) for line in running.stderr if line.startswith("{")]
        seen = {event["worker"] for event in events if event["event"] == "call"}


def test_every_worker_answers_on_the_one_socket_and_the_log_says_which() -> None:
    async def main() -> None:
        async with program(*WORKERS, "--log-format", "json") as running:
            await until_answered_by(running, await running.address(), {1, 2})
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0

    trio.run(main)


def test_a_worker_that_dies_is_replaced_and_calls_go_on() -> None:
    async def main() -> None:
        async with program(*WORKERS) as running:
            address = await running.address()
            assert await status_of_a_call(address) == "UNAVAILABLE"
            victim = min(children(running))
            os.kill(victim, signal.SIGKILL)
            assert await status_of_a_call(address) == "UNAVAILABLE"
            await running.line(rf"worker \d \(pid {victim}\) was killed by SIGKILL; it is replaced")
            await until_children(running, 2, without=victim)
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0

    trio.run(main)


def test_a_worker_that_dies_is_replaced_though_nobody_reads_of_it() -> None:
    async def main() -> None:
        async with unread(*WORKERS[1:]) as running:
            await until_children(running, 2)
            victim = min(children(running))
            os.kill(victim, signal.SIGKILL)
            await until_children(running, 2, without=victim)
            running.send_signal(signal.SIGTERM)
            assert await running.wait() == 0

    trio.run(main)


def test_workers_are_replaced_by_reloads_though_nobody_reads_of_it() -> None:
    async def main() -> None:
        async with unread(*WORKERS[1:]) as running:
            await until_children(running, 2)
            for _ in range(2):
                before = children(running)
                running.send_signal(signal.SIGHUP)
                with trio.fail_after(TIMEOUT_S):
                    while children(running) & before or len(children(running)) < 2:  # noqa: ASYNC110  # as above
                        await trio.sleep(0.02)
            running.send_signal(signal.SIGTERM)
            assert await running.wait() == 0

    trio.run(main)


def test_an_interrupt_of_the_whole_terminal_drains_every_worker_once() -> None:
    async def main() -> None:
        async with program(*WORKERS) as running:
            await status_of_a_call(await running.address())
            for pid in children(running):
                os.kill(pid, signal.SIGINT)
            running.signal(signal.SIGINT)
            assert await running.exit_code() == 0
            assert not any("again" in line for line in running.stderr)

    trio.run(main)


def test_a_sigterm_to_each_process_of_the_service_cuts_no_call_off() -> None:
    async def main() -> None:
        async with backends("127.0.0.1:0") as [upstream], Pool() as client:
            serve = ("serve", "--listen", "127.0.0.1:0", "--upstream", upstream, "--workers", "1")
            async with program(*serve) as running, talk(client, await running.address()) as talking:
                # As systemd does, unless it is told otherwise, and whoever signals a process group.
                for pid in (running.pid, *children(running)):
                    os.kill(pid, signal.SIGTERM)
                await running.line("draining, 1 call still running")
                for pid in children(running):
                    os.kill(pid, signal.SIGTERM)
                assert await talking.say(b"still") == b"still"
                running.signal(signal.SIGTERM)
                await running.line("ending at once, 1 call cut off")
                assert await running.exit_code() == 0

    trio.run(main)


def test_workers_whose_parent_is_killed_stop_by_themselves() -> None:
    async def main() -> None:
        async with program(*WORKERS) as running:
            await status_of_a_call(await running.address())
            running.signal(signal.SIGKILL)
            # Their end closes the pipes that they share with their parent.
            assert await running.exit_code() == -signal.SIGKILL
            await running.line("the supervisor is gone")

    trio.run(main)


def in_a_process(test: Callable[[], object]) -> str:
    """Run this in a process of its own, and answer what it has written to standard error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w")
        try:
            test()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as written:
        text = written.read()
    os.waitpid(pid, 0)
    return text


class One:
    """A generation of one worker."""

    count = 1
    grace_s = 30.0
    admin: object | None = None

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work

    def work(self, number: int, channel: socket.socket) -> int:
        return self._work()

    def run_admin(self, channel: socket.socket) -> int:
        raise AssertionError

    def retire(self, successor: Generation | None) -> None:
        pass

    def handed_over(self) -> dict[str, list[int]]:
        return {}


class Stderr:
    """Where generations come from: there is no other. What the operator is told goes to standard error."""

    def generation(self, present: Generation | None) -> Generation:
        raise AssertionError

    def say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def state(self, state: State) -> None:
        pass

    def reloaded(self, problems: Sequence[str]) -> None:
        pass

    def child_started(self, child: Child) -> None:
        pass

    def child_ended(self, child: Child) -> None:
        pass

    def heard(self, child: Child, data: bytes) -> Asked | None:
        return None

    def tick(self) -> float | None:
        return None


def supervised(work: Callable[[], int]) -> int:
    """Run one worker, until it calls `stop`."""
    return Supervisor(Stderr()).run(One(work))


def stop() -> int:
    os.kill(os.getppid(), signal.SIGTERM)
    return 0


def test_a_worker_that_crashes_leaves_its_traceback(tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"

    def serve() -> int:
        if crashed.exists():
            return stop()
        crashed.touch()
        raise RuntimeError("a bug in the worker")

    written = in_a_process(lambda: supervised(serve))
    assert re.search(r"process \d+ crashed:\nTraceback", written)
    assert "RuntimeError: a bug in the worker\n" in written
    assert re.search(r"worker 1 \(pid \d+\) ended with exit code 1; it is replaced in 0\.\d s", written)


def test_a_fork_that_fails_is_told_of_and_tried_again_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [errno.EAGAIN, errno.ENOMEM]
    fork = os.fork

    def scarce() -> int:
        if failures:
            code = failures.pop(0)
            raise OSError(code, os.strerror(code))
        return fork()

    def test() -> None:
        monkeypatch.setattr(os, "fork", scarce)
        supervised(stop)

    assert in_a_process(test).splitlines() == [
        "worker 1 cannot be started: Resource temporarily unavailable; next try in 0.2 s",
        "worker 1 cannot be started: Cannot allocate memory; next try in 0.4 s",
        "SIGTERM: stopping; a second signal ends at once",
    ]


def test_a_worker_whose_end_somebody_else_was_told_of_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = tmp_path / "ended"

    def serve() -> int:
        if ended.exists():
            return stop()
        ended.touch()
        return 0

    def test() -> None:
        waitpid = os.waitpid

        def nobody_knows(pid: int, options: int) -> tuple[int, int]:
            if waitpid(pid, options)[0]:
                raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
            return 0, 0

        monkeypatch.setattr(os, "waitpid", nobody_knows)
        supervised(serve)

    assert re.search(r"worker 1 \(pid \d+\) is gone; it is replaced", in_a_process(test))


def test_the_end_of_a_worker_is_heard_where_sigchld_was_ignored(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    def serve() -> int:
        if ended.exists():
            return stop()
        ended.touch()
        return 3

    def test() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as a parent may leave it to us
        supervised(serve)

    assert "ended with exit code 3; it is replaced" in in_a_process(test)


def test_a_worker_that_a_real_time_signal_has_killed_is_replaced(tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    def serve() -> int:
        if killed.exists():
            return stop()
        killed.touch()
        os.kill(os.getpid(), 40)
        return 0

    assert "was killed by signal 40; it is replaced" in in_a_process(lambda: supervised(serve))


def test_the_processors_are_counted_on_systems_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    if hasattr(os, "sched_getaffinity"):
        assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
    monkeypatch.setattr(os, "process_cpu_count", lambda: 7, raising=False)
    assert cores() == 7


def test_a_new_program_that_hangs_when_it_is_tried_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class UntilTold(Stderr):
        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("upgrade:"):
                os.kill(os.getpid(), signal.SIGTERM)

    def serve() -> int:
        os.kill(os.getppid(), signal.SIGUSR2)
        signal.pause()
        return 0

    monkeypatch.setattr(supervisor, "_READY_WITHIN_S", 0.5)
    hangs = ["/bin/sleep", "sleep", "1000"]
    written = in_a_process(lambda: Supervisor(UntilTold(), hangs).run(One(serve)))
    assert (
        "upgrade: the new program had not started within 0.5 s when it was tried; nothing has changed"
        in written
    )


def test_a_worker_that_fails_while_stopping_makes_the_exit_code_1() -> None:
    pid = os.fork()
    if not pid:

        def serve() -> int:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
            os.kill(os.getppid(), signal.SIGTERM)
            while True:
                signal.pause()

        os._exit(supervised(serve))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_process_that_hangs_when_it_is_told_to_stop_is_killed_after_its_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_ENDS_WITHIN_S", 0.1)
    monkeypatch.setattr(One, "grace_s", 0.1)

    def hang() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop()
        while True:
            signal.pause()

    written = in_a_process(lambda: sys.stderr.write(f"exit code {supervised(hang)}\n"))
    assert re.search(r"worker 1 \(pid \d+\) hangs: it is killed", written)
    assert "exit code 1\n" in written


def test_a_stop_that_comes_as_the_new_program_takes_over_is_not_lost() -> None:
    main = os.getpid()

    class Upgrading(One):
        def work(self, number: int, channel: socket.socket) -> int:
            os.kill(os.getppid(), signal.SIGUSR2)
            return len(channel.recv(1))

        def handed_over(self) -> dict[str, list[int]]:
            # Nothing is asked of it afterwards; the process that tries the new program asks, too.
            if os.getppid() == main:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

    written = in_a_process(lambda: Supervisor(Stderr(), ["/bin/true", "true"]).run(Upgrading(stop)))
    assert "SIGTERM: stopping" in written


def test_a_reload_is_told_of_when_the_workers_before_take_no_more_connections() -> None:
    class Before(One):
        def work(self, number: int, channel: socket.socket) -> int:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            channel.send(READY)
            os.kill(os.getppid(), signal.SIGHUP)
            signal.sigwait({signal.SIGTERM})
            time.sleep(0.3)  # as on a busy machine
            sys.stderr.write("let go\n")
            sys.stderr.flush()
            channel.send(DRAINING)
            return len(channel.recv(1))

    class After(One):
        def work(self, number: int, channel: socket.socket) -> int:
            channel.send(READY)
            return len(channel.recv(1))

    class Reloading(Stderr):
        def generation(self, present: Generation | None) -> Generation:
            return After(stop)

        def say(self, text: str) -> None:
            super().say(text)
            if "new worker serving" in text:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGTERM)

    written = in_a_process(lambda: Supervisor(Reloading()).run(Before(stop)))
    assert re.search(r"let go\n1 new worker serving, .*; 1 worker draining\n", written)
