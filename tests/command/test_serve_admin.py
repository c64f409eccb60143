"""`serve --admin`, as real processes: what it tells of real calls, and what becomes of it when processes die."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.upstream.pool import Pool
from tests.command.admin.house import Reply
from tests.command.test_cli import answer_to, backends, folder, talk
from tests.command.test_lifecycle import activated, again, status_of, stop
from tests.command.test_supervisor import children
from tests.processes import TIMEOUT_S, Program, program

__all__ = ["folder"]

SERVICE = {"grpc_service": "p.A", "grpc_method": "Get"}
_NOT_FROM_BEFORE = 2
"""The first state that a watcher hears may be a second old."""
Sample = tuple[str, frozenset[tuple[str, str]]]


class Metrics(dict[Sample, float]):
    """What /metrics has said, each line once."""

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            value for (each, having), value in self.items() if each == name and labels.items() <= set(having)
        )


@attrs.frozen
class Admin:
    """An admin listener: HOST:PORT, or unix:PATH."""

    address: str

    def _connect(self) -> http.client.HTTPConnection:
        if not self.address.startswith("unix:"):
            return http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(self.address.removeprefix("unix:"))
        return connection

    async def ask(self, path: str, method: str = "GET", **fields: str) -> Reply:
        def work() -> Reply:
            with contextlib.closing(self._connect()) as client:
                client.request(method, path, headers=fields)
                response = client.getresponse()
                return Reply(response.status, dict(response.getheaders()), response.read())

        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    async def metrics(self) -> Metrics:
        reply = await self.ask("/metrics")
        assert reply.status == 200
        metrics = Metrics()
        for family in text_string_to_metric_families(reply.text):
            for sample in family.samples:
                place = sample.name, frozenset(sample.labels.items())
                assert place not in metrics, f"{place} is there twice"
                metrics[place] = sample.value
        return metrics

    async def until(self, path: str, holds: Callable[[Reply], bool]) -> Reply:
        """Ask until the answer is as wanted; a listener that does not answer is asked again."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if holds(reply := await self.ask(path)):
                    return reply
            await trio.sleep(0.05)

    async def until_told(self, holds: Callable[[Metrics], bool]) -> Metrics:
        """Ask for metrics until they are as wanted."""
        while True:
            with contextlib.suppress(OSError):  # the admin process is replaced
                if holds(metrics := await self.metrics()):
                    return metrics
            await trio.sleep(0.05)

    async def serving(self) -> None:
        await self.until("/readyz", lambda reply: reply.status == 200)


class Counting:
    """Asks for metrics again and again: no counter may go down, from one answer to the next."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._before = Metrics()

    async def look(self) -> Metrics:
        metrics = await self._admin.metrics()
        for place, value in metrics.items():
            name = place[0]
            # CPU time is of a process, and named after it: it begins again with the process.
            if re.search("_(total|count|sum|bucket)$", name) and "worker_cpu" not in name:
                assert value >= self._before.get(place, 0), place
        counters = {
            place for place in self._before if place[0].endswith("_total") and "worker_cpu" not in place[0]
        }
        assert counters <= metrics.keys()
        self._before = metrics
        return metrics


def handled(calls: int, told: Metrics) -> bool:
    """Whether so many calls of the service are counted."""
    return told.of("grpc_server_handled_total", **SERVICE) == calls


def settings(
    upstream: str, *, workers: int = 2, admin: str | None = "127.0.0.1:0", more: str = "", about: str = ""
) -> str:
    table = "" if admin is None else f'[admin]\naddress = "{admin}"\n{about}'
    return (
        f'workers = {workers}\n{more}[[listeners]]\naddress = "127.0.0.1:0"\n{table}'
        f'[clusters.c]\nendpoints = ["{upstream}"]\n[[routes]]\ncluster = "c"\n'
    )


@attrs.frozen
class Running:
    """A proxy with an admin listener, and a backend behind it."""

    program: Program
    address: str
    admin: Admin
    file: Path
    upstream: str
    workers: int

    @property
    def pids(self) -> set[int]:
        """Of the admin process and the workers."""
        return children(self.program)

    async def worker_pids(self) -> dict[int, int]:
        """Each worker's number, by its process id, as the admin process knows them."""
        return {each["pid"]: each["worker"] for each in (await state_of(self.admin))["workers"]}

    async def admin_pid(self) -> int:
        """Of the admin process."""
        while len(pids := self.pids - (await self.worker_pids()).keys()) != 1:
            pass  # a worker comes or goes
        return pids.pop()

    async def call(self, times: int = 1) -> None:
        """Make calls, each on a connection of its own, so that all workers have some."""
        for _ in range(times):
            async with Pool() as client:
                assert await status_of(client, self.address) == "OK"


async def watch(admin: Admin, hear: Callable[[Any], bool]) -> None:
    """Hear the states that /events tells, until one is enough, or the stream ends."""
    host, _, port = admin.address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET /events HTTP/1.1\r\nHost: {admin.address}\r\n\r\n".encode())
        read = b""
        while data := await stream.receive_some():
            read += data
            while match := re.search(rb"data: (.*)\n\n", read):
                read = read[match.end() :]
                if hear(json.loads(match[1])):
                    return


async def state_of(admin: Admin) -> Any:
    """A state as it is now."""
    states: list[Any] = []

    def hear(state: Any) -> bool:
        states.append(state)
        return len(states) == _NOT_FROM_BEFORE

    await watch(admin, hear)
    return states[-1]


@contextlib.asynccontextmanager
async def running(
    folder: Path, *, workers: int = 2, admin: str = "127.0.0.1:0", more: str = "", about: str = ""
) -> AsyncIterator[Running]:
    """Run it; it serves."""
    file = folder / "proxy.toml"
    async with backends("127.0.0.1:0") as (upstream,):
        file.write_text(settings(upstream, workers=workers, admin=admin, more=more, about=about))
        async with program("serve", "--config", str(file)) as proxy:
            found = await proxy.line(r"^admin: (?:http://)?(.*?)/?$", "stdout")
            house = Running(proxy, await proxy.address(), Admin(found[1]), file, upstream, workers)
            await house.admin.serving()
            yield house


def of_one_and_two(test: Callable[[Path, int], Awaitable[None]]) -> Callable[[Path, int], None]:
    """With one worker, and with two."""

    @pytest.mark.parametrize("workers", [1, 2])
    def on_trio(folder: Path, workers: int) -> None:
        trio.run(test, folder, workers)

    on_trio.__name__ = test.__name__
    return on_trio


def on_trio(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        trio.run(test, folder)

    run.__name__ = test.__name__
    return run


# ------------------------------------------------------------------------ is it well


def test_it_is_not_ready_before_the_workers_are(folder: Path) -> None:
    async def main() -> None:
        script = (
            "import sys, rawgrpc_proxy.command.worker as worker; worker.tell_ready = lambda channel: None; "
            "from rawgrpc_proxy.command.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        arguments = (
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            "127.0.0.1:1",
            "--admin",
            "127.0.0.1:0",
        )
        async with program(python=["-c", script, *arguments]) as proxy:
            admin = Admin((await proxy.line(r"^admin: http://(.*)/$", "stdout"))[1])
            reply = await admin.ask("/readyz")
            assert (reply.status, reply.text) == (503, "starting\n")
            assert (await admin.ask("/livez")).status == 200

    trio.run(main)


@of_one_and_two
async def test_it_is_ready_until_it_drains_and_tells_so_while_it_does(folder: Path, workers: int) -> None:
    async with running(folder, workers=workers) as house, Pool() as client:
        async with talk(client, house.address) as talking:
            reply = await house.admin.ask("/drain", "POST")
            assert reply.status == 202
            reply = await house.admin.until("/readyz", lambda reply: reply.status == 503)
            assert reply.text == "draining\n"
            await house.admin.until_told(lambda told: told.of("rawgrpc_proxy_workers", state="draining") == 1)
            # Whoever asks twice does not mean to cut off calls, as a second signal does.
            assert (await house.admin.ask("/drain", "POST")).status == 202
            assert (await house.admin.ask("/reload", "POST")).status == 409
            assert await talking.say(b"still there?") == b"still there?"
            assert (await house.admin.metrics()).of("rawgrpc_proxy_open_calls") == 1
            assert await talking.end() is Status.OK
        assert await house.program.exit_code() == 0
        assert not any("again: ending" in line for line in house.program.stderr)
        await house.program.line("drain, asked for by 127.0.0.1:")


@of_one_and_two
async def test_it_tells_of_draining_though_a_service_manager_signals_all_processes(
    folder: Path, workers: int
) -> None:
    async with running(folder, workers=workers) as house, Pool() as client:
        async with talk(client, house.address) as talking:
            for pid in (*children(house.program), house.program.pid):
                os.kill(pid, signal.SIGTERM)
            await house.admin.until("/readyz", lambda reply: reply.status == 503)
            await trio.sleep(1)  # longer than an admin process waits to hear whether the service stops
            assert (await house.admin.ask("/readyz")).text == "draining\n"
            assert await talking.end() is Status.OK
        assert await house.program.exit_code() == 0


# -------------------------------------------------------------------------- the sums


@of_one_and_two
async def test_calls_are_counted_by_method_and_status(folder: Path, workers: int) -> None:
    async with running(folder, workers=workers) as house, Pool() as client:
        await house.call(7)
        async with talk(client, house.address) as talking:
            assert await talking.end() is Status.OK
        metrics = await house.admin.metrics()
        assert metrics.of("grpc_server_handled_total", grpc_code="OK", **SERVICE) == 7
        assert metrics.of("grpc_server_started_total", **SERVICE) == 7
        assert metrics.of("grpc_client_handled_total", grpc_code="OK", **SERVICE) == 7
        assert metrics.of("grpc_server_handling_seconds_count", **SERVICE) == 7
        assert metrics.of("grpc_server_msg_received_total", **SERVICE) == 7
        assert metrics.of("grpc_server_handled_total") == 8
        assert metrics.of("rawgrpc_proxy_endpoint_handled_total", address=house.upstream, grpc_code="OK") == 8
        assert metrics.of("rawgrpc_proxy_workers", state="serving") == workers
        assert metrics.of("rawgrpc_proxy_downstream_connections_opened_total") == 8
        clusters = (await house.admin.ask("/clusters")).json["clusters"]
        assert [(each["cluster"], each["endpoints"][0]["address"]) for each in clusters] == [
            ("c", house.upstream)
        ]
        openmetrics = await house.admin.ask("/metrics", Accept="application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
        await stop(house.program)


@of_one_and_two
async def test_no_counter_goes_down_when_workers_are_killed_and_replaced(folder: Path, workers: int) -> None:
    async with running(folder, workers=workers) as house:
        counting = Counting(house.admin)
        calls = 0
        for _ in range(2):
            await house.call(6)
            calls += 6
            assert (await counting.look()).of("grpc_server_handled_total", **SERVICE) == calls
            victim = min(await house.worker_pids())
            os.kill(victim, signal.SIGKILL)
            await counting.look()
            await house.program.line(rf"\(pid {victim}\) was killed by SIGKILL")
            await house.admin.until_told(
                lambda told: told.of("rawgrpc_proxy_workers", state="serving") == workers
            )
            assert victim not in await house.worker_pids()
            assert (await counting.look()).of("grpc_server_handled_total", **SERVICE) == calls
        await stop(house.program)


@of_one_and_two
async def test_no_counter_goes_down_through_many_reloads_and_none_of_their_calls_is_lost(
    folder: Path, workers: int
) -> None:
    async with running(folder, workers=workers) as house, Pool() as client:
        counting = Counting(house.admin)
        async with talk(client, house.address) as talking:  # the first generation drains all the time
            for turn in range(1, 6):
                await house.call(3)
                reply = await house.admin.ask("/reload", "POST")
                assert (reply.status, reply.text) == (200, "reloaded\n")
                await counting.look()
                # No report was asked for between the calls and the reload: what a worker says last counts them.
                await house.admin.until_told(partial(handled, 3 * turn))
                assert (await counting.look()).of("rawgrpc_proxy_open_calls") == 1
            assert await talking.end() is Status.OK
        await house.admin.until_told(lambda told: told.of("rawgrpc_proxy_workers", state="draining") == 0)
        metrics = await counting.look()
        assert metrics.of("grpc_server_handled_total") == 16
        assert metrics.of("rawgrpc_proxy_workers", state="serving") == workers
        await stop(house.program)


@on_trio
async def test_a_worker_that_does_not_answer_keeps_its_counts_and_keeps_nobody_waiting(folder: Path) -> None:
    async with running(folder) as house:
        counting = Counting(house.admin)
        await house.call(6)
        await counting.look()
        victim = min(await house.worker_pids())
        os.kill(victim, signal.SIGSTOP)
        try:
            for _ in range(3):
                with trio.fail_after(20):
                    metrics = await counting.look()
                assert metrics.of("grpc_server_handled_total", **SERVICE) == 6
                assert metrics.of("rawgrpc_proxy_workers", state="silent") == 1
                assert metrics.of("rawgrpc_proxy_workers", state="serving") == 1
            assert {
                each["worker"] for each in (await house.admin.ask("/connections")).json["connections"]
            } <= {1, 2}
        finally:
            os.kill(victim, signal.SIGCONT)
        await house.admin.until_told(lambda told: told.of("rawgrpc_proxy_workers", state="serving") == 2)
        await counting.look()
        await stop(house.program)


# ---------------------------------------------------------------- calls, connections


@of_one_and_two
async def test_a_call_that_is_stuck_is_shown_with_whom_it_waits_for(folder: Path, workers: int) -> None:
    async with running(folder, workers=workers) as house, Pool() as client:
        async with talk(client, house.address) as talking:
            reply = await house.admin.ask("/calls?limit=5")
            assert reply.json["open"] == 1
            (call,) = reply.json["calls"]
            assert call["method"].startswith("/")
            assert call["upstream"] == house.upstream
            assert call["peer"].startswith("127.0.0.1:")
            assert "both streams are open" in call["waits_for"]
            assert (call["request_messages"], call["response_messages"]) == (1, 1)
            assert call["worker"] in range(1, workers + 1)
            connections = (await house.admin.ask("/connections")).json["connections"]
            sides = {each["side"]: each for each in connections if each["calls"]}
            assert sides.keys() == {"downstream", "upstream"}
            assert sides["downstream"]["peer"] == call["peer"]
            assert sides["upstream"]["peer"] == house.upstream
            assert {each["worker"] for each in sides.values()} == {call["worker"]}
            assert await talking.end() is Status.OK
        await stop(house.program)


# ----------------------------------------------------------------- what changes something


@of_one_and_two
async def test_a_reload_is_done_when_it_is_answered_and_what_is_wrong_changes_nothing(
    folder: Path, workers: int
) -> None:
    async with running(folder, workers=workers) as house:
        assert "grace = 30" in (await house.admin.ask("/config")).text
        house.file.write_text(settings(house.upstream, workers=workers, more="grace = 7\n"))
        assert (await house.admin.ask("/reload", "POST")).status == 200
        config = (await house.admin.ask("/config")).text
        assert re.search(r"grace = 7\b.*proxy.toml", config)
        before = house.pids
        house.file.write_text(settings("127.0.0.1:70000", workers=workers, more="grace = 8\ncolour = 1\n"))
        reply = await house.admin.ask("/reload", "POST")
        assert reply.status == 422
        assert "colour is not known" in reply.text
        assert "clusters.c.endpoints" in reply.text
        assert (await house.admin.ask("/config")).text == config
        assert before <= house.pids | before
        assert await house.worker_pids() == {
            pid: number for pid, number in (await house.worker_pids()).items() if pid in before
        }
        await house.call()
        house.program.signal(signal.SIGHUP)  # as told by a signal: what it says is nobody's answer
        await house.program.lines("reload: colour is not known", 2)
        house.file.write_text(settings(house.upstream, workers=workers))
        assert (await house.admin.ask("/reload", "POST")).status == 200
        assert "grace = 30" in (await house.admin.ask("/config")).text
        await stop(house.program)


@on_trio
async def test_settings_that_no_socket_takes_at_once_reach_the_admin_process(folder: Path) -> None:
    routes = "".join(f'[[routes]]\nmatch = "/p.Service{number}/*"\ncluster = "c"\n' for number in range(2000))
    async with running(folder, workers=1) as house:
        pid = await house.admin_pid()
        house.file.write_text(settings(house.upstream, workers=1) + routes)
        assert (await house.admin.ask("/reload", "POST")).status == 200
        config = (await house.admin.ask("/config")).text
        assert len(config) > 500_000
        assert "/p.Service1999/*" in config
        assert await house.admin_pid() == pid
        await stop(house.program)


@of_one_and_two
async def test_the_level_of_the_log_is_for_workers_that_are_and_for_those_that_come(
    folder: Path, workers: int
) -> None:
    async with running(folder, workers=workers) as house:
        await house.call()
        await house.program.line("/p.A/Get")
        assert (await house.admin.ask("/log?level=none", "POST")).status == 200
        await house.call(3)
        assert (await house.admin.ask("/reload", "POST")).status == 200
        await house.call(3)
        os.kill(await house.admin_pid(), signal.SIGKILL)
        await house.program.line("the admin process .* was killed")
        await house.admin.serving()
        assert (await house.admin.ask("/reload", "POST")).status == 200
        await house.call(3)
        assert (await house.admin.ask("/log?level=all", "POST")).status == 200
        async with Pool() as client:
            await answer_to(client, house.address, "/p.A/Last")
        await house.program.line("/p.A/Last")
        assert sum("/p.A/Get" in line for line in house.program.stderr) == 1
        await stop(house.program)


# --------------------------------------------------------------- the admin process itself


@of_one_and_two
async def test_an_admin_process_that_is_killed_comes_back_with_all_that_was_counted(
    folder: Path, workers: int
) -> None:
    async with running(folder, workers=workers) as house:
        counting = Counting(house.admin)
        await house.call(5)
        assert (await house.admin.ask("/reload", "POST")).status == 200
        await house.call(4)
        await house.admin.until_told(lambda told: told.of("rawgrpc_proxy_workers", state="draining") == 0)
        await counting.look()
        uptime = (await state_of(house.admin))["uptime_s"]
        pid = await house.admin_pid()
        os.kill(pid, signal.SIGKILL)
        await house.call()  # calls do not notice
        await house.program.line(rf"the admin process \(pid {pid}\) was killed by SIGKILL; it is replaced")
        await house.admin.serving()
        metrics = await counting.look()
        assert metrics.of("grpc_server_handled_total", **SERVICE) == 10
        assert metrics.of("rawgrpc_proxy_workers", state="serving") == workers
        assert (await state_of(house.admin))["uptime_s"] >= uptime
        assert "[admin]" in (await house.admin.ask("/config")).text
        assert (await house.admin.ask("/reload", "POST")).status == 200
        await stop(house.program)


@on_trio
async def test_an_admin_process_that_hangs_hinders_nobody_and_is_replaced_when_it_cannot_be_told_more(
    folder: Path,
) -> None:
    async with running(folder, workers=1) as house:
        await house.call(2)
        await house.admin.metrics()
        pid = await house.admin_pid()
        os.kill(pid, signal.SIGSTOP)
        house.file.write_text("colour = 1\n")
        turns = 0
        while not any(f"pid {pid}) was killed by SIGKILL" in line for line in house.program.stderr):
            turns += 1
            house.program.signal(signal.SIGHUP)
            await house.program.lines("reload: colour is not known", turns)
        await house.call(2)
        await house.admin.serving()
        assert (await house.admin.metrics()).of("grpc_server_handled_total", **SERVICE) == 4
        await stop(house.program)


@on_trio
async def test_an_admin_process_that_was_stopped_for_a_while_goes_on_with_all_workers(folder: Path) -> None:
    async with running(folder) as house:
        pid = await house.admin_pid()
        os.kill(pid, signal.SIGSTOP)
        await house.call(4)
        victim = min(house.pids - {pid})
        os.kill(victim, signal.SIGKILL)
        await house.program.line(rf"\(pid {victim}\) was killed by SIGKILL; it is replaced")
        with trio.fail_after(TIMEOUT_S):
            while len(house.pids) < 3:  # noqa: ASYNC110  # /proc tells nobody when it changes
                await trio.sleep(0.02)
        os.kill(pid, signal.SIGCONT)
        await house.admin.until_told(lambda told: told.of("rawgrpc_proxy_workers", state="serving") == 2)
        assert await house.admin_pid() == pid
        await stop(house.program)


@on_trio
async def test_an_upgrade_keeps_the_sums_and_who_watches_can_go_on(folder: Path) -> None:
    async with running(folder) as house, Pool() as client:
        counting = Counting(house.admin)
        await house.call(3)
        states: list[str] = []
        ready: set[int] = set()

        def hear(state: Any) -> bool:
            states.append(state["state"])
            return False

        async def keep_watching() -> None:
            while True:  # as a browser does: it comes back when the stream ends
                with contextlib.suppress(OSError, trio.BrokenResourceError):
                    await watch(house.admin, hear)
                await trio.sleep(0.1)

        async def probe() -> None:
            while True:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    ready.add((await house.admin.ask("/readyz")).status)
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_watching)
            nursery.start_soon(probe)
            async with talk(client, house.address) as talking:
                await counting.look()
                for times in (1, 2):
                    await again(house.program, signal.SIGUSR2, times)
                    await house.call(2)
                    await house.admin.until_told(
                        lambda told: told.of("rawgrpc_proxy_workers", state="serving") == 2
                    )
                    metrics = await counting.look()
                    assert metrics.of("grpc_server_handled_total", **SERVICE) == 3 + 2 * times
                    assert metrics.of("rawgrpc_proxy_open_calls") == 1
                assert await talking.say(b"still there?") == b"still there?"
                assert await talking.end() is Status.OK
            seen = len(states)
            while len(states) < seen + 2:  # noqa: ASYNC110  # the watcher has come back
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert set(states) == {"serving"}
        assert ready == {200}
        metrics = await counting.look()
        assert metrics.of("grpc_server_handled_total") == 8
        await stop(house.program)


# ------------------------------------------------------------------------- where it listens


@on_trio
async def test_an_admin_listener_can_be_a_unix_socket(folder: Path) -> None:
    path = folder / "admin"
    async with running(folder, admin=f"unix:{path}") as house:
        await house.call()
        assert (await house.admin.metrics()).of("grpc_server_handled_total", **SERVICE) == 1
        await stop(house.program)
        assert not path.exists()


def test_an_admin_listener_can_be_a_socket_that_somebody_else_opened(folder: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with backends("127.0.0.1:0") as (a,):
                options = ("serve", "--listen", "127.0.0.1:0", "--upstream", a, "--admin", "fd:admin")
                command = activated(listener, *options, names="admin")
                async with program(python=command, inherits=listener.fileno()) as proxy:
                    admin = Admin(f"127.0.0.1:{listener.getsockname()[1]}")
                    await admin.serving()
                    await proxy.line(f"^admin: http://{admin.address}/$", "stdout")
                    await again(proxy, signal.SIGUSR2)
                    await admin.serving()
                    await admin.until_told(
                        lambda told: told.of("rawgrpc_proxy_workers", state="serving") == 1
                    )
                    await stop(proxy)

    trio.run(main)


@on_trio
async def test_the_admin_listener_comes_moves_and_goes_with_the_settings(folder: Path) -> None:
    p, q = folder / "p", folder / "q"
    async with running(folder, admin=f"unix:{p}") as house, Pool() as client:
        await house.call(2)
        async with talk(client, house.address) as talking:
            house.file.write_text(settings(house.upstream, admin=f"unix:{q}"))
            await again(house.program, signal.SIGHUP)
            await house.program.line(f"^admin: unix:{q}$", "stdout")
            moved = Admin(f"unix:{q}")
            await moved.serving()
            assert not p.exists()
            await moved.until_told(lambda told: told.of("grpc_server_handled_total", **SERVICE) == 2)
            house.file.write_text(settings(house.upstream, admin=None))
            await again(house.program, signal.SIGHUP, 2)
            await house.call()
            assert not q.exists()
            house.file.write_text(settings(house.upstream, admin=f"unix:{p}"))
            await again(house.program, signal.SIGHUP, 3)
            await house.admin.serving()
            await house.call()
            assert (await house.admin.metrics()).of("grpc_server_handled_total", **SERVICE) >= 1
            assert await talking.end() is Status.OK
        await stop(house.program)
        assert not any("crashed" in line for line in house.program.stderr)


@on_trio
async def test_it_is_known_by_the_names_that_settings_give_it_and_no_other(folder: Path) -> None:
    async with running(folder, admin="localhost:0", about='hosts = ["Metrics.Example"]\n') as house:
        port = house.admin.address.rpartition(":")[2]
        for host, status in (
            (f"metrics.example:{port}", 200),
            ("METRICS.example", 200),
            (f"localhost:{port}", 200),
            (f"127.0.0.1:{port}", 200),
            ("evil.example", 421),
        ):
            assert (await house.admin.ask("/metrics", Host=host)).status == status, host
        assert Counter(house.pids).total() == 3
        await stop(house.program)
