"""What a peer speaks, told by its first bytes: HTTP/2, or what else it may be, and what to do about that.

People point the wrong things at each other: a client with TLS at a port without, a load balancer that puts a PROXY
header in front, a client that takes this for its HTTP proxy, a web server or a database as upstream. Who speaks
HTTP/1.1 gets an answer in it; the others get none (gRPC clients would take SETTINGS for a sign of life), and the log
the cause.

The invariants: how the bytes are cut makes no difference, and no more than 8 KiB of them are held. Owns RFC 9113 §3.4.
"""

import re

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import MIN_FRAME_SIZE
from rawgrpc_proxy.errors import NotHttp2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FIRST_BYTES = 8192
"""A request line that goes on is one, without its end (RFC 9112 §3: 8000 bytes are the least to be supported)."""
HTTP1_ANSWER = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\ncontent-length: 65\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC: HTTP/2 with prior knowledge, no HTTP/1.1.\n"
)

_FRAME_HEADER_BYTES = 9
_SETTINGS, _LAST_FRAME_TYPE = 0x4, 0x9
_SETTING_BYTES = 6

# RFC 9112 §3: method SP request-target SP HTTP-version, whatever the method.
_METHOD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32} "
_TARGET = rb"[!-~\x80-\xff]+ "
_REQUEST_LINE = re.compile(_METHOD + _TARGET + rb"HTTP/1\.[0-9]")
_START_OF_ONE = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{0,32}"
    rb"|" + _METHOD + rb"[!-~\x80-\xff]*"
    rb"|" + _METHOD + _TARGET + rb"(?:H|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.)?"
)  # fmt: skip

_A_PROXY_HEADER = (
    "a PROXY protocol header (version {}), not HTTP/2: name the load balancer in front in the listener's "
    "proxy_protocol (in the library, an argument of Server.serve), or have it send none (in HAProxy, a server without "
    "send-proxy)"
)
_CLIENTS = {
    b"PROXY TCP": _A_PROXY_HEADER.format(1),
    b"PROXY UNKNOWN": _A_PROXY_HEADER.format(1),
    b"\r\n\r\n\0\r\nQUIT\n": _A_PROXY_HEADER.format(2),
    b"\x16\x03": (
        "a TLS handshake, not HTTP/2: this listener speaks plaintext; have the client do so too, or give it a "
        "certificate (--tls-cert; in the library, Server.serve an ssl_context)"
    ),
    b"SSH-": "an SSH greeting, not HTTP/2",
}
_SPEAKS_TLS = "speaks TLS, and is dialled in plaintext: use --upstream-tls, or give get_conn an ssl_context"
_SERVERS = {
    b"HTTP/": "answered with HTTP/1.1, not HTTP/2",
    b"\x15\x03": _SPEAKS_TLS,
    b"\x16\x03": _SPEAKS_TLS,
}


def preface_end(start: bytes) -> int | None:
    """How long the preface is with which a client must begin; None if it is not here yet, nor ruled out.

    `start` is all that has come, up to `MAX_FIRST_BYTES`. Raises `NotHttp2` with what the client speaks instead.
    """
    if PREFACE.startswith(start[: len(PREFACE)]):
        return len(PREFACE) if len(start) >= len(PREFACE) else None
    undecided = _find(start, _CLIENTS)
    if _REQUEST_LINE.match(start) or (len(start) >= MAX_FIRST_BYTES and _START_OF_ONE.fullmatch(start)):
        raise NotHttp2(_http1_request(start), error_code=ErrorCode.HTTP_1_1_REQUIRED, answer=HTTP1_ANSWER)
    if undecided or _START_OF_ONE.fullmatch(start):
        return None
    raise NotHttp2("no HTTP/2 preface (RFC 9113 §3.4): the peer speaks another protocol", answer=b"")


def settings_start(start: bytes) -> int | None:
    """0 if these are the first bytes of a server that speaks HTTP/2; None if more of them are needed.

    Raises `NotHttp2` with what the server speaks instead. Where its first frame is none of SETTINGS, but a frame, that
    is not said here.
    """
    if _find(start, _SERVERS) or len(start) < _FRAME_HEADER_BYTES:
        return None
    length, frame_type = int.from_bytes(start[:3], "big"), start[3]
    odd_settings = frame_type == _SETTINGS and length % _SETTING_BYTES
    if length > MIN_FRAME_SIZE or frame_type > _LAST_FRAME_TYPE or odd_settings:
        raise NotHttp2(f"does not speak HTTP/2: it begins with {_show(start[:_FRAME_HEADER_BYTES])}")
    return 0


def _find(start: bytes, protocols: dict[bytes, str]) -> bool:
    """Raise `NotHttp2` if it begins as one of these protocols does; True if it may still turn out to."""
    for beginning, what in protocols.items():
        if start.startswith(beginning):
            code = ErrorCode.HTTP_1_1_REQUIRED if beginning == b"HTTP/" else ErrorCode.PROTOCOL_ERROR
            raise NotHttp2(what, error_code=code)
    return any(beginning.startswith(start) for beginning in protocols)


def _http1_request(start: bytes) -> str:
    if start.startswith(b"CONNECT "):
        return (
            "a CONNECT request of HTTP/1.1, not HTTP/2: does the client take this address for its HTTP proxy "
            "(grpc_proxy, http_proxy, https_proxy)?"
        )
    return "a request of HTTP/1.1, not HTTP/2: gRPC needs HTTP/2"


def _show(first: bytes) -> str:
    """As text if it is one, else in hexadecimal digits."""
    text = first.decode("latin-1")
    return repr(text) if text.isascii() and text.isprintable() else first.hex(" ")
