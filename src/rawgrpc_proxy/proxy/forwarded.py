"""`tell_forwarded`: upstreams are told for whom a call is forwarded, in `x-forwarded-for` or `forwarded` (RFC 7239).

Each proxy appends the address of the peer that it has the call from; so what an upstream reads from the right is as
true as the proxies are that it knows, and all before is hearsay. What is there already is kept only if it comes from a
proxy that is trusted. It is off unless asked for, since it changes the metadata of every call, and shows who calls.

What it does not do: choose whose address the call's peer is, or write `x-real-ip` and its like. The invariant: what a
peer has sent that is not trusted reaches no upstream.

Owns: RFC 7239 §4, §6.
"""

import re
from collections.abc import Awaitable, Iterable
from functools import lru_cache
from typing import Final, Literal

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.net.networks import Ip, Networks, ip_of
from rawgrpc_proxy.proxy.director import Direction, StreamDirector

ForwardedField = Literal["x-forwarded-for", "forwarded"]
_FIELDS: Final = ("x-forwarded-for", "forwarded")
_BOTH = frozenset([field.encode() for field in _FIELDS])
_UNKNOWN = "unknown"  # RFC 7239 §6.2
_NOT_TEXT = re.compile(r"[^ -~]")
_QUOTED_WELL = re.compile(r'[^"\\]*(?:"(?:[^"\\]|\\.)*"[^"\\]*)*\Z')


def tell_forwarded(
    director: StreamDirector, field: ForwardedField, *, trusted_proxies: Iterable[str] = ()
) -> StreamDirector:
    """`director`, for calls whose metadata say in `field` which peer they came from.

    `trusted_proxies` are networks (`10.0.0.0/8`, `2001:db8::/32`, one address) and "unix". What their calls say in
    `field` is kept, in one value, and appended to; of other peers' calls both fields are removed before. A peer on a
    Unix socket is "unknown". A `forwarded` whose quotation marks do not end is dropped, whoever has sent it: it would
    swallow what is appended. Raises `ConfigError` for a field or a network that is none.
    """
    if field not in _FIELDS:
        raise ConfigError(f"{field!r} must be 'x-forwarded-for' or 'forwarded'")
    trusted = Networks.parse(trusted_proxies)
    name = field.encode()
    appended_to = frozenset([name])

    @lru_cache(maxsize=1024)
    def known(peer: str) -> tuple[bool, str]:
        """Whether this peer is trusted, and what is said of it."""
        return peer in trusted, _element(ip_of(peer), field)

    def direct(context: CallContext, method: str) -> Direction | Awaitable[Direction]:
        is_trusted, element = known(context.peer)
        metadata, names = context.metadata, _BOTH
        if is_trusted:
            element = ", ".join([*_said_before(metadata, field), element])
            names = appended_to
        metadata = metadata.with_fields(names, [(name, element.encode())])
        return director(context.with_metadata(metadata), method)

    return direct


def _element(ip: Ip | None, field: ForwardedField) -> str:
    if field == "x-forwarded-for":
        return _UNKNOWN if ip is None else str(ip)
    if ip is None:
        return f"for={_UNKNOWN}"
    # RFC 7239 §6: the colons of an IPv6 address need brackets, and these need quotation marks.
    return f'for="[{ip}]"' if ip.version == 6 else f"for={ip}"  # noqa: PLR2004


def _said_before(metadata: Metadata, field: ForwardedField) -> list[str]:
    """What a trusted proxy has sent, value by value; no value is lost for bytes that are no text."""
    values = [_NOT_TEXT.sub("?", str(value)).strip() for value in metadata.get_all(field)]
    values = [value for value in values if value]
    if field == "forwarded" and not all(_QUOTED_WELL.match(value) for value in values):
        return []
    return values
