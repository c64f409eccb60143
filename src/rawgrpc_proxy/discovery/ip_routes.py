"""Whether this machine knows a way to an address."""

import errno
import socket

_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_ANY_PORT = 9


def has_route(address: str) -> bool:
    """Ask the system which way it would send to this number; nothing is sent. True where it cannot tell."""
    if "%" in address:
        return True  # says itself by which interface
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _ANY_PORT))
    except OSError as error:
        return error.errno not in _NO_WAY
    return True
