"""`tell_identity`: upstreams are told who the caller is, by its certificate, in a header that no caller can write.

    x-client-identity: URI=spiffe://shop.example/ns/prod/sa/cart
    x-client-identity: DNS=cart.shop.internal
    x-client-identity: Subject=CN%3Dcart%2CO%3DShop

What it does not do: refuse anybody. It is off unless asked for, since it changes the metadata of every call. The
invariant: what an upstream finds under this key, in the headers or behind them, is the proxy's word, or not there.
"""

from collections.abc import Awaitable
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.custom_metadata import HOP_BY_HOP, header_of
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.peer_identity import PeerIdentity
from rawgrpc_proxy.proxy.director import Direction, StreamDirector

IDENTITY_HEADER: Final = "x-client-identity"
_TAKEN = frozenset(
    (b"content-length", b"content-type", b"forwarded", b"host", b"user-agent", b"via", b"x-forwarded-for")
)
_PLAIN = "/:@"
"""What is not escaped beside RFC 3986's unreserved characters: a SPIFFE ID stays as it is."""


def tell_identity(director: StreamDirector, header: str = IDENTITY_HEADER) -> StreamDirector:
    """`director`, for calls that name their caller in `header`, and in none that the caller has sent.

    The value is one pair of a kind and a name, in the manner of Envoy's x-forwarded-client-cert: `URI=` with the SPIFFE
    ID, or else the first URI that is not one; else `DNS=` with the first DNS name; else `Subject=` with the
    distinguished name (RFC 4514). Names are percent-encoded (RFC 3986 §2.1): decoded once they are what the certificate
    says. Callers without a certificate that was verified, or with one that has none of these, have no such header.
    Raises `ConfigError` for a header that means something else.
    """
    check_identity_header(header)
    names = frozenset([header.lower().encode()])

    @lru_cache(maxsize=1024)
    def fields_for(identity: PeerIdentity) -> Headers:
        name = _name_of(identity)
        return [] if name is None else [header_of(header, name)]

    def direct(context: CallContext, method: str) -> Direction | Awaitable[Direction]:
        identity = context.peer_identity
        metadata = context.metadata.with_fields(names, () if identity is None else fields_for(identity))
        return director(context.with_metadata(metadata), method)

    return direct


def check_identity_header(header: str) -> None:
    """Raise `ConfigError` for what cannot be the header that names callers."""
    if header.lower().endswith("-bin"):
        raise ConfigError(f"{header!r} would hold base64; the header that names callers holds text")
    try:
        name, _ = header_of(header, "")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if name in _TAKEN or name in HOP_BY_HOP or name.startswith(b"grpc-"):
        raise ConfigError(f"{header!r} means something else already; write a name like {IDENTITY_HEADER!r}")


def _name_of(identity: PeerIdentity) -> str | None:
    uri = identity.spiffe_id or identity.plain_uri
    if uri is not None:
        return f"URI={quote(uri, _PLAIN)}"
    if identity.dns_names:
        return f"DNS={quote(identity.dns_names[0], _PLAIN)}"
    return f"Subject={quote(identity.subject, _PLAIN)}" if identity.subject else None
