"""Certificates that trustme does not make: with URIs among their names, and with subjects of any kind."""

import datetime as dt
import sys
from collections.abc import Sequence
from typing import Any

OF_A_WORKLOAD: Sequence[tuple[str, str]] = (
    [] if sys.implementation.name == "cpython" else [("2.5.4.3", "cart")]
)
"""SPIFFE's certificates need no subject. PyPy reads nothing of one that has none."""


def issued_by(
    authority: Any,
    subject: Sequence[tuple[str, str]],
    *,
    dns: Sequence[str] = (),
    uris: Sequence[str] = (),
    names_der: bytes = b"",
) -> bytes:
    """A pair in PEM: key, and certificate of the authority (trustme's) for this subject: `("2.5.4.3", "cart")`.

    `names_der` is the extension with the alternative names, as it is, for those that no library writes.
    """
    # Later than the module, so that tests which need trustme can leave themselves out first.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    issuers_key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(issuers_key, ec.EllipticCurvePrivateKey)
    now = dt.datetime.now(dt.UTC)
    names = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), text) for oid, text in subject])
        )
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # Python 3.13 insists on it (RFC 5280 §4.2.1.1).
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
    if names_der:
        oid = x509.ObjectIdentifier("2.5.29.17")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, names_der), critical=False)
    signed = builder.sign(issuers_key, hashes.SHA256())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
