"""Who may ask, for any Host and Origin."""

import ipaddress
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rawgrpc_proxy.command.admin.messages import Refused, Request
from rawgrpc_proxy.command.admin.same_origin import check, is_ours

PORTS = st.sampled_from(["", ":1", ":80", ":9901", ":65535"])
LABELS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


def is_refused(**fields: str) -> bool:
    request = Request(method="POST", path="/drain", host=fields.get("host"), fields=fields)
    try:
        check(request, ())
    except Refused:
        return True
    return False


@given(st.ip_addresses(), PORTS)
def test_every_address_is_ours(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: str) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    assert is_ours(host + port, ())


@given(NAMES, PORTS)
@example("1.2.3.4.evil", "")
@example("evil.1", "")
@example("0x7f000001", "")
@example("notlocalhost", "")
def test_no_name_is_ours_but_those_of_loopback_and_those_told(name: str, port: str) -> None:
    is_loopback = name.lower() == "localhost" or name.lower().endswith(".localhost")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        assert is_ours(name + port, ()) == is_loopback
        assert not is_ours(name + ".evil" + port, {name.lower()})
    assert is_ours(name + port, {name.lower()})
    assert is_ours(name + "." + port, {name.lower()})


@pytest.mark.parametrize(
    "host",
    [
        "localhost@evil",
        "localhost/evil",
        "evil#localhost",
        "localhost evil",
        "localhost, evil",
        "127.0.0.1:1:2",
        "[::1]evil",
        "[::1%eth0]",
        "[::1",
        "::1",
        "localhost:",
        "localhost:x",
        "\u0661\u0662\u0667.0.0.1",
        ".",
        "",
    ],
)
def test_what_is_no_host_is_not_ours(host: str) -> None:
    assert not is_ours(host, ())


@given(st.ip_addresses(v=4).map(str), PORTS, st.text(max_size=40))
def test_an_origin_is_ours_only_if_it_is_host_behind_a_scheme(host: str, port: str, origin: str) -> None:
    here = host + port
    assert is_refused(host=here, origin=origin) == (
        origin.lower() not in {f"http://{here}", f"https://{here}"}
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "anything", "none, same-origin"])
def test_a_site_that_is_not_ours_or_not_known_is_refused(site: str) -> None:
    assert is_refused(host="localhost", **{"sec-fetch-site": site})


def test_who_says_nothing_of_where_he_comes_from_is_no_browser() -> None:
    assert not is_refused(host="localhost:9901")
    assert not is_refused()
