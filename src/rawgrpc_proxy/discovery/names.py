"""Addresses as numbers, and names, as users write them."""

import ipaddress

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address, in_words

DNS_PORT = 53
_MOST_CHARACTERS = 253  # RFC 1035 §2.3.4, as text


def is_number(host: str) -> bool:
    """Whether it is an address already, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_of_use(address: str) -> bool:
    """Whether one can connect to it: "any address", as filters answer for names that they block, is none."""
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not number.is_unspecified and not number.is_multicast


def check_name(name: str) -> None:
    """Raise `ConfigError` for what no host or service can be called."""
    try:
        encoded = name.removesuffix(".").encode("idna")
    except UnicodeError as error:
        raise ConfigError(f"{name!r}: {in_words(error)}") from None
    if not encoded or len(encoded) > _MOST_CHARACTERS:
        raise ConfigError(f"{name[:40]!r} has {len(encoded)} characters; a name has 1 to {_MOST_CHARACTERS}")


def server_of(text: str) -> tuple[str, int]:
    """A server to ask: `ADDRESS` or `ADDRESS:PORT`, its address as a number. Raises `ConfigError`."""
    if is_number(text):
        return text, DNS_PORT
    try:
        address = Address.parse(text)
    except ConfigError:
        address = None
    if address is None or not is_number(address.host):
        raise ConfigError(
            f"{text!r} is no address of a DNS server; write ADDRESS or ADDRESS:PORT, with a number"
        ) from None
    return address.host, address.port
