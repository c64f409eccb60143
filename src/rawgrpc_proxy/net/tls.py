"""TLS on trio, where what goes wrong on one connection is not found by another.

OpenSSL notes errors in a queue of the thread, and looks there first to say why an operation did not succeed: before
each, the queue must be empty (SSL_get_error(3)). CPython empties it whenever it raises an error. PyPy's ssl does not
(as of 7.3.19): after one peer that speaks no TLS, or that leaves without close_notify, a read that would only have to
wait fails, on every other connection of the thread.

What it does not do: make contexts (`tls_files.py`, or the user), or shake hands (`server/server.py`, `dial.py`).
"""

import functools
import ssl
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

try:
    from _pypy_openssl import lib as _openssl  # type: ignore[import-not-found]
except ImportError:  # not PyPy
    _openssl = None

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")
_Stream = TypeVar("_Stream", bound=trio.abc.Stream)


class UpstreamContext(ssl.SSLContext):
    """A context that knows whom it expects, where that is not the host that is dialled."""

    server_name: str | None = None


def tls_stream(
    stream: _Stream,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
) -> trio.SSLStream[_Stream]:
    """`stream` with TLS, the handshake yet to be done. It may end without close_notify, as with HTTPS.

    On PyPy, `context` gets an `sslobject_class` that minds the queue, unless it has one of its own.
    """
    if _openssl is not None and context.sslobject_class is ssl.SSLObject:
        context.sslobject_class = _SSLObject
    return trio.SSLStream(
        stream, context, server_side=server_side, server_hostname=server_hostname, https_compatible=True
    )


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


class _SSLObject(ssl.SSLObject):
    do_handshake = _alone(ssl.SSLObject.do_handshake)
    read = _alone(ssl.SSLObject.read)
    write = _alone(ssl.SSLObject.write)
    unwrap = _alone(ssl.SSLObject.unwrap)
