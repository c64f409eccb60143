"""The first bytes of a connection: HTTP/2 or what else, however they are cut, and what is said of it."""

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import NotHttp2
from rawgrpc_proxy.http2 import frames
from rawgrpc_proxy.http2.first_bytes import HTTP1_ANSWER, MAX_FIRST_BYTES
from rawgrpc_proxy.http2.frames import FrameSplitter
from tests.http2 import peer
from tests.http2.test_frames import cut, single_bytes, split

LARGEST_FRAME = 2**24 - 1


def splitter(*, of_client: bool) -> FrameSplitter:
    """For what a client sends, or a server; with room for any frame, so that no length is refused as such."""
    return FrameSplitter(LARGEST_FRAME, expect_preface=of_client)


def refused(chunks: Iterable[bytes], *, of_client: bool) -> NotHttp2:
    with pytest.raises(NotHttp2) as caught:
        split(splitter(of_client=of_client), chunks)
    return caught.value


def refused_however_cut(wire: bytes, *, of_client: bool) -> NotHttp2:
    """The same is said of these bytes in one piece, in two, and one by one."""
    error = refused([wire], of_client=of_client)
    for offset in [*range(min(len(wire), 100))]:
        other = refused([wire[:offset], wire[offset:]], of_client=of_client)
        assert (other.message, other.error_code) == (error.message, error.error_code)
    assert refused(single_bytes(wire), of_client=of_client).message == error.message
    return error


def test_the_preface_may_come_byte_by_byte() -> None:
    wire = peer.PREFACE + peer.settings()

    assert split(splitter(of_client=True), single_bytes(wire)) == [(frames.SETTINGS, 0, 0, b"")]


@pytest.mark.parametrize("position", range(len(peer.PREFACE)))
def test_one_wrong_byte_anywhere_in_the_preface_is_refused(position: int) -> None:
    wire = bytearray(peer.PREFACE)
    wire[position] ^= 0x80

    refused_however_cut(bytes(wire), of_client=True)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /a.B/C HTTP/1.1\r\n\r\n",
        b"PUT /p HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"PROPPATCH http://x/ HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"CONNECT 10.0.0.7:50051 HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
        b"VERSION-CONTROL /x HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n",
        b"GO / HTTP/1.1\r\n",
        b"ABCDEFGHIJK / HTTP/1.1\r\n",
        b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
        b"PROXY /x HTTP/1.1\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n",
    ],
)
def test_any_http1_request_is_answered_in_http1_as_soon_as_it_is_one(request_line: bytes) -> None:
    error = refused_however_cut(request_line, of_client=True)

    assert error.error_code == ErrorCode.HTTP_1_1_REQUIRED
    assert error.answer == HTTP1_ANSWER
    assert "HTTP/1.1, not HTTP/2" in error.message
    until_the_version = request_line[: request_line.index(b"HTTP/1.") + 8]
    assert refused(single_bytes(until_the_version), of_client=True).message == error.message


def test_a_connect_request_is_taken_for_a_mistake_in_the_client_s_environment() -> None:
    error = refused([b"CONNECT backend.example:443 HTTP/1.1\r\n\r\n"], of_client=True)

    assert "grpc_proxy" in str(error)


def test_a_request_line_without_end_is_one_after_eight_kibibytes() -> None:
    endless = b"GET /" + b"a" * (2 * MAX_FIRST_BYTES)

    assert split(splitter(of_client=True), [endless[: MAX_FIRST_BYTES - 1]]) == []
    error = refused_however_cut(endless, of_client=True)

    assert error.error_code == ErrorCode.HTTP_1_1_REQUIRED
    refused_however_cut(b"GET /" + b"a" * MAX_FIRST_BYTES + b" HTTP/1.1\r\n\r\n", of_client=True)


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "a TLS handshake, not HTTP/2: this listener speaks plaintext",
        ),
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 50051\r\n" + peer.PREFACE,
            "a PROXY protocol header (version 1), not HTTP/2",
        ),
        (
            b"PROXY TCP6 ::1 ::1 4711 50051\r\n" + peer.PREFACE,
            "a PROXY protocol header (version 1), not HTTP/2",
        ),
        (b"PROXY UNKNOWN\r\n" + peer.PREFACE, "a PROXY protocol header (version 1), not HTTP/2"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "a PROXY protocol header (version 2), not HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH greeting"),
        (b"INVALID CONNECTION PREFACE\r\n\r\n", "no HTTP/2 preface"),
        (b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n", "no HTTP/2 preface"),
        (b"GET / HTTP/2.0\r\n\r\n", "no HTTP/2 preface"),
        (b"GET /\r\n", "no HTTP/2 preface"),
        (b"EHLO example.org\r\n", "no HTTP/2 preface"),
        (b"*1\r\n$4\r\nPING\r\n", "no HTTP/2 preface"),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", "no HTTP/2 preface"),
        (b"A" * 33, "no HTTP/2 preface"),
        (peer.settings(), "no HTTP/2 preface"),
    ],
)
def test_whatever_else_a_client_speaks_is_named_and_gets_no_answer(wire: bytes, said: str) -> None:
    error = refused_however_cut(wire, of_client=True)

    assert str(error).startswith(said)
    assert error.answer == b""


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answered with HTTP/1.1, not HTTP/2"),
        (b"HTTP/", "answered with HTTP/1.1, not HTTP/2"),
        (
            b"\x15\x03\x03\x00\x02\x02\x2f",
            "speaks TLS, and is dialled in plaintext: use --upstream-tls, or give get_conn an ssl_context",
        ),
        (b"\x4a\0\0\0\x0a8.0.36\0", "does not speak HTTP/2: it begins with 4a 00 00 00 0a 38 2e 30 2e"),
        (b"-ERR unknown command\r\n", "does not speak HTTP/2: it begins with '-ERR unkn'"),
        (b"220 mail.example ESMTP\r\n", "does not speak HTTP/2: it begins with '220 mail.'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP/2: it begins with 'SSH-2.0-O'"),
        (b"E\0\0\0\x89SFATAL\0", "does not speak HTTP/2: it begins with 45 00 00 00 89 53 46 41 54"),
        (b"\0\0\0\x1a\x80\x01\0\x02\0", "does not speak HTTP/2: it begins with 00 00 00 1a 80 01 00 02 00"),
        (peer.raw(0x4, 0, 0, bytes(5)), "does not speak HTTP/2: it begins with 00 00 05 04 00 00 00 00 00"),
    ],
)
def test_whatever_else_a_server_speaks_is_named_on_its_ninth_byte(wire: bytes, said: str) -> None:
    error = refused_however_cut(wire, of_client=False)

    assert str(error) == said
    assert refused(single_bytes(wire[:9]), of_client=False).message == said


def test_frames_may_begin_like_an_http1_response_later_on() -> None:
    """0x485454 bytes of type 0x50: only the first bytes of a connection can be HTTP/1.1."""
    target = splitter(of_client=False)

    assert split(target, [peer.settings(), b"HTTP/", b"1.1 "]) == [(frames.SETTINGS, 0, 0, b"")]


lines = st.tuples(
    st.sampled_from(
        [b"", b"GET", b"PRI", b"PROXY", b"PROXY TCP4", b"SSH-", b"\x16\x03", b"CONNECT", b"\r\n\r\n\0"]
    ),
    st.sampled_from([b"", b" ", b" /", b" * ", b" x HTTP/1", b" * HTTP/2.0\r\n\r\n", b"\r\nQUIT\n"]),
    st.sampled_from([b"", b".1\r\n", b"SM\r\n\r\n", b"\r\n"]),
    st.binary(max_size=12),
).map(b"".join)
openings = st.one_of(
    lines, st.binary(max_size=30), st.sampled_from([b"HTTP/1.1", b"\x15\x03\x03", b"\x15", peer.settings()])
)


@given(openings, st.lists(st.integers(0, 60), max_size=6), st.booleans())
@example(b"PRI * HTTP/1.1\r\n", [5, 12], True)
def test_any_opening_is_taken_for_the_same_however_it_is_cut(
    wire: bytes, offsets: list[int], of_client: bool
) -> None:
    def outcome(chunks: Iterable[bytes]) -> object:
        try:
            return split(splitter(of_client=of_client), chunks)
        except NotHttp2 as error:
            return str(error), error.error_code, error.answer

    assert outcome(cut(wire, offsets)) == outcome(single_bytes(wire)) == outcome([wire])
