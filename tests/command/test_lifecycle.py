"""Reload, upgrade, sockets from elsewhere, systemd: `serve` as a service, in processes of its own."""

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy import Client
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import UpstreamUnavailable
from rawgrpc_proxy.upstream.pool import Pool
from tests.command.test_cli import answer_to, backends, folder, talk
from tests.command.test_supervisor import children, status_from, until_children
from tests.processes import Program, program

__all__ = ["folder"]

_SERVING = r"(\d) new workers? serving, with the settings as they are now; (\d) workers? draining"


def write(file: Path, upstream: str, *listeners: str, more: str = "") -> None:
    """Settings, written as people who know do it: the file is always one or the other."""
    text = more + "".join(f'[[listeners]]\naddress = "{address}"\n' for address in listeners)
    new = file.with_suffix(".new")
    new.write_text(f'{text}[clusters.c]\nendpoints = ["{upstream}"]\n[[routes]]\ncluster = "c"\n')
    new.rename(file)


@asynccontextmanager
async def served(file: Path, **about: str) -> AsyncIterator[Program]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in about.items():
            environment.setenv(name, value)
        async with program("serve", "--config", str(file)) as proxy:
            yield proxy


async def again(proxy: Program, number: signal.Signals, times: int = 1) -> None:
    """Reload or upgrade, and wait until the new workers serve."""
    proxy.signal(number)
    await proxy.lines(_SERVING, times)


async def stop(proxy: Program) -> None:
    proxy.signal(signal.SIGTERM)
    assert await proxy.exit_code() == 0


async def status_of(client: Pool, address: str) -> str:
    async with Client(client.target(address)) as caller:
        return await status_from(caller.unary_unary("/p.A/Get", b"?"))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
@pytest.mark.parametrize("workers", [1, 2])
def test_new_settings_are_for_new_connections_and_running_calls_go_on(
    number: signal.Signals, workers: int, folder: Path
) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0", "127.0.0.1:0") as (a, b), Pool() as old:
            write(file, a, f"unix:{folder}/p", more=f"workers = {workers}\n")
            async with served(file) as proxy:
                address = await proxy.address()
                assert await answer_to(old, address, "/p.A/Get") == b"a"
                async with talk(old, address) as talking:
                    write(file, b, f"unix:{folder}/p", more=f"workers = {workers}\n")
                    pid = proxy.pid
                    await again(proxy, number)
                    async with Pool() as new:
                        assert await answer_to(new, address, "/p.A/Get") == b"b"
                    assert await talking.say(b"still there?") == b"still there?"
                    assert await talking.end() is Status.OK
                assert proxy.pid == pid
                await stop(proxy)
                assert not (folder / "p").exists()
                assert sum(line.startswith("listening") for line in proxy.stdout) == 1

    trio.run(main)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[listeners", "reload: .*proxy.toml: "),
        ('[[listeners]]\naddress = "127.0.0.1:70000"\n', r"reload: listeners\[0\].address"),
        ("colour = 1\n", r"reload: colour is not known"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing_and_says_why(text: str, said: str, folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,), Pool() as client:
            write(file, a, "127.0.0.1:0")
            async with served(file) as proxy:
                address = await proxy.address()
                await answer_to(client, address, "/p.A/Get")
                before = children(proxy)
                file.write_text(text)
                proxy.signal(signal.SIGHUP)
                await proxy.line(said)
                await proxy.line("reload: nothing has changed; the workers that serve go on")
                assert children(proxy) == before
                # The new program would not start with it: it is tried before it takes over.
                proxy.signal(signal.SIGUSR2)
                await proxy.line(
                    "upgrade: the new program ended with exit code 2 when it was tried; nothing has"
                )
                assert children(proxy) == before
                assert await answer_to(client, address, "/p.A/Get") == b"a"
                write(file, a, "127.0.0.1:0")
                await again(proxy, signal.SIGHUP)
                await stop(proxy)

    trio.run(main)


def test_an_address_that_is_taken_changes_nothing(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,), Pool() as client:
            write(file, a, f"unix:{folder}/p")
            async with served(file) as proxy:
                address = await proxy.address()
                write(file, a, f"unix:{folder}/q", a)
                proxy.signal(signal.SIGHUP)
                await proxy.line(f"reload: cannot listen on {a}: ")
                await proxy.line("nothing has changed")
                assert await answer_to(client, address, "/p.A/Get") == b"a"
                assert not (folder / "q").exists()
                await stop(proxy)

    trio.run(main)


def test_listeners_come_and_go_with_the_settings(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        p, q = f"unix:{folder}/p", f"unix:{folder}/q"
        async with backends("127.0.0.1:0") as (a,), Pool(dial_timeout_s=60) as client:
            write(file, a, p)
            async with served(file) as proxy:
                await proxy.address()
                async with talk(client, p) as talking:
                    write(file, a, q)
                    await again(proxy, signal.SIGHUP)
                    await proxy.line(f"^listening on {q}$", "stdout")
                    assert await answer_to(client, q, "/p.A/Get") == b"a"
                    assert not (folder / "p").exists()
                    assert await talking.end() is Status.OK
                # Nobody has a copy of the socket left that would take a connection and not answer.
                async with Pool(connect_wait_s=0) as stranger:
                    with pytest.raises(UpstreamUnavailable):
                        await stranger.get_conn(p)
                write(file, a, p, q)
                await again(proxy, signal.SIGHUP, times=2)
                assert await answer_to(client, p, "/p.A/Get") == b"a"
                await stop(proxy)

    trio.run(main)


def test_the_number_of_workers_changes_with_the_settings(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,):
            write(file, a, f"unix:{folder}/p", more="workers = 1\n")
            async with served(file) as proxy:
                await proxy.address()
                write(file, a, f"unix:{folder}/p", more="workers = 3\n")
                await again(proxy, signal.SIGHUP)
                await proxy.line("3 new workers serving")
                await proxy.line("stopped")
                await until_children(proxy, 3)
                await stop(proxy)

    trio.run(main)


def test_a_worker_that_dies_after_an_upgrade_is_replaced(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,), Pool() as client:
            write(file, a, f"unix:{folder}/p")
            async with served(file) as proxy:
                address = await proxy.address()
                for times in (1, 2):
                    await again(proxy, signal.SIGUSR2, times)
                await until_children(proxy, 1)
                (victim,) = children(proxy)
                os.kill(victim, signal.SIGKILL)
                await proxy.line(rf"worker 1 \(pid {victim}\) was killed by SIGKILL; it is replaced")
                assert await answer_to(client, address, "/p.A/Get") == b"a"
                await stop(proxy)

    trio.run(main)


def test_settings_that_are_gone_as_the_new_program_takes_over_leave_the_workers_before(folder: Path) -> None:
    script = (
        "import os, sys; from rawgrpc_proxy.command.cli import main; file = sys.argv[1]\n"
        "if '\"is_trial\": false' in os.environ.get('_RAWGRPC_PROXY_HANDOVER', ''): os.rename(file, file + '.gone')\n"
        "sys.exit(main(['serve', '--config', file]))"
    )

    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0", "127.0.0.1:0") as (a, b), Pool() as client:
            write(file, a, "127.0.0.1:0")
            async with program(python=["-c", script, str(file)]) as proxy:
                address = await proxy.address()
                async with talk(client, address) as talking:
                    proxy.signal(signal.SIGUSR2)
                    await proxy.line("upgrade: .*proxy.toml")
                    await proxy.line("upgrade: the workers of the program before go on")
                    assert await talking.say(b"still there?") == b"still there?"
                    async with Pool() as new:
                        assert await answer_to(new, address, "/p.A/Get") == b"a"
                    proxy.signal(signal.SIGUSR2)  # with nothing to fall back on this is no more than a reload
                    await proxy.line("reload: .*proxy.toml")
                    write(file, b, "127.0.0.1:0")
                    await again(proxy, signal.SIGHUP)
                    async with Pool() as new:
                        assert await answer_to(new, address, "/p.A/Get") == b"b"
                    assert await talking.end() is Status.OK
                await stop(proxy)

    trio.run(main)


def test_a_stop_while_old_workers_drain_gives_them_their_grace(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,), Pool() as client:
            write(file, a, f"unix:{folder}/p")
            async with served(file) as proxy:
                async with talk(client, await proxy.address()) as talking:
                    await again(proxy, signal.SIGHUP)
                    await proxy.line("draining, 1 call")
                    proxy.signal(signal.SIGTERM)
                    await proxy.line("SIGTERM: stopping")
                    await proxy.line("stopped")  # the new worker
                    assert await talking.say(b"still there?") == b"still there?"
                    assert await talking.end() is Status.OK
                assert await proxy.exit_code() == 0

    trio.run(main)


# ----------------------------------------------------------- sockets from elsewhere


def activated(listener: socket.socket, *arguments: str, names: str = "") -> list[str]:
    """A command that gives a program this listener as systemd does, as file descriptor 3."""
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=sys.argv[2]); "
        "os.execv(sys.executable, [sys.executable, '-m', 'rawgrpc_proxy', *sys.argv[3:]])"
    )
    return ["-c", script, str(listener.fileno()), names, *arguments]


@pytest.mark.parametrize("name", ["3", "calls"])
def test_a_socket_that_somebody_else_opened_is_served_through_reload_and_upgrade(name: str) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with backends("127.0.0.1:0") as (a,), Pool() as client:
                options = ("serve", "--listen", f"fd:{name}", "--upstream", a)
                async with program(
                    python=activated(listener, *options, names="calls"), inherits=listener.fileno()
                ) as proxy:
                    address = await proxy.address()
                    assert address == f"127.0.0.1:{listener.getsockname()[1]}"
                    assert await answer_to(client, address, "/p.A/Get") == b"a"
                    await again(proxy, signal.SIGHUP)
                    await again(proxy, signal.SIGUSR2, times=2)
                    async with Pool() as new:
                        assert await answer_to(new, address, "/p.A/Get") == b"a"
                    await stop(proxy)

    trio.run(main)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("fd:987", "file descriptor 987 is no open socket"),
        ("fd:calls", "no file descriptor has this name; systemd has given none: LISTEN_FDNAMES is not set"),
        ("fd:", "names no file descriptor; write fd:3"),
    ],
)
def test_a_socket_that_nobody_gave_is_an_error_that_says_where_it_has_to_come_from(
    address: str, problem: str
) -> None:
    async def main() -> None:
        async with program("serve", "--listen", address, "--upstream", "127.0.0.1:1") as proxy:
            assert await proxy.exit_code() == 2
            (line,) = proxy.stderr
            assert problem in line

    trio.run(main)


# ------------------------------------------------------------------------- systemd


@asynccontextmanager
async def told(folder: Path) -> AsyncIterator[tuple[str, "trio.MemoryReceiveChannel[str]"]]:
    """Where systemd would listen, and what it is told."""
    path = str(folder / "notify")
    sending, receiving = trio.open_memory_channel[str](1000)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        await sock.bind(path)

        async def listen() -> None:
            while True:
                sending.send_nowait((await sock.recv(4096)).decode())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            yield path, receiving
            nursery.cancel_scope.cancel()


def test_systemd_hears_when_the_proxy_serves_reloads_and_stops(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,), told(folder) as (path, states):
            write(file, a, f"unix:{folder}/p")
            async with served(file, NOTIFY_SOCKET=path) as proxy:
                assert (await states.receive()).startswith("READY=1")
                for number in (signal.SIGHUP, signal.SIGUSR2):
                    proxy.signal(number)
                    assert (await states.receive()).startswith("RELOADING=1\nMONOTONIC_USEC=")
                    assert (await states.receive()).startswith("READY=1")
                await stop(proxy)
                assert (await states.receive()).startswith("STOPPING=1")

    trio.run(main)


def test_the_watchdog_is_told_no_more_when_a_worker_hangs(folder: Path) -> None:
    async def main() -> None:
        file = folder / "proxy.toml"
        async with backends("127.0.0.1:0") as (a,), told(folder) as (path, states):
            write(file, a, f"unix:{folder}/p")
            async with served(file, NOTIFY_SOCKET=path, WATCHDOG_USEC="2000000") as proxy:
                heard = [await states.receive() for _ in range(6)]
                assert heard.count("WATCHDOG=1") >= 5
                (worker,) = children(proxy)
                os.kill(worker, signal.SIGSTOP)
                with contextlib.suppress(trio.TooSlowError):
                    # Three intervals of silence are no accident; until the first is over it counts as alive.
                    while True:
                        with trio.fail_after(6):
                            await states.receive()
                os.kill(worker, signal.SIGCONT)
                assert await states.receive() == "WATCHDOG=1"
                await stop(proxy)

    trio.run(main)
