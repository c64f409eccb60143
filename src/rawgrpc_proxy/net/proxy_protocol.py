"""PROXY headers (HAProxy's proxy-protocol.txt), with which a load balancer says whom it connects for.

    PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 CR LF                          version 1: a line
    signature │ version, command │ family, protocol │ length │ addresses │ TLVs        version 2: bytes

Pure: bytes in, a header out. Whose word is taken is for `networks.py` to say, how it is read off a socket for
`proxy_peers.py`. Of all that a header may say the source is read: TLVs are passed over, but for the checksum, which is
verified.

The invariants: how the bytes are cut makes no difference; while more are asked for, all that have come are the
header's own, so that none behind it need be read; and no more than `MAX_HEADER_BYTES` are ever asked for.
"""

import functools
import ipaddress
import re

import attrs

from rawgrpc_proxy.errors import NotHttp2
from rawgrpc_proxy.net.address import Address

MAX_HEADER_BYTES = 4096
"""Addresses have 232 bytes at the most, and senders are told to stay below 536 (a segment that passes everywhere); with
a client's certificate among the TLVs there are some thousand. nginx takes as much."""

_LINE_START = b"PROXY "
_MAX_LINE_BYTES = 107  # with CR LF: §2.1
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_HIGHEST_PORT = 65535
_LINE_FIELDS = 4

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION, _LOCAL, _PROXY = 2, 0, 1
_FIXED_BYTES = 16
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_ADDRESS_BYTES = {_UNSPEC: 0, _INET: 4, _INET6: 16, _UNIX: 108}
_STREAM, _DATAGRAM = 1, 2
"""Datagrams are what a load balancer gets that speaks QUIC."""
_PORT_BYTES = 2
_TLV_BYTES = 3
_CRC32C, _CRC32C_BYTES = 0x03, 4

_INSTEAD = {b"PRI": "HTTP/2", b"\x16": "TLS"}
"""By the first bytes, up to the one that no PROXY header has there."""


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """What a header says."""

    size: int
    """Its bytes; what comes behind is the connection's."""

    source: str | None
    """The address of whoever has connected, as text; None where that is the sender itself, or is not known."""


def read_header(start: bytes) -> ProxyHeader | None:
    """The header with which a connection begins; None if more bytes are needed. `start` is all that has come.

    Raises `NotHttp2` with what is wrong, and who has to mend it.
    """
    if start[: len(_SIGNATURE)] == _SIGNATURE:
        return _version_2(start)
    if start[: len(_LINE_START)] == _LINE_START:
        return _version_1(start)
    if _SIGNATURE.startswith(start) or _LINE_START.startswith(start):
        return None
    raise NotHttp2(_missing(start))


def _missing(start: bytes) -> str:
    at = 1
    while any(header.startswith(start[:at]) for header in (_SIGNATURE, _LINE_START)):
        at += 1
    instead = _INSTEAD.get(start[:at], "something else")
    return (
        f"no PROXY header, but {instead}, from a peer that proxy_protocol says sends one first: have the load balancer "
        "send it (HAProxy: send-proxy-v2; nginx: proxy_protocol on), or take its address out of proxy_protocol"
    )


def _wrong(version: int, what: str) -> NotHttp2:
    return NotHttp2(f"a PROXY header (version {version}) that the load balancer has made wrong: {what}")


# --------------------------------------------------------------------- version 1


def _version_1(start: bytes) -> ProxyHeader | None:
    end = start.find(b"\n", 0, _MAX_LINE_BYTES)
    if end < 0:
        if len(start) < _MAX_LINE_BYTES:
            return None
        raise _wrong(1, f"its line does not end within {_MAX_LINE_BYTES} bytes")
    if start[end - 1] != ord("\r"):
        raise _wrong(1, "its line ends with LF alone, not CR LF")
    family, _, rest = start[len(_LINE_START) : end - 1].partition(b" ")
    match family:
        case b"UNKNOWN":
            source = None
        case b"TCP4":
            source = _source_in_words(rest, ipaddress.IPv4Address)
        case b"TCP6":
            source = _source_in_words(rest, ipaddress.IPv6Address)
        case _:
            raise _wrong(1, "its family is none of TCP4, TCP6 and UNKNOWN")
    return ProxyHeader(size=end + 1, source=source)


def _source_in_words(text: bytes, family: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> str:
    fields = text.split(b" ")
    if len(fields) != _LINE_FIELDS:
        raise _wrong(1, "it has not two addresses and two ports, with one space before each")
    *hosts, source_port, target_port = fields
    try:
        source, _target = (family(host.decode("ascii")) for host in hosts)
    except ValueError:
        raise _wrong(1, "an address in it is none of its family") from None
    if any(b"%" in host for host in hosts):  # a zone, which Python takes for a part of the address
        raise _wrong(1, "an address in it is none of its family")
    for port in (source_port, target_port):
        if not _PORT.fullmatch(port) or int(port) > _HIGHEST_PORT:
            raise _wrong(1, "a port in it is none")
    return _name(source, int(source_port))


# --------------------------------------------------------------------- version 2


def _version_2(start: bytes) -> ProxyHeader | None:
    # Each as soon as it is there, and in their order, so that it does not matter how they are cut.
    if len(start) <= len(_SIGNATURE):
        return None
    version, command = divmod(start[12], 16)
    if version != _VERSION:
        raise _wrong(2, f"it says version {version}")
    if command not in {_LOCAL, _PROXY}:
        raise _wrong(2, f"its command {command} is neither LOCAL nor PROXY")
    if len(start) < _FIXED_BYTES:
        return None
    size = _FIXED_BYTES + int.from_bytes(start[14:16], "big")
    if size > MAX_HEADER_BYTES:
        raise _wrong(2, f"it says that it has {size} bytes; {MAX_HEADER_BYTES} are taken")
    family = _family(start[13]) if command == _PROXY else _UNSPEC
    tlvs_at = _FIXED_BYTES + 2 * (_ADDRESS_BYTES[family] + (_PORT_BYTES if family in {_INET, _INET6} else 0))
    if size < tlvs_at:
        raise _wrong(2, "it is too short for its addresses")
    if len(start) < size:
        return None
    if family == _UNSPEC:
        return ProxyHeader(size=size, source=None)  # the rest is to be ignored: §2.2
    _check_tlvs(start[:size], tlvs_at)
    return ProxyHeader(size=size, source=_source_in_bytes(start[_FIXED_BYTES:tlvs_at], family))


def _family(byte: int) -> int:
    """Whose the addresses are; `_UNSPEC` where family or protocol are not said."""
    family, protocol = divmod(byte, 16)
    if family not in _ADDRESS_BYTES or protocol not in {_UNSPEC, _STREAM, _DATAGRAM}:
        raise _wrong(2, f"its family and protocol {byte:#04x} are none")
    return family if protocol else _UNSPEC


def _source_in_bytes(addresses: bytes, family: int) -> str:
    length = _ADDRESS_BYTES[family]
    if family == _UNIX:
        return _unix_name(addresses[:length])
    port = int.from_bytes(addresses[2 * length :][:_PORT_BYTES], "big")
    return _name(ipaddress.ip_address(addresses[:length]), port)


def _check_tlvs(header: bytes, at: int) -> None:
    """What the TLVs behind the addresses say of the header: where it ends, and what its checksum is."""
    checksum_at = None
    while at < len(header):
        value_at = at + _TLV_BYTES
        end = value_at + int.from_bytes(header[at + 1 : value_at], "big")
        if value_at > len(header) or end > len(header):
            raise _wrong(2, "a TLV in it goes beyond its end")
        if header[at] == _CRC32C:
            if checksum_at is not None or end - value_at != _CRC32C_BYTES:
                raise _wrong(2, "its checksum is not one of four bytes")
            checksum_at = value_at
        at = end
    if checksum_at is not None:
        rest_at = checksum_at + _CRC32C_BYTES
        summed = header[:checksum_at] + bytes(_CRC32C_BYTES) + header[rest_at:]
        if int.from_bytes(header[checksum_at:rest_at], "big") != crc32c(summed):
            raise _wrong(2, "its checksum (CRC32C) is not that of its bytes")


def crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A. Four thousand bytes take a third of a millisecond."""
    table = _crc32c_table()
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFF_FFFF


@functools.cache
def _crc32c_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F6_3B78 if crc & 1 else 0)  # noqa: PLW2901  # the remainder, bit by bit
        table.append(crc)
    return table


# ------------------------------------------------------------------------- names


def _name(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """As the peer of a connection of its own would be called."""
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    return str(Address(host=str(host), port=port))


def _unix_name(path: bytes) -> str:
    """Most clients' sockets have no name; one that is no single word for a line of the log counts as none."""
    abstract = path[:1] == b"\0"
    try:
        name = path[abstract:].partition(b"\0")[0].decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or " " in name or not name.isprintable():
        return "unix:"
    return str(Address(path=f"\0{name}" if abstract else name))
