"""Secrets in header lists: which fields hold them, and what is shown in their place.

What it does not do: look into messages. The invariant: of a field that is a secret nothing is shown but its name.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import attrs

from rawgrpc_proxy.http2.headers import RawHeader

REDACTED = "[redacted]"
SECRETS = frozenset(
    {
        "authorization", "proxy-authorization", "cookie", "set-cookie", "x-forwarded-client-cert",
        "x-amz-security-token", "x-goog-iam-authorization-token",
    }
)  # fmt: skip
"""Names of fields that are secrets by default, beside those with one of `SECRET_WORDS` in them."""
SECRET_WORDS = ("token", "secret", "password", "passwd", "api-key", "apikey", "credential", "session", "jwt")


def _lower(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


def _looks_secret(name: str) -> bool:
    return name in SECRETS or any(word in name for word in SECRET_WORDS)


_is_secret = lru_cache(1024)(_looks_secret)
_USUAL_LENGTH = 64
"""Of names that are remembered: peers choose them."""


@attrs.frozen
class Redactor:
    """Knows the secrets by name; `more` are names of fields beside the usual ones."""

    more: frozenset[str] = attrs.field(default=(), converter=_lower)
    show_all: bool = False
    """Nothing is a secret."""

    def is_secret(self, name: str) -> bool:
        """Whether the values of this field are not to be shown."""
        if self.show_all:
            return False
        name = name.lower()
        if name in self.more:
            return True
        return _is_secret(name) if len(name) <= _USUAL_LENGTH else _looks_secret(name)

    def shown(self, headers: Iterable[RawHeader]) -> Sequence[tuple[str, str]]:
        """The list as text, its secrets left out."""
        pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        return [(name, REDACTED if self.is_secret(name) else value) for name, value in pairs]
