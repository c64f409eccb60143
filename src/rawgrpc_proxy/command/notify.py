"""Telling systemd how the service is: sd_notify(3), a datagram to the socket that it names in the environment.

Whoever is not run by systemd pays one look into the environment. What cannot be sent is not sent.
"""

import contextlib
import os
import socket
import time

_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG_US = "WATCHDOG_USEC"
_WATCHDOG_PID = "WATCHDOG_PID"


def notify(state: str) -> None:
    """Send `READY=1` and the like."""
    path = os.environ.get(_SOCKET)
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        sock.sendto(state.encode(), f"\0{path[1:]}" if path.startswith("@") else path)


def reloading() -> None:
    """A reload has begun; systemd wants to know when, on its clock (`Type=notify-reload`)."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_s() -> float | None:
    """Within how many seconds `WATCHDOG=1` has to come, time and again; None if nobody waits for it."""
    with contextlib.suppress(KeyError, ValueError):
        seconds = int(os.environ[_WATCHDOG_US]) / 1e6
        if seconds > 0 and os.environ.get(_WATCHDOG_PID, str(os.getpid())) == str(os.getpid()):
            return seconds
    return None
