"""Contexts from files: what is wrong with a file is said, with its name."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.tls import tls_problem
from rawgrpc_proxy.net.tls_files import ContextOfFiles, listener_context, upstream_context

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


def test_files_that_change_are_read_again_and_what_cannot_be_used_changes_nothing(
    pem: Path, tmp_path: Path
) -> None:
    now = 0.0
    told: list[str] = []

    def copy(name: str, to: str) -> None:
        (tmp_path / "new").write_bytes((pem / name).read_bytes())
        (tmp_path / "new").rename(tmp_path / to)

    # As Kubernetes has it: what is mounted is a link into a folder that is a link itself.
    for folder, name in (("first", "me"), ("second", "other"), ("third", "me")):
        (tmp_path / folder).mkdir()
        copy(f"{name}.pem", f"{folder}/tls.crt")
        copy(f"{name}.key", f"{folder}/tls.key")
    (tmp_path / "data").symlink_to("first")
    certificate, key = str(tmp_path / "data" / "tls.crt"), str(tmp_path / "data" / "tls.key")
    context = ContextOfFiles(
        lambda: listener_context(certificate, key), [certificate, key], told.append, lambda: now
    )
    first = context()
    now = 0.5
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "link").rename(tmp_path / "data")
    assert context() is first  # it looks once a second
    now = 1.5
    second = context()
    assert second is not first
    assert [text.partition(":")[0] for text in told] == ["read again"]
    assert context() is second

    copy("me.pem", "second/tls.crt")
    now = 3.0
    assert context() is second
    assert "what was read before stays in use" in told[-1]
    assert "is not this certificate's" in told[-1]
    now = 4.5
    assert context() is second
    assert len(told) == 2
    copy("me.key", "second/tls.key")
    now = 6.0
    assert context() is not second
    (tmp_path / "second" / "tls.key").unlink()
    now = 7.5
    assert context() is not second
    assert "No such file" in told[-1]


def test_callers_need_a_certificate_or_may_have_one(pem: Path) -> None:
    me, key, ca = (str(pem / name) for name in ("me.pem", "me.key", "ca.pem"))
    assert listener_context(me, key).verify_mode is ssl.CERT_NONE
    assert listener_context(me, key, client_ca=ca).verify_mode is ssl.CERT_REQUIRED
    assert (
        listener_context(me, key, client_ca=ca, client_certificate="request").verify_mode is ssl.CERT_OPTIONAL
    )


def cipher_of(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """What the two agree on. Raises `ssl.SSLError`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="me.test"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = set[int]()
    while len(done) < len(ends):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
    agreed = ends[0].cipher()
    assert agreed is not None
    return agreed[0]


def a_caller(pem: Path, ciphers: str) -> ssl.SSLContext:
    """With TLS 1.2 and these, the best first."""
    context = ssl.create_default_context(cafile=str(pem / "ca.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    return context


def test_the_caller_chooses_among_the_ciphers_that_are_good_for_http2(pem: Path) -> None:
    server = listener_context(str(pem / "me.pem"), str(pem / "me.key"))
    suites = [
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
    ]
    for order in (suites, suites[::-1]):
        # The RSA twins are for certificates of the other kind.
        offered = ":".join(name for suite in order for name in (suite, suite.replace("ECDSA", "RSA")))
        assert cipher_of(server, a_caller(pem, offered)).replace("RSA", "ECDSA") == order[0]


def test_ciphers_that_http2_advises_against_are_not_agreed_on_by_either_side(pem: Path) -> None:
    me, key, ca = (str(pem / name) for name in ("me.pem", "me.key", "ca.pem"))
    of_old_times = "ECDHE+AES:!AESGCM:!AESCCM"  # CBC
    with pytest.raises(ssl.SSLError) as caught:
        cipher_of(listener_context(me, key), a_caller(pem, of_old_times))
    assert "no cipher suite that HTTP/2 allows" in tls_problem(caught.value)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(me, key)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    assert cipher_of(server, upstream_context(ca=ca))
    server.set_ciphers(of_old_times)
    with pytest.raises(ssl.SSLError):
        cipher_of(server, upstream_context(ca=ca))
