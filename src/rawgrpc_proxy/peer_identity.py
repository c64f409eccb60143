"""Who a peer is, by its certificate: `PeerIdentity`, read from what `ssl.SSLSocket.getpeercert` gives.

What it does not do: check a certificate. OpenSSL has, or `getpeercert` gives nothing of it, and there is no identity.
The invariant: whatever an authority has signed, reading it fails no connection.

Owns: the text of a subject (RFC 4514), and what makes a SPIFFE ID (SPIFFE-ID §2, X509-SVID §2).
"""

import re
from collections.abc import Mapping
from typing import Any

import attrs

_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""RFC 4514 §3, by OpenSSL's names. All others keep OpenSSL's."""
_TO_ESCAPE = re.compile(r'[\\"+,;<>\x00-\x1f\x7f]|\A[ #]| \Z')
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+\Z")
_MAX_SPIFFE_ID_CHARACTERS = 2048
_SPIFFE = "spiffe:"


@attrs.frozen(kw_only=True)
class PeerIdentity:
    """What a certificate that was verified calls its owner.

    `subject` is the distinguished name as RFC 4514 writes it, the narrowest part first (`CN=cart,O=Shop`), or empty.
    `dns_names` and `uris` are the subject alternative names of these kinds, in their order. `spiffe_id` is the URI if
    it is the only one, and a SPIFFE ID of a workload: one among several is nobody's.
    """

    subject: str
    dns_names: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    spiffe_id: str | None = None

    @property
    def plain_uri(self) -> str | None:
        """The first URI that does not pass itself off as a SPIFFE ID."""
        return next((uri for uri in self.uris if uri[: len(_SPIFFE)].lower() != _SPIFFE), None)


class PeerCertificate(dict[str, Any]):
    """A certificate as `getpeercert` gives it, of a connection whose calls share what is read from it."""

    __slots__ = ("_identity",)

    def __init__(self, certificate: Mapping[str, Any]) -> None:
        super().__init__(certificate)
        self._identity: PeerIdentity | None = None

    @property
    def identity(self) -> PeerIdentity | None:
        """Whose it is. Read when it is asked for first."""
        if self._identity is None:
            self._identity = _identity_in(self)
        return self._identity


def identity_of(certificate: Mapping[str, Any] | None) -> PeerIdentity | None:
    """Whose certificate it is; None where there is none, or none that was verified (which is empty)."""
    if isinstance(certificate, PeerCertificate):
        return certificate.identity
    return _identity_in(certificate) if certificate else None


def _identity_in(certificate: Mapping[str, Any]) -> PeerIdentity:
    names = certificate.get("subjectAltName", ())
    uris = tuple(value for kind, value in names if kind == "URI")
    return PeerIdentity(
        subject=",".join(
            "+".join(
                f"{_SHORT_NAMES.get(kind, kind)}={_TO_ESCAPE.sub(_escaped, value)}" for kind, value in part
            )
            for part in reversed(certificate.get("subject", ()))
        ),
        dns_names=tuple(value for kind, value in names if kind == "DNS"),
        uris=uris,
        spiffe_id=uris[0] if len(uris) == 1 and _is_spiffe_id(uris[0]) else None,
    )


def _is_spiffe_id(uri: str) -> bool:
    return len(uri) <= _MAX_SPIFFE_ID_CHARACTERS and _SPIFFE_ID.match(uri) is not None


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character >= " " and character != "\x7f" else f"\\{ord(character):02X}"
