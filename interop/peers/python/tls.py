"""What the Python peers are told of TLS: three files on the command line, and plaintext without them.

A client trusts `--tls-ca` and shows the pair, if it is given one. A server shows the pair, and wants of its clients a
certificate of `--tls-ca`, if it is given that.
"""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tls:
    """PEM files; a pair is there whole or not at all."""

    ca: Path | None
    certificate: Path | None
    key: Path | None

    def context(self, *, server: bool) -> ssl.SSLContext:
        """A context for the libraries that take Python's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self.ca is not None:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def bytes(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Authorities, key and certificate, in the order of the other libraries; None for what is not there."""
        authorities, key, certificate = (
            file.read_bytes() if file is not None else None for file in (self.ca, self.key, self.certificate)
        )
        return authorities, key, certificate


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """The options of clients and servers alike."""
    for name in ("ca", "certificate", "key"):
        parser.add_argument(f"--tls-{name}", type=Path, metavar="FILE", help="PEM")


def tls_of(given: argparse.Namespace) -> Tls | None:
    """What was given; None for plaintext."""
    tls = Tls(given.tls_ca, given.tls_certificate, given.tls_key)
    return None if tls == Tls(None, None, None) else tls


def server_tls() -> Tls | None:
    """The command line of a server, which has nothing else on it."""
    parser = argparse.ArgumentParser()
    add_tls_options(parser)
    return tls_of(parser.parse_args())
