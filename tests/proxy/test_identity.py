"""Upstreams are told who the caller is, and callers cannot say it themselves."""

import ssl
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallContext,
    ConfigError,
    Metadata,
    PeerIdentity,
    RpcError,
    Status,
    Target,
    tell_identity,
    transparent_handler,
)
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from rawgrpc_proxy.proxy.director import Direction
from tests.certificates import OF_A_WORKLOAD, issued_by
from tests.proxy.house import House, a_proxy, on_every_engine
from tests.proxy.raw_peers import Headers, RawPeer, connect, message, request_fields, start_client

trustme = pytest.importorskip("trustme")

HEADER = "x-client-identity"
CART = "spiffe://shop.example/ns/prod/sa/cart"


def told(*names: tuple[str, str], common_name: str = "", **more: Any) -> list[Any]:
    """What the director sees under the header, of a caller with this certificate."""
    subject = ((("commonName", common_name),),) if common_name else ()
    return seen_by({"subject": subject, "subjectAltName": names}, **more).get_all(HEADER)


def seen_by(certificate: Any, header: str = HEADER, came: tuple[tuple[bytes, bytes], ...] = ()) -> Metadata:
    seen: list[CallContext] = []

    def director(context: CallContext, _method: str) -> Direction:
        seen.append(context)
        raise RpcError(Status.ABORTED)

    metadata = Metadata([(b":path", b"/p.S/M"), *came])
    context = CallContext(method="/p.S/M", metadata=metadata, peer="unix:", tls_peer=certificate)
    with pytest.raises(RpcError):
        tell_identity(director, header)(context, "/p.S/M")
    return seen[0].metadata


def test_the_first_that_there_is_of_spiffe_id_uri_dns_name_and_subject_is_told() -> None:
    dns, uri = ("DNS", "cart.internal"), ("URI", "https://shop.example/cart")
    assert told(dns, ("URI", CART), common_name="cart") == [f"URI={CART}"]
    assert told(dns, uri, ("URI", "urn:b"), common_name="cart") == ["URI=https://shop.example/cart"]
    assert told(("IP Address", "::1"), dns, ("DNS", "b"), common_name="cart") == ["DNS=cart.internal"]
    assert told(common_name="a,b;c") == ["Subject=CN%3Da%5C%2Cb%5C%3Bc"]
    assert told() == []


def test_a_certificate_with_several_uris_is_told_by_none_that_would_pass_for_a_spiffe_id() -> None:
    assert told(("URI", "spiffe://a/admin"), ("URI", CART), ("DNS", "a.test")) == ["DNS=a.test"]
    assert told(("URI", CART), ("URI", "urn:x"), ("DNS", "a.test")) == ["URI=urn:x"]


@given(st.sampled_from(["URI", "DNS"]), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_name_is_one_value_of_plain_text_and_decoded_what_the_certificate_says(
    kind: str, name: str
) -> None:
    if name.lower().startswith("spiffe:"):
        return
    [value] = told((kind, name))
    assert value.isascii()
    assert value.isprintable()
    assert not set(' ,;"') & set(value)
    assert (value.partition("=")[0], unquote(value.partition("=")[2])) == (kind, name)


@pytest.mark.parametrize("certificate", [None, {}, {"subject": ()}])
def test_what_a_caller_has_sent_goes_nowhere_with_and_without_a_certificate(certificate: Any) -> None:
    came = (b"x-client-identity", b"URI=spiffe://a/admin"), (b"x-a", b"a"), (b"x-client-identity", b"DNS=b")
    metadata = seen_by(certificate, came=came)
    assert list(metadata) == [(":path", "/p.S/M"), ("x-a", "a")]
    assert metadata.decided == {b"x-client-identity"}


def test_the_header_may_have_another_name() -> None:
    certificate = {"subject": ((("commonName", "cart"),),)}
    assert seen_by(certificate, "X-Caller", ((b"x-caller", b"DNS=a"),)).get_all("x-caller") == [
        "Subject=CN%3Dcart"
    ]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("x-caller-bin", "would hold base64"),
        (":path", ":path exists once"),
        ("x caller", "not a metadata key"),
        ("te", "concerns one connection"),
        (
            "Content-Type",
            "'Content-Type' means something else already; write a name like 'x-client-identity'",
        ),
        ("grpc-timeout", "means something else"),
        ("x-forwarded-for", "means something else"),
    ],
)
def test_a_header_that_means_something_else_is_refused(header: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        seen_by(None, header)


# --- over TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the proxy's pair, those of callers, and their authority."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "proxy"))
    (folder / "cart").write_bytes(issued_by(authority, OF_A_WORKLOAD, dns=["cart.internal"], uris=[CART]))
    (folder / "named").write_bytes(
        issued_by(authority, [("2.5.4.6", "DE"), ("2.5.4.10", "Käse, Inc"), ("2.5.4.3", "a+b")])
    )
    return folder


async def client_with(pem: Path, name: str | None, address: str, nursery: trio.Nursery) -> RawPeer:
    own = None if name is None else str(pem / name)
    context: ssl.SSLContext = upstream_context(ca=str(pem / "ca"), certificate=own, key=own)
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    return await start_client(tls, nursery)


@on_every_engine
@trio_test
async def test_over_tls_each_caller_is_told_by_its_own_certificate_and_by_nothing_it_says(
    engine: Engine, pem: Path
) -> None:
    seen: list[PeerIdentity | None] = []
    houses: list[House] = []

    def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
        seen.append(context.peer_identity)
        return context, houses[0].pool.target(houses[0].backend.address)

    lie = (HEADER.encode(), b"URI=spiffe://shop.example/admin")
    async with a_proxy(engine, director=director) as house:
        houses.append(house)
        context = listener_context(
            str(pem / "proxy"), str(pem / "proxy"), client_ca=str(pem / "ca"), client_certificate="request"
        )
        handler = transparent_handler(tell_identity(director))
        serve = partial(house.server.serve, "127.0.0.1:0", unknown_service_handler=handler)
        secure = await house.nursery.start(partial(serve, ssl_context=context))
        plain = await house.nursery.start(serve)
        expected: list[tuple[RawPeer, list[bytes]]] = [
            (await client_with(pem, "cart", secure, house.nursery), [f"URI={CART}".encode()]),
            (
                await client_with(pem, "named", secure, house.nursery),
                [b"Subject=CN%3Da%5C%2Bb%2CO%3DK%C3%A4se%5C%2C%20Inc%2CC%3DDE"],
            ),
            (await client_with(pem, None, secure, house.nursery), []),
            (await connect(plain, house.nursery), []),
        ]
        house.clients += [client for client, _ in expected]
        for client, values in [*expected, *expected]:
            call = await client.open(request_fields("/a.B/C", lie))
            served = await house.backend.request()
            await call.data(message(b"x"))
            await call.headers([lie, (b"x-end", b"1")], end=True)
            assert served.request.get_all(HEADER.encode()) == values
            assert await served.read(6) == message(b"x")
            assert await served.next() == Headers([(b"x-end", b"1")], end_stream=True)
            await served.respond()
            assert (await call.answer()).status == Status.OK
        # The server's own listener has the server's handler, and lets callers say what they like.
        client = await house.client()
        call = await client.request("/a.B/C", lie)
        served = await house.backend.request()
        assert served.request.get_all(HEADER.encode()) == [lie[1]]
        await served.request_body()
        await served.respond()
        await call.answer()
    assert seen[0] == PeerIdentity(
        subject="CN=cart" if OF_A_WORKLOAD else "", dns_names=("cart.internal",), uris=(CART,), spiffe_id=CART
    )
    assert seen[4] is seen[0]  # once for a connection
    assert seen[2:4] == [None, None]
