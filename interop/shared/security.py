"""Certificates for a run, and the options with which a client, a server and the proxy between them use them.

What it does not do: certificates that are wrong on purpose (`tls/authorities.py`).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from interop.shared.processes import Trouble


@dataclass(frozen=True)
class Security:
    """How all programs of a row speak: the options of each, beside those that it has anyway."""

    name: str
    """As rows are called after it; nothing for plaintext."""
    client: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    proxy: tuple[str, ...] = ()


PLAINTEXT = Security("")


def made_by_the_proxy(folder: Path) -> tuple[Security, Security]:
    """TLS and mutual TLS on both sides, with what `rawgrpc-proxy certs` makes. Raises `Trouble`."""
    made = subprocess.run(
        [sys.executable, "-m", "rawgrpc_proxy", "certs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Trouble(f"no certificates: {made.stderr.strip()}")
    ca, server, server_key, client, client_key = (
        str(folder / name) for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    )
    tls = Security(
        "TLS",
        ("--tls-ca", ca),
        ("--tls-certificate", server, "--tls-key", server_key),
        ("--tls-cert", server, "--tls-key", server_key, "--upstream-tls", "--upstream-ca", ca),
    )
    mutual = Security(
        "mTLS",
        (*tls.client, "--tls-certificate", client, "--tls-key", client_key),
        (*tls.server, "--tls-ca", ca),
        (*tls.proxy, "--tls-client-ca", ca, "--upstream-cert", client, "--upstream-key", client_key),
    )
    return tls, mutual
