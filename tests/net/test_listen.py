"""Listening: what is bound, what is left alone, and how accepting survives a shortage."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import accept_forever, accept_on_each, address_of, bound_address, open_listeners
from tests.upstream.backend import run

LOOPBACK = Address(host="127.0.0.1", port=0)


def open_listener(address: Address) -> socket.socket:
    """For an address that is one socket."""
    (listener,) = open_listeners(address)
    return listener


def no_trouble(error: OSError) -> None:
    raise AssertionError(error)


def reaches_itself(host: str) -> bool:
    """Whether this machine has that address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


@contextmanager
def connected_to(listener: socket.socket, count: int = 1) -> Iterator[list[socket.socket]]:
    """So many clients of `listener`, which need not have accepted them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(listener.family)) for _ in range(count)]
        for client in clients:
            client.connect(listener.getsockname())
        yield clients


async def accepted(listener: socket.socket, count: int) -> list[str]:
    """The peers of the next connections, which are closed at once."""
    peers: list[str] = []

    def on_accept(sock: socket.socket, peer: str) -> None:
        sock.close()
        peers.append(peer)
        if len(peers) == count:
            scope.cancel()

    with trio.CancelScope() as scope:
        await accept_forever(listener, on_accept, no_trouble)
    return peers


# ----------------------------------------------------------------------------------------------------------- binding


def test_port_zero_is_a_free_port_and_the_listener_tells_which() -> None:
    with open_listener(LOOPBACK) as listener:
        address = bound_address(listener)
        assert address.host == "127.0.0.1"
        assert address.port > 0
        assert listener.getblocking() is False


def test_ipv6_is_bound_and_written_in_brackets() -> None:
    async def test() -> None:
        try:
            listener = open_listener(Address(host="::1", port=0))
        except ConfigError as error:
            pytest.skip(str(error))
        with listener, connected_to(listener) as (client,):
            assert str(bound_address(listener)).startswith("[::1]:")
            assert await accepted(listener, 1) == [f"[::1]:{client.getsockname()[1]}"]

    run(test)


def test_a_unix_socket_is_bound_and_its_peers_have_no_name(tmp_path: Path) -> None:
    async def test() -> None:
        address = Address(path=str(tmp_path / "socket"))
        with open_listener(address) as listener, connected_to(listener):
            assert bound_address(listener) == address
            assert await accepted(listener, 1) == ["unix:"]

    run(test)


def test_a_port_can_be_bound_again_while_the_kernel_remembers_its_connections() -> None:
    with open_listener(LOOPBACK) as listener, connected_to(listener):
        address = bound_address(listener)
        listener.accept()[0].close()  # the server closes first: its port stays in TIME_WAIT
    open_listener(address).close()


def test_a_port_that_is_taken_is_told_as_such() -> None:
    with (
        open_listener(LOOPBACK) as listener,
        pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"),
    ):
        open_listener(bound_address(listener))


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "annot assign requested address"),
        ("a..b", r"no host can have this name \(.*label empty"),
    ],
)
def test_a_host_that_is_not_this_machine_is_told_as_such(host: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {re.escape(host)}:8080: .*{reason}"):
        open_listener(Address(host=host, port=8080))


def reaches(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex((host, port)) == 0


@contextmanager
def listening_on(text: str) -> Iterator[tuple[list[socket.socket], Address]]:
    asked = Address.parse(text, to_listen=True)
    listeners = open_listeners(asked)
    try:
        yield listeners, address_of(listeners, asked)
    finally:
        for listener in listeners:
            listener.close()


needs_ipv6 = pytest.mark.skipif(not reaches_itself("::1"), reason="this machine has no ::1")


@needs_ipv6
@pytest.mark.parametrize(
    ("text", "written"), [("localhost:0", "localhost"), ("[::]:0", "[::]"), (":0", "[::]")]
)
def test_a_name_for_both_families_is_reached_by_both_on_one_port(text: str, written: str) -> None:
    with listening_on(text) as (_, address):
        assert str(address) == f"{written}:{address.port}"
        assert reaches("127.0.0.1", address.port)
        assert reaches("::1", address.port)


@pytest.mark.parametrize("text", ["localhost:0", ":0"])
def test_a_family_that_the_machine_does_not_have_is_passed_over(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnlyV4(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", OnlyV4)
    with listening_on(text) as ((listener,), address):
        assert listener.family == socket.AF_INET
        assert reaches("127.0.0.1", address.port)


@needs_ipv6
def test_a_free_port_of_one_family_that_is_taken_in_the_other_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused: list[int] = []

    class TakenInV6(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6 and len(refused) < 3:
                refused.append(address[1])
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", TakenInV6)
    with listening_on("localhost:0") as (listeners, address):
        assert {bound_address(listener).port for listener in listeners} == {address.port}
        assert len(listeners) == 2
        assert len(refused) == 3


@needs_ipv6
def test_a_client_of_the_other_family_has_the_address_that_it_knows_itself_by() -> None:
    async def test() -> None:
        with listening_on("[::]:0") as ((listener,), address), socket.socket() as client:
            client.connect(("127.0.0.1", address.port))
            assert await accepted(listener, 1) == [f"127.0.0.1:{client.getsockname()[1]}"]

    run(test)


@needs_ipv6
def test_connections_are_accepted_on_each_of_the_sockets() -> None:
    async def test() -> None:
        with listening_on("localhost:0") as (listeners, address):
            peers: list[str] = []

            def on_accept(sock: socket.socket, peer: str) -> None:
                sock.close()
                peers.append(peer.rpartition(":")[0])
                if len(peers) == 2:
                    scope.cancel()

            with trio.CancelScope() as scope:
                assert reaches("127.0.0.1", address.port)
                assert reaches("::1", address.port)
                await accept_on_each(listeners, on_accept, no_trouble)
            assert sorted(peers) == ["127.0.0.1", "[::1]"]

    run(test)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
@pytest.mark.parametrize("prefix", ["unix:@", "unix-abstract:"])
def test_an_abstract_socket_is_bound_without_a_file(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"rawgrpc-{os.getpid()}"
    with listening_on(prefix + name) as ((listener,), address), connected_to(listener):
        assert str(address) == f"unix:@{name}"
        assert list(tmp_path.iterdir()) == []


def resolving_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_an_address_of_a_name_that_this_machine_does_not_have_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving_to(monkeypatch, "192.0.2.1", "127.0.0.1")
    with open_listener(Address(host="me", port=0)) as listener:
        assert bound_address(listener).host == "127.0.0.1"


def test_a_port_that_is_taken_on_the_first_address_of_a_name_is_not_bound_on_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_listener(LOOPBACK) as listener:
        resolving_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(ConfigError, match="already in use"):
            open_listener(Address(host="me", port=bound_address(listener).port))


def test_a_name_that_cannot_be_resolved_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(
        ConfigError,
        match=r"cannot listen on nowhere:80: the name cannot be resolved \(Name or service not known\)",
    ):
        open_listener(Address(host="nowhere", port=80))


# ----------------------------------------------------------------------------------------------------- Unix sockets


def test_a_socket_file_that_a_crash_left_over_is_replaced(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "socket"))
    open_listener(address).close()
    assert (tmp_path / "socket").is_socket()
    with open_listener(address) as listener, connected_to(listener):
        pass


def test_a_socket_file_that_somebody_listens_on_is_not_stolen(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "socket"))
    with open_listener(address) as listener:
        with pytest.raises(ConfigError, match="already in use"):
            open_listener(address)
        with connected_to(listener):
            pass


def test_a_server_too_busy_to_accept_is_alive_all_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as stack:
        server.bind(path)
        server.listen(0)
        while True:  # until its backlog is full
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(0)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        with pytest.raises(ConfigError, match="already in use"):
            open_listener(Address(path=path))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="already in use"):
        open_listener(Address(path=str(file)))
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "reason"), [("{}/none/socket", "No such file or directory"), ("{}/" + "x" * 200, "too long")]
)
def test_a_path_that_cannot_be_bound_is_told_as_such(tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_listener(Address(path=path.format(tmp_path)))


# --------------------------------------------------------------------------------------------------------- accepting


def test_a_crowd_is_accepted_each_with_its_address() -> None:
    async def test() -> None:
        with open_listener(LOOPBACK) as listener, connected_to(listener, 150) as clients:
            expected = {f"127.0.0.1:{client.getsockname()[1]}" for client in clients}
            assert set(await accepted(listener, 150)) == expected

    run(test)


def test_a_listener_that_came_in_blocking_mode_does_not_block_the_others() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, connected_to(listener):
            got = trio.Event()

            def on_accept(sock: socket.socket, _peer: str) -> None:
                sock.close()
                got.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept_forever, listener, on_accept, no_trouble)
                await got.wait()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    run(test)


class Moody(socket.socket):
    """A listener whose next accepts fail like this."""

    moods: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.moods:
            code = self.moods.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


@contextmanager
def moody(*moods: int) -> Iterator[Moody]:
    with Moody() as listener:
        listener.moods = list(moods)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_a_peer_that_is_gone_before_it_is_accepted_harms_nobody() -> None:
    async def test() -> None:
        with moody(errno.ECONNABORTED, errno.EPROTO, errno.EPERM) as listener, connected_to(listener):
            assert len(await accepted(listener, 1)) == 1
            assert listener.moods == []

    run(test)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_is_reported_and_waited_out(code: int) -> None:
    async def test() -> None:
        with moody(code, code) as listener, connected_to(listener):
            troubles: list[OSError] = []

            def on_accept(sock: socket.socket, _peer: str) -> None:
                sock.close()
                scope.cancel()

            started = trio.current_time()
            with trio.CancelScope() as scope:
                await accept_forever(listener, on_accept, troubles.append)
            assert [trouble.errno for trouble in troubles] == [code, code]
            assert trio.current_time() - started >= 0.2  # a pause each time, not a busy loop

    run(test)


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK])
def test_what_does_not_listen_is_an_error_and_no_endless_loop(code: int) -> None:
    async def test() -> None:
        with moody(*[code] * 1000) as listener, connected_to(listener):
            with pytest.raises(OSError) as error:
                await accept_forever(listener, lambda *_: None, no_trouble)
            assert error.value.errno == code

    run(test)


OUT_OF_DESCRIPTORS = """
import resource, socket, trio
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import accept_forever, open_listeners

async def main():
    (listener,) = open_listeners(Address(host="127.0.0.1", port=0))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
    held, accepted, troubles = [], 0, 0

    def on_accept(sock, peer):
        nonlocal accepted
        accepted += 1
        held.append(sock)
        if accepted == 20:
            scope.cancel()

    def on_trouble(error):
        nonlocal troubles
        troubles += 1
        held.pop().close()  # somebody hangs up

    highest = max(client.fileno() for client in clients)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 11, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with trio.fail_after(20), trio.CancelScope() as scope:
        await accept_forever(listener, on_accept, on_trouble)
    print(accepted, troubles)

trio.run(main)
"""


def test_a_process_out_of_file_descriptors_goes_on_accepting_as_they_come_free() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    accepted_in_all, troubles = done.stdout.split()
    assert int(accepted_in_all) == 20
    assert 5 < int(troubles) < 15
