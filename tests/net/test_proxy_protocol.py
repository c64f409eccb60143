"""PROXY headers: whom they name, where they end, and what is said of those that are wrong, however they are cut."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rawgrpc_proxy.errors import NotHttp2
from rawgrpc_proxy.net.proxy_protocol import MAX_HEADER_BYTES, ProxyHeader, crc32c, read_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
TCP4, UDP4, TCP6, UDP6, UNIX_STREAM, UNIX_DATAGRAM = 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
IPV4 = ipaddress.ip_address("192.0.2.7").packed + ipaddress.ip_address("198.51.100.1").packed
IPV6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("2001:db8::1").packed
PORTS = struct.pack(">HH", 56324, 443)
BEHIND = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def version_2(block: bytes, family: int = TCP4, command: int = PROXY) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def unix(path: bytes) -> bytes:
    return path.ljust(108, b"\0") + bytes(108)


def reference_crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 9260 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def with_checksum(block: bytes, *, off_by: int = 0, more: bytes = b"") -> bytes:
    blank = version_2(block + tlv(3, bytes(4)) + more)
    checksum = (reference_crc32c(blank) + off_by) % 2**32
    return version_2(block + tlv(3, checksum.to_bytes(4, "big")) + more)


Outcome = ProxyHeader | str | None


def outcome(start: bytes) -> Outcome:
    try:
        return read_header(start)
    except NotHttp2 as error:
        return error.message


def outcome_however_cut(wire: bytes) -> Outcome:
    """What the first bytes bring that bring anything; those behind them change nothing."""
    first: Outcome = None
    for size in range(len(wire) + 1):
        here = outcome(wire[:size])
        if first is None:
            first = here
        assert here == first, size
    return first


GOOD = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", "192.0.2.7:56324"),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0:0"),
    (b"PROXY TCP6 2001:DB8::7 2001:db8::1 56324 443\r\n", "[2001:db8::7]:56324"),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 56324 443\r\n", "192.0.2.7:56324"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN 192.0.2.7 whatever\rthis is\r\n", None),
    (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None),
    (version_2(IPV4 + PORTS), "192.0.2.7:56324"),
    (version_2(IPV4 + PORTS, UDP4), "192.0.2.7:56324"),
    (version_2(IPV6 + PORTS, TCP6), "[2001:db8::7]:56324"),
    (version_2(IPV6 + PORTS, UDP6), "[2001:db8::7]:56324"),
    (
        version_2(ipaddress.ip_address("::ffff:192.0.2.7").packed + IPV6[16:] + PORTS, TCP6),
        "192.0.2.7:56324",
    ),
    (version_2(unix(b"/run/client.sock"), UNIX_STREAM), "unix:/run/client.sock"),
    (version_2(unix(b"/run/client.sock"), UNIX_DATAGRAM), "unix:/run/client.sock"),
    (version_2(unix(b"\0client"), UNIX_STREAM), "unix:@client"),
    (version_2(unix(b""), UNIX_STREAM), "unix:"),
    (version_2(unix(b"/a\r\nb"), UNIX_STREAM), "unix:"),
    (version_2(unix(b"/\xff"), UNIX_STREAM), "unix:"),
    (version_2(unix(b"/x -> 10.0.0.7:1 OK"), UNIX_STREAM), "unix:"),
    (version_2(unix(b"/" + b"x" * 107), UNIX_STREAM), "unix:/" + "x" * 107),
    (version_2(IPV4 + PORTS + tlv(4, b"") + tlv(0xEA, b"\1vpce-1")), "192.0.2.7:56324"),
    (with_checksum(IPV4 + PORTS), "192.0.2.7:56324"),
    (with_checksum(IPV4 + PORTS + tlv(2, b"host"), more=tlv(5, b"id")), "192.0.2.7:56324"),
    (version_2(b"", 0, LOCAL), None),
    (version_2(IPV4 + PORTS, TCP4, LOCAL), None),
    (version_2(b"no matter", 0xFF, LOCAL), None),
    (version_2(b"", 0, PROXY), None),
    (version_2(b"no matter", 0x10, PROXY), None),
    (version_2(b"no matter", 0x01, PROXY), None),
    (version_2((IPV4 + PORTS).ljust(MAX_HEADER_BYTES - 16, b"\0")), "192.0.2.7:56324"),
]


@pytest.mark.parametrize(("wire", "source"), GOOD)
def test_a_header_names_its_source_and_takes_no_byte_more(wire: bytes, source: str | None) -> None:
    assert outcome_however_cut(wire + BEHIND) == ProxyHeader(size=len(wire), source=source)
    assert read_header(wire[:-1]) is None


WRONG = [
    (
        BEHIND,
        "no PROXY header, but HTTP/2, from a peer that proxy_protocol says sends one first: have the load ",
    ),
    (b"\x16\3\1\2\0\1\0\1\xfc\3\3", "no PROXY header, but TLS, from a peer"),
    (b"POST / HTTP/1.1\r\n\r\n", "no PROXY header, but something else, from a peer"),
    (b"PROXY\tTCP4 192.0.2.7 198.51.100.1 56324 443\r\n", "no PROXY header"),
    (b"\r\n\r\n\0\r\nQUIT\r\n", "no PROXY header"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n", "its line ends with LF alone, not CR LF"),
    (b"PROXY TCP4 192.0.2.7\n198.51.100.1 56324 443\r\n", "its line ends with LF alone, not CR LF"),
    (b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n", "its line does not end within 107 bytes"),
    (b"PROXY " + b"f" * 10_000, "its line does not end within 107 bytes"),
    (b"PROXY \r\n", "its family is none of TCP4, TCP6 and UNKNOWN"),
    (b"PROXY UDP4 192.0.2.7 198.51.100.1 56324 443\r\n", "its family is none of"),
    (b"PROXY unknown\r\n", "its family is none of"),
    (b"PROXY TCP4\r\n", "it has not two addresses and two ports"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n", "it has not two addresses and two ports"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 \r\n", "it has not two addresses and two ports"),
    (b"PROXY TCP4  192.0.2.7 198.51.100.1 56324 443\r\n", "it has not two addresses and two ports"),
    (b"PROXY TCP4 ::1 ::1 56324 443\r\n", "an address in it is none of its family"),
    (b"PROXY TCP6 192.0.2.7 198.51.100.1 56324 443\r\n", "an address in it is none of its family"),
    (b"PROXY TCP4 192.0.2.007 198.51.100.1 56324 443\r\n", "an address in it is none of its family"),
    (b"PROXY TCP4 192.0.2.\xc2\xb2 198.51.100.1 56324 443\r\n", "an address in it is none of its family"),
    (b"PROXY TCP4 192.0.2.7 localhost 56324 443\r\n", "an address in it is none of its family"),
    (b"PROXY TCP6 fe80::1%eth0 ::1 56324 443\r\n", "an address in it is none of its family"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n", "a port in it is none"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 0443\r\n", "a port in it is none"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 443\r\n", "a port in it is none"),
    (version_2(IPV4 + PORTS, command=0x11), "it says version 1"),
    (version_2(IPV4 + PORTS, command=0x31), "it says version 3"),
    (version_2(IPV4 + PORTS, command=0x22), "its command 2 is neither LOCAL nor PROXY"),
    (version_2(IPV4 + PORTS, 0x41), "its family and protocol 0x41 are none"),
    (version_2(IPV4 + PORTS, 0x13), "its family and protocol 0x13 are none"),
    (version_2(IPV4 + PORTS, 0x03), "its family and protocol 0x03 are none"),
    (version_2((IPV4 + PORTS)[:-1]), "it is too short for its addresses"),
    (version_2((IPV6 + PORTS)[:-1], TCP6), "it is too short for its addresses"),
    (version_2(unix(b"")[:-1], UNIX_STREAM), "it is too short for its addresses"),
    (
        version_2(bytes(MAX_HEADER_BYTES - 15)),
        f"it says that it has {MAX_HEADER_BYTES + 1} bytes; {MAX_HEADER_BYTES} are taken",
    ),
    (SIGNATURE + struct.pack(">BBH", PROXY, TCP4, 65535), "it says that it has 65551 bytes; 4096 are taken"),
    (SIGNATURE + struct.pack(">BBH", LOCAL, 0, 65535), "it says that it has 65551 bytes; 4096 are taken"),
    (version_2(IPV4 + PORTS + b"\4"), "a TLV in it goes beyond its end"),
    (version_2(IPV4 + PORTS + b"\4\0"), "a TLV in it goes beyond its end"),
    (version_2(IPV4 + PORTS + tlv(4, b"ab")[:-1]), "a TLV in it goes beyond its end"),
    (with_checksum(IPV4 + PORTS, off_by=1), "its checksum (CRC32C) is not that of its bytes"),
    (with_checksum(IPV4 + PORTS, more=tlv(3, bytes(4))), "its checksum is not one of four bytes"),
    (version_2(IPV4 + PORTS + tlv(3, bytes(3))), "its checksum is not one of four bytes"),
]


@pytest.mark.parametrize(("wire", "says"), WRONG)
def test_a_wrong_header_is_refused_with_what_is_wrong_and_who_has_to_act(wire: bytes, says: str) -> None:
    said = outcome_however_cut(wire + BEHIND)
    assert isinstance(said, str)
    assert says in said
    assert "the load balancer" in said


def test_lengths_and_endless_lines_are_refused_as_soon_as_they_are_known() -> None:
    assert isinstance(outcome(SIGNATURE + struct.pack(">BBH", PROXY, TCP4, 65535)), str)
    assert outcome(b"PROXY " + b"f" * 100) is None
    assert isinstance(outcome(b"PROXY " + b"f" * 101), str)
    assert outcome(b"P") is None
    assert isinstance(outcome(b"Q"), str)


@pytest.mark.parametrize(
    ("data", "checksum"), [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)]
)
def test_the_checksum_is_castagnolis(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


v4, v6, ports = st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 65535)
endpoints = st.one_of(st.tuples(v4, v4, ports, ports), st.tuples(v6, v6, ports, ports))
Endpoints = tuple[
    ipaddress.IPv4Address | ipaddress.IPv6Address, ipaddress.IPv4Address | ipaddress.IPv6Address, int, int
]
tlvs = st.lists(st.builds(tlv, st.integers(4, 255), st.binary(max_size=40)), max_size=6).map(b"".join)


@given(endpoints, tlvs, st.binary(max_size=30), st.booleans())
def test_both_versions_name_the_source_that_was_put_in(
    told: Endpoints, more: bytes, behind: bytes, checksum: bool
) -> None:
    source, target, source_port, target_port = told
    line = f"PROXY TCP{source.version} {source} {target} {source_port} {target_port}\r\n".encode()
    block = source.packed + target.packed + struct.pack(">HH", source_port, target_port) + more
    binary = version_2(block, TCP4 if source.version == 4 else TCP6)
    if checksum and source.version == 4:
        binary = with_checksum(block)
    for wire in (line, binary):
        header = outcome_however_cut(wire + behind)
        assert isinstance(header, ProxyHeader)
        assert header.size == len(wire)
        assert header.source is not None
        host, _, port = header.source.rpartition(":")
        shown = ipaddress.ip_address(host.strip("[]"))
        assert shown == (getattr(source, "ipv4_mapped", None) or source)
        assert int(port) == source_port


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"1.2.3.4 ", b"::1 ", b"1 2", b"\r\n", b"\n", SIGNATURE]
    ),
    st.sampled_from(
        [b"\x21\x11\0\x0c", b"\x20\0\0\0", b"\x21\x21\0\x30", IPV4 + PORTS, tlv(3, bytes(4)), BEHIND]
    ),
)


@given(st.lists(pieces, max_size=8).map(b"".join))
@example(SIGNATURE + b"\x21\x11\0\x0c" + IPV4)
def test_any_bytes_are_taken_for_the_same_however_they_are_cut(wire: bytes) -> None:
    header = outcome_however_cut(wire)
    if isinstance(header, ProxyHeader):
        assert header.size <= min(len(wire), MAX_HEADER_BYTES)
    if header is None:
        assert len(wire) < MAX_HEADER_BYTES


@given(st.sampled_from([wire for wire, _ in GOOD]), st.data())
def test_one_wrong_byte_is_a_header_an_objection_or_a_longer_header_and_nothing_else(
    wire: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, min(len(wire), 300) - 1))
    changed = wire[:at] + data.draw(st.binary(min_size=1, max_size=1)) + wire[at + 1 :]
    header = outcome(changed + BEHIND)
    if isinstance(header, ProxyHeader) and header.source is not None:
        assert header.source.isprintable()
        assert " " not in header.source
