"""Addresses: what is read, what is written, and errors that say what to write instead."""

import pytest

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("127.0.0.1:50051", Address(host="127.0.0.1", port=50051), None),
        ("api.example.com:1", Address(host="api.example.com", port=1), None),
        ("localhost:65535", Address(host="localhost", port=65535), None),
        ("host:0080", Address(host="host", port=80), "host:80"),
        ("[::1]:443", Address(host="::1", port=443), None),
        ("[fe80::1%eth0]:443", Address(host="fe80::1%eth0", port=443), None),
        ("unix:/run/app.sock", Address(path="/run/app.sock"), None),
        ("unix:relative.sock", Address(path="relative.sock"), None),
        ("unix:///run/app.sock", Address(path="/run/app.sock"), "unix:/run/app.sock"),
        ("unix:/run/with:colon", Address(path="/run/with:colon"), None),
        ("unix:./@file", Address(path="./@file"), None),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address, written: str | None) -> None:
    assert Address.parse(text) == address
    assert str(address) == (written or text)


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("", "write HOST:PORT or unix:PATH"),
        ("localhost", "write HOST:PORT or unix:PATH"),
        ("localhost:", "write HOST:PORT or unix:PATH"),
        ("localhost:http", "write HOST:PORT or unix:PATH"),
        ("localhost:80/path", "write HOST:PORT or unix:PATH"),
        ("localhost:-1", "write HOST:PORT or unix:PATH"),
        ("localhost:٣", "write HOST:PORT or unix:PATH"),
        ("http://localhost:80", "is a URL; write HOST:PORT"),
        ("dns:///localhost:80", "is a URL; write HOST:PORT"),
        (":50051", "names no host; .*127.0.0.1:50051"),
        ("[]:50051", "names no host"),
        ("[[::1]]:50051", "names no host"),
        ("a[b]:50051", "names no host"),
        ("my host:50051", "names no host"),
        ("host\n:50051", "names no host"),
        ("::1:50051", r"write IPv6 addresses as \[ADDRESS\]:PORT"),
        ("[::1]", r"write IPv6 addresses as \[ADDRESS\]:PORT"),
        ("localhost:0", "port 0; a port is 1 to 65535"),
        ("localhost:65536", "a port is 1 to 65535"),
        ("localhost:" + 5000 * "9", "port 99999999999999999999; a port is 1 to 65535"),
        ("unix:", "names no path; write unix:PATH"),
        ("unix://", "names no path; write unix:PATH"),
        ("unix:@", "names no socket; write unix:@NAME"),
        ("unix:a\0b", "has a NUL"),
        ("a\0b:80", "has a NUL"),
    ],
)
def test_what_is_no_address_is_told_what_one_looks_like(text: str, lesson: str) -> None:
    with pytest.raises(ConfigError, match=lesson):
        Address.parse(text)


@pytest.mark.parametrize("text", ["unix:@name", "unix-abstract:name"])
def test_a_socket_without_a_file_is_linux_s(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    address = Address.parse(text)
    assert (address, str(address)) == (Address(path="\0name"), "unix:@name")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="which only Linux has; write unix:PATH"):
        Address.parse(text)


def test_a_listener_may_leave_out_its_host_and_so_have_every_address() -> None:
    assert Address.parse(":8080", to_listen=True) == Address(port=8080)
    assert str(Address(port=8080)) == ":8080"


def test_a_listener_may_leave_the_choice_of_its_port() -> None:
    assert Address.parse("127.0.0.1:0", to_listen=True).port == 0
    with pytest.raises(ConfigError, match="a port is 0 to 65535"):
        Address.parse("127.0.0.1:70000", to_listen=True)
