"""For whom a call is forwarded, and who is believed."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy import CallContext, ConfigError, Metadata, RpcError, Status, tell_forwarded
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.proxy.forwarded import ForwardedField

FORWARDED: ForwardedField = "forwarded"
FOR: ForwardedField = "x-forwarded-for"


def told(
    field: ForwardedField, peer: str, *came: tuple[bytes, bytes], trusted: tuple[str, ...] = ()
) -> Metadata:
    """The metadata that the director sees of a call from this peer."""
    seen: list[CallContext] = []

    def director(context: CallContext, _method: str) -> Direction:
        seen.append(context)
        raise RpcError(Status.ABORTED)

    metadata = Metadata([(b":path", b"/p.S/M"), *came])
    with pytest.raises(RpcError):
        tell_forwarded(director, field, trusted_proxies=trusted)(
            CallContext(method="/p.S/M", metadata=metadata, peer=peer), "/p.S/M"
        )
    return seen[0].metadata


@pytest.mark.parametrize(
    ("peer", "plain", "by_rfc"),
    [
        ("192.0.2.1:4711", "192.0.2.1", "for=192.0.2.1"),
        ("[2001:db8::1]:4711", "2001:db8::1", 'for="[2001:db8::1]"'),
        ("[::ffff:192.0.2.1]:4711", "192.0.2.1", "for=192.0.2.1"),
        ("[fe80::1%eth0]:4711", "fe80::1", 'for="[fe80::1]"'),
        ("unix:", "unknown", "for=unknown"),
        ("whatever", "unknown", "for=unknown"),
    ],
)
def test_upstreams_are_told_the_address_that_the_call_came_from(peer: str, plain: str, by_rfc: str) -> None:
    assert told(FOR, peer).get_all(FOR) == [plain]
    assert told(FORWARDED, peer).get_all(FORWARDED) == [by_rfc]


@pytest.mark.parametrize("field", [FOR, FORWARDED])
def test_a_peer_that_is_not_trusted_is_believed_in_neither_field(field: ForwardedField) -> None:
    lies = (b"x-forwarded-for", b"1.1.1.1"), (b"forwarded", b"for=1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2")
    metadata = told(field, "192.0.2.1:1", *lies, trusted=("10.0.0.0/8", "unix"))
    assert "1.1.1.1" not in str(list(metadata))
    assert "2.2.2.2" not in str(list(metadata))
    assert "192.0.2.1" in str(metadata[field])
    # Nor in the trailers of its request.
    assert metadata.decided == {b"forwarded", b"x-forwarded-for"}


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.3:4", ("10.0.0.0/8",)),
        ("10.1.2.3:4", ("2001:db8::/32", "10.1.2.3")),
        ("[::ffff:10.1.2.3]:4", ("10.0.0.0/8",)),
        ("[2001:db8::1]:4", ("2001:db8::/32",)),
        ("unix:", ("unix",)),
    ],
)
def test_what_a_trusted_proxy_has_sent_is_kept_and_appended_to(peer: str, trusted: tuple[str, ...]) -> None:
    came = (
        (b"x-forwarded-for", b"1.1.1.1, 2.2.2.2"),
        (b"x-a", b"a"),
        (b"x-forwarded-for", b""),
        (
            b"x-forwarded-for",
            b" 3.3.3.3",
        ),
    )
    [value] = told(FOR, peer, *came, trusted=trusted).get_all(FOR)
    assert str(value).startswith("1.1.1.1, 2.2.2.2, 3.3.3.3, ")
    [value] = told(FORWARDED, peer, (b"forwarded", b'for="[::1]:1";by=a'), trusted=trusted).get_all(FORWARDED)
    assert str(value).startswith('for="[::1]:1";by=a, for=')


def test_addresses_are_compared_within_their_family() -> None:
    assert told(FOR, "[::1]:1", (b"x-forwarded-for", b"1.1.1.1"), trusted=("0.0.0.0/0",))[FOR] == "::1"
    assert (
        told(FOR, "unix:", (b"x-forwarded-for", b"1.1.1.1"), trusted=("0.0.0.0/0", "::/0"))[FOR] == "unknown"
    )


@pytest.mark.parametrize("open_quote", ['for="1.1.1.1', 'for="a\\"', 'for=\\"', 'for="a" b="'])
def test_what_would_swallow_the_rest_is_dropped(open_quote: str) -> None:
    came = (b"forwarded", b"for=1.1.1.1"), (b"forwarded", open_quote.encode())
    assert told(FORWARDED, "10.1.2.3:4", *came, trusted=("10.0.0.0/8",))[FORWARDED] == "for=10.1.2.3"


def test_bytes_that_are_no_text_cost_no_call_and_no_value() -> None:
    came = (b"x-forwarded-for", b"\xff\t, 2.2.2.2")
    assert told(FOR, "10.1.2.3:4", came, trusted=("10.0.0.0/8",))[FOR] == "??, 2.2.2.2, 10.1.2.3"


@given(st.text(alphabet='"\\,;=a \t\xff', max_size=30))
def test_whatever_comes_the_last_element_is_ours(text: str) -> None:
    came = (b"forwarded", text.encode("latin-1"))
    value = str(told(FORWARDED, "10.1.2.3:4", came, trusted=("10.0.0.0/8",))[FORWARDED])
    inside = escaped = False
    start = 0
    for place, character in enumerate(value):
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
        elif character == "," and not inside:
            start = place + 1
    assert value[start:].strip() == "for=10.1.2.3"


@pytest.mark.parametrize("text", ['"' * 60_000, '\\"' * 30_000, '"\\' * 30_000, '"a",' * 15_000 + '"'])
def test_a_long_value_costs_no_more_than_its_length(text: str) -> None:
    began = time.process_time()
    told(FORWARDED, "10.1.2.3:4", (b"forwarded", text.encode()), trusted=("10.0.0.0/8",))
    assert time.process_time() - began < 2


@pytest.mark.parametrize("network", ["10.0.0.0/33", "lan", "", "10.0.0.1:80", "*"])
def test_a_network_that_is_none_is_refused(network: str) -> None:
    with pytest.raises(ConfigError, match=r"is no network; write 10\.0\.0\.0/8"):
        told(FOR, "unix:", trusted=(network,))


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'x-real-ip' must be 'x-forwarded-for' or 'forwarded'"):
        told("x-real-ip", "unix:")  # type: ignore[arg-type]
