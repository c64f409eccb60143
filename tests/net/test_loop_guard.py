"""Which upstreams are the proxy itself."""

import os
import socket
import sys
from pathlib import Path

import pytest

from rawgrpc_proxy.errors import UpstreamUnavailable
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.loop_guard import LoopGuard
from tests.net.test_listen import needs_ipv6


def is_loop(listening: str, upstream: str) -> bool:
    guard = LoopGuard()
    guard.listens_on(Address.parse(listening))
    return guard.objection(Address.parse(upstream)) is not None


@pytest.mark.parametrize(
    ("listening", "upstream", "loop"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "localhost:80", True),
        ("127.0.0.1:80", "0.0.0.0:80", True),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "0.0.0.0:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:80", "192.0.2.1:80", False),
        ("0.0.0.0:80", "192.0.2.1:80", False),
        ("127.0.0.1:80", "no.such.name.invalid:80", False),
        ("127.0.0.1:80", "a..b:80", False),
        ("127.0.0.1:80", "unix:80", False),
        ("unix:80", "127.0.0.1:80", False),
    ],
)
def test_an_address_that_leads_to_a_listener_is_a_loop(listening: str, upstream: str, loop: bool) -> None:
    assert is_loop(listening, upstream) is loop


@needs_ipv6
@pytest.mark.parametrize(
    ("listening", "upstream", "loop"),
    [
        ("[::1]:80", "[::1]:80", True),
        ("[::1]:80", "[0:0::1]:80", True),
        ("[::]:80", "[::1]:80", True),
        ("[::]:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", True),
        ("127.0.0.1:80", "[::1]:80", False),
        ("0.0.0.0:80", "[::1]:80", False),
    ],
)
def test_so_it_is_in_the_other_family(listening: str, upstream: str, loop: bool) -> None:
    assert is_loop(listening, upstream) is loop


def test_a_socket_file_is_the_same_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("own")
        Path("link").symlink_to("own")
        Path("folder").mkdir()
        assert is_loop("unix:own", f"unix:{tmp_path}/own")
        assert is_loop("unix:own", "unix:folder/../link")
        assert not is_loop("unix:own", "unix:other")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_a_socket_without_a_file_is_the_same_by_its_name() -> None:
    assert is_loop("unix:@own", "unix-abstract:own")
    assert not is_loop("unix:@own", "unix:@other")
    assert not is_loop("unix:@own", "unix:own")


def test_a_connection_is_judged_by_its_other_end_and_the_first_one_told_of() -> None:
    told: list[str] = []
    guard = LoopGuard(told.append)
    guard.listens_on(Address.parse("127.0.0.1:80"))
    upstream = Address.parse("upstream.example:50051")
    guard.check(upstream, lambda: ("192.0.2.1", 80))
    for _ in range(2):
        with pytest.raises(UpstreamUnavailable, match=r"is this proxy itself, .* in a loop"):
            guard.check(upstream, lambda: ("127.0.0.1", 80))
    assert len(told) == 1


def test_a_connection_that_is_lost_already_is_left_to_whoever_uses_it() -> None:
    def gone() -> None:
        raise OSError(os.strerror(107))

    LoopGuard().check(Address.parse("upstream.example:50051"), gone)
