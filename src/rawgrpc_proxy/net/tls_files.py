"""TLS contexts from PEM files, for listeners and for upstreams, as gRPC wants them: HTTP/2 by ALPN, TLS 1.2 or later.

What it does not do: shake hands (`server/server.py`, `dial.py`). The invariant: whatever is wrong with a file is said
when its context is made, with the file's name, and never asks a terminal for a password.
"""

import os
import ssl
from typing import NoReturn

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.tls import UpstreamContext

_ALPN = ["h2"]


def listener_context(
    certificate: str, key: str, *, client_ca: str | None = None, client_must: bool = True
) -> ssl.SSLContext:
    """A context for callers. With `client_ca` a caller `client_must` have a certificate of it, or may.

    Raises `ConfigError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    _load_pair(context, certificate, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_must else ssl.CERT_OPTIONAL
    return context


def upstream_context(
    *,
    ca: str | None = None,
    server_name: str | None = None,
    certificate: str | None = None,
    key: str | None = None,
) -> ssl.SSLContext:
    """A context for `Pool.get_conn` and `Pool.target`. Without `ca` the system's authorities are trusted.

    The certificate has to be for `server_name`, which is asked for by SNI; for the address's host if there is none.
    Raises `ConfigError`.
    """
    context = UpstreamContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    if ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, ca)
    if certificate is not None and key is not None:
        _load_pair(context, certificate, key)
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for path in (certificate, key):
        _check_readable(path)

    def no_password() -> NoReturn:
        raise ConfigError(f"{key}: the key is encrypted; write it without a password")

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{certificate}: the key in {key} is not this certificate's") from None
        raise ConfigError(
            f"{certificate} and {key}: no certificate and key in PEM form ({error.reason})"
        ) from None


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{path}: no certificates in PEM form ({error.reason})") from None


def _check_readable(path: str) -> None:
    """The errors of `ssl` do not say which file."""
    try:
        with open(path, "rb"):  # noqa: PTH123  # a path as the user wrote it
            pass
    except OSError as error:
        raise ConfigError(f"{path}: {os.strerror(error.errno or 0)}") from None
