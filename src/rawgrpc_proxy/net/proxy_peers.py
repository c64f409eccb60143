"""Whom a peer that is believed connects for: a load balancer, which says so in a PROXY header, in front of all else.

`read_source` reads it off the socket. What it does not do: choose who is believed (`networks.py`), say how long that
may take (`server/server.py`), or know what a header looks like (`proxy_protocol.py`). The invariant: no byte behind the
header is read, so whatever goes on with the socket, TLS or HTTP/2, finds its own first byte.
"""

import contextlib
import socket

import trio

from rawgrpc_proxy.errors import NotHttp2
from rawgrpc_proxy.net.proxy_protocol import MAX_HEADER_BYTES, read_header


async def read_source(sock: socket.socket, peer: str) -> str | None:
    """Read the PROXY header with which a peer begins, and answer whom it connects for: itself, if it says no other.

    None if it has left without a word, as those do who only try whether somebody listens. Raises `NotHttp2` with what
    is wrong. Cancellation leaves the socket open, and useless.
    """
    sock.settimeout(0)
    came = b""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            seen = sock.recv(MAX_HEADER_BYTES - len(came), socket.MSG_PEEK)
        except BlockingIOError:
            continue
        except OSError:
            seen = b""
        if not seen:
            if came:
                raise NotHttp2(
                    "a PROXY header that breaks off: the load balancer has left in the middle of it"
                )
            return None
        header = read_header(came + seen)
        _drop(sock, len(seen) if header is None else header.size - len(came))
        if header is not None:
            return header.source or peer
        came += seen


def _drop(sock: socket.socket, size: int) -> None:
    """Take so many bytes off the socket, which have been seen there."""
    with contextlib.suppress(OSError):  # it is gone all the same: the next read says so
        while size and (data := sock.recv(size)):
            size -= len(data)
