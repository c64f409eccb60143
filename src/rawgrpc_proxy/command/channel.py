"""The channel between the supervisor and a process of its own: what it tells comes as bytes, one for each kind of news.

A socket pair that lives as long as the process; end of file means that the other side is gone. The supervisor must
never wait for a child, so what does not fit into the socket is not sent. Over it a worker gets links to the admin
process (`link.py`), one file descriptor with each byte.
"""

import contextlib
import socket
from collections.abc import Callable

import trio

READY = b"r"
"""A worker serves."""
DRAINING = b"d"
"""A worker takes no more connections."""
ALIVE = b"."
"""A worker's event loop runs, for the watchdog of the service manager."""
LINK = b"l"
"""To a worker: here is the end of a link."""
ABORT = b"a"
"""To a worker that drains: end at once. Not a signal, which whoever signals all processes together would send, too."""


def tell_ready(channel: socket.socket) -> None:
    """A worker serves from now on."""
    _tell(channel, READY)


def tell_draining(channel: socket.socket) -> None:
    """From now on a worker takes no more connections."""
    _tell(channel, DRAINING)


async def beat(channel: socket.socket, interval_s: float) -> None:
    """Say so often that this process lives, until cancelled."""
    while True:
        _tell(channel, ALIVE)
        await trio.sleep(interval_s)


async def hear_supervisor(
    channel: socket.socket, on_link: Callable[[socket.socket], None], on_abort: Callable[[], None]
) -> None:
    """Take links that the supervisor sends, hear that all shall end at once, and return when it is gone."""
    channel.settimeout(0)
    while True:
        await trio.lowlevel.wait_readable(channel)
        try:
            data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        except BlockingIOError:
            continue
        except OSError:
            return
        for descriptor in descriptors:
            on_link(socket.socket(fileno=descriptor))
        if not data:
            return
        if data == ABORT:
            on_abort()


def _tell(channel: socket.socket, what: bytes) -> None:
    # A supervisor that is gone, or does not read, does not hear it.
    with contextlib.suppress(OSError):
        channel.send(what)
