"""Workers, as real processes: who answers, who is replaced, how they stop."""

import json
import os
import signal
from pathlib import Path

import trio

from rawgrpc_proxy.demo import Trial, make_call
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.pool import Pool
from rawgrpc_proxy.workers import run_workers
from tests.processes import Program, program

WORKERS = ("serve", "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1", "--workers", "2", "--grace", "1")


def children(running: Program) -> set[int]:
    """Process ids of the workers."""
    pid = running.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))


async def status_of_a_call(address: str) -> str:
    """Call through a connection of its own. There is no upstream: UNAVAILABLE means that a worker answered."""
    async with Pool() as pool:
        conn = await pool.get_conn(address)
        try:
            await make_call(conn, Trial("/a.B/C", (b"",), ()))
        except RpcError as error:
            return error.status.name
        finally:
            conn.close()
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
            with trio.fail_after(30):
                while len(children(running)) < 2:  # noqa: ASYNC110  # /proc tells nobody when it changes
                    await trio.sleep(0.02)
            assert victim not in children(running)
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0

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


def test_workers_whose_parent_is_killed_stop_by_themselves() -> None:
    async def main() -> None:
        async with program(*WORKERS) as running:
            await status_of_a_call(await running.address())
            running.signal(signal.SIGKILL)
            # Their end closes the pipes that they share with their parent.
            assert await running.exit_code() == -signal.SIGKILL
            await running.line("the parent of the workers is gone")

    trio.run(main)


def test_a_worker_that_fails_while_stopping_makes_the_exit_code_1() -> None:
    pid = os.fork()
    if not pid:

        def serve(_number: int, _orphaned: int) -> int:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
            os.kill(os.getppid(), signal.SIGTERM)
            while True:
                signal.pause()

        os._exit(run_workers(1, serve, print))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
