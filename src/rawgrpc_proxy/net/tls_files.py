"""TLS contexts from PEM files, for listeners and for upstreams, as gRPC wants them: HTTP/2 by ALPN, TLS 1.2 or later.

Files may change while they are in use, as certificates that are short-lived do: `ContextOfFiles` looks.

What it does not do: shake hands (`server/server.py`, `dial.py`). The invariant: whatever is wrong with a file is said
when its context is made, with the file's name, and never asks a terminal for a password.
"""

import os
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Literal, NoReturn

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.tls import UpstreamContext

_ALPN = ["h2"]
_CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aDSS"
"""Of TLS 1.2, those that RFC 9113 §9.2.2 does not advise against: ephemeral keys and AEAD. TLS 1.3 has no others."""
_LOOK_EVERY_S = 1.0

ClientCertificate = Literal["require", "request"]
"""Whether a caller must have a certificate, or may."""


def listener_context(
    certificate: str,
    key: str,
    *,
    client_ca: str | None = None,
    client_certificate: ClientCertificate = "require",
) -> ssl.SSLContext:
    """A context for callers. With `client_ca` a certificate of it is required of each, or only requested.

    Raises `ConfigError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9113 §9.2.1: none once HTTP/2 is spoken, and each costs a handshake
    context.options |= ssl.OP_NO_RENEGOTIATION
    # All that are left are good ones, and the caller knows which is fast for it: it may have no AES in hardware.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(_ALPN)
    _load_pair(context, certificate, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_certificate == "require" else ssl.CERT_OPTIONAL
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
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(_ALPN)
    if ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, ca)
    if certificate is not None and key is not None:
        _load_pair(context, certificate, key)
    return context


class ContextOfFiles:
    """Answers the context for each handshake, made anew when one of its files has changed.

    Open connections keep theirs. It looks at the files' time stamps, behind symbolic links, when it is asked, and once
    a second at the most. What cannot be used (a new certificate whose key is still the old one) changes nothing. `tell`
    hears of either.
    """

    def __init__(
        self,
        make: Callable[[], ssl.SSLContext],
        paths: Iterable[str],
        tell: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raise what `make` raises."""
        self._make, self._paths, self._tell, self._now = make, tuple(paths), tell, now
        self.failures = 0
        """How often files that had changed could not be used."""
        self._stamps = self._look()
        self._context = make()
        self._look_at = now() + _LOOK_EVERY_S

    def __call__(self) -> ssl.SSLContext:
        if self._now() >= self._look_at:
            self._look_at = self._now() + _LOOK_EVERY_S
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._context = self._make()
                except ConfigError as error:
                    self.failures += 1
                    self._tell(f"what was read before stays in use: {error}")
                else:
                    self._tell(f"read again: {', '.join(self._paths)}")
        return self._context

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116  # a path as the user wrote it
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


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
    except OSError as error:
        raise ConfigError(f"{certificate} and {key}: {error.strerror}") from None


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{path}: no certificates in PEM form ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _check_readable(path: str) -> None:
    """The errors of `ssl` do not say which file."""
    try:
        with open(path, "rb"):  # noqa: PTH123  # a path as the user wrote it
            pass
    except OSError as error:
        raise ConfigError(f"{path}: {os.strerror(error.errno or 0)}") from None
