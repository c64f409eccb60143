"""The channel between the supervisor and a process of its own: bytes one way, file descriptors the other.

A socket pair that lives as long as the process; end of file means that the other side is gone. The supervisor must
never wait for a child, so what does not fit into the socket is not sent.
"""

import contextlib
import socket

import trio

READY = b"r"
"""A worker serves."""
ALIVE = b"."
"""A worker's event loop runs, for the watchdog of the service manager."""


def tell_ready(channel: socket.socket) -> None:
    """A worker serves from now on."""
    _tell(channel, READY)


async def beat(channel: socket.socket, interval_s: float) -> None:
    """Say so often that this process lives, until cancelled."""
    while True:
        _tell(channel, ALIVE)
        await trio.sleep(interval_s)


async def hear_supervisor(channel: socket.socket) -> None:
    """Return when the supervisor is gone."""
    channel.settimeout(0)
    while True:
        await trio.lowlevel.wait_readable(channel)
        try:
            if not channel.recv(1):
                return
        except BlockingIOError:
            continue
        except OSError:
            return


def _tell(channel: socket.socket, what: bytes) -> None:
    # A supervisor that is gone, or does not read, does not hear it.
    with contextlib.suppress(OSError):
        channel.send(what)
