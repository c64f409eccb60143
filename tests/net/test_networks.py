"""Who belongs to the networks that people write, and what they are told of those that are none."""

import pytest

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.networks import Networks


@pytest.mark.parametrize(
    ("names", "inside", "outside"),
    [
        ([], [], ["10.0.0.7:1", "[::1]:1", "unix:"]),
        (["10.0.0.0/8"], ["10.0.0.7:1", "10.255.255.255:1"], ["11.0.0.0:1", "[::1]:1", "unix:"]),
        (["10.0.0.0/255.0.0.0"], ["10.0.0.7:1"], ["11.0.0.0:1"]),
        (["10.0.0.7"], ["10.0.0.7:1", "10.0.0.7:0"], ["10.0.0.8:1"]),
        (["2001:db8::/32", "::1"], ["[2001:db8::7]:1", "[::1]:1"], ["[2001:db9::]:1", "10.0.0.7:1"]),
        (["fe80::/10"], ["[fe80::1%eth0]:1"], ["10.0.0.7:1"]),
        (["10.0.0.0/8"], ["[::ffff:10.0.0.7]:1"], ["no address", ""]),
        (["unix"], ["unix:", "unix:/run/x"], ["10.0.0.7:1", "[::1]:1"]),
        (["0.0.0.0/0", "::/0"], ["10.0.0.7:1", "[::1]:1"], ["unix:"]),
    ],
)
def test_peers_are_told_by_their_network(names: list[str], inside: list[str], outside: list[str]) -> None:
    peers = Networks.parse(names)
    assert [peer for peer in (*inside, *outside) if peer in peers] == inside
    assert bool(peers) == bool(names)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "10.0.0.0/33",
            "'10.0.0.0/33' is no network; write 10.0.0.0/8, 2001:db8::/32, a single address, or \"unix\"",
        ),
        ("lb.internal", "is no network"),
        ("10.0.0.7:443", "is no network"),
        ("", "is no network"),
        ("fe80::%eth0/64", "is no network"),
        ("Unix", "is no network"),
        ("10.0.0.7/8", "is an address in a network; write 10.0.0.0/8 for that, or 10.0.0.7 for it alone"),
        ("::ffff:10.0.0.0/104", "is IPv4 written as IPv6, and matches nobody here; write 10.0.0.0/8"),
    ],
)
def test_what_is_no_network_is_refused_with_what_to_write(name: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Networks.parse([name])
    assert says in str(caught.value)


def test_text_in_place_of_a_list_is_not_taken_letter_by_letter() -> None:
    with pytest.raises(ConfigError, match=r"is text; write a list: \['10.0.0.0/8'\]"):
        Networks.parse("10.0.0.0/8")
