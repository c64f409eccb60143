"""Contexts from files: what is wrong with a file is said, with its name."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context

trustme = pytest.importorskip("trustme")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, me.pem, me.key, other.key, encrypted.key and nonsense.pem."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("me", "other"):
        issued = authority.issue_cert(f"{name}.test")
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        with (folder / f"{name}.pem").open("wb") as file:
            for certificate in issued.cert_chain_pems:
                file.write(certificate.bytes())
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_private_key((folder / "me.key").read_bytes(), None)
    (folder / "encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (folder / "nonsense.pem").write_text("no certificate")
    return folder


@contextmanager
def refused(says: str) -> Iterator[None]:
    with pytest.raises(ConfigError, match=says):
        yield


def test_a_file_that_is_missing_or_wrong_is_named(pem: Path) -> None:
    me, key, ca = (str(pem / name) for name in ("me.pem", "me.key", "ca.pem"))
    with refused(r"/no/such\.pem: No such file or directory"):
        listener_context("/no/such.pem", key)
    with refused(r"/no/such\.key: No such file"):
        listener_context(me, "/no/such.key")
    with refused(r"me\.pem: the key in .*other\.key is not this certificate's"):
        listener_context(me, str(pem / "other.key"))
    with refused(r"nonsense\.pem and .*me\.key: no certificate and key in PEM form"):
        listener_context(str(pem / "nonsense.pem"), key)
    with refused(r"encrypted\.key: the key is encrypted; write it without a password"):
        listener_context(me, str(pem / "encrypted.key"))
    with refused(r"nonsense\.pem: no certificates in PEM form"):
        listener_context(me, key, client_ca=str(pem / "nonsense.pem"))
    with refused(r"/no/ca: No such file"):
        upstream_context(ca="/no/ca")
    with refused(r"/no/me: No such file"):
        upstream_context(ca=ca, certificate="/no/me", key=key)


def test_callers_need_a_certificate_or_may_have_one(pem: Path) -> None:
    me, key, ca = (str(pem / name) for name in ("me.pem", "me.key", "ca.pem"))
    assert listener_context(me, key).verify_mode is ssl.CERT_NONE
    assert listener_context(me, key, client_ca=ca).verify_mode is ssl.CERT_REQUIRED
    assert listener_context(me, key, client_ca=ca, client_must=False).verify_mode is ssl.CERT_OPTIONAL
