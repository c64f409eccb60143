"""Whose a certificate is, from what `getpeercert` gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.peer_identity import PeerCertificate, PeerIdentity, identity_of


def of(*names: tuple[str, str], subject: object = ()) -> PeerIdentity:
    identity = identity_of({"subject": subject, "subjectAltName": names})
    assert identity is not None
    return identity


def test_names_are_told_by_their_kinds_in_their_order() -> None:
    identity = of(
        ("DNS", "b.test"),
        ("URI", "https://a.test/"),
        ("IP Address", "127.0.0.1"),
        ("DNS", "a.test"),
        ("URI", "urn:x"),
        ("DirName", ((("commonName", "n"),),)),  # type: ignore[arg-type]  # a name of names
        subject=((("countryName", "DE"),), (("organizationName", "Shop"),), (("commonName", "cart"),)),
    )
    assert identity == PeerIdentity(
        subject="CN=cart,O=Shop,C=DE", dns_names=("b.test", "a.test"), uris=("https://a.test/", "urn:x")
    )


@pytest.mark.parametrize("nothing", [None, {}])
def test_without_a_certificate_that_was_verified_there_is_no_identity(
    nothing: dict[str, object] | None,
) -> None:
    assert identity_of(nothing) is None


def test_what_is_read_from_a_certificate_is_read_once() -> None:
    certificate = PeerCertificate({"subject": ((("commonName", "cart"),),)})
    assert identity_of(certificate) is identity_of(certificate)
    assert certificate == {"subject": ((("commonName", "cart"),),)}


@pytest.mark.parametrize(
    "uri", ["spiffe://shop.example/cart", "spiffe://a_b-c.1/ns/prod/sa/Cart_1", "spiffe://a/..b/.c."]
)
def test_the_only_uri_may_be_a_spiffe_id(uri: str) -> None:
    assert of(("DNS", "a.test"), ("URI", uri)).spiffe_id == uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://shop.example/cart",
        "SPIFFE://shop.example/cart",
        "spiffe://Shop.example/cart",
        "spiffe://shop.example",  # an authority's, not a workload's
        "spiffe://shop.example/",
        "spiffe:///cart",
        "spiffe://shop.example//cart",
        "spiffe://shop.example/../cart",
        "spiffe://shop.example/./cart",
        "spiffe://shop.example/cart/..",
        "spiffe://shop.example/cart\n",
        "spiffe://shop.example/c%61rt",
        "spiffe://shop.example:1/cart",
        "spiffe://u@shop.example/cart",
        "spiffe://shop.example/cart?a",
        f"spiffe://shop.example/{'a' * 2048}",
    ],
)
def test_what_is_no_spiffe_id_of_a_workload_is_none(uri: str) -> None:
    assert of(("URI", uri)).spiffe_id is None


def test_of_several_uris_none_is_the_spiffe_id_and_none_passes_itself_off_as_one() -> None:
    identity = of(("URI", "spiffe://a/admin"), ("URI", "Spiffe://a/b"), ("URI", "https://a.test/"))
    assert identity.spiffe_id is None
    assert identity.plain_uri == "https://a.test/"
    assert of(("URI", "spiffe://a/admin"), ("URI", "spiffe://a/cart")).plain_uri is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cart,O=Other", r"CN=cart\,O=Other"),
        ('a"b+c;d<e>f\\', r"CN=a\"b\+c\;d\<e\>f" + "\\\\"),
        (" a ", r"CN=\ a\ "),
        (" ", r"CN=\ "),
        ("#1", r"CN=\#1"),
        ("a#1 b", "CN=a#1 b"),
        ("a\r\nb\0\x7f", r"CN=a\0D\0Ab\00\7F"),
        ("Käse", "CN=Käse"),
    ],
)
def test_a_value_cannot_pass_for_a_part_of_its_own(value: str, text: str) -> None:
    assert of(subject=((("commonName", value),),)).subject == text


def test_parts_of_several_values_and_kinds_without_short_names() -> None:
    subject = ((("organizationName", "a"), ("userId", "b")), (("emailAddress", "c@d"), ("1.2.3", "e")))
    assert of(subject=subject).subject == "emailAddress=c@d+1.2.3=e,O=a+UID=b"


texts = st.text(max_size=20)
parts = st.lists(
    st.tuples(st.sampled_from(["commonName", "organizationName"]), texts), min_size=1, max_size=3
)


@given(st.lists(parts, max_size=3), st.lists(st.tuples(st.sampled_from(["DNS", "URI"]), texts), max_size=3))
def test_no_certificate_breaks_its_reader_and_no_two_subjects_read_the_same(
    subject: list[list[tuple[str, str]]], names: list[tuple[str, str]]
) -> None:
    identity = of(*names, subject=subject)
    assert not any(character < " " for character in identity.subject)
    assert _parsed(identity.subject) == [
        [({"commonName": "CN", "organizationName": "O"}[kind], value) for kind, value in part]
        for part in reversed(subject)
    ]


def _parsed(text: str) -> list[list[tuple[str, str]]]:
    """A distinguished name, by a reader of its own."""
    parsed: list[list[tuple[str, str]]] = []
    separator, rest = ",", text
    while rest:
        kind, _, rest = rest.partition("=")
        value = ""
        while rest and rest[0] not in ",+":
            if rest[0] != "\\":
                value, rest = value + rest[0], rest[1:]
            elif rest[1] in ',+"\\;<>= #':
                value, rest = value + rest[1], rest[2:]
            else:
                value, rest = value + chr(int(rest[1:3], 16)), rest[3:]
        if separator == ",":
            parsed.append([])
        parsed[-1].append((kind, value))
        separator, rest = rest[:1], rest[1:]
    return parsed
