"""TLS on PyPy: OpenSSL is called directly where bytes pass, and its queue of errors is kept clean.

PyPy's own `read` and `write` (as of 7.3.19) copy what they get once more, and make a buffer for each record, which its
collector takes for memory in use: it then looks through the whole heap for every 30 MB that passed, and that takes half
of the time. Here buffers are used again, and become bytes once.

OpenSSL notes errors in a queue of the thread, and looks there first to say why an operation did not succeed: before
each, the queue must be empty (SSL_get_error(3)). CPython empties it whenever it raises an error. PyPy does not: after
one peer that speaks no TLS, or that leaves without close_notify, a read that would only have to wait fails, on every
other connection of the thread.

What it does not do: say in Python's words why something failed. That is left to the methods of PyPy's ssl, which are
called again then. On other interpreters nothing of this may be used but `IS_HERE`.
"""

import functools
import socket
import ssl
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

try:
    from _pypy_openssl import ffi as _ffi  # type: ignore[import-not-found]
    from _pypy_openssl import lib as _openssl
except ImportError:  # not PyPy
    _openssl = _ffi = None

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

IS_HERE = _openssl is not None
"""Whether this is PyPy."""
RECORD_BYTES = 16 * 1024  # RFC 8446 §5.1
_BUFFER_BYTES = 128 * 1024
"""Of what is read or written at once there is hardly ever more."""
_WANT_READ = 2  # SSL_ERROR_WANT_READ

_buffers: list[Any] = []
"""Those that nobody uses now: a list, as there may be several threads."""


def _buffer() -> Any:  # of cffi
    return _buffers.pop() if _buffers else _ffi.new("char[]", _BUFFER_BYTES)


def _alone(operation: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """The operation; it finds no errors of others, the user's own TLS connections among them, and leaves them none."""

    @functools.wraps(operation)
    def alone(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        _openssl.ERR_clear_error()
        try:
            return operation(*args, **kwargs)
        finally:
            _openssl.ERR_clear_error()

    return alone


class SSLObject(ssl.SSLObject):
    """For `SSLContext.sslobject_class`."""

    _sslobj: Any

    do_handshake = _alone(ssl.SSLObject.do_handshake)
    read = _alone(ssl.SSLObject.read)
    unwrap = _alone(ssl.SSLObject.unwrap)

    @_alone
    def write(self, data: Any) -> int:
        """Encrypt all of it, and answer its size."""
        if type(data) is not bytes:
            data = bytes(data)
        size: int = _openssl.SSL_write(self._sslobj.ssl, data, len(data))
        return size if size > 0 or not data else super().write(data)

    def read_all(self, incoming: ssl.MemoryBIO) -> bytes:
        """All that it can make of what `incoming` holds; no bytes once the peer has said close_notify.

        Raises `BlockingIOError` if that is less than a record, or none for us.
        """
        connection, bio = self._sslobj.ssl, incoming.bio  # type: ignore[attr-defined]
        before = b""
        size = 0
        buffer = _buffer()
        _openssl.ERR_clear_error()
        try:
            while (got := _openssl.SSL_read(connection, buffer + size, RECORD_BYTES)) > 0:
                size += got
                if not _openssl.BIO_ctrl_pending(bio):
                    break
                if size > _BUFFER_BYTES - RECORD_BYTES:
                    before += _ffi.buffer(buffer, size)[:]
                    size = 0
            data: bytes = before + _ffi.buffer(buffer, size)[:]
            if got > 0:
                return data
            if _openssl.SSL_get_error(connection, got) != _WANT_READ:
                # It is over, or it is an error, which is still in the queue.
                return data + super().read(RECORD_BYTES)
            if not data:
                raise BlockingIOError
            return data
        finally:
            _openssl.ERR_clear_error()
            _buffers.append(buffer)


def receive(sock: socket.socket, size: int, incoming: ssl.MemoryBIO) -> int:
    """Have `incoming` take up to `size` bytes from the socket; how many there were. Raises `BlockingIOError`."""
    buffer = _buffer()
    try:
        got = sock.recv_into(_ffi.buffer(buffer, min(size, _BUFFER_BYTES)))
        if got:
            _openssl.BIO_write(incoming.bio, buffer, got)  # type: ignore[attr-defined]
        return got
    finally:
        _buffers.append(buffer)


def take(outgoing: ssl.MemoryBIO) -> bytes:
    """All there is in it."""
    if outgoing.pending > _BUFFER_BYTES:
        return outgoing.read()
    buffer = _buffer()
    size = _openssl.BIO_read(outgoing.bio, buffer, _BUFFER_BYTES)  # type: ignore[attr-defined]
    data: bytes = _ffi.buffer(buffer, max(size, 0))[:]
    _buffers.append(buffer)
    return data
