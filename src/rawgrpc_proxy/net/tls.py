"""TLS on a socket: `TlsTransport`, which the poller reads and the writer writes as any other socket.

    socket ──► incoming ──► SSLObject ──► frames          frames ──► SSLObject ──► outgoing ──► socket

OpenSSL sees memory alone (`ssl.MemoryBIO`), so nothing it does waits, and a flush of many frames is one record, or as
few as it needs, and one system call. What is encrypted must leave as it is, before all else: what a socket has not
taken of it goes back to the writer as `_Sealed`, in front of the frames that are not encrypted yet.

On PyPy bytes go their own way to OpenSSL (`pypy_tls.py`). What it does not do: make contexts (`tls_files.py`, or the
user), or say how long a handshake may take (`server/server.py`, `dial.py`).
"""

import contextlib
import functools
import socket
import ssl
from collections.abc import Callable

import trio

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.net import pypy_tls
from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.pypy_tls import RECORD_BYTES
from rawgrpc_proxy.net.transport import READ_BYTES, SocketTransport, Take, next_read_bytes
from rawgrpc_proxy.net.turn import current_turn
from rawgrpc_proxy.peer_identity import PeerCertificate

_AT_ONCE_BYTES = 64 * 1024
"""What is encrypted before the socket is asked whether it takes any: it must be kept, whatever happens."""


TlsContext = ssl.SSLContext | Callable[[], ssl.SSLContext]
"""A context, or what answers one for each handshake: `ContextOfFiles`, for files that change."""


def context_of(tls: TlsContext) -> ssl.SSLContext:
    """The context for a handshake now."""
    return tls if isinstance(tls, ssl.SSLContext) else tls()


class UpstreamContext(ssl.SSLContext):
    """A context that knows whom it expects, where that is not the host that is dialled."""

    server_name: str | None = None


class _Sealed(bytes):
    """Encrypted bytes."""

    __slots__ = ()


_IN_WORDS = {
    "WRONG_VERSION_NUMBER": (
        "the peer speaks no TLS here; plaintext, perhaps (both sides must do the same), or it is a load balancer that "
        "sends a PROXY header, and proxy_protocol does not name it"
    ),
    "NO_SHARED_CIPHER": "the peer offers no cipher suite that HTTP/2 allows with TLS 1.2 (RFC 9113 §9.2.2), "
    "or none for the kind of key that our certificate has",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "the peer wants none of the cipher suites that HTTP/2 allows (RFC 9113 §9.2.2), or a certificate of us that we "
        "do not have; its own error tells"
    ),
    "HTTP_REQUEST": "the peer speaks no TLS here, but HTTP/1",
    # What gRPC's clients do, with no word of why.
    "UNEXPECTED_EOF_WHILE_READING": "the peer has left in the middle of the handshake: it does not trust our "
    "certificate (its authority, its name or its dates), perhaps; its own error tells",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer has no certificate, and needs one",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate; its own error tells why",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept our certificate; its own error tells why",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired, says the peer",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate of us, and we have none for it",
}
_UNKNOWN_AUTHORITY = (
    "the authority of the peer's certificate is not trusted here: the peer needs another certificate, or its authority "
    "a place among those that are (client_ca for callers, ca for upstreams)"
)
_OTHER_NAME = "the peer's certificate is for another name: it needs one for this, or we another server_name"
_CERTIFICATE_IN_WORDS = {  # by the numbers of OpenSSL's X509_V_ERR_…
    9: "the peer's certificate is not valid yet: it needs another, unless a clock is wrong",
    10: "the peer's certificate has expired: it needs a new one",
    **dict.fromkeys((2, 18, 19, 20, 21), _UNKNOWN_AUTHORITY),
    **dict.fromkeys((62, 64), _OTHER_NAME),
}


def tls_problem(error: OSError) -> str:
    """Why there is no TLS, in words that say who has to do something, as far as OpenSSL's own are known."""
    words = None
    if isinstance(error, ssl.SSLCertVerificationError):
        words = _CERTIFICATE_IN_WORDS.get(error.verify_code)
    elif isinstance(error, ssl.SSLError):
        words = _IN_WORDS.get(error.reason)
    return f"{words} ({error})" if words else str(error)


def left_early(*, tls: bool, client_side: bool) -> str:
    """Why a peer may have closed the link, or broken it, before it has said anything in HTTP/2: it does not tell."""
    if not tls:
        return "the peer closed the connection before its first SETTINGS; it speaks TLS, perhaps (--upstream-tls)"
    if client_side:
        # With TLS 1.3 our handshake is done before the peer looks at our certificate (RFC 8446 §4.4.2.4).
        return (
            "the peer closed the connection after the TLS handshake, before its first SETTINGS: it wants a certificate "
            "of us, or another one, perhaps; its own log tells"
        )
    # grpcio looks at the name when the handshake is done.
    return (
        "the peer closed the connection after the TLS handshake, without a word: our certificate is for another name "
        "than it calls, perhaps; its own error tells"
    )


class TlsTransport(SocketTransport):
    """A connected socket with TLS, once `handshake` is done.

    A peer may end without close_notify, as with HTTPS. Errors of TLS are `ssl.SSLError`, which is an `OSError`. On PyPy
    the context gets an `sslobject_class` that minds the queue of errors, unless it has one of its own.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(sock, peer)
        if pypy_tls.IS_HERE and context.sslobject_class is ssl.SSLObject:
            context.sslobject_class = pypy_tls.SSLObject
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._encrypted = (
            functools.partial(pypy_tls.take, self._outgoing) if pypy_tls.IS_HERE else self._outgoing.read
        )
        """Answers all that has been encrypted."""
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._read_bytes = READ_BYTES
        self._version: str | None = None
        """What the handshake has come to. OpenSSL's own word is gone when the peer has ended TLS with an alert."""
        self.heard = False
        """Whether the peer has said anything; until the handshake is done."""

    @property
    def tls_version(self) -> str | None:
        return self._version

    @property
    def alpn_protocol(self) -> str | None:
        """What was agreed on by ALPN."""
        return self._tls.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Shake hands. Raises `OSError`; when it is cancelled or fails the transport has to be closed.

        A peer that is told why it failed (an alert) may get that, if the socket takes it.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_outgoing()
                await trio.lowlevel.wait_readable(self._open_fd())
                with contextlib.suppress(BlockingIOError):
                    self._take_in(self._sock.recv(READ_BYTES))
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._sock.send(self._encrypted())
                raise
            else:
                break
        self._version = self._tls.version()
        await self._send_outgoing()
        try:
            certificate = self._tls.getpeercert()
        except ValueError:
            # A name in it is no UTF-8. It is valid all the same, and as one that was not verified names nobody.
            certificate = {}
        self.tls_peer = PeerCertificate(certificate) if certificate else certificate

    def _take_in(self, data: bytes) -> None:
        if data:
            self.heard = True
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _send_outgoing(self) -> None:
        rest: list[Data] = [_Sealed(self._encrypted())] if self._outgoing.pending else []
        while rest := self.send_now(rest):
            await trio.lowlevel.wait_writable(self._open_fd())

    # ----------------------------------------------------------------- reading

    async def receive_each(self, take: Take, *, goes_on: bool = False) -> None:
        if self._incoming.pending and not goes_on:
            # Came with the end of the handshake: the socket will not tell of it.
            with current_turn(), contextlib.suppress(BlockingIOError):
                then = take(self._decrypted())
                if then is Then.STOP:
                    return
                goes_on = then is Then.AGAIN
        await self._receive_each(self._read_some, take, goes_on=goes_on)

    def _read_some(self, _read_bytes: int) -> bytes:
        # What is asked for follows what the socket has given, and not the text, which is shorter.
        if pypy_tls.IS_HERE:
            got = pypy_tls.receive(self._sock, self._read_bytes, self._incoming)
        else:
            data = self._sock.recv(self._read_bytes)
            if got := len(data):
                self._incoming.write(data)
        if not got:
            return b""
        self._read_bytes = next_read_bytes(self._read_bytes, got)
        return self._decrypted()

    def _decrypted(self) -> bytes:
        """All there is; no bytes once the peer has said close_notify. Raises `BlockingIOError` if there is nothing."""
        if pypy_tls.IS_HERE and isinstance(self._tls, pypy_tls.SSLObject):
            return self._tls.read_all(self._incoming)
        parts = []
        read = self._tls.read
        more = True
        try:
            while more and (part := read(RECORD_BYTES)):
                parts.append(part)
                more = self._incoming.pending > 0
        except ssl.SSLWantReadError:
            if not parts:
                raise BlockingIOError from None  # less than a record, or none for us
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # ----------------------------------------------------------------- writing

    def send_now(self, chunks: list[Data]) -> list[Data]:
        while chunks:
            first = chunks[0]
            if type(first) is _Sealed:
                sealed: bytes = first
                rest = chunks[1:]
            else:
                piece, rest = _first(chunks)
                sealed = self._seal(piece)
            try:
                sent = self._sock.send(sealed)
            except BlockingIOError:
                if sealed is first:
                    return chunks  # nothing has gone out
                sent = 0
            if sent < len(sealed):
                return [_Sealed(sealed[sent:]), *rest]
            chunks = rest
        return []

    def _seal(self, piece: Data) -> bytes:
        write, size = self._tls.write, len(piece)
        done = write(piece)
        if done < size:  # OpenSSL may stop behind each record
            view = memoryview(piece)
            while done < size:
                done += write(view[done:])
        return self._encrypted()

    async def send_eof(self) -> None:
        with contextlib.suppress(OSError):
            with contextlib.suppress(ssl.SSLError):  # it waits for the peer's, which we do not
                self._tls.unwrap()
            await self._send_outgoing()
        await super().send_eof()


def _first(chunks: list[Data]) -> tuple[Data, list[Data]]:
    """So much of the chunks as is encrypted at once, and the others."""
    if len(chunks) == 1 and len(chunks[0]) <= _AT_ONCE_BYTES:
        return chunks[0], []
    size = 0
    for index, chunk in enumerate(chunks):
        size += len(chunk)
        if size > _AT_ONCE_BYTES:
            if index:
                return b"".join(chunks[:index]), chunks[index:]
            view = memoryview(chunk)
            return view[:_AT_ONCE_BYTES], [view[_AT_ONCE_BYTES:], *chunks[1:]]
    return b"".join(chunks), []
